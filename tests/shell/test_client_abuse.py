"""Clients that mean harm, or whose operators forgot them: what they cost stays within a named limit."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
from contextlib import AsyncExitStack
from typing import Any

import pytest

from router.errors import TEXT_CHARS_MAX
from router.server import catalog
from router.server import client as client_module
from router.server.client_limits import FIELDS_MAX, TARGET_BYTES_MAX
from router.server.request import ClientRequest
from router.upstream import reading
from router.upstream.reading import LARGE_READS_MAX
from router.wire.intent import SLICE_BYTES, Intent, read_intent
from tests.fakes.raw_client import exchange, get, post, raw_client
from tests.fakes.recordings import Headers, recording
from tests.fakes.replay import Play, ReplayNode, said
from tests.shell.clients import scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.replay_house import ended_as
from tests.shell.test_http_traps import CHAT, STREAM, bulk

LONG = 8_000_000  # more than the kernel takes for a client that does not read
GIGABYTE = b"Content-Length: 1000000000"


class LongLists(ReplayNode):
    """Its one model has details that make each list longer than a kernel takes for a client that does not read."""

    def asked(self, connection: object, first_line: bytes, headers: Headers, body: bytes) -> Play:
        if first_line.startswith(b"GET /api/tags "):
            model = json.loads(recording("catalog/tags").response.body)["models"][0]
            model["details"]["parameter_size"] = "9" * LONG
            return (said(200, json.dumps({"models": [model]}).encode()),)
        return super().asked(connection, first_line, headers, body)  # type: ignore[arg-type]


async def test_a_body_that_nobody_wants_is_not_kept_while_its_answer_is_not_taken() -> None:
    async with (
        LongLists("a") as node,
        router_before([node]) as router,
        raw_client(router.port, receive_buffer=4096) as client,
    ):
        client.send(get("/api/tags", GIGABYTE))
        await until(lambda: router.buffers.held > 0)
        megabyte = bytes(1 << 20)
        tracemalloc.start()
        try:
            for _ in range(32):
                client.send(megabyte)
                await until(lambda: client.unsent == 0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20
        client.leave()
        await until(lambda: not router.buffers.held)


def test_what_comes_of_a_body_after_its_handler_is_done_with_it_is_dropped() -> None:
    request = ClientRequest()
    request.feed(b"before")
    request.discard()
    request.feed(b"after")
    assert request.take() == b""


async def test_a_list_is_refused_while_the_answers_that_others_do_not_take_fill_memory() -> None:
    async with (
        LongLists("a") as node,
        router_before([node], limits={"buffered_bytes": LONG // 2}, client={"client_stall_s": 60}) as router,
        raw_client(router.port, receive_buffer=4096) as idle,
    ):
        idle.send(get("/api/tags"))
        await until(lambda: router.buffers.is_full)
        refused = await exchange(router.port, get("/api/tags"))
        assert (refused.status, refused.header("x-ollama-router-refused")) == (503, "buffers_full")
        assert refused.header("retry-after") == "1"
        assert (await exchange(router.port, get("/api/version"))).status == 200, "what is small is always answered"
        assert (await scrape(router)).value("rejections_total", reason="buffers_full") == 1
        idle.leave()
        await until(lambda: not router.buffers.held)
        assert len((await exchange(router.port, get("/api/tags"))).body) > LONG


async def test_a_client_that_half_closes_while_it_is_behind_is_gone_at_once() -> None:
    """A close would wait until its bytes are taken, and its call would go on as long."""
    raw, _ = bulk(24)
    async with (
        ReplayNode("a", (raw,)) as node,
        router_before([node], limits={"stream_buffer_bytes": 65536}, client={"client_stall_s": 60}) as router,
        raw_client(router.port, receive_buffer=4096) as client,
    ):
        client.send(post(CHAT, STREAM))
        await until(lambda: router.buffers.held > 65536)
        client.send_eof()
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("cancelled", 200): 1}
        await until(lambda: not node.open_callers)
        assert_at_rest(router)


async def test_an_answer_that_is_whole_is_still_taken_after_a_half_close_and_counts_as_long() -> None:
    async with (
        LongLists("a") as node,
        router_before([node], client={"client_stall_s": 60}) as router,
        raw_client(router.port, receive_buffer=4096) as client,
    ):
        client.send(get("/api/tags"))
        await until(lambda: router.buffers.held > 0)
        client.send_eof()
        await client.head()
        assert router.buffers.held > 0
        assert len(await client.rest()) > LONG
        await until(lambda: not router.buffers.held)


async def test_an_answer_that_nobody_takes_after_a_half_close_is_cut() -> None:
    async with (
        LongLists("a") as node,
        router_before([node], client={"client_stall_s": 0.1}) as router,
        raw_client(router.port, receive_buffer=4096) as client,
    ):
        client.send(get("/api/tags"))
        await until(lambda: router.buffers.held > 0)
        client.send_eof()
        await until(lambda: not router.buffers.held)
        assert len(await client.rest()) < LONG


@pytest.mark.parametrize(("fields", "status"), [(FIELDS_MAX, 431), (FIELDS_MAX - 2, 200)])
async def test_a_head_of_very_many_fields_is_refused(fields: int, status: int) -> None:
    """Host and one more stand beside them."""
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(get("/", b"X: y", *[b"X:"] * (fields - 1)))
        assert (await client.head())[0].split(b" ")[1] == b"%d" % status


@pytest.mark.parametrize(("size", "status"), [(TARGET_BYTES_MAX + 1, 414), (TARGET_BYTES_MAX, 404)])
async def test_a_target_that_is_longer_than_any_path_is_refused(size: int, status: int) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(get("/".ljust(size, "a")))
        assert (await client.head())[0].split(b" ")[1] == b"%d" % status


@pytest.mark.parametrize("value", [b"9" * 1_000_000, b'"' + b"9" * 1_000_000 + b'h"'])
async def test_a_refusal_does_not_repeat_megabytes(value: bytes) -> None:
    body = b'{"model":"gemma3:270m","keep_alive":%b,"messages":[]}' % value
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await exchange(router.port, post("/api/chat", body))
        assert answer.status == 400
        assert len(answer.body) < 2 * TEXT_CHARS_MAX


async def test_a_client_that_leaves_while_its_large_body_waits_to_be_read_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads that are busy with hostile bodies: whatever waits behind them must not pile up in the executor."""
    may_go, begun = threading.Event(), []

    def slow(*args: Any, **kwargs: Any) -> Intent:
        begun.append(1)
        may_go.wait(10)
        return read_intent(*args, **kwargs)

    monkeypatch.setattr(reading, "read_intent", slow)
    large = post(CHAT, b'{"model":"gemma3:270m","x":"%b","messages":[]}' % (b"x" * SLICE_BYTES))
    async with ReplayNode("a") as node, router_before([node]) as router, AsyncExitStack() as stack:
        stack.callback(may_go.set)
        clients = [await stack.enter_async_context(raw_client(router.port)) for _ in range(LARGE_READS_MAX + 8)]
        for client in clients:
            client.send(large)
        await until(lambda: router.buffers.held > len(clients) * SLICE_BYTES and len(begun) == LARGE_READS_MAX)
        for client in clients:
            client.leave()
        await until(lambda: not router.pipeline.live and not router.buffers.held)
        may_go.set()
        assert (await exchange(router.port, large)).status == 400
        assert len(begun) == LARGE_READS_MAX + 1


async def test_a_page_that_meets_a_defect_is_a_500_and_its_connection_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(nodes: object) -> str:
        raise RecursionError("a defect")

    monkeypatch.setattr(catalog, "lowest_version", broken)
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(get("/api/version") + get("/"))
        answer = await client.answer()
        assert (answer.status, list(json.loads(answer.body))) == (500, ["error"])
        assert (await client.answer()).body == b"Ollama is running"
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


async def test_a_client_that_goes_on_sending_after_its_refusal_is_read_for_a_while_and_no_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_module, "LINGER_S", 0.05)
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(b"no HTTP\r\n\r\n")
        assert (await client.head())[0] == b"HTTP/1.1 400 Bad Request"
        async with asyncio.timeout(10):
            while router.listener.connections:
                client.send(b"and more")
                await asyncio.sleep(0.001)
