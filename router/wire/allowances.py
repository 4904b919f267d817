"""What a team has left of its limits, in the headers that clients of OpenAI's and Anthropic's services read."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from router.errors import Allowance, Allowances
from router.wire.endpoints import Dialect

Pair = tuple[bytes, bytes]


def rate_limits(dialect: Dialect, left: Allowances, wall_s: float) -> list[Pair]:
    """OpenAI's names on every route, on Anthropic's its own besides; what has no limit is left out. `wall_s` is now."""
    told: list[Pair] = []
    for what, allowance in ((b"requests", left.requests), (b"tokens", left.tokens)):
        if allowance is not None:
            told += _openai(what, allowance)
            if dialect is Dialect.ANTHROPIC:
                told += _anthropic(what, allowance, wall_s)
    return told


def _openai(what: bytes, allowance: Allowance) -> list[Pair]:
    return [
        (b"x-ratelimit-limit-" + what, b"%d" % allowance.limit),
        (b"x-ratelimit-remaining-" + what, b"%d" % allowance.remaining),
        (b"x-ratelimit-reset-" + what, go_duration(allowance.reset_s).encode()),
    ]


def _anthropic(what: bytes, allowance: Allowance, wall_s: float) -> list[Pair]:
    """The reset is a moment here: RFC 3339, in whole seconds."""
    reset = datetime.fromtimestamp(math.ceil(wall_s + allowance.reset_s), UTC)
    name = b"anthropic-ratelimit-" + what
    return [
        (name + b"-limit", b"%d" % allowance.limit),
        (name + b"-remaining", b"%d" % allowance.remaining),
        (name + b"-reset", reset.strftime("%Y-%m-%dT%H:%M:%SZ").encode()),
    ]


def go_duration(seconds: float) -> str:
    """As Go writes it, rounded up: `0s`, `20ms`, `1s`, `6m0s`, `24h0m0s`. From a second on whole seconds will do."""
    milliseconds = math.ceil(seconds * 1000)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest_s = divmod(math.ceil(milliseconds / 1000), 60)
    hours, rest_m = divmod(minutes, 60)
    if hours:
        return f"{hours}h{rest_m}m{rest_s}s"
    return f"{rest_m}m{rest_s}s" if rest_m else f"{rest_s}s"
