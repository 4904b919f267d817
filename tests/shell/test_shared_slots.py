"""Routers that share a real Valkey believe in the same slots of a copy, whoever's calls have shown them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from router.control.slots import SlotLearner
from router.fleet.tickets import Lease
from router.policy.concurrency import QUEUED_TIMES, Ran
from router.simulation.pool import SimulatedPool
from router.wiring import Router, SystemClock
from tests.shell.house import until
from tests.shell.scenes import ENDLESS, load_into, ready_on, running
from tests.shell.test_shared_probing import claimed, probers
from tests.shell.test_shared_store import routers
from tests.shell.test_slots import begin, finish, slots_seen


def learner(router: Router) -> SlotLearner:
    return router.reloader._parts.slots


@asynccontextmanager
async def one_copy(slots: int) -> AsyncIterator[tuple[SimulatedPool, Router, Router]]:
    """Two routers before a node that declares so many: the one that probes it, and the other."""
    async with routers(2, 1, slots=slots) as (_, pool, made):
        load_into(pool.nodes[0], ENDLESS)
        await until(lambda: claimed(made, pool))
        await until(lambda: all(ready_on(router, ENDLESS) == 1 for router in made))
        yield pool, *sorted(made, key=lambda router: not probers(router))


async def tell(router: Router, pool: SimulatedPool, *calls: Ran) -> None:
    """That they have ended, in this order."""
    (weights,) = router.keeper.snapshot.nodes[pool.nodes[0].name].copies
    for call in calls:
        await learner(router).ended(Lease("l", "t", 1, ENDLESS, pool.nodes[0].name, weights, 0), call)


def proof(ended_s: float) -> Sequence[Ran]:
    """One that was answered while another that came before it still ran."""
    return Ran(ended_s - 9, ended_s - 8, ended_s - 7, 2), Ran(ended_s - 10, ended_s - 9.5, ended_s, 2)


def suspicions(ended_s: float) -> Sequence[Ran]:
    """Each answered when the one before had ended."""
    ends = [ended_s - 20 * number for number in reversed(range(QUEUED_TIMES))]
    pairs = [(Ran(end - 12, end - 11, end - 2, 1), Ran(end - 11, end - 1.9, end, 2)) for end in ends]
    return [call for pair in pairs for call in pair]


def all_have(pool: SimulatedPool, made: Sequence[Router], slots: int) -> bool:
    """In the picture, and in the mind of whoever decides."""
    return all(slots_seen(router, pool.nodes[0])[0] == slots for router in made) and all(
        known.learnt.slots == slots for router in made for known in learner(router).known.values()
    )


async def test_what_calls_of_one_router_show_counts_for_all_and_for_the_store_and_stays() -> None:
    async with one_copy(2) as (pool, prober, other), AsyncExitStack() as stack:
        made = prober, other
        await tell(other, pool, *suspicions(SystemClock().now_s()))
        for router in made:
            await until(lambda: all_have(pool, made, 1))
            await learner(router).look()
        first, second = await begin(stack, prober), await begin(stack, other)
        await until(lambda: all(len(router.pipeline.live) == 1 for router in made))
        await until(lambda: running(pool) == 1)
        assert all(sum(router.store.occupancy.values()) <= 1 for router in made)
        await finish(pool, first, second)
        await tell(other, pool, *proof(SystemClock().now_s()))
        await until(lambda: all_have(pool, made, 2))
        first, second = await begin(stack, prober), await begin(stack, other)
        await until(lambda: running(pool) == 2)
        await finish(pool, first, second)
        assert all_have(pool, made, 2)


async def test_what_one_router_suspects_does_not_lower_what_another_proves() -> None:
    for turn in (1, -1):
        async with one_copy(2) as (pool, *made):
            proves, suspects = made[::turn]
            await tell(proves, pool, *proof(SystemClock().now_s()))
            await until(lambda: all_proved(pool, made[0]))
            await tell(suspects, pool, *suspicions(SystemClock().now_s()))
            for _ in range(3):
                for router in made:
                    await router.reloader._parts.slots.look()
                    assert all_have(pool, made, 2)


def all_proved(pool: SimulatedPool, prober: Router) -> bool:
    """Whoever decides knows of the proof."""
    known = learner(prober).known.values()
    return any(max(one.learnt.shown_s, one.learnt.told_s) > 0 for one in known)


async def test_whoever_probes_from_now_on_goes_on_with_what_was_decided() -> None:
    async with one_copy(2) as (pool, prober, other):
        await tell(prober, pool, *suspicions(SystemClock().now_s()))
        await until(lambda: all_have(pool, (prober, other), 1))
        learner(other).is_mine = lambda name: True
        await learner(other).look()
        assert all_have(pool, (prober, other), 1)
        assert [known.is_ours for known in learner(other).known.values()] == [True]
