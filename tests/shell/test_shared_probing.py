"""Routers that share a real Valkey probe each node once between them, and know the same of it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack

from router.fleet.node import Health
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.store.redis.script import prefix
from router.wiring import Router
from tests.fakes.redis_server import Server
from tests.shell.clients import generate, scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import QUICK, load_into, pool_of, ready_on, slotted
from tests.shell.test_shared_store import all_back, routers, server


def probers(router: Router) -> set[str]:
    """Nodes that it probes."""
    return set(router.prober._tasks)


def claimed(made: Sequence[Router], pool: SimulatedPool) -> bool:
    """Each node has one prober among them."""
    mine = [probers(router) for router in made]
    return sum(map(len, mine)) == len(pool.nodes) and set().union(*mine) == {node.name for node in pool.nodes}


def probes(node: SimulatedNode) -> int:
    return len(node.journal.to("/api/version"))


def all_is_told(shared: Server, router: Router) -> bool:
    """Whether it still tells, disk, reach, memory and whose they are: of each node."""
    with shared.client() as client:
        return client.hlen(f"{prefix('default')}board") >= 4 * len(router.keeper.snapshot.nodes)


def believed(router: Router, pool: SimulatedPool) -> list[object]:
    """Of every node, but for when its copies end."""
    nodes = [router.keeper.snapshot.nodes[node.name] for node in pool.nodes]
    return [
        (node.health, node.incarnation, node.version, node.models, {c: v.num_ctx for c, v in node.copies.items()})
        for node in nodes
    ]


async def asked_by(router: Router) -> dict[str, float]:
    """Probes of each node that this router has ended."""
    page = await scrape(router)
    return {name: page.value("node_probe_duration_seconds_count", node=name) for name in router.keeper.snapshot.nodes}


async def test_each_node_is_probed_by_one_router_and_known_to_all() -> None:
    async with routers(3, 4) as (_, pool, made):
        await until(lambda: claimed(made, pool))
        mine = [probers(router) for router in made]
        before = [await asked_by(router) for router in made]
        for node in pool.nodes:
            load_into(node, QUICK)
        await until(lambda: all(ready_on(router, QUICK) == 4 for router in made))
        await until(lambda: believed(made[0], pool) == believed(made[1], pool) == believed(made[2], pool))
        asked = [probes(node) for node in pool.nodes]
        await until(lambda: all(probes(node) >= was + 3 for node, was in zip(pool.nodes, asked, strict=True)))
        for router, own, was in zip(made, mine, before, strict=True):
            now = await asked_by(router)
            assert {name for name in now if now[name] > was[name] + 1} == own, "one more may have been on its way"


async def test_nodes_of_a_router_that_is_gone_are_taken_over() -> None:
    async with routers(1, 6) as (shared, pool, (stays,)):
        async with router_before(pool.nodes, nodes=slotted(pool, 1), store={"url": shared.url}) as goes:
            await until(lambda: claimed((stays, goes), pool))
            taken = probers(goes)
        await until(lambda: len(probers(stays)) == 6)
        node = next(node for node in pool.nodes if node.name in taken) if taken else pool.nodes[0]
        load_into(node, QUICK)
        await until(lambda: ready_on(stays, QUICK) == 1)


async def test_a_router_that_joins_knows_the_fleet_though_no_node_has_answered_it() -> None:
    async with routers(1, 3) as (shared, pool, (first,)):
        for node in pool.nodes:
            load_into(node, QUICK)
        await until(lambda: ready_on(first, QUICK) == 3)
        await until(lambda: all_is_told(shared, first))
        for node in pool.nodes:
            node.faults.set("hang", path="/api/version")
        async with router_before(pool.nodes, nodes=slotted(pool, 1), store={"url": shared.url}) as second:
            assert ready_on(second, QUICK) == 3
            assert second.prober.has_looked.is_set()
            assert believed(second, pool) == believed(first, pool)
            assert (await generate(second, QUICK, stream=False)).status == 200
            assert not any((await asked_by(second)).values())
            for node in pool.nodes:
                await node.clear_faults()


async def test_without_redis_everybody_probes_everything_and_with_it_they_share_again() -> None:
    async with routers(2, 3) as (shared, pool, made):
        await until(lambda: claimed(made, pool))
        shared.freeze()
        await until(lambda: all(len(probers(router)) == 3 for router in made))
        load_into(pool.nodes[0], QUICK)
        await until(lambda: all(ready_on(router, QUICK) == 1 for router in made))
        shared.thaw()
        await all_back(made)
        await until(lambda: claimed(made, pool))
        load_into(pool.nodes[1], QUICK)
        await until(lambda: all(ready_on(router, QUICK) == 2 for router in made))


async def test_redis_that_comes_back_empty_is_told_again_what_all_know() -> None:
    async with routers(2, 3) as (shared, pool, made):
        await until(lambda: claimed(made, pool))
        shared.kill()
        await until(lambda: all(router.store.is_alone for router in made))
        shared.start()
        await all_back(made)
        await until(lambda: claimed(made, pool))
        async with router_before(pool.nodes, nodes=slotted(pool, 1), store={"url": shared.url}) as third:
            await until(lambda: believed(third, pool) == believed(made[0], pool) == believed(made[1], pool))


async def test_a_refused_connection_at_one_router_is_known_to_the_other() -> None:
    async with server() as shared, pool_of(1) as pool, AsyncExitStack() as stack:
        node = pool.nodes[0]
        load_into(node, QUICK)
        settings = {"nodes": slotted(pool, 1), "store": {"url": shared.url}, "probe": {"interval_s": 60}}
        made = [await stack.enter_async_context(router_before(pool.nodes, **settings)) for _ in range(2)]
        await until(lambda: claimed(made, pool))
        await until(lambda: all(ready_on(router, QUICK) == 1 for router in made))
        other = next(router for router in made if not probers(router))
        await node.stop()
        assert (await generate(other, QUICK, stream=False)).status in (502, 503)
        await until(lambda: all(router.keeper.snapshot.nodes[node.name].health is Health.DOWN for router in made))


async def test_a_node_that_is_back_serves_all_routers_whoever_saw_it_go() -> None:
    async with routers(3, 1) as (_, pool, made):
        node = pool.nodes[0]
        await until(lambda: claimed(made, pool))
        await node.stop()
        await until(lambda: all(router.keeper.snapshot.nodes[node.name].health is Health.DOWN for router in made))
        assert {(await generate(router, QUICK, stream=False)).status for router in made} == {503}
        await node.restart()
        await until(lambda: all(router.keeper.snapshot.nodes[node.name].health is Health.HEALTHY for router in made))
        assert {(await generate(router, QUICK, stream=False)).status for router in made} == {200}
        assert len({router.keeper.snapshot.nodes[node.name].incarnation for router in made}) == 1
