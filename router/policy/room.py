"""Room for a load: which copies Ollama should evict for it on a node, and what that costs those who use them.

Ollama evicts; the router says which, within Ollama's own order: the one that is offered has the shortest keep-alive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from router.fleet.node import Copy, CopyState, Node
from router.fleet.slots import slots_of
from router.fleet.snapshot import Row, Snapshot
from router.fleet.tickets import LineView
from router.policy.experience import Experience, did_not_fit, in_line, with_leases

VRAM_MARGIN = 1.25  # Ollama wants a model to fit into 80 % of what is free (server/sched.go)
MAX_LOADED = 3  # OLLAMA_MAX_LOADED_MODELS for one GPU; a node that ever holds more has more
HEADROOM = 1.5  # calls come in bursts: other copies can stand in for one that goes when they have this much more
STAY = 1.0  # loads' time that a copy serves at least before it may be taken from those who use it

LATE = 2.0  # times as long as it should take, a load waits for memory
LATE_S_MIN = 20.0  # disks are cold at times
OFFERED_S = 60.0  # keep-alive of a copy that should go first: below the default of 300, above most loads
SETTLE_S = 1.0  # until those who waited for a copy have reached it: Ollama takes it for idle before

Place = tuple[str, str]


class Held(NamedTuple):
    """What a copy took in its node's memory before a load."""

    size_bytes: int
    expires_at_s: float


@dataclass(frozen=True, slots=True)
class Holds:
    """What loads have to spare of what is declared: no load may displace what is pinned, and all others of the declared
    copies go last. `crowded`: weights whose load there has cost a pin before."""

    pinned: Set[Place] = frozenset()
    declared: Set[Place] = frozenset()
    crowded: Set[Place] = frozenset()


NO_HOLDS = Holds()


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one load on one node. `lost_slots` are those that calls need and that do not fit in again beside it; `harm` is
    what calls miss, also of what does fit in again, for as long as the loads take."""

    displaced: tuple[str, ...]  # weights
    lost_slots: float
    harm: float  # slot-seconds
    loads_s: float  # its own load, and those of what goes when that comes back
    is_foreseeable: bool  # Ollama would evict what we think it would
    is_waited_for: bool  # somebody stands in line for what goes
    may_go: bool  # everything displaced has served its time
    fits: bool | None  # beside what stays; None where no size is declared
    free_bytes: int  # after it; 0 where nothing is declared
    needs_pinned: bool = False  # nothing but pinned copies is left that could make room

    @property
    def fit(self) -> int:
        """0 where it fits beside what is loaded, 1 where nobody can tell, 2 where something must go or spill."""
        return 1 if self.fits is None else 0 if self.fits else 2

    def left(self, node: Node) -> int:
        """What its node has left, lower is fuller: bytes, or where nobody can tell how few models are loaded."""
        return len(node.copies) if self.fits is None else self.free_bytes


@dataclass(frozen=True, slots=True)
class Pool:
    """What the cost of a load depends on. `leaving` are copies that a load of ours displaces already. `ends_in_s`: how
    long the loads go on that run, by node."""

    snapshot: Snapshot
    occupancy: Mapping[Place, int]
    experience: Experience
    asked: Mapping[str, float]  # slots wanted now, by weights
    waiting: Mapping[str, float]  # of those, by calls without one
    leaving: Set[Place]
    now_s: float
    holds: Holds = NO_HOLDS
    ends_in_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def resident_bytes(self, row: Row) -> int:
        return self.experience.bytes_of(row.weights, row.size_bytes)

    def held_bytes(self, copy: Copy, node: Node) -> int:
        """Of a copy that no probe has seen yet what is known of others: taken for nothing it would be given away."""
        if copy.size_bytes:
            return copy.vram_bytes
        disk_bytes = max((node.models[key].size_bytes for key in node.keys_of(copy.weights)), default=0)
        return self.experience.bytes_of(copy.weights, disk_bytes)

    def vram_bytes(self, node: Node) -> int | None:
        """What is declared, else less than what was too much; None where nobody can tell."""
        if node.spec.vram_bytes is not None:
            return node.spec.vram_bytes
        too_much = self.experience.vram_bytes.get(node.name)
        return None if too_much is None else too_much - 1

    def slots_of(self, row: Row) -> int:
        """Of a copy there, whether it is in memory or not."""
        node = self.snapshot.nodes[row.node]
        keys = node.keys_of(row.weights)
        return max(1, slots_of(node, keys, node.models, row.weights))

    def ready_for_s(self, place: Place) -> float:
        """Longer than anything that we know of, where we did not see it come."""
        return self.now_s - self.experience.ready_since.get(place, -math.inf)

    def load_s(self, weights: str, size_bytes: int) -> float:
        return self.experience.load_s_of(weights, size_bytes)

    def load_s_of(self, copy: Copy) -> float:
        return self.experience.load_s_of(copy.weights, copy.size_bytes)


def pool_of(
    lines: Iterable[LineView],
    snapshot: Snapshot,
    occupancy: Mapping[Place, int],
    experience: Experience,
    *,
    leaving: Set[Place],
    holds: Holds,
    now_s: float,
) -> Pool:
    waiting = in_line(lines, snapshot)
    return Pool(snapshot, occupancy, experience, with_leases(waiting, occupancy), waiting, leaving, now_s, holds)


def cost_of(row: Row, pool: Pool) -> Cost:
    """Of loading the row's model on the row's node."""
    node = pool.snapshot.nodes[row.node]
    need = pool.resident_bytes(row)
    copies = [copy for copy in node.copies.values() if copy.weights != row.weights]
    displaced: list[Copy] = []
    while any(_may_go(copy, node, pool) for copy in copies) and not _may_load(need, node, copies, pool):
        going = _next_to_go(copies, node, need, pool)
        copies.remove(going)
        displaced.append(going)
    pins = [copy for copy in copies if not _may_go(copy, node, pool)]
    is_crowded = (node.name, row.weights) in pool.holds.crowded
    lost = [(copy, lost_slots(copy, node, pool)) for copy in displaced]
    for_good = [
        (copy, slots) for copy, slots in lost if not _fits(pool.held_bytes(copy, node), node, copies, pool, need)
    ]
    own_s = pool.load_s(row.weights, need)
    return Cost(
        displaced=tuple(copy.weights for copy in displaced),
        lost_slots=sum(slots for _, slots in for_good),
        harm=sum(slots * (own_s + pool.load_s_of(copy)) for copy, slots in lost),
        loads_s=own_s + sum(pool.load_s_of(copy) for copy, slots in lost if slots),
        is_foreseeable=not displaced or min(pool.ready_for_s((node.name, name)) for name in node.copies) >= SETTLE_S,
        is_waited_for=any(pool.waiting.get(copy.weights, 0) for copy, _ in for_good),
        may_go=all(slots == 0.0 or _has_stayed(copy, node, own_s, pool) for copy, slots in lost),
        fits=None if pool.vram_bytes(node) is None else not displaced and _fits(need, node, copies, pool),
        free_bytes=max(0, (pool.vram_bytes(node) or 0) - _held(copies, node, pool) - need),
        needs_pinned=bool(pins) and (is_crowded or not _may_load(need, node, copies, pool)),
    )


def in_the_way(node: Node, weights: str, pool: Pool) -> str | None:
    """What should leave next for a load that waits for memory which we thought was free: while its calls go on coming,
    Ollama waits for it without end. None where nothing more may go."""
    copies = [
        copy
        for copy in node.copies.values()
        if copy.weights != weights and (node.name, copy.weights) not in pool.leaving
    ]
    copies = [copy for copy in copies if copy.state is CopyState.READY and _may_go(copy, node, pool)]
    need = pool.experience.resident_bytes.get(weights, 0)
    return _next_to_go(copies, node, need, pool).weights if copies else None


def took_room(before: Mapping[str, Held], after: Set[str], need: int, now_s: float) -> int | None:
    """How many bytes a node has less than, where a load of `need` made it evict some of what it had `before`, by
    weights: what is not there `after` it. None where nothing had to go, or for its age or for their number.

    `now_s` is on the clock of `Held.expires_at_s`.
    """
    gone = [held for weights, held in before.items() if weights not in after]
    if not gone or len(before) >= MAX_LOADED or any(held.expires_at_s <= now_s for held in gone):
        return None
    return sum(held.size_bytes for held in before.values()) + round(need * VRAM_MARGIN)


def ran_out(old: Experience, node: str, weights: str, disk_bytes: int, before: Mapping[str, Held]) -> Experience:
    """A load failed for want of memory: its node has less than this and what it had before take together."""
    need = old.bytes_of(weights, disk_bytes)
    return did_not_fit(old, node, need + sum(held.size_bytes for held in before.values())) if need else old


def lost_slots(copy: Copy, node: Node, pool: Pool) -> float:
    """How many of this copy's slots nobody else makes good."""
    wanted = max(pool.experience.heat_of(copy.weights), pool.asked.get(copy.weights, 0.0))
    others = sum(slots for _, slots in serving(copy, node, pool))
    if not others:
        return min(float(copy.slots), wanted)
    return max(0.0, min(float(copy.slots), wanted * HEADROOM - others))


