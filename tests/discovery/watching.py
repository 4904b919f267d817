"""A source that is watched, and what it said last; time passes when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from router.fleet.node import NodeSpec
from router.seams import Discovery


class Pauses:
    """Instead of a clock: whoever waits is let go by `pass_all`, or at once while `is_open`."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self.is_open = True
        self._waiting: list[asyncio.Event] = []

    async def __call__(self, seconds: float) -> None:
        self.asked_s.append(seconds)
        if self.is_open:
            await asyncio.sleep(0)
            return
        event = asyncio.Event()
        self._waiting.append(event)
        await event.wait()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def pass_all(self) -> None:
        waiting, self._waiting = self._waiting, []
        for event in waiting:
            event.set()


class Watched:
    def __init__(self, discovery: Discovery) -> None:
        self.discovery = discovery
        self.said: list[tuple[NodeSpec, ...]] = []

    @property
    def names(self) -> list[str]:
        return [node.name for node in self.said[-1]] if self.said else []

    async def run(self) -> None:
        async for nodes in self.discovery.watch():
            self.said.append(nodes)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - facts of several tasks, none of which shall know its tests
                await asyncio.sleep(0.001)


@asynccontextmanager
async def watched(discovery: Discovery) -> AsyncIterator[Watched]:
    found = Watched(discovery)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
