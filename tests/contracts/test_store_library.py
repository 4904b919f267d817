"""The steps stay in the server as a library: it comes when it is missing, and no run sees another's variables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis

from router.fleet.node import CopyState
from router.fleet.tickets import CopyReport, Lease, Place, Ticket
from router.policy.limits import TeamTable
from router.store.answers import Caller, Limits
from router.store.redis import codec, script
from router.store.redis.link import Link
from tests.contracts.live_stores import NODE, address_of, all_alone, all_back, beats, replicas
from tests.contracts.redis_harness import RedisBook
from tests.fakes.redis_server import Server

NOW_S = 1_000.0
NONE_SAID = Limits(256, {}, TeamTable({}))
BREAKS = codec.Command('["no such command"]', lambda value: value)
OLD = "ollama_router_0123456789ab"
READY = CopyReport(NODE, 1, "w", ("m",), CopyState.READY, 1, 0, NOW_S)


@pytest.fixture
def client(server: Server) -> Iterator[redis.Redis]:
    with server.client() as made:
        yield made


def joined(client: redis.Redis, pool: str) -> tuple[RedisBook, Caller]:
    book = RedisBook(client, pool, NONE_SAID, settle_s=0.0)
    session = book.hello("a", 0, (), (), NOW_S, greeting=1).value
    return book, Caller("a", session)


def libraries(client: redis.Redis) -> list[str]:
    return sorted(str(found[b"library_name"], "utf-8") for found in client.execute_command("FUNCTION", "LIST"))


def test_a_run_that_fails_midway_leaves_nothing_in_variables_to_the_next(client: redis.Redis) -> None:
    book, caller = joined(client, "one")
    before = book.seq
    with pytest.raises(redis.exceptions.ResponseError, match="attempt to call"):
        book.many(caller, [codec.set_copy(READY), BREAKS], NOW_S)
    answer = book.take(caller, Ticket("t", ("m",)), NOW_S)
    assert answer.seq == before + 1
    assert isinstance(answer.value, Place), "a slot of a copy that was never kept"


def test_runs_of_two_pools_at_one_server_see_only_their_own(client: redis.Redis) -> None:
    (one, at_one), (other, at_other) = joined(client, "one"), joined(client, "other")
    one.set_copy(at_one, READY, NOW_S)
    assert isinstance(other.take(at_other, Ticket("t", ("m",)), NOW_S).value, Place)
    assert isinstance(one.take(at_one, Ticket("t", ("m",)), NOW_S).value, Lease)
    assert libraries(client) == [script.name()]


async def test_a_server_that_lost_the_library_has_it_again_with_the_next_run(
    server: Server, client: redis.Redis
) -> None:
    async with replicas(server.url) as made:
        await beats(made)
        client.execute_command("FUNCTION", "FLUSH")
        await beats(made)
        assert not any(one.store.is_alone for one in made)
        assert libraries(client) == [script.name()]


async def test_a_server_that_came_back_empty_has_the_library_again(server: Server) -> None:
    async with replicas(server.url) as made:
        await beats(made)
        server.kill()
        await all_alone(made)
        server.start()
        await all_back(made)
        await beats(made)
        with server.client() as client:
            assert libraries(client) == [script.name()]


async def test_routers_that_bring_the_library_at_the_same_time_all_have_their_answers(server: Server) -> None:
    links = [Link(address_of(server.url), name) for name in "abcdef"]
    try:
        await asyncio.gather(*(link.connect() for link in links))
        hello = codec.hello(0, (), (), greeting=1)
        runs = (link.run(Caller(name, 0), [hello]) for name, link in zip("abcdef", links, strict=True))
        sessions = [answer.value for (answer,) in await asyncio.gather(*runs)]
    finally:
        await asyncio.gather(*(link.close() for link in links))
    assert sorted(sessions) == [1, 2, 3, 4, 5, 6]


async def test_the_library_of_another_version_stands_beside_and_is_left_alone(
    server: Server, client: redis.Redis
) -> None:
    old = f"#!lua name={OLD}\nredis.register_function('{OLD}', function(keys, args) return args[1] end)"
    client.execute_command("FUNCTION", "LOAD", old)
    async with replicas(server.url) as made:
        await beats(made)
        assert client.execute_command("FCALL", OLD, 0, "still here") == b"still here"
        assert libraries(client) == sorted((OLD, script.name()))
