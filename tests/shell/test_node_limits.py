"""What one node's answer may cost, whatever it sends: each limit is reached here."""

from __future__ import annotations

import asyncio

import pytest

from router.fleet.node import NodeSpec
from router.seams import NodeFailed
from router.upstream import node_api
from router.upstream.access import AccessBook
from router.upstream.connection import HEAD_BYTES_MAX
from router.upstream.forward import HELD_BYTES_MAX
from router.upstream.node_api import HttpNodeApi
from router.upstream.pool import IDLE_PER_NODE_MAX
from router.wiring import SystemClock
from tests.fakes.raw_client import exchange, post, raw_client
from tests.fakes.replay import ReplayNode, kept_alive, said
from tests.shell.house import assert_at_rest, router_before, until

CHAT = "/v1/chat/completions"
BODY = b'{"model":"gemma3:270m","messages":[{"role":"user","content":"a"}]}'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BLOCK = 64 * 1024


@pytest.mark.parametrize(
    ("begun", "more"),
    [(HEAD + b"X: ", b"a"), (HEAD, b"A: b\r\n"), (b"", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")],
    ids=["a value", "fields", "hints"],
)
async def test_a_head_that_does_not_end_is_no_answer(begun: bytes, more: bytes) -> None:
    """The node goes on for ever: only the limit ends it."""
    blocks = [more * (BLOCK // len(more))] * (2 * HEAD_BYTES_MAX // BLOCK)
    async with ReplayNode("a", (begun, *blocks, asyncio.Event())) as node, router_before([node]) as router:
        assert (await exchange(router.port, post(CHAT, BODY))).status == 502
        await until(lambda: not router.pipeline.live and not node.open_callers)
        assert_at_rest(router)


async def test_trailers_of_an_answer_are_read_past() -> None:
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n" + b"X-Trailer: y\r\n" * 1000 + b"\r\n"
    async with ReplayNode("a", (chunked,)) as node, router_before([node]) as router, raw_client(router.port) as client:
        for _ in range(2):
            client.send(post(CHAT, BODY))
            answer = await client.answer()
            assert (answer.status, answer.body, answer.header("x-trailer")) == (200, b"{}", "")
        assert len(node.callers) == 1


async def test_an_error_longer_than_what_is_held_back_passes_before_its_end() -> None:
    gate = asyncio.Event()
    whole = said(500, b'{"error":"%b"}' % (b"x" * 2 * HELD_BYTES_MAX))
    begun = whole[: HELD_BYTES_MAX + 4096]
    async with (
        ReplayNode("a", (begun, gate, whole[len(begun) :])) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, BODY))
        assert (await client.head())[0].startswith(b"HTTP/1.1 500 ")
        gate.set()
        assert len(await client.some(2 * HELD_BYTES_MAX)) == 2 * HELD_BYTES_MAX


async def test_no_more_idle_connections_are_kept_than_a_node_may_have() -> None:
    gate, calls = asyncio.Event(), IDLE_PER_NODE_MAX + 8
    async with (
        ReplayNode("a", (gate, *kept_alive("openai/v1-chat"))) as node,
        router_before([node], nodes=[{"url": node.url, "name": "a", "slots": calls}]) as router,
    ):
        asking = [asyncio.create_task(exchange(router.port, post(CHAT, BODY))) for _ in range(calls)]
        await until(lambda: len(node.heard) == calls)
        gate.set()
        assert {(await answer).status for answer in asking} == {200}
        await until(lambda: not router.connections.busy)
        assert f"{IDLE_PER_NODE_MAX} idle" in repr(router.connections)
        await until(lambda: node.open_callers == IDLE_PER_NODE_MAX)


async def test_a_report_that_is_too_large_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_api, "REPORT_BYTES_MAX", 100)
    async with ReplayNode("a") as node:
        host, port = node.url.removeprefix("http://").split(":")
        async with HttpNodeApi(SystemClock(), connect_s=3, timeout_s=3, access=AccessBook().of) as api:
            with pytest.raises(NodeFailed, match="more than 100 bytes"):
                await api.tags(NodeSpec("a", host, int(port)))
