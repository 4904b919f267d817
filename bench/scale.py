"""A large pool at one Redis: what each thing that routers do there costs it, and how much of it one server carries.

Real stores, ten or a hundred of them, in this process on one core; Redis on the other. docs/scale.md goes on from these
figures.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random

from bench.live import say
from bench.measure import cores, quantile
from bench.redis_server import Reading, RedisServer, Spent, spent
from bench.report import Report
from bench.rivals import Stable
from router.errors import Outcome, Refusal
from router.fleet.node import CopyState
from router.fleet.tickets import BEAT_S, CopyReport, Lease, Ticket
from router.reload import Preparer
from router.settings import Loaded, Settings
from router.store.redis.store import RedisStore
from router.wiring import SystemClock
from router.wiring_store import make_store

TICK_S = 0.002
GIVES_BACK_S = 0.02  # mean, after the take that it makes room for: never with it in one batch
CALLERS = 16  # of each replica, in the closed loop
TOKENS = 700
HOLDERS_MIN = 2
REPLICAS = (10, 100)


@dataclass(frozen=True, slots=True)
class Size:
    """Of the pool, and what goes on in it. Shares of models fall as 1/rank, and so do their copies."""

    nodes: int = 1000
    models: int = 200
    copies: int = 2  # on each node
    slots: int = 4
    teams: int = 20
    running: int = 4000
    calls_per_s: int = 1000
    probe_s: float = 2.0
    window_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Phase:
    """What Redis spent on so many things of one kind, less what it spends when nothing is asked."""

    count: int
    cpu_us: float
    trips: float

    @property
    def us_each(self) -> float:
        return self.cpu_us / self.count


@dataclass(slots=True)
class Pool:
    """The nodes of the models, the calls that run, and the replicas' stores."""

    size: Size
    rng: Random
    stores: list[RedisStore] = field(default_factory=list)
    held: list[tuple[RedisStore, Lease]] = field(default_factory=list)
    holders: dict[str, list[str]] = field(default_factory=dict)
    models_of: dict[str, list[str]] = field(default_factory=dict)
    incarnations: dict[str, int] = field(default_factory=dict)
    delays_us: list[float] = field(default_factory=list)
    refused: int = 0
    tickets: int = 0
    _shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        size, rng = self.size, self.rng
        models = [f"model-{number}:latest" for number in range(size.models)]
        shares = [1 / (rank + 1) for rank in range(size.models)]
        self._shares = list(accumulate(shares))
        self.holders = {model: [] for model in models}
        self.models_of = {f"gpu-{number}": [] for number in range(size.nodes)}
        places = [model for model in models for _ in range(HOLDERS_MIN)]
        places += rng.choices(models, shares, k=max(0, size.nodes * size.copies - len(places)))
        rng.shuffle(places)
        for number, model in enumerate(places):
            node = f"gpu-{number % size.nodes}"
            if model not in self.models_of[node]:
                self.models_of[node].append(model)
                self.holders[model].append(node)

    def ticket(self) -> Ticket:
        rng, self.tickets = self.rng, self.tickets + 1
        model = rng.choices(list(self.holders), cum_weights=self._shares)[0]
        holders = self.holders[model]
        preferred = tuple(rng.sample(holders, min(8, len(holders))))
        team = f"team-{rng.randrange(self.size.teams)}"
        return Ticket(f"ticket-{self.tickets}", (model,), preferred=preferred, team=team, estimate_tokens=TOKENS)

    def granted(self, store: RedisStore, lease: Lease) -> bool:
        self.held.append((store, lease))
        return True

    def was_refused(self, ticket_id: str, refusal: Refusal) -> None:
        self.refused += 1

    # what goes on, a thing at a time

    async def take(self, store: RedisStore) -> None:
        began_ns = time.monotonic_ns()
        try:
            value = await store.take(self.ticket())
        except Refusal:
            self.refused += 1
            return
        self.delays_us.append((time.monotonic_ns() - began_ns) / 1000)
        if isinstance(value, Lease):
            self.held.append((store, value))

    async def give_back(self) -> None:
        if self.held:
            at = self.rng.randrange(len(self.held))
            self.held[at], self.held[-1] = self.held[-1], self.held[at]
            store, lease = self.held.pop()
            await store.give_back(lease, Outcome.OK, TOKENS)

    async def call(self) -> None:
        """One comes, and one that ran goes: as many run as before."""
        await self.take(self.rng.choice(self.stores))
        await asyncio.sleep(self.rng.expovariate(1 / GIVES_BACK_S))
        await self.give_back()

    async def report(self, number: int) -> None:
        """What a probe of a node saw, told by one replica."""
        node, store = f"gpu-{number % self.size.nodes}", self.stores[number % len(self.stores)]
        for model in self.models_of[node]:
            await store.set_copy(
                CopyReport(
                    node,
                    self.incarnations[node],
                    f"weights-of-{model}",
                    (model,),
                    CopyState.READY,
                    self.size.slots,
                    4096,
                    store.now_s(),
                    is_probe=True,
                )
            )

    async def ask(self, number: int) -> None:
        """What costs next to nothing beside the run of the script that it takes."""
        await self.stores[number % len(self.stores)].place_of("nobody")

    async def look(self, number: int) -> None:
        """What the placer asks before it decides."""
        store = self.stores[number % len(self.stores)]
        await store.lines()
        await store.lead()

    async def settled(self) -> None:
        """All that was queued is done: a question is answered after it."""
        await asyncio.gather(*(store.place_of("nobody") for store in self.stores))


