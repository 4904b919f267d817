"""The official clients against a router before simulated nodes: what they parse, raise and count is what users see."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.shell.house import assert_at_rest, router_before, until

MODEL, ALIAS, EMBEDDER, TOOLS = "llama3.2:3b", "gpt-4o", "nomic-embed-text", "qwen3:8b"
MESSAGES: Any = [{"role": "user", "content": "Why is the sky blue?"}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
async def router() -> AsyncIterator[Router]:
    async with (
        SimulatedPool(nodes=2, time_scale=0.001) as pool,
        router_before(pool.nodes, aliases={ALIAS: MODEL, "text-embedding-3-small": EMBEDDER}) as opened,
    ):
        yield opened
        await until(lambda: not opened.pipeline.live)
        assert_at_rest(opened)


def base(router: Router) -> str:
    return f"http://127.0.0.1:{router.port}"


def openai_client(router: Router) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{base(router)}/v1", api_key="any", max_retries=0)


def anthropic_client(router: Router) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=base(router), api_key="any", max_retries=0)


# openai


@pytest.mark.parametrize("model", [MODEL, ALIAS])
async def test_openai_chats(router: Router, model: str) -> None:
    async with openai_client(router) as client:
        answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12)
        assert answer.model == model
        assert answer.choices[0].message.content
        assert answer.usage is not None
        assert answer.usage.completion_tokens > 0


@pytest.mark.parametrize("model", [MODEL, ALIAS])
async def test_openai_streams_a_chat_and_sees_usage_only_when_it_asks(router: Router, model: str) -> None:
    async with openai_client(router) as client:
        for asks in (False, True):
            options: Any = {"stream_options": {"include_usage": True}} if asks else {}
            stream = await client.chat.completions.create(
                model=model, messages=MESSAGES, max_tokens=12, stream=True, **options
            )
            events = [event async for event in stream]
            assert {event.model for event in events} == {model}
            assert "".join(event.choices[0].delta.content or "" for event in events if event.choices)
            assert [event.usage is not None for event in events].count(True) == int(asks)
            assert all(event.choices for event in events[:-1])
            assert bool(events[-1].choices) == (not asks)


async def test_openai_completes_plain_and_streamed(router: Router) -> None:
    async with openai_client(router) as client:
        plain = await client.completions.create(model=ALIAS, prompt="The sky is", max_tokens=6)
        assert (plain.model, bool(plain.choices[0].text)) == (ALIAS, True)
        for asks in (False, True):
            options: Any = {"stream_options": {"include_usage": True}} if asks else {}
            stream = await client.completions.create(
                model=ALIAS, prompt="The sky is", max_tokens=6, stream=True, **options
            )
            events = [event async for event in stream]
            assert {event.model for event in events} == {ALIAS}
            assert any(event.usage is not None for event in events) == asks


async def test_openai_calls_tools(router: Router) -> None:
    async with openai_client(router) as client:
        answer = await client.chat.completions.create(model=TOOLS, messages=MESSAGES, tools=[TOOL])
        calls = answer.choices[0].message.tool_calls
        if calls:
            assert calls[0].type == "function"
            assert isinstance(json.loads(calls[0].function.arguments), dict)


@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_openai_embeds(router: Router, encoding: Any) -> None:
    async with openai_client(router) as client:
        answer = await client.embeddings.create(
            model="text-embedding-3-small", input=["hello", "world"], encoding_format=encoding
        )
        assert answer.model == "text-embedding-3-small"
        assert [item.index for item in answer.data] == [0, 1]
        assert answer.usage.prompt_tokens > 0
        if encoding == "float":
            assert math.isclose(sum(x * x for x in answer.data[0].embedding), 1.0, rel_tol=1e-3)


async def test_openai_responds_plain_and_streamed(router: Router) -> None:
    async with openai_client(router) as client:
        answer = await client.responses.create(model=ALIAS, input="Why?", max_output_tokens=12)
        assert (answer.model, bool(answer.output_text), answer.status) == (ALIAS, True, "completed")
        stream = await client.responses.create(model=ALIAS, input="Why?", max_output_tokens=12, stream=True)
        events = [event async for event in stream]
        assert events[0].type == "response.created"
        assert events[-1].type == "response.completed"
        assert events[-1].response.model == ALIAS
        assert events[-1].response.usage is not None
        assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_openai_lists_models_aliases_among_them(router: Router) -> None:
    async with openai_client(router) as client:
        names = [model.id async for model in client.models.list()]
        assert {MODEL, f"{ALIAS}:latest", f"{EMBEDDER}:latest"} <= set(names)


async def test_openai_raises_its_own_errors(router: Router) -> None:
    async with openai_client(router) as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nope", messages=MESSAGES)
        assert unknown.value.type == "not_found_error"
        assert "model 'nope' not found" in unknown.value.message
        assert unknown.value.request_id
        with pytest.raises(openai.BadRequestError) as empty:
            await client.chat.completions.create(model=MODEL, messages=[])
        assert "[] is too short - 'messages'" in empty.value.message
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nope", messages=MESSAGES, stream=True)


async def test_the_synchronous_openai_client_streams_in_a_thread(router: Router) -> None:
    def stream() -> str:
        with openai.OpenAI(base_url=f"{base(router)}/v1", api_key="any", max_retries=0) as client:
            events = client.chat.completions.create(model=ALIAS, messages=MESSAGES, max_tokens=8, stream=True)
            return "".join(event.choices[0].delta.content or "" for event in events)

    assert await asyncio.to_thread(stream)


# anthropic


@pytest.mark.parametrize("model", [MODEL, ALIAS])
async def test_anthropic_sends_a_message(router: Router, model: str) -> None:
    async with anthropic_client(router) as client:
        answer = await client.messages.create(model=model, messages=MESSAGES, max_tokens=12)
        assert (answer.model, answer.role, answer.content[0].type) == (model, "assistant", "text")
        assert answer.usage.output_tokens > 0


async def test_anthropic_streams_a_message(router: Router) -> None:
    async with anthropic_client(router) as client:
        async with client.messages.stream(model=ALIAS, messages=MESSAGES, max_tokens=12) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            message = await stream.get_final_message()
        assert text == message.content[0].text
        assert (message.model, message.stop_reason in ("end_turn", "max_tokens")) == (ALIAS, True)


async def test_anthropic_raises_its_own_errors(router: Router) -> None:
    async with anthropic_client(router) as client:
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(model="nope", messages=MESSAGES, max_tokens=12)
        assert unknown.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(model=MODEL, messages=MESSAGES, max_tokens=0)


# ollama


@pytest.mark.parametrize("model", [MODEL, ALIAS])
async def test_ollama_generates_and_chats(router: Router, model: str) -> None:
    client = ollama.AsyncClient(host=base(router))
    async with client._client:
        plain = await client.generate(model, "Why?", options={"num_predict": 8})
        assert (plain.model, plain.done, bool(plain.response)) == (model, True, True)
        lines = [line async for line in await client.generate(model, "Why?", stream=True, options={"num_predict": 8})]
        assert {line.model for line in lines} == {model}
        assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
        answer = await client.chat(model, MESSAGES, options={"num_predict": 8})
        assert (answer.model, answer.message.role) == (model, "assistant")
        parts = [part async for part in await client.chat(model, MESSAGES, stream=True, options={"num_predict": 8})]
        assert "".join(part.message.content or "" for part in parts)
        assert parts[-1].eval_count


async def test_ollama_embeds(router: Router) -> None:
    client = ollama.AsyncClient(host=base(router))
    async with client._client:
        several = await client.embed(EMBEDDER, ["hello", "world"])
        assert (several.model, len(several.embeddings)) == (EMBEDDER, 2)
        old = await client.embeddings(EMBEDDER, "hello")
        assert len(old.embedding) == len(several.embeddings[0])


async def test_ollama_lists_what_is_there_and_what_is_loaded(router: Router) -> None:
    client = ollama.AsyncClient(host=base(router))
    async with client._client:
        assert {MODEL, f"{ALIAS}:latest"} <= {model.model for model in (await client.list()).models}
        await client.generate(MODEL, "Why?", options={"num_predict": 2})
        await until(lambda: any(node.copies for node in router.keeper.snapshot.nodes.values()))
        async with asyncio.timeout(10):
            while MODEL not in [model.model for model in (await client.ps()).models]:
                pass


async def test_ollama_loads_a_model_without_a_prompt(router: Router) -> None:
    client = ollama.AsyncClient(host=base(router))
    async with client._client:
        answer = await client.generate(MODEL)
        assert (answer.done_reason, answer.response) == ("load", "")


async def test_ollama_raises_its_own_errors(router: Router) -> None:
    client = ollama.AsyncClient(host=base(router))
    async with client._client:
        with pytest.raises(ollama.ResponseError) as unknown:
            await client.chat("nope", MESSAGES)
        assert (unknown.value.status_code, unknown.value.error) == (404, "model 'nope' not found")
        with pytest.raises(ollama.ResponseError) as refused:
            await client.pull("nope")
        assert refused.value.status_code == 403


async def test_the_synchronous_ollama_client_works_in_a_thread(router: Router) -> None:
    def talk() -> list[str]:
        client = ollama.Client(host=base(router))
        with client._client:
            parts = client.chat(ALIAS, MESSAGES, stream=True, options={"num_predict": 4})
            return [part.message.content or "" for part in parts]

    assert "".join(await asyncio.to_thread(talk))
