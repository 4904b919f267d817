"""Cloud stubs: models that a node passes on to its owner's account. They take no memory and are never loaded."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from router.fleet.node import Copy, CopyState, Node


def with_cloud(node: Node, slots: int) -> Node:
    """Its stubs as copies that are always ready, with so many slots each; 0 slots: cloud models are switched off.

    What `/api/ps` and `/api/tags` told is applied before: no node lists a stub among what is in memory.
    """
    if not slots:
        return node
    stubs = {model.weights for model in node.models.values() if model.is_cloud}
    # Only a stub has no manifest in memory; one without a key is a stub that the node has lost.
    kept = {weights: copy for weights, copy in node.copies.items() if copy.keys or copy.digest}
    copies = {weights: copy for weights, copy in kept.items() if weights not in stubs}
    for weights in stubs:
        copies[weights] = Copy(weights, CopyState.READY, node.keys_of(weights), slots)
    return node if copies == node.copies else replace(node, copies=MappingProxyType(copies))
