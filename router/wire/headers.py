"""Which headers go to the node and which to the client, as pairs of bytes in their order and spelling.

Framing headers are always written fresh; no value is interpreted further than routing needs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

Pair = tuple[bytes, bytes]

# RFC 9110 7.6.1, and Proxy-Connection, which old clients send although it never was a standard.
HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)

# What a node has no use for: keys and cookies are the pool's, Origin would be checked against the node's own list, and
# answers are never compressed, so Accept-Encoding could only do harm on a node behind another proxy.
_NOT_FOR_NODE = HOP_BY_HOP | frozenset(
    (
        b"host",
        b"content-length",
        b"expect",
        b"cookie",
        b"origin",
        b"referer",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"accept-encoding",
    )
)
DECISION_PREFIX = b"x-ollama-router-"
REFUSED = b"x-ollama-router-refused"

# Of every stream. nginx, and what is built on it, collects an answer unless it says so (ngx_http_proxy_module,
# proxy_buffering); caches between must not keep one, and Ollama says so on some of its routes only.
UNBUFFERED, UNCACHED = (b"X-Accel-Buffering", b"no"), (b"Cache-Control", b"no-cache")
_PREFIXES_NOT_FOR_NODE = (b"proxy-", DECISION_PREFIX)

# A node is never told the Origin, so what a proxy before it says about origins is not about this client.
_NOT_FOR_CLIENT = HOP_BY_HOP | {b"content-length"}
_PREFIX_NOT_FOR_CLIENT = b"access-control-"

# 128: an id is written to every log line and header of its call; UUIDs take 36, trace ids 32, cloud proxies up to 100.
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/=+-]{1,128}")

# One header line is for people; a text that is longer belongs in the log.
PRINTABLE_CACHED = 4096  # nodes, models, reasons and small numbers repeat from call to call
DECISION_BYTES_MAX = 512

_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]")

# Seconds as people and SDKs write them; what is longer than a day (or, from an SDK, an exponent) limits nothing.
_SECONDS = re.compile(r"[0-9]{1,5}(?:\.[0-9]{1,9})?")
CLIENT_TIMEOUT_S_MAX = 86_400.0
TIMEOUTS_CACHED = 256  # SDKs send their defaults


def via_value(pool: str) -> bytes:
    return b"1.1 " + _received_by(pool)


def for_node(
    raw_headers: Sequence[Pair],
    *,
    host: bytes,
    via: bytes,
    content_length: int,
    drop_encoding: bool,
    extra: Sequence[Pair] = (),
) -> list[Pair]:
    """`drop_encoding`: the body goes on decompressed. `extra`: a node's own credentials, which replace the client's."""
    also = _named_by_connection(raw_headers)
    also.update([name.lower() for name, _ in extra])
    if drop_encoding:
        also.add(b"content-encoding")
    kept = [
        pair
        for pair in raw_headers
        if (low := pair[0].lower()) not in _NOT_FOR_NODE
        and low not in also
        and not low.startswith(_PREFIXES_NOT_FOR_NODE)
    ]
    return [(b"Host", host), *kept, *extra, (b"Via", via), (b"Content-Length", b"%d" % content_length)]


def for_client(raw_headers: Sequence[Pair], extra: Sequence[Pair]) -> list[Pair]:
    """The node's headers less its framing; `extra` replaces namesakes, as a node may itself be a router."""
    also = _named_by_connection(raw_headers)
    also.update([name.lower() for name, _ in extra])
    kept = [
        pair
        for pair in raw_headers
        if (low := pair[0].lower()) not in _NOT_FOR_CLIENT
        and low not in also
        and not low.startswith(_PREFIX_NOT_FOR_CLIENT)
    ]
    return [*kept, *extra]


def of_stream(raw_headers: Sequence[Pair] = ()) -> list[Pair]:
    """What asks proxies to pass a stream on at once, beside these headers of its node."""
    is_told = any(name.lower() == b"cache-control" for name, _ in raw_headers)
    return [UNBUFFERED] if is_told else [UNBUFFERED, UNCACHED]


def passed_pool(raw_headers: Iterable[Pair], pool: str) -> bool:
    """Whether the call already went through a router of this pool: a node's URL leads back to one."""
    ours = _received_by(pool)
    for name, value in raw_headers:
        if name.lower() != b"via":
            continue
        for member in _without_comments(value).split(b","):
            if ours in member.split()[1:2]:
                return True
    return False


def request_id(raw: str | None, fresh: Callable[[], str]) -> str:
    """The client's own id where it is harmless in logs and headers, else a fresh one."""
    if raw is not None and _REQUEST_ID.fullmatch(raw):
        return raw
    return fresh()


@lru_cache(maxsize=TIMEOUTS_CACHED)
def client_timeout_s(*values: str) -> float | None:
    """The shortest time that any of these header values gives us; what is no sane number of seconds is ignored."""
    seconds = [float(value) for value in values if _SECONDS.fullmatch(value)]
    return min((value for value in seconds if 0 < value <= CLIENT_TIMEOUT_S_MAX), default=None)


def decision(
    *,
    node: str | None = None,
    model: str | None = None,
    attempts: int | None = None,
    queue_ms: int | None = None,
    reason: str | None = None,
    refused: str | None = None,
) -> list[Pair]:
    """Why this call was answered from where it was; what is not known is left out."""
    values: tuple[tuple[bytes, str | int | None], ...] = (
        (b"x-ollama-router-node", node),
        (b"x-ollama-router-model", model),
        (b"x-ollama-router-attempts", attempts),
        (b"x-ollama-router-queue-ms", queue_ms),
        (b"x-ollama-router-reason", reason),
        (REFUSED, refused),
    )
    return [(name, _printable(str(value))) for name, value in values if value is not None]


def _received_by(pool: str) -> bytes:
    return b"ollama-router/" + pool.encode()


def _named_by_connection(raw_headers: Iterable[Pair]) -> set[bytes]:
    """Lower-case names that the sender declared to be meant for its neighbour only (RFC 9110 7.6.1)."""
    named: set[bytes] = set()
    for name, value in raw_headers:
        if name.lower() == b"connection":
            named.update(option.strip().lower() for option in value.split(b","))
    return named


def _without_comments(value: bytes) -> bytes:
    """A Via field value less its comments, which nest and may quote their brackets (RFC 9110 5.6.5)."""
    if b"(" not in value:
        return value
    kept = bytearray()
    depth = 0
    escaped = False
    for byte in value:
        if escaped:
            escaped = False
        elif depth and byte == 0x5C:
            escaped = True
        elif byte == 0x28:
            depth += 1
        elif depth and byte == 0x29:
            depth -= 1
        elif not depth:
            kept.append(byte)
    return bytes(kept)


@lru_cache(maxsize=PRINTABLE_CACHED)
def _printable(text: str) -> bytes:
    return _NOT_PRINTABLE.sub("?", text)[:DECISION_BYTES_MAX].encode("ascii")
