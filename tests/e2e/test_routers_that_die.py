"""Router processes that share a Valkey: what a killed one held is free for the others, and a paused one comes back."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from router.simulation.node import SimulatedNode
from tests.fakes import redis_server
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.clients import Client, Scrape, get
from tests.shell.scenes import ENDLESS, QUICK, pool_of

ROOT = Path(__file__).parents[2]
WITHIN_S = 30.0


@dataclass(frozen=True, slots=True)
class RouterProcess:
    """As a raw client needs it: `port` is where calls go."""

    port: int
    metrics_port: int
    process: asyncio.subprocess.Process

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def degraded(self) -> float:
        page = await get(self.metrics_port, "/metrics")
        return Scrape(page.body.decode()).value("degraded_mode")


@asynccontextmanager
async def router_process(node: SimulatedNode, shared: Server) -> AsyncIterator[RouterProcess]:
    port, metrics_port = free_port(), free_port()
    more = ["--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics_port}", "--log-level", "error"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "serve", "--store", shared.url, *more),
        *("--admin-listen", f"127.0.0.1:{free_port()}"),
        cwd=ROOT,
        env={
            **os.environ,
            "OLLAMA_ROUTER_STORE__TIMEOUT_S": "2",
            "OLLAMA_ROUTER_NODES": json.dumps([{"url": node.url, "slots": 1}]),
        },
    )
    made = RouterProcess(port, metrics_port, process)
    try:
        await until_status(metrics_port, "/readyz")
        yield made
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def until_status(port: int, path: str) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                if (await get(port, path)).status == 200:
                    return
            except (ConnectionError, AssertionError):
                pass
            await asyncio.sleep(0.05)


@asynccontextmanager
async def two_routers() -> AsyncIterator[tuple[RouterProcess, RouterProcess]]:
    """Before one node of which they use one slot. It has two, so that only the store makes anybody wait."""
    async with AsyncExitStack() as stack:
        shared = Server(redis_server.valkey_binary(), free_port()).start()
        stack.callback(shared.stop)
        pool = await stack.enter_async_context(pool_of(1, slots=2))
        first = await stack.enter_async_context(router_process(pool.nodes[0], shared))
        yield first, await stack.enter_async_context(router_process(pool.nodes[0], shared))


def ask(client: Client, model: str = ENDLESS) -> None:
    client.send("/api/generate", {"model": model, "prompt": "Why?"})


@pytest.mark.timeout(120)
async def test_the_slot_of_a_killed_router_goes_to_a_call_that_waits_at_another() -> None:
    async with two_routers() as (first, second), Client(first.port) as held, Client(second.port) as waits:
        ask(held)
        await held.first(b"}\n")
        ask(waits)
        first.send(signal.SIGKILL)
        await waits.first(b"}\n")


@pytest.mark.timeout(120)
async def test_a_router_that_was_paused_past_its_reaping_serves_again_when_it_goes_on() -> None:
    async with two_routers() as (first, second):
        async with Client(first.port) as held, Client(second.port) as waits:
            ask(held)
            await held.first(b"}\n")
            ask(waits)
            first.send(signal.SIGSTOP)
            await waits.first(b"}\n")
            first.send(signal.SIGCONT)
        async with Client(first.port) as client:
            ask(client, QUICK)
            assert (await client.answer()).status == 200
        assert await first.degraded() == 0.0
