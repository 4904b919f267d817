"""What is true at the moment of a scrape, read from the fleet's picture; nothing here is kept."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from operator import add

from router.fleet.breaker import Circuit
from router.fleet.node import Copy, CopyState, Health, Node
from router.fleet.slots import declared_slots
from router.fleet.snapshot import UP, Rows, Snapshot
from router.policy.declared import Standing
from router.policy.troubles import Troubles
from router.telemetry.names import UNKNOWN, ModelNames
from router.telemetry.series import Sample

Circuits = Mapping[tuple[str, str | None], Circuit]  # by (node, weights); None for the node's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where a scrape looks. `circuits` are those not closed; `waiting` and `queue_limit` are by model key.

    `waiting` are this replica's own: of the pool's lines every replica would tell the whole, and a sum them many times.
    """

    snapshot: Callable[[], Snapshot]
    occupancy: Callable[[], Mapping[tuple[str, str], int]]
    waiting: Callable[[], Mapping[str, int]]
    queue_limit: Callable[[str], int]
    circuits: Callable[[], Circuits] = dict
    discovered: Callable[[], Mapping[str, int]] = dict  # nodes by source
    discovery_troubles: Callable[[], Mapping[str, str]] = dict  # by source beside the list, '' while it answers
    discovery_synced: Callable[[], Mapping[str, float]] = dict  # Unix times by such a source
    standings: Callable[[], Sequence[Standing]] = tuple
    troubles: Callable[[], Troubles] = Troubles
    is_leading: Callable[[], bool] = bool
    is_degraded: Callable[[], bool] = bool
    redis_up: Callable[[], bool | None] = lambda: None  # None: there is none
    log_lines_dropped: Callable[[], int] = int


@dataclass(frozen=True, slots=True)
class Moment:
    """What the gauges of one scrape are read from, so that they agree with one another."""

    snapshot: Snapshot
    occupancy: Mapping[tuple[str, str], int]
    waiting: Mapping[str, int]
    circuits: Circuits
    discovered: Mapping[str, int]
    discovery_troubles: Mapping[str, str]
    discovery_synced: Mapping[str, float]
    standings: Sequence[Standing]
    troubles: Troubles
    is_leading: bool
    is_degraded: bool
    redis_up: bool | None
    in_flight: Mapping[tuple[str, str], int]  # by (route, model key)
    queue_limit: Callable[[str], int]
    names: ModelNames
    version: str
    revision: str


Gauge = Callable[[Moment], Iterator[Sample]]


def _requests_in_flight(at: Moment) -> Iterator[Sample]:
    counts: dict[tuple[str, ...], float] = {}
    for (route, key), count in at.in_flight.items():
        labels = (route, at.names.label(key))
        counts[labels] = counts.get(labels, 0) + count
    yield from counts.items()


def _queue_depth(at: Moment) -> Iterator[Sample]:
    """0 for a model whose line is empty, so that a chart does not end where a line does."""
    depths: dict[tuple[str, ...], float] = {}
    for key, count in at.waiting.items():
        labels = (at.names.label(key),)
        depths[labels] = depths.get(labels, 0) + count
    yield from depths.items()
    yield from (((label,), 0) for label in at.names.labels if (label,) not in depths)


def _queue_limit(at: Moment) -> Iterator[Sample]:
    yield from (((label,), at.queue_limit(label)) for label in at.names.labels)


def _node_up(at: Moment) -> Iterator[Sample]:
    yield from (((name,), node.health in UP) for name, node in at.snapshot.nodes.items())


def _node_state(at: Moment) -> Iterator[Sample]:
    for name, node in at.snapshot.nodes.items():
        yield from (((name, state.value), node.health is state) for state in Health)


def _node_info(at: Moment) -> Iterator[Sample]:
    for name, node in at.snapshot.nodes.items():
        gpus = "" if node.spec.gpus is None else str(node.spec.gpus)
        yield (name, node.version, node.spec.zone, gpus), 1


def _node_slots(at: Moment) -> Iterator[Sample]:
    for name, node in at.snapshot.nodes.items():
        yield (name,), sum(copy.slots + node.spec.backlog for copy in _ready(node))


def _node_slots_used(at: Moment) -> Iterator[Sample]:
    used = dict.fromkeys(at.snapshot.nodes, 0)
    for (name, _), leases in at.occupancy.items():
        if name in used:
            used[name] += leases
    yield from (((name,), leases) for name, leases in used.items())


def _node_model_loaded(at: Moment) -> Iterator[Sample]:
    for name, node in at.snapshot.nodes.items():
        yield from (((name, label), 1) for label in {at.names.label(key) for copy in _ready(node) for key in copy.keys})


def _node_model_vram_bytes(at: Moment) -> Iterator[Sample]:
    return _by_copy(at, lambda copy: copy.vram_bytes)


def _copy_cpu_bytes(at: Moment) -> Iterator[Sample]:
    return _by_copy(at, lambda copy: copy.size_bytes - copy.vram_bytes)


def _node_model_context_tokens(at: Moment) -> Iterator[Sample]:
    """None for a copy of ours that no probe has seen yet: its context is not known."""
    return (sample for sample in _by_copy(at, lambda copy: copy.num_ctx, max) if sample[1])


def _node_model_expiry_timestamp_seconds(at: Moment) -> Iterator[Sample]:
    """Infinity is what a copy that stays has: no series, so that nothing compares with it."""
    return (sample for sample in _by_copy(at, lambda copy: copy.expires_at_s, max) if sample[1] != inf)


