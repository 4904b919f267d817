"""Every way a call can be refused or end, as values.

A refusal says whose fault it is and what to do next; `wire.dialects` turns it into bytes of the route's dialect.
Nothing here knows a dialect, a header or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import ceil


class Outcome(StrEnum):
    """How a call ended; exactly one per call, and the metric label."""

    OK = "ok"
    CLIENT_ERROR = "client_error"
    REJECTED = "rejected"
    CANCELLED = "cancelled"
    STALLED = "stalled"
    TIMEOUT = "timeout"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    DRAINED = "drained"


class Rejection(StrEnum):
    """Why the router itself refused: the label of `rejections_total` and the value of `x-ollama-router-refused`."""

    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    TEAM_QUEUE_FULL = "team_queue_full"
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    NO_NODE = "no_node"
    NOT_LOADED = "not_loaded"
    MODEL_NOT_FOUND = "model_not_found"
    DRAINING = "draining"
    TOO_LARGE = "too_large"
    BUFFERS_FULL = "buffers_full"
    CONNECTIONS = "connections"
    LOOP = "loop"
    CLOUD = "cloud"
    ORIGIN = "origin"
    FORBIDDEN_VERB = "forbidden_verb"
    NUM_CTX = "num_ctx"
    INVALID = "invalid"


# Texts repeat what they refuse, as Ollama's do: a number of many megabytes would be written to client and log again.
TEXT_CHARS_MAX = 4096


class Refusal(Exception):
    """A call the router answers itself: status, text, and what the client may do next.

    `retry_after_s` is None where repeating the same call cannot help. `may_retry` False tells the official SDKs not to
    repeat a call that may already have cost a generation (`x-should-retry: false`).
    """

    status = 500
    outcome = Outcome.REJECTED
    rejection: Rejection | None = None
    kind: str | None = None  # the error's type; None where it follows from status and dialect
    code: str | None = None  # OpenAI's error.code
    retry_after_s: float | None = None
    may_retry = True

    def __init__(self, text: str, *, retry_after_s: float | None = None) -> None:
        self.text = text[:TEXT_CHARS_MAX]
        super().__init__(self.text)
        if retry_after_s is not None:
            self.retry_after_s = retry_after_s


class BadRequest(Refusal):
    """The body cannot be what this route takes. `while_reading` marks what Ollama's middleware would have refused:

    its compat routes then answer with a charset and without a trailing newline (recordings `refused/json-v1-chat` and
    `refused/bad-name-v1-chat`).
    """

    status = 400
    rejection = Rejection.INVALID
    may_retry = False

    def __init__(self, text: str, *, while_reading: bool = False) -> None:
        super().__init__(text)
        self.while_reading = while_reading


class OptionTypeError(Refusal):
    """Ollama answers a wrongly typed option with 500 (recording `refused/option-type`), the client's fault though."""

    status = 500
    rejection = Rejection.INVALID
    may_retry = False


class Unauthorized(Refusal):
    """No key where one is required, or none that is known. The text never repeats what was sent."""

    status = 401
    rejection = Rejection.UNAUTHORIZED
    may_retry = False


class UnknownModel(Refusal):
    status = 404
    rejection = Rejection.MODEL_NOT_FOUND


class ForbiddenVerb(Refusal):
    status = 403
    rejection = Rejection.FORBIDDEN_VERB


class CloudRefused(Refusal):
    status = 403
    rejection = Rejection.CLOUD


class TooLarge(Refusal):
    status = 413
    rejection = Rejection.TOO_LARGE
    may_retry = False


class GuardRefused(Refusal):
    """An option that would change a copy which others share. `guard` is the label `option` of `guard_total`."""

    status = 400
    guard = ""
    may_retry = False


class NumCtxRefused(GuardRefused):
    """A context other than the loaded one would reload the model."""

    rejection = Rejection.NUM_CTX
    guard = "num_ctx"


class OptionsRefused(GuardRefused):
    """So would other options of the runner."""

    rejection = Rejection.NUM_CTX
    guard = "options"


