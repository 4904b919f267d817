"""What is wrong with what a client heard, by RFC 9112 and our documents: a pure function of the case and the bytes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from router.wire.endpoints import BY_PATH, Dialect
from tests.fuzz.case import Case, End, Expect

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [\x20-\x7e]*\Z")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*)\Z")
_CLOSED_LIST = {b"content-length", b"transfer-encoding", b"content-type", b"date"}
# What a server may say to bytes that are no HTTP, beside 4xx (RFC 9112 sections 2.3, 6.1; RFC 6585).
_NO_HTTP = (501, 505)


@dataclass(frozen=True, slots=True)
class Heard:
    """`data`: all that came. `is_closed`: the server ended the connection before its client said that it would.

    `probes`: requests of the fuzzer's own that were answered at its end.
    """

    data: bytes
    is_closed: bool
    probes: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    is_whole: bool


class Malformed(Exception):
    """The bytes are no answer."""


def answers(data: bytes, *, is_head: bool = False, at_end: bool = True) -> list[Reply]:
    """Raises Malformed. Interim answers are left out; what is not whole comes last. `at_end`: no more will come."""
    found: list[Reply] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        if not end:
            if at_end:
                raise Malformed(f"a head without an end: {head[:200]!r}")
            return found
        status, headers = _head(head)
        if status < 200:
            continue
        body, is_whole = b"", True
        if status not in (204, 304) and not is_head:
            body, is_whole, data = _body(headers, data)
        found.append(Reply(status, headers, body, is_whole))
    return found


def verdict(case: Case, heard: Heard) -> str:
    """Empty where all is well, else what is wrong."""
    try:
        replies = answers(heard.data, is_head=case.is_head)
    except Malformed as malformed:
        return str(malformed)
    replies = replies[: len(replies) - heard.probes]
    if case.end is not End.STAY:
        replies = [reply for reply in replies if reply.is_whole]  # a client that left may get half of an answer
    if len(replies) > case.requests:
        return f"{len(replies)} answers to {case.requests} requests: something was smuggled"
    for reply in replies:
        if problem := _wrong_with(case, reply):
            return problem
    return _wrong_with_all(case, heard, replies) if case.end is End.STAY else ""


def _wrong_with_all(case: Case, heard: Heard, replies: list[Reply]) -> str:
    statuses = [reply.status for reply in replies]
    if case.expect in (Expect.GOOD, Expect.ANSWER) and len(replies) < case.requests:
        return f"{case.requests} answers were due, and {statuses} came"
    if case.expect is Expect.GOOD and not all(200 <= status < 300 for status in statuses):
        return f"answered {statuses}, though it is right"
    if case.expect is Expect.REFUSE and not all(400 <= status < 500 or status in _NO_HTTP for status in statuses):
        return f"answered {statuses}, though it is wrong"
    if case.expect in (Expect.REFUSE, Expect.LAST) and not heard.is_closed:
        return f"answered {statuses}, and the connection went on, though nobody knows where the next request begins"
    return ""


def _wrong_with(case: Case, reply: Reply) -> str:
    if not reply.is_whole:
        return f"{reply.status} without its end: {reply.body[-200:]!r}"
    if b"content-length" in reply.headers and b"transfer-encoding" in reply.headers:
        return "an answer with a length that is chunked"
    if b"x-injected" in reply.headers:
        return "a header of the client's making"
    if reply.status >= 500 and not _may_be(reply) and not (reply.status in _NO_HTTP and case.expect is not Expect.GOOD):
        return f"{reply.status}, which is ours: {reply.body[:300]!r}"
    if case.expect in (Expect.GOOD, Expect.ANSWER):
        if b"x-request-id" not in reply.headers:
            return f"{reply.status} without a request id: {reply.body[:300]!r}"
        if case.path in BY_PATH and not case.is_head and reply.status >= 400:
            return _wrong_dialect(BY_PATH[case.path].dialect, reply)
    return ""


def _may_be(reply: Reply) -> bool:
    """Ollama's own: 500 for a wrongly typed option (recording refused/option-type), and what a node said itself."""
    if reply.headers.get(b"x-ollama-router-refused") == b"invalid":
        return reply.status == 500
    return reply.status in (500, 501) and b"x-ollama-router-node" in reply.headers


def _wrong_dialect(dialect: Dialect, reply: Reply) -> str:
    kind = reply.headers.get(b"content-type", b"")
    if reply.status == 405 and kind.startswith(b"text/plain"):
        return ""
    if reply.status == 403 and not reply.body:
        return ""  # a foreign origin, as recorded
    try:
        body: Any = json.loads(reply.body)
    except ValueError:
        return f"{reply.status} in no dialect, {kind!r}: {reply.body[:300]!r}"
    if not kind.startswith(b"application/json"):
        return f"{reply.status} is JSON and calls itself {kind!r}"
    return "" if _SHAPES[dialect](body) else f"{reply.status} in another dialect than {dialect}: {reply.body[:300]!r}"


def _is_ollama(body: Any) -> bool:
    return isinstance(body, dict) and isinstance(body.get("error"), str)


def _is_openai(body: Any) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and error.keys() == {"message", "type", "param", "code"}


def _is_anthropic(body: Any) -> bool:
    error = body.get("error") if isinstance(body, dict) else None
    return isinstance(error, dict) and body.get("type") == "error" and error.keys() == {"type", "message"}


_SHAPES = {Dialect.OLLAMA: _is_ollama, Dialect.OPENAI: _is_openai, Dialect.ANTHROPIC: _is_anthropic}


def _head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    found = _STATUS_LINE.match(first)
    if found is None:
        raise Malformed(f"no status line: {first[:200]!r}")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        pair = _HEADER.match(line)
        if pair is None:
            raise Malformed(f"no header: {line[:200]!r}")
        name = pair[1].lower()
        if name in headers and name in _CLOSED_LIST:
            raise Malformed(f"said twice: {line[:200]!r}")
        headers[name] = pair[2]
    return int(found[1]), headers


def _body(headers: dict[bytes, bytes], data: bytes) -> tuple[bytes, bool, bytes]:
    """Body, whether it is whole, and what follows."""
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return _dechunked(data)
    if b"content-length" not in headers:
        return data, headers.get(b"connection", b"").lower() == b"close", b""
    length = int(headers[b"content-length"])
    return data[:length], len(data) >= length, data[length:]


def _dechunked(data: bytes) -> tuple[bytes, bool, bytes]:
    body = bytearray()
    while True:
        size, found, rest = data.partition(b"\r\n")
        if not found:
            return bytes(body), False, b""
        try:
            length = int(size, 16)
        except ValueError:
            raise Malformed(f"no chunk size: {size[:50]!r}") from None
        if len(rest) < length + 2:
            return bytes(body), False, b""
        if rest[length : length + 2] != b"\r\n":
            raise Malformed("a chunk that ends elsewhere")
        body += rest[:length]
        data = rest[length + 2 :]
        if not length:
            return bytes(body), True, data
