"""What fails, what the client sees of it, and what the operator sees: the failure table, line by line."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from router.fleet.node import Health
from router.simulation.facts import Event
from router.wire.names import parse_name
from router.wiring import Router
from tests.fakes.replay import ReplayNode, said
from tests.shell.clients import Answer, Client, ask, converse, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import ENDLESS, QUICK, SILENT, asked, holding, let_run, no_bugs, pool_of, running

# What traffic shows must come from traffic. Twice the interval is less than a keep-alive, or no copy counted as ready.
RARELY = {"interval_s": 100}
CALL = {"prompt": "?", "messages": [{"role": "user", "content": "?"}], "input": "?", "max_tokens": 8, "stream": True}
ROUTES = {
    "/api/generate": b'{"error":"',
    "/api/chat": b'{"error":"',
    "/v1/chat/completions": b'data: {"error":{"message":"',
    "/v1/completions": b'data: {"error":{"message":"',
    "/v1/messages": b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"',
    "/v1/responses": b'event: error\ndata: {"code":',
}
TERMINATORS = (b"data: [DONE]", b"message_stop", b"response.completed", b'"done":true')
ON_EACH_ROUTE = pytest.mark.parametrize("path", ROUTES)


async def rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live and not router.connections.busy)
    assert_at_rest(router)


def assert_error_event(path: str, answer: Answer) -> None:
    """A stream that says what went wrong and is whole as HTTP, but without the route's terminator."""
    assert answer.status == 200
    assert answer.is_whole
    last = answer.body.rindex(ROUTES[path])
    assert answer.body.endswith(b"}\n" if path.startswith("/api/") else b"}\n\n")
    assert not any(terminator in answer.body for terminator in TERMINATORS), answer.body
    said = answer.body[last:].removeprefix(b"event: error\n").removeprefix(b"data: ")
    assert "error" in json.loads(said)


async def test_a_node_that_refuses_is_replaced_before_anybody_sees_it() -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        failing = pool.nodes[0]
        await failing.set_fault("refuse")
        answers = await converse(router, QUICK, 16)
        assert {(answer.status, answer.node) for answer in answers} == {(200, "sim-2")}
        page = await scrape(router)
        assert page.value("node_up", node="sim-1") == 0
        assert page.value("node_up", node="sim-2") == 1
        assert page.value("failovers_total", reason="connect_refused") == 1, "once is enough to know"
        assert page.value("upstream_requests_total", node="sim-1", outcome="connect_refused") == 1
        await rest(router)


async def test_a_retried_call_says_how_often_it_was_tried() -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        for node in pool.nodes:
            await node.set_fault("malformed", times=1, path="/api/generate")
        answer = await generate(router, QUICK, stream=False)
        assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
        again = await generate(router, QUICK)
        assert (again.status, again.headers["x-ollama-router-attempts"]) == (200, "1")


@pytest.mark.parametrize("fault", ["malformed", "refuse", "status=503", "runner_died=0"])
@pytest.mark.parametrize("stream", [True, False])
async def test_what_one_node_cannot_another_does(fault: str, stream: bool) -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        name, _, argument = fault.partition("=")
        pool.nodes[0].faults.set(name, argument, times=1, path="/api/chat")
        answers = [
            await ask(router, "/api/chat", {"model": QUICK, "messages": [{"role": "user", "content": f"{number}?"}]})
            for number in range(16)
        ]
        assert {answer.status for answer in answers} == {200}
        assert sorted({answer.headers["x-ollama-router-attempts"] for answer in answers}) == ["1", "2"]
        page = await scrape(router)
        assert page.value("requests_total", outcome="ok") == 16
        assert page.value("failovers_total") == 1
        await rest(router)
        assert no_bugs(pool)


@ON_EACH_ROUTE
@pytest.mark.parametrize("fault", ["cut=3", "end=3", "runner_died=3"])
async def test_a_stream_that_breaks_ends_with_an_error_event(path: str, fault: str) -> None:
    async with holding(2, probe=RARELY) as (_, router):
        answer = await ask(router, path, {"model": QUICK, **CALL}, x_simulate=fault)
        assert_error_event(path, answer)
        page = await scrape(router)
        assert page.labels("requests_total", "outcome") == {"upstream_truncated"}
        assert page.value("retries_total") == 0, "the client has seen bytes"
        await rest(router)


