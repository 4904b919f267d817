"""`/api/show`: what is asked, by Go's rules, and what of one name's answer is another's when both share a manifest.

Names of one manifest (after `ollama cp`, or behind an alias) have one answer but for the name in the Modelfile's
comment and the time when the name was made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.errors import BadRequest, TooLarge
from router.wire.gojson import fold, go_string, syntax_error, unquote
from router.wire.gojson_scanner import space_end
from router.wire.intent_members import MalformedError, Member, Skip, lenient, members_of, strict
from router.wire.names import GO_SPACE

# It is read on the event loop, and a malformed one at the pace of Python; a long system prompt is a tenth of this.
SHOW_BODY_BYTES_MAX = 64 * 1024

_KINDS = {b'"': "string", b"{": "object", b"[": "array", b"t": "bool", b"f": "bool", b"n": "null"}
# api/types.go, ShowRequest: kind of JSON and type of Go.
_FIELDS = {
    "model": ("string", "string"),
    "name": ("string", "string"),
    "system": ("string", "string"),
    "template": ("string", "string"),
    "verbose": ("bool", "bool"),
    "options": ("object", "map[string]interface {}"),
}
_CHANGING = ("verbose", "system", "options")
_MODIFIED = b'"modified_at":"'


@dataclass(frozen=True, slots=True)
class ShowWish:
    """`more`: what makes the answer another than the model's own, to be asked along with it."""

    model: str
    more: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class ShowBody:
    """A node's whole answer; `name` is what it was asked for."""

    name: str
    body: bytes


def read_show(body: bytes) -> ShowWish:
    """Refuses with BadRequest and the texts of recording refused/show-no-model and of Go's decoder, or TooLarge."""
    if len(body) > SHOW_BODY_BYTES_MAX:
        raise TooLarge(f"request body of {len(body)} bytes is larger than the {SHOW_BODY_BYTES_MAX} of /api/show")
    values = _values(body)
    model = values.get("model") or values.get("name")
    if not isinstance(model, str) or not model.strip(GO_SPACE):
        raise BadRequest("model is required")
    return ShowWish(model, {key: values[key] for key in _CHANGING if values.get(key)})


def renamed(shown: ShowBody, name: str, modified_at: str) -> bytes:
    """The answer that the node would give for `name`, which has the same manifest."""
    body = shown.body
    if name != shown.name:
        # server/routes.go, GetModelInfo: the comment stands before everything that a Modelfile may quote.
        body = body.replace(_comment(shown.name), _comment(name), 1)
    start = body.rfind(_MODIFIED) + len(_MODIFIED)  # the last: model_info comes before it
    end = body.find(b'"', start)
    written = go_string(modified_at)[1:-1]
    if start < len(_MODIFIED) or end < 0 or not written or body[start:end] == written:
        return body
    return body[:start] + written + body[end:]


def _comment(name: str) -> bytes:
    return b"\\n# FROM " + go_string(name)[1:-1] + b"\\n"


def _values(body: bytes) -> dict[str, object]:
    """By folded key, the last that is not null; the first wrong type is told when all was read, as Go does."""
    members = _members(body)
    values: dict[str, object] = {}
    type_error = ""
    for member in members:
        key = fold(member.key)
        raw = body[member.value : member.end]
        kind = _KINDS.get(raw[:1], "number")
        if key not in _FIELDS or kind == "null":
            continue
        expected, go_type = _FIELDS[key]
        if kind == expected:
            values[key] = unquote(raw) if kind == "string" else _parsed(raw)
        else:
            where = f"Go struct field ShowRequest.{key} of type {go_type}"
            type_error = type_error or f"json: cannot unmarshal {kind} into {where}"
    if type_error:
        raise BadRequest(type_error)
    return values


def _members(body: bytes) -> list[Member]:
    try:
        return _object(body, strict)
    except MalformedError:
        text = syntax_error(body)
    if text is not None:
        raise BadRequest("missing request body" if text == "EOF" else text)
    return _object(body, lenient)  # well-formed, but nested deeper than CPython's scanner goes


def _object(body: bytes, skip_of: Callable[[bytes], Skip]) -> list[Member]:
    start = space_end(body, 0)
    if body[start : start + 1] == b"{":
        return members_of(body, start, skip_of(body))[0]
    if syntax_error(body) is not None:
        raise MalformedError
    if body[start : start + 1] == b"n":
        return []
    kind = _KINDS.get(body[start : start + 1], "number")
    raise BadRequest(f"json: cannot unmarshal {kind} into Go value of type api.ShowRequest")


def _parsed(raw: bytes) -> object:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise BadRequest("options are nested too deeply") from None
