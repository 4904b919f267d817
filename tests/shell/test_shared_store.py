"""Routers that share a real Valkey decide like one, and go on without it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from router.fleet.tickets import Lease, Place, Ticket
from router.settings import Settings
from router.simulation.pool import SimulatedPool
from router.store.answers import Caller
from router.store.redis import codec, session
from router.store.redis.address import Kind, parse_url
from router.store.redis.client import client, end
from router.store.redis.link import Link
from router.wire.names import parse_name
from router.wiring import Router
from tests.contracts.live_stores import address_of, replicas
from tests.fakes import redis_server
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.clients import Client, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import (
    COLD,
    ENDLESS,
    QUICK,
    is_loading,
    let_load_finish,
    load_into,
    pool_of,
    ready_on,
    slotted,
)

DOCS = Path(__file__).parents[2] / "docs"


@asynccontextmanager
async def server() -> AsyncIterator[Server]:
    started = Server(redis_server.valkey_binary(), free_port()).start()
    try:
        yield started
    finally:
        started.stop()


@asynccontextmanager
async def routers(
    count: int, nodes: int = 1, *, slots: int = 1, **changes: Any
) -> AsyncIterator[tuple[Server, SimulatedPool, list[Router]]]:
    async with AsyncExitStack() as stack:
        shared = await stack.enter_async_context(server())
        pool = await stack.enter_async_context(pool_of(nodes, slots=slots))
        more = {"nodes": slotted(pool, slots), "store": {"url": shared.url, "timeout_s": 1.0}, **changes}
        made = [await stack.enter_async_context(router_before(pool.nodes, **more)) for _ in range(count)]
        yield shared, pool, made


async def status(router: Router) -> int:
    return (await generate(router, QUICK, stream=False)).status


async def open_stream(client: Client) -> None:
    """A call that holds its slot until its client leaves."""
    client.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
    await client.first(b"}\n")


async def all_back(made: Sequence[Router]) -> None:
    await until(lambda: not any(router.store.is_alone for router in made))


async def probed_again(router: Router, name: str) -> None:
    """A probe that was asked from here on has told of the copy."""
    key, from_s = parse_name(name).key, router.store.now_s()
    reports = router.store._session.told.reports  # type: ignore[union-attr]
    await until(lambda: any(key in report.keys and report.seen_at_s > from_s for report in reports.values()))


async def none_held(made: Sequence[Router]) -> None:
    """By anybody, as each router knows it."""
    await until(lambda: not any(any(router.store.occupancy.values()) for router in made))


async def test_fifty_calls_at_once_of_two_routers_load_a_cold_model_once_and_are_all_answered() -> None:
    async with routers(2, 3) as (_, pool, made):
        statuses = await asyncio.gather(*(status(router) for router in made * 25))
        assert statuses == [200] * 50
        assert pool.loads_started == 1
        await none_held(made)
        for router in made:
            assert_at_rest(router)


async def test_a_slot_is_one_over_all_routers_and_goes_to_whoever_waits_elsewhere() -> None:
    async with routers(2) as (_, _, (here, there)), Client(here.port) as first, Client(there.port) as second:
        await open_stream(first)
        waits = asyncio.create_task(open_stream(second))
        await until(lambda: "1 waiting" in repr(there.pipeline))
        first.leave()
        await waits
        second.leave()
        await none_held([here, there])


async def test_a_router_that_starts_without_redis_serves_alone_and_joins_when_it_is_there() -> None:
    shared = Server(redis_server.valkey_binary(), free_port())
    async with pool_of(1) as pool, router_before(pool.nodes, store={"url": shared.url}) as router:
        assert router.store.is_alone
        assert await status(router) == 200
        shared.start()
        try:
            await all_back([router])
            assert await status(router) == 200
        finally:
            shared.stop()
        await until(lambda: router.store.is_alone)
        assert await status(router) == 200


async def test_a_router_that_starts_without_redis_takes_its_share_of_as_many_as_there_are_said_to_be() -> None:
    store = {"url": f"redis://127.0.0.1:{free_port()}", "replicas": 2}
    async with (
        pool_of(1, slots=4) as pool,
        router_before(pool.nodes, nodes=slotted(pool, 4), store=store) as router,
        Client(router.port) as first,
        Client(router.port) as second,
        Client(router.port) as third,
    ):
        await open_stream(first)
        await open_stream(second)
        waits = asyncio.create_task(open_stream(third))
        await until(lambda: "1 waiting" in repr(router.pipeline))
        router.store.expect(1)  # as a reload does
        await waits


async def test_what_redis_has_told_counts_before_what_settings_say() -> None:
    async with server() as shared, replicas(shared.url, "a") as (one,):
        one.store.expect(5)
        shared.kill()
        await until(lambda: one.store.is_alone)
        assert one.store._session.alone is not None
        assert one.store._session.alone.replicas == 1


async def test_frozen_redis_holds_nobody_up_and_what_was_sent_to_it_leaves_nothing_behind() -> None:
    async with routers(2) as (shared, _, made):
        assert await status(made[0]) == 200
        shared.freeze()
        assert await asyncio.gather(*map(status, made)) == [200, 200]
        assert all(router.store.is_alone for router in made)
        shared.thaw()
        await all_back(made)
        assert await asyncio.gather(*map(status, made)) == [200, 200]
        await none_held(made)


async def test_every_router_knows_what_stands_of_the_declared_copies_though_one_of_them_loads() -> None:
    placement = {"mode": "managed", "models": [{"name": QUICK, "copies": 2}]}
    async with routers(2, 2, placement=placement) as (_, pool, made):
        declarations = [router.placer.declarations for router in made]
        await until(lambda: all(len(one.standings) == 1 and one.standings[0].lack is None for one in declarations))
        assert pool.loads_started == 2
        await pool.nodes[0].stop()
        await until(lambda: all(one.standings[0].lack is not None for one in declarations))


async def test_a_load_that_ended_while_redis_was_frozen_has_ended_for_redis_too() -> None:
    async with routers(1) as (shared, pool, (router,)):
        cold = asyncio.create_task(generate(router, COLD, stream=False))
        await until(lambda: is_loading(pool.nodes[0]))
        shared.freeze()
        await until(lambda: router.store.is_alone)
        let_load_finish(pool.nodes[0])
        assert (await cold).status == 200
        await probed_again(router, COLD)
        shared.thaw()
        await all_back([router])
        assert isinstance(await router.store.take(Ticket("t", (parse_name(COLD).key,))), Lease)
        await router.store.leave("t")


async def test_round_trips_to_redis_are_counted_and_those_of_one_that_is_frozen_as_failed() -> None:
    async with routers(1) as (shared, _, (router,)):
        page = await scrape(router)
        assert page.labels("redis_operation_duration_seconds_count", "operation") == {"connect", "hello", "steps"}
        assert page.labels("redis_errors_total", "reason") == set()
        shared.freeze()
        await until(lambda: router.store.is_alone)
        assert (await scrape(router)).value("redis_errors_total", operation="steps", reason="timeout") == 1


async def test_a_drain_that_ended_while_redis_was_frozen_has_ended_for_redis_too() -> None:
    async with routers(1) as (shared, pool, (router,)):
        assert await status(router) == 200
        await router.keeper.drain(pool.nodes[0].name)
        await router.store.beat()
        shared.freeze()
        await until(lambda: router.store.is_alone)
        await router.keeper.resume(pool.nodes[0].name)
        shared.thaw()
        await all_back([router])
        assert isinstance(await router.store.take(Ticket("t", (parse_name(QUICK).key,))), Lease)
        await router.store.leave("t")


async def test_a_node_that_went_down_while_redis_was_frozen_gets_no_call_when_it_is_back() -> None:
    async with routers(1, 2) as (shared, pool, (router,)):
        for node in pool.nodes:
            load_into(node, QUICK)
        await until(lambda: ready_on(router, QUICK) == 2)
        await router.store.beat()
        shared.freeze()
        await until(lambda: router.store.is_alone)
        await pool.nodes[0].stop()
        await until(lambda: not router.keeper.snapshot.nodes[pool.nodes[0].name].copies)
        shared.thaw()
        await all_back([router])
        asked = [await router.store.take(Ticket(str(i), (parse_name(QUICK).key,))) for i in range(2)]
        assert isinstance(asked[0], Lease)
        assert asked[0].node == pool.nodes[1].name
        assert isinstance(asked[1], Place)
        for i in range(2):
            await router.store.leave(str(i))


async def test_an_order_of_one_who_led_alone_is_not_obeyed_once_redis_is_back() -> None:
    async with routers(2) as (shared, pool, made):
        shared.freeze()
        await until(lambda: all(router.store.is_alone for router in made))
        leadings = [await router.store.lead() for router in made]
        assert all(leading.is_mine for leading in leadings)
        assert await made[0].store.begin(pool.nodes[0].name, "w", loading=True, epoch=leadings[0].epoch)
        shared.thaw()
        await all_back(made)
        for router, leading in zip(made, leadings, strict=True):
            assert not await router.store.begin(pool.nodes[0].name, "x", loading=True, epoch=leading.epoch)


async def test_a_connection_that_was_cut_is_made_anew_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "AGAIN_S", 1e6)
    async with routers(1) as (shared, _, (router,)):
        with shared.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        await until(lambda: router.store.is_alone)
        await all_back([router])


async def test_redis_that_comes_back_empty_learns_again_what_runs() -> None:
    async with routers(2) as (shared, _, (here, there)):
        async with Client(here.port) as client:
            await open_stream(client)
            shared.kill()
            await until(lambda: here.store.is_alone and there.store.is_alone)
            shared.start()
            await all_back([here, there])
            await until(lambda: sum(there.store.occupancy.values()) == 1)
        await none_held([here, there])
        assert await status(there) == 200


async def test_leases_that_were_given_twice_while_redis_was_away_are_counted_once_it_is_back() -> None:
    async with routers(2) as (shared, _, made), Client(made[0].port) as first, Client(made[1].port) as second:
        shared.kill()
        await until(lambda: all(router.store.is_alone for router in made))
        await open_stream(first)
        second.send(
            "/api/generate", {"model": ENDLESS, "prompt": "Why?"}
        )  # waits at the node, which serves one at a time
        await until(lambda: all(sum(router.store.occupancy.values()) == 1 for router in made))
        shared.start()
        await all_back(made)
        await until(lambda: all(sum(router.store.occupancy.values()) == 2 for router in made))
        for router in made:
            for _ in range(2):  # counted once, however long it lasts
                await router.reloader._parts.watch.look()
            assert (await scrape(router)).value("slots_oversubscribed_total", node="sim-1") == 1
        first.leave()
        second.leave()
        await none_held(made)


async def test_one_of_two_routers_says_that_it_leads() -> None:
    async with routers(2) as (_, _, made):
        await until(lambda: any(router.placer.is_leading for router in made))
        assert sorted([(await scrape(router)).value("leader") for router in made]) == [0, 1]


async def test_only_who_leads_looks_at_the_lines_and_the_next_leads_once_it_gives_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with routers(2) as (_, _, made):
        await until(lambda: sum(router.placer.is_leading for router in made) == 1)
        leader, follower = sorted(made, key=lambda router: not router.placer.is_leading)
        await until(lambda: follower.store.is_led_elsewhere)
        lines, follow = follower.store.lines, follower.placer._follow
        asked, passes = [], []
        monkeypatch.setattr(follower.store, "lines", lambda: asked.append(None) or lines())
        monkeypatch.setattr(follower.placer, "_follow", lambda: passes.append(None) or follow())
        assert await status(follower) == 200, "of a cold model, which the leader loads"
        follower.keeper.wake_placer()
        await until(lambda: len(passes) >= 2)
        assert not asked
        assert not leader.store.is_led_elsewhere
        await leader.placer.finish(0.0)
        await until(lambda: follower.placer.is_leading)
        assert asked


async def test_a_connection_whose_end_is_cancelled_is_closed_all_the_same() -> None:
    async with server() as shared:
        address = address_of(shared.url)
        asked = client(address, address.url.servers[0], 1.0)
        connection = await asked.connection_pool.get_connection()
        ending = asyncio.create_task(end(asked))
        await asyncio.sleep(0)
        ending.cancel()
        await asyncio.gather(ending, return_exceptions=True)
        assert (ending.cancelled(), connection.is_connected) == (True, False)


async def test_who_says_hello_counts_among_those_who_share() -> None:
    async with server() as shared:
        link = Link(address_of(shared.url), "a")
        await link.connect()
        _, looked = await link.run(Caller("a", 0), [codec.hello(0, (), (), greeting=1), codec.look()])
        await link.close()
        assert looked.value == (1, {}, "")


async def test_redis_that_is_lost_again_as_it_comes_back_leaves_each_router_its_share() -> None:
    """Whoever says hello first sees nobody else there."""
    async with routers(2) as (shared, _, made):
        await until(lambda: all(router.store._session.replicas == 2 for router in made))  # type: ignore[union-attr]
        for _ in range(2):
            shared.kill()
            await until(lambda: all(router.store.is_alone for router in made))
            assert [router.store._session.alone.replicas for router in made] == [2, 2]  # type: ignore[union-attr]
            shared.start()
            await all_back(made)


async def test_the_rights_that_the_documentation_names_are_enough(tmp_path: Path) -> None:
    documented = re.search(r"ACL SETUSER router on >... (.*?)`", (DOCS / "store.md").read_text())
    assert documented is not None
    secret = tmp_path / "password"
    secret.write_text("open sesame\n")
    async with server() as shared, pool_of(1) as pool:
        with shared.client() as client:
            client.execute_command("ACL", "SETUSER", "router", "on", ">open sesame", *documented[1].split())
            client.execute_command("ACL", "SETUSER", "default", "off")
        store = {"url": shared.url.replace("//", "//router@"), "password_file": str(secret), "timeout_s": 2.0}
        async with router_before(pool.nodes, store=store) as router:
            assert await status(router) == 200
            await router.store.beat()
            assert not router.store.is_alone


@pytest.mark.parametrize(
    "url",
    [
        *("http://x", "redis://u:secret@h", "redis://h/x", "redis://h:x", "redis://h:0", "redis://h1,h2", "redis://"),
        *("redis+sentinel://a,b", "redis+sentinel://a/m/x", "redis+sentinel://u:secret@a/m", "redis+cluster://a/1"),
        *("redis+cluster://a,,b", "redis+other://a", "redis+cluster://[::1", "redis://h?db=1"),
    ],
)
def test_urls_that_this_router_cannot_use_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"store\.url") as told:
        Settings(store={"url": url})
    assert all("secret" not in error["msg"] for error in told.value.errors())


@pytest.mark.parametrize(
    ("url", "means"),
    [
        ("redis://h", (Kind.ONE, False, None, [("h", 6379)], "", 0)),
        ("rediss://me%40lab@[::1]:1/2", (Kind.ONE, True, "me@lab", [("::1", 1)], "", 2)),
        ("redis+sentinel://a,b:1/m", (Kind.SENTINEL, False, None, [("a", 26379), ("b", 1)], "m", 0)),
        ("rediss+sentinel://me@a/m%20n/3/", (Kind.SENTINEL, True, "me", [("a", 26379)], "m n", 3)),
        ("redis+cluster://[::1]:1,[::2]", (Kind.CLUSTER, False, None, [("::1", 1), ("::2", 6379)], "", 0)),
        ("rediss+cluster://a/0", (Kind.CLUSTER, True, None, [("a", 6379)], "", 0)),
    ],
)
def test_a_url_names_one_server_or_sentinels_or_some_of_a_cluster(url: str, means: tuple[Any, ...]) -> None:
    said = parse_url(Settings(store={"url": url}).store.url)
    assert (said.kind, said.is_tls, said.user, [*map(tuple, said.servers)], said.service, said.db) == means
