"""Which path is what, and where another spelling of it leads: Ollama's route table (server/routes.go), Go's ServeMux,
which cleans paths, and gin, which takes trailing slashes off. Pure.

A path is matched decoded, as Go matches it, so that an escaped slash is a slash.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum, auto
from urllib.parse import quote, unquote_to_bytes

from router.wire.dialects import Answer
from router.wire.endpoints import BY_PATH, Dialect


class Page(StrEnum):
    """What is asked for at a path."""

    INFERENCE = auto()
    ROOT = auto()
    VERSION = auto()
    STATUS = auto()
    TAGS = auto()
    PS = auto()
    SHOW = auto()
    MODELS = auto()
    MODEL = auto()
    PULL = auto()
    PUSH = auto()
    CREATE = auto()
    COPY = auto()
    DELETE = auto()
    BLOB = auto()
    ACCOUNT = auto()
    EXPERIMENTAL = auto()


@dataclass(frozen=True, slots=True)
class Route:
    """`methods` in the order of Ollama's Allow header; none where the page takes whatever comes."""

    page: Page
    methods: tuple[str, ...]
    parameter: str = ""  # the segment of the path that is no constant, decoded


# Of pages that are no inference calls: the label `route`. What stands in none of them is `other`.
LABELS: Mapping[Page, str] = {
    Page.VERSION: "api_version",
    Page.TAGS: "api_tags",
    Page.PS: "api_ps",
    Page.SHOW: "api_show",
    Page.MODELS: "models",
    Page.MODEL: "models",
    **dict.fromkeys((Page.PULL, Page.PUSH, Page.CREATE, Page.COPY, Page.DELETE, Page.BLOB), "api_manage"),
}
OTHER = "other"

_READ = ("HEAD", "GET")
_FIXED: Mapping[str, Route] = {
    **{path: Route(Page.INFERENCE, ("POST",)) for path in BY_PATH},
    "/": Route(Page.ROOT, _READ),
    "/api/version": Route(Page.VERSION, _READ),
    "/api/status": Route(Page.STATUS, ("GET",)),
    "/api/tags": Route(Page.TAGS, _READ),
    "/api/ps": Route(Page.PS, ("GET",)),
    "/api/show": Route(Page.SHOW, ("POST",)),
    "/v1/models": Route(Page.MODELS, ("GET",)),
    "/api/pull": Route(Page.PULL, ("POST",)),
    "/api/push": Route(Page.PUSH, ("POST",)),
    "/api/create": Route(Page.CREATE, ("POST",)),
    "/api/copy": Route(Page.COPY, ("POST",)),
    "/api/delete": Route(Page.DELETE, ("DELETE",)),
    "/api/me": Route(Page.ACCOUNT, ("POST",)),
    "/api/signout": Route(Page.ACCOUNT, ("POST",)),
    "/api/experimental/web_search": Route(Page.EXPERIMENTAL, ("POST",)),
    "/api/experimental/web_fetch": Route(Page.EXPERIMENTAL, ("POST",)),
    "/api/experimental/model-recommendations": Route(Page.EXPERIMENTAL, ("GET",)),
}
_WITH_PARAMETER: tuple[tuple[str, Page, tuple[str, ...]], ...] = (
    ("/v1/models/", Page.MODEL, ("GET",)),
    ("/api/blobs/", Page.BLOB, ("HEAD", "POST")),
    ("/api/user/keys/", Page.ACCOUNT, ("DELETE",)),
    ("/api/experimental/", Page.EXPERIMENTAL, ()),  # they come and go from version to version
)

_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ABSOLUTE = re.compile(r"https?://[^/?]*", re.IGNORECASE)  # RFC 9112 3.2.2: a server takes this form, too
_UNSAFE_PREFIX = re.compile(r"[^a-zA-Z0-9/-]+")  # gin.go, regSafePrefix
_PATH_SAFE = "/$&+,:;=@"  # net/url, shouldEscape in a path; quote() leaves letters, digits and -_.~ alone
_HTML = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})  # net/http, htmlReplacer
_PHRASES = {301: "Moved Permanently", 307: "Temporary Redirect"}


