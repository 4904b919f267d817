"""/v1/messages (recordings anthropic/). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from router.simulation.answers import JSON, SSE, Speech, named_event
from router.simulation.facts import Timing
from router.simulation.text import Kind, Piece
from router.wire.gojson import go_json

_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessagesShape:
    stream_type = SSE
    plain_type = JSON
    stream_headers = (("Cache-Control", "no-cache"), ("Connection", "keep-alive"))

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._id = f"msg_{speech.ids.getrandbits(96):024x}"
        self._index = 0
        self._open: Kind | None = None
        self._has_begun = False

    def token(self, piece: Piece) -> list[bytes]:
        if piece.kind is Kind.SILENT or not piece.text:
            return []
        key = "thinking" if piece.kind is Kind.THINKING else "text"
        events = self._begin()
        if self._open is not piece.kind:
            events += [*self._close(), self._start({"type": key, key: ""})]
            self._open = piece.kind
        return [*events, self._delta({"type": f"{key}_delta", key: piece.text})]

    def end(self, timing: Timing) -> list[bytes]:
        events = self._begin() + self._close()
        tool = self._speech.answer.tool
        if tool is not None:
            arguments = go_json(dict(tool.arguments)).decode()
            events.append(self._start({"type": "tool_use", "id": tool.call_id, "name": tool.name, "input": {}}))
            events.append(self._delta({"type": "input_json_delta", "partial_json": arguments}))
            self._open = Kind.SILENT
            events += self._close()
        delta = {"type": "message_delta", "delta": {"stop_reason": self._stop_reason}, "usage": self._usage}
        return [*events, named_event("message_delta", delta), named_event("message_stop", {"type": "message_stop"})]

    def died(self) -> list[bytes]:
        return []

    def plain(self, timing: Timing) -> bytes:
        content: list[Mapping[str, object]] = []
        answer = self._speech.answer
        if thinking := answer.text(Kind.THINKING):
            content.append({"type": "thinking", "thinking": thinking})
        if text := answer.text(Kind.CONTENT):
            content.append({"type": "text", "text": text})
        if tool := answer.tool:
            content.append({"type": "tool_use", "id": tool.call_id, "name": tool.name, "input": dict(tool.arguments)})
        record = self._message() | {"content": content, "stop_reason": self._stop_reason, "usage": self._usage}
        return go_json(record) + b"\n"

    @property
    def _stop_reason(self) -> str:
        return _STOP_REASONS[self._speech.finish_reason]

    @property
    def _usage(self) -> dict[str, object]:
        return {"input_tokens": self._speech.prompt_tokens, "output_tokens": self._speech.output_tokens}

    def _message(self) -> dict[str, object]:
        return {"id": self._id, "type": "message", "role": "assistant", "model": self._speech.model}

    def _begin(self) -> list[bytes]:
        if self._has_begun:
            return []
        self._has_begun = True
        # input_tokens is an estimate here, characters / 4; message_delta has the true number.
        usage = {"input_tokens": self._speech.estimated_tokens, "output_tokens": 0}
        message = self._message() | {"content": [], "usage": usage}
        return [named_event("message_start", {"type": "message_start", "message": message})]

    def _start(self, block: Mapping[str, object]) -> bytes:
        start = {"type": "content_block_start", "index": self._index, "content_block": block}
        return named_event("content_block_start", start)

    def _delta(self, delta: Mapping[str, object]) -> bytes:
        return named_event("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> list[bytes]:
        if self._open is None:
            return []
        stop = named_event("content_block_stop", {"type": "content_block_stop", "index": self._index})
        self._open = None
        self._index += 1
        return [stop]
