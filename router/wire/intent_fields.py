"""What the members of a request mean to Go: types, null, repetition and merging, in the document's order.

Only the fields that the router reads. What else is wrong in a body, the node says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from router.errors import BadRequest, OptionTypeError
from router.wire.endpoints import Dialect, Endpoint, Shape
from router.wire.gojson import fold, unquote
from router.wire.intent_duration import DurationError, keep_alive_s
from router.wire.intent_members import Member, Skip, cuts_of, members_of

_KINDS = {b'"': "string", b"{": "object", b"[": "array", b"t": "bool", b"f": "bool", b"n": "null"}
_EMPTY_ARRAY = re.compile(rb"\[[ \t\r\n]*+\]")
_INTEGER = re.compile(rb"-?[0-9]{1,19}+")
_INT_MAX = 2**63 - 1

# Types as the decoder's texts name them: openai/openai.go, api/types.go, anthropic/anthropic.go.
_MESSAGES_TYPES = {
    Shape.OPENAI_CHAT: "[]openai.Message",
    Shape.CHAT: "[]api.Message",
    Shape.MESSAGES: "[]anthropic.MessageParam",
}
_PROMPT_GO_TYPES = ("GenerateRequest", "CompletionRequest", "EmbeddingRequest", "ImageGenerationRequest")
_OPTIONS_TYPE = "map[string]interface {}"
_STREAM_OPTIONS_TYPE = "openai.StreamOptions"
# Members of `options` whose change makes Ollama load the copy anew (server/sched.go, needsReload); num_ctx apart.
RELOADING = frozenset({"num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"})
# `stream` is a *bool here, so null means absent, and a bool elsewhere, so null means nothing (recordings
# quirks/native-stream-null, quirks/stream-null).
_STREAM_POINTERS = (Shape.CHAT, Shape.GENERATE, Shape.RESPONSES)


@dataclass(slots=True)
class Fields:
    """What the decoder would hold when it is through; filled by `read_fields`, then only read."""

    endpoint: Endpoint
    body: bytes
    skip: Skip
    type_error: str | None = None  # the first in the document, told only when all was read
    model: str = ""
    model_spans: list[tuple[int, int]] = field(default_factory=list)
    stream: bool | None = None
    include_usage: bool = False
    stream_options: Member | None = None  # the last one, even if null
    num_ctx: Member | None = None
    num_ctx_members: list[Member] = field(default_factory=list)
    num_ctx_cuts: list[tuple[int, int]] = field(default_factory=list)
    reload_members: list[Member] = field(default_factory=list)  # other options that would reload the copy
    keep_alive_s: float | None = None
    keep_alive_members: list[Member] = field(default_factory=list)
    keep_alive_cuts: list[tuple[int, int]] = field(default_factory=list)
    max_tokens: int = 0
    kept: dict[str, Member] = field(default_factory=dict)  # other members by folded key, the last that is not null
    last: Member | None = None  # the object's last member: an insertion comes after it

    def is_filled(self, key: str) -> bool:
        """Something other than absent, null, "" or []."""
        if self.is_empty(key):
            return False
        member = self.kept[key]
        # Looked at where it stands: a copy of a picture's twenty megabytes holds every thread for ten milliseconds.
        return member.end - member.value > 2 or not self.body.startswith(b'""', member.value)

    def is_empty(self, key: str) -> bool:
        """Absent, null or []."""
        member = self.kept.get(key)
        return member is None or _EMPTY_ARRAY.match(self.body, member.value) is not None


def read_fields(endpoint: Endpoint, body: bytes, members: Sequence[Member], skip: Skip) -> Fields:
    """Refuses with the decoder's text of the first wrong type; a wrong `keep_alive` stops the decoder at once."""
    fields = Fields(endpoint, body, skip, last=members[-1] if members else None)
    for member in members:
        key = fold(member.key)
        reader = _READERS.get(key)
        if reader is not None:
            reader(fields, key, member)
    if fields.type_error is not None:
        raise BadRequest(fields.type_error, while_reading=endpoint.dialect is not Dialect.OLLAMA)
    if fields.keep_alive_members:
        fields.keep_alive_cuts = cuts_of(members, lambda key: fold(key) == "keep_alive")
    return fields


def num_ctx_of(fields: Fields) -> int | None:
    """Any number will do, its fraction is dropped (api/types.go, FromMap); another type is Ollama's 500."""
    if fields.num_ctx is None:
        return None
    raw = fields.body[fields.num_ctx.value : fields.num_ctx.end]
    if _kind(raw) != "number":
        raise OptionTypeError('option "num_ctx" must be of type integer')
    number = float(raw)
    return int(max(-float(_INT_MAX), min(number, float(_INT_MAX))))


def value_type_error(endpoint: Endpoint, first: bytes) -> str:
    """For a body that is no object, which begins with `first`."""
    go_type = f"{endpoint.go_package}.{endpoint.go_type}"
    return f"json: cannot unmarshal {_kind(first)} into Go value of type {go_type}"


def _kind(raw: bytes) -> str:
    return _KINDS.get(raw[:1], "number")


def _first(fields: Fields, member: Member) -> bytes:
    return fields.body[member.value : member.value + 1]


def _is_null(fields: Fields, member: Member) -> bool:
    return _first(fields, member) == b"n"


def _note(fields: Fields, path: str, value: str, go_type: str, struct: str = "") -> None:
    """decode.go, saveError: only the first counts."""
    if fields.type_error is None:
        where = f"{struct or fields.endpoint.go_type}.{path}"
        fields.type_error = f"json: cannot unmarshal {value} into Go struct field {where} of type {go_type}"


