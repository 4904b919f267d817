"""What goes wrong in a pool without anything failing: models that evict one another, names that are not one model
everywhere, copies partly in CPU memory. A fold over snapshots; each look costs what has changed since the last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType

from router.fleet.node import Copy, CopyState, Node
from router.fleet.snapshot import UP, Snapshot

WINDOW_S = 600.0  # two of Ollama's default keep-alives: what comes back later was not thrashing
COME_S = 60.0  # after an eviction, until what it was for is in memory: /api/ps does not list what loads
EVICTIONS_MAX = 4096  # remembered, of all nodes; the oldest go

Place = tuple[str, str]  # (node, weights)


class Gone(StrEnum):
    """Why a copy left memory: label of `model_evictions_total`."""

    OURS = "ours"  # for a load of this router, or unloaded by it
    OLLAMA = "ollama"  # for somebody else's
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Eviction:
    """`by` is what was loaded instead, by its weights; empty where nobody knows yet, or nothing was."""

    node: str
    weights: str
    key: str  # one of its names
    cause: Gone
    at_s: float
    by: str = ""
    by_key: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two models of a node that come back in each other's place, or in a ring with others; counted over the window."""

    node: str
    keys: tuple[str, str]
    evictions: int


@dataclass(frozen=True, slots=True)
class Troubles:
    """`skewed`: by model key, what its nodes have under that name, digest -> nodes; only where that differs."""

    nodes: Mapping[str, Node] = field(default_factory=lambda: MappingProxyType({}))  # as they were at the last look
    evictions: tuple[Eviction, ...] = ()  # of the window, oldest first
    pairs: tuple[Pair, ...] = ()
    spilled: frozenset[Place] = frozenset()
    skewed: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=lambda: MappingProxyType({}))

    def pairs_of(self, node: str) -> tuple[Pair, ...]:
        return tuple(pair for pair in self.pairs if pair.node == node)


NO_TROUBLES = Troubles()


def saw(
    old: Troubles, snapshot: Snapshot, *, loaders: Mapping[str, str], unloaded: Set[Place], now_s: float
) -> tuple[Troubles, tuple[Eviction, ...]]:
    """And what was evicted since. `loaders`: node -> weights of our loads that run or have just ended, and `unloaded`
    what was to leave memory for them or by word of a team."""
    before = old.nodes
    changed = [node for name, node in snapshot.nodes.items() if before.get(name) is not node]
    evictions = [one for one in old.evictions if now_s - one.at_s < WINDOW_S and one.node in snapshot.nodes]
    new: list[Eviction] = []
    for node in changed:
        known = before.get(node.name)
        if known is None or known.incarnation != node.incarnation or node.health not in UP:
            continue
        came = [copy for weights, copy in node.copies.items() if weights not in known.copies]
        evictions = _blamed(evictions, node.name, came, loaders.get(node.name), now_s)
        gone = (copy for weights, copy in known.copies.items() if weights not in node.copies)
        for copy in gone:
            is_told = (node.name, copy.weights) in unloaded
            new.append(_eviction(node, copy, came, loaders.get(node.name), is_told=is_told, now_s=now_s))
    evictions = [*evictions, *new][-EVICTIONS_MAX:]
    left = [name for name in before if name not in snapshot.nodes]
    return (
        Troubles(
            snapshot.nodes,
            tuple(evictions),
            old.pairs if tuple(evictions) == old.evictions else tuple(_pairs(evictions)),
            _spilled(old, changed, left),
            _skewed(old, snapshot, changed, left),
        ),
        tuple(new),
    )


