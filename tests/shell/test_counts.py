"""Counters against what was really sent, and what nodes really read and generated, as they know it themselves."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from router.simulation.catalog import model_of
from router.simulation.engine import Deliver, Engine
from router.simulation.facts import Effect, Ended, Work
from router.simulation.pool import SimulatedPool
from router.wire.endpoints import BY_PATH, Shape
from tests.shell.clients import Answer, Client, ask, scrape
from tests.shell.house import until
from tests.shell.scenes import AT_ONCE_S, AT_ONCE_TPS, ENDLESS, MODELS, QUICK, asked, holding

RARELY = {"interval_s": 100}
CUT_AFTER = 9  # events: those that begin an answer are among them
TALK = {"messages": [{"role": "user", "content": "Why?"}]}
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": TALK,
    "/v1/completions": {"prompt": "Why?"},
    "/v1/responses": {"input": "Why?"},
    "/v1/messages": {**TALK, "max_tokens": 100},
    "/v1/embeddings": {"input": ["Why?", "And how?"]},
    "/api/chat": TALK,
    "/api/generate": {"prompt": "Why?"},
    "/api/embed": {"input": ["Why?", "And how?"]},
    "/api/embeddings": {"prompt": "Why?"},
}
EMBEDDER = "embedder:1b"
EVERY = (*MODELS, model_of(EMBEDDER, gib=1.0, load_s=AT_ONCE_S, prefill_tps=AT_ONCE_TPS, is_embedding=True))
STREAMED = [path for path in ASKED if BY_PATH[path].may_stream]


def model_for(path: str) -> str:
    return QUICK if BY_PATH[path].may_stream else EMBEDDER


def tapped(pool: SimulatedPool) -> Counter[str]:
    """Tokens of the work that the nodes' schedulers have ended, whatever answers tell of it."""
    done: Counter[str] = Counter()

    def listen(engine: Engine) -> None:
        submit = engine.submit

        def submitted(work: Work, deliver: Deliver) -> int:
            def delivered(effect: Effect) -> None:
                if isinstance(effect, Ended):
                    done.update(input=work.prompt_tokens, output=work.output_tokens)
                deliver(effect)

            return submit(work, delivered)

        engine.submit = submitted  # type: ignore[method-assign]

    for node in pool.nodes:
        listen(node.engine)
    return done


def content_events(path: str, answer: Answer | bytes) -> int:
    """That a client got, by the dialect of its route."""
    body = answer if isinstance(answer, bytes) else answer.body
    return sum(bool(_content(BY_PATH[path].shape, event)) for event in _events(body))


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.splitlines():
        text = line.removeprefix(b"data: ")
        if text.startswith(b"{") and text.endswith(b"}"):
            yield json.loads(text)


def _content(shape: Shape, event: dict[str, Any]) -> Any:
    match shape:
        case Shape.OPENAI_CHAT:
            return [choice["delta"].get("content") for choice in event.get("choices", ())] not in ([], [""], [None])
        case Shape.OPENAI_COMPLETION:
            return any(choice["text"] for choice in event.get("choices", ()))
        case Shape.RESPONSES:
            return event.get("type") == "response.output_text.delta"
        case Shape.MESSAGES:
            return event.get("type") == "content_block_delta"
        case Shape.CHAT:
            return event.get("message", {}).get("content")
    return event.get("response")


@pytest.mark.parametrize("path", ASKED)
async def test_counters_equal_what_was_sent_and_what_nodes_read_and_generated(path: str) -> None:
    endpoint, model = BY_PATH[path], model_for(path)
    body = {"model": model, **ASKED[path]}
    async with holding(2, model, models=EVERY, probe=RARELY) as (pool, router):
        done = tapped(pool)
        answers = [
            await ask(router, path, {**body, "stream": False} if endpoint.may_stream else body) for _ in range(2)
        ]
        if endpoint.may_stream:
            answers += [await ask(router, path, {**body, "stream": True}) for _ in range(3)]
        page = await scrape(router)

    assert {answer.status for answer in answers} == {200}
    assert page.value("requests_total") == page.value("requests_total", route=endpoint.route, outcome="ok", code="200")
    assert page.value("requests_total") == page.value("request_duration_seconds_count") == len(answers)
    assert page.value("upstream_requests_total", outcome="ok") == len(answers)
    assert done["input"] > 0
    assert bool(done["output"]) == endpoint.may_stream
    for kind in ("input", "output"):
        # /api/embeddings tells of no tokens, and none are made up.
        told = 0 if endpoint.shape is Shape.UNCOUNTED else done[kind]
        assert page.value("tokens_total", model=model, type=kind) == told
        assert page.value("node_tokens_total", model=model, type=kind) == told
        assert page.value("request_tokens_sum", model=model, type=kind) == told
    assert page.value("tokens_estimated_total") == 0
    assert page.value("time_to_first_token_seconds_count") == (3 if endpoint.may_stream else 0)


