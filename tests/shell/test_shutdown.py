"""Leaving well: not ready at once, serving for a while, then no new calls; who is there is served, or told."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest

from router import wiring
from router.control.prober import Prober
from router.lifecycle import LOADS_S_MIN, LoopDied, Phase
from router.wiring import Router
from tests.ports import free_port
from tests.shell.clients import Answer, Client, generate, get, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import (
    COLD,
    ENDLESS,
    QUICK,
    SILENT,
    holding,
    is_loading,
    let_load_finish,
    let_run,
    pool_of,
    running,
)

LONG = {"drain_delay_s": 0, "stream_drain_s": 60}
SHORT = {"drain_delay_s": 0, "stream_drain_s": 0.2}
CHAT = {"messages": [{"role": "user", "content": "?"}], "stream": True}


def leaving(router: Router) -> asyncio.Task[None]:
    return asyncio.create_task(router.leave())


async def is_refused(port: int) -> bool:
    try:
        async with Client(port):
            return False
    except ConnectionRefusedError:
        return True


async def test_readiness_goes_at_once_and_calls_are_served_during_the_delay() -> None:
    async with (
        holding(1, shutdown={"drain_delay_s": 0.5, "stream_drain_s": 1}) as (_, router),
        Client(router.port) as kept,
    ):
        assert (await get(router.metrics_port, "/readyz")).status == 200
        kept.send("/api/generate", {"model": QUICK, "prompt": "?"})
        assert "connection" not in (await kept.answer()).headers
        left = leaving(router)
        await until(lambda: router.lifecycle.phase is Phase.LEAVING)
        assert (await get(router.metrics_port, "/readyz")).status == 503
        assert (await get(router.metrics_port, "/livez")).status == 200
        assert (await generate(router, QUICK)).status == 200
        kept.send("/api/generate", {"model": QUICK, "prompt": "?"})
        answer = await kept.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await kept.is_closed()
        assert router.lifecycle.phase is Phase.LEAVING
        await left
        assert await is_refused(router.port)
        assert (await get(router.metrics_port, "/readyz?verbose")).body.startswith(b"[+]discovery ok\n")


async def test_lists_tell_their_clients_to_come_back_elsewhere() -> None:
    async with holding(1, shutdown={"drain_delay_s": 0.5}) as (_, router), Client(router.port) as client:
        left = leaving(router)
        await until(lambda: router.lifecycle.phase is Phase.LEAVING)
        client.send_raw(b"GET /v1/models HTTP/1.1\r\nHost: router\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers.get("connection")) == (200, "close")
        await left


async def test_idle_connections_close_when_the_listener_does() -> None:
    async with holding(1, shutdown=LONG) as (_, router), Client(router.port) as kept:
        kept.send("/api/generate", {"model": QUICK, "prompt": "?"})
        await kept.answer()
        await router.leave()
        assert await kept.is_closed()


async def test_streams_and_those_who_wait_are_served_to_their_end() -> None:
    async with (
        holding(1, ENDLESS, shutdown=LONG) as (pool, router),
        Client(router.port) as streaming,
        Client(router.port) as waiting,
    ):
        for client in (streaming, waiting):
            client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await until(lambda: running(pool) == 1)
        await streaming.first(b'"done":false')
        await until(lambda: bool(router.store.book.ledger.waiting))
        left = leaving(router)
        await until(lambda: router.lifecycle.phase is Phase.DRAINING)
        assert await is_refused(router.port)
        assert not left.done()
        let_run(pool.nodes[0])
        answers = await asyncio.gather(streaming.answer(), waiting.answer())
        assert [(answer.status, answer.is_whole, b'"done":true' in answer.body) for answer in answers] == [
            (200, True, True),
            (200, True, True),
        ]
        await left
        assert router.lifecycle.phase is Phase.GONE
        assert_at_rest(router)


async def test_a_connection_whose_stream_ends_during_the_drain_closes_and_takes_no_further_call() -> None:
    """Its head, from before, promised to keep it: a call that came on it now might be cut before its end."""
    async with (
        holding(1, ENDLESS, slots=2, shutdown=LONG) as (pool, router),
        Client(router.port) as ending,
        Client(router.port) as other,
    ):
        for client in (ending, other):
            client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await client.first(b'"done":false')
        left = leaving(router)
        await until(lambda: router.lifecycle.phase is Phase.DRAINING)
        let_run(pool.nodes[0])
        answer = await ending.answer()
        assert (answer.is_whole, answer.headers.get("connection")) == (True, None)
        assert await ending.is_closed()
        await left


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_that_comes_after_the_listener_closed_is_sent_elsewhere(path: str, stream: bool) -> None:
    """On a connection from before, of which half a head had come: all others have closed."""
    call = {"model": ENDLESS, **CHAT, "stream": stream, "max_tokens": 8}
    async with (
        holding(1, ENDLESS, shutdown=LONG) as (pool, router),
        Client(router.port) as streaming,
        Client(router.port) as late,
    ):
        streaming.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await streaming.first(b'"done":false')
        late.send_raw(b"POST %b HTTP/1.1\r\n" % path.encode())
        await until(lambda: any(each._partial_bytes >= 0 for each in router.listener._manager.connections))
        left = leaving(router)
        await until(lambda: router.lifecycle.phase is Phase.DRAINING)
        body = json.dumps(call).encode()
        late.send_raw(b"Host: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = await late.answer()
        assert (answer.status, answer.refused, answer.headers["connection"]) == (503, "draining", "close")
        assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == ("1", "1000")
        assert "please try again" in answer.body.decode()
        assert await late.is_closed()
        let_run(pool.nodes[0])
        await left
        assert (await scrape(router)).value("rejections_total", reason="draining") == 1


async def test_a_cold_call_that_waits_is_still_loaded_for() -> None:
    async with (
        pool_of(1) as pool,
        router_before(pool.nodes, shutdown=LONG) as router,
        Client(router.port) as client,
    ):
        client.send("/api/generate", {"model": COLD, "prompt": "?"})
        await until(lambda: is_loading(pool.nodes[0]))
        left = leaving(router)
        await until(lambda: router.lifecycle.phase is Phase.DRAINING)
        let_load_finish(pool.nodes[0])
        assert (await client.answer()).status == 200
        await left
        assert pool.nodes[0].journal.loads_aborted == 0


async def test_a_load_is_finished_before_the_end_though_nobody_waits() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, shutdown=LONG) as router:
        async with Client(router.port) as client:
            client.send("/api/generate", {"model": COLD, "prompt": "?"})
            await until(lambda: is_loading(pool.nodes[0]))
        left = leaving(router)
        await until(lambda: router.lifecycle.phase is Phase.GONE)
        assert not left.done()
        let_load_finish(pool.nodes[0])
        await left
        assert pool.nodes[0].journal.loads_aborted == 0


async def test_a_load_without_an_end_holds_the_process_no_longer_than_the_drain() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, shutdown=SHORT) as router:
        async with Client(router.port) as client:
            client.send("/api/generate", {"model": COLD, "prompt": "?"})
            await until(lambda: is_loading(pool.nodes[0]))
        async with asyncio.timeout(SHORT["stream_drain_s"] + LOADS_S_MIN + 2):
            await router.leave()
        await until(lambda: pool.nodes[0].journal.loads_aborted == 1)


STREAMS = {
    "/api/chat": b'{"error":"the router is shutting down"}\n',
    "/v1/chat/completions": b'data: {"error":{"message":"the router is shutting down","type":"api_error",'
    b'"param":null,"code":"draining"}}\n\n',
    "/v1/messages": b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error",'
    b'"message":"the router is shutting down"}',
    "/v1/responses": b'event: error\ndata: {"code":"draining"',
}


@pytest.mark.parametrize("path", STREAMS)
async def test_a_stream_that_outlasts_the_drain_ends_with_an_error_event(path: str) -> None:
    async with holding(1, ENDLESS, shutdown=SHORT) as (pool, router), Client(router.port) as client:
        client.send(path, {"model": ENDLESS, **CHAT, "input": "?", "max_tokens": 8})
        await client.first(b"\r\n\r\n")
        await until(lambda: running(pool) == 1)
        await router.leave()
        answer = await client.answer()
        assert (answer.status, answer.is_whole) == (200, True)
        assert STREAMS[path] in answer.body
        assert b"[DONE]" not in answer.body
        assert (await scrape(router)).labels("requests_total", "outcome") == {"drained"}
        assert_at_rest(router)
        await until(lambda: running(pool) == 0)


def assert_told(answer: Answer) -> None:
    assert (answer.status, answer.refused) == (503, "draining")
    assert answer.json["error"]["message"] == "the router is shutting down"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("model", [COLD, SILENT], ids=["waiting", "prefill"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_call_without_an_answer_by_then_gets_a_503(model: str, stream: bool) -> None:
    async with (
        holding(1, SILENT, shutdown=SHORT) as (pool, router),
        Client(router.port) as client,
    ):
        node = pool.nodes[0]
        client.send("/v1/chat/completions", {"model": model, **CHAT, "stream": stream})
        await until(lambda: running(pool) == 1 or is_loading(node))
        left = leaving(router)
        assert_told(await client.answer())
        if is_loading(node):
            let_load_finish(node)
        await left
        page = await scrape(router)
        assert page.value("requests_total", outcome="drained", code="503") == 1
        assert page.value("client_disconnects_total") == 0
        assert_at_rest(router)
        assert router.keeper.circuits.not_closed() == {}, "no blame on the node"
        await until(lambda: running(pool) == 0)


async def test_health_does_not_depend_on_nodes() -> None:
    async with pool_of(2) as pool, router_before(pool.nodes) as router:
        for node in pool.nodes:
            await node.set_fault("refuse")
        await until(lambda: not any(router.keeper.snapshot.has_node_up(key) for key in router.keeper.snapshot.keys))
        for path in ("/livez", "/readyz", "/healthz"):
            assert (await get(router.metrics_port, path)).status == 200, (
                "a clean 503 to a call is worth more than unready"
            )
        assert (await scrape(router)).value("node_up") == 0


async def test_before_nodes_were_asked_the_router_is_not_ready() -> None:
    async with pool_of(1) as pool:
        pool.nodes[0].faults.set("hang", path="/api/version")
        settings = {"nodes": [{"url": pool.nodes[0].url, "name": "sim-1"}], "probe": {"timeout_s": 60}}
        async with router_before([], **settings) as router:
            assert (await get(router.metrics_port, "/livez")).status == 200
            answer = await get(router.metrics_port, "/readyz")
            assert (answer.status, b"[-]nodes_asked failed" in answer.body) == (503, True)
            unknown = await generate(router, "any:1b")
            assert (unknown.status, unknown.refused) == (503, "no_node"), "it may be there: not yet a 404"


async def broken(*_: object) -> None:
    raise ZeroDivisionError("a defect")


async def test_a_start_whose_discovery_dies_fails_instead_of_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Prober, "follow", broken)
    async with pool_of(1) as pool, asyncio.timeout(10):
        with pytest.raises(LoopDied):
            async with router_before(pool.nodes):
                pytest.fail("served without nodes")


async def test_a_loop_that_dies_is_noticed_by_a_router_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    may_die = asyncio.Event()

    async def dying(*_: object) -> None:
        await may_die.wait()
        await broken()

    monkeypatch.setattr(wiring, "watch_lag", dying)
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        assert not router.loops.has_lost_one.is_set()
        may_die.set()
        await router.loops.has_lost_one.wait()


# The real thing, in a process of its own.


@asynccontextmanager
async def process(
    *arguments: str, files: int | None = None, **environment: str
) -> AsyncIterator[tuple[Process, dict[str, int]]]:
    """A router that serves, and its ports by name. `files` is how many descriptors it may have."""
    ports = {"listen": free_port(), "metrics": free_port()}
    command = (
        *arguments,
        "--listen",
        f"127.0.0.1:{ports['listen']}",
        "--metrics-listen",
        f"127.0.0.1:{ports['metrics']}",
        "--admin-listen",
        "127.0.0.1:0",
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_ROUTER_")}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router", *command, stdout=PIPE, stderr=PIPE, env={**clean, **environment},
        preexec_fn=None if files is None else partial(resource.setrlimit, resource.RLIMIT_NOFILE, (files, files)),
    )  # fmt: skip
    try:
        async with asyncio.timeout(30):
            while not await _is_ready(ports["metrics"]):
                assert child.returncode is None, await child.communicate()
        yield child, ports
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def _is_ready(port: int) -> bool:
    with suppress(ConnectionError):
        return (await get(port, "/readyz")).status == 200
    return False


async def test_sigterm_ends_the_process_well() -> None:
    async with process("demo", "--nodes", "2", OLLAMA_ROUTER_SHUTDOWN__DRAIN_DELAY_S="0") as (child, ports):
        async with Client(ports["listen"]) as client:
            client.send("/api/generate", {"model": "llama3.2:3b", "prompt": "secret words"})
            await client.first(b'"done":false')
            child.send_signal(signal.SIGTERM)
            answer = await client.answer()
            assert (answer.status, answer.is_whole, b'"done":true' in answer.body) == (200, True, True)
        async with asyncio.timeout(20):
            stdout, stderr = await child.communicate()
        assert (child.returncode, stderr) == (0, b"")
        lines = [json.loads(line) for line in stdout.splitlines()]
        assert lines[-1]["message"] == "left well"
        assert [(line["route"], line["outcome"]) for line in lines if line["event"] == "call"] == [
            ("api_generate", "ok")
        ]
        assert b"secret" not in stdout


DYING = """
import asyncio, sys
from router import cli, wiring

async def dying(*_):
    await asyncio.sleep(0.2)
    raise ZeroDivisionError("a defect")

wiring.watch_lag = dying
sys.exit(cli.main())
"""


async def test_a_process_that_lost_a_loop_says_so_and_exits_with_1() -> None:
    ends = [f"{end}=127.0.0.1:0" for end in ("--listen", "--metrics-listen", "--admin-listen")]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", DYING, "demo", *ends, stdout=PIPE, stderr=PIPE,
        env={**os.environ, "OLLAMA_ROUTER_SHUTDOWN__DRAIN_DELAY_S": "0"},
    )  # fmt: skip
    async with asyncio.timeout(30):
        stdout, stderr = await child.communicate()
    assert (child.returncode, stderr) == (1, b"")
    lines = [json.loads(line) for line in stdout.splitlines()]
    assert any(line["level"] == "error" and "loop lag died" in line["message"] for line in lines)
    assert lines[-1]["message"] != "left well"