async def test_a_node_that_crashes_in_mid_stream_ends_it_with_an_error_event() -> None:
    async with (
        holding(1, ENDLESS) as (pool, router),
        Client(router.port) as client,
    ):
        client.send("/v1/chat/completions", {"model": ENDLESS, **CALL})
        await client.first(b"data: ")
        await pool.nodes[0].crash()
        assert_error_event("/v1/chat/completions", await client.answer())
        await until(lambda: not router.keeper.snapshot.has_node_up(parse_name(ENDLESS).key))
        await rest(router)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_node_that_crashes_before_its_first_byte_is_replaced(stream: bool) -> None:
    async with holding(2, SILENT) as (pool, router), Client(router.port) as client:
        client.send("/api/generate", {"model": SILENT, **CALL, "stream": stream})
        await until(lambda: running(pool) == 1)
        dying, survivor = sorted(pool.nodes, key=asked, reverse=True)
        await dying.crash()
        await until(lambda: running(pool) == 1)
        let_run(survivor)
        answer = await client.answer()
        assert (answer.status, answer.node, answer.headers["x-ollama-router-attempts"]) == (200, survivor.name, "2")
        await rest(router)


async def test_a_connection_that_closes_without_an_answer_is_a_502_at_last() -> None:
    async with holding(1, probe=RARELY) as (_, router):
        call = {"model": QUICK, **CALL, "stream": False}
        answer = await ask(router, "/api/generate", call, x_simulate="refuse")
        assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
        assert answer.json["error"].startswith("no node could answer (closed)")


@ON_EACH_ROUTE
async def test_a_call_that_kills_runners_is_tried_twice_and_no_more(path: str) -> None:
    async with holding(3, probe=RARELY) as (pool, router):
        answer = await ask(router, path, {"model": QUICK, **CALL}, x_simulate="runner_died=0")
        assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
        assert "error" in answer.json
        assert sum(asked(node) for node in pool.nodes) == 2
        assert sum(node.journal.counts[Event.DIED] for node in pool.nodes) == 2
        page = await scrape(router)
        assert page.value("requests_total", outcome="upstream_error", code="502") == 1
        assert page.value("failovers_total", reason="runner_died") == 1
        await rest(router)


@ON_EACH_ROUTE
async def test_a_node_that_hangs_before_its_first_byte_is_a_504_in_time(path: str) -> None:
    async with (
        holding(2, probe=RARELY, timeouts={"first_byte_s": 0.3}) as (pool, router),
    ):
        answer = await ask(router, path, {"model": QUICK, **CALL}, x_simulate="hang")
        assert (answer.status, answer.headers["x-should-retry"]) == (504, "false")
        assert "error" in answer.json
        assert sum(asked(node) for node in pool.nodes) == 1
        assert (await scrape(router)).labels("requests_total", "outcome") == {"timeout"}
        await rest(router)
        assert router.keeper.circuits.not_closed() == {}


async def test_a_plain_call_may_take_longer_than_a_first_byte() -> None:
    """Its first byte is the end of its generation: `plain_s` bounds it."""
    limits = {"first_byte_s": 0.2, "plain_s": 0.5}
    async with holding(1, probe=RARELY, timeouts=limits) as (_, router):
        slow = await generate(router, QUICK, stream=False, x_simulate="hang=0.3")
        hung = await generate(router, QUICK, stream=False, x_simulate="hang")
        assert (slow.status, hung.status) == (200, 504)


async def test_waiting_in_line_counts_towards_the_first_byte() -> None:
    limits = {"first_byte_s": 0.3}
    async with (
        holding(1, ENDLESS, probe=RARELY, timeouts=limits) as (pool, router),
        Client(router.port) as client,
    ):
        client.send("/api/generate", {"model": ENDLESS, **CALL})
        await client.first(b'"done":false')
        assert (await generate(router, ENDLESS)).status == 504
        assert asked(pool.nodes[0]) == 1


@ON_EACH_ROUTE
async def test_a_stream_that_goes_silent_ends_with_an_error_event(path: str) -> None:
    async with (
        holding(1, ENDLESS, probe=RARELY, timeouts={"idle_s": 0.3}) as (pool, router),
    ):
        answer = await ask(router, path, {"model": ENDLESS, **CALL})
        assert_error_event(path, answer)
        assert b"silent" in answer.body
        await until(lambda: running(pool) == 0)
        assert (await scrape(router)).labels("requests_total", "outcome") == {"upstream_truncated"}
        await rest(router)


@ON_EACH_ROUTE
async def test_a_model_on_no_node_is_a_404(path: str) -> None:
    async with pool_of(2) as pool, router_before(pool.nodes) as router:
        answer = await ask(router, path, {"model": "nobody:7b", **CALL})
        assert (answer.status, answer.refused) == (404, "model_not_found")
        assert "nobody:7b" in answer.body.decode()
        assert (await scrape(router)).value("rejections_total", model="unknown", reason="model_not_found") == 1


