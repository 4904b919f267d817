"""/api/embed, /api/embeddings, /v1/embeddings and /v1/audio/transcriptions of a simulated node."""

from __future__ import annotations

from router.errors import BadRequest
from router.simulation.answers import JSON, JSON_UTF8
from router.simulation.answers_native import embed_answer
from router.simulation.answers_openai import openai_embeddings
from router.simulation.ask import NOT_MULTIMODAL, NodeRefusal, Target
from router.simulation.facts import Ended
from router.simulation.generation import Call
from router.simulation.members import Members, int_at, options_of, text_at, texts_at
from router.simulation.text import Brief, Kind, as_float32, compose, embedding, token_items
from router.wire.endpoints import Shape
from router.wire.gojson import go_json

TOO_LONG_TEXT = "the input length exceeds the context length"
OLD_NO_AUDIO_TEXT = (
    "Failed to create new sequence: failed to process inputs: this model is missing data required for image input"
)


async def embed(call: Call) -> None:
    is_native = call.endpoint.shape is Shape.EMBED
    options_of(call.members)
    texts = _inputs(call.members)
    sent, target = call.target.sent, call.target
    if not texts:
        await call.load()
        call.send(JSON_UTF8, embed_answer(sent, [], None, 0))
        return
    must_fit = is_native and call.members.get("truncate") is False
    prompt = tuple(item for text in texts for item in _items(text, target, must_fit=must_fit))
    ended = await _evaluate(call, prompt)
    vectors = [_vector(text, target, int_at(call.members, "dimensions")) for text in texts]
    if is_native:
        call.send(JSON_UTF8, embed_answer(sent, vectors, ended.timing, len(prompt)))
        return
    as_base64 = text_at(call.members, "encoding_format").lower() == "base64"
    call.send(JSON, openai_embeddings(sent, vectors, len(prompt), as_base64=as_base64))


async def embed_old(call: Call) -> None:
    text = text_at(call.members, "prompt")
    vector: list[float] = []
    if text:
        await _evaluate(call, _items(text, call.target, must_fit=False))
        vector = [as_float32(value) for value in _vector(text, call.target, None)]
    else:
        await call.load()
    call.send(JSON_UTF8, go_json({"embedding": vector}))


async def transcribe(call: Call) -> None:
    if not call.target.model.can("audio"):
        _refuse_audio(call)
        return
    prompt = token_items(f"transcribe {len(call.request.body)}")
    answer = compose(Brief(0, call.target.model.weights.blob, prompt))
    text = answer.text(Kind.CONTENT)
    await call.evaluate(prompt, len(answer.pieces))
    if b'name="response_format"\r\n\r\ntext\r\n' in call.request.body:
        call.send("text/plain; charset=utf-8", text.encode())
        return
    call.send(JSON, go_json({"text": text}) + b"\n")


def _refuse_audio(call: Call) -> None:
    is_new = call.node.version.has_llama_server
    text = NOT_MULTIMODAL if is_new else OLD_NO_AUDIO_TEXT
    kind = "invalid_request_error" if is_new else "api_error"
    error = {"error": {"message": text, "type": kind, "param": None, "code": None}}
    # Written piecemeal, so chunked (recordings refused/v1-transcriptions-bad and v0.24/v1-transcriptions-bad).
    call.reply.send(400 if is_new else 500, [("Content-Type", JSON)], go_json(error) + b"\n", is_flushed=True)


async def _evaluate(call: Call, prompt: tuple[int, ...]) -> Ended:
    ended = await call.evaluate(prompt)
    # Nobody checks before the load: the runner itself refuses (recordings refused/ and v0.24/embed-on-chat-model).
    if not call.target.model.is_embedding:
        is_new = call.node.version.has_llama_server
        text = "This server does not support embeddings. Start it with `--embeddings`"
        raise NodeRefusal(501, text if is_new else "this model does not support embeddings")
    return ended


def _inputs(members: Members) -> tuple[str, ...]:
    value, texts = members.get("input"), texts_at(members, "input")
    is_list = isinstance(value, list) and len(texts) == len(value)
    if value is not None and not isinstance(value, str) and not is_list:
        raise BadRequest("invalid input type")
    return texts


def _items(text: str, target: Target, *, must_fit: bool) -> tuple[int, ...]:
    """The frame of two tokens included: "hello" is three (recording native/embed)."""
    room = target.model.weights.train_ctx
    items = token_items(f"<cls> {text} <sep>")
    if must_fit and len(items) > room:
        raise BadRequest(TOO_LONG_TEXT)
    return items[:room]


def _vector(text: str, target: Target, dimensions: int | None) -> list[float]:
    full = target.model.dimensions
    length = min(dimensions, full) if dimensions and dimensions > 0 else full
    return embedding(text, target.model.weights.blob, length)
