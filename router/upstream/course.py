"""How a call goes on after a failed attempt: facts gathered for `policy.retry`, and its verdict carried out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from router.errors import NoNode, Outcome, QueueFull, Refusal, UpstreamFailed, UpstreamTimeout
from router.fleet.snapshot import Snapshot
from router.policy.alias import RoutePlan
from router.policy.retry import Budget, Failure, NextTarget, Retry, Tries, verdict
from router.policy.route import NO_NODE_RETRY_S, Ahead, Passed, Reach, ahead
from router.upstream.attempt import Attempt

# Of a 500 for what the client sent (recordings refused/option-type, v0.24/v1-transcriptions-bad).
CLIENTS_TEXT = re.compile(r'option \\?"[^"]*" must be of type|failed to process inputs')


@dataclass(frozen=True, slots=True)
class RetryLimits:
    attempts: int
    budget: float  # share of running calls that may be retries


@dataclass(frozen=True, slots=True)
class Course:
    """What a call has before it and behind it."""

    plan: RoutePlan  # what is left of it: the target in hand, then those to be tried instead
    made: int = 0
    excluded: frozenset[str] = frozenset()  # nodes that it must not go to again for this target
    has_met_dead_runner: bool = False
    is_counted: bool = False  # the attempt at hand is a retry that counts against the budget
    is_overflow: bool = False  # the target in hand had a slot before the one in whose line the call stood first
    lines_refused: int = 0  # their tickets have left for good; otherwise a call has one, whatever its target

    def turned_to(self, plan: RoutePlan) -> Course:
        """Another target: what a node made of the last one says nothing about this one."""
        return replace(self, plan=plan, excluded=frozenset(), is_overflow=False)

    def granted(self, model: str) -> Course:
        """With the target in hand that the slot is for. An overflow passes nobody over: the others may be tried yet."""
        if model == self.plan.first.model:
            return self
        return replace(self.turned_to(self.plan.led_by(model)), is_overflow=True)

    def ticket_id(self, call_id: str) -> str:
        return f"{call_id}~{self.lines_refused}" if self.lines_refused else call_id


@dataclass(frozen=True, slots=True)
class Sequel:
    """The next try. `passed` says of each target that it leaves behind why; empty for the same target again."""

    course: Course
    passed: tuple[Passed, ...] = ()


def may_turn(course: Course, snapshot: Snapshot, reach: Reach, *, attempts: int) -> bool:
    """Whether another target would be tried if the one in hand turned out to be incapable."""
    return course.made + 1 < attempts and _other(course, snapshot, reach) is not None


def follow(
    course: Course, attempt: Attempt, *, snapshot: Snapshot, reach: Reach, budget: Budget, attempts: int
) -> Sequel:
    """What comes after a failed attempt; raises the refusal that ends the call."""
    failure = attempt.failure
    assert failure is not None, "only a failed attempt has a sequel"
    excluded = course.excluded | {attempt.node}
    rows = snapshot.holding(course.plan.first.model).by_node.values()
    other = _other(course, snapshot, reach)
    tries = Tries(
        made=course.made + 1,
        has_met_dead_runner=course.has_met_dead_runner,
        has_other_node=any(row.takes_calls and row.node not in excluded for row in rows),
        has_other_target=other is not None,
        attempts=attempts,
    )
    judged = verdict(failure, tries, budget)
    if not isinstance(judged, Retry | NextTarget):
        raise _final(failure, attempt)
    following = replace(
        course,
        made=course.made + 1,
        has_met_dead_runner=course.has_met_dead_runner or failure is Failure.RUNNER_DIED,
        is_counted=judged.is_counted,
    )
    if isinstance(judged, Retry):
        return Sequel(replace(following, excluded=excluded) if judged.excludes_node else following)
    assert other is not None
    why = Passed.INCAPABLE if failure is Failure.INCAPABLE else Passed.FAILED
    return Sequel(following.turned_to(other.plan), (why, *other.passed))


def turn(course: Course, why: Passed, *, snapshot: Snapshot, reach: Reach) -> Sequel | None:
    """Another target after a line that was refused; None when there is none."""
    other = _other(course, snapshot, reach)
    if other is None:
        return None
    turned = replace(course.turned_to(other.plan), lines_refused=course.lines_refused + 1)
    return Sequel(turned, (why, *other.passed))


def _other(course: Course, snapshot: Snapshot, reach: Reach) -> Ahead | None:
    if len(course.plan.targets) == 1:
        return None
    found = ahead(course.plan.without(1), snapshot, reach)
    return found if isinstance(found, Ahead) else None


def _final(failure: Failure, attempt: Attempt) -> Refusal:
    """What the client is told when nobody is left to ask."""
    if failure is Failure.FIRST_BYTE_TIMEOUT:
        return UpstreamTimeout(attempt.text)
    if failure is Failure.BUSY:
        return QueueFull(retry_after_s=NO_NODE_RETRY_S)
    if failure is Failure.LOCAL:
        # No node said anything: the same call may well be served in a moment.
        return NoNode(f"the router cannot connect to a node now: {attempt.text}", retry_after_s=NO_NODE_RETRY_S)
    if failure is Failure.INCAPABLE:  # the model that could have done it went away while this one was asked
        return NoNode("no node with a model that can do this is up", retry_after_s=NO_NODE_RETRY_S)
    return UpstreamFailed(f"no node could answer ({failure}): {attempt.text}")


def shown(attempt: Attempt) -> Outcome:
    """What the attempt says about the copy: a passed 5xx may be the client's doing, or what the model cannot."""
    is_clients = attempt.status == 501 or (attempt.status == 500 and CLIENTS_TEXT.search(attempt.text) is not None)
    if attempt.outcome is Outcome.UPSTREAM_ERROR and is_clients:
        return Outcome.CLIENT_ERROR
    return attempt.outcome
