"""The stores of many replicas at one Redis, over a large pool whose nodes and calls are made up here."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from random import Random

from router.errors import Outcome, Refusal
from router.fleet.node import CopyState
from router.fleet.tickets import BEAT_S, CopyReport, Lease, Ticket
from router.reload import Preparer
from router.settings import Loaded, Settings
from router.store.redis.store import RedisStore
from router.store.redis.trips import unobserved
from router.wiring import SystemClock
from router.wiring_store import make_store

TICK_S = 0.002
GIVES_BACK_S = 0.02  # mean, after the take that it makes room for: never with it in one batch
TOKENS = 700
HOLDERS_MIN = 2


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
    has_leased: asyncio.Event = field(default_factory=asyncio.Event)
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
        self.has_leased.set()
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
            self.granted(store, value)

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

    async def exchange(self, number: int) -> None:
        """What nodes show, of which nothing is new."""
        await self.stores[number % len(self.stores)].board.exchange(())

    async def served(self) -> None:
        """A store that has just begun hands nothing out for a beat."""
        await self.take(self.stores[0])
        await self.has_leased.wait()
        await self.give_back()
        await self.settled()

    async def settled(self) -> None:
        """All that was queued is done: a question is answered after it."""
        await asyncio.gather(*(store.place_of("nobody") for store in self.stores))


@asynccontextmanager
async def pool_at(url: str, size: Size, replicas: int, seed: int) -> AsyncIterator[Pool]:
    """So many replicas, which beat from here on; all nodes told."""
    pool = Pool(size, Random(seed))
    teams = {f"team-{number}": {"tokens_per_minute": 10**9, "max_waiting": 10**6} for number in range(size.teams)}
    # All replicas are this one process: an answer may be late for reasons that routers have not.
    store = {"url": url, "timeout_s": 5.0}
    prepared = Preparer().prepare(Loaded(Settings(pool=f"scale-{replicas}", store=store, teams=teams)))
    async with AsyncExitStack() as stack:
        for _ in range(replicas):
            one = make_store(stack, prepared, SystemClock(), pool.rng, unobserved)
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
            await pool.served()
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
