"""What goes to a node: the client's bytes but for the declared splices, under a head of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.fleet.node import NodeSpec
from router.fleet.tickets import Lease
from router.policy.deadlines import Due
from router.policy.guard import Guarded
from router.policy.splices import Changes
from router.seams import Call
from router.wire import framing, headers
from router.wire.endpoints import Endpoint
from router.wire.gojson import go_string
from router.wire.intent import Intent
from router.wire.splice import apply, length


@dataclass(frozen=True, slots=True)
class Errand:
    """What one attempt carries: who is asked, with which bytes, and how the answer is to be read."""

    endpoint: Endpoint
    node: NodeSpec
    parts: Sequence[bytes | memoryview]  # head and body as they go out
    request_id: str
    decision: Sequence[tuple[bytes, bytes]]  # headers for the client
    sent_literal: bytes  # the model name that the node was asked for, as a JSON literal
    echo: bytes | None  # the name the client sent, where an alias was used
    hides_usage: bool
    has_other_target: bool  # another model is asked if this one cannot do it: then no such answer passes
    guarded: tuple[Guarded, ...]
    first_byte: Due
    idle_s: float
    beside: int = 1  # leases on the copy, its own included


@dataclass(frozen=True, slots=True)
class Reading:
    """A call's body as it came, and what was read from it."""

    intent: Intent
    raw: bytes


@dataclass(frozen=True, slots=True)
class Terms:
    """How long an attempt may take: until its first byte, and silent within a stream."""

    first_byte: Due
    idle_s: float


def errand_for(
    call: Call,
    reading: Reading,
    lease: Lease,
    spec: NodeSpec,
    changes: Changes,
    *,
    is_alias: bool,
    has_other_target: bool,
    via: bytes,
    decision: Sequence[tuple[bytes, bytes]],
    terms: Terms,
    beside: int = 1,
    credentials: Sequence[headers.Pair] = (),
) -> Errand:
    """A body without splices goes as it came, zstd included; a spliced one goes decoded."""
    intent, endpoint, splices = reading.intent, call.endpoint, changes.splices
    pairs = headers.for_node(
        call.headers,
        host=spec.authority.encode(),
        via=via,
        content_length=length(intent.body, splices) if splices else len(reading.raw),
        drop_encoding=intent.was_encoded and bool(splices),
        extra=(*credentials, (b"x-request-id", call.request_id.encode())),
    )
    body = apply(intent.body, splices) if splices else (reading.raw,)
    asked = go_string(intent.model)
    return Errand(
        endpoint=endpoint,
        node=spec,
        parts=(framing.request_head("POST", endpoint.path, pairs), *body),
        request_id=call.request_id,
        decision=decision,
        sent_literal=go_string(lease.model) if is_alias else asked,
        echo=asked if is_alias else None,
        hides_usage=intent.usage_splice is not None,
        has_other_target=has_other_target,
        guarded=changes.guarded,
        first_byte=terms.first_byte,
        idle_s=terms.idle_s,
        beside=beside,
    )
