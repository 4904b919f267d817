"""Traces as a collector receives them, over OTLP; and that nobody who does not want them pays for them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from oteltap import OtelTapHttpProtobufReceiver, OtelTapHttpProtobufReceiverSettings

from router.settings import ConfigError, Settings
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.ports import free_port
from tests.shell.clients import Answer, Client, ask, converse, scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import ENDLESS, QUICK, holding

RARELY = {"interval_s": 100}
WITHIN_S = 20.0
CALLER = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
TRACE_ID = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")


class Collector:
    """What came, in its order. The receiver tells only who listens when it comes."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._came: list[Any] = []

    async def listen(self, receiver: OtelTapHttpProtobufReceiver) -> None:
        async for span in receiver.stream_traces():
            self._came.append(span)

    async def spans(self, count: int) -> list[Any]:
        """Of a router that has left and sent what it had: so many, and no more."""
        await until(lambda: len(self._came) >= count, WITHIN_S)
        assert len(self._came) == count, [span.name for span in self._came]
        return self._came


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    port = free_port()
    tap = Collector(f"http://127.0.0.1:{port}")
    async with OtelTapHttpProtobufReceiver(OtelTapHttpProtobufReceiverSettings(http_port=port)) as receiver:
        listening = asyncio.create_task(tap.listen(receiver))
        yield tap
        listening.cancel()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def chat(model: str, text: str = "Why?", **more: object) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def told_nodes(pool: SimulatedPool) -> list[str]:
    """The traceparent of every generation, over all nodes."""
    return [
        dict(seen.headers).get("traceparent", "")
        for node in pool.nodes
        for seen in node.journal.calls
        if b'"messages"' in seen.body
    ]


async def somebody_waits(router: Router) -> None:
    async with asyncio.timeout(10):
        while not (await scrape(router)).value("queue_depth"):
            pass


async def test_a_stream_with_a_retry_is_one_trace_with_the_right_parents() -> None:
    async with collector() as tap:
        tracing = {"endpoint": tap.endpoint, "sample_ratio": 0}  # the caller says that it is sampled
        async with holding(2, probe=RARELY, tracing=tracing) as (pool, router):
            await pool.nodes[0].set_fault("status", "503", path="/v1/chat/completions")
            answer = Answer(0, {}, b"", is_whole=False)
            number = 0
            while answer.headers.get("x-ollama-router-attempts") != "2":  # a conversation that begins at sim-1
                number += 1
                answer = await ask(router, "/v1/chat/completions", chat(QUICK, f"{number}?"))
            body = chat(QUICK, f"{number}?", stream=True)
            answer = await ask(router, "/v1/chat/completions", body, x_request_id="mine", **CALLER)
            assert (answer.status, answer.headers["x-ollama-router-attempts"]) == (200, "2")
            told = [each for each in told_nodes(pool) if "4bf92f" in each]
        spans = await tap.spans(6)

    by_name: dict[str, list[Any]] = {}
    for span in spans:
        by_name.setdefault(span.name, []).append(span)
    assert {name: len(each) for name, each in by_name.items()} == {
        "POST /v1/chat/completions": 1, "route": 1, "queue": 2, f"chat {QUICK}": 2,
    }  # fmt: skip
    assert {span.trace_id for span in spans} == {TRACE_ID}
    call = by_name["POST /v1/chat/completions"][0]
    assert (call.kind, call.parent_span_id.hex(), call.trace_state) == (2, "00f067aa0ba902b7", "vendor=1")
    assert {span.parent_span_id for span in spans if span is not call} == {call.span_id}
    facts = attributes(call)
    assert facts["http.route"] == "/v1/chat/completions"
    assert facts["http.response.status_code"] == 200
    assert facts["ollama_router.outcome"] == "ok"
    assert facts["ollama_router.request_id"] == "mine"
    first, second = by_name[f"chat {QUICK}"]
    assert (first.kind, second.kind) == (3, 3)
    assert attributes(first)["error.type"] == "busy"
    assert (first.status.code, second.status.code) == (2, 0)
    facts = attributes(second)
    assert facts["gen_ai.operation.name"] == "chat"
    assert facts["gen_ai.provider.name"] == "ollama"
    assert facts["gen_ai.request.model"] == QUICK
    assert facts["gen_ai.request.stream"] is True
    assert f"http://{facts['server.address']}:{facts['server.port']}" == pool.nodes[1].url
    assert facts["ollama_router.node"] == "sim-2"
    assert facts["gen_ai.usage.output_tokens"] > 0
    assert facts["gen_ai.response.time_to_first_chunk"] > 0
    # The nodes were told whose children they are.
    assert told == [f"00-{TRACE_ID.hex()}-{span.span_id.hex()}-01" for span in (first, second)]
    for span in spans:
        assert call.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= call.end_time_unix_nano
    assert first.end_time_unix_nano <= second.start_time_unix_nano


