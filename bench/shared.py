"""Rows of the store in Redis: routers and their Redis counted together, on one core, beside the router without it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from bench import load
from bench.live import Group, Measure, Rows
from bench.measure import quantile
from bench.redis_server import Reading, RedisServer, Spent, spent
from bench.report import ROUTER
from bench.rivals import Contender

REDIS, REDIS_X2 = "router redis", "router redis x2"
DEGRADED = b"\nollama_router_degraded_mode 1"


class Window:
    """A CPU clock for `load.Run.window` that looks at Redis, too: at both ends, outside of what CPU is counted in."""

    def __init__(self, contender: Contender, server: RedisServer) -> None:
        self._contender = contender
        self._server = server
        self._readings: list[Reading] = []

    def __call__(self) -> int:
        if not self._readings:
            self._readings.append(self._server.read())
            return self._contender.cpu()
        used_ns = self._contender.cpu()
        self._readings.append(self._server.read())
        return used_ns

    @property
    def spent(self) -> Spent:
        return spent(*self._readings)


class SharedRows(Rows):
    def measures(self) -> Mapping[str, tuple[Measure, Sequence[Contender]]]:
        routers = self.named(ROUTER, REDIS, REDIS_X2)
        return {
            "redis": (self._plain, self.field),
            "redis_one": (self._one, routers),
            "redis_latency": (self._latency, [self.direct, *self.named(ROUTER, REDIS)]),
        }

    async def _plain(self, contender: Contender, number: int) -> None:
        await self._closed("redis", contender, number, load.CONNECTIONS)

    async def _one(self, contender: Contender, number: int) -> None:
        await self._closed("redis_one", contender, number, len(contender.ports))

    async def _closed(self, row: str, contender: Contender, number: int, connections: int) -> None:
        seconds, warm_s, server = self.sizes.window_s, self.sizes.warm_s, contender.redis
        if server is None:
            run = await load.plain(contender.ports, seconds, warm_s, contender.cpu, connections=connections)
            self.keep(row, contender, number, run, run.cpu_us_each)
            return
        idle_per_s = await self._idle_trips_per_s(server)
        window = Window(contender, server)
        run = await load.plain(contender.ports, seconds, warm_s, window, connections=connections)
        await self._must_have_shared(contender)
        told, count = window.spent, run.count or 1
        self.keep(row, contender, number, run, run.cpu_us_each)
        self.keep(f"{row}_server", contender, number, run, told.cpu_us / count)
        self.keep(f"{row}_trips", contender, number, run, (told.trips - idle_per_s * told.seconds) / count)

    async def _idle_trips_per_s(self, server: RedisServer) -> float:
        """Heartbeats, the placer's passes, probes, and reads of streams that end empty."""
        before = server.read()
        await asyncio.sleep(self.sizes.window_s)
        told = spent(before, server.read())
        return told.trips / told.seconds

    async def _latency(self, contender: Contender, number: int) -> None:
        """At a third of the core as the router and its Redis use it, for all the same rate."""
        shared_us = self.report.rounds("redis", REDIS).get(number)
        if not shared_us:
            self.note("redis_latency needs the row redis, which tells the rate")
            return
        seconds, warm_s = self.sizes.window_s, self.sizes.warm_s
        run = await load.paced(contender.ports, 1e6 / shared_us / 3, seconds, warm_s, contender.cpu, seed=number)
        await self._must_have_shared(contender)
        self.keep("redis_p50", contender, number, run, quantile(run.delays_us, 0.5) / 1000)
        self.keep("redis_p99", contender, number, run, quantile(run.delays_us, 0.99) / 1000)

    async def _must_have_shared(self, contender: Contender) -> None:
        """A router that decides alone is cheap, and not what is measured."""
        for port in contender.metrics_ports if contender.redis is not None else ():
            page = await load.exchange(port, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            if DEGRADED in page:
                self.note(f"{contender.name} decided alone: its figures are not those of Redis")


SHARED = Group(("redis", "redis_one", "redis_latency"), ("nginx", "vllm-router", ROUTER, REDIS, REDIS_X2), SharedRows)