async def test_a_model_whose_nodes_are_all_down_is_a_503_with_retry_after() -> None:
    async with holding(2) as (pool, router):
        for node in pool.nodes:
            await node.set_fault("refuse")
        await until(lambda: not router.keeper.snapshot.has_node_up(parse_name(QUICK).key))
        answer = await generate(router, QUICK)
        assert (answer.status, answer.refused) == (503, "no_node")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await generate(router, "nobody:7b")).status == 404, "down nodes keep their models"
        for node in pool.nodes:
            await node.clear_faults()
        await until(lambda: router.keeper.snapshot.has_node_up(parse_name(QUICK).key))
        assert (await generate(router, QUICK)).status == 200


async def test_nodes_that_die_under_everybody_who_waits_refuse_them() -> None:
    async with (
        holding(1, ENDLESS) as (pool, router),
        Client(router.port) as served,
        Client(router.port) as next_in_line,
        Client(router.port) as waiting,
    ):
        served.send("/api/generate", {"model": ENDLESS, **CALL})
        await served.first(b'"done":false')
        for count, client in enumerate((next_in_line, waiting), 1):
            client.send("/api/generate", {"model": ENDLESS, **CALL})
            await until(lambda count=count: len(router.store.book.ledger.waiting) == count)
        await pool.nodes[0].crash()
        # The first in line got the slot that the crash freed, and found out for all others.
        assert (await next_in_line.answer()).status == 502
        answer = await waiting.answer()
        assert (answer.status, answer.refused) == (503, "no_node")
        await rest(router)


async def test_behind_an_open_breaker_calls_wait_and_are_served() -> None:
    async with holding(1) as (pool, router):
        pool.nodes[0].faults.set("malformed", times=3, path="/api/generate")
        for _ in range(3):
            assert (await generate(router, QUICK)).status == 502
        page = await scrape(router)
        assert page.value("circuit_state", node="sim-1", state="open") == 1
        assert page.value("node_up", node="sim-1") == 1
        async with Client(router.port) as client:
            client.send("/api/generate", {"model": QUICK, **CALL})
            await until(lambda: bool(router.store.book.ledger.waiting))
            assert (await client.answer()).status == 200
        assert router.keeper.circuits.not_closed() == {}


async def test_a_breaker_that_fails_its_trial_closes_the_gate_again() -> None:
    """Half-open is one call; when that fails the copy gets nothing until its longer time is over."""
    async with holding(2) as (pool, router):
        failing = pool.nodes[0]
        failing.faults.set("malformed", path="/api/generate")
        while not router.keeper.circuits.not_closed():
            await converse(router, QUICK, 16)
        tripped = asked(failing)
        while asked(failing) == tripped:
            await converse(router, QUICK, 16)
        answers = await converse(router, QUICK, 64)
        assert {answer.status for answer in answers} == {200}
        assert asked(failing) == tripped + 1


async def test_a_busy_node_is_passed_on_as_busy_when_there_is_no_other() -> None:
    async with holding(1) as (pool, router):
        answer = await generate(router, QUICK, x_simulate="status=503")
        assert (answer.status, int(answer.headers["retry-after"]) >= 1) == (503, True)
        assert answer.json["error"] == "server busy, please try again.  maximum pending requests exceeded"
        assert asked(pool.nodes[0]) == 3
        assert router.keeper.circuits.not_closed() == {}, "busy is no failure"
        await rest(router)


@pytest.mark.parametrize(("status", "outcome"), [("400", "client_error"), ("501", "upstream_error")])
async def test_any_other_status_is_the_nodes_own_answer(status: str, outcome: str) -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        answer = await generate(router, QUICK, x_simulate=f"status={status}")
        assert (answer.status, answer.json) == (int(status), {"error": "simulated"})
        assert sum(asked(node) for node in pool.nodes) == 1
        assert (await scrape(router)).labels("requests_total", "outcome") == {outcome}


def failing(status: int, text: str) -> ReplayNode:
    return ReplayNode("failing", (said(status, json.dumps({"error": text}).encode()),))


async def test_a_copy_that_fails_fast_does_not_draw_the_calls_of_all_that_are_busy() -> None:
    """No text of a dead runner: the client gets the node's own words, and the breaker counts."""
    call = {"model": "gemma3:270m", **CALL}
    async with failing(500, "CUDA error: no CUDA-capable device is detected") as node, router_before([node]) as router:
        for _ in range(3):
            answer = await ask(router, "/api/chat", call)
            assert (answer.status, "CUDA" in answer.json["error"]) == (500, True)
        assert len(router.keeper.circuits.not_closed()) == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (501, "This server does not support embeddings. Start it with `--embeddings`"),
        (500, 'option "num_ctx" must be of type integer'),
        (500, "Failed to create new sequence: failed to process inputs: this model is missing data for image input"),
    ],
)
async def test_what_a_model_cannot_and_what_a_client_got_wrong_opens_no_breaker(status: int, text: str) -> None:
    async with failing(status, text) as node, router_before([node]) as router:
        for _ in range(12):
            answer = await ask(router, "/api/chat", {"model": "gemma3:270m", **CALL})
            assert (answer.status, answer.json) == (status, {"error": text})
        assert router.keeper.circuits.not_closed() == {}


