"""Nodes for tests: `node("a", disk="llama3 gemma", ready="llama3")`. Weights are `w:` and the key, unless told."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from hypothesis import strategies as st

from router.fleet.node import Copy, CopyState, DiskModel, Health, Node, NodeSpec
from router.fleet.snapshot import Snapshot, snapshot_of


def node(
    name: str,
    *,
    disk: str = "",
    ready: str = "",
    loading: str = "",
    expiring: str = "",
    spilled: str = "",
    cloud: str = "",
    slots: int = 1,
    num_ctx: int = 4096,
    context_max: int = 32768,
    size_bytes: int = 1000,
    vram_bytes: int | None = None,
    weight: float = 1.0,
    backlog: int = 0,
    health: Health = Health.HEALTHY,
    is_read: bool = True,
    weights: Mapping[str, str] | None = None,
    is_named: bool = False,
) -> Node:
    """`ready`, `loading`, `expiring` and `spilled` keys are in memory, and in no list unless `disk` names them too."""
    weights = weights or {}
    models = {
        key: DiskModel(
            key=key,
            name=key.upper(),
            digest=f"d:{key}",
            weights=weights.get(key, f"w:{key}"),
            size_bytes=size_bytes,
            context_max=context_max,
            is_cloud=key in cloud.split(),
        )
        for key in f"{disk} {cloud}".split()
    }
    copies: dict[str, Copy] = {}
    states = {ready: CopyState.READY, loading: CopyState.LOADING, expiring: CopyState.ON_DISK, spilled: CopyState.READY}
    for keys, state in states.items():
        for key in keys.split():
            own = weights.get(key, f"w:{key}")
            sharing = tuple(sorted({key} | {model.key for model in models.values() if model.weights == own}))
            held = size_bytes // 2 if key in spilled.split() else size_bytes
            copies[own] = Copy(
                own,
                state,
                sharing,
                slots,
                num_ctx,
                size_bytes,
                held,
                digest=f"d:{key}",
                named_ctx=num_ctx if is_named else 0,
            )
    spec = NodeSpec(name, f"{name}.example", 11434, slots=slots, backlog=backlog, vram_bytes=vram_bytes, weight=weight)
    return Node(spec, health=health, models=MappingProxyType(models), copies=MappingProxyType(copies), is_read=is_read)


def fleet(*nodes: Node) -> Snapshot:
    return snapshot_of(nodes)


KEYS = "abcd"


@st.composite
def nodes(draw: st.DrawFn, names: str = "pqrst") -> Node:
    """Any node of a small fleet."""
    keys = st.sets(st.sampled_from(KEYS)).map(lambda some: " ".join(sorted(some)))
    return node(
        draw(st.sampled_from(names)),
        disk=draw(keys),
        ready=draw(keys),
        slots=draw(st.integers(1, 4)),
        num_ctx=draw(st.sampled_from([2048, 4096])),
        weight=draw(st.sampled_from([1.0, 2.0])),
        spilled=draw(st.sampled_from(["", "e"])),
        health=draw(st.sampled_from(list(Health))),
        is_read=draw(st.booleans()),
        weights=draw(st.sampled_from([{}, {"a": "w", "b": "w"}])),
    )
