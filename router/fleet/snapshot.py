"""The fleet at one moment, indexed by model key. A change replaces one node and the rows of its models, no more.

`apply_*` make a node from what it was and what it reported. What the router loads itself is the store's business.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType

from router.fleet.node import Copy, CopyState, DiskModel, Health, Node
from router.fleet.reports import PsEntry, Shown, TagEntry
from router.fleet.slots import slots_of

UP = frozenset({Health.HEALTHY, Health.DEGRADED, Health.DRAINING})
POINTS_CACHED = 4096  # nodes and weights with a known place on the ring
EXPIRY_INTERVALS = 2  # a copy that expires within so many probe intervals may be gone when a call arrives


@dataclass(frozen=True, slots=True)
class Row:
    """One model key on one node. `copy` is its (node, weights): the key of occupancy and of breakers."""

    node: str
    weights: str
    copy: tuple[str, str]
    state: CopyState
    point: int  # of the node on the ring, see `point_of`
    name: str = ""  # as the node stores it; empty where its tags do not list it
    slots: int = 0  # what the copy takes at once, the node's backlog included; 0 where it is not in memory
    num_ctx: int = 0  # loaded context in tokens, 0 where unknown
    named_ctx: int = 0  # see Copy
    context_max: int = 0  # training context in tokens, 0 where unknown
    weight: float = 1.0
    size_bytes: int = 0  # on disk
    vram_bytes: int = 0
    expires_at_s: float = float("inf")  # Unix time on the node's clock
    is_up: bool = True
    is_draining: bool = False
    is_spilled: bool = False
    is_resident: bool = False  # in memory, though perhaps too near its end to be READY
    is_cloud: bool = False

    @property
    def takes_calls(self) -> bool:
        """A draining node is up and serves what it has, and gets nothing new."""
        return self.is_up and not self.is_draining

    @property
    def is_ready(self) -> bool:
        """A call forwarded now would be served, if a slot is free."""
        return self.takes_calls and self.state is CopyState.READY


@dataclass(frozen=True, slots=True)
class Ring:
    """Rows in order of their nodes' points, so that a place is found by bisection and a slice is a fair sample."""

    points: tuple[int, ...] = ()
    rows: tuple[Row, ...] = ()

    def _index(self, row: Row) -> int:
        """Of the row's node, or where it belongs; equal points are ordered by name."""
        index = bisect_left(self.points, row.point)
        while index < len(self.rows) and self.points[index] == row.point and self.rows[index].node < row.node:
            index += 1
        return index

    def without(self, row: Row) -> Ring:
        index = self._index(row)
        assert self.rows[index].node == row.node, "a row that never was in this ring"
        return Ring(self.points[:index] + self.points[index + 1 :], self.rows[:index] + self.rows[index + 1 :])

    def having(self, row: Row) -> Ring:
        index = self._index(row)
        points = (*self.points[:index], row.point, *self.points[index:])
        return Ring(points, (*self.rows[:index], row, *self.rows[index:]))


@dataclass(frozen=True)
class Rows:
    """Every row of one model key, and the ready ones apart: a decision must not look at the others."""

    by_node: Mapping[str, Row] = field(default_factory=lambda: MappingProxyType({}))
    ready: Ring = field(default_factory=Ring)
    last_resort: Ring = field(default_factory=Ring)  # ready as well, but spilled to the CPU

    @cached_property
    def has_node_up(self) -> bool:
        """One that takes calls: a draining node is none."""
        return any(row.takes_calls for row in self.by_node.values())

    def replacing(self, node: str, row: Row | None) -> Rows:
        """With this row for the node, or none."""
        old = self.by_node.get(node)
        by_node = dict(self.by_node)
        ready, last_resort = self.ready, self.last_resort
        if old is not None:
            del by_node[node]
            if old.is_ready:
                ready, last_resort = (
                    (ready, last_resort.without(old)) if old.is_spilled else (ready.without(old), last_resort)
                )
        if row is not None:
            by_node[node] = row
            if row.is_ready:
                ready, last_resort = (
                    (ready, last_resort.having(row)) if row.is_spilled else (ready.having(row), last_resort)
                )
        return Rows(MappingProxyType(by_node), ready, last_resort)


NOWHERE = Rows()


