"""What all answers share: Go's JSON, times, and the facts of one generation that a route's shape is made from. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from router.simulation.facts import Timing
from router.simulation.text import Answer, Piece, logprob
from router.simulation.version import Version
from router.wire.gojson import go_json

JSON = "application/json"
JSON_UTF8 = "application/json; charset=utf-8"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"

# "Forever" is the largest Go duration, about 292 years (recording catalog/ps-pinned).
FOREVER_NS = 2**63 - 1

DIED_TEXT = "an error was encountered while running the model: unexpected EOF"  # recording runner-died/api-chat


def rfc3339(wall_ns: int) -> str:
    """Go's RFC 3339 with nanoseconds: trailing zeros of the fraction dropped."""
    seconds, nanos = divmod(wall_ns, 1_000_000_000)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"


@dataclass(frozen=True, slots=True)
class Speech:
    """One generation as its route has to tell it.

    `model` is echoed as the client sent it. `top_logprobs` None: no logprobs. `request` are the members of the body,
    for the routes that echo some of them.
    """

    model: str
    answer: Answer
    prompt: tuple[int, ...]
    prompt_tokens: int
    version: Version
    ids: random.Random
    wall_ns: Callable[[], int]
    request: Mapping[str, object]
    include_usage: bool = False
    top_logprobs: int | None = None
    is_raw: bool = False
    estimated_tokens: int = 0

    @property
    def output_tokens(self) -> int:
        return len(self.answer.pieces)

    @property
    def usage(self) -> dict[str, object]:
        prompt, completion = self.prompt_tokens, self.output_tokens
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    @property
    def finish_reason(self) -> str:
        return "tool_calls" if self.answer.tool is not None else self.answer.reason

    def created(self) -> int:
        return self.wall_ns() // 1_000_000_000

    def created_at(self) -> str:
        return rfc3339(self.wall_ns())

    def logprobs(self, *pieces: Piece) -> list[dict[str, object]]:
        assert self.top_logprobs is not None
        return [logprob(piece.text, self.top_logprobs, 0) for piece in pieces]


class Shape(Protocol):
    """The bytes of one answer in one route's shape. Every item of a list goes out in one HTTP chunk."""

    @property
    def stream_type(self) -> str: ...

    @property
    def plain_type(self) -> str: ...

    @property
    def stream_headers(self) -> tuple[tuple[str, str], ...]: ...

    def token(self, piece: Piece) -> list[bytes]: ...

    def end(self, timing: Timing) -> list[bytes]: ...

    def died(self) -> list[bytes]:
        """What the client still gets when the runner dies in mid-stream, before a clean end (runner-died/)."""

    def plain(self, timing: Timing) -> bytes: ...


def sse(value: object) -> bytes:
    return b"data: " + go_json(value) + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + go_json(value) + b"\n\n"


def seconds_ns(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000_000))
