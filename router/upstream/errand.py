"""What goes to a node: the client's bytes but for the declared splices, under a head of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from router.fleet.node import NodeSpec
from router.fleet.tickets import Lease
from router.policy.deadlines import Due
from router.policy.guard import Cut, guard_num_ctx
from router.seams import Call
from router.wire import framing, headers
from router.wire.endpoints import Endpoint
from router.wire.gojson import go_string
from router.wire.intent import Intent
from router.wire.splice import Splice, apply, length

# Ollama applies a call's keep_alive to the copy that all share. Below a minute the copy would be gone before its users
# ask again, and count as expiring (a few probe intervals) for most of its life: the placer would load it over and over.
KEEP_ALIVE_MIN_S = 60.0


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
    first_byte: Due
    idle_s: float


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


@dataclass(frozen=True, slots=True)
class Guards:
    """What of a client's options may reach a node. `keeps_context` leaves num_ctx to the node's own judgement.

    `loaded_ctx` is the context that we loaded this copy with, 0 where we named none.
    """

    keeps_context: bool
    keep_alive_max_s: float
    loaded_ctx: int = 0


def errand_for(
    call: Call,
    reading: Reading,
    lease: Lease,
    spec: NodeSpec,
    *,
    is_alias: bool,
    guards: Guards,
    via: bytes,
    decision: Sequence[tuple[bytes, bytes]],
    terms: Terms,
) -> Errand:
    """A body without splices goes as it came, zstd included; a spliced one goes decoded."""
    intent, endpoint = reading.intent, call.endpoint
    splices = splices_of(endpoint, intent, lease, guards, is_alias=is_alias)
    pairs = headers.for_node(
        call.headers,
        host=spec.authority.encode(),
        via=via,
        content_length=length(intent.body, splices) if splices else len(reading.raw),
        drop_encoding=intent.was_encoded and bool(splices),
        extra=((b"x-request-id", call.request_id.encode()),),
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
        first_byte=terms.first_byte,
        idle_s=terms.idle_s,
    )


def splices_of(endpoint: Endpoint, intent: Intent, lease: Lease, guards: Guards, *, is_alias: bool) -> list[Splice]:
    """Sorted: the target's name for an alias, the question for usage, and options that would reload or unload."""
    splices = [intent.usage_splice] if intent.usage_splice is not None else []
    if is_alias:
        # A form carries the name bare, JSON as a literal.
        name = lease.model.encode() if endpoint.is_multipart else go_string(lease.model)
        splices += [Splice(span.start, span.end, name) for span in intent.model_spans]
    if endpoint.takes_options:
        if not guards.keeps_context:
            splices += _context_splices(intent, lease, guards.loaded_ctx)
        splices += _keep_alive_splices(intent, guards.keep_alive_max_s)
    return sorted(splices, key=lambda splice: splice.start)


def _context_splices(intent: Intent, lease: Lease, loaded_ctx: int) -> list[Splice]:
    """So that the copy is not reloaded (server/sched.go, needsReload).

    A copy with its default context takes every call that names none. One that we loaded with a context of its own
    reloads for a call that names another or none: there the call is given the loaded one, in a last `options` member,
    which Go merges into those before it.
    """
    if loaded_ctx:
        if intent.num_ctx == loaded_ctx or not intent.members_end:
            return []
        return [Splice(intent.members_end, intent.members_end, b',"options":{"num_ctx":%d}' % loaded_ctx)]
    if isinstance(guard_num_ctx(intent.num_ctx, lease.num_ctx, context_max=0), Cut):
        return [Splice(span.start, span.end, b"") for span in intent.num_ctx_spans]
    return []


def _keep_alive_splices(intent: Intent, max_s: float) -> list[Splice]:
    if intent.keep_alive_s is None:
        return []
    if intent.keep_alive_s < min(KEEP_ALIVE_MIN_S, max_s):
        # Obeyed, it would unload the copy under everybody, and the next call would load it again.
        return [Splice(span.start, span.end, b"") for span in intent.keep_alive_spans]
    if intent.keep_alive_s > max_s:
        return [Splice(span.start, span.end, b"%d" % max(1, max_s)) for span in intent.keep_alive_values]
    return []
