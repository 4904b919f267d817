"""Which server has the pool's keys now: the one that is named, that sentinels name, or that has the slot in a cluster.

Asked at every connecting, so that whoever lost a server finds the one that took over. redis-py has clients of its own
for both; they retry by themselves, and that of a cluster follows a slot that is half moved: a step would meet half of
what the pool knows. All keys of a pool are in one slot, so that a cluster is one server here, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import MovedError, RedisError

from router.store.redis.address import Address, Kind, Server
from router.store.redis.client import client, end, sentinel, told

HOPS_MAX = 5  # servers of a cluster that send us on, one to the next, while the news of a move spreads
NOWHERE = ("", "?")  # of a server that does not know its own address: it is the one that we asked


class NoPrimary(RedisError):
    """Nobody who was asked knows a server that has the pool's keys."""


async def find(address: Address, key: str) -> Server:
    """The server with `key`. Refuses with RedisError, OSError, TimeoutError."""
    url = address.url
    if url.kind is Kind.SENTINEL:
        return await _named_by_sentinels(address)
    if url.kind is Kind.CLUSTER:
        ((_, server),) = await _ask(url.servers, lambda one: _owner(address, key, one), 1)
        return server
    return url.servers[0]


async def _named_by_sentinels(address: Address) -> Server:
    """The latest fail-over's. One sentinel may not have heard of it yet; of more than half, one has."""
    servers = address.url.servers
    heard = await _ask(servers, lambda one: _named(address, one), len(servers) // 2 + 1)
    return max(heard)[1]


async def _named(address: Address, server: Server) -> tuple[int, Server]:
    """The number of the fail-over, and who is the primary since."""
    service, asked = address.url.service, sentinel(address, server)
    try:
        state = await asked.execute_command("SENTINEL MASTER", service)  # type: ignore[no-untyped-call]
    finally:
        await end(asked)
    named = Server(str(state["ip"]), int(state["port"]))
    if state["is_odown"]:
        raise NoPrimary(f"the sentinels agree that {service} at {named} is down")
    return int(state["config-epoch"]), named


async def _owner(address: Address, key: str, server: Server) -> tuple[int, Server]:
    for hops in range(HOPS_MAX):
        asked = client(address, server, address.timeout_s)
        try:
            await asked.exists(key)
        except MovedError as moved:
            server = Server(server.host if moved.host in NOWHERE else moved.host, moved.port)
        else:
            return hops, server
        finally:
            await end(asked)
    raise NoPrimary(f"{HOPS_MAX} servers sent us on, one to the next, the last to {server}")


async def _ask(
    servers: Sequence[Server], question: Callable[[Server], Awaitable[tuple[int, Server]]], enough: int
) -> list[tuple[int, Server]]:
    """All of them at once, until enough have answered; then, or when all are through, what was heard, at least one."""
    heard: list[Any] = []
    failed = ""
    async with asyncio.TaskGroup() as group:
        asked = {group.create_task(_answer(question, server)): server for server in servers}
        for answer in asyncio.as_completed(asked):
            found = await answer
            if isinstance(found, BaseException):
                failed = failed or told(found)
                continue
            heard.append(found)
            if len(heard) == enough:
                break
        for task in asked:
            task.cancel()
    if not heard:
        raise NoPrimary(f"none of {', '.join(map(str, servers))} knows the primary: {failed}")
    return heard


async def _answer(
    question: Callable[[Server], Awaitable[tuple[int, Server]]], server: Server
) -> tuple[int, Server] | Exception:
    try:
        return await question(server)
    except (RedisError, OSError, TimeoutError) as error:
        return error
