"""Expected texts and values were made by encoding/json, strconv and Ollama's recordings."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.gojson import fold, go_json, go_quote, go_string, syntax_error, text_of, unquote
from router.wire.gojson_scanner import NESTING_MAX, STEPS_MAX

WORDS = [
    (b"", "EOF"),
    (b" \t\r\n", "EOF"),
    (b'{"model":', "unexpected EOF"),
    (b'{"model"', "unexpected EOF"),
    (b'"abc', "unexpected EOF"),
    (b'"abc\\', "unexpected EOF"),
    (b'"abc\\u00', "unexpected EOF"),
    (b"tru", "unexpected EOF"),
    (b"-", "unexpected EOF"),
    (b"1.", "unexpected EOF"),
    (b"1e", "unexpected EOF"),
    (b"[1", "unexpected EOF"),
    (b"\xef\xbb\xbf{}", "invalid character '\u00ef' looking for beginning of value"),
    (b"x", "invalid character 'x' looking for beginning of value"),
    (b"'", "invalid character '\\'' looking for beginning of value"),
    (b"\\", "invalid character '\\\\' looking for beginning of value"),
    (b"\x00", "invalid character '\\x00' looking for beginning of value"),
    (b"\x90", "invalid character '\\u0090' looking for beginning of value"),
    (b"[1,]", "invalid character ']' looking for beginning of value"),
    (b"{,", "invalid character ',' looking for beginning of object key string"),
    (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
    (b'{"a" "b"', "invalid character '\"' after object key"),
    (b'{"a":1 "b"', "invalid character '\"' after object key:value pair"),
    (b"[1 2]", "invalid character '2' after array element"),
    (b"[01]", "invalid character '1' after array element"),
    (b"[1.5.2]", "invalid character '.' after array element"),
    (b"[0,1.]", "invalid character ']' after decimal point in numeric literal"),
    (b"[0,1ex]", "invalid character 'x' in exponent of numeric literal"),
    (b"[-x]", "invalid character 'x' in numeric literal"),
    (b"nux", "invalid character 'x' in literal null (expecting 'l')"),
    (b"tx", "invalid character 'x' in literal true (expecting 'r')"),
    (b"falsx", "invalid character 'x' in literal false (expecting 'e')"),
    (b'"a\nb"', "invalid character '\\n' in string literal"),
    (b'"a\\qb"', "invalid character 'q' in string escape code"),
    (b'"a\\u12x4"', "invalid character 'x' in \\u hexadecimal character escape"),
    (b"[" * 10_001, "invalid character '[' exceeded max depth"),
]


@pytest.mark.parametrize(("body", "text"), WORDS, ids=[repr(body[:20]) for body, _ in WORDS])
def test_syntax_errors_have_gos_words(body: bytes, text: str) -> None:
    assert syntax_error(body) == text


@pytest.mark.parametrize("body", [b"nullx", b"5x", b'{"a":1}}', b" [] ]", b"[" * NESTING_MAX + b"]" * NESTING_MAX])
def test_bytes_after_the_first_value_are_not_looked_at(body: bytes) -> None:
    assert syntax_error(body) is None


def test_a_malformed_body_of_countless_values_is_given_up_on() -> None:
    assert syntax_error(b"[" + b"[{}]," * (STEPS_MAX // 2 + 1) + b"x") == "malformed JSON"


def _no_constant(text: str) -> None:
    raise ValueError(text)


def _json_takes(body: bytes) -> bool:
    """Inside an array only: after a bare number json takes anything."""
    try:
        json.JSONDecoder(parse_constant=_no_constant).raw_decode(body.decode("latin-1"))
    except ValueError:
        return False
    return True


JSON_PIECES = st.sampled_from(
    [*'{}[],:"\\ \n-.+', '"a":', "0", "12", "1.5e-3", "true", "false", "null", '"x\\u0041"', '"\\ud800"', "é", "NaN"]
)


@given(st.lists(JSON_PIECES, max_size=12).map("".join))
def test_it_finds_an_error_exactly_where_json_does(text: str) -> None:
    body = f"[{text}]".encode()
    assert (syntax_error(body) is None) == _json_takes(body)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, st.integers(0, 200), st.binary(max_size=2), st.booleans())
def test_a_mutated_document_is_judged_as_json_judges_it(value: object, at: int, junk: bytes, is_ascii: bool) -> None:
    body = json.dumps(value, ensure_ascii=is_ascii).encode()
    mutated = b"[" + body[:at] + junk + body[at + 1 :] + b"]"
    assert (syntax_error(mutated) is None) == _json_takes(mutated)


def test_only_the_long_s_and_the_kelvin_sign_fold_into_ascii() -> None:
    assert fold("\u017fTREAM") == "stream"
    assert fold("\u212aeep_alive") == "keep_alive"
    foreign = [char for char in map(chr, range(128, sys.maxunicode + 1)) if fold(char).isascii()]
    assert foreign == ["\u017f", "\u212a"]


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (b'"a\\n\\/\\"\\u00e9"', 'a\n/"\u00e9'),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\\ud83d"', "\ufffd"),
        (b'"\\ude00\\ud83dx"', "\ufffd\ufffdx"),
        (b'"\\ud83d\\ud83d\\ude00"', "\ufffd\U0001f600"),
        (b'"\xe2\x82"', "\ufffd\ufffd"),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b'"\xe2\x82\xac\\u20AC"', "\u20ac\u20ac"),
    ],
)
def test_a_string_is_decoded_as_go_decodes_it(literal: bytes, value: str) -> None:
    assert unquote(literal) == value


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_what_go_writes_reads_back(text: str) -> None:
    literal = go_string(text)
    assert json.loads(literal) == text
    assert unquote(literal) == text


@given(st.binary(max_size=40))
def test_any_bytes_decode_to_text_that_can_be_encoded(raw: bytes) -> None:
    unquote(b'"' + raw + b'"').encode()
    text_of(raw).encode()


def test_a_string_is_written_as_gos_encoder_writes_it() -> None:
    assert go_string('<a&b> "\\/') == b'"\\u003ca\\u0026b\\u003e \\"\\\\/"'
    assert go_string("\b\f\n\r\t\x00\x1f\x7f") == b'"\\b\\f\\n\\r\\t\\u0000\\u001f\x7f"'
    assert go_string("\u2028\u2029\u00e9\ufffd") == '"\\u2028\\u2029\u00e9\ufffd"'.encode()
    assert go_string("\ud800x") == b'"\\ufffdx"'


def test_a_document_is_written_as_gos_encoder_writes_it() -> None:
    value = {"b": ["<a> & b\u2028", None, True, 1.5], "a": "\u00e9\udc80"}
    assert go_json(value) == b'{"b":["\\u003ca\\u003e \\u0026 b\\u2028",null,true,1.5],"a":"\xc3\xa9?"}'


def test_quoting_is_that_of_strconv() -> None:
    assert (
        go_quote('a"\\\n\x00\x7f\xa0\u00e9\u2028\U000e0001') == '"a\\"\\\\\\n\\x00\\x7f\\u00a0\u00e9\\u2028\\U000e0001"'
    )
