"""What a client may change about a copy that others share."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from router.errors import GuardRefused, KeepAliveRefused, OptionsRefused, Refusal
from router.policy.filters import capped

# Ollama applies a call's keep_alive to the copy that all share. Below a minute the copy would be gone before its users
# ask again, and count as expiring (a few probe intervals) for most of its life: the placer would load it over and over.
KEEP_ALIVE_MIN_S = 60.0


class NumCtxGuard(StrEnum):
    """`guard.num_ctx`: for the context, and for every other option that reloads a copy."""

    PROTECT = "protect"
    PASS = "pass"  # noqa: S105 - lets through, no password
    REJECT = "reject"


class KeepAliveGuard(StrEnum):
    """`guard.keep_alive`"""

    CLAMP = "clamp"
    PASS = "pass"  # noqa: S105
    REJECT = "reject"


class Guarded(StrEnum):
    """What a guard has done to a call: option and action, the labels of `guard_total`."""

    NUM_CTX_PASSED = "num_ctx passed"
    NUM_CTX_CUT = "num_ctx cut"
    NUM_CTX_REFUSED = "num_ctx refused"
    OPTIONS_PASSED = "options passed"
    OPTIONS_CUT = "options cut"
    OPTIONS_REFUSED = "options refused"
    KEEP_ALIVE_PASSED = "keep_alive passed"
    KEEP_ALIVE_CUT = "keep_alive cut"
    KEEP_ALIVE_CLAMPED = "keep_alive clamped"
    KEEP_ALIVE_REFUSED = "keep_alive refused"
    UNLOAD_IGNORED = "unload ignored"


@dataclass(frozen=True, slots=True)
class Guards:
    """What of a client's options may reach a node."""

    num_ctx: NumCtxGuard = NumCtxGuard.PROTECT
    keep_alive: KeepAliveGuard = KeepAliveGuard.CLAMP
    keep_alive_max_s: float = 1800.0

    @property
    def keeps_context(self) -> bool:
        """Leaves the options that reload to the node's own judgement."""
        return self.num_ctx is NumCtxGuard.PASS


@dataclass(frozen=True, slots=True)
class Keep:
    """The body goes as it came."""


@dataclass(frozen=True, slots=True)
class Cut:
    """num_ctx is taken out of the body: the loaded context is larger than what was asked for."""


@dataclass(frozen=True, slots=True)
class Refused:
    text: str


def guard_num_ctx(
    asked: int | None, loaded: int, context_max: int, *, may_be_smaller: bool = True
) -> Keep | Cut | Refused:
    """So that no call reloads the copy (server/sched.go, needsReload). 0 for `loaded` or `context_max` is unknown."""
    if asked is None or not loaded:
        return Keep()
    effective = capped(asked, context_max)
    if effective == loaded:
        return Keep()
    if effective < loaded and may_be_smaller:
        return Cut()
    return Refused(
        f"num_ctx {asked} is {'less' if effective < loaded else 'more'} than the context of {loaded} tokens that this "
        "model is loaded with, and reloading it would interrupt others: "
        f"ask for {'at most ' if may_be_smaller else ''}{loaded} or leave num_ctx out; an operator can give the model "
        "another context (PARAMETER num_ctx under a name of its own, an alias that overrides it, or "
        "OLLAMA_CONTEXT_LENGTH on the nodes)"
    )


def guard_options(guards: Guards, reloading: Sequence[str], keep_alive_s: float | None) -> GuardRefused | None:
    """What is refused whatever is loaded. `reloading` names the call's options that would reload the copy."""
    if guards.num_ctx is NumCtxGuard.REJECT and reloading:
        return OptionsRefused(
            f"{', '.join(reloading)} would reload a model that others share: leave it out; an operator can set it for "
            "the model itself (PARAMETER in its Modelfile)"
        )
    if guards.keep_alive is KeepAliveGuard.REJECT and keep_alive_s is not None:
        return KeepAliveRefused(
            "keep_alive would change how long a model that others share stays in memory: leave it out; an operator "
            "sets it on the nodes (OLLAMA_KEEP_ALIVE)"
        )
    return None


def guard_loaded(asked: int | None, loaded: Collection[int], context_max: int, guards: Guards) -> Refused | None:
    """Against the contexts of the copies that are ready, 0 where unknown.

    protect: no copy has as much. reject: no copy has just that.
    """
    known = [num_ctx for num_ctx in loaded if num_ctx]
    if not known or len(known) < len(loaded):
        return None
    if guards.num_ctx is NumCtxGuard.PROTECT:
        judgements = [guard_num_ctx(asked, max(known), context_max)]
    else:
        judgements = [guard_num_ctx(asked, num_ctx, context_max, may_be_smaller=False) for num_ctx in set(known)]
    refusals = [judged for judged in judgements if isinstance(judged, Refused)]
    return refusals[0] if len(refusals) == len(judgements) else None


def guarded_of(refusal: Refusal) -> tuple[Guarded, ...]:
    return (Guarded(f"{refusal.guard} refused"),) if isinstance(refusal, GuardRefused) else ()


def context_to_load(asked: int | None, override: int | None, guards: Guards, context_max: int) -> int:
    """What a call's copy must have, in tokens; 0 where any will do. An alias's override takes the client's place."""
    wanted = (asked if override is None else override) or 0
    return 0 if guards.keeps_context else capped(wanted, context_max)


def keep_alive_to_load(asked_s: float | None, guards: Guards) -> float | None:
    """What a load for this call asks for; None is the node's own default. An unload after the call asks for none."""
    if guards.keep_alive is KeepAliveGuard.PASS:
        return asked_s or None
    return clamp_keep_alive(asked_s or None, guards.keep_alive_max_s)


def clamp_keep_alive(asked_s: float | None, max_s: float) -> float | None:
    """Seconds from 0 to `max_s`; negative and infinite mean for ever. None stays: the node's own default."""
    if asked_s is None:
        return None
    if math.isnan(asked_s) or asked_s < 0:
        return max_s
    return min(asked_s, max_s)
