"""Why Go's decoder would not take a body: the error path of reading, so exact first and fast second.

The same grammar and words as encoding/json's scanner.go, written over runs of bytes instead of a step per byte.
"""

from __future__ import annotations

import re
from typing import NoReturn

from router.wire.possessive import possessive

NESTING_MAX = 10_000  # scanner.go, maxNestingDepth
STEPS_MAX = 1_000_000  # about two seconds; a body that is read on the event loop is far too small for it
_WINDOW = 64 * 1024  # bytes of one regex call: well below a millisecond without the GIL

_SPACE = re.compile(rb"[ \t\r\n]*+")
_DIGITS = re.compile(rb"[0-9]*+")
_STRING_PART = re.compile(possessive(rb'[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}'))
# Runs of plain members are taken in one call; whatever looks odd is left to the exact path.
_FRACTION = possessive(rb"\.[0-9]{1,18}+", b"?")
_NUMBER = rb"-?(?:0|[1-9][0-9]{0,18}+)" + _FRACTION + rb"(?![.eE0-9])"
_PLAIN = rb'(?:"[^"\\\x00-\x1f]{0,128}+"|' + _NUMBER + rb"|true|false|null)"
_FLAT = rb"(?:" + _PLAIN + rb"|\[" + possessive(_PLAIN, b"?") + possessive(rb", ?" + _PLAIN, b"{0,16}") + rb"\])"
_ELEMENTS = re.compile(possessive(rb", ?" + _FLAT, b"{0,256}"))
_PAIRS = re.compile(possessive(rb', ?"[^"\\\x00-\x1f]{0,128}+": ?' + _FLAT, b"{0,256}"))

_LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
_HIGHEST_SPACE = ord(" ")
_OBJECT, _ARRAY = ord("{"), ord("[")


class _MalformedError(Exception):
    """Carries the words of the first syntax error."""


def syntax_error(body: bytes) -> str | None:
    """Go's words for the first value in `body`, or None when it is well-formed; bytes after it are not looked at.

    A large body of many tiny values that goes wrong after STEPS_MAX of them is only called malformed.
    """
    start = space_end(body, 0)
    if start == len(body):
        return "EOF"
    try:
        _scan(body, start)
    except _MalformedError as error:
        return str(error)
    except IndexError:  # asked for a byte past the end
        return "unexpected EOF"
    return None


def space_end(body: bytes, index: int) -> int:
    """The first byte at or after `index` that is not JSON whitespace; the end of the body when there is none."""
    if index < len(body) and body[index] > _HIGHEST_SPACE:
        return index
    while True:
        limit = index + _WINDOW
        match = _SPACE.match(body, index, limit)
        assert match is not None, "it matches nothing at worst"
        if match.end() < limit:
            return match.end()
        index = limit


def quote_char(byte: int) -> str:
    """scanner.go, quoteChar: the byte taken as a rune, in single quotes."""
    char = chr(byte)
    named = {"'": "\\'", "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t",
             "\v": "\\v"}.get(char)  # fmt: skip
    if named is None:
        named = char if char.isprintable() else f"\\x{byte:02x}" if byte < 0x80 else f"\\u{byte:04x}"
    return f"'{named}'"


def _refuse(byte: int, context: str) -> NoReturn:
    raise _MalformedError(f"invalid character {quote_char(byte)} {context}")


def _scan(body: bytes, index: int) -> None:
    """Walks one value; `within` holds the kinds of the containers around `index`."""
    within = bytearray()
    for _ in range(STEPS_MAX):
        index = space_end(body, index)
        byte = body[index]
        if byte in (_OBJECT, _ARRAY):
            if len(within) == NESTING_MAX:
                _refuse(byte, "exceeded max depth")
            index = space_end(body, index + 1)
            if body[index] != byte + 2:  # in ASCII ] and } stand two after [ and {
                within.append(byte)
                index = _key(body, index) if byte == _OBJECT else index
                continue
            index += 1
        else:
            index = _scalar(body, index)
        index = _after_value(body, index, within)
        if not within:
            return
    raise _MalformedError("malformed JSON")


def _after_value(body: bytes, index: int, within: bytearray) -> int:
    """Closes what ends here; the index where the next value begins, or of the end when `within` is empty."""
    while within:
        kind = within[-1]
        run = (_PAIRS if kind == _OBJECT else _ELEMENTS).match(body, index)
        index = space_end(body, run.end() if run else index)
        byte = body[index]
        if byte == ord(","):
            return index + 1 if kind == _ARRAY else _key(body, space_end(body, index + 1))
        if byte != kind + 2:
            _refuse(byte, "after object key:value pair" if kind == _OBJECT else "after array element")
        within.pop()
        index += 1
    return index


def _key(body: bytes, index: int) -> int:
    if body[index] != ord('"'):
        _refuse(body[index], "looking for beginning of object key string")
    index = space_end(body, _string(body, index))
    if body[index] != ord(":"):
        _refuse(body[index], "after object key")
    return index + 1


def _scalar(body: bytes, index: int) -> int:
    byte = body[index]
    if byte == ord('"'):
        return _string(body, index)
    if byte == ord("-") or ord("0") <= byte <= ord("9"):
        return _number(body, index)
    literal = _LITERALS.get(byte)
    if literal is None:
        _refuse(byte, "looking for beginning of value")
    for offset, expected in enumerate(literal):
        if body[index + offset] != expected:
            _refuse(body[index + offset], f"in literal {literal.decode()} (expecting {quote_char(expected)})")
    return index + len(literal)


def _string(body: bytes, index: int) -> int:
    index += 1
    while True:
        part = _STRING_PART.match(body, index, index + _WINDOW)
        assert part is not None, "it matches nothing at worst"
        if part.end() > index:
            index = part.end()
        elif body[index] == ord('"'):
            return index + 1
        elif body[index] == ord("\\"):
            _refuse_escape(body, index + 1)
        else:
            _refuse(body[index], "in string literal")


def _refuse_escape(body: bytes, index: int) -> NoReturn:
    if body[index] != ord("u"):
        _refuse(body[index], "in string escape code")
    while chr(body[index := index + 1]) in "0123456789abcdefABCDEF":
        pass
    _refuse(body[index], "in \\u hexadecimal character escape")


def _number(body: bytes, index: int) -> int:
    if body[index] == ord("-"):
        index += 1
        if not _is_digit(body[index]):
            _refuse(body[index], "in numeric literal")
    index = index + 1 if body[index] == ord("0") else _digits_end(body, index)
    if body[index : index + 1] == b".":
        index = _digits(body, index + 1, "after decimal point in numeric literal")
    if body[index : index + 1] in (b"e", b"E"):
        signed = index + 2 if body[index + 1] in b"+-" else index + 1
        index = _digits(body, signed, "in exponent of numeric literal")
    return index


def _digits(body: bytes, index: int, context: str) -> int:
    if not _is_digit(body[index]):
        _refuse(body[index], context)
    return _digits_end(body, index)


def _digits_end(body: bytes, index: int) -> int:
    match = _DIGITS.match(body, index)
    return match.end() if match else index


def _is_digit(byte: int) -> bool:
    return ord("0") <= byte <= ord("9")
