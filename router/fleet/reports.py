"""Bytes that a node answered to control calls -> facts. One bad item never costs the others; no clock, no I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from router.errors import Refusal

KeyOf = Callable[[str], str]  # a model's name -> its key (wire.names); raises a Refusal or a ValueError on bad names

ITEMS_MAX = 10_000  # models in one list; the largest shared stores hold some hundreds
TEXT_MAX = 600  # characters of a name, a digest or a version; Ollama's longest valid name has 593

_EPOCH = datetime(1970, 1, 1)  # without a zone: the offset is taken off by hand
_STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d{1,9})?([Zz]|([+-])(\d\d):(\d\d))", re.ASCII)
_SURROGATE = re.compile("[\ud800-\udfff]")
_GO_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})
# The path may be Windows's, and quoted. Ollama writes the weights first; projectors and drafts have FROM lines of their
# own after it (server/images.go, Model.String), and a licence or a template may quote one further down.
_FROM = re.compile(r'^FROM[ \t]+"?[^\n"]*[/\\]sha256[-:]([0-9a-f]{64})"?[ \t]*\r?$', re.MULTILINE)
_CLOUD_TAG = re.compile(r":(?:cloud|[^/:]*-cloud)$", re.IGNORECASE)


class MalformedReport(ValueError):
    """A node answered 200 with a body that is not what this route answers."""


@dataclass(frozen=True, slots=True)
class TagEntry:
    """An item of `/api/tags`. `context_max` is 0 and `capabilities` are empty where the node is too old to tell."""

    name: str
    key: str
    digest: str
    size_bytes: int
    modified_at: str
    family: str
    capabilities: frozenset[str]
    context_max: int
    is_cloud: bool
    listing: str


@dataclass(frozen=True, slots=True)
class PsEntry:
    """An item of `/api/ps`. `expires_at_s` is Unix time on the node's clock, infinite where it is not readable."""

    name: str
    key: str
    digest: str
    size_bytes: int
    vram_bytes: int
    num_ctx: int
    expires_at_s: float
    listing: str


@dataclass(frozen=True, slots=True)
class Shown:
    """What `/api/show` tells of a manifest: its weights' blob (empty where it names none) and training context."""

    weights: str
    context_max: int = 0


def parse_version(body: bytes) -> str:
    version = _text(_object(body).get("version"))
    if not version:
        raise MalformedReport("no version in the answer to /api/version")
    return version


def parse_tags(body: bytes, key_of: KeyOf) -> tuple[TagEntry, ...]:
    """In the node's order, newest first; the first of several items with one key."""
    entries: dict[str, TagEntry] = {}
    for name, key, item, listing in _items(body, key_of):
        entries.setdefault(key, _tag_entry(name, key, item, listing))
    return tuple(entries.values())


def parse_ps(body: bytes, key_of: KeyOf) -> tuple[PsEntry, ...]:
    """In the node's order, longest remaining first; the first of several items with one key."""
    entries: dict[str, PsEntry] = {}
    for name, key, item, listing in _items(body, key_of):
        entries.setdefault(key, _ps_entry(name, key, item, listing))
    return tuple(entries.values())


def parse_show(body: bytes) -> Shown:
    answer = _object(body)
    modelfile = answer.get("modelfile")
    found = _FROM.search(modelfile) if isinstance(modelfile, str) else None
    info = answer.get("model_info")
    context_max = 0
    if isinstance(info, dict):
        context_max = _count(info.get(f"{_text(info.get('general.architecture'))}.context_length"))
    return Shown(f"sha256-{found[1]}" if found else "", context_max)


def parse_time_s(text: str) -> float | None:
    """RFC 3339 as Go writes it -> Unix seconds (a double is good to a microsecond); None for anything else."""
    match = _STAMP.fullmatch(text)
    if match is None:
        return None
    try:
        moment = datetime(*(int(part) for part in match.group(1, 2, 3, 4, 5, 6)))  # type: ignore[arg-type]
    except ValueError:
        return None
    offset_s = (int(match[10]) * 60 + int(match[11])) * 60 if match[9] else 0
    whole_s = (moment - _EPOCH).total_seconds() - (-offset_s if match[9] == "-" else offset_s)
    return whole_s + float(match[7] or 0)


def _tag_entry(name: str, key: str, item: dict[str, object], listing: str) -> TagEntry:
    raw = item.get("details")
    details: dict[str, object] = raw if isinstance(raw, dict) else {}
    capabilities = item.get("capabilities")
    words = map(_text, capabilities) if isinstance(capabilities, list) else ()
    return TagEntry(
        name=name,
        key=key,
        digest=_text(item.get("digest")),
        size_bytes=_count(item.get("size")),
        modified_at=_text(item.get("modified_at")),
        family=_text(details.get("family")),
        capabilities=frozenset(word for word in words if word),
        context_max=_count(details.get("context_length")),
        is_cloud=bool(item.get("remote_host")) or _CLOUD_TAG.search(name) is not None,
        listing=listing,
    )


def _ps_entry(name: str, key: str, item: dict[str, object], listing: str) -> PsEntry:
    expires_at_s = parse_time_s(_text(item.get("expires_at")))
    return PsEntry(
        name=name,
        key=key,
        digest=_text(item.get("digest")),
        size_bytes=_count(item.get("size")),
        vram_bytes=_count(item.get("size_vram")),
        num_ctx=_count(item.get("context_length")),
        expires_at_s=float("inf") if expires_at_s is None else expires_at_s,
        listing=listing,
    )


def _object(body: bytes) -> dict[str, object]:
    try:
        answer = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise MalformedReport(f"not JSON: {error}") from None
    if not isinstance(answer, dict):
        raise MalformedReport("not a JSON object")
    return answer


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is no JSON")


def _items(body: bytes, key_of: KeyOf) -> Iterator[tuple[str, str, dict[str, object], str]]:
    """Name, key, object and listing of every model that has a valid name; old versions write an empty list as null."""
    models = _object(body).get("models", False)
    if models is None:
        return
    if not isinstance(models, list):
        raise MalformedReport("no list of models in the answer")
    for item in models[:ITEMS_MAX]:
        if not isinstance(item, dict):
            continue
        name = _text(item.get("name")) or _text(item.get("model"))
        try:
            key, listing = key_of(name) if name.strip() else "", _listing(item)
        except (Refusal, ValueError, RecursionError):
            continue
        if key:
            yield name, key, item, listing


def _text(value: object) -> str:
    """At most TEXT_MAX characters that can be encoded; a lone surrogate becomes U+FFFD, as Go decodes it."""
    return _SURROGATE.sub("\ufffd", value[:TEXT_MAX]) if isinstance(value, str) else ""


def _count(value: object) -> int:
    """A whole number of 64 bits that is not negative; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63 else 0


def _listing(item: dict[str, object]) -> str:
    """The item again, its members in their order, escaped as Go escapes JSON. Refuses what only Python calls JSON."""
    text = json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_GO_ESCAPES)
    return _SURROGATE.sub("\ufffd", text)
