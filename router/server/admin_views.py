"""What the admin API answers, as plain values for JSON. Names of members are those of the code and the metrics."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from router.fleet.breaker import Circuit
from router.fleet.node import Copy, CopyState, Node
from router.fleet.slots import declared_slots
from router.fleet.snapshot import Rows, Snapshot
from router.fleet.tickets import LineView
from router.policy.alias import Aliases
from router.policy.candidates import Circumstances
from router.policy.declared import Standing
from router.policy.explain import Explanation
from router.policy.troubles import Pair
from router.policy.verdicts import lack_text, pair_text, skew_text

View = dict[str, Any]


def nodes_view(at: Circumstances, drained: Iterable[str]) -> list[View]:
    """In order of their names."""
    told, held = frozenset(drained), _held(at)
    nodes = sorted(at.snapshot.nodes.items())
    return [_node(node, at, held.get(name, {}), is_drained=name in told) for name, node in nodes]


def node_view(name: str, at: Circumstances, drained: Collection[str]) -> View:
    """`only_here`: models that no other node has which takes calls; while this one drains they are refused."""
    node = at.snapshot.nodes[name]
    return {
        **_node(node, at, _held(at).get(name, {}), is_drained=name in drained),
        "only_here": [key for key in sorted(node.models) if not _is_elsewhere(at.snapshot.holding(key), name)],
    }


def _is_elsewhere(rows: Rows, name: str) -> bool:
    return any(row.takes_calls and row.node != name for row in rows.by_node.values())


def _held(at: Circumstances) -> dict[str, dict[str, int]]:
    """Leases by node and weights."""
    held: dict[str, dict[str, int]] = {}
    for (name, weights), leases in at.occupancy.items():
        held.setdefault(name, {})[weights] = leases
    return held


def _node(node: Node, at: Circumstances, held: Mapping[str, int], *, is_drained: bool) -> View:
    """`used` counts calls that run there, whatever became of their copies since; a load is told apart."""
    loading = at.loading.get(node.name)
    used = sum(held.values())
    return {
        "name": node.name,
        "url": node.spec.url,
        "zone": node.spec.zone,
        "machine": node.spec.machine,
        "gpus": node.spec.gpus,
        "state": node.health.value,
        "is_drained": is_drained,
        "is_idle": not used and loading is None,
        "version": node.version,
        "circuit": at.circuits.get((node.name, None), Circuit.CLOSED).value,
        "slots": sum(copy.slots + node.spec.backlog for copy in node.copies.values() if copy.state is CopyState.READY),
        "used": used,
        "loading": None if loading is None else _name_of(node, loading),
        "on_disk": len(node.models),
        "copies": [_copy(node, copy, held.get(copy.weights, 0), at) for copy in node.copies.values()],
        "thrash": [_pair(pair) for pair in at.troubles.pairs_of(node.name)],
    }


def _copy(node: Node, copy: Copy, used: int, at: Circumstances) -> View:
    return {
        "models": list(copy.keys),
        "state": copy.state.value,
        "slots": copy.slots + node.spec.backlog,
        "slots_declared": declared_slots(node, copy.weights),
        "slots_learned": node.learnt.get(copy.weights),
        "used": used,
        "num_ctx": copy.num_ctx,
        "size_bytes": copy.size_bytes,
        "vram_bytes": copy.vram_bytes,
        "is_spilled": copy.is_spilled,
        "circuit": at.circuits.get((node.name, copy.weights), Circuit.CLOSED).value,
        "is_declared": (node.name, copy.weights) in at.holds.declared,
        "is_pinned": (node.name, copy.weights) in at.holds.pinned,
    }


def _pair(pair: Pair) -> View:
    return {"models": list(pair.keys), "evictions": pair.evictions, "text": pair_text(pair)}


def _name_of(node: Node, weights: str) -> str:
    return next(iter(node.keys_of(weights)), weights)


def models_view(at: Circumstances, aliases: Aliases) -> list[View]:
    """Every model that a node lists, an alias leads to or the operator declares, in order of their names."""
    standing = {one.declaration.key: one for one in at.standings}
    called: dict[str, list[str]] = {}
    for alias in sorted(aliases.names):
        for target in aliases.candidates(alias):
            called.setdefault(target, []).append(alias)
    return [
        {
            **_model(key, at.snapshot, at.occupancy, at.lines.get(key), called.get(key, [])),
            "declared": _declared(standing[key]) if key in standing else None,
            "skew": _skew(key, at.troubles.skewed.get(key)),
        }
        for key in sorted(at.snapshot.keys | called.keys() | standing.keys())
    ]


def _model(
    key: str,
    snapshot: Snapshot,
    occupancy: Mapping[tuple[str, str], int],
    line: LineView | None,
    aliases: list[str],
) -> View:
    rows = snapshot.holding(key).by_node.values()
    ready = [row for row in rows if row.is_ready]
    return {
        "model": key,
        "aliases": aliases,
        "nodes": sum(row.takes_calls for row in rows),
        "loaded": len(ready),
        "slots": sum(row.slots for row in ready),
        "used": sum(occupancy.get(row.copy, 0) for row in rows),
        "waiting": line.depth if line is not None else 0,
        "oldest_wait_s": line.oldest_wait_s if line is not None else 0.0,
    }


def _declared(standing: Standing) -> View:
    """`preferred` as declared; `lack` and `text` are null and empty where it stands."""
    declaration = standing.declaration
    return {
        "copies": declaration.copies,
        "is_pinned": declaration.is_pinned,
        "preferred": list(declaration.nodes),
        "standing": list(standing.nodes),
        "loading": list(standing.loading),
        "lack": standing.lack.value if standing.lack is not None else None,
        "text": lack_text(standing),
    }


def _skew(key: str, digests: Mapping[str, tuple[str, ...]] | None) -> View | None:
    """Null where all nodes have the same under this name."""
    if digests is None:
        return None
    return {"digests": {digest: list(names) for digest, names in digests.items()}, "text": skew_text(key, digests)}


def lines_view(lines: Iterable[LineView]) -> list[View]:
    """Those in which somebody waits, the longest wait first."""
    waiting = sorted((line for line in lines if line.depth), key=lambda line: -line.oldest_wait_s)
    return [
        {
            "model": line.model,
            "waiting": line.depth,
            "overflowed": line.overflowed,
            "max_waiting": line.max_waiting,
            "oldest_wait_s": line.oldest_wait_s,
            "granted_per_s": line.drain_per_s,
        }
        for line in waiting
    ]


def explanation_view(explanation: Explanation) -> View:
    return asdict(explanation)