class KeepAliveRefused(GuardRefused):
    rejection = Rejection.INVALID
    guard = "keep_alive"


class LoopDetected(Refusal):
    """The call already passed through this pool: a node URL leads back to a router."""

    status = 508
    rejection = Rejection.LOOP
    may_retry = False


class Unavailable(Refusal):
    """503: not now. Always with a Retry-After."""

    status = 503
    retry_after_s = 1.0


class QueueFull(Unavailable):
    rejection = Rejection.QUEUE_FULL

    def __init__(self, *, retry_after_s: float) -> None:
        # Ollama's own words, two spaces included: recordings busy/.
        super().__init__(
            "server busy, please try again.  maximum pending requests exceeded", retry_after_s=retry_after_s
        )


class TeamQueueFull(Refusal):
    """As many calls of this team wait as may."""

    status = 429
    rejection = Rejection.TEAM_QUEUE_FULL
    code = "team_queue_full"

    def __init__(self, limit: int, *, retry_after_s: float) -> None:
        super().__init__(
            f"this team has {limit} calls waiting already, as many as it may; try again when some are served",
            retry_after_s=retry_after_s,
        )


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of a limit, as `x-ratelimit-*` headers tell it. `reset_s`: until all of it is there again."""

    limit: int
    remaining: int
    reset_s: float


@dataclass(frozen=True, slots=True)
class Allowances:
    """What a team has left; None where it has no such limit. Of several for tokens the one that ends first."""

    requests: Allowance | None
    tokens: Allowance | None


class RateLimited(Refusal):
    """The team has used up its `what`: "requests" or "tokens". Allowances are None where there is no such limit."""

    status = 429
    rejection = Rejection.RATE_LIMITED
    code = "rate_limit_exceeded"

    def __init__(
        self, what: str, requests: Allowance | None, tokens: Allowance | None, *, retry_after_s: float
    ) -> None:
        super().__init__(
            f"this team has reached its limit of {what}; try again in {ceil(retry_after_s)} s",
            retry_after_s=retry_after_s,
        )
        self.requests = requests
        self.tokens = tokens


class QueueTimeout(Unavailable):
    rejection = Rejection.QUEUE_TIMEOUT


class NoNode(Unavailable):
    """The model is known, but no node that has it can serve now."""

    rejection = Rejection.NO_NODE
    code = "no_node"


class NotLoaded(Unavailable):
    """Placement only observes and no node has the model in memory."""

    rejection = Rejection.NOT_LOADED
    code = "not_loaded"


class BuffersFull(Unavailable):
    rejection = Rejection.BUFFERS_FULL


class Draining(Unavailable):
    rejection = Rejection.DRAINING
    code = "draining"


class Drained(Refusal):
    """Cut off by our own shutdown after the drain limit."""

    status = 503
    outcome = Outcome.DRAINED
    rejection = Rejection.DRAINING
    code = "draining"
    retry_after_s = 1.0
    may_retry = False


class UpstreamFailed(Refusal):
    """No node gave an answer worth passing on."""

    status = 502
    outcome = Outcome.UPSTREAM_ERROR
    code: str | None = "upstream_error"
    may_retry = False


class NodeAnswered(UpstreamFailed):
    """A node's own 4xx or 5xx, for a client whose 200 is gone. Text, type and code are the node's."""

    def __init__(self, text: str, status: int, *, outcome: Outcome, kind: str | None, code: str | None) -> None:
        super().__init__(text)
        self.status = status
        self.outcome = outcome
        self.kind = kind
        self.code = code


class LoadFailed(UpstreamFailed):
    """Every node that has the model failed to load it; the text is the node's own."""

    status = 500


class RouterBroken(UpstreamFailed):
    """Nobody's fault but the router's."""

    status = 500


class UpstreamTimeout(Refusal):
    """The first byte did not come by the call's deadline."""

    status = 504
    outcome = Outcome.TIMEOUT
    code = "upstream_timeout"
    may_retry = False


class UpstreamTruncated(UpstreamFailed):
    """A stream that ended, or fell silent, without its terminator."""

    outcome = Outcome.UPSTREAM_TRUNCATED