def split_target(target: str) -> tuple[str, str]:
    """Path and query of a request line's target, both as sent."""
    absolute = _ABSOLUTE.match(target)
    path, _, query = (target[absolute.end() :] if absolute else target).partition("?")
    return path or "/", query


def decoded(path: str) -> str | None:
    """None where net/url takes no such path (Go's server answers 400). What is no UTF-8 stays as surrogates."""
    if not path.startswith("/") or ("%" in path and _BAD_ESCAPE.search(path)):
        return None
    if "%" not in path and path.isascii():
        return path
    return unquote_to_bytes(path.encode(errors="surrogateescape")).decode("utf-8", "surrogateescape")


def label_of(path: str) -> str:
    """Of a decoded path, a word of a closed set: of an inference route that is asked in a wrong way its own."""
    endpoint = BY_PATH.get(path)
    if endpoint is not None:
        return endpoint.route
    route = route_of(path)
    return LABELS.get(route.page, OTHER) if route is not None else OTHER


def route_of(path: str) -> Route | None:
    """Of a decoded path."""
    fixed = _FIXED.get(path)
    if fixed is not None:
        return fixed
    for prefix, page, methods in _WITH_PARAMETER:
        parameter = path.removeprefix(prefix)
        if parameter != path and parameter and "/" not in parameter:
            return Route(page, methods, parameter)
    return None


def methods_at(path: str) -> tuple[str, ...]:
    route = route_of(path)
    return route.methods if route is not None else ()


def dialect_of(path: str) -> Dialect:
    endpoint = BY_PATH.get(path)
    if endpoint is not None:
        return endpoint.dialect
    return Dialect.OPENAI if path.startswith("/v1/") else Dialect.OLLAMA


def clean(path: str) -> str:
    """As Go's ServeMux: single slashes, no dot segments, a trailing slash kept."""
    cleaned = "/" + posixpath.normpath("/" + path).lstrip("/")
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def moved(
    method: str,
    path: str,
    *,
    query: str = "",
    forwarded_prefix: str = "",
    methods: Callable[[str], Collection[str]] = methods_at,
) -> Answer | None:
    """The redirect that a decoded path gets, if any; `methods` are those that a path has.

    Recordings catalog/double-slash and catalog/trailing-slash. It always leads to a path of the host that was asked.
    """
    cleaned = clean(path)
    if cleaned != path:
        return _redirect(method, 307, cleaned, query)
    bare = path.removesuffix("/")
    if not bare or bare == path or methods(path) or method not in methods(bare):
        return None
    if forwarded_prefix:
        bare = clean(_UNSAFE_PREFIX.sub("", posixpath.normpath(forwarded_prefix)) + bare)
    return _redirect(method, 301 if method == "GET" else 307, bare, query)


def _redirect(method: str, status: int, path: str, query: str) -> Answer:
    """net/http, Redirect: only GET and HEAD hear of a page, and only GET gets it."""
    where = quote(path, safe=_PATH_SAFE, errors="surrogateescape")
    if query:
        where += "?" + _ascii(query)
    pairs: list[tuple[bytes, bytes]] = [(b"Location", where.encode())]
    if method not in ("GET", "HEAD"):
        return Answer(status, tuple(pairs), b"")
    page = f'<a href="{where.translate(_HTML)}">{_PHRASES[status]}</a>.\n\n'
    return Answer(status, ((b"Content-Type", b"text/html; charset=utf-8"), *pairs), page.encode())


def _ascii(query: str) -> str:
    """net/http, hexEscapeNonASCII; no control character gets into a header by any way."""
    return "".join(char if "\x20" < char < "\x7f" else quote(char, errors="surrogateescape") for char in query)