async def test_a_receiver_that_takes_only_json_gets_the_same_spans(tmp_path: Any) -> None:
    came: list[Any] = []

    async def take(request: web.Request) -> web.Response:
        assert (request.content_type, request.headers["x-key"]) == ("application/json", "k")
        came.append(await request.json())
        return web.json_response({})

    (tmp_path / "headers").write_text("x-key: k\n")
    app = web.Application()
    app.router.add_post("/v1/traces", take)
    async with TestServer(app, host="127.0.0.1") as server:
        tracing = {"endpoint": str(server.make_url("")), "protocol": "http/json", "sample_ratio": 0}
        async with holding(1, tracing={**tracing, "headers_file": str(tmp_path / "headers")}) as (pool, router):
            assert (await ask(router, "/api/chat", chat(QUICK), **CALLER)).status == 200
            (told_node,) = told_nodes(pool)

    spans = {
        span["name"]: span
        for told in came
        for resource in told["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    }
    assert spans.keys() == {"route", "queue", f"chat {QUICK}", "POST /api/chat"}
    assert {span["traceId"] for span in spans.values()} == {TRACE_ID.hex()}
    call, attempt = spans["POST /api/chat"], spans[f"chat {QUICK}"]
    assert (call["kind"], call["parentSpanId"], call["traceState"]) == (2, "00f067aa0ba902b7", "vendor=1")
    assert (attempt["kind"], attempt["parentSpanId"]) == (3, call["spanId"])
    assert told_node == f"00-{TRACE_ID.hex()}-{attempt['spanId']}-01"
    assert {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}} in attempt["attributes"]
    assert int(call["startTimeUnixNano"]) <= int(attempt["startTimeUnixNano"]) < int(call["endTimeUnixNano"])


async def test_a_json_receiver_that_is_away_or_refuses_costs_no_call(caplog: pytest.LogCaptureFixture) -> None:
    async with TestServer(web.Application(), host="127.0.0.1") as server:  # it has no such path
        for endpoint in (f"http://127.0.0.1:{free_port()}", str(server.make_url(""))):
            async with holding(1, tracing={"endpoint": endpoint, "protocol": "http/json", "sample_ratio": 1}) as (
                _,
                router,
            ):
                assert (await ask(router, "/api/chat", chat(QUICK))).status == 200
    told = [text for text in caplog.messages if "4 spans were not taken by" in text]
    assert len(told) == 2
    assert "HTTP Error 404" in told[1]


def test_what_is_no_protocol_of_ours_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="'http/protobuf' or 'http/json'"):
        Settings(tracing={"protocol": "grpc"})


