"""How a call goes on after a failed attempt: facts gathered for `policy.retry`, and its verdict carried out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from router.errors import QueueFull, Refusal, UpstreamFailed, UpstreamTimeout
from router.fleet.snapshot import Snapshot
from router.fleet.tickets import Ticket
from router.policy.retry import Budget, Failure, Retry, Tries, verdict
from router.upstream.attempt import Attempt

NO_NODE_RETRY_S = 5.0  # two probes and a little: a node that comes back is seen by then


@dataclass(frozen=True, slots=True)
class RetryLimits:
    attempts: int
    budget: float  # share of running calls that may be retries


@dataclass(frozen=True, slots=True)
class Course:
    """What a call has behind it."""

    made: int = 0
    has_met_dead_runner: bool = False
    is_counted: bool = False  # the attempt at hand is a retry that counts against the budget


def follow(
    course: Course, ticket: Ticket, attempt: Attempt, *, snapshot: Snapshot, budget: Budget, attempts: int
) -> tuple[Course, Ticket]:
    """The next try and the ticket for it; raises the refusal that ends the call."""
    failure = attempt.failure
    assert failure is not None, "only a failed attempt has a sequel"
    excluded = ticket.excluded | {attempt.node}
    rows = (row for key in ticket.targets for row in snapshot.holding(key).by_node.values())
    tries = Tries(
        made=course.made + 1,
        has_met_dead_runner=course.has_met_dead_runner,
        has_other_node=any(row.is_up and row.node not in excluded for row in rows),
        attempts=attempts,
    )
    judged = verdict(failure, tries, budget)
    if not isinstance(judged, Retry):
        raise _final(failure, attempt)
    following = Course(
        made=course.made + 1,
        has_met_dead_runner=course.has_met_dead_runner or failure is Failure.RUNNER_DIED,
        is_counted=judged.is_counted,
    )
    return following, replace(ticket, excluded=excluded) if judged.excludes_node else ticket


def _final(failure: Failure, attempt: Attempt) -> Refusal:
    """What the client is told when nobody is left to ask."""
    if failure is Failure.FIRST_BYTE_TIMEOUT:
        return UpstreamTimeout(attempt.text)
    if failure is Failure.BUSY:
        return QueueFull(retry_after_s=NO_NODE_RETRY_S)
    return UpstreamFailed(f"no node could answer ({failure}): {attempt.text}")
