"""/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models (recordings openai/, v0.24/v1-*). Pure."""

from __future__ import annotations

import base64
import struct

from router.simulation.answers import JSON, SSE, Speech, sse
from router.simulation.facts import Timing
from router.simulation.text import Kind, Piece, ToolCall
from router.wire.gojson import go_json

DONE = b"data: [DONE]\n\n"
_ZERO_USAGE: dict[str, object] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _tool_calls(tool: ToolCall) -> list[dict[str, object]]:
    arguments = go_json(dict(tool.arguments)).decode()
    function = {"name": tool.name, "arguments": arguments}
    return [{"id": tool.call_id, "index": 0, "type": "function", "function": function}]


class OpenAIChatShape:
    stream_type = SSE
    plain_type = JSON
    stream_headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._id = f"chatcmpl-{speech.ids.randrange(999)}"
        self._created = speech.created()
        self._is_first = True

    def token(self, piece: Piece) -> list[bytes]:
        if piece.kind is Kind.SILENT or not piece.text:
            return []
        is_thinking = piece.kind is Kind.THINKING
        said: dict[str, object] = {"content": "" if is_thinking else piece.text}
        if is_thinking:
            said["reasoning"] = piece.text
        choice: dict[str, object] = {"index": 0, "delta": self._role() | said, "finish_reason": None}
        if self._speech.top_logprobs is not None:
            choice["logprobs"] = {"content": self._speech.logprobs(piece)}
        return [sse(self._chunk([choice]))]

    def end(self, timing: Timing) -> list[bytes]:
        """Finish, usage and terminator arrive in one HTTP chunk."""
        speech, chunks = self._speech, []
        if speech.answer.tool is not None:
            delta = self._role() | {"content": "", "tool_calls": _tool_calls(speech.answer.tool)}
            chunks.append(sse(self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])))
        last = {} if speech.version.has_finish_chunk else {"role": "assistant", "content": ""}
        finish = sse(self._chunk([{"index": 0, "delta": last, "finish_reason": speech.finish_reason}]))
        usage = sse(self._chunk([]) | {"usage": speech.usage}) if speech.include_usage else b""
        return [*chunks, finish + usage + DONE]

    def died(self) -> list[bytes]:
        delta = self._role() | {"content": ""}
        chunk = self._chunk([{"index": 0, "delta": delta, "finish_reason": None}])
        return [sse(chunk | {"model": ""})]

    def plain(self, timing: Timing) -> bytes:
        speech, answer = self._speech, self._speech.answer
        message: dict[str, object] = {"role": "assistant", "content": answer.text(Kind.CONTENT)}
        if thinking := answer.text(Kind.THINKING):
            message["reasoning"] = thinking
        if answer.tool is not None:
            message["tool_calls"] = _tool_calls(answer.tool)
        choice: dict[str, object] = {"index": 0, "message": message, "finish_reason": speech.finish_reason}
        if speech.top_logprobs is not None:
            choice["logprobs"] = {"content": speech.logprobs(*answer.pieces)}
        record = self._chunk([choice]) | {"object": "chat.completion", "usage": speech.usage}
        return go_json(record) + b"\n"

    def _role(self) -> dict[str, object]:
        if self._is_first or not self._speech.version.has_finish_chunk:
            self._is_first = False
            return {"role": "assistant"}
        return {}

    def _chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        is_new = self._speech.version.has_finish_chunk
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created if is_new else self._speech.created(),
            "model": self._speech.model,
            "system_fingerprint": "fp_ollama",
            "choices": choices,
        }


class OpenAICompletionShape:
    """With include_usage every event carries a usage of zeros, and only the last a true one."""

    stream_type = SSE
    plain_type = JSON
    stream_headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._id = f"cmpl-{speech.ids.randrange(999)}"

    def token(self, piece: Piece) -> list[bytes]:
        return [sse(self._chunk(self._choice(piece.text, None)))] if piece.kind is Kind.CONTENT and piece.text else []

    def end(self, timing: Timing) -> list[bytes]:
        last = sse(self._chunk(self._choice("", self._speech.answer.reason)))
        usage = b""
        if self._speech.include_usage:
            usage = sse(self._chunk([]) | {"usage": self._speech.usage})
        return [last + usage + DONE]

    def died(self) -> list[bytes]:
        return [sse(self._chunk(self._choice("", None)) | {"model": ""})]

    def plain(self, timing: Timing) -> bytes:
        record = {
            "id": self._id,
            "object": "text_completion",
            "created": self._speech.created(),
            "model": self._speech.model,
            "system_fingerprint": "fp_ollama",
            "choices": self._choice(self._speech.answer.text(Kind.CONTENT), self._speech.answer.reason),
            "usage": self._speech.usage,
        }
        return go_json(record) + b"\n"

    def _choice(self, text: str, reason: str | None) -> list[dict[str, object]]:
        return [{"text": text, "index": 0, "finish_reason": reason}]

    def _chunk(self, choices: list[dict[str, object]]) -> dict[str, object]:
        chunk: dict[str, object] = {
            "id": self._id,
            "object": "text_completion",
            "created": self._speech.created(),
            "choices": choices,
            "model": self._speech.model,
            "system_fingerprint": "fp_ollama",
        }
        return chunk | {"usage": _ZERO_USAGE} if self._speech.include_usage else chunk


def openai_embeddings(model: str, vectors: list[list[float]], prompt_tokens: int, *, as_base64: bool) -> bytes:
    data = [
        {"object": "embedding", "embedding": _base64(vector) if as_base64 else vector, "index": index}
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return go_json({"object": "list", "data": data, "model": model, "usage": usage}) + b"\n"


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def openai_model(model_id: str, modified_ns: int, owner: str) -> dict[str, object]:
    return {"id": model_id, "object": "model", "created": modified_ns // 1_000_000_000, "owned_by": owner}