async def test_a_client_that_leaves_in_line_and_one_that_leaves_its_stream_are_told_apart() -> None:
    async with collector() as tap:
        tracing = {"endpoint": tap.endpoint, "sample_ratio": 1}
        async with holding(1, ENDLESS, tracing=tracing) as (_, router):
            async with Client(router.port) as streaming:
                streaming.send("/v1/chat/completions", chat(ENDLESS, stream=True))
                await streaming.first(b"data:")
                async with Client(router.port) as waiting:
                    waiting.send("/v1/chat/completions", chat(ENDLESS, stream=True))
                    await somebody_waits(router)
            await until(lambda: not router.pipeline.live)
        spans = await tap.spans(7)

    calls = [span for span in spans if span.kind == 2]
    assert sorted(attributes(span)["ollama_router.outcome"] for span in calls) == ["cancelled", "cancelled"]
    assert all(span.status.code == 0 for span in calls), "a client that leaves is no error of ours"
    attempts = [span for span in spans if span.kind == 3]
    assert len(attempts) == 1
    children: dict[bytes, list[str]] = {span.span_id: [] for span in calls}
    for span in spans:
        if span.kind == 1:
            children[span.parent_span_id].append(span.name)
    assert list(children.values()) == [["route", "queue"]] * 2


async def test_a_refused_call_is_a_span_with_its_reason() -> None:
    async with collector() as tap:
        async with holding(1, tracing={"endpoint": tap.endpoint, "sample_ratio": 1}) as (_, router):
            assert (await ask(router, "/api/chat", chat("unknown:1b"))).status == 404
        spans = await tap.spans(2)
    route, call = spans
    assert route.name == "route"
    facts = attributes(call)
    assert (call.name, call.status.code) == ("POST /api/chat", 0)
    assert facts["ollama_router.rejection"] == "model_not_found"
    assert "ollama_router.node" not in facts


async def test_what_is_not_sampled_goes_on_as_not_sampled_and_makes_no_span() -> None:
    async with collector() as tap:
        async with holding(1, tracing={"endpoint": tap.endpoint, "sample_ratio": 0}) as (pool, router):
            await ask(router, "/api/chat", chat(QUICK))
            unsampled = CALLER["traceparent"].removesuffix("01") + "00"
            await ask(router, "/api/chat", chat(QUICK), traceparent=unsampled)
            root, child = told_nodes(pool)
            await ask(router, "/api/chat", chat("unknown:1b"), **CALLER)  # the one that is
        assert {span.trace_id for span in await tap.spans(2)} == {TRACE_ID}
    assert root.endswith("-00")
    assert child.startswith(unsampled[:36])
    assert child.endswith("-00")
    assert child != unsampled, "the parent of the node's span is ours"


async def test_without_tracing_a_callers_context_passes_as_it_came() -> None:
    async with holding(1) as (pool, router):
        await ask(router, "/api/chat", chat(QUICK), **CALLER)
        assert told_nodes(pool) == [CALLER["traceparent"]]


def test_without_tracing_opentelemetry_is_not_even_imported() -> None:
    code = "import sys, router.cli, router.process; print(any('opentelemetry' in name for name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


async def test_a_collector_that_is_away_costs_no_call_and_does_not_hold_up_the_end() -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    async with holding(1, tracing={"endpoint": endpoint, "sample_ratio": 1}) as (_, router):
        answers = await converse(router, QUICK, 20)
        assert {answer.status for answer in answers} == {200}


async def test_headers_of_the_receiver_come_from_a_file(tmp_path: Any) -> None:
    secret = tmp_path / "headers"
    secret.write_text("Authorization: Bearer x\nHost: y\n")
    settings = Settings(tracing={"endpoint": "http://127.0.0.1:1", "headers_file": str(secret)})
    with pytest.raises(ConfigError, match=r"tracing.headers_file: .*:2: Host is the router's own to send"):
        async with router_before([], tracing=settings.tracing.model_dump()):
            pass


def test_an_endpoint_without_a_path_means_where_traces_go() -> None:
    assert Settings(tracing={"endpoint": "http://collector:4318"}).tracing.endpoint == "http://collector:4318/v1/traces"
    assert Settings(tracing={"endpoint": "https://x/otlp/traces"}).tracing.endpoint == "https://x/otlp/traces"
    with pytest.raises(ValueError, match="should be a URL"):
        Settings(tracing={"endpoint": "collector:4318"})
    with pytest.raises(ValueError, match="give them in headers_file"):
        Settings(tracing={"endpoint": "http://me:secret@collector:4318"})
