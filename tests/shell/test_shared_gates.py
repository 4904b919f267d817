"""What one router is told or finds out of a node's fitness holds at all of them: drains, breakers, contexts."""

from __future__ import annotations

from collections.abc import Sequence

from router.fleet.node import Health
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.shell.clients import ask, converse, generate
from tests.shell.house import router_before, until
from tests.shell.scenes import QUICK, asked, load_into, ready_on, slotted
from tests.shell.test_shared_store import all_back, routers


async def loaded_everywhere(pool: SimulatedPool, made: Sequence[Router]) -> None:
    for node in pool.nodes:
        load_into(node, QUICK)
    await until(lambda: all(ready_on(router, QUICK) == len(pool.nodes) for router in made))


async def break_for_all(node: SimulatedNode, here: Router, there: Router) -> None:
    """The node answers nonsense until one router's breaker has opened, and the other knows of it. It goes on so."""
    node.faults.set("malformed", path="/api/generate")
    while not here.keeper.circuits.not_closed():
        await converse(here, QUICK, 16)
    await until(lambda: bool(there.keeper.circuits.not_closed()))


def drained(made: Sequence[Router]) -> list[frozenset[str]]:
    return [router.keeper.drained() for router in made]


async def test_a_drain_told_to_one_router_is_held_and_shown_by_all_and_lifted_by_any() -> None:
    async with routers(2, 2) as (shared, pool, made):
        await loaded_everywhere(pool, made)
        name = pool.nodes[0].name
        await made[0].keeper.drain(name)
        await until(lambda: drained(made) == [{name}, {name}])
        assert made[1].keeper.snapshot.nodes[name].health is Health.DRAINING
        before = asked(pool.nodes[0])
        assert {answer.status for answer in await converse(made[1], QUICK, 8)} == {200}
        assert asked(pool.nodes[0]) == before
        async with router_before(pool.nodes, nodes=slotted(pool, 1), store={"url": shared.url}) as third:
            await until(lambda: third.keeper.drained() == {name})
            await third.keeper.resume(name)
            await until(lambda: drained(made) == [set(), set()])
        assert ready_on(made[0], QUICK) == 2


async def test_a_model_that_only_a_drained_node_has_is_refused_alike_by_all() -> None:
    async with routers(3, 1) as (_, pool, made):
        await loaded_everywhere(pool, made)
        await made[0].keeper.drain(pool.nodes[0].name)
        await until(lambda: all(drained(made)))
        answers = [await generate(router, QUICK, stream=False) for router in made]
        assert {(answer.status, answer.refused) for answer in answers} == {(503, "no_node")}
        unknown = [await generate(router, "nobody-has:1b", stream=False) for router in made]
        assert {(answer.status, answer.refused) for answer in unknown} == {(404, "model_not_found")}


async def test_of_a_drain_and_its_end_that_were_told_apart_from_redis_the_later_word_counts() -> None:
    async with routers(2, 2) as (shared, pool, made):
        name = pool.nodes[0].name
        await made[0].keeper.drain(name)
        await until(lambda: drained(made) == [{name}, {name}])
        shared.kill()
        await until(lambda: all(router.store.is_alone for router in made))
        await made[1].keeper.resume(name)
        assert drained(made) == [{name}, set()]
        shared.start()
        await all_back(made)
        await until(lambda: drained(made) == [set(), set()])


async def test_a_breaker_that_opens_at_one_router_is_open_at_all_and_closes_for_all() -> None:
    async with routers(2, 2) as (_, pool, made):
        await loaded_everywhere(pool, made)
        failing, here, there = pool.nodes[0], *made
        await break_for_all(failing, here, there)
        await failing.clear_faults()
        before = asked(failing)
        while asked(failing) == before:
            await converse(there, QUICK, 16)
        await until(lambda: not any(router.keeper.circuits.not_closed() for router in made))


async def test_a_trial_that_fails_at_one_router_keeps_the_copy_shut_for_all() -> None:
    async with routers(2, 2) as (_, pool, made):
        await loaded_everywhere(pool, made)
        failing, here, there = pool.nodes[0], *made
        await break_for_all(failing, here, there)
        tripped = asked(failing)
        while asked(failing) == tripped:
            await generate(there, QUICK, prompt=f"{tripped}: why?")
            await converse(there, QUICK, 4)
        answers = await converse(here, QUICK, 8)
        assert {answer.status for answer in answers} == {200}
        assert asked(failing) == tripped + 1


async def test_without_redis_a_router_keeps_the_gates_that_another_one_shut() -> None:
    async with routers(2, 2) as (shared, pool, made):
        await loaded_everywhere(pool, made)
        failing, here, there = pool.nodes[0], *made
        await break_for_all(failing, here, there)
        tripped = asked(failing)
        shared.freeze()
        await until(lambda: there.store.is_alone)
        assert {answer.status for answer in await converse(there, QUICK, 4)} == {200}
        assert asked(failing) <= tripped + 1, "half-open at the most"


async def test_native_calls_with_and_without_a_context_share_one_load_whichever_router_they_come_by() -> None:
    async with routers(2, 1) as (_, pool, made):
        call = {"model": QUICK, "prompt": "Why?", "stream": False}
        assert (await ask(made[0], "/api/generate", {**call, "options": {"num_ctx": 16384}})).status == 200
        await until(lambda: all(ready_on(router, QUICK) == 1 for router in made))
        for router in made * 2:
            assert (await ask(router, "/api/generate", call)).status == 200
        assert pool.loads_started == 1
