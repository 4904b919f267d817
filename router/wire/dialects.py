"""Refusals as bytes: every error that a client can get from the router, in the dialect of the route it asked.

Shapes are those of a real server (recordings `refused/`, `busy/`, `catalog/`), in-stream ones those that the official
clients raise on. Nothing here decides what is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from hashlib import blake2b

from router.errors import BadRequest, NodeAnswered, Outcome, Refusal
from router.wire.endpoints import Dialect, Endpoint, Shape
from router.wire.gojson import go_string
from router.wire.headers import REFUSED

Pair = tuple[bytes, bytes]

UNREAD_BYTES_MAX = 500  # of a node's error that is in no dialect

_JSON = b"application/json"
_JSON_CHARSET = b"application/json; charset=utf-8"

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}

# Where OpenAI's own service says more than Ollama can; a refusal's own code wins.
_OPENAI_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}

# Ollama's anthropic/anthropic.go, NewError.
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer but for its framing: Content-Length, Date and the decision headers are its sender's."""

    status: int
    headers: tuple[Pair, ...]
    body: bytes

    @property
    def is_refused(self) -> bool:
        """For a reason of the router's own, which its headers name."""
        return any(name == REFUSED for name, _ in self.headers)


def error_answer(dialect: Dialect, refusal: Refusal, request_id: str) -> Answer:
    if dialect is Dialect.OLLAMA:
        body, content_type = _native(refusal), _JSON_CHARSET
    else:
        shape = _openai(refusal) if dialect is Dialect.OPENAI else _anthropic(refusal, request_id)
        # What Ollama's compat middleware refuses has a charset and no newline: `refused/json-v1-chat` against
        # `refused/bad-name-v1-chat`.
        reading = isinstance(refusal, BadRequest) and refusal.while_reading
        body, content_type = (shape, _JSON_CHARSET) if reading else (shape + b"\n", _JSON)
    return Answer(refusal.status, ((b"Content-Type", content_type), *_advice(refusal)), body)


def of_node(status: int, body: bytes, outcome: Outcome) -> NodeAnswered:
    """What a node answered instead of the stream that its client was already given: its own text, type and code."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        error = {"message": error}
    members = map(error.get, ("message", "type", "code"))
    text, kind, code = (member if isinstance(member, str) else "" for member in members)
    if not text:
        text = body[:UNREAD_BYTES_MAX].decode("utf-8", "replace").strip() or f"the node answered with status {status}"
    return NodeAnswered(text, status, outcome=outcome, kind=kind or None, code=code or None)


def error_event(endpoint: Endpoint, refusal: Refusal, *, sequence_number: int, request_id: str) -> bytes:
    """The refusal inside a stream whose 200 is gone. The client must stand between two events."""
    if endpoint.dialect is Dialect.OLLAMA:
        return _native(refusal) + b"\n"
    if endpoint.dialect is Dialect.ANTHROPIC:
        return b"event: error\ndata: %b\n\n" % _anthropic(refusal, request_id)
    if endpoint.shape is Shape.RESPONSES:
        return b"event: error\ndata: %b\n\n" % _responses_event(refusal, sequence_number)
    return b"data: %b\n\n" % _openai(refusal)


def not_found_page() -> Answer:
    """Any path that no route has, /v1 included (recordings `catalog/unknown-path`, `catalog/unknown-v1`)."""
    return Answer(404, ((b"Content-Type", b"text/plain"),), b"404 page not found")


def bad_request_page() -> Answer:
    """A path that is none: Go's server answers before any route does (net/http/server.go, conn.serve)."""
    headers = ((b"Content-Type", b"text/plain; charset=utf-8"), (b"Connection", b"close"))
    return Answer(400, headers, b"400 Bad Request")


def method_not_allowed(allow: str) -> Answer:
    """`allow` is the list of methods that the path has (recording `catalog/wrong-method`)."""
    headers = ((b"Allow", allow.encode("ascii")), (b"Content-Type", b"text/plain"))
    return Answer(405, headers, b"405 method not allowed")


def _native(refusal: Refusal) -> bytes:
    return b'{"error":%b}' % go_string(refusal.text)


def _openai(refusal: Refusal) -> bytes:
    return b'{"error":%b}' % _openai_error(refusal)


def _openai_error(refusal: Refusal) -> bytes:
    kind = refusal.kind or _OPENAI_TYPES.get(refusal.status, "api_error")
    return b'{"message":%b,"type":%b,"param":null,"code":%b}' % (
        go_string(refusal.text),
        go_string(kind),
        _openai_code(refusal),
    )


def _openai_code(refusal: Refusal) -> bytes:
    code = refusal.code or _OPENAI_CODES.get(refusal.status)
    return b"null" if code is None else go_string(code)


def _responses_event(refusal: Refusal, sequence_number: int) -> bytes:
    """Keys stand in the order of Go's maps, as in all events of the route. openai 3.x raises only on an `error` member;

    the others are what the API's own error event has.
    """
    return b'{"code":%b,"error":%b,"message":%b,"param":null,"sequence_number":%d,"type":"error"}' % (
        _openai_code(refusal),
        _openai_error(refusal),
        go_string(refusal.text),
        sequence_number,
    )


def _anthropic(refusal: Refusal, request_id: str) -> bytes:
    kind = refusal.kind or _ANTHROPIC_TYPES.get(refusal.status, "api_error")
    # The shape is fixed at 24 hex digits; a hash of our own id lets support find the call from what the client shows.
    digest = blake2b(request_id.encode("utf-8", "replace"), digest_size=12).hexdigest()
    return b'{"type":"error","error":{"type":%b,"message":%b},"request_id":"req_%b"}' % (
        go_string(kind),
        go_string(refusal.text),
        digest.encode(),
    )


def _advice(refusal: Refusal) -> list[Pair]:
    """What the official SDKs read before they repeat a call (both spellings: retry-after-ms wins in them)."""
    advice: list[Pair] = []
    if refusal.retry_after_s is not None:
        # Never zero, which the SDKs read as "no advice" and answer with half a second of their own.
        seconds = max(1, math.ceil(refusal.retry_after_s))
        milliseconds = max(1, math.ceil(refusal.retry_after_s * 1000))
        advice += [(b"Retry-After", b"%d" % seconds), (b"retry-after-ms", b"%d" % milliseconds)]
    if not refusal.may_retry:
        advice.append((b"x-should-retry", b"false"))
    if refusal.status == 401:
        advice.append((b"WWW-Authenticate", b"Bearer"))
    return advice
