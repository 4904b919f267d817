"""What a client may change about a copy that others share."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keep:
    """The body goes as it came."""


@dataclass(frozen=True, slots=True)
class Cut:
    """num_ctx is taken out of the body: the loaded context is larger than what was asked for."""


@dataclass(frozen=True, slots=True)
class Refused:
    text: str


def guard_num_ctx(asked: int | None, loaded: int, context_max: int) -> Keep | Cut | Refused:
    """So that no call reloads the copy (server/sched.go, needsReload). 0 for `loaded` or `context_max` is unknown."""
    if asked is None or not loaded:
        return Keep()
    effective = min(asked, context_max) if context_max else asked
    if effective == loaded:
        return Keep()
    if effective < loaded:
        return Cut()
    return Refused(
        f"num_ctx {asked} is more than the context of {loaded} tokens that this model is loaded with, and reloading it "
        f"would interrupt others: ask for at most {loaded} or leave num_ctx out; an operator can give the model more "
        "context (PARAMETER num_ctx under a name of its own, or OLLAMA_CONTEXT_LENGTH on the nodes)"
    )


def clamp_keep_alive(asked_s: float | None, max_s: float) -> float | None:
    """Seconds from 0 to `max_s`; negative and infinite mean for ever. None stays: the node's own default."""
    if asked_s is None:
        return None
    if math.isnan(asked_s) or asked_s < 0:
        return max_s
    return min(asked_s, max_s)
