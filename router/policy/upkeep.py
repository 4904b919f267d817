"""What declared copies ask for beside the lines: one pass, pure, after `policy.placement` has served those who wait.

A minimum of copies comes where memory is free of what calls use; a pin takes memory from whatever is not pinned. What
stands is renewed once, for ever. With nothing to mend there is nothing to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest

from router.fleet.snapshot import Row, Snapshot, point_of
from router.policy.declared import Declaration, Lack, Memory, Standing, held, is_coming, is_for_ever
from router.policy.placement import COSTED_MAX, Cause, Hindrance, Load, hindrance
from router.policy.room import Cost, Holds, Pool, cost_of

RENEW_AGAIN_S = 30.0  # /api/ps tells a new end when a call has ended: what others keep busy looks as it did before

_ORDER = tuple(Lack)


@dataclass(frozen=True, slots=True)
class Moment:
    """What a pass knows. `loading`: node -> weights of loads that run or are decided; `backoff` as in `place`."""

    pool: Pool
    loading: Mapping[str, str]
    backoff: Mapping[tuple[str, str], float]
    memory: Memory

    def after(self, load: Load) -> Moment:
        gone = {(load.node, weights) for weights in load.displaces}
        pool = replace(self.pool, leaving=self.pool.leaving | gone)
        return replace(self, pool=pool, loading={**self.loading, load.node: load.weights})


def keep(declared: Sequence[Declaration], at: Moment) -> tuple[tuple[Load, ...], tuple[Standing, ...]]:
    """What is to be loaded or renewed, pins first, and how each declaration stands, in order of their models."""
    loads: list[Load] = []
    standings = []
    for declaration in sorted(declared, key=lambda one: not one.is_pinned):
        own, standing = _keep_one(declaration, at)
        standings.append(standing)
        for load in own:
            loads.append(load)
            at = at.after(load)
    return tuple(loads), tuple(sorted(standings, key=lambda standing: standing.declaration.key))


def unkept(declared: Sequence[Declaration], snapshot: Snapshot) -> tuple[Standing, ...]:
    """How each declaration stands while nothing is done for it."""
    standings = []
    for one in sorted(declared, key=lambda one: one.key):
        nodes = tuple(sorted(row.node for row in held(one, snapshot, {}, frozenset()) if row.is_ready))
        standings.append(Standing(one, nodes, lack=None if len(nodes) >= one.copies else Lack.NOT_MANAGED))
    return tuple(standings)


def _keep_one(declaration: Declaration, at: Moment) -> tuple[list[Load], Standing]:
    rows = held(declaration, at.pool.snapshot, at.loading, at.pool.leaving)
    loads = [_renewal(row, declaration) for row in rows if _is_due(row, at)]
    missing = declaration.copies - len(rows)
    lack = Lack.LOADING
    if missing:
        for load in loads:
            at = at.after(load)
        chosen, hindered = _choose(declaration, _others(declaration, rows, at.pool), at)
        loads += chosen[:missing]
        lack = hindered if len(chosen) < missing else lack
    nodes = tuple(sorted(row.node for row in rows if row.is_ready and not is_coming(row, at.loading)))
    coming = {row.node for row in rows if row.node not in nodes} | {one.node for one in loads if not one.is_renewal}
    is_whole = len(nodes) >= declaration.copies
    return loads, Standing(declaration, nodes, tuple(sorted(coming)), None if is_whole else lack)


def _choose(declaration: Declaration, rows: Sequence[Row], at: Moment) -> tuple[list[Load], Lack]:
    """One load for each node that can take the model now, the best first; and the mildest reason of the others."""
    found: list[tuple[tuple[float, ...], Load]] = []
    lacks = [Lack.NOT_ON_DISK]
    for row in rows:
        lack = _hindered(row, at)
        if lack is None:
            cost = cost_of(row, at.pool)
            lack = _too_dear(declaration, row, cost, at.pool.holds)
            if lack is None:
                found.append((_rank(declaration, row, cost, at), _load(declaration, row, cost, at.memory)))
                continue
        lacks.append(lack)
    return [load for _, load in sorted(found, key=lambda each: each[0])], min(lacks, key=_ORDER.index)


def _others(declaration: Declaration, rows: Sequence[Row], pool: Pool) -> list[Row]:
    """Where the missing ones might come: preferred nodes first, then those with the fewest models."""
    counted = {row.node for row in rows}
    nodes = pool.snapshot.nodes
    others = pool.snapshot.holding(declaration.key).by_node.values()
    possible = [row for row in others if row.node not in counted and not row.is_cloud]
    return nsmallest(
        COSTED_MAX,
        possible,
        key=lambda row: (row.node not in declaration.nodes, not row.takes_calls, len(nodes[row.node].copies)),
    )


def _hindered(row: Row, at: Moment) -> Lack | None:
    if not row.takes_calls:
        return Lack.DRAINING if row.is_draining else Lack.DOWN
    match hindrance(row, at.loading, at.backoff, at.pool.now_s):
        case Hindrance.LOADING:
            return Lack.NODE_BUSY
        case Hindrance.BACKOFF:
            return Lack.BACKOFF
        case Hindrance.UNLISTED | Hindrance.IN_MEMORY:
            return Lack.LEAVING
    lost = at.memory.lost.get(row.copy)
    return Lack.LOST if lost is not None and lost.until_s > at.pool.now_s else None


def _too_dear(declaration: Declaration, row: Row, cost: Cost, holds: Holds) -> Lack | None:
    """A pin may take the memory of what is not pinned, once that has served its time; others only what nobody uses."""
    if cost.needs_pinned:
        return Lack.NO_ROOM
    takes_declared = any((row.node, weights) in holds.declared for weights in cost.displaced)
    if takes_declared and not declaration.is_pinned:
        return Lack.NO_ROOM
    is_free = declaration.is_pinned or not (cost.harm or cost.is_waited_for)
    return None if is_free and cost.is_foreseeable and cost.may_go else Lack.IN_USE


def _rank(declaration: Declaration, row: Row, cost: Cost, at: Moment) -> tuple[float, ...]:
    """Lower is better: where the operator wants it, where it was before its node began anew, where it does no harm."""
    order = {name: place for place, name in enumerate(declaration.nodes)}
    takes_declared = any((row.node, weights) in at.pool.holds.declared for weights in cost.displaced)
    return (
        order.get(row.node, len(order)),
        takes_declared,
        row.copy not in at.memory.stood,
        cost.harm,
        cost.fit,
        -row.weight,
        cost.left(at.pool.snapshot.nodes[row.node]),
        point_of(f"{row.weights}\n{row.node}"),
    )


def _load(declaration: Declaration, row: Row, cost: Cost, memory: Memory) -> Load:
    cause = Cause.REWARM if row.copy in memory.stood else Cause.PIN if declaration.is_pinned else Cause.COPY
    return Load(
        row.node,
        row.name,
        declaration.key,
        row.weights,
        keep_alive_s=math.inf,
        displaces=cost.displaced,
        cause=cause,
    )


def _renewal(row: Row, declaration: Declaration) -> Load:
    """It names the loaded context: without it, a copy that was loaded with another than the default reloads."""
    return Load(row.node, row.name, declaration.key, row.weights, row.num_ctx, math.inf, is_renewal=True)


def _is_due(row: Row, at: Moment) -> bool:
    """In memory, and not for ever. While calls run it does not end, and its node does not tell what was asked."""
    now_s, is_busy = at.pool.now_s, row.is_ready and bool(at.pool.occupancy.get(row.copy))
    if is_for_ever(row) or not row.is_resident or not row.name or row.node in at.loading or is_busy:
        return False
    is_asked = now_s - at.memory.asked_s.get(row.copy, -math.inf) < RENEW_AGAIN_S
    return not is_asked and at.backoff.get(row.copy, now_s) <= now_s
