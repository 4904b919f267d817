"""Walking the members of a JSON object without decoding them: where each key's value begins and ends.

Two ways to find the end of a value. `strict` lets CPython's C scanner validate it and is for small bodies. `lenient`
balances brackets and strings and validates nothing inside, the node does that; it touches a long string only by memchr
and keeps every C call short, so a thread that reads 64 MiB lets the event loop run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, NoReturn

from router.errors import BadRequest
from router.wire.gojson import unquote
from router.wire.gojson_scanner import space_end
from router.wire.possessive import possessive

MEMBERS_MAX = 10_000  # of one object; Ollama's requests have fewer than forty fields
KEY_BYTES_MAX = 256  # a longer key, escapes included, is no field of any request
CHUNK_BYTES_MAX = 64 * 1024  # of one regex call: about a millisecond
FIND_BYTES_MAX = 4 * 1024 * 1024  # of one memchr: about a millisecond
_CHUNK_BYTES_MIN = 512
_BACKSLASHES_MAX = 64

Skip = Callable[[int], int]
"""From the first byte of a value to the byte after it; MalformedError when there is none."""


class MalformedError(Exception):
    """No JSON value where one must be; `syntax_error` has the words."""


class Member(NamedTuple):
    """`start` is the key's opening quote, `value` the value's first byte, `end` the byte after the value."""

    key: str
    start: int
    value: int
    end: int


_BLANKS = rb"[ \t\r\n]{0,64}+"
_NUMBER = rb"-?(?:0|[1-9][0-9]*+)" + possessive(rb"\.[0-9]++", b"?") + possessive(rb"[eE][+-]?[0-9]++", b"?")
_SCALAR = re.compile(_NUMBER + rb"|true|false|null")
_SHORT = rb'("[^"\\\x00-\x1f]{0,1024}+"|' + _NUMBER + rb"|true|false|null)" + _BLANKS + rb"[,}]"
# A key and, when it is a short scalar, its value with what follows, in one match: most members of most requests.
_MEMBER = re.compile(
    _BLANKS
    + rb'"([^"\\\x00-\x1f\x80-\xff]{0,256}+)"'
    + _BLANKS
    + rb":"
    + _BLANKS
    + rb"(?![ \t\r\n])"
    + possessive(_SHORT, b"?")
)
_WITHIN = possessive(rb'[^"\\]++|\\.')
_STRING = rb'"' + _WITHIN + rb'"'
_TOKEN = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)
_STRINGS = re.compile(_STRING, re.DOTALL)
_WHOLE_STRINGS = re.compile(possessive(rb'[^"]++|' + _STRING), re.DOTALL)
_STRING_PART = re.compile(_WITHIN, re.DOTALL)
_DEPTH_CHANGE = bytes(1 if byte in b"[{" else 255 for byte in range(256))  # read as signed: one down
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))


def _no_constant(_: str) -> NoReturn:
    raise ValueError("NaN and Infinity are Python's, not JSON's")


_scan_value: Callable[[str, int], tuple[object, int]] = json.scanner.make_scanner(  # type: ignore[attr-defined]
    json.JSONDecoder(parse_constant=_no_constant)
)


def strict(body: bytes) -> Skip:
    """Validates what it skips. Latin-1, so that offsets in the text are offsets in the body."""
    text = body.decode("latin-1")

    def skip(index: int) -> int:
        try:
            return _scan_value(text, index)[1]
        except (StopIteration, ValueError, RecursionError):
            raise MalformedError from None

    return skip


def lenient(body: bytes) -> Skip:
    """Finds ends only; a well-formed value is never refused."""

    def skip(index: int) -> int:
        first = body[index : index + 1]
        if first == b'"':
            return _string_end(body, index)
        if first in (b"{", b"["):
            return _container_end(body, index)
        scalar = _SCALAR.match(body, index)
        if scalar is None:
            raise MalformedError
        return scalar.end()

    return skip


def members_of(body: bytes, index: int, skip: Skip) -> tuple[list[Member], int]:
    """The members of the object that opens at `index`, in the document's order, and the index of its closing brace."""
    members: list[Member] = []
    first = space_end(body, index + 1)
    if body[first : first + 1] == b"}":
        return members, first
    for _ in range(MEMBERS_MAX):
        plain = _MEMBER.match(body, index + 1)
        if plain and plain[2]:
            members.append(Member(plain[1].decode(), plain.start(1) - 1, *plain.span(2)))
            index = plain.end() - 1
        else:
            members.append(_long_member(body, plain, skip) if plain else _odd_member(body, index + 1, skip))
            index = space_end(body, members[-1].end)
        after = body[index : index + 1]
        if after == b"}":
            return members, index
        if after != b",":
            raise MalformedError
    raise BadRequest(f"more than {MEMBERS_MAX} members in one object", while_reading=True)


