"""Slots learnt over HTTP: where none are declared, and where a node has fewer than it says."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from router.fleet.tickets import Lease
from router.policy import concurrency
from router.policy.concurrency import QUEUED_TIMES, Ran
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.shell.clients import Client, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import ENDLESS, QUICK, let_run, load_into, pool_of, ready_on, running, slotted
from tests.shell.test_admin import told


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On loopback, in one loop, what was sent first came first; and nobody has seconds to wait."""
    for name, value in (("ORDER_S", 0.0), ("SEEN_S", 0.0), ("WAIT_S_MIN", 0.0), ("REST", 1e-9), ("TRIAL_AFTER_S", 0.0)):
        monkeypatch.setattr(concurrency, name, value)


async def begin(stack: AsyncExitStack, router: Router) -> Client:
    client = await stack.enter_async_context(Client(router.port))
    client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
    return client


async def finish(pool: SimulatedPool, *clients: Client) -> None:
    answers = asyncio.gather(*(client.answer() for client in clients))
    while not answers.done():
        for node in pool.nodes:
            let_run(node)
        await asyncio.sleep(0)
    for node in pool.nodes:
        node.engine.set_speed(1.0)
    assert all(answer.status == 200 for answer in await answers)


def slots_seen(router: Router, node: SimulatedNode) -> tuple[int, int | None]:
    known = router.keeper.snapshot.nodes[node.name]
    (copy,) = known.copies.values()
    return copy.slots, known.learnt.get(copy.weights)


async def test_a_node_of_which_no_slots_are_declared_shows_that_it_has_two() -> None:
    async with pool_of(1, slots=2) as pool, AsyncExitStack() as stack:
        load_into(pool.nodes[0], ENDLESS)
        router = await stack.enter_async_context(router_before(pool.nodes))
        await until(lambda: ready_on(router, ENDLESS) == 1)
        first = await begin(stack, router)
        await first.first(b'"response"')
        second = await begin(stack, router)
        await until(lambda: len(router.pipeline.live) == 2)
        assert running(pool) == 1
        await router.reloader._parts.slots.look()
        await second.first(b'"response"')
        assert running(pool) == 2
        await finish(pool, first, second)
        await until(lambda: slots_seen(router, pool.nodes[0]) == (2, 2))
        (copy,) = (await told(router, "/admin/nodes"))["nodes"][0]["copies"]
        assert (copy["slots"], copy["slots_declared"], copy["slots_learned"]) == (2, None, 2)
        explained = await told(router, f"/admin/explain?model={ENDLESS}")
        assert "slots learned: 2, none are declared" in explained["candidates"][0]["why"]
        assert (await scrape(router)).value("copy_slots", model=ENDLESS, kind="learned") == 2
        assert_at_rest(router)


async def test_slots_that_are_declared_and_not_there_are_noticed_and_calls_wait_in_line_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concurrency, "SEEN_S", 5.0)  # an end and what it makes way for come in one turn of the loop
    async with pool_of(1, slots=1) as pool, AsyncExitStack() as stack:
        load_into(pool.nodes[0], ENDLESS)
        router = await stack.enter_async_context(router_before(pool.nodes, nodes=slotted(pool, 2)))
        await until(lambda: ready_on(router, ENDLESS) == 1)
        for _ in range(QUEUED_TIMES):
            first = await begin(stack, router)
            await first.first(b'"response"')
            second = await begin(stack, router)
            await until(lambda: sum(router.store.occupancy.values()) == 2)
            await until(lambda: len(pool.nodes[0].model.copies) == 1 and running(pool) == 1)
            await finish(pool, first, second)
        await until(lambda: slots_seen(router, pool.nodes[0]) == (1, 1))
        page = await scrape(router)
        assert page.value("copy_slots", model=ENDLESS, kind="declared") == 2
        assert page.value("copy_slots", model=ENDLESS, kind="learned") == 1
        explained = await told(router, f"/admin/explain?model={ENDLESS}")
        assert (
            "slots learned: 1 of 2 declared, further calls waited inside the node" in explained["candidates"][0]["why"]
        )
        first = await begin(stack, router)
        await first.first(b'"response"')
        second = await begin(stack, router)
        await until(lambda: len(router.pipeline.live) == 2)
        assert sum(router.store.occupancy.values()) == 1
        await finish(pool, first, second)


async def test_a_node_that_left_is_forgotten_and_no_more_copies_are_remembered_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.control.slots.COPIES_MAX", 2)
    async with pool_of(3) as pool, router_before(pool.nodes) as router:
        slots = router.reloader._parts.slots
        for node in pool.nodes:
            await slots.ended(Lease("l", "t", 1, QUICK, node.name, "w", 0), Ran(0.0, 1.0, 2.0, 1))
        assert [name for name, _ in slots.known] == ["sim-2", "sim-3"]
        await router.keeper.remove("sim-2")
        await slots.look()
        assert [name for name, _ in slots.known] == ["sim-3"]


async def test_a_cloud_models_slots_are_not_learnt() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        slots, name = router.reloader._parts.slots, pool.nodes[0].name
        model = replace(router.keeper.snapshot.nodes[name].models[QUICK], is_cloud=True)
        router.keeper._swap(replace(router.keeper.snapshot.nodes[name], models={QUICK: model}))
        await slots.ended(Lease("l", "t", 1, QUICK, name, model.weights, 0), Ran(0.0, 1.0, 2.0, 1))
        assert slots.known == {}


async def test_what_was_learnt_ends_with_the_nodes_start() -> None:
    async with pool_of(1, slots=2) as pool, router_before(pool.nodes) as router:
        load_into(pool.nodes[0], QUICK)
        await until(lambda: ready_on(router, QUICK) == 1)
        name = pool.nodes[0].name
        (weights,) = router.keeper.snapshot.nodes[name].copies
        await router.keeper.learnt_slots(name, weights, 2)
        assert slots_seen(router, pool.nodes[0]) == (2, 2)
        await pool.nodes[0].crash()
        await until(lambda: not router.keeper.snapshot.nodes[name].copies)
        assert router.keeper.snapshot.nodes[name].learnt == {}
