"""What an inference call asks of the model, and what a node refuses by what the model can do. Pure.

`wire.intent` has read the body before: names, types and required fields are checked. Texts: recordings refused/.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from router.errors import BadRequest, Refusal
from router.simulation.catalog import DiskModel
from router.simulation.members import (
    Members,
    folded,
    int_at,
    list_at,
    options_of,
    text_at,
    texts_at,
)
from router.simulation.text import IMAGE_TOKENS, token_items
from router.wire.endpoints import Endpoint, Shape
from router.wire.names import DEFAULT_HOST, DEFAULT_NAMESPACE, ModelName

TOP_LOGPROBS_MAX = 20
_EFFORTS = ("minimal", "low", "medium", "high", "xhigh", "ultra", "max", "none")
_IMAGE_TYPES = (*(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp")), "data:;base64,")
NOT_MULTIMODAL = (
    '{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests.",'
    '"type":"invalid_request_error"}}'
)


class NodeRefusal(Refusal):
    """What only a node says, with whatever status it says it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation as asked for. `schema` {}: any JSON; `limit` None: no limit set."""

    request: Members
    prompt: tuple[int, ...] = ()
    limit: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    thinks: bool = False
    tool: Members | None = None
    schema: Members | None = None
    top_logprobs: int | None = None
    is_raw: bool = False
    estimated_tokens: int = 0
    echo: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a call names, and how it named it."""

    model: DiskModel
    name: ModelName
    sent: str

    @property
    def full_name(self) -> str:
        host, namespace = self.name.host or DEFAULT_HOST, self.name.namespace or DEFAULT_NAMESPACE
        return f"{host}/{namespace}/{self.name.model}:{self.name.tag}"


def read_ask(endpoint: Endpoint, target: Target, members: Members) -> Ask:
    return _READERS[endpoint.shape](target, members)


def check_early(endpoint: Endpoint, members: Members) -> None:
    """What Ollama's compat middleware refuses before it looks for the model: with a charset, without a newline."""
    if endpoint.shape is Shape.OPENAI_CHAT:
        for message in list_at(members, "messages"):
            _content(folded(message).get("content"))
    if endpoint.shape in (Shape.OPENAI_CHAT, Shape.RESPONSES):
        effort = _effort(members)
        if effort and effort not in _EFFORTS:
            allowed = ", ".join(f'"{value}"' for value in _EFFORTS[:-1])
            text = f'invalid reasoning value: "{effort}" (must be {allowed}, or "none")'
            raise BadRequest(text, while_reading=True)
    if endpoint.shape is Shape.OPENAI_EMBEDDING and members.get("input") in (None, []):
        raise BadRequest("invalid input", while_reading=True)


def _generate(target: Target, members: Members) -> Ask:
    if members.get("suffix") and not target.model.can("insert"):
        raise BadRequest(f"{target.full_name} does not support insert")
    _needs_completion(target, "generate")
    said = " ".join((text_at(members, "system"), text_at(members, "prompt"), text_at(members, "suffix")))
    items = token_items(said) + _images(target, list_at(members, "images"))
    is_raw = members.get("raw") is True
    prompt = items if is_raw else _marked("user", items)
    return replace(_native(target, members), prompt=prompt, is_raw=is_raw, echo=text_at(members, "prompt"))


def _chat(target: Target, members: Members) -> Ask:
    _needs_completion(target, "chat")
    messages = [folded(message) for message in list_at(members, "messages")]
    functions = [folded(tool).get("function") for tool in list_at(members, "tools")]
    tool = _tool(target, functions, has_result=_last(messages, "role") == "tool")
    prompt = _declared(functions)
    for message in messages:
        items = token_items(text_at(message, "content")) + _images(target, list_at(message, "images"))
        prompt += _marked(text_at(message, "role"), items)
    return replace(_native(target, members), prompt=prompt, tool=tool, echo=_echo(messages))