def _long_member(body: bytes, plain: re.Match[bytes], skip: Skip) -> Member:
    value = plain.end()
    return Member(plain[1].decode(), plain.start(1) - 1, value, skip(value))


def _odd_member(body: bytes, index: int, skip: Skip) -> Member:
    """With an escape, a byte outside ASCII or much space in its key."""
    start = space_end(body, index)
    if body[start : start + 1] != b'"':
        raise MalformedError
    end = skip(start)
    colon = space_end(body, end)
    if body[colon : colon + 1] != b":":
        raise MalformedError
    value = space_end(body, colon + 1)
    key = unquote(body[start:end]) if end - start <= KEY_BYTES_MAX else ""
    return Member(key, start, value, skip(value))


def elements_of(body: bytes, index: int, skip: Skip) -> Iterator[tuple[int, int]]:
    """Start and end of each element of the array that opens at `index`."""
    index = space_end(body, index + 1)
    while body[index : index + 1] not in (b"]", b""):
        end = skip(index)
        yield index, end
        index = space_end(body, end)
        if body[index : index + 1] == b",":
            index = space_end(body, index + 1)


def cuts_of(members: Sequence[Member], key_is_cut: Callable[[str], bool]) -> list[tuple[int, int]]:
    """Ranges which, all removed, take these members out and leave a well-formed object.

    A member goes with the comma after it; a run of members at the end goes, as one range, with the comma before it.
    """
    kept_end = len(members)
    while kept_end and key_is_cut(members[kept_end - 1].key):
        kept_end -= 1
    pairs = pairwise(members[: kept_end + 1])
    cuts = [(member.start, following.start) for member, following in pairs if key_is_cut(member.key)]
    if kept_end < len(members):
        cuts.append((members[kept_end - 1].end if kept_end else members[0].start, members[-1].end))
    return cuts


def _string_end(body: bytes, index: int) -> int:
    """memchr to the next quote; only around escaped quotes a regex, a chunk at a time."""
    safe = index + 1  # never inside an escape
    while True:
        quote = _find(body, b'"', safe)
        backslashes = _backslashes_before(body, quote, safe)
        if backslashes == _BACKSLASHES_MAX:  # too many to tell from here which of them is escaped
            start = safe
        elif backslashes % 2 == 0:
            return quote + 1
        else:
            start = quote + 1
        part = _STRING_PART.match(body, start, start + CHUNK_BYTES_MAX)
        assert part is not None, "it matches nothing at worst"
        safe = part.end()
        if body[safe : safe + 1] == b'"':
            return safe + 1


def _backslashes_before(body: bytes, index: int, floor: int) -> int:
    """At most _BACKSLASHES_MAX."""
    first = max(floor, index - _BACKSLASHES_MAX)
    near = body[first:index]
    return len(near) - len(near.rstrip(b"\\"))


def _find(body: bytes, needle: bytes, index: int) -> int:
    while index < len(body):
        found = body.find(needle, index, index + FIND_BYTES_MAX)
        if found >= 0:
            return found
        index += FIND_BYTES_MAX
    raise MalformedError


def _container_end(body: bytes, index: int) -> int:
    """Counts depth over whole chunks in C, and goes token by token only where the container may close."""
    depth, chunk = 0, _CHUNK_BYTES_MIN
    while index < len(body):
        whole = _WHOLE_STRINGS.match(body, index, index + chunk)
        assert whole is not None, "it matches nothing at worst"
        end = whole.end()
        if end == index:  # a string that is longer than the chunk
            index = _string_end(body, index)
            chunk = CHUNK_BYTES_MAX
            continue
        brackets = _STRINGS.sub(b"", body[index:end]).translate(None, _NO_BRACKET)
        changes = memoryview(brackets.translate(_DEPTH_CHANGE)).cast("b")
        if depth + min(accumulate(changes), default=1) <= 0:
            return _closing(body, index, end, depth)
        depth += sum(changes)
        index, chunk = end, min(chunk * 2, CHUNK_BYTES_MAX)
    raise MalformedError


def _closing(body: bytes, index: int, end: int, depth: int) -> int:
    for token in _TOKEN.finditer(body, index, end):
        first = token[0][:1]
        if first != b'"':
            depth += 1 if first in b"[{" else -1
            if depth == 0:
                return token.end()
    raise AssertionError("the chunk was counted to close here")  # pragma: no cover
