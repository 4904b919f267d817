"""Why round trips fail, at real servers that refuse, are lost, know nobody or are no servers: a word for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from router.store.answers import Caller
from router.store.redis import codec
from router.store.redis.address import Address
from router.store.redis.link import Link, StoreLost
from router.store.redis.trips import Trips
from router.wiring import SystemClock
from tests.contracts.live_stores import Replica, address_of
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.house import until

RIGHTS = ("~ollama-router:*", "+@read", "+@write", "+fcall", "+function|load", "+@connection", "+info", "+time")
Seen = list[tuple[str, str]]


async def failures(address: Address, server: Server | None = None, *then: str) -> Seen:
    """Of a router that connects, and speaks; `then` is what the server is told in between."""
    seen: Seen = []
    trips = Trips(SystemClock(), lambda operation, _, failure: seen.append((operation, failure)) if failure else None)
    link = Link(address, "a")
    try:
        await trips.time("connect", link.connect())
        if server is not None and then:
            with server.client() as client:
                client.execute_command(*then)
        await trips.time("hello", link.run(Caller("a", 0), [codec.hello(0, (), (), greeting=1)]))
    except StoreLost:
        pass
    finally:
        await link.close()
    return seen


def secret(folder: Path, words: str) -> str:
    file = folder / "password"
    file.write_text(words)
    return str(file)


async def test_a_server_that_is_not_there_is_a_matter_of_the_connection(server: Server) -> None:
    server.kill()
    assert await failures(address_of(server.url)) == [("connect", "connection")]


async def test_one_that_does_not_answer_is_a_matter_of_time(server: Server) -> None:
    server.freeze()
    try:
        assert await failures(address_of(server.url, timeout_s=0.1)) == [("connect", "timeout")]
    finally:
        server.thaw()


async def test_a_password_that_is_missing_or_wrong_is_a_matter_of_rights(server: Server, tmp_path: Path) -> None:
    with server.client() as client:
        client.config_set("requirepass", "open sesame")
    assert await failures(address_of(server.url)) == [("connect", "auth")]
    wrong = address_of(server.url, password_file=secret(tmp_path, "wrong"))
    assert await failures(wrong) == [("connect", "auth")]
    right = address_of(server.url, password_file=secret(tmp_path, "open sesame"))
    assert await failures(right) == []


async def test_a_user_that_may_not_run_the_steps_is_a_matter_of_rights(server: Server, tmp_path: Path) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "router", "on", ">s", *RIGHTS, "-fcall")
    url = server.url.replace("//", "//router@")
    assert await failures(address_of(url, password_file=secret(tmp_path, "s"))) == [("hello", "auth")]


async def test_a_server_whose_memory_is_full_refuses(server: Server) -> None:
    full = ("CONFIG", "SET", "maxmemory", "1")
    assert await failures(address_of(server.url), server, *full) == [("hello", "refused")]


async def test_a_primary_that_has_become_a_replica_has_moved(server: Server) -> None:
    replica = ("REPLICAOF", "127.0.0.1", str(free_port()))
    assert await failures(address_of(server.url), server, *replica) == [("hello", "moved")]
    assert await failures(address_of(server.url)) == [("connect", "moved")], "and is none to connect to"


@asynccontextmanager
async def web_server() -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    port = free_port()
    listening = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        yield port
    finally:
        listening.close()
        await listening.wait_closed()


async def test_what_is_no_redis_is_a_matter_of_its_own() -> None:
    async with web_server() as port:
        assert await failures(address_of(f"redis://127.0.0.1:{port}")) == [("connect", "other")]


async def test_a_wait_for_grants_that_fails_is_counted_while_all_else_goes_well(server: Server, tmp_path: Path) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "router", "on", ">s", *RIGHTS, "-xread")
    seen: Seen = []
    url = server.url.replace("//", "//router@")
    address = replace(address_of(url), password_file=secret(tmp_path, "s"))
    one = Replica("a", address, lambda operation, _, failure: seen.append((operation, failure)) if failure else None)
    await one.store.open(one.granted, one.refuse)
    tasks = [asyncio.create_task(loop) for loop in one.store.loops().values()]
    try:
        await until(lambda: bool(seen))
        assert set(seen) == {("news", "auth")}
        assert not one.store.is_alone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await one.store.close()
