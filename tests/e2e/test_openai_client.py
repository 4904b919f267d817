"""The official openai client: what it parses, raises and counts is what users see."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import struct
from collections.abc import Callable
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from router.wiring import Router
from tests.e2e.house import (
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


def client_of(router: Router) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{base(router)}/v1", api_key="any", max_retries=0)


class Place(BaseModel):
    name: str
    kind: Literal["city", "country"]


class Weather(BaseModel):
    """Nested, as people write it: the client sends it as a schema with references."""

    place: Place
    hours: list[int]
    is_raining: bool


RESPONSES_TOOL: Any = {"type": "function", "name": "get_weather", "parameters": CITY, "strict": False}


@chats
async def test_a_chat_is_answered_under_the_name_that_was_sent(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=12)
    assert (answer.model, answer.object) == (model, "chat.completion")
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12


@chats
@pytest.mark.parametrize("asks", [False, True])
async def test_a_streamed_chat_tells_usage_only_to_who_asks(router: Router, model: str, asks: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if asks else {}
    async with client_of(router) as client:
        stream = await client.chat.completions.create(
            model=model, messages=MESSAGES, max_tokens=12, stream=True, **options
        )
        events = [event async for event in stream]
    assert {event.model for event in events} == {model}
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert [event.usage is not None for event in events].count(True) == int(asks)
    assert all(event.choices for event in events[:-1])
    assert bool(events[-1].choices) == (not asks)


@chats
async def test_the_streaming_helper_puts_a_chat_together(router: Router, model: str) -> None:
    async with (
        client_of(router) as client,
        client.chat.completions.stream(model=model, messages=MESSAGES) as stream,
    ):
        text = "".join([event.delta async for event in stream if event.type == "content.delta"])
        whole = await stream.get_final_completion()
    assert (whole.model, whole.choices[0].message.content) == (model, text)


@chats
async def test_a_tool_is_called_and_its_result_read(router: Router, model: str) -> None:
    async with client_of(router) as client:
        asked = await client.chat.completions.create(model=model, messages=MESSAGES, tools=[TOOL])
        said = asked.choices[0].message
        assert said.tool_calls is not None
        (call,) = said.tool_calls
        assert (call.type, call.function.name) == ("function", "get_weather")
        assert isinstance(json.loads(call.function.arguments)["city"], str)
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
        told = await client.chat.completions.create(
            model=model, messages=[*MESSAGES, said.model_dump(exclude_none=True), result], tools=[TOOL]
        )
    assert asked.choices[0].finish_reason == "tool_calls"
    assert (told.model, told.choices[0].finish_reason) == (model, "stop")
    assert told.choices[0].message.content


@chats
async def test_a_tool_call_is_streamed(router: Router, model: str) -> None:
    async with client_of(router) as client:
        stream = await client.chat.completions.create(model=model, messages=MESSAGES, tools=[TOOL], stream=True)
        events = [event async for event in stream]
    calls = [call for event in events for call in event.choices[0].delta.tool_calls or []]
    assert "".join(call.function.name or "" for call in calls if call.function) == "get_weather"
    assert isinstance(json.loads("".join(call.function.arguments or "" for call in calls if call.function)), dict)
    assert events[-1].choices[0].finish_reason == "tool_calls"


@chats
async def test_json_mode_answers_an_object(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.chat.completions.create(
            model=model, messages=MESSAGES, response_format={"type": "json_object"}
        )
    assert answer.model == model
    assert isinstance(json.loads(answer.choices[0].message.content or ""), dict)


@chats
async def test_a_structured_answer_is_parsed_into_the_callers_type(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Weather)
    assert answer.model == model
    weather = answer.choices[0].message.parsed
    assert weather is not None
    assert weather.place.kind == "city"


@chats
async def test_an_image_is_seen(router: Router, model: str) -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
    content: Any = [{"type": "text", "text": QUESTION}, image]
    async with client_of(router) as client:
        seen = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=4
        )
        unseen = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content[:1]}], max_tokens=4
        )
    assert seen.model == model
    assert seen.usage is not None
    assert unseen.usage is not None
    assert seen.usage.prompt_tokens > unseen.usage.prompt_tokens


@thinkers
async def test_reasoning_is_told_apart_from_the_answer(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.chat.completions.create(model=model, messages=MESSAGES, reasoning_effort="low")
    message = answer.choices[0].message
    assert answer.model == model
    assert (message.model_extra or {})["reasoning"]
    assert message.content


@chats
async def test_a_completion_is_answered_plain_and_streamed(router: Router, model: str) -> None:
    async with client_of(router) as client:
        plain = await client.completions.create(model=model, prompt="The sky is", max_tokens=6)
        assert (plain.model, bool(plain.choices[0].text)) == (model, True)
        for asks in (False, True):
            options: Any = {"stream_options": {"include_usage": True}} if asks else {}
            stream = await client.completions.create(
                model=model, prompt="The sky is", max_tokens=6, stream=True, **options
            )
            events = [event async for event in stream]
            assert {event.model for event in events} == {model}
            assert any(event.usage is not None for event in events) == asks


@embedders
@pytest.mark.parametrize("dimensions", [None, 64])
async def test_embeddings_are_the_same_in_base64(router: Router, model: str, dimensions: int | None) -> None:
    options: Any = {"dimensions": dimensions} if dimensions else {}
    async with client_of(router) as client:
        asked = client.embeddings.with_raw_response
        floats = await client.embeddings.create(
            model=model, input=["hello", "world"], encoding_format="float", **options
        )
        decoded = await client.embeddings.create(model=model, input=["hello", "world"], **options)
        raw = await asked.create(model=model, input=["hello", "world"], encoding_format="base64", **options)
    assert floats.model == decoded.model == model
    assert [item.index for item in floats.data] == [0, 1]
    assert floats.usage.prompt_tokens > 0
    for plain, read, coded in zip(floats.data, decoded.data, json.loads(raw.text)["data"], strict=True):
        assert len(plain.embedding) == (dimensions or DIMENSIONS)
        values = struct.unpack(f"<{len(plain.embedding)}f", base64.b64decode(coded["embedding"]))
        assert all(math.isclose(one, other, rel_tol=1e-5) for one, other in zip(plain.embedding, values, strict=True))
        assert list(values) == list(read.embedding), "the client asks for base64 unless told otherwise"


@chats
async def test_a_response_is_answered_plain_and_streamed(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.responses.create(model=model, input=QUESTION, max_output_tokens=12)
        assert (answer.model, bool(answer.output_text), answer.status) == (model, True, "completed")
        stream = await client.responses.create(model=model, input=QUESTION, max_output_tokens=12, stream=True)
        events = [event async for event in stream]
    assert events[0].type == "response.created"
    last = events[-1]
    assert last.type == "response.completed"
    assert last.response.model == model
    assert last.response.usage is not None
    assert [event.sequence_number for event in events] == list(range(len(events)))


@chats
async def test_a_response_calls_a_tool_and_reads_its_result(router: Router, model: str) -> None:
    async with client_of(router) as client:
        asked = await client.responses.create(model=model, input=QUESTION, tools=[RESPONSES_TOOL])
        (call,) = [item for item in asked.output if item.type == "function_call"]
        assert isinstance(json.loads(call.arguments)["city"], str)
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"}
        said: Any = [{"role": "user", "content": QUESTION}, call.model_dump(exclude_none=True), result]
        told = await client.responses.create(model=model, input=said, tools=[RESPONSES_TOOL])
        stream = await client.responses.create(model=model, input=QUESTION, tools=[RESPONSES_TOOL], stream=True)
        kinds = [event.type async for event in stream]
    assert (told.model, bool(told.output_text)) == (model, True)
    assert "response.function_call_arguments.done" in kinds


@chats
async def test_a_structured_response_is_parsed_into_the_callers_type(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.responses.parse(model=model, input=QUESTION, text_format=Weather)
    assert answer.model == model
    assert answer.output_parsed is not None
    assert answer.output_parsed.place.kind == "city"


async def test_models_are_listed_aliases_among_them(router: Router) -> None:
    async with client_of(router) as client:
        models = [model async for model in client.models.list()]
    assert {model.id for model in models} == LISTED
    assert {(model.object, model.owned_by) for model in models} == {("model", "library")}
    assert all(model.created > 0 for model in models)


REFUSALS: dict[str, tuple[Callable[[openai.AsyncOpenAI], Any], type[openai.APIStatusError], str, str]] = {
    "an unknown model": (
        lambda client: client.chat.completions.create(model="nope", messages=MESSAGES),
        openai.NotFoundError,
        "not_found_error",
        "model 'nope' not found",
    ),
    "an unknown model, streamed": (
        lambda client: client.chat.completions.create(model="nope", messages=MESSAGES, stream=True),
        openai.NotFoundError,
        "not_found_error",
        "model 'nope' not found",
    ),
    "no messages": (
        lambda client: client.chat.completions.create(model=CHATS[0], messages=[]),
        openai.BadRequestError,
        "invalid_request_error",
        "[] is too short - 'messages'",
    ),
    "an image by its address": (
        lambda client: client.chat.completions.create(
            model=CHATS[0],
            messages=[
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]}
            ],
        ),
        openai.BadRequestError,
        "invalid_request_error",
        "image URLs are not currently supported",
    ),
    "a chat with an embedding model": (
        lambda client: client.chat.completions.create(model=EMBEDDERS[0], messages=MESSAGES),
        openai.BadRequestError,
        "invalid_request_error",
        "does not support chat",
    ),
    "an unknown model, embedded": (
        lambda client: client.embeddings.create(model="nope", input="hello"),
        openai.NotFoundError,
        "not_found_error",
        'model "nope" not found',
    ),
    "an unknown model, in a response": (
        lambda client: client.responses.create(model="nope", input=QUESTION),
        openai.NotFoundError,
        "not_found_error",
        "model 'nope' not found",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_refusals_raise_the_clients_own_errors(router: Router, case: str) -> None:
    ask, kind, told, text = REFUSALS[case]
    async with client_of(router) as client:
        with pytest.raises(kind) as refused:
            await ask(client)
    assert refused.value.type == told
    assert text in refused.value.message
    assert refused.value.request_id


async def test_the_synchronous_client_streams_in_a_thread(router: Router) -> None:
    def stream() -> str:
        with openai.OpenAI(base_url=f"{base(router)}/v1", api_key="any", max_retries=0) as client:
            events = client.chat.completions.create(model=CHATS[2], messages=MESSAGES, max_tokens=8, stream=True)
            return "".join(event.choices[0].delta.content or "" for event in events)

    assert await asyncio.to_thread(stream)
