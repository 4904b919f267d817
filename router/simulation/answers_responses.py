"""/v1/responses (recordings openai/v1-responses*): struct order when plain, alphabetical keys in a stream. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from router.simulation.answers import JSON, SSE, Speech, named_event
from router.simulation.facts import Timing
from router.simulation.text import Kind, Piece
from router.wire.gojson import go_json

_Item = dict[str, object]
_PROGRESS = "in_progress"


def _alphabetical(value: object) -> object:
    """As Go writes maps; a schema is kept as the client wrote it (json.RawMessage)."""
    if isinstance(value, dict):
        return {key: value[key] if key == "schema" else _alphabetical(value[key]) for key in sorted(value)}
    return [_alphabetical(item) for item in value] if isinstance(value, list) else value


def _tools(request: Mapping[str, object]) -> list[object]:
    tools = request.get("tools")
    keys = ("type", "name", "description", "strict", "parameters")
    rows = [tool for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return [{key: _alphabetical(tool.get(key)) for key in keys} for tool in rows]


def _text(request: Mapping[str, object]) -> object:
    text = request.get("text")
    wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict) or wanted.get("type") != "json_schema":
        return {"format": {"type": "text"}}
    return {"format": {key: wanted[key] for key in ("type", "name", "schema", "strict") if key in wanted}}


def _part(text: str) -> _Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class ResponsesShape:
    stream_type = SSE
    plain_type = JSON
    stream_headers = (("Cache-Control", "no-cache"), ("Connection", "keep-alive"))

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._id = f"resp_{speech.ids.randrange(999_999)}"
        self._created = speech.created()
        self._sequence = 0
        self._output: list[_Item] = []
        self._open: Kind | None = None
        self._said = ""
        self._item_id = ""

    def token(self, piece: Piece) -> list[bytes]:
        if piece.kind is Kind.SILENT or not piece.text:
            return []
        events = self._begin()
        if self._open is not piece.kind:
            events += self._close() + self._open_item(piece.kind)
        self._said += piece.text
        if piece.kind is Kind.THINKING:
            delta = {"delta": piece.text, "item_id": self._item_id, "summary_index": 0}
            return [*events, self._indexed("response.reasoning_summary_text.delta", delta)]
        delta = {"content_index": 0, "delta": piece.text, "item_id": self._item_id, "logprobs": []}
        return [*events, self._indexed("response.output_text.delta", delta)]

    def end(self, timing: Timing) -> list[bytes]:
        events = self._begin() + self._close() + self._call()
        return [*events, self._event("response.completed", {"response": self._response("completed")})]

    def died(self) -> list[bytes]:
        return []

    def plain(self, timing: Timing) -> bytes:
        speech = self._speech
        for kind in (Kind.THINKING, Kind.CONTENT):
            if text := speech.answer.text(kind):
                self._open_item(kind)
                self._said = text
                self._close()
        self._call()
        return go_json(self._response("completed")) + b"\n"

    def _begin(self) -> list[bytes]:
        if self._sequence:
            return []
        progress = {"response": self._response(_PROGRESS)}
        return [self._event("response.created", progress), self._event("response.in_progress", progress)]

    def _open_item(self, kind: Kind) -> list[bytes]:
        self._open, self._said = kind, ""
        number = self._speech.ids.randrange(999_999)
        if kind is Kind.THINKING:
            self._item_id = f"rs_{number}"
            item: _Item = {"id": self._item_id, "summary": [], "type": "reasoning"}
            return [self._indexed("response.output_item.added", {"item": item})]
        self._item_id = f"msg_{number}"
        item = {"id": self._item_id, "type": "message", "status": _PROGRESS, "role": "assistant", "content": []}
        part = {"content_index": 0, "item_id": self._item_id, "part": _part("")}
        return [
            self._indexed("response.output_item.added", {"item": item}),
            self._indexed("response.content_part.added", part),
        ]

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        kind, self._open, text, item_id = self._open, None, self._said, self._item_id
        if kind is Kind.THINKING:
            summary = [{"type": "summary_text", "text": text}]
            item: _Item = {"id": item_id, "type": "reasoning", "summary": summary, "encrypted_content": text}
            done = {"item_id": item_id, "summary_index": 0, "text": text}
            events = [self._indexed("response.reasoning_summary_text.done", done)]
        else:
            item = {"id": item_id, "type": "message", "status": "completed", "role": "assistant"}
            item["content"] = [_part(text)]
            at = {"content_index": 0, "item_id": item_id}
            events = [
                self._indexed("response.output_text.done", at | {"logprobs": [], "text": text}),
                self._indexed("response.content_part.done", at | {"part": _part(text)}),
            ]
        return [*events, self._item_done(item)]

    def _call(self) -> list[bytes]:
        tool = self._speech.answer.tool
        if tool is None:
            return []
        item_id = f"fc_{self._speech.ids.randrange(999_999)}_{len(self._output)}"
        arguments = go_json(dict(tool.arguments)).decode()
        item: _Item = {"id": item_id, "type": "function_call", "status": "completed", "call_id": tool.call_id}
        item |= {"name": tool.name, "arguments": arguments}
        added = {"item": item | {"status": _PROGRESS, "arguments": ""}}
        return [
            self._indexed("response.output_item.added", added),
            self._indexed("response.function_call_arguments.delta", {"delta": arguments, "item_id": item_id}),
            self._indexed("response.function_call_arguments.done", {"arguments": arguments, "item_id": item_id}),
            self._item_done(item),
        ]

    def _item_done(self, item: _Item) -> bytes:
        event = self._indexed("response.output_item.done", {"item": item})
        self._output.append(item)
        return event

    def _indexed(self, name: str, members: Mapping[str, object]) -> bytes:
        return self._event(name, {**members, "output_index": len(self._output)})

    def _event(self, name: str, members: Mapping[str, object]) -> bytes:
        numbered = {**members, "sequence_number": self._sequence, "type": name}
        self._sequence += 1
        return named_event(name, _alphabetical(numbered))

    def _response(self, status: str) -> _Item:
        request, is_done = self._speech.request, status == "completed"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": self._speech.created() if is_done else None,
            "status": status,
            "incomplete_details": None,
            "model": self._speech.model,
            "previous_response_id": None,
            "instructions": request.get("instructions"),
            "output": list(self._output),
            "error": None,
            "tools": _tools(request),
            "tool_choice": "auto",
            "truncation": request.get("truncation") or "disabled",
            "parallel_tool_calls": True,
            "text": _text(request),
            "top_p": request.get("top_p", 1),
            "presence_penalty": 0,
            "frequency_penalty": 0,
            "top_logprobs": 0,
            "temperature": request.get("temperature", 1),
            "reasoning": request.get("reasoning"),
            "usage": self._usage() if is_done else None,
            "max_output_tokens": request.get("max_output_tokens"),
            "max_tool_calls": None,
            "store": False,
            "background": bool(request.get("background")),
            "service_tier": "default",
            "metadata": {},
            "safety_identifier": None,
            "prompt_cache_key": None,
        }

    def _usage(self) -> _Item:
        prompt, output = self._speech.prompt_tokens, self._speech.output_tokens
        return {
            "input_tokens": prompt,
            "output_tokens": output,
            "total_tokens": prompt + output,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 0},
        }
