"""Redis under sentinels and in a cluster: whoever has the pool's keys is found, and lost writes lease nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.fleet.tickets import BEAT_S
from router.store.redis import script
from router.store.redis.address import Login
from tests.contracts.live_stores import NODE, POOL, Replica, all_alone, all_back, beats, replicas
from tests.fakes import redis_server
from tests.fakes.redis_groups import Cluster, Watched
from tests.fakes.redis_server import Server
from tests.shell.house import until

KEY = script.prefix(POOL)
IN_THREAD = asyncio.to_thread


@pytest.fixture
def watched() -> Iterator[Watched]:
    group = Watched(redis_server.any_binary())
    try:
        yield group.start()
    finally:
        group.stop()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    group = Cluster(redis_server.any_binary(), replicas=3)
    try:
        yield group.start()
    finally:
        group.stop()


def leases_at(server: Server) -> int:
    with server.client() as client:
        return int(client.hget(f"{KEY}occupancy", f"{NODE}\0w") or 0)


async def three_slots_of_which_two_are_taken(made: list[Replica]) -> None:
    here, there = made
    await asyncio.sleep(BEAT_S)  # an empty store hands out nothing for a beat
    await here.sees(slots=3)
    await there.sees(slots=3)
    await here.take("1")
    await there.take("2")
    await until(lambda: "1" in here.held and "2" in there.held)
    await beats(made)


async def each_takes_one_more_alone(made: list[Replica]) -> None:
    """Its share of three is two: so there is one too many."""
    for one, ticket in zip(made, ("3", "4"), strict=True):
        assert await one.take(ticket) is not None


async def nothing_is_leased_above_capacity(made: list[Replica], server: Server) -> None:
    here, there = made
    await beats(made)
    assert await IN_THREAD(leases_at, server) == 4, "what was made before ends with its calls"
    await here.take("5")
    await here.give_back("1")
    await beats(made)
    assert "5" in here.waiting
    await there.give_back("2")
    await until(lambda: "5" in here.held)
    assert await IN_THREAD(leases_at, server) == 3


# sentinels


async def test_the_server_that_sentinels_name_is_used_while_one_of_them_is_dead(watched: Watched) -> None:
    watched.sentinels[0].kill()
    async with replicas(watched.url) as made:
        assert not any(one.store.is_alone for one in made)
        await three_slots_of_which_two_are_taken(made)
        assert await IN_THREAD(leases_at, watched.primary) == 2


async def test_an_asked_fail_over_is_noticed_before_the_old_primary_is_told_and_no_lease_is_lost(
    watched: Watched,
) -> None:
    async with replicas(watched.url) as made:
        await three_slots_of_which_two_are_taken(made)
        await IN_THREAD(watched.fail_over)
        await until(lambda: all(str(watched.primary.port) in repr(one.store) for one in made), 5)
        await all_back(made)
        await beats(made)
        assert await IN_THREAD(leases_at, watched.primary) == 2
        await made[0].take("3")
        await until(lambda: "3" in made[0].held)
        await made[1].take("4")
        await beats(made)
        assert "4" in made[1].waiting


async def test_a_primary_that_is_killed_leaves_at_most_what_was_leased_without_it(watched: Watched) -> None:
    async with replicas(watched.url) as made:
        await three_slots_of_which_two_are_taken(made)
        before = watched.primary
        before.kill()
        await all_alone(made)
        await each_takes_one_more_alone(made)
        await IN_THREAD(watched.await_another_than, before)
        await all_back(made)
        await nothing_is_leased_above_capacity(made, watched.primary)


async def test_sentinels_that_want_a_password_of_their_own_get_it(watched: Watched, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("of the sentinels\n")
    for one in watched.sentinels:
        with one.client() as client:
            client.execute_command("ACL", "SETUSER", "asker", "on", ">of the sentinels", "+@all")
            client.execute_command("ACL", "SETUSER", "default", "off")
    async with replicas(watched.url, "a", sentinels=Login("asker", str(secret))) as (one,):
        assert not one.store.is_alone
    async with replicas(watched.url, "a") as (stranger,):
        assert stranger.store.is_alone


# a cluster


async def test_the_pool_is_found_whichever_server_of_the_cluster_is_asked(cluster: Cluster) -> None:
    for asked in cluster.servers:
        async with replicas(f"redis+cluster://127.0.0.1:{asked.port}", "a") as (one,):
            assert not one.store.is_alone
            assert f":{cluster.owner_of(KEY).port}" in repr(one.store)


async def test_a_slot_that_moves_takes_the_pool_along_and_nothing_is_done_to_half_of_it(cluster: Cluster) -> None:
    slot, source = cluster.slot_of(KEY), cluster.owner_of(KEY)
    target = next(one for one in cluster.masters if one is not source)
    async with replicas(cluster.url) as made:
        await three_slots_of_which_two_are_taken(made)
        await IN_THREAD(cluster.begin_to_move, slot, source, target)
        await all_alone(made)
        await IN_THREAD(cluster.move_keys, slot, source, target, 5)
        await each_takes_one_more_alone(made)
        await IN_THREAD(cluster.move_keys, slot, source, target)
        await IN_THREAD(cluster.end_move, slot, source, target)
        await all_back(made)
        await nothing_is_leased_above_capacity(made, target)
        assert await IN_THREAD(leases_at, target) == 3


async def test_a_replica_that_takes_over_in_order_is_followed_without_a_time_alone(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    before = cluster.owner_of(KEY)
    heir = cluster.replicas[cluster.masters.index(before)]
    async with replicas(cluster.url) as made:
        await three_slots_of_which_two_are_taken(made)
        await IN_THREAD(cluster.do, heir, "CLUSTER", "FAILOVER")
        await until(lambda: all(f":{heir.port}" in repr(one.store) for one in made))
        await beats(made)
        assert await IN_THREAD(leases_at, heir) == 2
        assert "away" not in caplog.text


async def test_a_master_of_a_cluster_that_is_killed_is_followed_by_its_replica(cluster: Cluster) -> None:
    async with replicas(cluster.url) as made:
        await three_slots_of_which_two_are_taken(made)
        before = cluster.owner_of(KEY)
        before.kill()
        await all_alone(made)
        await each_takes_one_more_alone(made)
        await all_back(made)
        await nothing_is_leased_above_capacity(made, await IN_THREAD(cluster.owner_of, KEY))


async def test_a_replica_is_no_store(watched: Watched) -> None:
    replica = watched.servers[1]
    async with replicas(replica.url, "a") as (one,):
        assert one.store.is_alone
