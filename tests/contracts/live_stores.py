"""Real `RedisStore`s of several replicas in one loop, as routers have them: with beats, and waiters for tickets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

from router.control.replicas import beat_for_ever
from router.errors import Outcome, Refusal
from router.fleet.node import CopyState
from router.fleet.tickets import CopyReport, Lease, Ticket
from router.policy.limits import TeamTable
from router.store.answers import Limits
from router.store.redis.address import Address, parse_url
from router.store.redis.link import Link
from router.store.redis.store import RedisStore
from router.store.redis.trips import Observe, unobserved
from router.wiring import SystemClock
from tests.shell.house import until

POOL = "test"
NODE, MODEL = "n1", "m"


class Replica:
    """One router's side: what it holds, and who waits."""

    def __init__(self, name: str, address: Address, observe: Observe = unobserved) -> None:
        limits = Limits(256, {}, TeamTable({}))
        self.store = RedisStore(Link(address, name), name, SystemClock(), Random(0), limits, observe)
        self.held: dict[str, Lease] = {}
        self.waiting: set[str] = set()
        self.refused: dict[str, Refusal] = {}

    async def take(self, ticket_id: str) -> Lease | None:
        """None for a ticket that waits; `held` has it when it was served."""
        self.waiting.add(ticket_id)
        found = await self.store.take(Ticket(ticket_id, (MODEL,)))
        if isinstance(found, Lease) and ticket_id in self.waiting:
            self.granted(found)
        return self.held.get(ticket_id)

    def granted(self, lease: Lease) -> bool:
        if lease.ticket not in self.waiting:
            return False
        self.waiting.remove(lease.ticket)
        self.held[lease.ticket] = lease
        return True

    async def give_back(self, ticket_id: str) -> None:
        await self.store.give_back(self.held.pop(ticket_id), Outcome.OK, 0)

    def refuse(self, ticket_id: str, refusal: Refusal) -> None:
        self.waiting.discard(ticket_id)
        self.refused[ticket_id] = refusal

    async def sees(self, slots: int) -> None:
        """A probe of the copy."""
        report = CopyReport(NODE, 1, "w", (MODEL,), CopyState.READY, slots, 0, self.store.now_s())
        await self.store.set_copy(report)


def address_of(url: str, **more: Any) -> Address:
    """Patient: a busy machine is not a lost server."""
    return replace(Address(parse_url(url), POOL, timeout_s=2.0), **more)


@asynccontextmanager
async def replicas(url: str, names: str = "ab", **more: Any) -> AsyncIterator[list[Replica]]:
    """Each beats, and leaves in order at the end."""
    made = [Replica(name, address_of(url, **more)) for name in names]
    tasks = []
    for one in made:
        await one.store.open(one.granted, one.refuse)
        tasks += [asyncio.create_task(loop) for loop in one.store.loops().values()]
        tasks.append(asyncio.create_task(beat_for_ever(one.store)))
    try:
        yield made
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in made:
            await one.store.close()


@asynccontextmanager
async def running(one: Replica, *loops: str) -> AsyncIterator[None]:
    """Only these tasks of a replica, and no beats."""
    every = one.store.loops()
    tasks = [asyncio.create_task(every[name]) for name in loops]
    for name in every.keys() - set(loops):
        every[name].close()
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def all_back(made: Sequence[Replica], within_s: float = 20.0) -> None:
    await until(lambda: not any(one.store.is_alone for one in made), within_s)


async def all_alone(made: Sequence[Replica], within_s: float = 20.0) -> None:
    await until(lambda: all(one.store.is_alone for one in made), within_s)


async def beats(made: Iterable[Replica], count: int = 2) -> None:
    """So many of every replica have been answered."""
    for _ in range(count):
        for one in made:
            await one.store.beat()
