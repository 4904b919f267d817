"""Nodes that configuration names."""

from __future__ import annotations

from collections.abc import AsyncIterator

from router.fleet.node import NodeSpec


class StaticDiscovery:
    """Yields its list once and then nothing more: a list does not change by itself."""

    source = "static"

    def __init__(self, nodes: tuple[NodeSpec, ...]) -> None:
        self._nodes = nodes

    async def watch(self) -> AsyncIterator[tuple[NodeSpec, ...]]:
        yield self._nodes