@asynccontextmanager
async def pool_at(server: RedisServer, size: Size, replicas: int, seed: int) -> AsyncIterator[Pool]:
    """So many replicas, which beat from here on; all nodes told."""
    pool = Pool(size, Random(seed))
    teams = {f"team-{number}": {"tokens_per_minute": 10**9, "max_waiting": 10**6} for number in range(size.teams)}
    # All replicas are this one process: an answer may be late for reasons that routers have not.
    store = {"url": server.url, "timeout_s": 5.0}
    prepared = Preparer().prepare(Loaded(Settings(pool=f"scale-{replicas}", store=store, teams=teams)))
    async with AsyncExitStack() as stack:
        for _ in range(replicas):
            one = make_store(stack, prepared, SystemClock(), pool.rng)
            assert isinstance(one, RedisStore)
            await one.open(partial(pool.granted, one), pool.was_refused)
            pool.stores.append(one)
        works = [work for one in pool.stores for work in one.loops().values()]
        works += [_beats(one, pool.rng.random() * BEAT_S) for one in pool.stores]
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            for number, node in enumerate(pool.models_of):
                pool.incarnations[node] = await pool.stores[number % replicas].incarnate(node, "uid")
                await pool.report(number)
            await pool.settled()
            yield pool
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _beats(store: RedisStore, first_s: float) -> None:
    await asyncio.sleep(first_s)
    while True:
        began_s = time.monotonic()
        await store.beat()
        await asyncio.sleep(max(0.0, BEAT_S - (time.monotonic() - began_s)))


async def paced(pool: Pool, per_s: float, seconds: float, do: Callable[[int], Awaitable[None]]) -> int:
    """Begins so many a second, at random; how many. Returns when the last has ended."""
    running: set[asyncio.Task[None]] = set()
    began_s = time.monotonic()
    due_s, count = 0.0, 0
    while due_s < seconds:
        while due_s <= min(seconds, time.monotonic() - began_s):
            task = asyncio.ensure_future(_of(do(count)))
            running.add(task)
            task.add_done_callback(running.discard)
            count += 1
            due_s += pool.rng.expovariate(per_s)
        await asyncio.sleep(TICK_S)
    await asyncio.gather(*running)
    await pool.settled()
    return count


async def _of(work: Awaitable[None]) -> None:
    await work


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
            paced(pool, len(pool.stores), size.window_s, pool.look),
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
                ticket = pool.ticket()
                value = await store.take(ticket)
                if isinstance(value, Lease):
                    await store.give_back(value, Outcome.OK, TOKENS)
                else:
                    await store.leave(ticket.id)
                ended += 1

        used_s = time.process_time()
        told = await self._spent(asyncio.gather(*(caller(store) for store in pool.stores for _ in range(CALLERS))))
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
                server = await stable.start_redis(f"{count} replicas", redis_core)
                empty = server.memory_bytes()
                async with pool_at(server, size, count, number) as pool:
                    say(f"round {number}: scale: {count} replicas")
                    known = server.memory_bytes()
                    await asyncio.gather(*(pool.take(pool.rng.choice(pool.stores)) for _ in range(size.running)))
                    full = server.memory_bytes()
                    copies = sum(map(len, pool.models_of.values()))
                    told = f"{size.nodes} nodes with {copies} copies, {count} replicas"
                    report.add("scale_memory", told, number, (known - empty) / 1e6)
                    report.add(
                        "scale_memory",
                        f"and {size.running} calls that run, {count} replicas",
                        number,
                        (full - empty) / 1e6,
                    )
                    await Measured(report, number, server, pool).run()
                    if pool.refused or any(store.is_alone for store in pool.stores):
                        report.notes.append(f"scale, {count} replicas: {pool.refused} refused, {pool.stores[0]!r}")
        finally:
            stable.stop()
            os.sched_setaffinity(0, {load_core, redis_core})
