"""/api/generate, /api/chat, /api/embed and /api/embeddings (recordings native/, runner-died/api-*). Pure."""

from __future__ import annotations

from router.simulation.answers import DIED_TEXT, JSON_UTF8, NDJSON, Speech, seconds_ns
from router.simulation.facts import Timing
from router.simulation.text import Kind, Piece, ToolCall, token_items
from router.wire.gojson import go_json

VOCABULARY = 262_144  # of gemma3; the ids in `context` stay below it


def _tool_calls(tool: ToolCall) -> list[dict[str, object]]:
    return [{"id": tool.call_id, "function": {"index": 0, "name": tool.name, "arguments": dict(tool.arguments)}}]


def _metrics(speech: Speech, timing: Timing) -> dict[str, object]:
    """Durations in ns. The runner reports whole microseconds; a count or duration of 0 is left out (Go's omitempty)."""
    counts = {
        "total_duration": seconds_ns(timing.total_s) + 1,
        "load_duration": seconds_ns(timing.load_s) + 1,
        "prompt_eval_count": speech.prompt_tokens,
        "prompt_eval_duration": max(1, round(timing.prefill_s * 1e6)) * 1000,
        "eval_count": speech.output_tokens,
        "eval_duration": max(1, round(timing.decode_s * 1e6)) * 1000,
    }
    return {key: value for key, value in counts.items() if value}


class _Native:
    stream_type = NDJSON
    plain_type = JSON_UTF8
    stream_headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, speech: Speech) -> None:
        self._speech = speech

    def token(self, piece: Piece) -> list[bytes]:
        if piece.kind is Kind.SILENT or not piece.text:
            return []
        record = self._head() | self._said(piece) | {"done": False}
        if self._speech.top_logprobs is not None:
            record["logprobs"] = self._speech.logprobs(piece)
        return [go_json(record) + b"\n"]

    def end(self, timing: Timing) -> list[bytes]:
        speech = self._speech
        lines = []
        if speech.answer.tool is not None:
            lines.append(self._head() | self._called(speech.answer.tool) | {"done": False})
        lines.append(self._head() | self._said(Piece(Kind.CONTENT, "")) | self._tail(timing))
        return [go_json(line) + b"\n" for line in lines]

    def died(self) -> list[bytes]:
        return [go_json({"error": DIED_TEXT}) + b"\n"]

    def plain(self, timing: Timing) -> bytes:
        speech = self._speech
        record = self._head() | self._whole() | self._tail(timing)
        if speech.top_logprobs is not None:
            record["logprobs"] = speech.logprobs(*speech.answer.pieces)
        return go_json(record)

    def loaded(self, reason: str) -> bytes:
        """The answer of a call without a prompt: `load` or `unload`, one object without metrics or a newline."""
        said = self._said(Piece(Kind.CONTENT, ""))
        return go_json(self._head() | said | {"done": True, "done_reason": reason})

    def _head(self) -> dict[str, object]:
        return {"model": self._speech.model, "created_at": self._speech.created_at()}

    def _tail(self, timing: Timing) -> dict[str, object]:
        done: dict[str, object] = {"done": True, "done_reason": self._speech.answer.reason}
        return done | self._context() | _metrics(self._speech, timing)

    def _context(self) -> dict[str, object]:
        return {}

    def _said(self, piece: Piece) -> dict[str, object]:
        raise NotImplementedError

    def _called(self, tool: ToolCall) -> dict[str, object]:
        raise NotImplementedError

    def _whole(self) -> dict[str, object]:
        raise NotImplementedError


class GenerateShape(_Native):
    def _said(self, piece: Piece) -> dict[str, object]:
        if piece.kind is Kind.THINKING:
            return {"response": "", "thinking": piece.text}
        return {"response": piece.text}

    def _called(self, tool: ToolCall) -> dict[str, object]:
        return {"response": "", "tool_calls": _tool_calls(tool)}

    def _whole(self) -> dict[str, object]:
        answer = self._speech.answer
        whole: dict[str, object] = {"response": answer.text(Kind.CONTENT)}
        if thinking := answer.text(Kind.THINKING):
            whole["thinking"] = thinking
        return whole

    def _context(self) -> dict[str, object]:
        if self._speech.is_raw:
            return {}
        said = token_items(self._speech.answer.text(Kind.CONTENT))
        return {"context": [item % VOCABULARY for item in (*self._speech.prompt, *said)]}


class ChatShape(_Native):
    def _said(self, piece: Piece) -> dict[str, object]:
        message: dict[str, object] = {"role": "assistant", "content": piece.text}
        if piece.kind is Kind.THINKING:
            message |= {"content": "", "thinking": piece.text}
        return {"message": message}

    def _called(self, tool: ToolCall) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": "", "tool_calls": _tool_calls(tool)}}

    def _whole(self) -> dict[str, object]:
        answer = self._speech.answer
        message: dict[str, object] = {"role": "assistant", "content": answer.text(Kind.CONTENT)}
        if thinking := answer.text(Kind.THINKING):
            message["thinking"] = thinking
        if answer.tool is not None:
            message["tool_calls"] = _tool_calls(answer.tool)
        return {"message": message}


def embed_answer(model: str, vectors: list[list[float]], timing: Timing | None, prompt_tokens: int) -> bytes:
    """`timing` None: nothing was embedded, and neither durations nor counts are told (recording native/embed-load)."""
    record: dict[str, object] = {"model": model, "embeddings": vectors}
    if timing is not None:
        record["total_duration"] = seconds_ns(timing.total_s) + 1
        record["load_duration"] = seconds_ns(timing.load_s) + 1
        record["prompt_eval_count"] = prompt_tokens
    return go_json(record)
