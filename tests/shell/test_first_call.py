"""A client, a router, a node: the shortest way through."""

from __future__ import annotations

import aiohttp

from router.simulation.pool import SimulatedPool
from tests.shell.house import assert_at_rest, router_before, until


async def test_a_cold_model_is_loaded_once_and_streamed() -> None:
    async with (
        SimulatedPool(nodes=2, time_scale=0.01) as pool,
        router_before(pool.nodes) as router,
        aiohttp.ClientSession(f"http://127.0.0.1:{router.port}") as client,
    ):
        async with client.post("/api/generate", json={"model": "llama3.2:3b", "prompt": "Why?"}) as answer:
            lines = (await answer.read()).splitlines()
        assert answer.status == 200
        assert answer.headers["x-ollama-router-reason"] == "cold_load"
        assert b'"done":true' in lines[-1]
        assert pool.loads_started == 1
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)
