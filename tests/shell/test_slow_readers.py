"""What a client that falls behind may cost the others: nothing but its own answer."""

from __future__ import annotations

import asyncio
import json
from typing import cast

import pytest

from router.policy.retry import Failure
from router.server.buffers import Buffers
from router.server.reply import ClientReply
from router.upstream.connection import NodeConnection
from router.upstream.moderation import Moderation
from router.upstream.waiting import WaitingStream
from tests.fakes.raw_client import post, raw_client
from tests.fakes.replay import ReplayNode
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.replay_house import ended_as
from tests.shell.test_http_traps import CHAT, STREAM, bulk

PLAIN = json.dumps({"model": "gemma3:270m", "messages": [{"role": "user", "content": "?"}]}).encode()
SMALL = {"stream_buffer_bytes": 65536}
FAST_BYTES = 6_000_000  # more than the kernel takes at once: the transport is behind when the answer ends


def plain(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


class Socket:
    """A transport that only remembers whether it is read."""

    is_read = True

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True

    def write(self, data: bytes) -> None:
        """Taken."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> None:
        return None


class Overrun:
    """A listener whose client falls behind with the last bytes of its answer."""

    def __init__(self, connection: NodeConnection) -> None:
        self._connection = connection

    def head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Nothing yet."""

    def piece(self, data: bytes) -> None:
        """Nothing yet."""

    def flush(self) -> None:
        """Nothing yet."""

    def ended(self) -> None:
        self._connection.pause_reading()

    def failed(self, failure: Failure) -> None:
        raise AssertionError(failure)


async def test_a_connection_that_the_last_bytes_paused_is_read_again_when_it_goes_idle() -> None:
    idle: list[NodeConnection] = []
    connection, socket = NodeConnection(idle.append, lambda lost: None, Moderation()), Socket()
    connection.connection_made(cast(asyncio.Transport, socket))
    connection.send((b"POST",), Overrun(connection))
    connection.data_received(plain(b"{}"))
    assert (idle, socket.is_read) == ([connection], True)


class Full(Socket):
    """A transport whose client takes nothing."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def get_write_buffer_size(self) -> int:
        return sum(map(len, self.written))


class Filler:
    """Somebody who fills a reply, and is told to wait."""

    is_paused = False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def stalled(self) -> None:
        """Not in this test."""


def reply_on(transport: Full) -> ClientReply:
    return ClientReply(
        cast(asyncio.Transport, transport),
        is_http10=False,
        stall_s=10,
        buffers=Buffers(1 << 20),
        is_leaving=lambda: False,
    )


async def test_a_client_that_reads_nothing_is_not_buried_in_comments() -> None:
    transport = Full()
    waiting = WaitingStream(reply_on(transport), "r", 0.0)
    for number in range(1000):
        waiting.say(b": comment %d\n\n" % number)
    assert b"".join(transport.written).count(b": comment") == 1


async def test_an_answer_that_begins_behind_unsent_comments_is_held_from_its_first_byte() -> None:
    filler, reply = Filler(), reply_on(Full())
    reply.pause()
    reply.flow_to(filler)
    assert filler.is_paused
    reply.resume()
    assert not filler.is_paused
    reply.close()


async def test_bytes_that_wait_for_their_client_count_until_it_takes_them() -> None:
    long = plain(b'{"x":"%b"}' % (b"x" * FAST_BYTES))
    async with (
        ReplayNode("a", (long,)) as node,
        router_before([node]) as router,
        raw_client(router.port, receive_buffer=4096) as slow,
    ):
        slow.send(post(CHAT, PLAIN))
        await until(lambda: bool(node.heard) and not node.unsent and not router.pipeline.live)
        assert router.buffers.held > 0
        assert (await slow.answer()).is_whole
        await until(lambda: not router.buffers.held)


async def test_a_client_that_never_takes_the_rest_of_its_answer_is_cut() -> None:
    long = plain(b'{"x":"%b"}' % (b"x" * FAST_BYTES))
    async with (
        ReplayNode("a", (long,)) as node,
        router_before([node], client={"client_stall_s": 0.1}) as router,
        raw_client(router.port, receive_buffer=4096) as slow,
    ):
        slow.send(post(CHAT, PLAIN))
        await until(lambda: router.buffers.held > 0)
        await until(lambda: not router.buffers.held)
        assert_at_rest(router)
        assert len(await slow.rest()) < len(long)


async def test_a_stalled_reader_is_cut_also_while_the_buffers_are_full() -> None:
    raw, _ = bulk(24)
    async with (
        ReplayNode("a", (raw,), (plain(b"{}"),)) as node,
        router_before([node], limits={"buffered_bytes": 262144}, client={"client_stall_s": 0.1}) as router,
        raw_client(router.port, receive_buffer=4096) as stalled,
        raw_client(router.port) as other,
    ):
        stalled.send(post(CHAT, STREAM))
        await until(lambda: router.buffers.is_full)
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("stalled", 200): 1}
        other.send(post(CHAT, PLAIN))
        assert (await other.answer()).body == b"{}"


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_without_a_body_leaves_nothing_for_the_next_one_to_be_read_as(status: bytes) -> None:
    empty = b"HTTP/1.1 %b\r\n\r\n" % status
    async with (
        ReplayNode("a", (empty,), (plain(b"{}"),)) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        for _ in range(2):
            client.send(post(CHAT, PLAIN))
        first = await client.head()
        assert first[0] == b"HTTP/1.1 " + status
        assert not first[1].get(b"transfer-encoding")
        assert (await client.answer()).body == b"{}"


async def test_a_stream_that_promises_its_length_may_lose_the_usage_nobody_asked_for() -> None:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}\n\n'
    content = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}]}\n\n'
    body = content + usage + b"data: [DONE]\n\n"
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with (
        ReplayNode("a", (raw,)) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, STREAM))
        answer = await client.answer()
        assert (answer.body, answer.is_whole) == (content + b"data: [DONE]\n\n", True)
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("ok", 200): 1}


async def test_a_node_that_wants_to_speak_another_protocol_speaks_garbage() -> None:
    switching = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"
    async with (
        ReplayNode("a", (switching,)) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, PLAIN))
        assert (await client.answer()).status == 502
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)
