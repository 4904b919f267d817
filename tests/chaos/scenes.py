"""A load before, in and after a fault, and what must hold whatever the fault is."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random, SystemRandom

from tests.chaos.house import AWAY, BACK, ROUTERS, SLOTS, House, RouterProcess, are_back, house, until
from tests.chaos.load import Load
from tests.chaos.node import CALM, COLD
from tests.fakes import redis_server
from tests.fakes.redis_groups import Watched
from tests.fakes.redis_server import Server
from tests.ports import free_port

SHARE = -(-SLOTS // ROUTERS)
# Of a copy without the store: as if one router had all of its calls when it was cut off, and the others their shares.
BOUND = SLOTS + (ROUTERS - 1) * SHARE
BEAT_S = 1.0
# For what a machine that is busy with something else adds.
SLACK_S = 1.0


@dataclass(frozen=True, slots=True)
class Form:
    """How long the load runs before a fault, how long that lasts, and how long the load runs on."""

    before_s: float
    fault_s: float
    after_s: float
    timeout_s: float


@dataclass(slots=True)
class Scene:
    form: Form
    house: House
    load: Load
    began_s: float = 0.0  # the fault, by the monotonic clock
    ended_s: float = 0.0

    def _first_bytes_p99_s(self, routers: Sequence[RouterProcess], from_s: float, to_s: float) -> float:
        """Of streams that found a free slot: what a plain call waits for is its whole generation."""
        names = {router.name for router in routers}
        chosen = [call for call in self.load.told.done if call.router in names and from_s <= call.began_s < to_s]
        waits = sorted(call.first_s for call in chosen if call.model == CALM and call.is_stream)
        return waits[int(len(waits) * 0.99)] if waits else 0.0

    async def ask_for_what_is_cold(self, routers: Sequence[RouterProcess], each: int = 2) -> None:
        """By each of these routers at once."""
        began_s = time.monotonic()
        calls = [self.load.ask("red", COLD, Random(number), router) for router in routers for number in range(each)]
        await asyncio.gather(*calls)
        self.house.say(f"{len(calls)} calls for a cold model were served within {time.monotonic() - began_s:.2f} s")

    @asynccontextmanager
    async def fault(self, what: str, for_s: float | None = None) -> AsyncIterator[None]:
        """Breaks in the beginning, and waits for as long as faults last."""
        self.house.say(f"{what}: {self.load!r}")
        self.began_s = time.monotonic()
        yield
        lasts_s = self.form.fault_s if for_s is None else for_s
        await asyncio.sleep(self.began_s + lasts_s - time.monotonic())
        self.ended_s = time.monotonic()
        self.house.say(f"the end of: {what}")

    async def all_said(self, changes: Mapping[str, tuple[int, int]]) -> None:
        """So often each router that lives has told that its store is away, and that it is back; not more."""
        took_s = await until(
            lambda: all(self.changes().get(name, wanted) >= wanted for name, wanted in changes.items())
        )
        self.house.say(f"each has told of it {took_s:.2f} s later")
        assert self.changes() == changes

    def changes(self) -> dict[str, tuple[int, int]]:
        return {one.name: (one.count(AWAY), one.count(BACK) - 1) for one in self.house.living}

    def tell_waits(self, routers: Sequence[RouterProcess]) -> float:
        """Answers the p99 of the first bytes that these sent during the fault."""
        before = self._first_bytes_p99_s(routers, 0.0, self.began_s)
        during = self._first_bytes_p99_s(routers, self.began_s, self.ended_s)
        self.house.say(f"first byte where a slot is free, p99: {before:.3f} s before, {during:.3f} s during the fault")
        return during


@asynccontextmanager
async def scene(form: Form, folder: Path, store: Server | Watched | None = None) -> AsyncIterator[Scene]:
    """The load runs before, in and after what the test does; then nothing of it is left anywhere."""
    store = store or Server(redis_server.valkey_binary(), free_port())
    seed = int(os.environ.get("CHAOS_SEED") or SystemRandom().randrange(1_000_000))
    async with house(seed, folder, store, timeout_s=form.timeout_s) as made:
        load = Load(made.routers, seed, made.say)
        load.begin()
        try:
            await asyncio.sleep(form.before_s)
            await _check_peaks(made, SLOTS, "before the fault")
            yield Scene(form, made, load)
            await _settle(made)
            await asyncio.sleep(form.after_s)
            await _check_peaks(made, SLOTS, "after it")
            await load.end()
            made.say(f"the load has ended: {load!r}")
        finally:
            await load.abandon()
        await _check_rest(made)
        assert load.told.lost == []
        print(f"seed {seed}", *made.history, sep="\n")


async def _settle(made: House) -> None:
    """Two beats after every router has its store again nothing is handed out above capacity."""
    took_s = await until(lambda: are_back(made))
    made.say(f"every router has its store {took_s:.2f} s later")
    await asyncio.sleep(2 * BEAT_S)
    await _check_peaks(made, BOUND, "during the fault")


async def _check_peaks(made: House, bound: int, when: str) -> None:
    peaks = await made.peaks(when)
    assert {copy: peak for copy, peak in peaks.items() if peak > bound} == {}, when


async def _check_rest(made: House) -> None:
    async def is_at_rest() -> bool:
        return not (await made.gauges() or made.standing())

    try:
        await until(is_at_rest)
    except TimeoutError:
        raise AssertionError(f"left behind: {await made.gauges()} {made.standing()}") from None
    for node in made.nodes:
        told = await node.witness()
        assert not any(told["running"].values()), (node.name, told)
        assert told["failures"] == []
    assert {router.name: router.complaints() for router in made.routers if router.complaints()} == {}
