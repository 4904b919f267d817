"""Every node that has a model, as the decision for one call sees it: candidate, or barred and why."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType

from router.fleet.breaker import Circuit
from router.fleet.node import CopyState
from router.fleet.slots import declared_slots
from router.fleet.snapshot import Row, Snapshot
from router.fleet.tickets import LineView
from router.policy import verdicts
from router.policy.declared import Standing
from router.policy.experience import NOTHING_LEARNT, Experience
from router.policy.filters import Bar, bar_of
from router.policy.placement import Hindrance, LoadFailure, Mode, hindrance
from router.policy.room import NO_HOLDS, Holds, Pool, cost_of
from router.policy.schedule import Decision, Want
from router.policy.scorers import FULL, affine_rows, by_load
from router.policy.troubles import NO_TROUBLES, Troubles

Copy = tuple[str, str]  # (node, weights)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """One moment of the pool. `lines` by model key, those in which somebody waits and the limits of all targets."""

    snapshot: Snapshot
    occupancy: Mapping[Copy, int]
    lines: Mapping[str, LineView]
    circuits: Mapping[tuple[str, str | None], Circuit]  # those not closed
    loading: Mapping[str, str]  # node -> weights
    failures: Mapping[Copy, LoadFailure]
    mode: Mode
    now_s: float
    has_cloud: bool = False
    experience: Experience = NOTHING_LEARNT
    leaving: Set[Copy] = frozenset()  # what loads that run displace
    since_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))  # as in `place`
    holds: Holds = NO_HOLDS
    standings: Sequence[Standing] = ()
    troubles: Troubles = NO_TROUBLES


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that has the model. `load` is lower for the better; `rank` counts from 1, 0 for what is not preferred."""

    node: str
    model: str
    health: str
    state: str
    slots: int
    used: int
    num_ctx: int
    circuit: str  # the worse of the copy's and the node's
    is_spilled: bool
    bar: Bar | None  # None: the call may use it
    rank: int
    affinity: int  # place on its key's way round the ring, from 1; 0 for those that are not on it
    load: float | None
    has_room: bool  # the store would hand out a slot of it now
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is asked of every row, gathered once: a model may lie on a thousand nodes."""

    want: Want
    decision: Decision
    at: Circumstances
    ranks: Mapping[str, int]  # by node
    loads: Mapping[Copy, float]
    affine: Mapping[tuple[str, str], int]  # (key, node) -> place on the ring
    leases: Mapping[str, int]  # by node
    backoff: Mapping[Copy, float]


def rows_of(want: Want, snapshot: Snapshot) -> Iterator[tuple[str, Row]]:
    for key in want.targets:
        for row in snapshot.holding(key).by_node.values():
            yield key, row


def facts_of(want: Want, decision: Decision, at: Circumstances, rng: random.Random) -> Facts:
    usable = [row for _, row in rows_of(want, at.snapshot) if bar_of(row, want.excluded, want.num_ctx) is None]
    leases: dict[str, int] = {}
    for (node, _), held in at.occupancy.items():
        leases[node] = leases.get(node, 0) + held
    return Facts(
        want,
        decision,
        at,
        ranks={node: rank for rank, node in enumerate(decision.preferred, 1)},
        # As it is scored, without what only puts full copies behind all others.
        loads={row.copy: load % FULL for load, _, row in by_load(usable, at.occupancy, rng)},
        affine=_affine_places(want, at.snapshot),
        leases=leases,
        backoff={copy: failure.until_s for copy, failure in at.failures.items()},
    )


def _affine_places(want: Want, snapshot: Snapshot) -> dict[tuple[str, str], int]:
    places: dict[tuple[str, str], int] = {}
    for key in want.targets if want.affinity else ():
        rows = affine_rows(snapshot.holding(key).ready, want.affinity)
        usable = (row for row in rows if bar_of(row, want.excluded, want.num_ctx) is None)
        places.update({(key, row.node): place for place, row in enumerate(usable, 1)})
    return places


def candidate_of(key: str, row: Row, facts: Facts) -> Candidate:
    at, want = facts.at, facts.want
    bar = bar_of(row, want.excluded, want.num_ctx)
    used = at.occupancy.get(row.copy, 0)
    return Candidate(
        node=row.node,
        model=key,
        health=at.snapshot.nodes[row.node].health.value,
        state=CopyState.LOADING.value if at.loading.get(row.node) == row.weights else row.state.value,
        slots=row.slots,
        used=used,
        num_ctx=row.num_ctx,
        circuit=_circuit(row, at).value,
        is_spilled=row.is_spilled,
        bar=bar,
        rank=facts.ranks.get(row.node, 0) if bar is None else 0,
        affinity=facts.affine.get((key, row.node), 0),
        load=facts.loads.get(row.copy) if bar is None else None,
        has_room=bar is None and used < row.slots and _passes(row, facts),
        why=tuple(_why(row, bar, used, facts)),
    )


def in_order(candidate: Candidate) -> tuple[bool, float, float, str, str]:
    """Preferred ones, other candidates by load, then what is barred."""
    rank = candidate.rank or float("inf")
    return candidate.bar is not None, rank, candidate.load or 0.0, candidate.node, candidate.model


def _circuit(row: Row, at: Circumstances) -> Circuit:
    """The worse of the copy's and the node's."""
    both = {at.circuits.get(key, Circuit.CLOSED) for key in (row.copy, (row.node, None))}
    return next(circuit for circuit in (Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED) if circuit in both)


def _passes(row: Row, facts: Facts) -> bool:
    """Half-open is one lease at a time, of the copy or of all the node's copies (`store.nodes.has_room`)."""
    circuits = facts.at.circuits
    of_copy, of_node = circuits.get(row.copy), circuits.get((row.node, None))
    if Circuit.OPEN in (of_copy, of_node):
        return False
    if of_node is Circuit.HALF_OPEN and facts.leases.get(row.node):
        return False
    return of_copy is not Circuit.HALF_OPEN or not facts.at.occupancy.get(row.copy)


