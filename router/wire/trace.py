"""A call's place in a distributed trace (W3C Trace Context), and what the trace is to tell of it. Ids are hex."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from router.wire.headers import Pair

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
# Version 00, and later ones, which may go on after a dash; ff is forbidden (W3C Trace Context, 3.2.2).
_PARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
_NO_TRACE, _NO_SPAN = b"0" * 32, b"0" * 16
_SAMPLED = 0x01
_RATIO_BITS = 64  # the low ones, as OpenTelemetry's TraceIdRatioBased compares them: all draw alike


@dataclass(slots=True)
class Hop:
    """One attempt. Times are monotonic; None while it has not come so far. `error` is empty where all went well."""

    span_id: str
    node: str
    host: str
    port: int
    model: str
    started_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    status: int = 0
    error: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(slots=True)
class Trace:
    """Made only where tracing is on. `parent_id` is the caller's span, empty at a root."""

    trace_id: str
    span_id: str
    parent_id: str = ""
    is_sampled: bool = False
    state: bytes = b""
    fresh_id: Callable[[], str] = lambda: "0" * 15 + "1"
    path: str = ""  # of the route
    waits: list[tuple[float, float]] = field(default_factory=list)  # in line: from and until, monotonic
    hops: list[Hop] = field(default_factory=list)

    def next_hop(self, node: str, host: str, port: int, model: str) -> list[Pair]:
        """Begins an attempt; the headers by which the node knows whose child it is."""
        # What is not sampled has no span of the attempt's own to hang on.
        span_id = self.fresh_id() if self.is_sampled else self.span_id
        if self.is_sampled:
            self.hops.append(Hop(span_id, node, host, port, model))
        pairs = [(TRACEPARENT, f"00-{self.trace_id}-{span_id}-{self.is_sampled:02x}".encode())]
        return [*pairs, (TRACESTATE, self.state)] if self.state else pairs


@dataclass(frozen=True, slots=True)
class Parent:
    trace_id: str
    span_id: str
    is_sampled: bool
    state: bytes


def parent_of(headers: Iterable[Pair]) -> Parent | None:
    """The caller's span; None where there is none, or nonsense, or several: then a trace begins here."""
    parents, states = [], []
    for name, value in headers:
        low = name.lower()
        if low == TRACEPARENT:
            parents.append(value.strip())
        elif low == TRACESTATE:
            states.append(value.strip())
    match = _PARENT.fullmatch(parents[0]) if len(parents) == 1 else None
    if match is None or match[2] == _NO_TRACE or match[3] == _NO_SPAN:
        return None
    if match[1] == b"00" and match.end(4) != match.end():
        return None
    return Parent(match[2].decode(), match[3].decode(), bool(int(match[4], 16) & _SAMPLED), b",".join(states))


def is_drawn(trace_id: str, ratio: float) -> bool:
    """Whether a root with this id is among the sampled ones."""
    return int(trace_id[16:], 16) < ratio * (1 << _RATIO_BITS)