@pytest.mark.parametrize(("path", "stream"), [(path, False) for path in ASKED] + [(path, True) for path in STREAMED])
async def test_a_call_that_another_node_takes_over_is_one_call_and_two_attempts(path: str, stream: bool) -> None:
    endpoint, model = BY_PATH[path], model_for(path)
    body = {"model": model, **ASKED[path]}
    if endpoint.may_stream:
        body["stream"] = stream
    async with holding(2, model, models=EVERY, probe=RARELY) as (pool, router):
        done = tapped(pool)
        first = await ask(router, path, body, x_ollama_router_affinity="mine")
        failing = next(node for node in pool.nodes if node.name == first.node)
        await failing.set_fault("status", "503", times=1, path=path)
        moved = await ask(router, path, body, x_ollama_router_affinity="mine")
        page = await scrape(router)

    assert (moved.status, moved.headers["x-ollama-router-attempts"]) == (200, "2")
    assert moved.node != first.node
    assert page.value("requests_total") == page.value("requests_total", route=endpoint.route, outcome="ok") == 2
    assert page.value("upstream_requests_total", node=first.node, outcome="ok") == 1
    assert page.value("upstream_requests_total", node=first.node, outcome="busy") == 1
    assert page.value("upstream_requests_total", node=moved.node, outcome="ok") == 1
    assert page.value("retries_total", reason="busy") == page.value("failovers_total", reason="busy") == 1
    if endpoint.shape is not Shape.UNCOUNTED:
        assert page.value("tokens_total", type="input") == done["input"]
        assert page.value("tokens_total", type="output") == done["output"]


@pytest.mark.parametrize("path", ASKED)
async def test_calls_that_are_refused_are_counted_by_why_and_reach_no_node(path: str) -> None:
    route, body = BY_PATH[path].route, {"model": QUICK, **ASKED[path]}
    limits = {"body_bytes": 4096}
    async with holding(1, QUICK, ENDLESS, probe=RARELY, limits=limits, line={"max_waiting_per_model": 1}) as (
        pool,
        router,
    ):
        unknown = [await ask(router, path, {**body, "model": "nope"}) for _ in range(2)]
        mistaken = [await ask(router, path, {**body, "model": 7}) for _ in range(3)]
        large = await ask(router, path, {**body, "user": "x" * 5000})
        assert asked(pool.nodes[0]) == 0
        async with Client(router.port) as running, Client(router.port) as waiting:
            running.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await running.first(b'"done":false')
            waiting.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await until(lambda: sum(router.store.waiting().values()) == 1)
            full = await ask(router, path, {**body, "model": ENDLESS})
            page = await scrape(router)

    assert [answer.status for answer in (*unknown, *mistaken, large, full)] == [404] * 2 + [400] * 3 + [413, 503]
    for reason, code, count in (
        ("model_not_found", "404", 2),
        ("invalid", "400", 3),
        ("too_large", "413", 1),
        ("queue_full", "503", 1),
    ):
        assert page.value("rejections_total", reason=reason) == count
        assert page.value("requests_total", route=route, code=code) == count
    assert page.value("requests_total", route=route) == 7
    assert page.value("tokens_total") == 0


@pytest.mark.parametrize("path", STREAMED)
async def test_calls_that_are_cut_or_left_are_counted_by_the_content_that_came_apart_from_what_nodes_count(
    path: str,
) -> None:
    route, body = BY_PATH[path].route, {**ASKED[path], "stream": True}
    async with holding(1, QUICK, ENDLESS, probe=RARELY) as (_, router):
        cut = await ask(router, path, {"model": QUICK, **body}, x_simulate=f"cut={CUT_AFTER}")
        got = b""
        async with Client(router.port) as leaving:
            leaving.send(path, {"model": ENDLESS, **body})
            while not content_events(path, got):
                got = await leaving.more()
        await until(lambda: not router.pipeline.live)
        page = await scrape(router)

    assert cut.status == 200
    assert content_events(path, cut) > 0
    assert page.value("requests_total", route=route, outcome="upstream_truncated", code="200") == 1
    assert page.value("requests_total", route=route, outcome="cancelled", code="200") == 1
    assert page.value("client_disconnects_total", phase="streaming") == 1
    assert page.value("tokens_estimated_total", model=QUICK, type="output") == content_events(path, cut)
    assert page.value("tokens_estimated_total", model=ENDLESS, type="output") == content_events(path, got)
    assert page.value("tokens_total", type="output") == 0
