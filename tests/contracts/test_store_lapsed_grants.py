"""Grants that come too late, at real `RedisStore`s: whoever they come to must not use what is another's by now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.live_stores import Replica, address_of, beats, replicas, running
from tests.fakes import redis_server
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.house import until


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server(redis_server.valkey_binary(), free_port()).start()
    yield started
    started.stop()


@pytest.fixture(autouse=True)
def empty(server: Server) -> None:
    with server.client() as client:
        client.flushall()


async def test_grant_that_was_passed_on_before_it_was_read_is_not_used(server: Server) -> None:
    late = Replica("late", address_of(server.url))
    async with replicas(server.url, "b") as (there,):
        await late.store.open(late.granted, late.refuse)
        async with running(late, "store writer"):
            await there.sees(1)
            await there.take("1")
            await until(lambda: "1" in there.held)  # the store is new: it hands out nothing for a second
            await late.take("2")
            await there.take("3")
            await there.give_back("1")
            await until(lambda: "3" in there.held, 10)
        async with running(late, "store writer", "store reader"):
            await until(lambda: late.store._session._link._last_id != "0-0")
            await beats([late])
            assert not late.held
            await there.give_back("3")
            await until(lambda: "2" in late.held)
            await late.give_back("2")
            await beats([late])
        await late.store.close()
