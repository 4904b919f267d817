"""The model field of a form is found as Go finds it, and nothing else is touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import BadRequest, Refusal
from router.wire import multipart
from router.wire.multipart import PARTS_MAX, boundary_of, field_span

RECORDINGS = Path(__file__).parents[1] / "recordings"


def part(name: str, value: bytes, *, extra: str = "", headers: str = "", newline: bytes = b"\r\n") -> bytes:
    lines = (f'Content-Disposition: form-data; name="{name}"{extra}\n{headers}\n').encode().replace(b"\n", newline)
    return b"--b" + newline + lines + value + newline


def model_of(body: bytes, boundary: bytes = b"b") -> bytes | None:
    span = field_span(body, boundary, "model")
    return None if span is None else body[slice(*span)]


def test_the_recorded_form_is_read() -> None:
    body = (RECORDINGS / "refused/v1-transcriptions-bad.request").read_bytes().partition(b"\r\n\r\n")[2]
    assert model_of(body) == b"gemma3:270m"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data; boundary=b",
        'Multipart/Form-Data;charset=utf-8 ; BOUNDARY="b"',
        'multipart/form-data; boundary="b";',
    ],
)
def test_the_boundary_is_found_however_it_is_written(content_type: str) -> None:
    assert boundary_of(content_type) == b"b"


def test_a_quoted_boundary_may_hold_what_a_token_may_not() -> None:
    assert boundary_of('multipart/form-data; boundary="a\\"b c:/="') == b'a"b c:/='


@pytest.mark.parametrize(
    ("content_type", "text"),
    [
        ("", "request Content-Type isn't multipart/form-data"),
        ("application/json", "request Content-Type isn't multipart/form-data"),
        ("multipart/form-data; boundary", "request Content-Type isn't multipart/form-data"),
        ("multipart/form-data; boundary=a; boundary=b", "request Content-Type isn't multipart/form-data"),
        ("multipart/form-data", "no multipart boundary param in Content-Type"),
        ('multipart/form-data; boundary=""', "multipart: boundary is empty"),
        ("multipart/form-data; boundary*=utf-8''b", "an encoded parameter boundary*"),
    ],
)
def test_a_form_without_a_boundary_is_refused(content_type: str, text: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        boundary_of(content_type)
    assert refusal.value.text == f"failed to parse multipart form: {text}"
    assert refusal.value.while_reading


def test_the_first_field_wins() -> None:
    assert model_of(part("model", b"first") + part("model", b"last") + b"--b--\r\n") == b"first"


def test_a_file_is_no_field_and_a_nameless_file_is_one() -> None:
    assert model_of(part("model", b"file", extra='; filename="x"') + part("model", b"m") + b"--b--") == b"m"
    assert model_of(part("model", b"m", extra='; filename=""') + b"--b--") == b"m"


def test_part_headers_may_be_in_any_case_and_order() -> None:
    body = b"--b\r\nX-A: 1\r\nCONTENT-disposition:form-data ; NAME=model\r\n\r\nm\r\n--b--"
    assert model_of(body) == b"m"


def test_a_preamble_bare_newlines_and_blanks_after_the_boundary_are_tolerated() -> None:
    assert model_of(b"hello\r\n" + part("model", b"m") + b"--b--") == b"m"
    assert model_of(part("model", b"m", newline=b"\n") + b"--b--\n") == b"m"
    assert model_of(part("model", b"m").replace(b"--b\r\n", b"--b \t\r\n") + b"--b--") == b"m"


def test_a_longer_boundary_belongs_to_the_content() -> None:
    assert model_of(part("model", b"m\r\n--bx\r\n") + b"--b--") == b"m\r\n--bx\r\n"


def test_an_empty_part_is_an_empty_value() -> None:
    assert model_of(b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n--b--') == b""
    assert model_of(part("model", b"") + b"--b--") == b""


def test_a_form_without_the_field_has_none() -> None:
    assert model_of(part("file", b"RIFF", extra='; filename="a.wav"') + b"--b--") is None
    assert model_of(b"--b\r\n\r\nx\r\n--b--") is None


def test_parts_after_the_last_boundary_are_not_read() -> None:
    assert model_of(part("a", b"1") + b"--b--\r\n" + part("model", b"m") + b"--b--") is None


@pytest.mark.parametrize("final", [b"--b--\r\n", b"x\r\n--b-- \r\n"])
def test_a_form_that_ends_before_it_begins_has_no_field(final: bytes) -> None:
    assert model_of(final + part("model", b"m") + b"--b--") is None
    assert model_of(b"--b--\n" + part("model", b"m") + b"--b--") == b"m"


def test_a_file_of_many_megabytes_before_the_field_is_passed_over() -> None:
    file = bytes(range(256)) * 20_000 + b"\r\n--" + b"\r\n-" * multipart.FIND_BYTES_MAX
    body = part("file", file, extra='; filename="a.wav"') + part("model", b"m") + b"--b--"
    assert model_of(body) == b"m"


@pytest.mark.parametrize("size", range(multipart.FIND_BYTES_MAX - 8, multipart.FIND_BYTES_MAX + 8))
def test_a_boundary_across_two_searches_is_found(size: int) -> None:
    assert model_of(part("file", bytes(size)) + part("model", b"m") + b"--b--") == b"m"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--c\r\n",
        b"--b\r\nContent-Disposition",
        b"--b\r\nno colon\r\n\r\nm\r\n--b--",
        b"--b\r\nA: b\r\n folded\r\n\r\nm\r\n--b--",
        part("model", b"m"),
        part("a", b"m") + b"--b x\r\n",
        part("a", b"m", headers="X: " + "x" * multipart.PART_HEADER_BYTES_MAX + "\n") + b"--b--",
        part("a", b"m") * (PARTS_MAX + 1) + part("model", b"m") + b"--b--",
        part("model", b"m=3A1b", headers="Content-Transfer-Encoding: Quoted-Printable\n") + b"--b--",
        part("model", b"m", extra="; filename*=utf-8''") + b"--b--",
        part("a", b"m").replace(b'name="a"', b"name*=utf-8''model") + b"--b--",
        part("a", b"m").replace(b'name="a"', b'name="a"; name="model"') + b"--b--",
        part("a", b"m").replace(b'name="a"', b'\xc2\xa0name="model"') + b"--b--",
    ],
)
def test_what_go_refuses_or_reads_in_its_own_way_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest, match="failed to parse multipart form: "):
        field_span(body, b"b", "model")


def test_a_form_of_many_parts_is_read_up_to_gos_limit() -> None:
    assert model_of(part("a", b"m") * (PARTS_MAX - 1) + part("model", b"m") + b"--b--") == b"m"


BODY_PIECES = st.sampled_from(
    [
        b"--b",
        b"--",
        b"\r\n",
        b"\n",
        b" ",
        b"Content-Disposition: form-data",
        b'; name="model"',
        b";",
        b"=",
        b":",
        b"x",
        b'"',
    ]
)


FILE = part("file", b"", extra='; filename="a"').removesuffix(b"\r\n")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"--b" + b" " * 2 * multipart.BLANKS_MAX, "blanks"),
        (b"--bb\n" * 2 * multipart.LOOKALIKES_MAX, "begin like the boundary"),
        (FILE + b"\r\n--bb" * 2 * multipart.LOOKALIKES_MAX, "begin like the boundary"),
    ],
    ids=["blanks", "before the first part", "inside a part"],
)
def test_a_form_made_to_cost_much_is_refused_early(body: bytes, text: str) -> None:
    with pytest.raises(BadRequest, match=text):
        model_of(body)


def test_a_form_may_have_as_many_lookalikes_and_blanks_as_anybody_sends() -> None:
    lookalikes = b"--bb\n" * (multipart.LOOKALIKES_MAX - 1)
    blanks = b" " * (multipart.BLANKS_MAX - 1)
    body = lookalikes + part("model", b"m").replace(b"--b", b"--b" + blanks, 1) + b"--b--\r\n"
    assert model_of(body) == b"m"


def test_a_preamble_of_a_million_lines_is_one_search() -> None:
    body = b"\n" * 1_000_000 + part("model", b"m") + b"--b--\r\n"
    assert model_of(body) == b"m"


def test_a_content_type_of_a_megabyte_is_not_read() -> None:
    with pytest.raises(BadRequest, match="isn't multipart/form-data"):
        boundary_of("multipart/form-data" + "; a=b" * 200_000 + "; boundary=b")


@given(st.lists(BODY_PIECES, max_size=20).map(b"".join))
def test_arbitrary_forms_are_read_or_refused(body: bytes) -> None:
    try:
        span = field_span(body, b"b", "model")
    except Refusal:
        return
    assert span is None or 0 <= span[0] <= span[1] <= len(body)
