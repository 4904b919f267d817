"""HTTP/1.1 framing as bytes: chunks and message heads. Which headers stand in a head is `headers`' business."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

LAST_CHUNK = b"0\r\n\r\n"

_REASONS: dict[int, bytes] = {status.value: status.phrase.encode() for status in HTTPStatus}


def chunk(data: bytes) -> bytes:
    """One chunk. Never for no data: an empty chunk would end the body (RFC 9112 7.1)."""
    assert data, "an empty chunk ends the body"
    return b"%x\r\n%b\r\n" % (len(data), data)


NO_CHUNK = b"\n"  # no chunk begins so


def chunk_heads(size_max: int) -> tuple[bytes, ...]:
    """By the length of a whole chunk, frame and all: how it begins where Go wrote it, in lower-case digits and without
    an extension (net/http/internal/chunked.go, Write); NO_CHUNK for a length that no such chunk has."""
    heads = [NO_CHUNK] * size_max
    for data_size in range(1, size_max):
        head = b"%x\r\n" % data_size
        if (size := len(head) + data_size + 2) < size_max:
            heads[size] = head
    return tuple(heads)


def request_head(method: str, target: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    assert " " not in method + target, "a space would shift the request line"
    return _head(f"{method} {target} HTTP/1.1".encode("latin-1"), headers)


def response_head(status: int, headers: Iterable[tuple[bytes, bytes]], *, version: str = "1.1") -> bytes:
    """`version` is what the client speaks: "1.0" or "1.1". Unknown statuses have an empty reason (RFC 9112 4)."""
    return _head(b"HTTP/%b %d %b" % (version.encode(), status, _REASONS.get(status, b"")), headers)


def _head(first_line: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    lines = [first_line]
    lines += [b"%b: %b" % pair for pair in headers]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    # The parsers on both sides refuse these bytes; one that slipped in here would split the message.
    ends = len(lines) + 1
    assert head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n") == ends, "CR or LF in a head"
    assert b"\0" not in head, "NUL in a head"
    return head
