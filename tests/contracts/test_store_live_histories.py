"""Random histories of several real `RedisStore`s at one Valkey, each behind a link that may fail.

Replicas take, wait, cancel, give back and leave, while links freeze, lose answers and break, and replicas die without a
word. What must hold is what the contract promises of any order of events: it is asked after each step and at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from router.control.replicas import beat_for_ever
from router.fleet.tickets import BEAT_S, Lease
from router.store.redis import script
from router.store.redis.address import Address
from router.store.redis.link import StoreLost
from tests.contracts.live_stores import NODE, POOL, Replica, address_of, all_back, beats
from tests.fakes import redis_server
from tests.fakes.fault_proxy import FaultProxy, Mood
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.house import until

KEY = script.prefix(POOL)
SLOTS = 3
REPLICAS = 3
# Of a link in these histories: short, so that one which fails is noticed within a history; and at their end long, so
# that a busy machine makes nobody decide alone.
TIMEOUT_S, PATIENT_S = 0.3, 10.0
AT_REST = ("tickets", "held", "waiting", "unclaimed", "queue", "occupancy")

CALLS = ("take", "take", "take", "give_back", "give_back", "leave", "cancelled_take", "beats")
FAULTS = ("hold", "deaf", "cut", "heal", "heal", "crash", "settle")
steps = st.lists(
    st.tuples(st.sampled_from(CALLS + CALLS + FAULTS), st.integers(0, REPLICAS - 1), st.integers(0, 7)),
    min_size=12,
    max_size=30,
)


class Side(Replica):
    """Knows which of its leases the store has given it, or heard of, and holds for it ever since."""

    def __init__(self, name: str, address: Address) -> None:
        super().__init__(name, address)
        self.parted = 0  # how often it began to decide alone
        self.private: set[str] = set()
        part = self.store._session.part

        def parted(lost: StoreLost) -> None:
            self.parted += 1
            self.private |= self.held.keys()
            part(lost)

        self.store._session.part = parted  # type: ignore[method-assign]

    @property
    def shared(self) -> set[str]:
        return self.held.keys() - self.private

    def granted(self, lease: Lease) -> bool:
        if self.store.is_alone:
            self.private.add(lease.ticket)
        return super().granted(lease)


class Live:
    """A replica as a process: its tasks and its link, until it stops or dies."""

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.proxy = FaultProxy(free_port(), port)

    async def start(self) -> None:
        await self.proxy.start()
        self.side = Side(self.name, address_of(f"redis://127.0.0.1:{self.proxy.port}", timeout_s=TIMEOUT_S))
        await self.side.store.open(self.side.granted, self.side.refuse)
        loops = (*self.side.store.loops().values(), beat_for_ever(self.side.store))
        self.tasks = [asyncio.create_task(loop) for loop in loops]
        await self.side.sees(SLOTS)

    async def die(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.proxy.set(Mood.PASS)
        await self.proxy.cut()
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
    """Keeps what sessions say, for the failure's text."""

    def __init__(self, server: Server) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []
        self.began_s = time.monotonic()
        self.server = server
        self.client = server.client()
        self.made = 0
        self.lives: list[Live] = []

    async def run(self, program: list[tuple[str, int, int]]) -> None:
        try:
            self.lives = [await self._life() for _ in range(REPLICAS)]
            await asyncio.sleep(BEAT_S)
            await beats(self._sides())
            for name, who, nth in program:
                self.say(f"{name} {self.lives[who].name} {nth}")
                await getattr(self, name)(self.lives[who], nth)
                self.check()
            self.say("end")
            await self.end()
        except BaseException as error:
            error.add_note("\n".join(self.said))
            raise
        finally:
            for one in self.lives:
                await one.proxy.set(Mood.PASS)
                await one.stop()
            self.client.close()

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())

    def say(self, words: str) -> None:
        stand = " | ".join(
            f"{one.name}{' alone' * one.side.store.is_alone} {sorted(one.side.held)} {sorted(one.side.waiting)}"
            for one in self.lives
        )
        self.said.append(f"{time.monotonic() - self.began_s:6.2f} {words}: {stand}")

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
        """Of leases whose holders were never without the store since they have them: at any time, whatever befalls."""
        assert sum(len(side.shared) for side in self._sides()) <= SLOTS, "more leases than slots"

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
        await life.proxy.set(Mood.STALL)

    async def deaf(self, life: Live, nth: int) -> None:
        await life.proxy.set(Mood.DEAF)

    async def cut(self, life: Live, nth: int) -> None:
        await life.proxy.cut()

    async def heal(self, life: Live, nth: int) -> None:
        await life.proxy.set(Mood.PASS)

    async def crash(self, life: Live, nth: int) -> None:
        """And another one in its place. What the dead one held ends with it, at the node: but the store waits."""
        await life.die()
        self.lives[self.lives.index(life)] = await self._life()

    async def settle(self, life: Live, nth: int) -> None:
        for one in self.lives:
            await one.proxy.set(Mood.PASS)
        await all_back(self._sides())
        await beats(self._sides())

    # the end

    async def heard(self) -> None:
        """The store has all that was said until now. A link that was cut a moment ago is noticed at the next step only,
        which its replica then answers alone.
        """
        sides, parted = self._sides(), -1
        while parted != (parted := sum(side.parted for side in sides)):
            await all_back(sides)
            await beats(sides, 3)

    async def end(self) -> None:
        sides = self._sides()
        for side in sides:
            link = side.store._session._link
            link.address = replace(link.address, timeout_s=PATIENT_S)
        await self.settle(self.lives[0], 0)
        await until(lambda: self.client.hlen(f"{KEY}replicas") == REPLICAS, 15)  # the dead are reaped
        await self.heard()  # what they held is passed on, and claimed
        held = sum(len(side.held) for side in sides)
        assert self.leased() == held, "what the store counts is what is held"
        assert held >= SLOTS or not any(side.waiting for side in sides), "nobody waits while a slot is free"
        for side in sides:
            for ticket in (*side.waiting, *side.held):
                await side.store.leave(ticket)
            side.waiting.clear()
            side.held.clear()
        await self.heard()
        assert not [name for name in AT_REST if self.client.exists(f"{KEY}{name}")]
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
    log.setLevel(logging.INFO)
    try:
        uvloop.run(history.run(program))
    finally:
        log.removeHandler(history)
        log.setLevel(logging.NOTSET)
