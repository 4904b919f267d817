"""What a call wants, read from its body by Go's rules and without touching a byte of it.

What the router believes it routes is what the node will run; what Ollama would refuse while reading is refused here, in
Ollama's order (body, JSON, types, required fields, name) and words. What depends on the model is left to the node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from router.errors import BadRequest, UnknownModel
from router.wire import multipart, zstd
from router.wire.endpoints import Dialect, Endpoint, Shape
from router.wire.gojson import go_quote, syntax_error, text_of
from router.wire.gojson_scanner import space_end
from router.wire.intent_affinity import AFFINITY_BYTES, affinity_of
from router.wire.intent_fields import Fields, num_ctx_of, read_fields, value_type_error
from router.wire.intent_members import MalformedError, Member, Skip, lenient, members_of, strict
from router.wire.names import GO_SPACE, ModelName, parse_name
from router.wire.splice import Splice

# Larger bodies are not validated inside, and belong into a worker thread. Of one mebibyte of `[0],` CPython's scanner
# makes 75 ms; of this much, less than 10.
SLICE_BYTES = 128 * 1024
_ASK_USAGE = b'{"include_usage":true}'


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open byte range of Intent.body."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Intent:
    """All spans refer to `body`; spans of one field are sorted, and those of different fields do not overlap."""

    model: str  # as the client sent it, decoded: answers echo it
    name: ModelName
    model_spans: tuple[Span, ...]  # what an alias replaces: string literals with their quotes; a form's raw value
    streams: bool  # what the client will get
    asks_usage: bool
    usage_splice: Splice | None  # makes the node report usage where the client did not ask for it
    num_ctx: int | None
    num_ctx_spans: tuple[Span, ...]  # cut all of them and the option is gone, commas included
    num_ctx_values: tuple[Span, ...]  # replace all of them and it has another value
    reload_names: tuple[str, ...]  # other options that would reload the copy, as the client wrote them
    reload_values: tuple[Span, ...]  # null instead of all of them, and they say nothing
    members_end: int  # where a member can be added to the body's object; 0 where there is none
    keep_alive_s: float | None  # inf is for ever
    keep_alive_spans: tuple[Span, ...]
    keep_alive_values: tuple[Span, ...]
    is_load_only: bool  # only loads the model or, with keep_alive 0, unloads it
    affinity: bytes  # sixteen bytes, derived from prompts: never outside the process without a secret
    body: bytes  # the client's bytes, decoded if they came as zstd
    was_encoded: bool  # a spliced body then goes on without Content-Encoding


def read_intent(endpoint: Endpoint, body: bytes, *, content_type: str, content_encoding: str) -> Intent:
    """Refuses with BadRequest, OptionTypeError, UnknownModel (a missing name, where Ollama says 404) or TooLarge.

    No call into C holds the interpreter for more than a few milliseconds, so a body above SLICE_BYTES may be read in a
    worker thread while the event loop runs. Encodings other than zstd are taken as they are, as Ollama takes them.
    """
    if endpoint.is_multipart:
        return _read_form(endpoint, body, content_type)
    was_encoded = endpoint.takes_zstd and content_encoding.strip().lower() == "zstd"
    if was_encoded:
        body = zstd.decode(body)
    return _read_json(endpoint, body, was_encoded)


def unknown_model(endpoint: Endpoint, sent_name: str) -> UnknownModel:
    """Recordings `refused/unknown-*`: the name as the client sent it."""
    if endpoint.pull_hint:
        return UnknownModel(f"model {go_quote(sent_name)} not found, try pulling it first")
    return UnknownModel(f"model '{sent_name}' not found")


def _read_json(endpoint: Endpoint, body: bytes, was_encoded: bool) -> Intent:
    fields = _fields_of(endpoint, body)
    _check_required(endpoint, fields)
    name = _name_of(endpoint, fields.model)
    num_ctx = num_ctx_of(fields)
    streams = fields.stream if fields.stream is not None else endpoint.streams_by_default
    needs_usage = streams and endpoint.counts_need_asking and not fields.include_usage
    return Intent(
        model=fields.model,
        name=name,
        model_spans=_spans(fields.model_spans),
        streams=streams,
        asks_usage=fields.include_usage,
        usage_splice=_usage_splice(fields) if needs_usage else None,
        num_ctx=num_ctx,
        num_ctx_spans=_spans(fields.num_ctx_cuts),
        num_ctx_values=_values(fields.num_ctx_members),
        reload_names=tuple(dict.fromkeys(member.key for member in fields.reload_members)),
        reload_values=_values(fields.reload_members),
        members_end=fields.last.end if fields.last is not None else 0,
        keep_alive_s=fields.keep_alive_s,
        keep_alive_spans=_spans(fields.keep_alive_cuts),
        keep_alive_values=_values(fields.keep_alive_members),
        is_load_only=_is_load_only(endpoint, fields),
        affinity=affinity_of(fields, name.key),
        body=body,
        was_encoded=was_encoded,
    )


def _spans(pairs: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    return tuple([Span(start, end) for start, end in pairs]) if pairs else ()


def _values(members: Sequence[Member]) -> tuple[Span, ...]:
    return tuple([Span(member.value, member.end) for member in members]) if members else ()


def _fields_of(endpoint: Endpoint, body: bytes) -> Fields:
    if len(body) <= SLICE_BYTES:
        try:
            return _read_value(endpoint, body, strict)
        except MalformedError:
            text = syntax_error(body)
            if text is not None:
                raise _malformed(endpoint, text) from None
            # Well-formed, but nested deeper than CPython's scanner goes.
    try:
        return _read_value(endpoint, body, lenient)
    except MalformedError:
        raise _malformed(endpoint, syntax_error(body) or "unexpected EOF") from None


def _read_value(endpoint: Endpoint, body: bytes, skip_of: Callable[[bytes], Skip]) -> Fields:
    start = space_end(body, 0)
    skip = skip_of(body)
    first = body[start : start + 1]
    if first == b"{":
        return read_fields(endpoint, body, members_of(body, start, skip)[0], skip)
    text = syntax_error(body)
    if text is not None:
        raise _malformed(endpoint, text)
    if first == b"n":  # null leaves the request as it was, empty: recording quirks/body-is-null
        return Fields(endpoint, body, skip)
    raise BadRequest(value_type_error(endpoint, first), while_reading=_is_compat(endpoint))


def _malformed(endpoint: Endpoint, text: str) -> BadRequest:
    if text == "EOF" and not _is_compat(endpoint):
        text = "missing request body"
    return BadRequest(text, while_reading=_is_compat(endpoint))


def _is_compat(endpoint: Endpoint) -> bool:
    return endpoint.dialect is not Dialect.OLLAMA


def _check_required(endpoint: Endpoint, fields: Fields) -> None:
    """What the compat middleware asks for before a handler looks at the model (middleware/openai.go, anthropic.go)."""
    missing = ""
    if endpoint.shape is Shape.OPENAI_CHAT and not fields.is_filled("messages"):
        missing = "[] is too short - 'messages'"
    elif endpoint.shape is Shape.OPENAI_EMBEDDING and fields.is_empty("input"):
        missing = "invalid input"
    elif endpoint.shape is Shape.MESSAGES:
        missing = _missing_of_messages(fields)
    elif endpoint.go_type == "ImageGenerationRequest":
        missing = "" if fields.is_filled("prompt") else "prompt is required"
        missing = missing or ("" if fields.model else "model is required")
    if missing:
        raise BadRequest(missing, while_reading=True)


def _missing_of_messages(fields: Fields) -> str:
    if not fields.model:
        return "model is required"
    if fields.max_tokens <= 0:
        return "max_tokens is required and must be positive"
    return "" if fields.is_filled("messages") else "messages is required"


def _name_of(endpoint: Endpoint, model: str) -> ModelName:
    if model.strip(GO_SPACE):
        return parse_name(model)
    if endpoint.model_required:
        raise BadRequest("model is required")
    raise UnknownModel(f"model '{model}' not found")


def _is_load_only(endpoint: Endpoint, fields: Fields) -> bool:
    return bool(endpoint.prompt_keys) and not any(fields.is_filled(key) for key in endpoint.prompt_keys)


def _usage_splice(fields: Fields) -> Splice:
    """The last member decides: an object merges into earlier ones, and null would undo them."""
    if fields.stream_options is not None:
        return Splice(fields.stream_options.value, fields.stream_options.end, _ASK_USAGE)
    assert fields.last is not None, "a body without members has no model"
    return Splice(fields.last.end, fields.last.end, b',"stream_options":' + _ASK_USAGE)


def _read_form(endpoint: Endpoint, body: bytes, content_type: str) -> Intent:
    span = multipart.field_span(body, multipart.boundary_of(content_type), "model")
    start, end = span or (0, 0)
    model = text_of(body[start:end])
    if not model:
        raise BadRequest("model is required", while_reading=True)
    name = _name_of(endpoint, model)
    return Intent(
        model=model,
        name=name,
        model_spans=(Span(start, end),),
        streams=False,
        asks_usage=False,
        usage_splice=None,
        num_ctx=None,
        num_ctx_spans=(),
        num_ctx_values=(),
        reload_names=(),
        reload_values=(),
        members_end=0,
        keep_alive_s=None,
        keep_alive_spans=(),
        keep_alive_values=(),
        is_load_only=False,
        affinity=blake2b(name.key.encode(), digest_size=AFFINITY_BYTES).digest(),
        body=body,
        was_encoded=False,
    )
