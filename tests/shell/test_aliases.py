"""Aliases before simulated nodes: which target serves, what is tried instead, what is overridden and counted."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from router.control.alias_watch import AliasWatch
from router.policy.alias_config import Said, aliases_of
from router.simulation.catalog import RECORDED_MODELS, model_of
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wire.endpoints import BY_PATH
from router.wiring import Router
from tests.fakes.raw_client import post
from tests.fakes.replay import ReplayNode, said
from tests.fleet.builders import fleet, node
from tests.shell.clients import Answer, ask, generate, get, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.replay_house import replay_house
from tests.shell.scenes import COLD, QUICK, holding, load_into, no_bugs, pool_of, ready_on

ABSENT = "absent:1b"
TOOLS = "gemma-tools:latest"
USER = [{"role": "user", "content": "Why?"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
NATIVE = {"/api/chat": {"messages": USER}, "/api/generate": {"prompt": "Why?"}}
COMPAT: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": USER},
    "/v1/completions": {"prompt": "Why?"},
    "/v1/responses": {"input": "Why?"},
    "/v1/messages": {"messages": USER, "max_tokens": 9},
}


def alias_of(*targets: str, fallbacks: str = "", **more: object) -> dict[str, object]:
    return {"targets": [{"model": target} for target in targets], "fallbacks": fallbacks.split(), **more}


def model(answer: Answer) -> str:
    return answer.headers.get("x-ollama-router-model", "")


def bodies(node: SimulatedNode) -> list[dict[str, Any]]:
    """Of the generations asked of it, the last member of each key winning as with Go."""
    asked = (json.loads(seen.body) for seen in node.journal.calls if seen.body)
    return [body for body in asked if body.keys() & {"prompt", "messages", "input"}]


async def fallbacks(router: Router) -> Counter[tuple[str, str]]:
    page = await scrape(router)
    samples = page.families["ollama_router_alias_fallbacks"].samples
    return Counter({(each.labels["alias"], each.labels["reason"]): int(each.value) for each in samples})


# which target serves


async def test_calls_are_spread_over_the_targets_by_weight_and_all_echo_the_alias() -> None:
    targets = [{"model": QUICK, "weight": 3}, {"model": "twin:1b", "weight": 1}]
    models = (model_of(QUICK, gib=1.0, load_s=0), model_of("twin:1b", gib=1.0, load_s=0))
    async with (
        pool_of(1, models=models) as pool,
        router_before(pool.nodes, aliases={"gpt-4o": {"targets": targets}}) as router,
    ):
        for node in pool.nodes:
            node.engine.time_scale = 0.001
        answers = [await generate(router, "GPT-4o", stream=False) for _ in range(60)]
        assert {answer.json["model"] for answer in answers} == {"GPT-4o"}
        served = Counter(map(model, answers))
        assert 30 < served[QUICK] < 58, "three quarters of 60, within four deviations"
        assert served[QUICK] + served["twin:1b"] == 60
        assert await fallbacks(router) == {}


async def test_a_target_on_no_node_is_passed_over_and_counted() -> None:
    async with holding(1, QUICK, aliases={"gpt": alias_of(ABSENT, fallbacks=f"{ABSENT} other:1b {QUICK}")}) as (
        _,
        router,
    ):
        answer = await generate(router, "gpt")
        assert (answer.status, model(answer)) == (200, QUICK)
        assert await fallbacks(router) == {("gpt:latest", "unknown"): 2}


async def test_the_other_target_serves_where_the_drawn_one_cannot_and_nothing_else_is_said() -> None:
    async with holding(1, QUICK, aliases={"gpt": alias_of(ABSENT, QUICK)}) as (_, router):
        answers = [await generate(router, "gpt") for _ in range(8)]
        assert {(answer.status, model(answer)) for answer in answers} == {(200, QUICK)}


async def test_a_target_whose_nodes_are_all_down_is_passed_over() -> None:
    async with (
        pool_of(1, models=(model_of("big:70b", gib=1.0, load_s=0),)) as big,
        pool_of(1, models=(model_of(QUICK, gib=1.0, load_s=0),)) as small,
    ):
        small.nodes[0].name = "sim-small"
        nodes = [*big.nodes, *small.nodes]
        load_into(big.nodes[0], "big:70b")
        async with router_before(
            nodes, aliases={"gpt": alias_of("big:70b", fallbacks=QUICK)}, probe={"interval_s": 100}
        ) as router:
            await until(lambda: ready_on(router, "big:70b") == 1)
            await big.nodes[0].set_fault("refuse")
            first, second = await generate(router, "gpt"), await generate(router, "gpt")
            assert [(answer.status, model(answer)) for answer in (first, second)] == [(200, QUICK)] * 2
            # The first call finds it out at the node; the second is told.
            assert await fallbacks(router) == {("gpt:latest", "failed"): 1, ("gpt:latest", "no_node"): 1}


async def test_without_anything_to_serve_it_an_alias_is_unknown_by_the_name_the_client_sent() -> None:
    async with holding(1, QUICK, aliases={"gpt": alias_of(ABSENT, fallbacks="other:1b")}) as (_, router):
        answer = await generate(router, "gpt")
        assert (answer.status, answer.json) == (404, {"error": "model 'gpt' not found"})


async def test_where_placement_only_observes_what_is_loaded_comes_first() -> None:
    settings = {"placement": {"mode": "observe"}, "aliases": {"gpt": alias_of(COLD, fallbacks=QUICK)}}
    async with holding(1, QUICK, **settings) as (pool, router):
        answer = await generate(router, "gpt")
        assert (answer.status, model(answer)) == (200, QUICK)
        assert await fallbacks(router) == {("gpt:latest", "not_loaded"): 1}
        load_into(pool.nodes[0], COLD)
        await until(lambda: ready_on(router, COLD) == 1)
        assert model(await generate(router, "gpt")) == COLD


async def test_where_nothing_is_loaded_and_placement_only_observes_the_first_refusal_stands() -> None:
    settings = {"placement": {"mode": "observe"}, "aliases": {"gpt": alias_of(COLD, fallbacks=QUICK)}}
    async with pool_of(1) as pool, router_before(pool.nodes, **settings) as router:
        answer = await generate(router, "gpt")
        assert (answer.status, answer.refused) == (503, "not_loaded")


async def test_a_target_that_no_node_can_load_is_passed_over() -> None:
    failing = said(500, b'{"error":"llama-server process has terminated"}')
    async with (
        ReplayNode("a", (failing,), models="gemma-tools") as broken,
        ReplayNode("b", (said(200, b'{"model":"gemma3:270m","done":true}'),), models="gemma3") as fine,
    ):
        aliases = {"gpt": alias_of("gemma-tools", fallbacks="gemma3:270m")}
        async with router_before([broken, fine], aliases=aliases) as router:
            answer = await generate(router, "gpt", stream=False)
            assert (answer.status, answer.json["model"], answer.node) == (200, "gpt", "b")
            ((_, reason),) = await fallbacks(router)
            assert reason in ("failed", "load_failed")


# what a model cannot do


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("path", "members", "able"),
    [
        ("/api/chat", {"messages": USER, "tools": [TOOL]}, TOOLS),
        ("/v1/chat/completions", {"messages": USER, "tools": [TOOL]}, TOOLS),
        ("/v1/responses", {"input": "Why?", "tools": [{"type": "function", "name": "f"}]}, TOOLS),
        ("/v1/messages", {"messages": USER, "max_tokens": 9, "tools": [{"name": "f", "input_schema": {}}]}, TOOLS),
        ("/api/chat", {"messages": USER, "think": True}, "gemma-think:latest"),
        ("/api/generate", {"prompt": "a", "suffix": "b"}, "gemma-fim:latest"),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}, "gemma-fim:latest"),
        ("/api/embed", {"input": "a"}, "all-minilm:22m"),
        ("/v1/embeddings", {"input": "a"}, "all-minilm:22m"),
        ("/api/embeddings", {"prompt": "a"}, "all-minilm:22m"),
    ],
)  # fmt: skip
async def test_what_one_model_cannot_do_the_next_one_does(
    path: str, members: dict[str, Any], able: str, streams: bool
) -> None:
    aliases = {"gpt": alias_of("gemma3:270m", fallbacks=able)}
    async with (
        SimulatedPool(nodes=1, time_scale=0.001, models=RECORDED_MODELS) as pool,
        router_before(pool.nodes, aliases=aliases) as router,
    ):
        answer = await ask(router, path, {"model": " gpt", **members, "stream": streams and BY_PATH[path].may_stream})
        assert (answer.status, answer.is_whole, model(answer)) == (200, True, able), answer.body
        assert answer.headers["x-ollama-router-attempts"] == "2"
        names = {part.partition(b'"')[0] for part in answer.body.split(b'"model":"')[1:]}
        assert names == (set() if path == "/api/embeddings" else {b" gpt"})
        assert await fallbacks(router) == {("gpt:latest", "incapable"): 1}
        page = await scrape(router)
        assert page.value("upstream_requests_total", outcome="incapable", model="gemma3:270m") == 1
        assert page.value("circuit_state") == 0
        assert no_bugs(pool)
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)


async def test_what_no_target_can_do_is_answered_by_the_last_one_tried() -> None:
    aliases = {"gpt": alias_of("gemma3:270m", fallbacks="gemma-fim gemma-think")}
    async with (
        SimulatedPool(nodes=1, time_scale=0.001, models=RECORDED_MODELS) as pool,
        router_before(pool.nodes, aliases=aliases) as router,
    ):
        answer = await ask(router, "/api/chat", {"model": "gpt", "messages": USER, "tools": [TOOL]})
        assert answer.status == 400
        assert answer.json == {"error": "registry.ollama.ai/library/gemma-think:latest does not support tools"}
        assert answer.headers["x-ollama-router-attempts"] == "3"


async def test_a_call_that_may_be_tried_once_gets_the_first_models_answer() -> None:
    settings = {"aliases": {"gpt": alias_of("gemma3:270m", fallbacks="gemma-tools")}, "retry": {"attempts": 1}}
    async with (
        SimulatedPool(nodes=1, time_scale=0.001, models=RECORDED_MODELS) as pool,
        router_before(pool.nodes, **settings) as router,
    ):
        answer = await ask(router, "/api/chat", {"model": "gpt", "messages": USER, "tools": [TOOL]})
        assert (answer.status, model(answer)) == (400, "gemma3:270m")


# overrides


@pytest.mark.parametrize("path", COMPAT)
@pytest.mark.parametrize("sent", [{}, {"temperature": 0.9}, {"Temperature": None}])
async def test_an_overridden_temperature_is_the_last_one_said_on_v1(path: str, sent: dict[str, Any]) -> None:
    aliases = {"gpt": alias_of(QUICK, overrides={"temperature": 0.2, "num_ctx": 8192})}
    async with holding(1, QUICK, aliases=aliases) as (pool, router):
        assert (await ask(router, path, {"model": "gpt", **COMPAT[path], **sent})).status == 200
        (body,) = bodies(pool.nodes[0])
        assert body["temperature"] == 0.2
        assert list(body)[-1] == "temperature" or "temperature" in sent
        assert "options" not in body, "Ollama reads none here"
        assert pool.loads_started == 1


@pytest.mark.parametrize("path", NATIVE)
@pytest.mark.parametrize("sent", [{}, {"options": {"temperature": 0.9, "seed": 1}}, {"options": None}])
async def test_an_overridden_temperature_is_the_last_one_said_on_native_routes(path: str, sent: dict[str, Any]) -> None:
    async with holding(1, QUICK, aliases={"gpt": alias_of(QUICK, overrides={"temperature": 0.2})}) as (pool, router):
        assert (await ask(router, path, {"model": "gpt", **NATIVE[path], **sent})).status == 200
        (body,) = bodies(pool.nodes[0])
        assert body["options"] == {"temperature": 0.2}
        assert "temperature" not in body


async def test_an_overridden_context_is_loaded_and_later_calls_of_the_alias_share_it() -> None:
    async with (
        pool_of(1) as pool,
        router_before(pool.nodes, aliases={"long": alias_of(QUICK, overrides={"num_ctx": 16384})}) as router,
    ):
        for options in ({}, {"num_ctx": 2048}, {"num_ctx": 65536}):
            answer = await ask(router, "/api/generate", {"model": "long", "prompt": "Why?", "options": options})
            assert answer.status == 200
        assert pool.loads_started == 1
        (copy,) = pool.nodes[0].model.copies.values()
        assert copy.num_ctx == 16384


async def test_an_overridden_context_that_no_copy_has_is_loaded_anew_where_a_clients_is_refused() -> None:
    async with holding(1, QUICK, aliases={"long": alias_of(QUICK, overrides={"num_ctx": 16384})}) as (pool, router):
        asked = {"prompt": "Why?", "options": {"num_ctx": 16384}}
        assert (await ask(router, "/api/generate", {"model": QUICK, **asked})).status == 400
        assert pool.loads_started == 1
        assert (await ask(router, "/api/generate", {"model": "long", "prompt": "Why?"})).status == 200
        assert pool.loads_started == 2
        assert (await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?"})).status == 200
        assert pool.loads_started == 2, "others are given the context that is there"


async def test_where_placement_only_observes_an_overridden_context_that_is_not_loaded_is_refused() -> None:
    aliases = {"long": alias_of(QUICK, overrides={"num_ctx": 16384})}
    async with holding(1, QUICK, aliases=aliases, placement={"mode": "observe"}) as (_, router):
        answer = await ask(router, "/api/generate", {"model": "long", "prompt": "Why?"})
        assert (answer.status, answer.refused) == (400, "num_ctx")


# teams, lists, the operator


async def test_calls_without_a_key_have_the_meaning_of_the_team_default() -> None:
    teams = {"default": {"targets": [{"model": QUICK}]}, "product": {"targets": [{"model": COLD}]}}
    async with holding(1, QUICK, aliases={"gpt": alias_of(COLD, teams=teams)}) as (_, router):
        assert model(await generate(router, "gpt")) == QUICK


async def test_an_alias_is_listed_as_its_first_target_that_a_node_has() -> None:
    aliases = {"gpt": alias_of(ABSENT, fallbacks=QUICK), "none": alias_of(ABSENT)}
    async with holding(1, QUICK, aliases=aliases) as (_, router):
        listed = {each["name"]: each for each in (await get(router.port, "/api/tags")).json["models"]}
        assert listed["gpt:latest"]["digest"] == listed[QUICK]["digest"]
        assert "none:latest" not in listed


async def test_aliases_that_name_models_which_no_node_has_are_told_once_for_each_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="router.control.alias_watch")
    aliases = aliases_of({"gpt": Said([(ABSENT, 1.0)], ["x:1b"]), "fine": Said([("x:1b", 1.0)])})
    watch = AliasWatch()
    watch.look(fleet(node("a", disk="x:1b"), node("b", is_read=False)), aliases)
    assert caplog.messages == [], "the node that was not read may have it"
    for _ in range(2):
        watch.look(fleet(node("a", disk="x:1b"), node("b")), aliases)
    watch.look(fleet(node("a"), node("b")), aliases)
    watch.look(fleet(node("a", disk=f"x:1b {ABSENT}"), node("b")), aliases)
    assert caplog.messages == [
        f"aliases name models that no node has: gpt:latest -> {ABSENT}",
        f"aliases name models that no node has: fine:latest -> x:1b, gpt:latest -> {ABSENT}, gpt:latest -> x:1b",
        "every model that an alias names is on a node",
    ]


async def test_a_running_router_tells_of_such_aliases(caplog: pytest.LogCaptureFixture) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, aliases={"gpt": alias_of(ABSENT, fallbacks=QUICK)}):
        await until(lambda: f"aliases name models that no node has: gpt:latest -> {ABSENT}" in caplog.messages)


def test_aliases_can_be_swapped_while_calls_come() -> None:
    with replay_house(ReplayNode(), aliases={"gpt": "gemma3:270m"}) as house:
        house.node.answer((said(200, b'{"model":"gemma3:270m"}'),))
        assert house.ask(post("/api/generate", b'{"model":"gpt","prompt":"a","stream":false}')).status == 200
        pipeline = house.router.pipeline
        pipeline.rules = replace(pipeline.rules, aliases=aliases_of({"claude": Said([("gemma3:270m", 1.0)])}))
        assert house.ask(post("/api/generate", b'{"model":"gpt","prompt":"a","stream":false}')).status == 404
        assert house.ask(post("/api/generate", b'{"model":"claude","prompt":"a","stream":false}')).status == 200
