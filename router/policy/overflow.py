"""Overflow: in which further lines of its plan a call stands that waits too long in the line of its target.

It takes what is there and harms nobody for it: it goes only where a copy can serve it as it is, or, when its own target
is loaded and busy, to a model on disk. What is loaded for those who overflow says `policy.placement`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from router.errors import Refusal
from router.fleet.snapshot import Row, Rows, Snapshot
from router.fleet.tickets import Ticket
from router.policy.alias import RoutePlan, Target
from router.policy.filters import usable
from router.policy.guard import Guards
from router.policy.route import Reach, passed_over
from router.policy.schedule import Decision, Reason
from router.policy.ticket import check_context, context_of
from router.wire.endpoints import Endpoint
from router.wire.intent import Intent

# After this a call looks again for lines that were full, and for models that could not be had.
AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Overflow:
    """Of one ticket. `since_s`: since when it waits for a slot, lines before this one included; loop time."""

    plan: RoutePlan
    ticket: Ticket
    endpoint: Endpoint
    intent: Intent
    guards: Guards
    reach: Reach
    since_s: float

    @property
    def due_s(self) -> float:
        """Of the first look; infinite for those who stay in one line."""
        after_s = self.plan.first.overflow_after_s
        return math.inf if after_s is None else self.since_s + after_s


class Widening(NamedTuple):
    """The lines to stand in by now, beside the first, and when to look again."""

    models: tuple[str, ...]
    again_s: float


def widening(overflow: Overflow, now_s: float, snapshot: Snapshot, *, is_held: bool) -> Widening:
    """One line more each time that the last one's patience is over; what cannot serve the call is passed over.

    `is_held`: as many calls of its team run as may. Another line would not help it.
    """
    models: list[str] = []
    due_s = overflow.due_s
    for target in overflow.plan.targets[1:]:
        if now_s < due_s:
            break
        if not is_held and _may_serve(target, overflow, snapshot):
            models.append(target.model)
            due_s = math.inf if target.overflow_after_s is None else due_s + target.overflow_after_s
    return Widening(tuple(models), due_s if now_s < due_s < now_s + AGAIN_S else now_s + AGAIN_S)


def _may_serve(target: Target, overflow: Overflow, snapshot: Snapshot) -> bool:
    ticket, rows = overflow.ticket, snapshot.holding(target.model)
    if passed_over(target.model, snapshot, overflow.reach) is not None:
        return False
    if context_of(target, overflow.endpoint, overflow.intent, snapshot, overflow.guards) != ticket.num_ctx:
        return False  # in all its lines a ticket asks for the same
    ready = _ready(rows)
    if not ready:
        takes_load = any(row.takes_calls and row.node not in ticket.excluded for row in rows.by_node.values())
        return takes_load and bool(_ready(snapshot.holding(overflow.plan.first.model)))
    fitting = usable(ready, ticket.excluded, ticket.num_ctx, names_no_ctx=ticket.names_no_ctx)
    return bool(fitting) and _is_permitted(target, Decision((fitting[0].node,), Reason.OVERFLOW), overflow, snapshot)


def _is_permitted(target: Target, decision: Decision, overflow: Overflow, snapshot: Snapshot) -> bool:
    """By the guards, as if it had come for this model."""
    try:
        check_context(
            overflow.ticket,
            overflow.intent,
            RoutePlan((target,)),
            decision,
            snapshot=snapshot,
            guards=overflow.guards,
            reach=overflow.reach,
        )
    except Refusal:
        return False
    return True


def _ready(rows: Rows) -> tuple[Row, ...]:
    return rows.ready.rows + rows.last_resort.rows
