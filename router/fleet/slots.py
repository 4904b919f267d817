"""How many calls a copy serves at once: what calls have shown, what is declared, and Ollama's own rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from router.fleet.node import Copy, CopyState, DiskModel, Node

# server/sched.go: NUM_PARALLEL is 1 for these families, and for models that complete nothing, whatever is declared.
SINGLE_SLOT_FAMILIES = frozenset(
    {"mllama", "qwen3vl", "qwen3vlmoe", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe"}
    | {"nemotron_h", "nemotron_h_moe", "nemotron_h_omni"}
)


def slots_of(node: Node, keys: tuple[str, ...], models: Mapping[str, DiskModel], weights: str) -> int:
    """Of a copy: what calls have shown, else what is declared, else Ollama's own default."""
    learnt = node.learnt.get(weights)
    return learnt if learnt is not None else _declared(node, keys, models) or 1


def declared_slots(node: Node, weights: str) -> int | None:
    """None where nothing is declared; 1 where Ollama serves one call at a time whatever is."""
    return _declared(node, node.keys_of(weights), node.models)


def _declared(node: Node, keys: tuple[str, ...], models: Mapping[str, DiskModel]) -> int | None:
    """What is declared for a model by name counts; a number for the whole node yields to Ollama's rules."""
    is_named = any(key in node.spec.model_slots for key in keys)
    if not is_named and any(_is_single(models[key]) for key in keys if key in models):
        return 1
    return node.spec.slots_of(keys) if is_named or node.spec.slots is not None else None


def excess(nodes: Mapping[str, Node], occupancy: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Leases above what ready copies serve, by node. `occupancy` is by (node, weights)."""
    found: dict[str, int] = {}
    for (name, weights), leases in occupancy.items():
        node = nodes.get(name)
        copy = node.copies.get(weights) if node is not None else None
        if node is not None and copy is not None and copy.state is CopyState.READY:
            more = leases - copy.slots - node.spec.backlog
            if more > 0:
                found[name] = found.get(name, 0) + more
    return found


def with_learnt(node: Node, weights: str, slots: int) -> Node:
    copies = dict(node.copies)
    if weights in copies:
        copies[weights] = replace(copies[weights], slots=slots)
    learnt = MappingProxyType({**node.learnt, weights: slots})
    return replace(node, learnt=learnt, copies=MappingProxyType(copies))


def unseen_copy(node: Node, weights: str) -> Copy:
    """That was just loaded and that `/api/ps` has not shown: nobody knows its size yet."""
    keys = node.keys_of(weights)
    return Copy(weights, CopyState.READY, keys, slots_of(node, keys, node.models, weights))


def _is_single(model: DiskModel) -> bool:
    completes = not model.capabilities or "completion" in model.capabilities
    return not completes or model.family in SINGLE_SLOT_FAMILIES
