"""A leader goes while it loads: whoever leads next knows of the load, and no model is loaded twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count

from router.fleet.tickets import Lease, Ticket
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wire.names import parse_name
from router.wiring import Router
from tests.fakes import redis_server
from tests.fakes.fault_proxy import FaultProxy, Mood
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.clients import generate
from tests.shell.house import router_before, until
from tests.shell.scenes import COLD, ENDLESS, is_loading, let_load_finish, load_into, pool_of, ready_on, slotted

Way = tuple[Router, FaultProxy]


async def settled(router: Router) -> None:
    """A store that is new hands out nothing for a second."""
    for number in count():
        found = await router.store.take(Ticket(f"first-{number}", (parse_name(ENDLESS).key,)))
        await router.store.leave(f"first-{number}")
        if isinstance(found, Lease):
            return
        await router.store.beat()


@asynccontextmanager
async def two_routers(nodes: int) -> AsyncIterator[tuple[SimulatedPool, list[Way]]]:
    """Each has a way of its own to the Valkey that they share."""
    shared = Server(redis_server.valkey_binary(), free_port()).start()
    try:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(pool_of(nodes))
            for node in pool.nodes:
                load_into(node, ENDLESS)
            ways = []
            for _ in range(2):
                proxy = await stack.enter_async_context(FaultProxy(free_port(), shared.port))
                store = {"url": f"redis://127.0.0.1:{proxy.port}", "timeout_s": 1.0}
                more = {"nodes": slotted(pool, 1), "store": store}
                ways.append((await stack.enter_async_context(router_before(pool.nodes, **more)), proxy))
            await until(lambda: all(ready_on(router, ENDLESS) == nodes for router, _ in ways))
            await settled(ways[0][0])
            yield pool, ways
    finally:
        shared.stop()


async def leader_first(ways: Sequence[Way]) -> list[Way]:
    await until(lambda: sum(router.placer.is_leading for router, _ in ways) == 1)
    return sorted(ways, key=lambda way: not way[0].placer.is_leading)


def loading(pool: SimulatedPool) -> list[SimulatedNode]:
    return [node for node in pool.nodes if is_loading(node)]


@asynccontextmanager
async def kept_busy(node: SimulatedNode, router: Router) -> AsyncIterator[None]:
    """So that whoever chooses anew where a model is loaded chooses another node."""
    busy = Ticket("busy", (parse_name(ENDLESS).key,), preferred=(node.name,))
    lease = await router.store.take(busy)
    assert isinstance(lease, Lease)
    assert lease.node == node.name
    try:
        yield
    finally:
        await router.store.leave(busy.id)


def loads_of(pool: SimulatedPool) -> int:
    """But for what was in memory before."""
    return pool.loads_started - len(pool.nodes)


def knows_a_load(router: Router) -> bool:
    return bool(router.keeper.firsthand.loads.of_others)


async def test_a_leader_that_is_cut_off_from_redis_goes_on_loading_and_the_next_asks_the_same_node() -> None:
    """As one that was paused does: its connection to the node stands."""
    async with two_routers(3) as (pool, ways):
        (old, way), (new, _) = await leader_first(ways)
        calls = [asyncio.create_task(generate(router, COLD, stream=False)) for router in (new, old)]
        await until(lambda: knows_a_load(new) and "1 waiting" in repr(old.pipeline))
        (node,) = loading(pool)
        async with kept_busy(node, new):
            await way.set(Mood.STALL)
            await until(lambda: new.placer.is_leading and bool(new.placer.loading), 20)
            assert new.placer.loading.keys() == {node.name}
            assert loading(pool) == [node]
            let_load_finish(node)
            assert [(await call).status for call in calls] == [200, 200]
        assert loads_of(pool) == 1
        await way.set(Mood.PASS)
        await until(lambda: not old.store.is_alone)
        await until(lambda: not knows_a_load(new) and not knows_a_load(old))


async def test_a_leader_that_gives_up_ends_its_load_and_the_next_begins_none() -> None:
    async with two_routers(2) as (pool, ways):
        (old, _), (new, _) = await leader_first(ways)
        call = asyncio.create_task(generate(new, COLD, stream=False))
        await until(lambda: knows_a_load(new))
        (node,) = loading(pool)
        async with kept_busy(node, new):
            leaving = asyncio.create_task(old.placer.finish(60.0))
            await until(lambda: new.placer.is_leading)
            for _ in range(3):  # passes
                new.keeper.wake_placer()
                await until(lambda: not new.keeper.placer_wanted.is_set())
            assert loading(pool) == [node]
            assert not new.placer.loading
            let_load_finish(node)
            assert (await call).status == 200
            await leaving
        assert loads_of(pool) == 1
