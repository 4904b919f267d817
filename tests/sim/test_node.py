"""Simulated nodes over loopback: who waits, what dies with its connection, and faults on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from router.simulation.catalog import DEMO_MODELS, RECORDED_MODELS, DiskModel
from router.simulation.facts import NodeLimits
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from tests.sim.raw import exchange

QUICK = 1e-6
FROZEN = 1e9  # a load that never ends within a test


def call(path: str, body: object = None, *headers: str, method: str = "POST") -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: n", f"Content-Length: {len(data)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def chat(text: str = "Why is the sky blue?", *headers: str, **more: object) -> bytes:
    body = {"model": "gemma3:270m", "messages": [{"role": "user", "content": text}], **more}
    return call("/v1/chat/completions", body, *headers)


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


async def until(is_so: Callable[[], bool]) -> None:
    while not is_so():  # noqa: ASYNC110 - the node has no event for what a test may look at
        await asyncio.sleep(0)


def frozen(model: DiskModel) -> DiskModel:
    return replace(model, weights=replace(model.weights, load_s=FROZEN / QUICK))


@pytest.fixture
async def node() -> AsyncIterator[SimulatedNode]:
    node = SimulatedNode(time_scale=QUICK, limits=NodeLimits(num_parallel=2))
    await node.start()
    yield node
    await node.stop()
    assert node.server.failures == []


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Open = Callable[[SimulatedNode, bytes], Awaitable[Client]]


@pytest.fixture
async def opened() -> AsyncIterator[Open]:
    """Clients that stay open until the test closes them, at its end at the latest."""
    clients: list[Client] = []

    async def open_one(node: SimulatedNode, request: bytes) -> Client:
        clients.append(await asyncio.open_connection("127.0.0.1", node.server.port))
        clients[-1][1].write(request)
        return clients[-1]

    yield open_one
    for _, writer in clients:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def test_a_load_dies_with_the_connection_that_asked_and_the_next_starts_from_zero(
    node: SimulatedNode, opened: Open
) -> None:
    node.put(frozen(node.disk["gemma3:270m"]))
    _, first = await opened(node, chat())
    await until(lambda: node.journal.loads_started == 1)
    _, second = await opened(node, chat())
    await until(lambda: node.model.queued == 2)
    first.close()
    await until(lambda: node.journal.loads_aborted == 1)
    await until(lambda: node.journal.loads_started == 2)
    second.write_eof()
    await until(lambda: node.journal.loads_aborted == 2)
    second.close()
    assert [seen.ending for seen in node.journal.calls] == ["gone", "gone"]


async def test_a_loading_model_is_not_listed_by_new_versions_and_is_by_old_ones(opened: Open) -> None:
    for version, listed in (("0.33.0", 0), ("0.24.0", 1)):
        node = SimulatedNode(version=version, models=[frozen(model) for model in RECORDED_MODELS])
        await node.start()
        _, writer = await opened(node, chat())
        await until(lambda node=node: node.model.load is not None)
        answer = await exchange(node.server.port, call("/api/ps", method="GET"))
        assert len(json.loads(body_of(answer))["models"]) == listed
        writer.close()
        await node.stop()


async def test_waiting_calls_are_silent_and_never_more_than_the_slots_run(node: SimulatedNode, opened: Open) -> None:
    slow = replace(node.disk["gemma3:270m"].weights, decode_tps=1e-9)
    node.put(replace(node.disk["gemma3:270m"], weights=slow))
    streams = [await opened(node, chat(f"call {number}", stream=True, max_tokens=9)) for number in range(5)]
    blob = slow.blob
    await until(lambda: blob in node.model.copies and len(node.model.copies[blob].waiting) == 3)
    running = node.model.copies[blob].decoding
    await until(lambda: len(running) == 2)
    assert node.journal.max_running[blob] == 2
    await until(lambda: sum(bool(reader._buffer) for reader, _ in streams) == 2)  # type: ignore[attr-defined]
    talking = next(writer for reader, writer in streams if reader._buffer)  # type: ignore[attr-defined]
    talking.close()
    await until(lambda: len(node.model.copies[blob].waiting) == 2)
    for _, writer in streams:
        writer.close()
    await until(lambda: node.model.copies[blob].is_idle)


async def test_the_same_question_gets_the_same_answer_and_says_the_words_asked_for(node: SimulatedNode) -> None:
    request = call("/api/generate", {"model": "gemma3:270m", "prompt": "tell <me> & all", "stream": False})
    answers = [json.loads(body_of(await exchange(node.server.port, request))) for _ in range(2)]
    assert answers[0]["response"] == answers[1]["response"]
    assert answers[0]["response"].startswith("tell <me> & all")
    assert answers[0]["eval_count"] == 16
    assert b"tell \\u003cme\\u003e \\u0026 all" in await exchange(node.server.port, request)


async def test_a_second_turn_needs_less_prefill(node: SimulatedNode) -> None:
    weights = replace(node.disk["gemma3:270m"].weights, prefill_tps=0.05)
    node.put(replace(node.disk["gemma3:270m"], weights=weights))
    prompt = " ".join(str(number) for number in range(500))
    first, second = [
        json.loads(body_of(await exchange(node.server.port, call("/api/generate", body))))
        for body in [{"model": "gemma3:270m", "prompt": prompt, "raw": True, "stream": False}] * 2
    ]
    assert first["prompt_eval_count"] == second["prompt_eval_count"]
    assert second["prompt_eval_duration"] < first["prompt_eval_duration"] / 10


@pytest.mark.parametrize(
    ("fault", "events", "tail"),
    [("cut=3", 3, b"\r\n"), ("end=3", 3, b"0\r\n\r\n"), ("cut=0", 0, b""), ("runner_died=2", 3, b"0\r\n\r\n")],
)
async def test_a_stream_breaks_where_it_was_told_to(node: SimulatedNode, fault: str, events: int, tail: bytes) -> None:
    answer = await exchange(node.server.port, chat("a b c d", f"X-Simulate: {fault}", stream=True))
    assert answer.count(b"data: ") == events
    assert answer.endswith(tail)
    assert b"[DONE]" not in answer
    await until(lambda: all(copy.is_idle for copy in node.model.copies.values()))


async def test_a_runner_that_dies_before_the_first_token_is_a_500(node: SimulatedNode) -> None:
    answer = await exchange(node.server.port, chat("a", "X-Simulate: runner_died=0", stream=True))
    assert status_of(answer) == 500
    assert b"model runner has unexpectedly stopped" in answer
    assert node.model.copies == {}
    assert status_of(await exchange(node.server.port, chat("a"))) == 200
    assert node.journal.loads_started == 2


@pytest.mark.parametrize(("status", "text"), [(503, b"server busy, please try again.  "), (500, b"terminated")])
async def test_a_status_comes_in_the_dialect_of_the_route(node: SimulatedNode, status: int, text: bytes) -> None:
    node.faults.set("status", status, times=1)
    answer = await exchange(node.server.port, chat())
    assert status_of(answer) == status
    assert text in answer
    assert b'"type":"api_error"' in answer
    assert status_of(await exchange(node.server.port, chat())) == 200


async def test_garbage_and_a_wrong_type_are_what_they_say(node: SimulatedNode) -> None:
    assert not (await exchange(node.server.port, chat("a", "X-Simulate: malformed"))).startswith(b"HTTP")
    assert b"Content-Type: text/html" in await exchange(node.server.port, chat("a", "X-Simulate: wrong_content_type"))


async def test_a_hanging_call_sends_nothing_until_it_is_left(node: SimulatedNode, opened: Open) -> None:
    reader, writer = await opened(node, chat("a", "X-Simulate: hang"))
    await until(lambda: len(node.journal.calls) == 1)
    assert status_of(await exchange(node.server.port, call("/api/version", method="GET"))) == 200
    assert not reader._buffer  # type: ignore[attr-defined]
    writer.close()
    await until(lambda: node.journal.calls[0].ending == "gone")


async def test_a_node_refuses_and_comes_back_on_the_same_port(node: SimulatedNode) -> None:
    await node.set_fault("refuse")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", node.server.port)
    await node.clear_faults()
    assert status_of(await exchange(node.server.port, call("/", method="GET"))) == 200


async def test_a_crash_loses_copies_and_keeps_the_disk(node: SimulatedNode) -> None:
    await exchange(node.server.port, chat())
    assert len(node.model.copies) == 1
    await node.crash()
    await node.restart()
    assert node.model.copies == {}
    assert status_of(await exchange(node.server.port, chat())) == 200


async def test_ps_lies_on_request(node: SimulatedNode) -> None:
    async def listed() -> list[str]:
        answer = json.loads(body_of(await exchange(node.server.port, call("/api/ps", method="GET"))))
        return [row["name"] for row in answer["models"]]

    node.faults.set("lying_ps", "show:gemma3:270m", times=1)
    assert await listed() == ["gemma3:270m"]
    await exchange(node.server.port, chat())
    node.faults.set("lying_ps", "hide:gemma3:270m", times=1)
    assert await listed() == []
    assert await listed() == ["gemma3:270m"]


async def test_faults_are_set_and_cleared_over_http(node: SimulatedNode) -> None:
    order = {"fault": "status", "argument": 503, "path": "/api/chat"}
    answer = await exchange(node.server.port, call("/simulate/faults", order))
    assert json.loads(body_of(answer))["faults"] == [order | {"argument": "503", "times": None}]
    body = {"model": "gemma3:270m", "messages": []}
    assert status_of(await exchange(node.server.port, call("/api/chat", body))) == 503
    await exchange(node.server.port, call("/simulate/faults", method="DELETE"))
    assert status_of(await exchange(node.server.port, call("/api/chat", body))) == 200
    assert status_of(await exchange(node.server.port, call("/simulate/faults", {"fault": "nonsense"}))) == 400


async def test_a_pulled_model_is_listed_and_an_unknown_one_is_an_error_line(node: SimulatedNode) -> None:
    answer = await exchange(node.server.port, call("/api/pull", {"model": "llama3.2:3b"}))
    assert b'{"status":"success"}\n' in answer
    assert b'"llama3.2:3b"' in await exchange(node.server.port, call("/api/tags", method="GET"))
    answer = await exchange(node.server.port, call("/api/pull", {"model": "nowhere"}))
    assert b'{"error":"pull model manifest: file does not exist"}\n' in answer


async def test_an_uploaded_blob_becomes_a_model(node: SimulatedNode) -> None:
    digest = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    upload = (
        f"POST /api/blobs/{digest} HTTP/1.1\r\nHost: n\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello".encode()
    )
    assert [status_of(await exchange(node.server.port, upload)) for _ in range(2)] == [201, 200]
    made = await exchange(node.server.port, call("/api/create", {"model": "mine", "files": {"m.gguf": digest}}))
    assert b'{"status":"success"}\n' in made
    answer = await exchange(node.server.port, call("/api/generate", {"model": "mine", "prompt": "a", "stream": False}))
    assert status_of(answer) == 200


async def test_transcriptions_need_a_model_that_hears() -> None:
    node = SimulatedNode(models=DEMO_MODELS, time_scale=QUICK)
    await node.start()
    form = (
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-sim\r\n'
        b'--b\r\nContent-Disposition: form-data; name="response_format"\r\n\r\ntext\r\n--b--\r\n'
    )
    head = (
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: n\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        f"Content-Length: {len(form)}\r\nConnection: close\r\n\r\n"
    )
    answer = await exchange(node.server.port, head.encode() + form)
    await node.stop()
    assert status_of(answer) == 200
    assert b"Content-Type: text/plain; charset=utf-8" in answer


@pytest.mark.parametrize(("version", "status"), [("0.20.0", 400), ("0.33.0", 404)])
async def test_images_were_a_route_once(version: str, status: int) -> None:
    node = SimulatedNode(version=version, time_scale=QUICK)
    await node.start()
    answer = await exchange(node.server.port, call("/v1/images/generations", {"model": "gemma3:270m", "prompt": "a"}))
    await node.stop()
    assert status_of(answer) == status


async def test_one_connection_serves_many_calls_in_order(node: SimulatedNode) -> None:
    keep = b"GET /api/version HTTP/1.1\r\nHost: n\r\n\r\n"
    answer = await exchange(node.server.port, keep + keep + call("/", method="GET"))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert answer.endswith(b"Ollama is running")


@pytest.mark.parametrize(
    ("request_bytes", "status"), [(b"nonsense\r\n\r\n", 400), (b"GET / HTTP/1.1\r\nX: " + b"a" * 1_300_000, 431)]
)
async def test_what_is_no_request_is_refused_as_go_does(
    node: SimulatedNode, request_bytes: bytes, status: int, opened: Open
) -> None:
    reader, writer = await opened(node, request_bytes)
    assert (await reader.readline()).startswith(f"HTTP/1.1 {status} ".encode())
    writer.close()


async def test_a_client_of_http_1_0_gets_a_body_that_ends_with_the_connection(node: SimulatedNode) -> None:
    body = b'{"model":"gemma3:270m","prompt":"a b"}'
    request = b"POST /api/generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    answer = await exchange(node.server.port, request)
    assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"chunked" not in answer
    assert answer.count(b"\n{") == 17


async def test_a_pool_has_nodes_with_addresses_of_their_own() -> None:
    async with SimulatedPool(nodes=3, time_scale=QUICK, models=RECORDED_MODELS) as pool:
        assert len(set(pool.urls)) == 3
        await exchange(pool.named("sim-2").server.port, chat())
        assert [journal.loads_finished for journal in pool.journals] == [0, 1, 0]
        assert pool.loads_started == 1
