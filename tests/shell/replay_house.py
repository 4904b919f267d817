"""A router before replaying nodes that outlives one test, on a loop of its own: hundreds of exchanges share it."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from typing import Any, TypeVar

import uvloop

from router.wiring import Router
from tests.fakes.raw_client import Answer, raw_client
from tests.fakes.replay import ReplayNode
from tests.shell.house import assert_at_rest, router_before, until

T = TypeVar("T")

_REQUESTS = re.compile(rb'ollama_router_requests_total\{.*?outcome="(\w+)",code="(\d+)"\} (\d+)')


class ReplayHouse:
    def __init__(self, runner: asyncio.Runner, router: Router, nodes: Sequence[ReplayNode]) -> None:
        self._runner = runner
        self.router = router
        self.nodes = nodes
        self.node = nodes[0]

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self._runner.run(work)

    def ask(self, raw: bytes, at: Sequence[int] = ()) -> Answer:
        return self.run(self.exchange(raw, at))

    async def exchange(self, raw: bytes, at: Sequence[int] = ()) -> Answer:
        """One request on a connection of its own, sent in pieces; afterwards nothing is held for it."""
        async with raw_client(self.router.port) as client:
            await client.send_cut(raw, at)
            answer = await client.answer()
            while answer.status == 100:
                answer = await client.answer()
        await until(lambda: not self.router.pipeline.live and not self.router.connections.busy)
        assert_at_rest(self.router)
        return answer


async def ended_as(router: Router) -> Counter[tuple[str, int]]:
    """How many calls ended with which outcome and status."""
    page = b"".join([piece async for piece in router.metrics.render()])
    found = Counter[tuple[str, int]]()
    for outcome, status, count in _REQUESTS.findall(page):
        found[outcome.decode(), int(status)] += int(count)
    return found


@contextmanager
def replay_house(*nodes: ReplayNode, **changes: Any) -> Iterator[ReplayHouse]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()

        async def opened() -> Router:
            for node in nodes:
                await stack.enter_async_context(node)
            return await stack.enter_async_context(router_before(nodes, **changes))

        router = runner.run(opened())
        try:
            yield ReplayHouse(runner, router, nodes)
        finally:
            runner.run(stack.aclose())
