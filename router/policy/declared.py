"""Copies that the operator declares: which stand for it, which were lost, and what loads have to spare of them.

What is to be done for them is `policy.upkeep`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from router.fleet.node import CopyState
from router.fleet.snapshot import UP, Row, Snapshot, point_of
from router.policy.placement import Load, load_backoff_s
from router.policy.room import Holds

FOREVER_FROM_S = 8e9  # Unix time, the year 2223: keep_alive -1 ends 292 years from now, and nobody asks for 197
STEADY_S = 600.0  # a copy that stood for so long has not been lost too often
CROWDED_MAX = 1000  # what pinned copies were lost to, remembered

Place = tuple[str, str]  # (node, weights)


@dataclass(frozen=True, slots=True)
class Declaration:
    """`copies` of a model on as many nodes, preferably on these. `key` is a model key."""

    key: str
    copies: int = 1
    is_pinned: bool = False
    nodes: tuple[str, ...] = ()  # best first


class Lack(StrEnum):
    """Why a declared copy does not stand; of several nodes' reasons the mildest, in this order."""

    LOADING = "loading"
    NODE_BUSY = "node_busy"  # loads another model
    LEAVING = "leaving"  # displaced, or about to leave memory under a name that its node does not list
    IN_USE = "in_use"  # only calls' memory could make room
    BACKOFF = "backoff"  # its last load failed
    LOST = "lost"  # taken out of memory again and again by others than the router
    NO_ROOM = "no_room"  # other declared copies fill the memory
    DRAINING = "draining"
    DOWN = "down"
    NOT_ON_DISK = "not_on_disk"  # on no further node
    NOT_MANAGED = "not_managed"  # placement.mode is another


