"""Whether what waits is worth a load: its wait against what the load takes, and what goes for it."""

from __future__ import annotations

from collections.abc import Sequence

from router.fleet.node import Node
from router.fleet.snapshot import Row
from router.fleet.tickets import LineView
from router.policy.room import Cost, Pool, cost_of

SECOND_AFTER_S = 2.0  # a line that is younger, or its copies, may be a burst that is served in a moment
BUSY = 0.7  # of its slots in use: below it a model has enough of them, and a line is a burst
SWAPS = 2.0  # a further copy in the place of one that is used must pay for its own load and for the way back
TURN = 1.0  # slot-seconds that a line waits for each that its load costs others: about half of the time is serving
BACKLOGGED = 3.0  # so many for those whom others wait for: what is short goes into serving, three quarters of its time
PATIENCE_S = 150.0  # half of the default `line.max_wait_s`: then TURN again, or a lone call would wait in vain


def outlasts_a_load(line: LineView, serving: Sequence[Row], pool: Pool, coming: Sequence[Row]) -> bool:
    """Whether those in line would wait longer for the copies that serve them, and for those that are coming, than
    another one takes to load, and not only now. Copies that have just come show first what they make of the line."""
    load_s = pool.load_s(serving[0].weights, pool.resident_bytes(serving[0]))
    served_s = min(pool.ready_for_s(row.copy) for row in serving)
    is_busy = pool.experience.utilization_of(serving[0].weights) >= BUSY
    is_line = is_busy and min(served_s, line.oldest_wait_s) >= SECOND_AFTER_S
    now, later = _strength(serving, pool), _strength(coming, pool)
    return is_line and _estimate_s(line) * now / (now + later) > load_s


def has_short_lines(serving: Sequence[Row], pool: Pool) -> bool:
    """Whether calls have waited for the copies that serve, and memory is free for one more: not while something else
    that was asked for of late is in none."""
    has_waited = pool.experience.waited_s.get(serving[0].weights, 0.0) > 0.0
    served_s = min(pool.ready_for_s(row.copy) for row in serving)
    return has_waited and not pool.experience.is_short and served_s >= SECOND_AFTER_S


def has_paid(row: Row, serving: Sequence[Row], pool: Pool) -> bool:
    """Whether short lines have waited as many slot-seconds as one more copy on this node costs: they come again and
    again, never outlast a load, and cost more than it in the end. Whoever rents until that was paid pays twice what
    foresight would, at most. A copy on a slower node is worth less.
    """
    costs_s = pool.load_s(row.weights, pool.resident_bytes(row)) * pool.slots_of(row)
    speed = sum(each.weight for each in serving) / len(serving)
    return pool.experience.waited_s.get(row.weights, 0.0) * min(1.0, row.weight / speed) > costs_s


def _strength(rows: Sequence[Row], pool: Pool) -> float:
    """Of copies that serve one line, beside one another: a slot of a node that is twice as fast counts twice."""
    return sum(pool.slots_of(row) * row.weight for row in rows)


def _estimate_s(line: LineView) -> float:
    """How long the last in line will wait; as long as the first did where the line has not moved."""
    return line.own / line.drain_per_s if line.drain_per_s else line.oldest_wait_s


def is_worth(line: LineView, cost: Cost, slots: int, *, has_copy: bool) -> bool:
    """Collating: what is in memory serves on until those who wait for something else have waited as many slot-seconds
    as its going costs, and BACKLOGGED times as many while it has a line of its own: where memory is too small for all
    lines, the less it loads the more is served. Waiting grows and harm does not, so everybody's turn comes; for a lone
    call after PATIENCE_S, unless its harm asks for more."""
    if cost.needs_pinned or not cost.is_foreseeable:
        return False
    if not cost.harm:
        return True
    if not cost.may_go:
        return False
    gained = min(line.own, slots)
    if has_copy and (cost.is_waited_for or gained <= cost.lost_slots or _estimate_s(line) < SWAPS * cost.loads_s):
        return False  # one more copy here for one less there, and back again
    turn = BACKLOGGED if cost.is_waited_for and line.oldest_wait_s < PATIENCE_S else TURN
    return gained * line.oldest_wait_s >= turn * cost.harm


def is_spare(row: Row, cost: Cost, node: Node) -> bool:
    """For those who overflowed, and wait elsewhere as well: nothing goes for it, as far as anybody can tell."""
    return row.is_resident or (not cost.displaced and (cost.fits is True or not node.copies))


def is_better_awaited(line: LineView, row: Row, busy: Sequence[Row], pool: Pool) -> bool:
    """Whether a faster node that is about to end its load, and has room beside it, should be waited for instead of
    loading on this one: a copy on a slow node is soon followed by another on a fast one, which is a load for nothing.

    For as many times the load there and back as the other is faster, from the oldest call's arrival: nobody waits
    without end for nodes that load again and again.
    """
    load_s = pool.load_s(row.weights, pool.resident_bytes(row))
    for other in busy:
        patience_s = SWAPS * load_s * (other.weight / row.weight - 1.0)
        ends_s = line.oldest_wait_s + pool.ends_in_s[other.node]
        if ends_s < patience_s and is_spare(other, cost_of(other, pool), pool.snapshot.nodes[other.node]):
            return True
    return False