@dataclass(frozen=True, slots=True)
class Snapshot:
    nodes: Mapping[str, Node] = field(default_factory=lambda: MappingProxyType({}))
    index: Mapping[str, Rows] = field(default_factory=lambda: MappingProxyType({}))  # by model key
    unread: frozenset[str] = frozenset()  # nodes whose models were never read

    def __repr__(self) -> str:
        return f"<Snapshot {len(self.nodes)} nodes | {len(self.index)} models | {len(self.unread)} unread>"

    @property
    def keys(self) -> Collection[str]:
        return self.index.keys()

    @property
    def all_read(self) -> bool:
        """Only then is a name that nobody lists unknown (404); before, it may yet turn up (503)."""
        return not self.unread

    def holding(self, key: str) -> Rows:
        return self.index.get(key, NOWHERE)

    def is_known(self, key: str) -> bool:
        return key in self.index

    def has_node_up(self, key: str) -> bool:
        return self.holding(key).has_node_up

    def stored(self, key: str) -> Iterator[tuple[Node, DiskModel]]:
        """Where a model lies on disk, down nodes included."""
        for name in self.holding(key).by_node:
            node = self.nodes[name]
            if key in node.models:
                yield node, node.models[key]

    def name_of(self, node: str, weights: str) -> str:
        """For people: the first of the models on its disk that stand for these weights; else the weights, shortened."""
        found = self.nodes.get(node)
        keys = found.keys_of(weights) if found is not None else ()
        return keys[0] if keys else weights[:19]

    def copies(self) -> Iterator[tuple[Node, Copy]]:
        """Whatever sits in memory on nodes that are up."""
        for node in self.nodes.values():
            if node.health in UP:
                for copy in node.copies.values():
                    yield node, copy

    def with_node(self, node: Node) -> Snapshot:
        return self._replacing(node.name, node)

    def without_node(self, name: str) -> Snapshot:
        return self._replacing(name, None) if name in self.nodes else self

    def _replacing(self, name: str, node: Node | None) -> Snapshot:
        old = self.nodes.get(name)
        if old == node:
            return self  # as most probes: rows of a hundred models need not be made to see that none has changed
        new = _rows_of(node) if node else {}
        old_keys = _keys_of(old) if old else set()
        index: dict[str, Rows] | None = None
        for key in old_keys | new.keys():
            rows, row = self.holding(key), new.get(key)
            if rows.by_node.get(name) == row:
                continue
            index = dict(self.index) if index is None else index
            index[key] = rows.replacing(name, row)
            if not index[key].by_node:
                del index[key]
        nodes = dict(self.nodes)
        nodes.pop(name, None)
        if node is not None:
            nodes[name] = node
        unread = self.unread - {name} if node is None or node.is_read else self.unread | {name}
        return Snapshot(MappingProxyType(nodes), self.index if index is None else MappingProxyType(index), unread)


def snapshot_of(nodes: Iterable[Node]) -> Snapshot:
    snapshot = Snapshot()
    for node in nodes:
        snapshot = snapshot.with_node(node)
    return snapshot