async def test_a_wrong_content_type_is_passed_on_byte_for_byte() -> None:
    async with holding(1, probe=RARELY) as (_, router):
        answer = await generate(router, QUICK, x_simulate="wrong_content_type")
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert answer.body.endswith(b"}\n")
        assert answer.is_whole
        await rest(router)


async def test_a_model_that_a_node_has_lost_is_asked_elsewhere_and_marked_absent() -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        key = parse_name(QUICK).key
        loser = pool.nodes[0]
        del loser.disk[key]
        answers = await converse(router, QUICK, 16)
        assert {(answer.status, answer.node) for answer in answers} == {(200, "sim-2")}
        assert asked(loser) == 1
        assert list(router.keeper.snapshot.holding(key).by_node) == ["sim-2"]
        page = await scrape(router)
        assert page.value("failovers_total", reason="model_gone") == 1
        assert router.keeper.circuits.not_closed() == {}


async def test_a_model_that_every_node_has_lost_is_a_404_at_last() -> None:
    async with holding(2, probe=RARELY) as (pool, router):
        for node in pool.nodes:
            del node.disk[parse_name(QUICK).key]
        first, second = await generate(router, QUICK), await generate(router, QUICK)
        assert (first.status, second.status) == (502, 404)
        await rest(router)


@pytest.mark.parametrize("model", [SILENT, ENDLESS])
async def test_a_node_that_hangs_holds_nobody_else(model: str) -> None:
    async with (
        holding(2, model, QUICK) as (pool, router),
        Client(router.port) as stuck,
    ):
        stuck.send("/api/generate", {"model": model, **CALL})
        await until(lambda: running(pool) == 1)
        answers = await converse(router, QUICK, 6)
        assert {answer.status for answer in answers} == {200}


FAULTS = ("cut=3", "status=400", "status=503", "end=2")
FAULTS_OF_NODES = ("malformed", "runner_died=0")  # three of them would open a breaker, and everybody would wait


async def test_after_a_mixed_run_the_page_is_valid_and_the_log_tells_each_call_once(tmp_path: Path) -> None:
    """No prompt, no key and no traceback in any line; every gauge of calls is 0."""
    secret, key = "the-words-of-a-prompt", "sk-a-secret-key"
    descriptor = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
    call = {**CALL, "model": QUICK, "prompt": secret, "messages": [{"role": "user", "content": secret}]}
    try:
        async with holding(2, QUICK, ENDLESS, descriptor=descriptor) as (_, router):
            for path in ROUTES:
                for fault in FAULTS:
                    await ask(router, path, call, authorization=f"Bearer {key}", x_simulate=fault)
                    for stream in (True, False):
                        assert (await ask(router, path, {**call, "stream": stream}, x_api_key=key)).status == 200
                await ask(router, path, {**call, "model": "nobody:7b"})
            for fault in FAULTS_OF_NODES:
                assert (await ask(router, "/api/chat", call, x_simulate=fault)).status == 502
            await ask(router, "/v1/chat/completions", {**call, "model": 7})
            async with Client(router.port) as client:
                client.send("/api/generate", {**call, "model": ENDLESS})
                await client.first(b'"done":false')
            await rest(router)
            page = await scrape(router)
            for gauge in ("requests_in_flight", "queue_depth", "node_slots_used"):
                assert page.value(gauge) == 0, gauge
            total = page.value("requests_total")
            assert total == len(ROUTES) * (3 * len(FAULTS) + 1) + len(FAULTS_OF_NODES) + 2
            assert page.labels("requests_total", "model") == {QUICK, ENDLESS, "unknown"}
        lines = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
        told = [line for line in lines if line["event"] == "call"]
        assert len(told) == len({line["request_id"] for line in told}) == total
        assert not any(secret in str(line) or key in str(line) or "exception" in line for line in lines)
    finally:
        os.close(descriptor)


async def test_a_node_that_goes_is_told_with_its_reason_once_and_as_a_warning_and_its_return_as_news(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with holding(1) as (pool, router):
        await pool.nodes[0].set_fault("refuse")
        await until(lambda: router.keeper.snapshot.nodes["sim-1"].health is Health.DOWN)
        await pool.nodes[0].clear_faults()
        await until(lambda: router.keeper.snapshot.nodes["sim-1"].health is Health.HEALTHY)
    told = [(record.levelname, record.getMessage()) for record in caplog.records if "sim-1" in record.getMessage()]
    assert len([text for _, text in told if text.startswith("probe of sim-1 failed: ")]) == 1
    assert ("WARNING", "node sim-1 is down, was degraded") in told
    assert ("INFO", "node sim-1 is healthy, was down") in told
