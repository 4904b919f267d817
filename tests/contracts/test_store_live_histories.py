"""Random histories of several real `RedisStore`s at one Valkey, each behind a link that may fail.

Replicas take, wait, cancel, give back and leave, while links freeze, lose answers and break, and replicas die without a
word. What must hold is what the contract promises of any order of events: it is asked after each step and at the end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from router.control.replicas import beat_for_ever
from router.fleet.tickets import BEAT_S
from router.store.redis import script
from tests.contracts.faults import FaultProxy, Way
from tests.contracts.live_stores import NODE, POOL, Replica, address_of, all_back, beats
from tests.fakes import redis_server
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.house import until

KEY = script.prefix(POOL)
SLOTS = 3
REPLICAS = 3
# Of a link in these histories: short, so that one which fails is noticed within a history.
TIMEOUT_S = 0.3
AT_REST = ("tickets", "held", "waiting", "unclaimed", "queue", "occupancy")

CALLS = ("take", "take", "take", "give_back", "give_back", "leave", "cancelled_take", "beats")
FAULTS = ("hold", "deaf", "cut", "heal", "heal", "crash", "settle")
steps = st.lists(
    st.tuples(st.sampled_from(CALLS + CALLS + FAULTS), st.integers(0, REPLICAS - 1), st.integers(0, 7)),
    min_size=12,
    max_size=30,
)


class Live:
    """A replica as a process: its tasks and its link, until it stops or dies."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.proxy = FaultProxy(port)

    async def start(self) -> None:
        await self.proxy.start()
        self.side = Replica(self.name, address_of(f"redis://127.0.0.1:{self.proxy.port}", timeout_s=TIMEOUT_S))
        await self.side.store.open(self.side.granted, self.side.refuse)
        loops = (*self.side.store.loops().values(), beat_for_ever(self.side.store))
        self.tasks = [asyncio.create_task(loop) for loop in loops]
        await self.side.sees(SLOTS)

    async def die(self) -> None:
        for task in self.tasks:
            task.cancel()
        self.proxy.set(Way.OPEN)
        self.proxy.cut()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.side.store._session._link.close()
        await self.proxy.stop()

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.side.store.close()
        await self.proxy.stop()


class History(logging.Handler):
    """Hears of whoever decides alone, also since the machine is busy: such a one has its share of the slots."""

    def __init__(self, server: Server) -> None:
        super().__init__(logging.WARNING)
        self.server = server
        self.client = server.client()
        self.made = 0
        self.is_quiet = True  # no fault since all were at rest with no more leases than slots
        self.lives: list[Live] = []

    async def run(self, program: list[tuple[str, int, int]]) -> None:
        try:
            self.lives = [await self._life() for _ in range(REPLICAS)]
            await asyncio.sleep(BEAT_S)
            await beats(self._sides())
            for name, who, nth in program:
                await getattr(self, name)(self.lives[who], nth)
                self.check()
            await self.end()
        finally:
            for one in self.lives:
                one.proxy.set(Way.OPEN)
                await one.stop()
            self.client.close()

    def emit(self, record: logging.LogRecord) -> None:
        self.is_quiet = False

    def _sides(self) -> list[Replica]:
        return [one.side for one in self.lives]

    def _number(self) -> int:
        self.made += 1
        return self.made

    async def _life(self) -> Live:
        life = Live(f"r{self._number()}", self.server.port)
        await life.start()
        return life

    def check(self) -> None:
        if self.is_quiet:
            assert sum(len(side.held) for side in self._sides()) <= SLOTS, "more leases than slots"

    def leased(self) -> int:
        return int(self.client.hget(f"{KEY}occupancy", f"{NODE}\0w") or 0)

    # what callers do

    async def take(self, life: Live, nth: int) -> None:
        await life.side.take(f"t{self._number()}")

    async def give_back(self, life: Live, nth: int) -> None:
        held = sorted(life.side.held)
        if held:
            await life.side.give_back(held[nth % len(held)])

    async def leave(self, life: Live, nth: int) -> None:
        waiting = sorted(life.side.waiting)
        if waiting:
            ticket = waiting[nth % len(waiting)]
            life.side.waiting.discard(ticket)
            await life.side.store.leave(ticket)

    async def cancelled_take(self, life: Live, nth: int) -> None:
        """The caller goes at some point of it, and leaves, as every caller does."""
        ticket = f"t{self._number()}"
        taking = asyncio.create_task(life.side.take(ticket))
        for _ in range(nth):
            await asyncio.sleep(0)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        life.side.waiting.discard(ticket)
        life.side.held.pop(ticket, None)
        await life.side.store.leave(ticket)

    async def beats(self, life: Live, nth: int) -> None:
        await beats([life.side], 1)

    # what befalls them

    async def hold(self, life: Live, nth: int) -> None:
        self.is_quiet = False
        life.proxy.set(Way.HELD)

    async def deaf(self, life: Live, nth: int) -> None:
        self.is_quiet = False
        life.proxy.set(Way.DEAF)

    async def cut(self, life: Live, nth: int) -> None:
        self.is_quiet = False
        life.proxy.cut()

    async def heal(self, life: Live, nth: int) -> None:
        life.proxy.set(Way.OPEN)

    async def crash(self, life: Live, nth: int) -> None:
        """And another one in its place. What the dead one held ends with it, at the node: but the store waits."""
        self.is_quiet = False
        await life.die()
        self.lives[self.lives.index(life)] = await self._life()

    async def settle(self, life: Live, nth: int) -> None:
        for one in self.lives:
            one.proxy.set(Way.OPEN)
        await all_back(self._sides())
        await beats(self._sides())
        self.is_quiet = sum(len(side.held) for side in self._sides()) <= SLOTS and self.leased() <= SLOTS

    # the end

    async def end(self) -> None:
        await self.settle(self.lives[0], 0)
        sides = self._sides()
        await until(lambda: self.client.hlen(f"{KEY}replicas") == REPLICAS, 15)  # the dead are reaped
        await until(lambda: self.leased() == sum(len(side.held) for side in sides), 15)
        await until(lambda: self.leased() >= SLOTS or not any(side.waiting for side in sides), 15)
        for side in sides:
            for ticket in tuple(side.waiting):
                side.waiting.discard(ticket)
                await side.store.leave(ticket)
            for ticket in tuple(side.held):
                await side.give_back(ticket)
        # Also by whoever decides alone once more, since this machine was too slow: it says so when it is back.
        await until(lambda: not any(self.client.exists(f"{KEY}{name}") for name in AT_REST), 15)
        await all_back(sides)
        await beats(sides)
        assert not any(any(side.store.occupancy.values()) for side in sides)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server(redis_server.valkey_binary(), free_port()).start()
    yield started
    started.stop()


@settings(
    max_examples=6,
    derandomize=True,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # time is real: to shrink a history would take minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(program=steps)
def test_whatever_befalls_links_and_replicas_nothing_is_leased_twice_or_for_ever(
    server: Server, program: list[tuple[str, int, int]]
) -> None:
    with server.client() as client:
        client.flushall()
    history, log = History(server), logging.getLogger("router.store.redis.session")
    log.addHandler(history)
    try:
        uvloop.run(history.run(program))
    finally:
        log.removeHandler(history)