def _native(target: Target, members: Members) -> Ask:
    options, think, wanted = options_of(members), members.get("think"), members.get("format")
    if think not in (None, False) and not target.model.can("thinking"):
        raise BadRequest(f'"{target.sent}" does not support thinking')
    schema: Members | None = wanted if isinstance(wanted, dict) else None
    return Ask(
        request=members,
        limit=int_at(options, "num_predict"),
        seed=int_at(options, "seed") or 0,
        stop=texts_at(options, "stop"),
        thinks=think is not False and target.model.can("thinking"),
        schema={} if wanted == "json" else schema,
        top_logprobs=_top_logprobs(members),
    )


def _openai_chat(target: Target, members: Members) -> Ask:
    top = _top_logprobs(members)
    _needs_completion(target, "chat")
    messages = [folded(message) for message in list_at(members, "messages")]
    functions = [folded(tool).get("function") for tool in list_at(members, "tools")]
    tool = _tool(target, functions, has_result=_last(messages, "role") == "tool")
    prompt = _declared(functions)
    for message in messages:
        text, images = _content(message.get("content"))
        prompt += _marked(text_at(message, "role"), token_items(text) + _images(target, images))
    wanted = folded(members.get("response_format"))
    schema: Members | None = {} if wanted.get("type") == "json_object" else None
    if wanted.get("type") == "json_schema":
        found = folded(wanted.get("json_schema")).get("schema")
        schema = found if isinstance(found, dict) else {}
    return replace(
        _compat(target, members, "max_tokens"),
        prompt=prompt,
        tool=tool,
        schema=schema,
        thinks=_thinks(target, _effort(members)),
        top_logprobs=top,
        echo=_echo(messages),
    )


def _openai_completion(target: Target, members: Members) -> Ask:
    if members.get("suffix") and not target.model.can("insert"):
        raise BadRequest(f"{target.full_name} does not support insert")
    _needs_completion(target, "generate")
    prompt = _marked("user", token_items(f"{text_at(members, 'prompt')} {text_at(members, 'suffix')}"))
    return replace(_compat(target, members, "max_tokens"), prompt=prompt, echo=text_at(members, "prompt"))


def _responses(target: Target, members: Members) -> Ask:
    _needs_completion(target, "chat")
    given = members.get("input")
    items = [folded(item) for item in given] if isinstance(given, list) else []
    functions = [tool for tool in list_at(members, "tools") if folded(tool).get("type") == "function"]
    tool = _tool(target, functions, has_result=_last(items, "type") == "function_call_output")
    prompt = _declared(functions) + _marked("system", token_items(text_at(members, "instructions")))
    if isinstance(given, str):
        prompt += _marked("user", token_items(given))
    for item in items:
        text = text_at(item, "output") or text_at(item, "arguments") or _flat(item.get("content"))
        prompt += _marked(text_at(item, "role"), token_items(text))
    wanted = folded(folded(members.get("text")).get("format"))
    schema = wanted.get("schema") if wanted.get("type") == "json_schema" else None
    return replace(
        _compat(target, members, "max_output_tokens"),
        prompt=prompt,
        tool=tool,
        schema=schema if isinstance(schema, dict) else None,
        thinks=_thinks(target, _effort(members)),
        echo=given if isinstance(given, str) else _echo(items),
    )


def _messages(target: Target, members: Members) -> Ask:
    _needs_completion(target, "chat")
    messages = [folded(message) for message in list_at(members, "messages")]
    tools = [folded(tool) for tool in list_at(members, "tools")]
    functions: list[object] = [{"name": tool.get("name"), "parameters": tool.get("input_schema")} for tool in tools]
    last = folded(messages[-1]).get("content") if messages else None
    has_result = isinstance(last, list) and any(folded(part).get("type") == "tool_result" for part in last)
    system = _flat(members.get("system"))
    prompt = _declared(functions) + (_marked("system", token_items(system)) if system else ())
    characters = len(system)
    for message in messages:
        text = _flat(message.get("content"))
        characters += len(text) + len(text_at(message, "role"))
        prompt += _marked(text_at(message, "role"), token_items(text))
    is_off = folded(members.get("thinking")).get("type") == "disabled"
    return replace(
        _compat(target, members, "max_tokens"),
        prompt=prompt,
        tool=_tool(target, functions, has_result=has_result),
        stop=texts_at(members, "stop_sequences"),
        thinks=not is_off and target.model.can("thinking"),
        estimated_tokens=characters // 4,
        echo=_echo(messages),
    )


