"""Model names by Ollama's grammar: types/model/name.go for the parts, internal/modelref/modelref.go for the source."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from router.errors import BadRequest
from router.wire.gojson import go_quote

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
NAMES_CACHED = 1024  # distinct spellings; a pool knows a few hundred models

# unicode.IsSpace, which strings.TrimSpace uses; str.strip() would also take U+001C to U+001F.
GO_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)

_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}\Z")
_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")
_MISSING = "!MISSING!"  # name.go, MissingPart: promised by a separator, and no valid part
_CLOUD_SUFFIX = "-cloud"


@dataclass(frozen=True, slots=True)
class ModelName:
    """A valid name with its defaults filled in, case as the client sent it.

    A cloud name keeps the tag of the stub that nodes list (`m:cloud`, `m:20b-cloud`): it is another model than `m:20b`.
    `:local` is no part of the name and is dropped.
    """

    host: str
    namespace: str
    model: str
    tag: str
    is_cloud: bool
    is_local_only: bool
    display: str  # with the tag, without the default host and namespace
    key: str  # lower-cased display: what lines, snapshot and metrics are keyed by


@lru_cache(maxsize=NAMES_CACHED)
def parse_name(text: str) -> ModelName:
    """Refuses with Ollama's texts; the caller has seen to it that something is left of `text` after trimming."""
    base, source = _split_source(text.strip(GO_SPACE))
    if source and _split_source(base)[1]:
        quoted = go_quote(text.strip(GO_SPACE))
        raise BadRequest(f"use either :local or :cloud, not both: {quoted}")
    host, namespace, model, tag = _parts(base)
    if not (_HOST.match(host) and _NAMESPACE.match(namespace) and _MODEL.match(model) and _MODEL.match(tag)):
        raise BadRequest("invalid model name")
    if source == "cloud":
        tag = f"{tag}{_CLOUD_SUFFIX}" if _has_tag(base) else "cloud"
    display = f"{_prefix(host, namespace)}{model}:{tag}"
    return ModelName(host, namespace, model, tag, source == "cloud", source == "local", display, display.lower())


def key_of(text: str) -> str:
    """Refuses as `parse_name` does."""
    return parse_name(text).key


def is_cloud_key(key: str) -> bool:
    """By its tag alone; a stub under another name is known only to its nodes."""
    return key.endswith((":cloud", _CLOUD_SUFFIX))


def _split_source(text: str) -> tuple[str, str]:
    """The name without its source suffix, and `cloud`, `local` or nothing (modelref.go, parseSourceSuffix)."""
    head, colon, tail = text.rpartition(":")
    tail = tail.strip(GO_SPACE)
    if not colon:
        return text, ""
    if tail.lower() in ("cloud", "local"):
        return head, tail.lower()
    if "/" not in tail and tail[-len(_CLOUD_SUFFIX) :].lower() == _CLOUD_SUFFIX:
        return f"{head}:{tail[: -len(_CLOUD_SUFFIX)]}", "cloud"
    return text, ""


def _parts(text: str) -> tuple[str, str, str, str]:
    """Host, namespace, model and tag, not yet checked (name.go, ParseNameBare and Merge)."""
    tag = DEFAULT_TAG
    if _has_tag(text):
        text, tag = _cut_promised(text, ":")
    if "/" not in text:
        return DEFAULT_HOST, DEFAULT_NAMESPACE, text, tag
    text, model = _cut_promised(text, "/")
    if "/" not in text:
        return DEFAULT_HOST, text, model, tag
    text, namespace = _cut_promised(text, "/")
    _, scheme, host = text.partition("://")
    return (host if scheme else text) or DEFAULT_HOST, namespace, model, tag


def _has_tag(text: str) -> bool:
    return text.rfind(":") > text.rfind("/")


def _cut_promised(text: str, separator: str) -> tuple[str, str]:
    before, _, after = text.rpartition(separator)
    return before or _MISSING, after or _MISSING


def _prefix(host: str, namespace: str) -> str:
    if host.lower() != DEFAULT_HOST:
        return f"{host}/{namespace}/"
    return "" if namespace.lower() == DEFAULT_NAMESPACE else f"{namespace}/"
