"""Finding one field of a multipart/form-data body by Go's rules (mime, mime/multipart, net/http), copying nothing.

Where Go would read something that this reader does not (RFC 2231 names, quoted-printable values), the body is refused:
a router that sees another model than the node would be fooled.
"""

from __future__ import annotations

import re

from router.errors import BadRequest

PARTS_MAX = 1000  # mime/multipart's own default
PART_HEADER_BYTES_MAX = 16 * 1024  # several hundred times what clients send
FIND_BYTES_MAX = 1024 * 1024  # of one search: about a millisecond
BLANKS_MAX = 1024  # between a boundary and its line's end; nobody sends one
# What begins like the boundary and goes on: a file may quote it, but each costs us as much as a part.
LOOKALIKES_MAX = 1000

_LOOKALIKES = "multipart: too many lines that only begin like the boundary"
_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z{}-]+"
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*({_WORD})[ \t]*=[ \t]*(?:({_WORD})|"((?:[^"\\\r\n]|\\.)*)")')
# mime/mediatype.go, consumeValue: a backslash escapes only what is special in a token.
_QUOTED_PAIR = re.compile(r'\\([()<>@,;:\\"/\[\]?=])')


def boundary_of(content_type: str) -> bytes:
    """Refuses with net/http's texts."""
    parsed = _parameters(content_type) if len(content_type) <= PART_HEADER_BYTES_MAX else None
    if parsed is None or parsed[0] != "multipart/form-data":
        raise _unreadable("request Content-Type isn't multipart/form-data")
    boundary = parsed[1].get("boundary")
    if boundary is None:
        raise _unreadable("no multipart boundary param in Content-Type")
    if not boundary:
        raise _unreadable("multipart: boundary is empty")
    return boundary.encode("latin-1", "replace")


def field_span(body: bytes, boundary: bytes, name: str) -> tuple[int, int] | None:
    """The value of the first field called `name`: net/http's FormValue takes the first, and never a file."""
    dash = b"--" + boundary
    first = _first_part(body, dash)
    if first is None:
        return None
    index, newline = first
    for _ in range(PARTS_MAX):
        headers, start = _headers(body, index)
        end, following = _part_end(body, start, dash, newline)
        if _is_field(headers, name):
            return start, end
        if following is None:
            return None
        index = following
    raise _unreadable("multipart: message too large")


def _first_part(body: bytes, dash: bytes) -> tuple[int, bytes] | None:
    """Where the first part's headers begin, and the line ending that this body uses; None in a form without parts."""
    line = 0
    for _ in range(LOOKALIKES_MAX):
        if body.startswith(dash, line):
            rest = _past_blanks(body, line + len(dash))
            if _is_final(body, line + len(dash)):
                return None
            for newline in (b"\r\n", b"\n"):
                if body.startswith(newline, rest):
                    return rest + len(newline), newline
        # Other lines before it are skipped at once: a body may be made of millions.
        line = _find(body, b"\n" + dash, line) + 1
        if line == 0:
            raise _unreadable("multipart: NextPart: EOF")
    raise _unreadable(_LOOKALIKES)


def _is_final(body: bytes, index: int) -> bool:
    """multipart.go, isFinalBoundary, before any part was seen."""
    end = _past_blanks(body, index + 2)
    return body.startswith(b"--", index) and (end == len(body) or body.startswith(b"\r\n", end))


def _part_end(body: bytes, start: int, dash: bytes, newline: bytes) -> tuple[int, int | None]:
    """Where the part's content ends, and where the next part's headers begin, None after the last part."""
    end = start
    if not (body.startswith(dash, start) and _is_delimiter(body, start + len(dash))):  # else an empty part
        end = _delimiter(body, start, newline + dash)
    rest = end + len(dash) + (0 if body.startswith(dash, end) else len(newline))
    if body.startswith(b"--", rest):
        return end, None
    rest = _past_blanks(body, rest)
    if not body.startswith(newline, rest):
        raise _unreadable("multipart: unexpected line in Next()")
    return end, rest + len(newline)


def _delimiter(body: bytes, index: int, needle: bytes) -> int:
    for _ in range(LOOKALIKES_MAX):
        found = _find(body, needle, index)
        if found < 0:
            raise _unreadable("unexpected EOF")
        if _is_delimiter(body, found + len(needle)):
            return found
        index = found + len(needle)
    raise _unreadable(_LOOKALIKES)


def _is_delimiter(body: bytes, after: int) -> bool:
    """multipart.go, matchAfterPrefix: `--boundaryx` belongs to the content."""
    return body[after : after + 1] in (b" ", b"\t", b"\r", b"\n", b"") or body.startswith(b"--", after)


def _headers(body: bytes, index: int) -> tuple[dict[str, str], int]:
    """The part's headers by lower-cased name, the first of each, and where its content begins."""
    headers: dict[str, str] = {}
    limit = index + PART_HEADER_BYTES_MAX
    name = ""
    while True:
        end = body.find(b"\n", index, limit)
        if end < 0:
            raise _unreadable("multipart: NextPart: EOF")
        line = body[index:end].removesuffix(b"\r").decode("latin-1")
        index = end + 1
        if not line:
            return headers, index
        if line[0] in " \t":
            raise _unreadable("multipart: folded part header")
        name, colon, value = line.partition(":")
        if not colon:
            raise _unreadable("malformed MIME header line: " + line)
        headers.setdefault(name.lower(), value.strip(" \t"))


def _is_field(headers: dict[str, str], name: str) -> bool:
    parsed = _parameters(headers.get("content-disposition", ""))
    if parsed is None:
        raise _unreadable("malformed Content-Disposition")
    kind, parameters = parsed
    if kind != "form-data" or parameters.get("name") != name:
        return False
    is_odd = headers.get("content-transfer-encoding", "").lower() == "quoted-printable"
    if is_odd or any(key.startswith("filename*") for key in parameters):
        raise _unreadable(f"an encoded field {name}")
    return not parameters.get("filename")


def _parameters(header: str) -> tuple[str, dict[str, str]] | None:
    """mime.ParseMediaType: the lower-cased type and its parameters; None for what it would not take."""
    kind = header.partition(";")[0]
    index = len(kind)
    parameters: dict[str, str] = {}
    while match := _PARAMETER.match(header, index):
        key = match[1].lower()
        if key.startswith(("name*", "boundary*")):
            raise _unreadable("an encoded parameter " + key)
        value = match[2] if match[3] is None else _QUOTED_PAIR.sub(r"\1", match[3])
        if parameters.setdefault(key, value) != value:
            return None
        index = match.end()
    return None if header[index:].strip(" \t;") else (kind.strip().lower(), parameters)


def _past_blanks(body: bytes, index: int) -> int:
    end = index + BLANKS_MAX
    kept = len(body[index:end].lstrip(b" \t"))
    if not kept and end < len(body):
        raise _unreadable("multipart: more than blanks should follow a boundary")
    return min(end, len(body)) - kept


def _find(body: bytes, needle: bytes, index: int) -> int:
    """bytes.find in slices, so that a file of many megabytes does not hold up the other threads."""
    while index < len(body):
        found = body.find(needle, index, index + FIND_BYTES_MAX + len(needle) - 1)
        if found >= 0:
            return found
        index += FIND_BYTES_MAX
    return -1


def _unreadable(text: str) -> BadRequest:
    return BadRequest(f"failed to parse multipart form: {text}", while_reading=True)