@lru_cache(maxsize=POINTS_CACHED)
def point_of(text: str) -> int:
    """A place on a ring of 2 ** 64, the same in every replica and every run."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def _keys_of(node: Node) -> set[str]:
    keys = set(node.models)
    for copy in node.copies.values():
        keys.update(copy.keys)
    return keys


def _rows_of(node: Node) -> dict[str, Row]:
    rows = {key: _row(node, model.weights, model) for key, model in node.models.items()}
    for copy in node.copies.values():
        for key in copy.keys:
            if key not in rows:
                rows[key] = _row(node, copy.weights, None)
    return rows


def _row(node: Node, weights: str, model: DiskModel | None) -> Row:
    copy = node.copies.get(weights)
    return Row(
        node=node.name,
        weights=weights,
        copy=(node.name, weights),
        state=copy.state if copy else CopyState.ON_DISK,
        point=point_of(node.name),
        name=model.name if model else "",
        slots=copy.slots + node.spec.backlog if copy else 0,
        num_ctx=copy.num_ctx if copy else 0,
        named_ctx=copy.named_ctx if copy else 0,
        context_max=model.context_max if model else 0,
        weight=node.spec.weight,
        size_bytes=model.size_bytes if model else 0,
        vram_bytes=copy.vram_bytes if copy else 0,
        expires_at_s=copy.expires_at_s if copy else float("inf"),
        is_up=node.health in UP,
        is_draining=node.health is Health.DRAINING,
        is_spilled=copy is not None and copy.is_spilled,
        is_resident=copy is not None and copy.state in (CopyState.READY, CopyState.ON_DISK),
        is_cloud=model is not None and model.is_cloud,
    )


def apply_version(node: Node, version: str) -> Node:
    return node if node.version == version else replace(node, version=version)


def apply_tags(node: Node, entries: Sequence[TagEntry], shown: Mapping[str, Shown]) -> Node:
    """`shown` is by manifest digest, over all nodes; what it lacks stands under its digest until it is shown."""
    models: Mapping[str, DiskModel] = {entry.key: _disk_model(entry, shown) for entry in entries}
    # The same object for the same disk: whoever merges disks need not look at this one again.
    models = node.models if node.models == models else MappingProxyType(models)
    copies: dict[str, Copy] = {}
    for copy in node.copies.values():
        alone = tuple(key for key in copy.keys if key not in node.models)
        moved = _placed(node, copy, models, shown, alone)
        copies.setdefault(moved.weights, moved)
    return replace(node, models=models, copies=MappingProxyType(copies), is_read=True)


def apply_ps(
    node: Node,
    entries: Sequence[PsEntry],
    shown: Mapping[str, Shown],
    *,
    node_now_s: float,
    interval_s: float,
    leased: Collection[str],
) -> Node:
    """`node_now_s`: Unix time by the answer's Date, our own without one. `leased`: the weights with calls running here.

    `expires_at` only advances when a call ends, so a leased copy stays, whatever it says (server/sched.go).
    """
    copies: dict[str, Copy] = {}
    for entry in entries:
        stored = node.models.get(entry.key)
        seen = Copy(
            weights="",
            state=CopyState.READY,
            keys=(),
            slots=0,
            num_ctx=entry.num_ctx,
            size_bytes=entry.size_bytes,
            vram_bytes=entry.vram_bytes,
            expires_at_s=entry.expires_at_s,
            listing=entry.listing,
            digest=entry.digest or (stored.digest if stored else "") or entry.key,
        )
        copy = _placed(node, seen, node.models, shown, (entry.key,))
        known = node.copies.get(copy.weights)
        if known is not None and known.named_ctx == copy.num_ctx:  # else somebody has loaded it anew
            copy = replace(copy, named_ctx=known.named_ctx)
        is_ending = entry.expires_at_s - node_now_s <= EXPIRY_INTERVALS * interval_s
        if is_ending and copy.weights not in leased:
            copy = replace(copy, state=CopyState.ON_DISK)
        copies.setdefault(copy.weights, copy)
    return replace(node, copies=MappingProxyType(copies))


def _placed(
    node: Node, copy: Copy, models: Mapping[str, DiskModel], shown: Mapping[str, Shown], alone: tuple[str, ...]
) -> Copy:
    """The copy under its weights, with every key of this node that stands for them; `alone` may be in no list."""
    weights = _weights(copy.digest, shown) if copy.digest else copy.weights
    sharing = tuple(sorted(key for key, model in models.items() if model.weights == weights))
    keys = sharing + tuple(key for key in alone if key not in models)
    return replace(copy, weights=weights, keys=keys, slots=slots_of(node, keys, models, weights))


def _disk_model(entry: TagEntry, shown: Mapping[str, Shown]) -> DiskModel:
    seen = shown.get(entry.digest)
    return DiskModel(
        key=entry.key,
        name=entry.name,
        digest=entry.digest,
        weights=_weights(entry.digest or entry.key, shown),
        size_bytes=entry.size_bytes,
        modified_at=entry.modified_at,
        family=entry.family,
        is_cloud=entry.is_cloud,
        context_max=(seen.context_max if seen else 0) or entry.context_max,
        capabilities=entry.capabilities,
        listing=entry.listing,
    )


def _weights(digest: str, shown: Mapping[str, Shown]) -> str:
    seen = shown.get(digest)
    return seen.weights if seen and seen.weights else digest