def _eviction(
    node: Node, copy: Copy, came: Iterable[Copy], loader: str | None, *, is_told: bool, now_s: float
) -> Eviction:
    """`is_told`: by this router, to leave."""
    key = copy.keys[0] if copy.keys else ""
    if loader is not None and loader != copy.weights:
        return Eviction(node.name, copy.weights, key, Gone.OURS, now_s, loader, _key_of(node, loader))
    instead = next(iter(came), None)
    if is_told or (instead is None and copy.state is CopyState.ON_DISK):  # it was about to expire
        return Eviction(node.name, copy.weights, key, Gone.OURS if is_told else Gone.EXPIRED, now_s)
    by, by_key = (instead.weights, _key_of(node, instead.weights)) if instead is not None else ("", "")
    return Eviction(node.name, copy.weights, key, Gone.OLLAMA, now_s, by, by_key)


def _blamed(evictions: list[Eviction], name: str, came: list[Copy], loader: str | None, now_s: float) -> list[Eviction]:
    """With what has come now as the reason of what went before it, while it loaded."""
    others = [copy for copy in came if copy.weights != loader]
    if not others:
        return evictions
    by = others[0]
    by_key = by.keys[0] if by.keys else ""

    def is_for_it(one: Eviction) -> bool:
        is_open = one.node == name and one.cause is Gone.OLLAMA and not one.by and one.weights != by.weights
        return is_open and now_s - one.at_s < COME_S

    return [replace(one, by=by.weights, by_key=by_key) if is_for_it(one) else one for one in evictions]


def _key_of(node: Node, weights: str) -> str:
    copy = node.copies.get(weights)
    keys = copy.keys if copy is not None and copy.keys else node.keys_of(weights)
    return keys[0] if keys else ""


# --- who evicts whom


def _pairs(evictions: Iterable[Eviction]) -> Iterator[Pair]:
    by_node: dict[str, list[Eviction]] = {}
    for one in evictions:
        if one.by:
            by_node.setdefault(one.node, []).append(one)
    for name, some in sorted(by_node.items()):
        evicts: dict[str, set[str]] = {}
        for one in some:
            evicts.setdefault(one.by, set()).add(one.weights)
        counts: dict[tuple[str, str], int] = {}
        for one in some:
            if _leads_to(evicts, one.weights, one.by):
                keys = (min(one.key, one.by_key), max(one.key, one.by_key))
                counts[keys] = counts.get(keys, 0) + 1
        yield from (Pair(name, keys, count) for keys, count in sorted(counts.items()))


def _leads_to(evicts: Mapping[str, set[str]], start: str, end: str) -> bool:
    """Whether what was evicted has evicted its evictor in turn, or what did, and so on."""
    seen, ahead = {start}, [start]
    while ahead:
        following = evicts.get(ahead.pop(), set())
        if end in following:
            return True
        ahead += following - seen
        seen |= following
    return False


# --- what is not as it should be


def _spilled(old: Troubles, changed: Iterable[Node], left: Iterable[str]) -> frozenset[Place]:
    changed = list(changed)
    renewed = {*left, *(node.name for node in changed)}
    now = {
        (node.name, copy.weights)
        for node in changed
        if node.health in UP
        for copy in node.copies.values()
        if copy.is_spilled
    }
    return frozenset({place for place in old.spilled if place[0] not in renewed} | now)


def _skewed(
    old: Troubles, snapshot: Snapshot, changed: Iterable[Node], left: Iterable[str]
) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """Only models of disks that changed are looked at."""
    keys: set[str] = set()
    for name in left:
        keys |= old.nodes[name].models.keys()
    for node in changed:
        known = old.nodes.get(node.name)
        if known is None or known.models is not node.models:
            keys |= node.models.keys() | (known.models.keys() if known is not None else set())
    if not keys:
        return old.skewed
    skewed = {key: digests for key, digests in old.skewed.items() if key not in keys}
    for key in keys:
        digests: dict[str, list[str]] = {}
        for node, model in snapshot.stored(key):
            digests.setdefault(model.digest, []).append(node.name)
        if len(digests) > 1:
            skewed[key] = {digest: tuple(sorted(names)) for digest, names in sorted(digests.items())}
    return MappingProxyType(skewed)
