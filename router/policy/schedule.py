"""Which nodes a call would like: filter, score, order. A wish only: the store grants slots."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from heapq import nsmallest

from router.fleet.snapshot import Ring, Row, Snapshot
from router.fleet.tickets import PREFERRED_MAX
from router.policy.filters import usable
from router.policy.scorers import affine_rows, by_load, has_room

# Rows scored at most: the best of so many is nearly the best of all, and a decision stays below 0.1 ms.
SAMPLE_MAX = 64
SAMPLE = 48


class Reason(StrEnum):
    """Why this node: label of `routing_decisions_total` and value of `x-ollama-router-reason`."""

    LOADED = "loaded"  # the only copy that may serve
    AFFINITY = "affinity"  # the conversation was there before
    LEAST_BUSY = "least_busy"
    COLD_LOAD = "cold_load"  # no copy may serve now: one must be loaded
    FALLBACK = "fallback"  # only copies that are otherwise avoided: spilled to the CPU
    OVERFLOW = "overflow"  # its target's line was too long: a further target of its alias had a slot first


@dataclass(frozen=True, slots=True)
class Want:
    """What a call asks of a node. `num_ctx` is 0 when it asks for none; `affinity` is empty when it has none."""

    targets: tuple[str, ...]  # model keys
    affinity: str = ""
    num_ctx: int = 0
    excluded: frozenset[str] = frozenset()  # nodes it must not go to again
    names_no_ctx: bool = False  # its route cannot carry a context


@dataclass(frozen=True, slots=True)
class Decision:
    """`preferred` are at most PREFERRED_MAX nodes, best first; `reason` speaks of the first."""

    preferred: tuple[str, ...]
    reason: Reason
    affine: str = ""  # the node of the affinity key, with room or without

    def reason_of(self, node: str) -> Reason:
        """For the node that the store chose after all."""
        if self.reason is Reason.COLD_LOAD or (self.preferred and node == self.preferred[0]):
            return self.reason
        if node and node == self.affine:
            return Reason.AFFINITY
        return Reason.LEAST_BUSY


def schedule(want: Want, snapshot: Snapshot, occupancy: Mapping[tuple[str, str], int], rng: random.Random) -> Decision:
    """Free copies by affinity (within its bound), then by load, chance between equals; full ones after them.

    Spilled copies only where no other may serve; copies of draining nodes never.
    """
    first: Decision | None = None
    names: list[str] = []
    for key in want.targets:
        rows = snapshot.holding(key)
        decision = _among(rows.ready, want, occupancy, rng)
        if len(decision.preferred) < PREFERRED_MAX and rows.last_resort.rows:
            decision = _with_last_resort(decision, rows.last_resort, want, occupancy, rng)
        if decision.preferred and first is None:
            first = decision
        names.extend(decision.preferred)
    if first is None:
        return Decision((), Reason.COLD_LOAD)
    if len(want.targets) == 1:
        return first
    return Decision(tuple(dict.fromkeys(names))[:PREFERRED_MAX], first.reason, first.affine)


def _among(ring: Ring, want: Want, occupancy: Mapping[tuple[str, str], int], rng: random.Random) -> Decision:
    rows = _sample(ring, want, rng)
    if len(rows) == 1:
        return Decision((rows[0].node,), Reason.LOADED, rows[0].node if want.affinity else "")
    best = [row.node for _, _, row in nsmallest(PREFERRED_MAX, by_load(rows, occupancy, rng))]
    if not want.affinity or not best:
        return Decision(tuple(best), Reason.LEAST_BUSY)
    affine, has_affine_room = _affine(ring, rows, want, occupancy)
    if not has_affine_room:
        return Decision(tuple(best), Reason.LEAST_BUSY, affine)
    others = [node for node in best if node != affine]
    return Decision((affine, *others[: PREFERRED_MAX - 1]), Reason.AFFINITY, affine)


def _affine(
    ring: Ring, sample: Sequence[Row], want: Want, occupancy: Mapping[tuple[str, str], int]
) -> tuple[str, bool]:
    """The first node on the key's way round the ring that may serve and has room; else its own one, without."""
    own = ""
    for row in affine_rows(ring, want.affinity):
        if not usable((row,), want.excluded, want.num_ctx, names_no_ctx=want.names_no_ctx):
            continue
        own = own or row.node
        if has_room(row, occupancy, sample):
            return row.node, True
    return own, False


def _sample(ring: Ring, want: Want, rng: random.Random) -> Sequence[Row]:
    """All rows that may serve, or SAMPLE neighbours from anywhere on the ring where nobody is a neighbour by merit."""
    rows = ring.rows
    if len(rows) > SAMPLE_MAX:
        start = int(rng.random() * len(rows))
        neighbours = rows[start : start + SAMPLE] + rows[: max(0, start + SAMPLE - len(rows))]
        some = usable(neighbours, want.excluded, want.num_ctx, names_no_ctx=want.names_no_ctx)
        if some:
            return some
    return usable(rows, want.excluded, want.num_ctx, names_no_ctx=want.names_no_ctx)


def _with_last_resort(
    decision: Decision, ring: Ring, want: Want, occupancy: Mapping[tuple[str, str], int], rng: random.Random
) -> Decision:
    scored = by_load(_sample(ring, want, rng), occupancy, rng)
    more = [row.node for _, _, row in nsmallest(PREFERRED_MAX - len(decision.preferred), scored)]
    if not more or decision.preferred:
        return Decision((*decision.preferred, *more), decision.reason, decision.affine)
    return Decision(tuple(more), Reason.FALLBACK)
