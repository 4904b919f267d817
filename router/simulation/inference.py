"""The inference routes of a simulated node: from the body to the last byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from router.errors import BadRequest
from router.simulation.answers import JSON_UTF8, Speech
from router.simulation.answers_anthropic import MessagesShape
from router.simulation.answers_native import ChatShape, GenerateShape
from router.simulation.answers_openai import OpenAIChatShape, OpenAICompletionShape
from router.simulation.answers_responses import ResponsesShape
from router.simulation.ask import Ask, Target, check_early, read_ask
from router.simulation.embeddings import embed, embed_old, transcribe
from router.simulation.facts import Want, Work
from router.simulation.faults import Fault, Order
from router.simulation.generation import Call, Generation
from router.simulation.http import Reply, Request
from router.simulation.members import read_members
from router.simulation.text import Brief, Kind, compose, token_items
from router.wire.endpoints import Endpoint, Shape
from router.wire.intent import read_intent

if TYPE_CHECKING:
    from router.simulation.node import SimulatedNode

_NATIVE: Mapping[Shape, type[GenerateShape | ChatShape]] = {Shape.GENERATE: GenerateShape, Shape.CHAT: ChatShape}
_COMPAT: Mapping[Shape, type[OpenAIChatShape | OpenAICompletionShape | ResponsesShape | MessagesShape]] = {
    Shape.OPENAI_CHAT: OpenAIChatShape,
    Shape.OPENAI_COMPLETION: OpenAICompletionShape,
    Shape.RESPONSES: ResponsesShape,
    Shape.MESSAGES: MessagesShape,
}


async def infer(
    node: SimulatedNode, endpoint: Endpoint, request: Request, reply: Reply, faults: Mapping[Fault, Order]
) -> None:
    """Answers or raises a refusal. Cancelled when the client leaves, which frees its slot or aborts its load."""
    encoding = request.header("content-encoding") if node.version.has_zstd else ""
    content_type = request.header("content-type")
    intent = read_intent(endpoint, request.body, content_type=content_type, content_encoding=encoding)
    members = {} if endpoint.is_multipart else read_members(intent.body)
    check_early(endpoint, members)
    target = Target(node.find(endpoint, intent.name, intent.model), intent.name, intent.model)
    call = Call(node, endpoint, request, intent, members, target, faults, reply)
    if endpoint.is_multipart:
        await transcribe(call)
    elif endpoint.shape in (Shape.EMBED, Shape.OPENAI_EMBEDDING):
        await embed(call)
    elif endpoint.path == "/api/embeddings":
        await embed_old(call)
    elif endpoint.shape is Shape.UNCOUNTED:
        raise BadRequest(f'"{target.sent}" does not support image generation')
    elif intent.is_load_only:
        await _load(call)
    else:
        await _generate(call)


async def _generate(call: Call) -> None:
    ask = read_ask(call.endpoint, call.target, call.members)
    speech, work = _speech(call, ask)
    shape = (_NATIVE.get(call.endpoint.shape) or _COMPAT[call.endpoint.shape])(speech)
    generation = Generation(call.reply, shape, speech.answer.pieces, call.faults, streams=call.intent.streams)
    generation.kill = partial(call.node.engine.kill, work.weights.blob)
    generation.finish(await call.node.run(work, generation))


def _speech(call: Call, ask: Ask) -> tuple[Speech, Work]:
    work, node = call.work(), call.node
    room = node.model.effective_ctx(work)
    # What is too long is cut to half the context (recording quirks/prompt-too-long-chat).
    prompt = ask.prompt if len(ask.prompt) <= room else ask.prompt[-(room // 2) :]
    brief = Brief(
        seed=ask.seed,
        blob=work.weights.blob,
        prompt=prompt,
        limit=ask.limit,
        stop=ask.stop,
        thinks=ask.thinks,
        echo=ask.echo,
        tool=ask.tool,
        json_schema=ask.schema,
    )
    answer = compose(brief)
    speech = Speech(
        model=call.target.sent,
        answer=answer,
        prompt=prompt,
        prompt_tokens=len(prompt),
        version=node.version,
        ids=node.ids,
        wall_ns=node.wall_ns,
        request=ask.request,
        include_usage=call.intent.asks_usage,
        top_logprobs=ask.top_logprobs,
        is_raw=ask.is_raw,
        estimated_tokens=ask.estimated_tokens,
    )
    said = token_items("<assistant>") + token_items(answer.text(Kind.CONTENT))
    every_token = call.intent.streams or Fault.RUNNER_DIED in call.faults
    output_tokens = len(answer.pieces)
    return speech, replace(work, prompt=prompt, answer=said, output_tokens=output_tokens, every_token=every_token)


async def _load(call: Call) -> None:
    """A call without a prompt: one object, also where streams are the default (recordings native/load)."""
    read_ask(call.endpoint, call.target, call.members)
    want = await call.load()
    node, nothing = call.node, compose(Brief(0, "", (), 0))
    speech = Speech(call.target.sent, nothing, (), 0, node.version, node.ids, node.wall_ns, call.members)
    shape = _NATIVE[call.endpoint.shape](speech)
    call.send(JSON_UTF8, shape.loaded("unload" if want is Want.UNLOAD else "load"))
