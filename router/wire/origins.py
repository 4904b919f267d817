"""CORS as Ollama decides it (server/routes.go with gin-contrib/cors; recordings catalog/cors-*). Pure.

Browsers send OpenAI's, Anthropic's and our own headers, and read ours: Ollama allows only a part of that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from router.errors import Rejection
from router.wire import headers
from router.wire.dialects import Answer

Pair = tuple[bytes, bytes]

# envconfig/config.go, AllowedOrigins.
_BUILT_IN = re.compile(
    r"https?://(?:localhost|127\.0\.0\.1|0\.0\.0\.0)(?::\d+)?|(?:app|file|tauri|vscode-webview|vscode-file)://.*"
)
# What a browser may write; anything else is not repeated in a header.
_WRITTEN = re.compile(r"[\x21-\x7e]{1,2048}")
_CONFIGURED = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+|[^/\s]*\*[^/\s]*")
_STAINLESS = re.compile(r"x-stainless-[a-z0-9-]{1,64}")
STAINLESS_MAX = 16  # of one preflight; an SDK sends about ten

OLLAMA_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,X-Stainless-Async,"
    "X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,"
    "X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,"
    "X-Stainless-Runtime-Version,X-Stainless-Timeout"
)
OUR_HEADERS = (
    "X-Api-Key,Api-Key,Anthropic-Version,Anthropic-Beta,Anthropic-Dangerous-Direct-Browser-Access,"
    "Openai-Organization,Openai-Project,Idempotency-Key,X-Request-Id,X-Request-Timeout,X-Ollama-Router-Affinity"
)
METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
MAX_AGE_S = 43200

_EXPOSED = (
    b"x-request-id, x-ollama-router-node, x-ollama-router-model, x-ollama-router-attempts, x-ollama-router-queue-ms, "
    b"x-ollama-router-reason, x-ollama-router-refused, retry-after, retry-after-ms, x-should-retry, "
    b"x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
    b"x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens, "
    b"anthropic-ratelimit-requests-limit, anthropic-ratelimit-requests-remaining, anthropic-ratelimit-requests-reset, "
    b"anthropic-ratelimit-tokens-limit, anthropic-ratelimit-tokens-remaining, anthropic-ratelimit-tokens-reset"
)
_VARY = (b"Vary", b"Origin")
_REFUSED = Answer(403, tuple(headers.decision(refused=Rejection.ORIGIN)), b"")


class OriginError(ValueError):
    """A configured origin that no browser's could ever equal."""


@dataclass(frozen=True, slots=True)
class Origins:
    """What is allowed beside Ollama's own list. Made by `origins_of`."""

    is_any: bool = False
    exact: frozenset[str] = frozenset()
    wildcards: tuple[tuple[str, str], ...] = ()  # what stands before and after the asterisk

    def allow(self, origin: str) -> bool:
        if self.is_any or origin in self.exact or _BUILT_IN.fullmatch(origin):
            return True
        return any(origin.startswith(before) and origin.endswith(after) for before, after in self.wildcards)


@dataclass(frozen=True, slots=True)
class Crossing:
    """What an Origin means for one request: `answer` stands in for the route's, `headers` go on whatever it answers."""

    headers: tuple[Pair, ...] = ()
    answer: Answer | None = None
    is_refused: bool = False


AT_HOME = Crossing()
BUILT_IN_ONLY = Origins()


def origins_of(configured: Sequence[str]) -> Origins:
    """As OLLAMA_ORIGINS: one asterisk at most in each, case does not matter. Refuses with OriginError."""
    exact, wildcards = set(), []
    for text in configured:
        origin = text.strip().lower()
        if origin.count("*") > 1:
            raise OriginError(f"{text!r} has more than one *")
        if not _CONFIGURED.fullmatch(origin):
            raise OriginError(f"{text!r} should be scheme://host[:port] without a path, such as https://*.example.com")
        before, asterisk, after = origin.partition("*")
        if asterisk:
            wildcards.append((before, after))
        else:
            exact.add(origin)
    return Origins(("", "") in wildcards, frozenset(exact), tuple(wildcards))


def judge(
    method: str, *, host: str, origin: str, origins: Origins, allow: Sequence[str] = (), asked_headers: str = ""
) -> Crossing:
    """`host` and `origin` as sent, empty where absent. `allow`: the methods that the path has, `asked_headers`: the
    Access-Control-Request-Headers; both matter to a preflight only.
    """
    if not origin or is_same(origin, host):
        return AT_HOME
    if not _WRITTEN.fullmatch(origin) or not origins.allow(origin):
        return Crossing(answer=_REFUSED, is_refused=True)
    written = b"*" if origins.is_any else origin.encode()
    if method == "OPTIONS":
        return Crossing(answer=Answer(204, _preflight(written, allow, asked_headers), b""))
    shared: tuple[Pair, ...] = (
        (b"Access-Control-Allow-Origin", written),
        (b"Access-Control-Expose-Headers", _EXPOSED),
    )
    return Crossing(shared if origins.is_any else (*shared, _VARY))


def is_same(origin: str, host: str) -> bool:
    """A page that came from here; whether TLS ended before us cannot be seen."""
    return origin in (f"http://{host}", f"https://{host}")


def _preflight(origin: bytes, allow: Sequence[str], asked_headers: str) -> tuple[Pair, ...]:
    names = ",".join((OLLAMA_HEADERS, OUR_HEADERS, *_stainless(asked_headers)))
    pairs: list[Pair] = [
        (b"Access-Control-Allow-Headers", names.encode()),
        (b"Access-Control-Allow-Methods", METHODS.encode()),
        (b"Access-Control-Allow-Origin", origin),
        (b"Access-Control-Max-Age", b"%d" % MAX_AGE_S),
    ]
    if allow:
        pairs.append((b"Allow", ", ".join(allow).encode()))
    return (*pairs, _VARY, (b"Vary", b"Access-Control-Request-Method"), (b"Vary", b"Access-Control-Request-Headers"))


def _stainless(asked_headers: str) -> list[str]:
    """Of the official SDKs' own family, whatever the next release adds to it."""
    known = OLLAMA_HEADERS.lower().split(",")
    asked = [name.strip().lower() for name in asked_headers.split(",")[: 4 * STAINLESS_MAX]]
    return [name for name in asked if _STAINLESS.fullmatch(name) and name not in known][:STAINLESS_MAX]
