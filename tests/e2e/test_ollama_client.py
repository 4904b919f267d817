"""The official ollama client: all that reads, and what it says to what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import ollama
import pytest

from router.wiring import Router
from tests.e2e.house import (
    ALIASES,
    CHATS,
    CITY,
    DIMENSIONS,
    EMBEDDERS,
    LISTED,
    MESSAGES,
    PNG,
    QUESTION,
    TOOL,
    base,
    chats,
    embedders,
    thinkers,
)
from tests.shell.house import until

FEW: Any = {"num_predict": 8}


@asynccontextmanager
async def client_of(router: Router) -> AsyncIterator[ollama.AsyncClient]:
    client = ollama.AsyncClient(host=base(router))
    async with client._client:
        yield client


@chats
async def test_a_prompt_is_answered_plain_and_streamed(router: Router, model: str) -> None:
    async with client_of(router) as client:
        plain = await client.generate(model, QUESTION, options=FEW)
        lines = [line async for line in await client.generate(model, QUESTION, stream=True, options=FEW)]
    assert (plain.model, plain.done, bool(plain.response), plain.eval_count) == (model, True, True, 8)
    assert {line.model for line in lines} == {model}
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]


@chats
async def test_a_chat_is_answered_plain_and_streamed(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.chat(model, MESSAGES, options=FEW)
        parts = [part async for part in await client.chat(model, MESSAGES, stream=True, options=FEW)]
    assert (answer.model, answer.message.role) == (model, "assistant")
    assert {part.model for part in parts} == {model}
    assert "".join(part.message.content or "" for part in parts) == answer.message.content
    assert (parts[-1].eval_count, parts[-1].done_reason) == (8, "length")


@chats
async def test_a_tool_is_called_and_its_result_read(router: Router, model: str) -> None:
    async with client_of(router) as client:
        asked = await client.chat(model, MESSAGES, tools=[TOOL])
        assert asked.message.tool_calls is not None
        (call,) = asked.message.tool_calls
        assert call.function.name == "get_weather"
        assert isinstance(call.function.arguments["city"], str)
        result = {"role": "tool", "tool_name": "get_weather", "content": "18 degrees"}
        told = await client.chat(model, [*MESSAGES, asked.message, result], tools=[TOOL])
        parts = [part async for part in await client.chat(model, MESSAGES, tools=[TOOL], stream=True)]
    assert (told.model, bool(told.message.content)) == (model, True)
    assert [len(part.message.tool_calls or []) for part in parts].count(1) == 1


@thinkers
async def test_thinking_is_told_apart_unless_it_is_switched_off(router: Router, model: str) -> None:
    async with client_of(router) as client:
        thought = await client.chat(model, MESSAGES, think=True)
        quick = await client.chat(model, MESSAGES, think=False)
        parts = [part async for part in await client.chat(model, MESSAGES, think=True, stream=True)]
        written = await client.generate(model, QUESTION, think=True)
    assert thought.model == model
    assert thought.message.thinking
    assert thought.message.content
    assert not quick.message.thinking
    assert "".join(part.message.thinking or "" for part in parts) == thought.message.thinking
    assert written.thinking


@chats
async def test_an_image_and_a_format_are_passed_on(router: Router, model: str) -> None:
    async with client_of(router) as client:
        seen = await client.generate(model, QUESTION, images=[PNG], options=FEW)
        unseen = await client.generate(model, QUESTION, options=FEW)
        formed = await client.chat(model, MESSAGES, format=CITY)
    assert (seen.prompt_eval_count or 0) > (unseen.prompt_eval_count or 0)
    assert formed.message.content == '{"city": "Paris"}'


@embedders
async def test_texts_are_embedded(router: Router, model: str) -> None:
    async with client_of(router) as client:
        several = await client.embed(model, ["hello", "world"])
        short = await client.embed(model, "hello", dimensions=64)
        old = await client.embeddings(model, "hello")
    assert (several.model, [len(vector) for vector in several.embeddings]) == (model, [DIMENSIONS] * 2)
    assert [len(vector) for vector in short.embeddings] == [64]
    assert len(old.embedding) == DIMENSIONS


async def test_what_is_there_is_listed(router: Router) -> None:
    async with client_of(router) as client:
        models = (await client.list()).models
    assert {model.model for model in models} == LISTED
    assert all(model.digest and model.size and model.modified_at and model.details for model in models)
    by_name = {model.model: model for model in models}
    assert all(by_name[f"{alias}:latest"].digest == by_name[f"{name}:latest"].digest for alias, name in ALIASES.items())


async def test_what_is_loaded_is_listed(router: Router) -> None:
    async with client_of(router) as client:
        assert (await client.ps()).models == []
        await client.generate(CHATS[2], QUESTION, options=FEW)
        await until(lambda: any(node.copies for node in router.keeper.snapshot.nodes.values()))
        async with asyncio.timeout(10):
            while CHATS[0] not in [model.model for model in (await client.ps()).models]:
                pass
        (shown,) = (await client.ps()).models
    assert shown.expires_at is not None
    assert (shown.expires_at.tzinfo is not None, bool(shown.context_length)) == (True, True)


@chats
async def test_a_model_is_loaded_without_a_prompt(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.generate(model)
        chat = await client.chat(model)
    assert (answer.model, answer.done_reason, answer.response) == (model, "load", "")
    assert (chat.model, chat.done_reason) == (model, "load")


REFUSALS: dict[str, tuple[Callable[[ollama.AsyncClient], Any], int, str]] = {
    "an unknown model": (lambda client: client.chat("nope", MESSAGES), 404, "model 'nope' not found"),
    "an unknown model, embedded": (lambda client: client.embed("nope", "hello"), 404, "try pulling it first"),
    "a chat with an embedding model": (
        lambda client: client.chat(EMBEDDERS[1], MESSAGES),
        400,
        "does not support chat",
    ),
    "thinking where there is none": (
        lambda client: client.chat(CHATS[1], MESSAGES, think=True),
        400,
        "does not support thinking",
    ),
    "pull": (lambda client: client.pull("nope"), 403, "pull"),
    "push": (lambda client: client.push("nope"), 403, "push"),
    "create": (lambda client: client.create("mine", from_=CHATS[0]), 403, "create"),
    "copy": (lambda client: client.copy(CHATS[0], "mine"), 403, "copy"),
    "delete": (lambda client: client.delete(CHATS[0]), 403, "delete"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_refusals_raise_the_clients_own_errors(router: Router, case: str) -> None:
    ask, status, text = REFUSALS[case]
    async with client_of(router) as client:
        with pytest.raises(ollama.ResponseError) as refused:
            await ask(client)
    assert refused.value.status_code == status
    assert text in refused.value.error


async def test_a_refusal_is_raised_out_of_a_stream(router: Router) -> None:
    async with client_of(router) as client:
        with pytest.raises(ollama.ResponseError, match="model 'nope' not found"):
            [part async for part in await client.chat("nope", MESSAGES, stream=True)]


async def test_the_synchronous_client_works_in_a_thread(router: Router) -> None:
    def talk() -> list[str]:
        client = ollama.Client(host=base(router))
        with client._client:
            parts = client.chat(CHATS[2], MESSAGES, stream=True, options=FEW)
            return [part.message.content or "" for part in parts]

    assert "".join(await asyncio.to_thread(talk))
