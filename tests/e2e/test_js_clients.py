"""The official JavaScript clients, in Node processes: another HTTP stack than Python's, and other habits."""

from __future__ import annotations

from typing import Any

import pytest

from router.wiring import Router
from tests.e2e.house import CHATS, DIMENSIONS, LISTED, NEW, OLD, chats, embedders
from tests.e2e.javascript import told
from tests.shell.clients import scrape
from tests.shell.house import assert_at_rest, until
from tests.shell.scenes import ENDLESS, holding, no_bugs, running

pytestmark = pytest.mark.js

CLIENTS = ("openai", "ollama")

both = pytest.mark.parametrize("client", CLIENTS)


@both
@chats
async def test_a_chat_is_answered_under_the_name_that_was_sent(router: Router, client: str, model: str) -> None:
    said = await told(client, "chat", router, model)
    assert (said["model"], bool(said["text"]), said["tokens"]) == (model, True, {"openai": 12, "ollama": 8}[client])


@both
@chats
async def test_a_streamed_chat_carries_the_name_that_was_sent(router: Router, client: str, model: str) -> None:
    said = await told(client, "stream", router, model)
    assert (said["models"], bool(said["text"]), said["tokens"]) == ([model], True, {"openai": 12, "ollama": 8}[client])


@both
@chats
async def test_tools_are_called_plain_and_streamed(router: Router, client: str, model: str) -> None:
    said = await told(client, "tools", router, model)
    assert (said["model"], said["names"]) == (model, ["get_weather"] * 2)
    assert isinstance(said["arguments"]["city"], str)
    assert said.get("reasons", ["tool_calls"] * 2) == ["tool_calls"] * 2


@both
@embedders
async def test_texts_are_embedded(router: Router, client: str, model: str) -> None:
    said = await told(client, "embeddings", router, model)
    assert set(said["models"]) == {model}
    assert said["lengths"] == [[DIMENSIONS] * 2, [DIMENSIONS] * 2, [64] * 2][: len(said["models"])]
    assert said.get("difference", 0) < 1e-6, "base64, which the client asks for by itself, says the same"


@both
async def test_models_are_listed_aliases_among_them(router: Router, client: str) -> None:
    assert set(await told(client, "models", router)) == LISTED


async def test_what_is_loaded_is_listed(router: Router) -> None:
    assert await told("ollama", "loaded", router, CHATS[2]) == [CHATS[0]]


async def test_the_version_is_that_of_the_nodes(router: Router) -> None:
    assert await told("ollama", "version", router) in (OLD, NEW)


async def test_an_unknown_model_raises_the_clients_own_errors(router: Router) -> None:
    openai = await told("openai", "unknown", router)
    assert (openai["kind"], openai["status"], openai["type"]) == ("NotFoundError", 404, "not_found_error")
    assert openai["id"]
    ollama: Any = await told("ollama", "unknown", router)
    assert ollama == {"kind": "ResponseError", "status": 404, "text": "model 'nope' not found"}


@both
async def test_an_aborted_stream_stops_the_node_and_leaves_nothing_held(client: str) -> None:
    async with holding(2, ENDLESS) as (pool, router):
        said = await told(client, "abort", router, ENDLESS)
        assert said["events"] == 1
        assert said.get("kind", "AbortError") == "AbortError"
        await until(lambda: not router.pipeline.live and not running(pool))
        page = await scrape(router)
        assert page.value("client_disconnects_total", phase="streaming") == 1
        assert_at_rest(router)
        assert no_bugs(pool)
