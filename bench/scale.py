"""A large pool at one Redis: what each thing that routers do there costs it, and how much of it one server carries.

Real stores, ten or a hundred of them, in this process on one core; Redis on the other. docs/scale.md goes on from these
figures.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.crowd import TOKENS, Pool, Size, paced, pool_at
from bench.live import say
from bench.measure import cores, quantile
from bench.redis_server import Reading, RedisServer, Spent, spent
from bench.report import Report
from bench.rivals import Stable
from router.control.sharing import EXCHANGE_EVERY_S
from router.errors import Outcome, Refusal
from router.fleet.tickets import BEAT_S, Lease
from router.store.redis.store import RedisStore

LOOKS_PER_S = 1.0  # of the placer that leads; those of the others ask nothing
CALLERS = 320  # of all replicas, in the closed loop
REPLICAS = (10, 100)


@dataclass(frozen=True, slots=True)
class Phase:
    """What Redis spent on so many things of one kind, less what it spends when nothing is asked."""

    count: int
    cpu_us: float
    trips: float

    @property
    def us_each(self) -> float:
        return self.cpu_us / self.count


class Measured:
    """The phases at one number of replicas, into the report."""

    def __init__(self, report: Report, number: int, server: RedisServer, pool: Pool) -> None:
        self._report = report
        self._number = number
        self._server = server
        self._pool = pool
        self._of = f"{len(pool.stores)} replicas"
        self._idle_us_per_s = self._idle_trips_per_s = 0.0

    async def run(self) -> None:
        pool, size = self._pool, self._pool.size
        idle = await self._spent(asyncio.sleep(size.window_s))
        self._idle_us_per_s, self._idle_trips_per_s = idle.cpu_us / idle.seconds, idle.trips / idle.seconds
        beats = len(pool.stores) * idle.seconds / BEAT_S
        self._keep("scale_each", "a beat, with its look at what is leased", idle.cpu_us / beats)
        asked = await self._phase(size.calls_per_s, pool.ask)
        self._keep("scale_each", "a question alone in its run of the script", asked.us_each)
        passes = await self._phase(len(pool.stores), pool.look)
        self._keep("scale_each", "a placer's look at the lines", passes.us_each)
        exchanges = await self._phase(len(pool.stores) / EXCHANGE_EVERY_S, pool.exchange)
        self._keep("scale_each", "an exchange of what nodes show, with nothing new", exchanges.us_each)
        probes_per_s = size.nodes / size.probe_s
        probes = await self._phase(probes_per_s, pool.report)
        self._keep("scale_each", f"a probe's report of a node with {size.copies} copies", probes.us_each)
        pool.delays_us.clear()
        calls = await self._phase(size.calls_per_s, lambda _: pool.call())
        self._keep("scale_each", "a call: take and give back", calls.us_each)
        self._keep("scale_trips", "a call: take and give back", calls.trips / calls.count)
        self._keep("scale_take", "p50", quantile(pool.delays_us, 0.5) / 1000)
        self._keep("scale_take", "p99", quantile(pool.delays_us, 0.99) / 1000)
        await self._together(probes_per_s)
        await self._at_most()

    async def _together(self, probes_per_s: float) -> None:
        pool, size = self._pool, self._pool.size
        works = (
            paced(pool, LOOKS_PER_S, size.window_s, pool.look),
            paced(pool, len(pool.stores) / EXCHANGE_EVERY_S, size.window_s, pool.exchange),
            paced(pool, probes_per_s, size.window_s, pool.report),
            paced(pool, size.calls_per_s, size.window_s, lambda _: pool.call()),
        )
        told = await self._spent(asyncio.gather(*works))
        self._keep("scale_share", "all of it together", told.cpu_us / told.seconds / 1e4)
        self._keep("scale_share", "beats alone", self._idle_us_per_s / 1e4)

    async def _at_most(self) -> None:
        """Closed loop. Where Redis does not use its core, this process uses its own."""
        pool, ended = self._pool, 0
        end_s = time.monotonic() + pool.size.window_s

        async def caller(store: RedisStore) -> None:
            nonlocal ended
            while time.monotonic() < end_s:
                ticket, value = pool.ticket(), None
                with suppress(Refusal):
                    value = await store.take(ticket)
                if isinstance(value, Lease):
                    await store.give_back(value, Outcome.OK, TOKENS)
                else:
                    await store.leave(ticket.id)
                ended += 1

        used_s = time.process_time()
        stores = (pool.stores[number % len(pool.stores)] for number in range(CALLERS))
        told = await self._spent(asyncio.gather(*map(caller, stores)))
        self._keep("scale_most", "calls a second", ended / told.seconds)
        self._keep("scale_most", "of a core: Redis, %", told.cpu_us / told.seconds / 1e4)
        self._keep("scale_most", "of a core: this load, %", (time.process_time() - used_s) / told.seconds * 100)
        self._keep("scale_each", "a call, in batches of a closed loop", told.cpu_us / ended)

    async def _phase(self, per_s: float, do: Callable[[int], Awaitable[None]]) -> Phase:
        """Less the beats, which go on."""
        count = 0

        async def work() -> None:
            nonlocal count
            count = await paced(self._pool, per_s, self._pool.size.window_s, do)

        told = await self._spent(work())
        idle_us, idle_trips = self._idle_us_per_s * told.seconds, self._idle_trips_per_s * told.seconds
        return Phase(count, told.cpu_us - idle_us, told.trips - idle_trips)

    async def _spent(self, work: Awaitable[object]) -> Spent:
        before: Reading = self._server.read()
        await work
        return spent(before, self._server.read())

    def _keep(self, row: str, what: str, value: float) -> None:
        self._report.add(row, f"{what}, {self._of}", self._number, value)


async def scale(report: Report, number: int, size: Size, replicas: tuple[int, ...] = REPLICAS) -> None:
    """Refuses with NotStarted."""
    load_core, redis_core = cores()
    os.sched_setaffinity(0, {load_core})
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        stable = Stable(Path(name), load_core, redis_core)
        try:
            for count in replicas:
                say(f"round {number}: scale: {count} replicas")
                server = await stable.start_redis(f"{count} replicas", redis_core)
                await _at(server, report, number, size, count)
        finally:
            stable.stop()
            os.sched_setaffinity(0, {load_core, redis_core})


async def _at(server: RedisServer, report: Report, number: int, size: Size, replicas: int) -> None:
    empty = server.memory_bytes()
    async with pool_at(server.url, size, replicas, number) as pool:
        known = server.memory_bytes()
        told = f"{size.nodes} nodes, {size.nodes * size.copies} copies, {replicas} replicas"
        report.add("scale_memory", told, number, (known - empty) / 1e6)
        await asyncio.gather(*(pool.take(pool.rng.choice(pool.stores)) for _ in range(size.running)))
        running = f"and {size.running} calls that run, {replicas} replicas"
        report.add("scale_memory", running, number, (server.memory_bytes() - empty) / 1e6)
        await Measured(report, number, server, pool).run()
        if pool.refused or any(store.is_alone for store in pool.stores):
            report.notes.append(f"scale, {replicas} replicas: {pool.refused} refused, {pool.stores[0]!r}")
