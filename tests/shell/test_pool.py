"""Connections to nodes: every address is tried, and what this host lacks is no node's fault."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from router.fleet.node import NodeSpec
from router.policy.retry import Failure
from router.upstream.access import AccessBook
from router.upstream.pool import ConnectFailed, ConnectionPool
from tests.ports import free_port
from tests.shell.house import until

HERE, THERE = "127.0.0.1", "127.0.0.2"  # both are this host


@asynccontextmanager
async def listening(address: str) -> AsyncIterator[int]:
    server = await asyncio.get_running_loop().create_server(asyncio.Protocol, address, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def pool_for(port: int, addresses: Sequence[str], connect_s: float = 5.0) -> AsyncIterator[Connecting]:
    pool = ConnectionPool(connect_s=connect_s, resolve=lambda node: addresses, access=AccessBook().of)
    try:
        yield Connecting(pool, NodeSpec("a", "a.example", port))
    finally:
        await pool.close()


class Connecting:
    def __init__(self, pool: ConnectionPool, spec: NodeSpec) -> None:
        self.pool = pool
        self.spec = spec

    async def failure(self) -> Failure:
        with pytest.raises(ConnectFailed) as caught:
            await self.pool.connect(self.spec)
        assert caught.value.text
        assert self.pool.busy == 0
        return caught.value.failure


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def silence(address: str) -> Iterator[int]:
    """A port whose backlog is full: the system drops what else comes."""
    with socket.socket() as server:
        server.bind((address, 0))
        server.listen(0)
        full = [socket.socket() for _ in range(3)]
        for client in full:
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        try:
            yield server.getsockname()[1]
        finally:
            for client in full:
                client.close()


async def test_a_node_that_listens_on_its_second_address_only_is_reached() -> None:
    async with listening(THERE) as port, pool_for(port, (HERE, THERE)) as node:
        assert (await node.pool.connect(node.spec)).is_reusable
        assert node.pool.busy == 1


async def test_an_address_that_swallows_packets_leaves_time_for_the_next() -> None:
    with silence(HERE) as port:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, THERE, port)
        async with server, pool_for(port, (HERE, THERE), connect_s=0.4) as node:
            assert (await node.pool.connect(node.spec)).is_reusable


async def test_silent_addresses_take_connect_s_in_all() -> None:
    with silence(HERE) as port:
        async with pool_for(port, (HERE, HERE, HERE), connect_s=0.3) as node:
            began_s = asyncio.get_running_loop().time()
            assert await node.failure() is Failure.CONNECT_TIMEOUT
            assert 0.25 < asyncio.get_running_loop().time() - began_s < 0.6


async def test_refused_is_said_only_where_every_address_refuses() -> None:
    async with pool_for(free_port(), (HERE, THERE)) as node:
        assert await node.failure() is Failure.CONNECT_REFUSED
    with silence(HERE) as port:
        async with pool_for(port, (HERE, THERE), connect_s=0.2) as node:
            assert await node.failure() is Failure.CONNECT_TIMEOUT


async def test_a_lack_of_descriptors_is_our_own_failure_and_no_refusal() -> None:
    async with listening(HERE) as port, pool_for(port, (HERE, THERE)) as node:
        with no_descriptors():
            assert await node.failure() is Failure.LOCAL
        assert (await node.pool.connect(node.spec)).is_reusable


async def test_an_address_that_cannot_be_reached_is_no_refusal() -> None:
    async with pool_for(free_port(), ("no.such.host.invalid",)) as node:
        assert await node.failure() is Failure.CONNECT_TIMEOUT


async def test_a_connection_that_was_on_its_way_when_its_node_was_dropped_is_not_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name may lead to another server by then, whose calls and credentials are not for this one."""
    loop = asyncio.get_running_loop()
    connect, is_dropped = loop.create_connection, asyncio.Event()

    async def late(*args: Any, **kwargs: Any) -> Any:
        await is_dropped.wait()
        return await connect(*args, **kwargs)

    async with listening(HERE) as port, pool_for(port, (HERE,)) as node:
        monkeypatch.setattr(loop, "create_connection", late)
        connecting = asyncio.create_task(node.pool.connect(node.spec))
        await asyncio.sleep(0)
        node.pool.drop_node(node.spec.name)
        is_dropped.set()
        connection = await connecting
        assert connection.is_reusable, "the call that asked for it is served"
        node.pool._went_idle(connection)
        assert node.pool.idle(node.spec) is None


async def test_a_connection_lost_before_it_was_handed_out_is_a_failure_and_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.create_connection

    async def lost_at_once(*args: Any, **kwargs: Any) -> Any:
        transport, connection = await connect(*args, **kwargs)
        transport.abort()
        await until(lambda: "closed" in repr(connection))
        return transport, connection

    async with listening(HERE) as port, pool_for(port, (HERE,)) as node:
        monkeypatch.setattr(loop, "create_connection", lost_at_once)
        assert await node.failure() is Failure.CLOSED
        assert repr(node.pool) == "<ConnectionPool 0 busy | 0 idle | 0 nodes>"
