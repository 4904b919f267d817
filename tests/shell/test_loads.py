"""Loads belong to the router: one for all who wait, none for a call that is forwarded, and none dies with a client."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from router.simulation.facts import Event, Want
from router.simulation.journal import Seen
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wire.names import parse_name
from router.wiring import Router
from tests.shell.clients import Client, ask, converse, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import (
    COLD,
    ENDLESS,
    QUICK,
    TWIN,
    asked,
    holding,
    is_loading,
    let_load_finish,
    let_run,
    load_into,
    pool_of,
    ready_on,
    running,
)

CROWD = 50
LEAVERS = 10


async def rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live and not router.connections.busy)
    assert_at_rest(router)


def own_loads(node: SimulatedNode) -> list[Seen]:
    return [seen for seen in node.journal.to("/api/generate") if b'"prompt"' not in seen.body]


async def loading_node(pool: SimulatedPool) -> SimulatedNode:
    await until(lambda: any(map(is_loading, pool.nodes)))
    return next(filter(is_loading, pool.nodes))


async def crowd(stack: AsyncExitStack, router: Router, model: str, count: int = CROWD) -> list[Client]:
    """All of them stand in line when this returns."""
    clients = [await stack.enter_async_context(Client(router.port)) for _ in range(count)]
    for number, client in enumerate(clients):
        client.send("/api/generate", {"model": model, "prompt": f"{number}: why?"})
    await until(lambda: len(router.store.book.ledger.waiting) == count)
    return clients


async def test_fifty_cold_calls_of_which_ten_leave_make_one_load() -> None:
    async with pool_of(3) as pool, router_before(pool.nodes) as router, AsyncExitStack() as stack:
        clients = await crowd(stack, router, COLD)
        node = await loading_node(pool)
        for client in clients[:LEAVERS]:
            client.leave()
        await until(lambda: len(router.store.book.ledger.waiting) == CROWD - LEAVERS)
        let_load_finish(node)
        answers = await asyncio.gather(*(client.answer() for client in clients[LEAVERS:]))
        assert {(answer.status, answer.node) for answer in answers} == {(200, node.name)}
        assert {answer.headers["x-ollama-router-reason"] for answer in answers} == {"cold_load"}
        assert (pool.loads_started, node.journal.loads_finished, node.journal.loads_aborted) == (1, 1, 0)
        assert asked(node) == CROWD - LEAVERS
        page = await scrape(router)
        assert page.value("model_loads_total", model=COLD, reason="line", result="ok") == 1
        assert page.value("client_disconnects_total", phase="waiting") == LEAVERS
        await rest(router)


async def test_a_load_that_nobody_waits_for_any_more_still_ends_well() -> None:
    async with pool_of(3) as pool, router_before(pool.nodes) as router, AsyncExitStack() as stack:
        clients = await crowd(stack, router, COLD, 5)
        node = await loading_node(pool)
        for client in clients:
            client.half_close()
        await rest(router)
        let_load_finish(node)
        await until(lambda: ready_on(router, COLD) == 1)
        assert (pool.loads_started, node.journal.loads_aborted) == (1, 0)
        answer = await generate(router, COLD)
        assert (answer.status, answer.node, answer.headers["x-ollama-router-reason"]) == (200, node.name, "loaded")
        assert pool.loads_started == 1


async def test_a_load_that_fails_on_one_node_is_tried_on_another() -> None:
    async with pool_of(2) as pool, router_before(pool.nodes) as router:
        order = await _order_of_loads(pool, router)
        order[0].faults.set("status", 500, times=1, path="/api/generate")
        answer = await generate(router, QUICK)
        assert (answer.status, answer.node) == (200, order[1].name)
        page = await scrape(router)
        assert page.value("model_loads_total", node=order[0].name, model=QUICK, result="failed") == 1
        assert page.value("model_loads_total", node=order[1].name, model=QUICK, result="ok") == 1
        assert router.keeper.circuits.not_closed() == {}, "a load is no traffic"


async def _order_of_loads(pool: SimulatedPool, router: Router) -> list[SimulatedNode]:
    """Where the router would load QUICK first: it does, and the node forgets it again."""
    await generate(router, QUICK)
    first = next(node for node in pool.nodes if own_loads(node))
    first.engine.kill(first.disk[parse_name(QUICK).key].weights.blob)
    await until(lambda: ready_on(router, QUICK) == 0)
    return sorted(pool.nodes, key=lambda node: node is not first)


ERRORS = {
    "/api/chat": lambda body: body["error"],
    "/v1/chat/completions": lambda body: body["error"]["message"],
    "/v1/messages": lambda body: body["error"]["message"],
    "/v1/responses": lambda body: body["error"]["message"],
}


@pytest.mark.parametrize("path", ERRORS)
async def test_where_every_node_fails_to_load_those_who_wait_get_the_nodes_words(path: str) -> None:
    async with pool_of(3) as pool, router_before(pool.nodes) as router:
        for node in pool.nodes:
            node.faults.set("status", 500, path="/api/generate")
        call = {"model": QUICK, "messages": [{"role": "user", "content": "?"}], "input": "?", "max_tokens": 8}
        answers = await asyncio.gather(*(ask(router, path, call) for _ in range(8)))
        assert {answer.status for answer in answers} == {500}
        assert {ERRORS[path](answer.json) for answer in answers} == {
            "llama-server process has terminated: signal: killed"
        }
        assert {answer.headers["x-should-retry"] for answer in answers} == {"false"}
        assert (await scrape(router)).value("model_loads_total", result="failed") == 3, "each node was tried once"
        await rest(router)


async def test_a_node_that_started_again_loads_again_on_demand() -> None:
    async with holding(1) as (pool, router):
        node, before = pool.nodes[0], router.keeper.snapshot.nodes["sim-1"].incarnation
        await node.crash()
        await until(lambda: not router.keeper.snapshot.has_node_up(parse_name(QUICK).key))
        assert ready_on(router, QUICK) == 0
        await node.restart()
        await until(lambda: router.keeper.snapshot.has_node_up(parse_name(QUICK).key))
        assert router.keeper.snapshot.nodes["sim-1"].incarnation == before + 1
        answer = await generate(router, QUICK)
        assert (answer.status, answer.headers["x-ollama-router-reason"]) == (200, "cold_load")
        assert len(own_loads(node)) == 1


async def test_a_copy_that_is_gone_is_loaded_by_the_router_and_not_by_a_call() -> None:
    """COLD loads for ever unless we let it: a forwarded call that loads would hang at the node."""
    async with holding(1, COLD) as (pool, router), Client(router.port) as client:
        node = pool.nodes[0]
        node.engine.kill(node.disk[parse_name(COLD).key].weights.blob)
        await until(lambda: ready_on(router, COLD) == 0)
        client.send("/api/generate", {"model": COLD, "prompt": "?"})
        await until(lambda: is_loading(node))
        assert asked(node) == 0
        assert len(own_loads(node)) == 1
        let_load_finish(node)
        assert (await client.answer()).status == 200


async def test_a_copy_about_to_expire_is_renewed_before_it_is_used() -> None:
    """A copy counts as ending for its last two probe intervals: here it is seen with at least one to spare."""
    async with pool_of(1, keep_alive_s=3) as pool:
        node = pool.nodes[0]
        load_into(node, COLD)
        async with router_before(pool.nodes, probe={"interval_s": 1}) as router:
            await until(lambda: ready_on(router, COLD) == 1)
            await until(lambda: ready_on(router, COLD) == 0)
            answer = await generate(router, COLD)
            assert answer.status == 200
            assert (node.journal.loads_started, node.journal.counts[Event.EXPIRED]) == (1, 0)
            assert [seen.body for seen in own_loads(node)] != []
            assert (await scrape(router)).value("model_loads_total", reason="renew", result="ok") == 1


async def test_copies_that_expire_are_only_ever_loaded_by_the_router() -> None:
    async with pool_of(2, keep_alive_s=0.3) as pool, router_before(pool.nodes) as router:
        for _ in range(3):
            async with Client(router.port) as client:
                client.send("/api/generate", {"model": COLD, "prompt": "?"})
                node = await loading_node(pool)
                load = node.model.load
                assert load is not None
                assert load.asker.work.want is Want.LOAD
                let_load_finish(node)
                assert (await client.answer()).status == 200
            await until(lambda: not any(node.model.copies for node in pool.nodes) and not ready_on(router, COLD))
        assert sum(node.journal.counts[Event.EXPIRED] for node in pool.nodes) == 3
        assert pool.loads_started == 3


async def test_two_names_of_one_set_of_weights_share_its_slots() -> None:
    async with holding(2, ENDLESS, slots=2) as (pool, router), AsyncExitStack() as stack:
        assert ready_on(router, TWIN) == 2, "nothing needs to be loaded for the other name"
        clients = [await stack.enter_async_context(Client(router.port)) for _ in range(12)]
        for number, client in enumerate(clients):
            client.send("/api/generate", {"model": [ENDLESS, TWIN][number % 2], "prompt": f"{number}: why?"})
        await until(lambda: running(pool) == 4 and len(router.store.book.ledger.waiting) == 8)
        assert sorted(router.store.occupancy.values()) == [2, 2]
        while running(pool) or router.store.book.ledger.waiting:
            for node in pool.nodes:
                let_run(node)
            await asyncio.sleep(0)
            assert max(router.store.occupancy.values(), default=0) <= 2
        answers = await asyncio.gather(*(client.answer() for client in clients))
        assert {answer.status for answer in answers} == {200}
        assert max(count for node in pool.nodes for count in node.journal.max_running.values()) == 2
        assert pool.loads_started == 2, "those from before"
        await rest(router)


async def test_a_node_that_fails_fast_draws_next_to_no_traffic() -> None:
    async with holding(3, slots=4) as (pool, router):
        failing = pool.nodes[1]
        failing.faults.set("malformed", path="/api/generate")
        crowds = await asyncio.gather(*(converse(router, QUICK, 40) for _ in range(6)))
        answers = [answer for answers in crowds for answer in answers]
        assert {answer.status for answer in answers} == {200}
        # Three in a row open its breaker; those under way by then and one trial at a time come on top.
        assert 3 <= asked(failing) <= 0.05 * len(answers)
        await rest(router)


async def test_calls_spread_over_equal_nodes() -> None:
    async with holding(3) as (pool, router):
        await converse(router, QUICK, 90)
        assert all(asked(node) >= 10 for node in pool.nodes), [asked(node) for node in pool.nodes]


async def test_calls_at_the_same_time_go_where_a_slot_is_free() -> None:
    """The same conversation would like the same node; a free slot elsewhere is better than a line."""
    async with holding(3, ENDLESS) as (pool, router), AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(router.port)) for _ in range(3)]
        for client in clients:
            client.send("/api/generate", {"model": ENDLESS, "prompt": "the same"})
            await client.first(b'"done":false')
        assert [asked(node) for node in pool.nodes] == [1, 1, 1]


async def test_a_clients_own_load_is_a_ticket_like_any_other() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router, Client(router.port) as client:
        client.send("/api/generate", {"model": COLD})
        node = await loading_node(pool)
        let_load_finish(node)
        answer = await client.answer()
        assert (answer.status, answer.json["done_reason"]) == (200, "load")
        assert pool.loads_started == 1


async def test_a_client_cannot_unload_what_others_use() -> None:
    async with holding(1) as (pool, router):
        answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "?", "keep_alive": 0})
        assert answer.status == 200
        assert pool.nodes[0].journal.counts[Event.EXPIRED] == 0
        assert len(pool.nodes[0].model.copies) == 1
