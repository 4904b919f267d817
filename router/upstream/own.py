"""What the router answers itself, whole at once: refusals, and what needs no node."""

from __future__ import annotations

from collections.abc import Sequence

from router.errors import Allowances, RateLimited, Refusal, RouterBroken
from router.policy.guard import guarded_of
from router.seams import Call, Record, Reply
from router.upstream.attempt import TEXT_BYTES_MAX
from router.upstream.notes import decision_headers, note_guarded
from router.upstream.waiting import WaitingStream
from router.wire import comments, dialects
from router.wire.intent import Intent
from router.wire.unload import CONTENT_TYPE, unloaded


def refuse(  # noqa: PLR0917 - all that a call has
    call: Call, reply: Reply, waiting: WaitingStream, record: Record, refusal: Refusal, wall_s: float
) -> None:
    """As an answer, or as the last event of a stream that was opened early.

    Where a node's answer had begun, whoever passed it on has told it there.
    """
    record.outcome = refusal.outcome
    record.rejection = refusal.rejection
    record.error = refusal.text[:TEXT_BYTES_MAX]
    note_guarded(record, guarded_of(refusal))
    if isinstance(refusal, RateLimited):
        record.left = Allowances(refusal.requests, refusal.tokens)
    pairs = decision_headers(call, record, wall_s)
    if waiting.is_open:
        event = dialects.error_event(call.endpoint, refusal, sequence_number=0, request_id=call.request_id)
        waiting.end(comments.decision(pairs) + event)
    elif not reply.has_started:
        answer = dialects.error_answer(call.endpoint.dialect, refusal, call.request_id)
        _send(reply, answer.status, [*answer.headers, *pairs], answer.body)


def break_off(call: Call, reply: Reply, waiting: WaitingStream, record: Record, wall_s: float) -> None:
    """A defect of ours: the client is told, or cut off: half an answer must not end like a whole one."""
    if reply.has_started and not waiting.is_open:
        reply.cut()
    refusal = RouterBroken("the router failed to serve this call: its log says why")
    refuse(call, reply, waiting, record, refusal, wall_s)


def answer_unload(call: Call, reply: Reply, record: Record, intent: Intent, wall_s: float) -> None:
    """At once, as Ollama does, which unloads behind its answer."""
    pairs = [(b"Content-Type", CONTENT_TYPE), *decision_headers(call, record, wall_s)]
    _send(reply, 200, pairs, unloaded(call.endpoint, intent, wall_s))


def _send(reply: Reply, status: int, pairs: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
    reply.start(status, pairs, len(body))
    reply.write(body)
    reply.end()