@dataclass(frozen=True, slots=True)
class Standing:
    """What came of one declaration. `nodes` have a copy that serves; `lack` is None where as many do as declared."""

    declaration: Declaration
    nodes: tuple[str, ...]
    loading: tuple[str, ...] = ()
    lack: Lack | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A copy that others took out of memory: `times` in a row, and not before when it is loaded again."""

    times: int
    until_s: float


@dataclass(frozen=True, slots=True)
class Memory:
    """What one pass tells the next. `stood`: where copies stood, and in which start of their node since when."""

    stood: Mapping[Place, tuple[int, float]] = field(default_factory=lambda: MappingProxyType({}))
    lost: Mapping[Place, Lost] = field(default_factory=lambda: MappingProxyType({}))
    asked_s: Mapping[Place, float] = field(default_factory=lambda: MappingProxyType({}))  # of renewals
    crowded: frozenset[tuple[str, int, str]] = frozenset()  # (node, incarnation, weights): pins were lost to its load


NOTHING = Memory()


def held(declaration: Declaration, snapshot: Snapshot, loading: Mapping[str, str], leaving: Set[Place]) -> list[Row]:
    """The copies that count, those on their way included: kept ones first, so that they are always the same."""
    rows = snapshot.holding(declaration.key).by_node.values()
    there = [row for row in rows if _stands(row, leaving) or is_coming(row, loading)]
    order = {name: place for place, name in enumerate(declaration.nodes)}

    def rank(row: Row) -> tuple[bool, int, int]:
        return not is_for_ever(row), order.get(row.node, len(order)), point_of(f"{row.weights}\n{row.node}")

    return sorted(there, key=rank)[: declaration.copies]


def holds_of(
    declared: Sequence[Declaration],
    snapshot: Snapshot,
    *,
    loading: Mapping[str, str],
    leaving: Set[Place],
    memory: Memory = NOTHING,
) -> Holds:
    """What loads have to spare."""
    pinned: set[Place] = set()
    all_held: set[Place] = set()
    for declaration in declared:
        places = [row.copy for row in held(declaration, snapshot, loading, leaving)]
        all_held.update(places)
        if declaration.is_pinned:
            pinned.update(places)
    crowded = frozenset((node, weights) for node, _, weights in memory.crowded)
    return Holds(frozenset(pinned), frozenset(all_held), crowded)


def is_for_ever(row: Row) -> bool:
    return row.is_resident and row.expires_at_s >= FOREVER_FROM_S


def _stands(row: Row, leaving: Set[Place]) -> bool:
    return row.takes_calls and row.is_resident and not row.is_cloud and row.copy not in leaving


def is_coming(row: Row, loading: Mapping[str, str]) -> bool:
    """A renewal of what is there is not its coming."""
    is_asked = loading.get(row.node) == row.weights and not row.is_resident
    return row.takes_calls and (is_asked or row.state is CopyState.LOADING)


# --- from one pass to the next


def remember(
    old: Memory,
    declared: Sequence[Declaration],
    snapshot: Snapshot,
    *,
    loading: Mapping[str, str],
    leaving: Set[Place],
    loaders: Mapping[str, str],
    displaced: Set[Place],
    now_s: float,
) -> Memory:
    """After a look at the pool. `loaders` and `displaced` are of our loads that run or have just ended: what is gone
    and was not displaced by them, while its node lives on, was taken from us."""
    places = {row.copy for one in declared for row in snapshot.holding(one.key).by_node.values()}
    stood = {place: since for place, since in old.stood.items() if place in places and _awaits(place, since, snapshot)}
    lost = {place: one for place, one in old.lost.items() if place in places}
    for place in _gone(old, snapshot):
        if place in places and place not in displaced:
            lost[place] = _lost_again(lost.get(place), now_s - old.stood[place][1], now_s)
    for declaration in declared:
        for row in held(declaration, snapshot, loading, leaving):
            if row.is_resident:
                incarnation = snapshot.nodes[row.node].incarnation
                known = old.stood.get(row.copy)
                stood[row.copy] = known if known is not None and known[0] == incarnation else (incarnation, now_s)
    return Memory(
        MappingProxyType(stood),
        MappingProxyType(lost),
        MappingProxyType({place: at_s for place, at_s in old.asked_s.items() if place in stood}),
        _crowded(old, declared, snapshot, loaders, displaced),
    )


def asked(old: Memory, loads: Iterable[Load], now_s: float) -> Memory:
    """After loads were begun."""
    renewed = {(load.node, load.weights): now_s for load in loads if load.is_renewal}
    return replace(old, asked_s=MappingProxyType({**old.asked_s, **renewed})) if renewed else old


def _gone(old: Memory, snapshot: Snapshot) -> Iterator[Place]:
    return (place for place, since in old.stood.items() if _is_gone(place, since, snapshot))


def _is_gone(place: Place, since: tuple[int, float], snapshot: Snapshot) -> bool:
    """From the memory of a node that lives on; a node that is down, or has begun anew, has lost everything."""
    node = snapshot.nodes.get(place[0])
    return node is not None and node.health in UP and node.incarnation == since[0] and place[1] not in node.copies


def _awaits(place: Place, since: tuple[int, float], snapshot: Snapshot) -> bool:
    """Its node is down, or has begun anew: the copy should come back there."""
    node = snapshot.nodes[place[0]]
    return node.health not in UP or node.incarnation != since[0]


def _lost_again(known: Lost | None, stood_s: float, now_s: float) -> Lost:
    """The first time it is loaded again at once."""
    times = 1 if known is None or stood_s >= STEADY_S else known.times + 1
    return Lost(times, now_s + (load_backoff_s(times - 1) if times > 1 else 0.0))


def _crowded(
    old: Memory,
    declared: Sequence[Declaration],
    snapshot: Snapshot,
    loaders: Mapping[str, str],
    displaced: Set[Place],
) -> frozenset[tuple[str, int, str]]:
    """With what the loads that run took from pins: where no memory is declared, only Ollama knows what fits."""
    pinned = {weights for one in declared if one.is_pinned for weights in _weights_of(one, snapshot)}
    known = {one for one in old.crowded if one[0] in snapshot.nodes and snapshot.nodes[one[0]].incarnation == one[1]}
    for name, weights in _gone(old, snapshot):
        by = loaders.get(name, weights)
        if weights in pinned and (name, weights) not in displaced and by != weights:
            known.add((name, snapshot.nodes[name].incarnation, by))
    return frozenset(sorted(known)[-CROWDED_MAX:])


def _weights_of(declaration: Declaration, snapshot: Snapshot) -> set[str]:
    return {row.weights for row in snapshot.holding(declaration.key).by_node.values()}