def _compat(target: Target, members: Members, limit_key: str) -> Ask:
    return Ask(
        request=members,
        limit=int_at(members, limit_key),
        seed=int_at(members, "seed") or 0,
        stop=texts_at(members, "stop"),
    )


def _needs_completion(target: Target, verb: str) -> None:
    if not target.model.can("completion"):
        raise BadRequest(f'"{target.sent}" does not support {verb}')


def _tool(target: Target, functions: list[object], *, has_result: bool) -> Members | None:
    """The function that the answer will call: the first one, unless its result is what the call brings."""
    if not functions:
        return None
    if not target.model.can("tools"):
        raise BadRequest(f"{target.full_name} does not support tools")
    return None if has_result else folded(functions[0])


def _effort(members: Members) -> str:
    return text_at(members, "reasoning_effort") or text_at(folded(members.get("reasoning")), "effort")


def _thinks(target: Target, effort: str) -> bool:
    if effort and effort != "none" and not target.model.can("thinking"):
        raise BadRequest(f'"{target.sent}" does not support thinking')
    return effort != "none" and target.model.can("thinking")


def _top_logprobs(members: Members) -> int | None:
    top = int_at(members, "top_logprobs") or 0
    if not 0 <= top <= TOP_LOGPROBS_MAX:
        raise BadRequest(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}")
    return top if members.get("logprobs") is True else None


def _content(content: object) -> tuple[str, list[object]]:
    """Text and images of an OpenAI message; each part becomes a message of its own in Ollama."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise BadRequest("invalid message content type", while_reading=True)
    texts, images = [], []
    for part in map(folded, content):
        kind = part.get("type")
        if kind == "text":
            texts.append(text_at(part, "text"))
        elif kind == "image_url":
            images.append(_image(part.get("image_url")))
        elif kind == "input_audio":
            images.append(text_at(folded(part.get("input_audio")), "data"))
        else:
            raise BadRequest("invalid message format", while_reading=True)
    return "\n\n".join(texts), images


def _image(value: object) -> object:
    url = value if isinstance(value, str) else text_at(folded(value), "url")
    if url.startswith(("http://", "https://")):
        text = "image URLs are not currently supported, please use base64 encoded data instead"
        raise BadRequest(text, while_reading=True)
    if not url.startswith(_IMAGE_TYPES):
        raise BadRequest("invalid image input", while_reading=True)
    return url


def _images(target: Target, images: list[object]) -> tuple[int, ...]:
    if images and not target.model.can("vision") and not target.model.can("audio"):
        raise BadRequest(NOT_MULTIMODAL)
    items: list[int] = []
    for image in images:
        start = zlib.crc32(image.encode("utf-8", "replace")) if isinstance(image, str) else 0
        items.extend(range(start, start + IMAGE_TOKENS))
    return tuple(items)


def _flat(content: object) -> str:
    """All text of an Anthropic or Responses content: a string, or parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [folded(part) for part in content]
    return " ".join(text_at(part, "text") or text_at(part, "thinking") or _flat(part.get("content")) for part in parts)


def _echo(messages: list[Members]) -> str:
    return next((_flat(row.get("content")) for row in reversed(messages) if row.get("role") == "user"), "")


def _last(rows: list[Members], key: str) -> str:
    return text_at(rows[-1], key) if rows else ""


def _marked(role: str, items: tuple[int, ...]) -> tuple[int, ...]:
    return (*token_items(f"<{role}>"), *items)


def _declared(functions: list[object]) -> tuple[int, ...]:
    return token_items(json.dumps(functions)) if functions else ()


_READERS: dict[Shape, Callable[[Target, Members], Ask]] = {
    Shape.GENERATE: _generate,
    Shape.CHAT: _chat,
    Shape.OPENAI_CHAT: _openai_chat,
    Shape.OPENAI_COMPLETION: _openai_completion,
    Shape.RESPONSES: _responses,
    Shape.MESSAGES: _messages,
}
