"""What the bench says of a Redis, on a real one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis

from bench.crowd import Size, pool_at
from bench.redis_server import RedisServer, sent, spent
from router.store.redis.script import prefix
from tests.fakes import redis_server
from tests.fakes.redis_server import Server
from tests.ports import free_port

SMALL = Size(nodes=10, models=4, copies=2, slots=4, teams=2)
SCRIPT = "for _ = 1, 10 do redis.call('GET', 'nothing') end return 1"


@pytest.fixture
def valkey() -> Iterator[Server]:
    started = Server(redis_server.valkey_binary(), free_port()).start()
    yield started
    started.stop()


@pytest.fixture
def looked_at(valkey: Server) -> Iterator[RedisServer]:
    assert valkey._process is not None
    server = RedisServer(valkey.port, valkey._process.pid)
    yield server
    server.close()


def test_looking_at_redis_is_no_round_trip_of_anybodys(looked_at: RedisServer) -> None:
    told = spent(looked_at.read(), looked_at.read())
    assert (told.trips, told.scripts) == (0, 0)


def test_a_run_of_a_script_is_one_round_trip_whatever_it_calls(looked_at: RedisServer) -> None:
    before = looked_at.read()
    with redis.Redis(port=looked_at.port) as client:
        for _ in range(3):
            client.eval(SCRIPT, 0)
    told = spent(before, looked_at.read())
    assert (told.trips, told.scripts) == (3, 3)


def test_reads_of_streams_are_round_trips_beside_runs_of_the_script() -> None:
    calls = {"cmdstat_fcall": 5, "cmdstat_xread": 2, "cmdstat_hget": 70, "cmdstat_info": 9}
    assert sent({name: {"calls": count} for name, count in calls.items()}) == (7, 5)


async def test_the_crowds_calls_hold_as_many_slots_as_redis_says(valkey: Server) -> None:
    async with pool_at(valkey.url, SMALL, replicas=3, seed=1) as pool:
        await asyncio.gather(*(pool.take(store) for store in pool.stores for _ in range(4)))
        await pool.settled()
        assert leased(valkey) == len(pool.held) == 12
        await pool.give_back()
        await pool.settled()
        assert leased(valkey) == 11


def leased(valkey: Server) -> int:
    with valkey.client() as client:
        return sum(map(int, client.hvals(f"{prefix('scale-3')}occupancy")))
