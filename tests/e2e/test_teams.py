"""Official clients with keys: what they send, what they raise, and what they list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import anthropic
import ollama
import openai
import pytest

from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.e2e.house import ALIASES, MESSAGES, MODELS, base
from tests.shell.clients import scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import no_bugs

KEY = "c4ca4238a0b923820dcc509a6f75849b"
SEEN = {"gpt-4o:latest", "qwen3:latest"}
TEAMS: Any = {"research": {"keys_sha256": [sha256(KEY.encode()).hexdigest()], "models": ["gpt-4o", "qwen*"]}}


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    async with (
        SimulatedPool(nodes=2, models=MODELS, time_scale=0.001) as pool,
        router_before(
            pool.nodes, aliases=ALIASES, auth={"required": True}, teams=TEAMS, metrics={"teams": True}
        ) as opened,
    ):
        yield opened
        await until(lambda: not opened.pipeline.live)
        assert_at_rest(opened)
        assert no_bugs(pool)


def openai_with(router: Router, key: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{base(router)}/v1", api_key=key, max_retries=2)


def anthropic_with(router: Router, key: str) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=base(router), api_key=key, max_retries=2)


@asynccontextmanager
async def ollama_with(router: Router, key: str) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=base(router), headers={"Authorization": f"Bearer {key}"})
    async with client._client:
        yield client


async def chat_by_openai(router: Router, key: str, model: str, *, stream: bool) -> None:
    async with openai_with(router, key) as client:
        answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, stream=stream)
        if stream:
            assert [chunk async for chunk in answer]


async def chat_by_anthropic(router: Router, key: str, model: str, *, stream: bool) -> None:
    async with anthropic_with(router, key) as client:
        answer = await client.messages.create(model=model, messages=MESSAGES, max_tokens=4, stream=stream)
        if stream:
            assert [event async for event in answer]


async def chat_by_ollama(router: Router, key: str, model: str, *, stream: bool) -> None:
    async with ollama_with(router, key) as client:
        answer: Any = await client.chat(model, MESSAGES, options={"num_predict": 4}, stream=stream)
        if stream:
            assert [part async for part in answer]


Chat = Callable[..., Awaitable[None]]
CHATS: dict[Chat, tuple[type[Exception], type[Exception]]] = {
    chat_by_openai: (openai.AuthenticationError, openai.NotFoundError),
    chat_by_anthropic: (anthropic.AuthenticationError, anthropic.NotFoundError),
    chat_by_ollama: (ollama.ResponseError, ollama.ResponseError),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("chat", CHATS)
async def test_a_client_with_a_key_is_served_and_one_without_raises_at_once(
    router: Router, chat: Chat, stream: bool
) -> None:
    unauthorized, unknown = CHATS[chat]
    for model in ("gpt-4o", "qwen3"):
        await chat(router, KEY, model, stream=stream)
    with pytest.raises(unauthorized) as refused:
        await chat(router, "wrong", "gpt-4o", stream=stream)
    assert getattr(refused.value, "status_code", 0) == 401
    with pytest.raises(unknown) as hidden:
        await chat(router, KEY, "llama3.2", stream=stream)
    assert getattr(hidden.value, "status_code", 0) == 404
    page = await scrape(router)
    assert page.value("requests_total", team="research", outcome="ok") == 2
    assert page.value("rejections_total", team="unknown", reason="unauthorized") == 1, "no client repeats it"
    assert page.value("rejections_total", team="research", reason="model_not_found") == 1


async def test_each_client_lists_what_its_team_may_use(router: Router) -> None:
    async with openai_with(router, KEY) as client:
        assert {model.id async for model in client.models.list()} == SEEN
        assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("llama3.2")
    async with ollama_with(router, KEY) as native:
        assert {model.model for model in (await native.list()).models} == SEEN
        assert (await native.show("gpt-4o")).details is not None
        with pytest.raises(ollama.ResponseError, match="not found"):
            await native.show("llama3.2")
    async with openai_with(router, "wrong") as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_credentials_in_a_url_are_a_key(router: Router) -> None:
    host = base(router).replace("http://", f"http://me:{KEY}@")
    client = ollama.AsyncClient(host=host, auth=("me", KEY))
    async with client._client:
        assert {model.model for model in (await client.list()).models} == SEEN
