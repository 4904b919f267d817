"""Nodes that configuration names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from router.fleet.node import NodeSpec


class StaticDiscovery:
    """Yields its list, and again after each `replace` that changed it. One watcher."""

    source = "static"

    def __init__(self, nodes: tuple[NodeSpec, ...]) -> None:
        self.nodes = nodes
        self._has_changed = asyncio.Event()

    def replace(self, nodes: tuple[NodeSpec, ...]) -> None:
        if nodes != self.nodes:
            self.nodes = nodes
            self._has_changed.set()

    async def watch(self) -> AsyncIterator[tuple[NodeSpec, ...]]:
        while True:
            self._has_changed.clear()
            yield self.nodes
            await self._has_changed.wait()
