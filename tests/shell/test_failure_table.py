"""The failure table as clients see it: each row in three dialects, streaming and not.

What operators see of it, and what happens in between, is in test_node_failures, test_cancel, test_shutdown and
test_slow_readers; what an open stream is told instead, in test_waiting.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from router.simulation.pool import SimulatedPool
from router.wire.endpoints import BY_PATH, Dialect
from router.wire.names import parse_name
from router.wiring import Router
from tests.fakes.replay import End, ReplayNode, kept_alive, said
from tests.shell.clients import Answer, Client, ask, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.replay_house import ended_as
from tests.shell.scenes import ENDLESS, QUICK, SILENT, asked, holding, running

RARELY = {"interval_s": 100}  # what traffic shows must come from traffic
RECORDED_MODEL = "gemma3:270m"
PLAIN = {"/api/chat": "native/chat", "/v1/chat/completions": "openai/v1-chat", "/v1/messages": "anthropic/v1-messages"}
STREAMED = {path: f"{name}-stream" for path, name in PLAIN.items()}
TERMINATORS = (b"data: [DONE]", b"message_stop", b'"done":true')
BUSY = "server busy, please try again.  maximum pending requests exceeded"

EACH = [(path, stream) for path in PLAIN for stream in (True, False)]
IN_EACH_DIALECT = pytest.mark.parametrize(
    ("path", "stream"), EACH, ids=[f"{p}-{'stream' if s else 'plain'}" for p, s in EACH]
)


def call(model: str, stream: bool, **more: object) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 8, "stream": stream, **more}


def text_of(path: str, answer: Answer) -> str:
    """Of an error in the shape of its dialect."""
    said_ = answer.json
    dialect = BY_PATH[path].dialect
    if dialect is Dialect.OLLAMA:
        assert said_.keys() == {"error"}
        text: str = said_["error"]
        return text
    error = said_["error"]
    if dialect is Dialect.OPENAI:
        assert error.keys() == {"message", "type", "param", "code"}
    else:
        assert (said_["type"], error.keys()) == ("error", {"type", "message"})
    text = error["message"]
    return text


def assert_told(path: str, answer: Answer, status: int, text: str, *, refused: str = "", retry: bool = False) -> None:
    """A refusal before the answer: its own status, shape, advice, and always an id."""
    assert (answer.status, answer.is_whole, answer.refused) == (status, True, refused)
    assert text in text_of(path, answer)
    assert answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers, "retry-after-ms" in answer.headers) == (retry, retry)


def assert_broken(path: str, answer: Answer, stream: bool) -> None:
    """After the first byte: an error event without a terminator; of a plain answer a connection that breaks."""
    assert answer.status == 200
    assert not any(terminator in answer.body for terminator in TERMINATORS)
    assert answer.is_whole == stream
    if stream:
        last = answer.body.strip().rpartition(b"\n")[2].removeprefix(b"data: ")
        assert "error" in json.loads(last)


async def rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live and not router.connections.busy)
    assert_at_rest(router)


@IN_EACH_DIALECT
async def test_a_node_that_refuses_its_connection_is_not_seen(path: str, stream: bool) -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        await pool.nodes[0].set_fault("refuse")
        messages = [[{"role": "user", "content": f"{number}?"}] for number in range(8)]
        answers = [await ask(router, path, {**call(QUICK, stream), "messages": each}) for each in messages]
        assert {(answer.status, answer.node, answer.is_whole) for answer in answers} == {(200, "sim-2", True)}
        await rest(router)


@IN_EACH_DIALECT
async def test_a_node_that_dies_within_its_answer_breaks_it_visibly(path: str, stream: bool) -> None:
    whole = kept_alive((STREAMED if stream else PLAIN)[path])[0]
    begun = whole[: whole.index(b"\r\n\r\n") + (500 if stream else 60)]
    if stream:  # at the end of an event: an error event within one could not be read
        begun = begun[: begun.rindex(b"\n\r\n") + 3]
    async with ReplayNode("a", (begun, End.RESET)) as node, router_before([node]) as router:
        assert_broken(path, await ask(router, path, call(RECORDED_MODEL, stream)), stream)
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("upstream_truncated", 200): 1}
        assert len(node.heard) == 1
        await rest(router)


@IN_EACH_DIALECT
async def test_an_answer_that_falls_silent_breaks_visibly(path: str, stream: bool) -> None:
    whole = kept_alive((STREAMED if stream else PLAIN)[path])[0]
    begun = whole[: whole.index(b"\r\n\r\n") + (500 if stream else 60)]
    if stream:
        begun = begun[: begun.rindex(b"\n\r\n") + 3]
    async with (
        ReplayNode("a", (begun, asyncio.Event())) as node,
        router_before([node], timeouts={"idle_s": 0.2}) as router,
    ):
        assert_broken(path, await ask(router, path, call(RECORDED_MODEL, stream)), stream)
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("upstream_truncated", 200): 1}
        await rest(router)


@IN_EACH_DIALECT
async def test_a_runner_that_dies_before_the_first_byte_is_a_502_after_one_more_try(path: str, stream: bool) -> None:
    async with holding(3, probe=RARELY) as (pool, router):
        answer = await ask(router, path, call(QUICK, stream), x_simulate="runner_died=0")
        assert_told(path, answer, 502, "no node could answer (runner_died)")
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["x-ollama-router-attempts"] == "2"
        assert sum(asked(node) for node in pool.nodes) == 2
        await rest(router)


@IN_EACH_DIALECT
async def test_a_node_that_hangs_is_a_504_in_time(path: str, stream: bool) -> None:
    limits = {"first_byte_s": 0.2, "plain_s": 0.2}
    async with holding(2, probe=RARELY, timeouts=limits) as (_, router):
        answer = await ask(router, path, call(QUICK, stream), x_simulate="hang")
        limit = "timeouts.first_byte_s" if stream else "timeouts.plain_s"
        assert_told(path, answer, 504, f"no answer within 0.2 s ({limit} of this router) from node {answer.node}")
        assert answer.headers["x-should-retry"] == "false"
        await rest(router)


@IN_EACH_DIALECT
async def test_a_model_on_no_node_is_a_404_in_ollamas_words(path: str, stream: bool) -> None:
    async with holding(1) as (_, router):
        answer = await ask(router, path, call("nobody:7b", stream))
        assert_told(path, answer, 404, "model 'nobody:7b' not found", refused="model_not_found")


@IN_EACH_DIALECT
async def test_a_model_whose_nodes_are_all_down_is_a_503(path: str, stream: bool) -> None:
    async with holding(2) as (pool, router):
        for node in pool.nodes:
            await node.set_fault("refuse")
        await until(lambda: not router.keeper.snapshot.has_node_up(parse_name(QUICK).key))
        answer = await ask(router, path, call(QUICK, stream))
        assert_told(path, answer, 503, QUICK, refused="no_node", retry=True)


@IN_EACH_DIALECT
async def test_behind_open_breakers_calls_wait_and_are_served(path: str, stream: bool) -> None:
    async with holding(1) as (pool, router):
        pool.nodes[0].faults.set("malformed", times=3, path=path)
        for _ in range(3):
            answer = await ask(router, path, call(QUICK, stream))
            assert_told(path, answer, 502, "no node could answer (garbage)")
        assert (await scrape(router)).value("circuit_state", node="sim-1", state="open") == 1
        answer = await ask(router, path, call(QUICK, stream))
        assert (answer.status, answer.is_whole) == (200, True)
        assert int(answer.headers["x-ollama-router-queue-ms"]) > 0


@IN_EACH_DIALECT
async def test_a_full_line_is_a_503_with_advice(path: str, stream: bool) -> None:
    line = {"max_waiting_per_model": 0}
    async with holding(1, ENDLESS, line=line) as (_, router), Client(router.port) as served:
        served.send("/api/chat", call(ENDLESS, True))
        await served.first(b'"done":false')
        assert_told(path, await ask(router, path, call(ENDLESS, stream)), 503, BUSY, refused="queue_full", retry=True)


@IN_EACH_DIALECT
async def test_a_wait_that_was_too_long_is_a_503_with_advice(path: str, stream: bool) -> None:
    async with holding(1, ENDLESS, line={"max_wait_s": 0.1}) as (_, router), Client(router.port) as served:
        served.send("/api/chat", call(ENDLESS, True))
        await served.first(b'"done":false')
        answer = await ask(router, path, call(ENDLESS, stream))
        assert_told(path, answer, 503, f"no slot for '{ENDLESS}' within 0.1 s", refused="queue_timeout", retry=True)
        assert int(answer.headers["x-ollama-router-queue-ms"]) >= 100


@IN_EACH_DIALECT
@pytest.mark.parametrize("leave", [Client.leave, Client.half_close], ids=["reset", "half_close"])
@pytest.mark.parametrize("model", [SILENT, ENDLESS], ids=["prefill", "streaming"])
async def test_a_client_that_leaves_frees_its_slot(
    path: str, stream: bool, model: str, leave: Callable[[Client], None]
) -> None:
    async with holding(1, model) as (pool, router), Client(router.port) as client, Client(router.port) as waiting:
        client.send(path, call(model, stream))
        await until(lambda: running(pool) == 1)
        waiting.send(path, call(model, stream))
        await until(lambda: len(router.store.book.ledger.waiting) == 1)
        leave(waiting)
        await until(lambda: not router.store.book.ledger.waiting)
        if model == ENDLESS and stream:
            await client.first(b"\r\n\r\n")
        leave(client)
        await until(lambda: running(pool) == 0)
        await rest(router)
        page = await scrape(router)
        phase = "streaming" if model == ENDLESS and stream else "prefill"
        assert page.value("client_disconnects_total", phase=phase) == 1
        assert page.value("client_disconnects_total", phase="waiting") == 1


# The retry table, before the node's first byte.


@IN_EACH_DIALECT
@pytest.mark.parametrize("fault", ["malformed", "refuse", "status=503", "runner_died=0"])
async def test_what_one_node_cannot_another_does(path: str, stream: bool, fault: str) -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        name, _, argument = fault.partition("=")
        for node in pool.nodes:
            node.faults.set(name, argument, times=1, path=path)
        first = await _until_retried(router, pool, path, stream)
        assert (first.status, first.is_whole, first.headers["x-ollama-router-attempts"]) == (200, True, "2")


async def _until_retried(router: Router, pool: SimulatedPool, path: str, stream: bool) -> Answer:
    """Only one of the nodes fails: the other is healed before it is asked."""
    failing, healthy = pool.nodes
    healthy.faults.clear()
    for number in range(32):
        messages = [{"role": "user", "content": f"{number}?"}]
        answer = await ask(router, path, {**call(QUICK, stream), "messages": messages})
        if asked(failing) or answer.headers["x-ollama-router-attempts"] == "2":
            return answer
    raise AssertionError("the failing node was never asked")


@IN_EACH_DIALECT
async def test_a_busy_node_without_another_is_told_as_busy(path: str, stream: bool) -> None:
    async with holding(1) as (_, router):
        answer = await ask(router, path, call(QUICK, stream), x_simulate="status=503")
        assert_told(path, answer, 503, BUSY, refused="queue_full", retry=True)


@IN_EACH_DIALECT
async def test_any_other_status_is_the_nodes_own_answer(path: str, stream: bool) -> None:
    body = b'{"error":"as it was said"}'
    async with ReplayNode("a", (said(418, body),)) as node, router_before([node]) as router:
        answer = await ask(router, path, call(RECORDED_MODEL, stream))
        assert (answer.status, answer.body, answer.node, answer.refused) == (418, body, "a", "")
        assert answer.headers["x-request-id"]
        assert await ended_as(router) == {("client_error", 418): 1}


@IN_EACH_DIALECT
async def test_a_model_that_its_only_node_has_lost_is_a_502_at_once_and_a_404_after(path: str, stream: bool) -> None:
    async with holding(1, probe=RARELY) as (pool, router):
        del pool.nodes[0].disk[parse_name(QUICK).key]
        first = await ask(router, path, call(QUICK, stream))
        assert first.status == 502, "it was listed a moment ago"
        text_of(path, first)
        assert_told(
            path,
            await ask(router, path, call(QUICK, stream)),
            404,
            f"model '{QUICK}' not found",
            refused="model_not_found",
        )


@IN_EACH_DIALECT
async def test_a_drain_that_is_over_tells_who_is_still_waiting(path: str, stream: bool) -> None:
    shutdown = {"drain_delay_s": 0, "stream_drain_s": 0.1}
    async with holding(1, SILENT, shutdown=shutdown) as (_, router), Client(router.port) as client:
        client.send(path, call(SILENT, stream))
        await until(lambda: bool(router.store.occupancy))
        await router.leave()
        answer = await client.answer()
        assert_told(path, answer, 503, "the router is shutting down", refused="draining", retry=True)
        assert answer.headers["connection"] == "close"


@IN_EACH_DIALECT
async def test_a_router_that_is_leaving_serves_during_its_delay(path: str, stream: bool) -> None:
    async with holding(1, shutdown={"drain_delay_s": 0.3}) as (_, router):
        left = asyncio.create_task(router.leave())
        await until(lambda: router.lifecycle.is_leaving)
        answer = await ask(router, path, call(QUICK, stream))
        assert (answer.status, answer.is_whole, answer.headers["connection"]) == (200, True, "close")
        await left
