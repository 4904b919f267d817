"""A long wait as its client hears it: silence, then a stream with comments, then the answer or an error event."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

import anthropic
import openai
import pytest

from router.wire.endpoints import BY_PATH, Dialect
from router.wiring import Router
from tests.fakes.raw_client import post, raw_client
from tests.fakes.replay import End, ReplayNode, kept_alive, said
from tests.shell.clients import Answer, Client, ask, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.replay_house import ended_as
from tests.shell.scenes import COLD, ENDLESS, QUICK, SILENT, holding, is_loading, let_load_finish, let_run, pool_of

SOON = {"comment_after_s": 0.05, "comment_every_s": 0.05}
RARELY = {"interval_s": 100}
CALL = {"prompt": "?", "messages": [{"role": "user", "content": "?"}], "input": "?", "max_tokens": 8, "stream": True}
RECORDED = {
    "/v1/chat/completions": "openai/v1-chat-stream-usage",
    "/v1/completions": "openai/v1-completions-stream-usage",
    "/v1/messages": "anthropic/v1-messages-stream",
    "/v1/responses": "openai/v1-responses-stream",
}
STREAMS = tuple(RECORDED)
ON_EACH_STREAM = pytest.mark.parametrize("path", STREAMS)
IN_LINE = re.compile(
    rb": ollama-router waiting reason=(\w+) position=(\d+) of=(\d+)(?: estimate_s=\d+)? waited_s=\d+\n\n"
)
AT_NODE = re.compile(rb": ollama-router waiting reason=prefill node=(\S+) waited_s=\d+\n\n")
DECIDED = re.compile(rb": ollama-router node=\S+ model=\S+ attempts=(\d+) queue_ms=\d+ reason=\S+\n\n")
COMMENT = re.compile(rb"^: [^\n]*\n\n", re.MULTILINE)


def call_for(path: str, model: str) -> bytes:
    return json.dumps({"model": model, **CALL, "stream_options": {"include_usage": True}}).encode()


def events(body: bytes) -> bytes:
    """What is left for a client that does not read comments."""
    return COMMENT.sub(b"", body)


def error_of(path: str, body: bytes) -> dict[str, Any]:
    """The error of the last event, after which nothing comes."""
    lines = body.removesuffix(b"\n\n").rpartition(b"\n\n")[2].split(b"\n")
    assert len(lines) == (1 if BY_PATH[path].route in ("chat_completions", "completions") else 2)
    event: dict[str, Any] = json.loads(lines[-1].removeprefix(b"data: "))
    assert not event.keys() ^ {"error"} or event["type"] == "error"
    error: dict[str, Any] = event["error"]
    return error


async def rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live and not router.connections.busy)
    assert_at_rest(router)


@ON_EACH_STREAM
async def test_a_stream_in_line_hears_its_place_and_then_its_answer(path: str) -> None:
    async with (
        holding(1, ENDLESS, line=SOON) as (pool, router),
        Client(router.port) as served,
        Client(router.port) as waiting,
    ):
        served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await served.first(b'"done":false')
        waiting.send(path, {"model": ENDLESS, **CALL}, x_request_id="mine")
        await waiting.first(b"\n\n\r\n")
        await until(lambda: len(router.store.book.ledger.waiting) == 1)
        served.leave()
        await waiting.first(b"attempts=1")
        while router.pipeline.live:
            let_run(pool.nodes[0])
            await asyncio.sleep(0)
        answer = await waiting.answer()
        assert (answer.status, answer.is_whole) == (200, True)
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["x-request-id"] == "mine"
        assert not [name for name in answer.headers if name.startswith("x-ollama-router")], "nothing was known then"
        assert IN_LINE.match(answer.body)
        assert set(IN_LINE.findall(answer.body)) == {(b"slot", b"1", b"1")}
        decided = DECIDED.search(answer.body)
        assert decided is not None
        assert not COMMENT.search(answer.body, decided.end()), "comments end with the node's first byte"
        assert not re.search(rb'^event: error|^data: {"error"', answer.body, re.MULTILINE)
        assert (await scrape(router)).value("requests_total", outcome="ok", code="200") == 1
        await rest(router)


async def test_a_place_that_moves_is_told_as_it_is_now() -> None:
    async with (
        holding(1, ENDLESS, line=SOON) as (_, router),
        Client(router.port) as served,
        Client(router.port) as before,
        Client(router.port) as waiting,
    ):
        served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await served.first(b'"done":false')
        before.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await until(lambda: len(router.store.book.ledger.waiting) == 1)
        waiting.send("/v1/chat/completions", {"model": ENDLESS, **CALL})
        await waiting.first(b"position=2 of=2")
        before.leave()
        await waiting.first(b"position=1 of=1")


async def test_who_waits_for_a_load_hears_so() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, line=SOON) as router, Client(router.port) as client:
        client.send("/v1/chat/completions", {"model": COLD, **CALL})
        await client.first(b"reason=copy position=1 of=1")
        await until(lambda: is_loading(pool.nodes[0]))
        let_load_finish(pool.nodes[0])
        answer = await client.answer()
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert DECIDED.search(answer.body)


@ON_EACH_STREAM
async def test_a_silent_prefill_is_commented_and_the_decision_stands_in_the_head(path: str) -> None:
    async with holding(1, SILENT, line=SOON) as (pool, router), Client(router.port) as client:
        client.send(path, {"model": SILENT, **CALL})
        await client.first(b"reason=prefill")
        await asyncio.sleep(0)
        let_run(pool.nodes[0])
        answer = await client.answer()
        assert (answer.status, answer.node, answer.headers["x-ollama-router-attempts"]) == (200, "sim-1", "1")
        assert AT_NODE.match(answer.body)
        assert DECIDED.search(answer.body)
        assert answer.is_whole
        await rest(router)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_native_streams_and_plain_calls_wait_in_silence(path: str) -> None:
    async with (
        holding(1, SILENT, line=SOON) as (pool, router),
        Client(router.port) as native,
        Client(router.port) as plain,
        Client(router.port) as commented,
    ):
        native.send(path, {"model": SILENT, **CALL})
        await until(lambda: bool(router.store.occupancy))
        plain.send("/v1/chat/completions", {"model": SILENT, **CALL, "stream": False})
        commented.send("/v1/chat/completions", {"model": SILENT, **CALL})
        await commented.first(b"waited_s")
        assert (native.got, plain.got) == (b"", b"")
        while router.pipeline.live:
            let_run(pool.nodes[0])
            await asyncio.sleep(0)
        answers = [await native.answer(), await plain.answer()]
        assert [(answer.status, b"ollama-router" in answer.body) for answer in answers] == [(200, False)] * 2


async def test_without_comments_a_stream_waits_for_its_true_status() -> None:
    line = {"comment_after_s": 0, "comment_every_s": 0.01}
    async with holding(1, probe=RARELY, line=line, timeouts={"first_byte_s": 0.3}) as (_, router):
        answer = await ask(router, "/v1/chat/completions", {"model": QUICK, **CALL}, x_simulate="hang")
        assert answer.status == 504


async def test_a_call_that_is_served_in_time_has_its_headers_and_no_comment() -> None:
    async with holding(1) as (_, router):
        answer = await ask(router, "/v1/chat/completions", {"model": QUICK, **CALL})
        assert (answer.node, b"ollama-router" in answer.body) == ("sim-1", False)


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", *STREAMS])
async def test_proxies_are_asked_to_pass_streams_on_and_keep_none(path: str) -> None:
    asked = {"x-accel-buffering": "no", "cache-control": "no-cache"}
    async with holding(1) as (_, router):
        streamed = await ask(router, path, {"model": QUICK, **CALL})
        plain = await ask(router, path, {"model": QUICK, **CALL, "stream": False})
    assert {name: streamed.headers.get(name) for name in asked} == asked
    assert "x-accel-buffering" not in plain.headers


@ON_EACH_STREAM
async def test_they_are_asked_so_in_a_stream_that_is_opened_early_as_well(path: str) -> None:
    async with holding(1, SILENT, line=SOON) as (pool, router), Client(router.port) as client:
        client.send(path, {"model": SILENT, **CALL})
        await client.first(b"reason=prefill")
        await asyncio.sleep(0)
        let_run(pool.nodes[0])
        answer = await client.answer()
        assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-cache")
        await rest(router)


# What comes after the early 200.


@ON_EACH_STREAM
async def test_a_wait_that_is_too_long_ends_an_open_stream_with_an_error_event(path: str) -> None:
    line = {**SOON, "max_wait_s": 0.3}
    async with holding(1, ENDLESS, line=line) as (_, router), Client(router.port) as served:
        served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await served.first(b'"done":false')
        answer = await ask(router, path, {"model": ENDLESS, **CALL})
        assert (answer.status, answer.is_whole) == (200, True)
        assert "no slot for 'endless:1b' within 0.3 s" in error_of(path, answer.body)["message"]
        assert b" refused=queue_timeout\n\n" in answer.body
        page = await scrape(router)
        assert page.value("requests_total", outcome="rejected", code="200") == 1
        assert page.value("rejections_total", reason="queue_timeout") == 1


@ON_EACH_STREAM
async def test_a_first_byte_that_never_comes_ends_an_open_stream_with_an_error_event(path: str) -> None:
    async with holding(1, probe=RARELY, line=SOON, timeouts={"first_byte_s": 0.3}) as (_, router):
        answer = await ask(router, path, {"model": QUICK, **CALL}, x_simulate="hang")
        error = error_of(path, answer.body)
        assert error["message"] == "no answer within 0.3 s (timeouts.first_byte_s of this router) from node sim-1"
        assert error.get("code") == (None if path == "/v1/messages" else "upstream_timeout")
        assert await ended_as(router) == {("timeout", 200): 1}
        await rest(router)


@ON_EACH_STREAM
@pytest.mark.parametrize("status", [400, 500])
async def test_a_nodes_own_error_is_told_in_the_open_stream_in_its_own_words(path: str, status: int) -> None:
    gate = asyncio.Event()
    if BY_PATH[path].dialect is Dialect.ANTHROPIC:
        error = {"type": "some_error", "message": "no such tool"}
        body = json.dumps({"type": "error", "error": error}).encode()
    else:
        error = {"message": "no such tool", "type": "some_error", "param": None, "code": "some_code"}
        body = json.dumps({"error": error}).encode()
    async with (
        ReplayNode("a", (gate, said(status, body))) as node,
        router_before([node], line=SOON) as router,
        Client(router.port) as client,
    ):
        client.send(path, {"model": "gemma3:270m", **CALL})
        await client.first(b"reason=prefill")
        gate.set()
        answer = await client.answer()
        assert (answer.status, answer.is_whole) == (200, True)
        assert error_of(path, answer.body) == error
        assert await ended_as(router) == {("client_error" if status == 400 else "upstream_error", 200): 1}
        await rest(router)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (said(200, b'{"choices":[]}'), "the node answered application/json instead of a stream"),
        (said(302, b""), "the node answered with status 302"),
        (said(418, b"x" * 100_000, kind=b"text/plain"), "x" * 500),
        (said(400, b"[" * 60_000), "[" * 500),
    ],
    ids=["json", "redirect", "huge", "nested"],
)
async def test_what_is_no_stream_ends_an_open_stream_with_an_error_event(answer: bytes, text: str) -> None:
    gate = asyncio.Event()
    path = "/v1/chat/completions"
    async with (
        ReplayNode("a", (gate, answer)) as node,
        router_before([node], line=SOON) as router,
        Client(router.port) as client,
    ):
        client.send(path, {"model": "gemma3:270m", **CALL})
        await client.first(b"reason=prefill")
        gate.set()
        assert error_of(path, (await client.answer()).body)["message"] == text
        await rest(router)


async def test_a_node_that_dies_after_the_early_200_is_replaced_while_nothing_of_it_has_passed() -> None:
    async with holding(2, SILENT, line=SOON) as (pool, router), Client(router.port) as client:
        client.send("/v1/chat/completions", {"model": SILENT, **CALL})
        await client.first(b"reason=prefill")
        dying = next(
            node for node in pool.nodes if node.model.copies and any(c.running for c in node.model.copies.values())
        )
        survivor = next(node for node in pool.nodes if node is not dying)
        await dying.crash()
        await client.first(f"node={survivor.name} waited_s".encode())
        let_run(survivor)
        answer = await client.answer()
        decided = DECIDED.search(answer.body)
        assert decided is not None
        assert decided[1] == b"2"
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert (await scrape(router)).value("failovers_total") == 1
        await rest(router)


@ON_EACH_STREAM
async def test_a_stream_that_breaks_after_an_early_200_ends_as_any_other(path: str) -> None:
    gate = asyncio.Event()
    begin = kept_alive(RECORDED[path])[0]
    first = begin[: begin.index(b"\n\n\r\n") + 4]
    async with (
        ReplayNode("a", (gate, first, End.RESET)) as node,
        router_before([node], line=SOON) as router,
        Client(router.port) as client,
    ):
        client.send(path, {"model": "gemma3:270m", **CALL})
        await client.first(b"reason=prefill")
        gate.set()
        answer = await client.answer()
        assert "connection to the node was lost" in error_of(path, answer.body)["message"]
        assert await ended_as(router) == {("upstream_truncated", 200): 1}
        assert len(node.heard) == 1, "no second try once a byte has passed"


async def test_a_router_that_leaves_tells_those_who_wait_in_open_streams() -> None:
    shutdown = {"drain_delay_s": 0, "stream_drain_s": 0.1}
    path = "/v1/chat/completions"
    async with (
        holding(1, SILENT, line=SOON, shutdown=shutdown) as (_, router),
        Client(router.port) as at_node,
        Client(router.port) as in_line,
    ):
        for client, reason in ((at_node, b"reason=prefill"), (in_line, b"reason=slot")):
            client.send(path, {"model": SILENT, **CALL})
            await client.first(reason)
        await router.leave()
        for client in (at_node, in_line):
            answer = await client.answer()
            assert error_of(path, answer.body)["code"] == "draining"
        assert await ended_as(router) == {("drained", 200): 2}


async def test_a_client_that_leaves_an_open_stream_leaves_nothing_behind() -> None:
    async with holding(1, SILENT, line=SOON) as (_, router):
        for path in STREAMS:
            async with Client(router.port) as client:
                client.send(path, {"model": SILENT, **CALL})
                await client.first(b"reason=prefill")
            await rest(router)
        page = await scrape(router)
        assert page.value("client_disconnects_total", phase="prefill") == len(STREAMS)
        assert page.value("requests_total", outcome="cancelled") == len(STREAMS)


# The bytes of the answer are those that would have come without comments.


@ON_EACH_STREAM
@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_an_answer_after_comments_is_byte_for_byte_the_nodes(path: str, version: bytes) -> None:
    gate = asyncio.Event()
    play = kept_alive(RECORDED[path])
    async with (
        ReplayNode("a", play, (gate, *play)) as node,
        router_before([node], line=SOON) as router,
    ):
        bodies = []
        for _ in range(2):
            async with raw_client(router.port) as client:
                client.send(post(path, call_for(path, "gemma3:270m"), version=version))
                if bodies:
                    await until(lambda: len(node.heard) == 2)
                    asyncio.get_running_loop().call_later(0.2, gate.set)
                answer = await client.answer()
                assert answer.header("transfer-encoding") == ("chunked" if version == b"1.1" else "")
                bodies.append(answer.body)
        assert COMMENT.match(bodies[1])
        assert events(bodies[1]) == bodies[0]


async def test_an_alias_is_echoed_and_usage_nobody_asked_for_hidden_after_comments_too() -> None:
    async with (
        holding(1, SILENT, line=SOON, aliases={"gpt-4": SILENT}) as (pool, router),
        Client(router.port) as client,
    ):
        client.send("/v1/chat/completions", {"model": "gpt-4", **CALL})
        await client.first(b"reason=prefill")
        let_run(pool.nodes[0])
        said_events = events((await client.answer()).body)
        assert b'"model":"gpt-4"' in said_events
        assert SILENT.encode() not in said_events
        assert b'"usage"' not in said_events


# The official clients.


@pytest.mark.parametrize("fault", ["hang", ""])
async def test_the_openai_client_reads_past_comments_and_raises_on_what_follows(fault: str) -> None:
    timeouts = {"first_byte_s": 0.4}
    async with (
        holding(1, probe=RARELY, line=SOON, timeouts=timeouts) as (_, router),
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key="k", max_retries=0) as client,
    ):
        extra = {"x-simulate": fault or "hang=0.2"}
        chat = await client.chat.completions.create(
            model=QUICK, messages=[{"role": "user", "content": "?"}], stream=True, extra_headers=extra
        )
        if not fault:
            assert [chunk async for chunk in chat]
            return
        with pytest.raises(openai.APIError, match="no answer within") as raised:
            [chunk async for chunk in chat]
        assert raised.value.code == "upstream_timeout"
        response = await client.responses.create(model=QUICK, input="?", stream=True, extra_headers=extra)
        with pytest.raises(openai.APIError, match="no answer within"):
            [event async for event in response]


async def test_the_anthropic_client_raises_on_what_follows_comments() -> None:
    async with (
        holding(1, probe=RARELY, line=SOON, timeouts={"first_byte_s": 0.3}) as (_, router),
        anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{router.port}", api_key="k", max_retries=0) as client,
    ):
        stream = await client.messages.create(
            model=QUICK,
            max_tokens=8,
            messages=[{"role": "user", "content": "?"}],
            stream=True,
            extra_headers={"x-simulate": "hang"},
        )
        with pytest.raises(anthropic.APIStatusError, match="no answer within"):
            [event async for event in stream]


# How long a client wants to wait.


@pytest.mark.parametrize("name", ["x_request_timeout", "x_stainless_read_timeout", "x_stainless_timeout"])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
async def test_a_clients_own_limit_is_kept_at_the_node_and_named(path: str, stream: bool, name: str) -> None:
    async with holding(1, probe=RARELY) as (_, router):
        call = {"model": QUICK, **CALL, "stream": stream}
        answer = await ask(router, path, call, x_simulate="hang", **{name: "0.2"})
        assert (answer.status, answer.headers["x-should-retry"]) == (504, "false")
        assert "no answer within 0.2 s (the limit that the client set) from node sim-1" in answer.body.decode()
        assert await ended_as(router) == {("timeout", 504): 1}


@pytest.mark.parametrize("stream", [True, False])
async def test_a_clients_own_limit_is_kept_in_line(stream: bool) -> None:
    async with holding(1, ENDLESS) as (_, router), Client(router.port) as served:
        served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await served.first(b'"done":false')
        answer = await generate(router, ENDLESS, stream=stream, x_request_timeout="0.2")
        assert (answer.status, answer.refused, answer.headers["x-should-retry"]) == (504, "", "false")
        assert answer.json["error"] == "no slot for 'endless:1b' within 0.2 s (the limit that the client set)"


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "inf", "1e-3", "soon", "", "99999", "0.0", "1,5", "٣"])
async def test_a_limit_that_makes_no_sense_is_no_limit(value: str) -> None:
    async with holding(1, probe=RARELY, timeouts={"first_byte_s": 0.2}) as (_, router):
        async with Client(router.port) as client:
            body = json.dumps({"model": QUICK, **CALL}).encode()
            client.send_raw(
                f"POST /api/chat HTTP/1.1\r\nHost: r\r\nx-simulate: hang\r\nx-request-timeout: {value}\r\n".encode()
                + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            answer = await client.answer()
        assert answer.status == 504
        assert "timeouts.first_byte_s" in answer.json["error"]


async def test_a_model_may_have_a_patience_of_its_own_and_advice_grows_with_its_line() -> None:
    line = {"max_wait_s": 300, "models": {ENDLESS: {"max_wait_s": 0.2}}}
    async with holding(1, ENDLESS, line=line) as (_, router), Client(router.port) as served:
        served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await served.first(b'"done":false')
        answers: list[Answer] = await asyncio.gather(*(generate(router, ENDLESS) for _ in range(20)))
        assert {(answer.status, answer.refused) for answer in answers} == {(503, "queue_timeout")}
        advice_s = sorted(int(answer.headers["retry-after-ms"]) / 1000 for answer in answers)
        # Nothing moved in this line: a second for each who stood in it, give or take a fifth.
        assert 1 <= advice_s[0] <= 1.2
        assert 0.8 * 20 <= advice_s[-1] <= 1.2 * 20
        assert all(
            int(answer.headers["retry-after"]) == math.ceil(int(answer.headers["retry-after-ms"]) / 1000)
            for answer in answers
        )


async def test_a_dead_runner_is_still_tried_once_more_after_an_early_200() -> None:
    gate = asyncio.Event()
    died = (gate, said(500, b'{"error":{"message":"model runner has unexpectedly stopped","type":"api_error"}}'))
    async with (
        ReplayNode("a", died) as one,
        ReplayNode("b", died) as other,
        router_before([one, other], line=SOON) as router,
        Client(router.port) as client,
    ):
        client.send("/v1/chat/completions", {"model": "gemma3:270m", **CALL})
        await client.first(b"reason=prefill")
        gate.set()
        answer = await client.answer()
        assert (len(one.heard), len(other.heard)) == (1, 1)
        assert error_of("/v1/chat/completions", answer.body)["code"] == "upstream_error"
        assert await ended_as(router) == {("upstream_error", 200): 1}
