"""The official anthropic client: messages, streams and tools."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest

from router.wiring import Router
from tests.e2e.house import CHATS, CITY, MESSAGES, base, chats, thinkers

TOOL: Any = {"name": "get_weather", "description": "The weather of a city", "input_schema": CITY}


def client_of(router: Router) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=base(router), api_key="any", max_retries=0)


@chats
async def test_a_message_is_answered_under_the_name_that_was_sent(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.messages.create(model=model, messages=MESSAGES, max_tokens=12)
    assert (answer.model, answer.role, answer.content[0].type) == (model, "assistant", "text")
    assert (answer.usage.output_tokens, answer.stop_reason) == (12, "max_tokens")


@chats
async def test_a_streamed_message_is_put_together(router: Router, model: str) -> None:
    async with (
        client_of(router) as client,
        client.messages.stream(model=model, messages=MESSAGES, max_tokens=12) as stream,
    ):
        text = "".join([piece async for piece in stream.text_stream])
        message = await stream.get_final_message()
    assert message.content[0].type == "text"
    assert (message.model, message.content[0].text, message.stop_reason) == (model, text, "max_tokens")
    assert message.usage.output_tokens == 12


@chats
async def test_a_tool_is_called_and_its_result_read(router: Router, model: str) -> None:
    async with client_of(router) as client:
        asked = await client.messages.create(model=model, messages=MESSAGES, max_tokens=200, tools=[TOOL])
        (call,) = [part for part in asked.content if part.type == "tool_use"]
        assert (asked.stop_reason, call.name) == ("tool_use", "get_weather")
        assert isinstance(call.input["city"], str)
        result: Any = {"type": "tool_result", "tool_use_id": call.id, "content": "18 degrees"}
        said: Any = [
            *MESSAGES,
            {"role": "assistant", "content": [part.model_dump(exclude_none=True) for part in asked.content]},
            {"role": "user", "content": [result]},
        ]
        told = await client.messages.create(model=model, messages=said, max_tokens=20, tools=[TOOL])
    assert (told.model, told.content[0].type) == (model, "text")


@chats
async def test_a_tool_call_is_streamed(router: Router, model: str) -> None:
    async with (
        client_of(router) as client,
        client.messages.stream(model=model, messages=MESSAGES, max_tokens=200, tools=[TOOL]) as stream,
    ):
        message = await stream.get_final_message()
    (call,) = [part for part in message.content if part.type == "tool_use"]
    assert (message.model, message.stop_reason) == (model, "tool_use")
    assert isinstance(call.input["city"], str)


@thinkers
async def test_thinking_is_a_block_of_its_own(router: Router, model: str) -> None:
    async with client_of(router) as client:
        answer = await client.messages.create(model=model, messages=MESSAGES, max_tokens=64)
    assert (answer.model, [part.type for part in answer.content]) == (model, ["thinking", "text"])


async def test_refusals_raise_the_clients_own_errors(router: Router) -> None:
    async with client_of(router) as client:
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(model="nope", messages=MESSAGES, max_tokens=12)
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.create(model="nope", messages=MESSAGES, max_tokens=12, stream=True)
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.create(model=CHATS[0], messages=MESSAGES, max_tokens=0)
    body: Any = unknown.value.body
    assert body["error"]["type"] == "not_found_error"
    assert "model 'nope' not found" in body["error"]["message"]