def serving(copy: Copy, node: Node, pool: Pool) -> Iterator[tuple[str, int]]:
    """Other ready copies of these weights that stay."""
    for key in copy.keys[:1]:
        for row in pool.snapshot.holding(key).ready.rows:
            if row.node != node.name and row.weights == copy.weights and row.copy not in pool.leaving:
                yield row.node, row.slots


def _has_stayed(copy: Copy, node: Node, own_s: float, pool: Pool) -> bool:
    stay_s = STAY * (own_s + pool.load_s_of(copy))
    return pool.ready_for_s((node.name, copy.weights)) >= stay_s


def _may_go(copy: Copy, node: Node, pool: Pool) -> bool:
    return (node.name, copy.weights) not in pool.holds.pinned


def _may_load(need: int, node: Node, copies: list[Copy], pool: Pool) -> bool:
    return len(copies) < max(MAX_LOADED, len(node.copies)) and _fits(need, node, copies, pool)


def _next_to_go(copies: list[Copy], node: Node, need: int, pool: Pool) -> Copy:
    """Ollama takes idle ones first, those with the shortest keep-alive before others: among them we may choose. What
    makes room alone goes before what does not, then what is missed least; declared copies go last."""
    movable = [copy for copy in copies if _may_go(copy, node, pool)]
    idle = [copy for copy in movable if not pool.occupancy.get((node.name, copy.weights))]

    def rank(copy: Copy) -> tuple[bool, bool, float, str]:
        others = [other for other in copies if other is not copy]
        missed = lost_slots(copy, node, pool) * pool.load_s_of(copy)
        is_declared = (node.name, copy.weights) in pool.holds.declared
        return (is_declared, not _may_load(need, node, others, pool), missed, copy.weights)

    return min(idle or movable, key=rank)


def _fits(need: int, node: Node, copies: list[Copy], pool: Pool, beside: int = 0) -> bool:
    vram_bytes = pool.vram_bytes(node)
    if vram_bytes is None:
        return True  # nobody can tell
    return need * VRAM_MARGIN <= vram_bytes - _held(copies, node, pool) - beside


def _held(copies: list[Copy], node: Node, pool: Pool) -> int:
    return sum(pool.held_bytes(copy, node) for copy in copies if copy.state is not CopyState.UNLOADING)