def _why(row: Row, bar: Bar | None, used: int, facts: Facts) -> Iterator[str]:
    yield from _why_here(row, bar, used, facts)
    names = facts.at.snapshot.nodes[row.node].keys_of(row.weights)
    for pair in facts.at.troubles.pairs_of(row.node):
        if not set(names).isdisjoint(pair.keys):
            yield f"here {verdicts.pair_text(pair)}"


def _why_here(row: Row, bar: Bar | None, used: int, facts: Facts) -> Iterator[str]:
    if bar is Bar.NOT_READY:
        yield _why_not_loaded(row, facts)
        return
    if bar is not None:
        health = facts.at.snapshot.nodes[row.node].health
        yield verdicts.bar_text(bar, health, row.num_ctx, facts.want.num_ctx)
        return
    yield verdicts.slots_text(used, row.slots)
    node = facts.at.snapshot.nodes[row.node]
    learnt = node.learnt.get(row.weights)
    if learnt is not None:
        yield verdicts.learnt_text(learnt, declared_slots(node, row.weights))
    if row.copy in facts.at.holds.declared:
        yield "pinned here" if row.copy in facts.at.holds.pinned else "a declared copy"
    if row.is_spilled:
        copy = node.copies[row.weights]
        yield verdicts.spill_text(copy.size_bytes - copy.vram_bytes, copy.size_bytes)
    circuit = _circuit(row, facts.at)
    if circuit is not Circuit.CLOSED:
        yield f"its circuit is {circuit.replace('_', '-')}"
    if row.node == facts.decision.affine:
        is_first = facts.ranks.get(row.node) == 1
        yield "has this conversation" if is_first else "has this conversation, but no room or more than its share"


def _why_not_loaded(row: Row, facts: Facts) -> str:
    at = facts.at
    if row.is_cloud:
        return "a cloud model: nothing to load"
    why_not = hindrance(row, at.loading, facts.backoff, at.now_s)
    if why_not is Hindrance.LOADING:
        return "is loading it" if at.loading[row.node] == row.weights else "on disk; the node loads another model"
    if why_not is Hindrance.BACKOFF:
        failure = at.failures[row.copy]
        return f"on disk; its last load failed, not again for {failure.until_s - at.now_s:.0f} s: {failure.text}"
    if why_not is Hindrance.UNLISTED:
        return "about to leave memory, and in no list of its disk"
    if _is_crowded_out(row, at):
        return "on disk; pinned copies fill the memory that it would need"
    return "about to leave memory" if row.is_resident else "on disk, not in memory"


def _is_crowded_out(row: Row, at: Circumstances) -> bool:
    if all(node != row.node for node, _ in at.holds.pinned):
        return False
    pool = Pool(at.snapshot, at.occupancy, at.experience, {}, {}, at.leaving, at.now_s, at.holds)
    return cost_of(row, pool).needs_pinned