def _copy_slots(at: Moment) -> Iterator[Sample]:
    for name, node in at.snapshot.nodes.items():
        found: dict[tuple[str, str], int] = {}
        for copy in _ready(node):
            label = at.names.label(copy.keys[0]) if copy.keys else UNKNOWN
            kinds = (("declared", declared_slots(node, copy.weights)), ("learned", node.learnt.get(copy.weights)))
            for kind, slots in kinds:
                if slots is not None:
                    found[label, kind] = found.get((label, kind), 0) + slots
        yield from (((name, *labels), slots) for labels, slots in found.items())


def _circuit_state(at: Moment) -> Iterator[Sample]:
    found: set[tuple[str, str, str]] = set()
    for (name, weights), circuit in at.circuits.items():
        model = "all" if weights is None else _first_name(at, name, weights)
        found.add((name, model, circuit.value))
    yield from ((labels, 1) for labels in sorted(found))


def _model_nodes(at: Moment) -> Iterator[Sample]:
    """Of every model that is on a disk, while they all get labels; else only of those in use."""
    gives_all = len(at.snapshot.index) <= at.names.models_max
    for key, rows in at.snapshot.index.items():
        if at.names.is_admitted(key) or (gives_all and at.names.label(key) == key):
            yield from _nodes_having(key, rows)
    yield from (
        ((label, state), 0)
        for label in at.names.labels
        if label not in at.snapshot.index
        for state in ("available", "loaded")
    )


def _nodes_having(key: str, rows: Rows) -> Iterator[Sample]:
    yield (key, "available"), sum(row.takes_calls for row in rows.by_node.values())
    yield (key, "loaded"), sum(row.is_ready for row in rows.by_node.values())


def _model_digest_skew(at: Moment) -> Iterator[Sample]:
    for key in at.snapshot.index:
        digests = len({model.digest for _, model in at.snapshot.stored(key)})
        if digests > 1 and at.names.label(key) == key:
            yield (key,), digests


def _model_copies(at: Moment) -> Iterator[Sample]:
    for standing in at.standings:
        label = at.names.label(standing.declaration.key)
        yield (label, "declared"), standing.declaration.copies
        yield (label, "standing"), min(len(standing.nodes), standing.declaration.copies)


def _thrash_pairs(at: Moment) -> Iterator[Sample]:
    counts = dict.fromkeys(at.snapshot.nodes, 0)
    for pair in at.troubles.pairs:
        if pair.node in counts:
            counts[pair.node] += 1
    yield from (((name,), count) for name, count in counts.items())


def _discovery_nodes(at: Moment) -> Iterator[Sample]:
    yield from (((source,), count) for source, count in at.discovered.items())


def _discovery_up(at: Moment) -> Iterator[Sample]:
    yield from (((source,), not trouble) for source, trouble in at.discovery_troubles.items())


def _discovery_last_sync_timestamp_seconds(at: Moment) -> Iterator[Sample]:
    yield from (((source,), at_s) for source, at_s in at.discovery_synced.items())


def _build_info(at: Moment) -> Iterator[Sample]:
    yield (at.version, at.revision, platform.python_version()), 1


def _leader(at: Moment) -> Iterator[Sample]:
    yield (), at.is_leading


def _degraded_mode(at: Moment) -> Iterator[Sample]:
    yield (), at.is_degraded


def _redis_up(at: Moment) -> Iterator[Sample]:
    if at.redis_up is not None:
        yield (), at.redis_up


GAUGES: Mapping[str, Gauge] = {
    "requests_in_flight": _requests_in_flight,
    "queue_depth": _queue_depth,
    "queue_limit": _queue_limit,
    "node_up": _node_up,
    "node_state": _node_state,
    "node_info": _node_info,
    "node_slots": _node_slots,
    "node_slots_used": _node_slots_used,
    "node_model_loaded": _node_model_loaded,
    "node_model_vram_bytes": _node_model_vram_bytes,
    "node_model_context_tokens": _node_model_context_tokens,
    "node_model_expiry_timestamp_seconds": _node_model_expiry_timestamp_seconds,
    "copy_cpu_bytes": _copy_cpu_bytes,
    "copy_slots": _copy_slots,
    "circuit_state": _circuit_state,
    "model_nodes": _model_nodes,
    "model_digest_skew": _model_digest_skew,
    "model_copies": _model_copies,
    "thrash_pairs": _thrash_pairs,
    "discovery_nodes": _discovery_nodes,
    "discovery_up": _discovery_up,
    "discovery_last_sync_timestamp_seconds": _discovery_last_sync_timestamp_seconds,
    "build_info": _build_info,
    "leader": _leader,
    "degraded_mode": _degraded_mode,
    "redis_up": _redis_up,
}


def _ready(node: Node) -> Iterator[Copy]:
    return (copy for copy in node.copies.values() if copy.state is CopyState.READY)


def _by_copy(
    at: Moment, measure: Callable[[Copy], float], together: Callable[[float, float], float] = add
) -> Iterator[Sample]:
    """`together`: what copies are that share a label, as those of unknown or too many models do."""
    for name, node in at.snapshot.nodes.items():
        found: dict[str, float] = {}
        for copy in _ready(node):
            label = at.names.label(copy.keys[0]) if copy.keys else UNKNOWN
            found[label] = together(found[label], measure(copy)) if label in found else measure(copy)
        yield from (((name, label), value) for label, value in found.items())


def _first_name(at: Moment, name: str, weights: str) -> str:
    node = at.snapshot.nodes.get(name)
    models = node.models.values() if node is not None else ()
    return next((at.names.label(model.key) for model in models if model.weights == weights), UNKNOWN)