def _has_kind(fields: Fields, key: str, member: Member, kind: str, go_type: str) -> bool:
    """False for null as well, which is no error."""
    found = _kind(_first(fields, member))
    if found not in (kind, "null"):
        _note(fields, key, found, go_type)
    return found == kind


def _read_model(fields: Fields, key: str, member: Member) -> None:
    if _has_kind(fields, key, member, "string", "string"):
        fields.model = unquote(fields.body[member.value : member.end])
        fields.model_spans.append((member.value, member.end))


def _read_stream(fields: Fields, key: str, member: Member) -> None:
    if not fields.endpoint.may_stream:
        return
    if _has_kind(fields, key, member, "bool", "bool"):
        fields.stream = _first(fields, member) == b"t"
    elif fields.endpoint.shape in _STREAM_POINTERS:
        fields.stream = None


def _read_stream_options(fields: Fields, key: str, member: Member) -> None:
    if not fields.endpoint.counts_need_asking:
        return
    fields.stream_options = member
    if _is_null(fields, member):
        fields.include_usage = False
    if not _has_kind(fields, key, member, "object", _STREAM_OPTIONS_TYPE):
        return
    for inner in members_of(fields.body, member.value, fields.skip)[0]:
        if fold(inner.key) != "include_usage" or _is_null(fields, inner):
            continue
        kind = _kind(_first(fields, inner))
        if kind == "bool":
            fields.include_usage = _first(fields, inner) == b"t"
        else:
            _note(fields, "stream_options.include_usage", kind, "bool", struct="StreamOptions")


def _read_options(fields: Fields, key: str, member: Member) -> None:
    if not fields.endpoint.takes_options:
        return
    if not _has_kind(fields, key, member, "object", _OPTIONS_TYPE):
        fields.num_ctx = None  # null clears the map, another kind is refused in the end
        return
    members = members_of(fields.body, member.value, fields.skip)[0]
    fields.reload_members += [inner for inner in members if inner.key in RELOADING and _changes(fields, inner)]
    found = [inner for inner in members if inner.key == "num_ctx"]  # a map's keys do not fold
    if not found:
        return
    for inner in found:
        raw = fields.body[inner.value : inner.end]
        if _kind(raw) == "number" and math.isinf(float(raw)):
            _note(fields, key, f"number {raw.decode()}", "float64")
    fields.num_ctx = None if _is_null(fields, found[-1]) else found[-1]
    fields.num_ctx_members += found
    fields.num_ctx_cuts += cuts_of(members, lambda name: name == "num_ctx")


def _changes(fields: Fields, member: Member) -> bool:
    """Null says nothing (api/types.go, FromMap), and -1 GPU layers are any number of them."""
    value = fields.body[member.value : member.end]
    return value != b"null" and (member.key, value) != ("num_gpu", b"-1")


def _read_shift(fields: Fields, key: str, member: Member) -> None:
    """True is the default (server/routes.go): only its contrary needs another runner."""
    if fields.endpoint.shape in (Shape.CHAT, Shape.GENERATE) and _first(fields, member) == b"f":
        fields.reload_members.append(member)


def _read_keep_alive(fields: Fields, key: str, member: Member) -> None:
    if not fields.endpoint.takes_options:
        return
    fields.keep_alive_members.append(member)
    if _is_null(fields, member):
        fields.keep_alive_s = None
        return
    try:
        fields.keep_alive_s = keep_alive_s(fields.body[member.value : member.end])
    except DurationError as error:
        where = f"Go struct field {fields.endpoint.go_type}.{key}"
        raise BadRequest(str(error).replace("Go value", where)) from None


def _read_messages(fields: Fields, key: str, member: Member) -> None:
    go_type = _MESSAGES_TYPES.get(fields.endpoint.shape)
    if go_type is None or _has_kind(fields, key, member, "array", go_type):
        fields.kept[key] = member
    elif _is_null(fields, member):
        fields.kept.pop(key, None)


def _read_prompt(fields: Fields, key: str, member: Member) -> None:
    """A string: null leaves an earlier one standing."""
    is_typed = fields.endpoint.go_type in _PROMPT_GO_TYPES
    if is_typed and _has_kind(fields, key, member, "string", "string"):
        fields.kept[key] = member


def _read_input(fields: Fields, key: str, member: Member) -> None:
    """Any type: null empties it."""
    if _is_null(fields, member):
        fields.kept.pop(key, None)
    else:
        fields.kept[key] = member


def _read_max_tokens(fields: Fields, key: str, member: Member) -> None:
    if fields.endpoint.shape is not Shape.MESSAGES or not _has_kind(fields, key, member, "number", "int"):
        return
    raw = fields.body[member.value : member.end]
    number = int(raw) if _INTEGER.fullmatch(raw) else None
    if number is None or not -_INT_MAX - 1 <= number <= _INT_MAX:
        _note(fields, key, f"number {raw.decode()}", "int")
    else:
        fields.max_tokens = number


def _read_kept(fields: Fields, key: str, member: Member) -> None:
    """Read for affinity or presence only, so of no type that the router would insist on."""
    if not _is_null(fields, member):
        fields.kept[key] = member


_READERS: dict[str, Callable[[Fields, str, Member], None]] = {
    "model": _read_model,
    "stream": _read_stream,
    "stream_options": _read_stream_options,
    "options": _read_options,
    "shift": _read_shift,
    "keep_alive": _read_keep_alive,
    "messages": _read_messages,
    "prompt": _read_prompt,
    "input": _read_input,
    "max_tokens": _read_max_tokens,
    "suffix": _read_kept,
    "system": _read_kept,
    "instructions": _read_kept,
    "user": _read_kept,
    "prompt_cache_key": _read_kept,
}
