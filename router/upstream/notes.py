"""What an attempt told, written into the call's record."""

from __future__ import annotations

from collections.abc import Sequence

from router.errors import Allowances, Outcome
from router.fleet.tickets import Lease
from router.policy.guard import Guarded
from router.policy.route import Passed
from router.policy.schedule import Decision, Reason
from router.seams import Call, Record
from router.upstream.attempt import Attempt
from router.wire import headers
from router.wire.allowances import rate_limits


def note_lease(
    record: Record,
    lease: Lease,
    decision: Decision,
    waited_s: float | None,
    left: Allowances | None,
    *,
    is_overflow: bool,
) -> None:
    """`decision` was made for the target whose line it stood in first; `left` is None for a further attempt."""
    record.attempts += 1
    record.node = lease.node
    record.model = lease.model
    record.queued_s += waited_s or 0.0
    record.is_overflow = is_overflow
    if is_overflow:
        record.reason = Reason.OVERFLOW
    else:
        record.reason = decision.reason_of(lease.node)
        record.is_cold = record.is_cold or not decision.preferred
    if left is not None:
        record.left = left


def note_wait(record: Record, waited_s: float | None, result: str) -> None:
    """A wait that brought no slot; `result` is a label of `queue_wait_seconds`."""
    if waited_s is not None:
        record.queued_s += waited_s
        record.queue_result = result


def note_attempt(record: Record, attempt: Attempt) -> None:
    record.outcome = attempt.outcome
    record.error = attempt.text
    if record.attempts == 1:
        # Later attempts begin after what the first one cost at its node.
        record.overhead_s = max(0.0, attempt.started_s - record.arrived_s - record.read_s - record.queued_s)
    if attempt.first_byte_s is not None:
        record.first_byte_s = attempt.first_byte_s - record.arrived_s
    if attempt.first_token_s is not None:
        record.first_token_s = attempt.first_token_s - record.arrived_s
    meter = attempt.meter
    if meter is not None:
        record.input_tokens = meter.input_tokens
        record.output_tokens = meter.output_tokens
        record.content_events = meter.content_events
        record.load_s = meter.load_s


def spent(estimate_tokens: int, attempt: Attempt | None) -> int:
    """By a call that was left before its counts came: else whoever leaves early would pay for nothing."""
    meter = attempt.meter if attempt is not None else None
    if meter is None:
        return estimate_tokens
    prompt = estimate_tokens if meter.input_tokens is None else meter.input_tokens
    return prompt + (meter.content_events if meter.output_tokens is None else meter.output_tokens)


def note_leaving(record: Record, attempt: Attempt | None) -> None:
    """The client has gone: where it left, and whether it had all it came for (SDKs close after `[DONE]`)."""
    if attempt is None:
        record.outcome, record.phase_left = Outcome.CANCELLED, "waiting"
        return
    note_attempt(record, attempt)
    if attempt.outcome is Outcome.STALLED:
        record.phase_left = "stalled"
        return
    if attempt.meter is not None and attempt.meter.is_complete:
        return
    record.outcome = Outcome.CANCELLED
    record.phase_left = "streaming" if attempt.meter is not None else "prefill"


def note_passed(record: Record, passed: Sequence[Passed]) -> None:
    """Targets of its alias that the call went on from."""
    if passed:
        record.passed += tuple(passed)


def note_guarded(record: Record, guarded: Sequence[Guarded]) -> None:
    """Once a call, however many attempts it takes."""
    for each in guarded:
        if each not in record.guarded:
            record.guarded += (each,)


def decision_headers(call: Call, record: Record, wall_s: float) -> list[tuple[bytes, bytes]]:
    """Of the answer at hand, or of the refusal that the record tells; `wall_s` is now."""
    known = headers.decision(
        node=record.node or None,
        model=record.model or None,
        attempts=record.attempts or None,
        queue_ms=round(record.queued_s * 1000),
        reason=record.reason or None,
        refused=record.rejection,
    )
    limits = rate_limits(call.endpoint.dialect, record.left, wall_s) if record.left is not None else []
    return [(b"x-request-id", call.request_id.encode()), *known, *limits]
