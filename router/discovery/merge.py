"""Several sources' nodes as one pool. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from router.fleet.node import NodeSpec, Presence

# Each node is probed every two seconds; a selector that takes in a whole cluster is a slip.
NODES_MAX = 5_000


def merged(sources: Iterable[Iterable[NodeSpec]], nodes_max: int = NODES_MAX) -> tuple[NodeSpec, ...]:
    """The earlier source names a node and says what it is; what it leaves open, later ones say.

    The same URL is the same node. Another URL under a name that is taken is named by its address.
    """
    by_url: dict[str, NodeSpec] = {}
    for nodes in sources:
        for node in nodes:
            known = by_url.get(node.url)
            if known is not None:
                by_url[node.url] = _both(known, node)
            elif len(by_url) < nodes_max:
                by_url[node.url] = node
    named: dict[str, NodeSpec] = {}
    for node in by_url.values():
        own = node if node.name not in named else node.named(node.authority)
        named.setdefault(own.name, own)
    return tuple(named.values())


def _both(first: NodeSpec, second: NodeSpec) -> NodeSpec:
    return replace(
        first,
        uid=first.uid or second.uid,
        slots=second.slots if first.slots is None else first.slots,
        vram_bytes=second.vram_bytes if first.vram_bytes is None else first.vram_bytes,
        presence=second.presence if first.presence is Presence.READY else first.presence,
        machine=first.machine or second.machine,
        zone=first.zone or second.zone,
        gpus=second.gpus if first.gpus is None else first.gpus,
    )
