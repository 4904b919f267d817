"""The words of an explanation: one sentence for what would become of the call, and a few for each node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from router.errors import Rejection
from router.policy.declared import Lack, Standing
from router.policy.filters import Bar
from router.policy.schedule import Reason
from router.policy.troubles import WINDOW_S, Pair

DIGESTS_TOLD = 4
NAMES_TOLD = 4


class End(StrEnum):
    SERVED = "served"
    WAITS = "waits"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`node` is where it would go, or where its model would be loaded; empty where nobody can say.

    `reason` is that of `x-ollama-router-reason`, or of `x-ollama-router-refused`; empty for calls that wait for a slot.
    """

    end: End
    text: str
    node: str = ""
    reason: str = ""


_BECAUSE = {
    Reason.LOADED: "the only copy that may serve it",
    Reason.AFFINITY: "it has this conversation",
    Reason.LEAST_BUSY: "the least busy",
    Reason.COLD_LOAD: "its model was just loaded there",
    Reason.OVERFLOW: "it had a slot first",
    Reason.FALLBACK: "only copies that are otherwise avoided are there",
}

_LACKS = {
    Lack.LOADING: "it loads",
    Lack.NODE_BUSY: "its node loads another model first",
    Lack.LEAVING: "it is about to leave memory, and comes back then",
    Lack.IN_USE: "calls need the memory that it would take",
    Lack.BACKOFF: "its last load failed, and is tried again later",
    Lack.LOST: "it was taken out of memory again and again, not by this router, and is loaded again later",
    Lack.NO_ROOM: "other declared copies fill the memory where it could be",
    Lack.DRAINING: "its node drains",
    Lack.DOWN: "its node is down",
    Lack.NOT_ON_DISK: "no further node has it on its disk, and the router pulls nothing",
    Lack.NOT_MANAGED: "placement.mode is not managed: nothing is done about it",
}


def lack_text(standing: Standing) -> str:
    """Of a declaration; empty where it stands."""
    if standing.lack is None:
        return ""
    there, copies = len(standing.nodes), standing.declaration.copies
    return f"{there} of {copies} declared copies of {standing.declaration.key} stand: {_LACKS[standing.lack]}"


def pair_text(pair: Pair) -> str:
    times = {1: "once", 2: "twice"}.get(pair.evictions, f"{pair.evictions} times")
    return f"{pair.keys[0]} and {pair.keys[1]} evict one another: {times} in {WINDOW_S / 60:.0f} minutes"


def skew_text(key: str, digests: Mapping[str, tuple[str, ...]]) -> str:
    """The digest that most nodes have comes first."""
    most = sorted(digests.items(), key=lambda item: (-len(item[1]), item[0]))[:DIGESTS_TOLD]
    told = "; ".join(f"{digest.removeprefix('sha256:')[:12] or '?'} on {_few(names)}" for digest, names in most)
    return f"{key} is not the same on all its nodes: {told}"


def spill_text(outside_bytes: int, size_bytes: int) -> str:
    return f"partly in CPU memory, {outside_bytes / size_bytes:.0%} of it: a last resort"


def _few(names: tuple[str, ...]) -> str:
    more = len(names) - NAMES_TOLD
    return ", ".join(names[:NAMES_TOLD]) + (f" and {more} more" if more > 0 else "")


def served(node: str, model: str, reason: Reason, used: int, slots: int) -> Verdict:
    because = _BECAUSE[reason]
    text = f"{model} goes to {node} at once: {because}, with {slots_text(used, slots)}"
    return Verdict(End.SERVED, text, node, reason.value)


def refused(rejection: Rejection | None, text: str) -> Verdict:
    return Verdict(End.REFUSED, f"refused: {text}", reason=rejection.value if rejection is not None else "")


def waits_for_slot(model: str, ahead: int, slots: int, estimate_s: float | None) -> Verdict:
    moves = f"about {max(1.0, estimate_s):.0f} s" if estimate_s is not None else "for how long nobody knows yet"
    return Verdict(End.WAITS, f"{model} waits in line, {_behind(ahead)}, for one of {slots} slots: {moves}")


def waits_for_load(node: str, model: str, ahead: int, *, is_running: bool) -> Verdict:
    what = f"a load that runs on {node}" if is_running else f"{node} to load it"
    return Verdict(End.WAITS, f"{model} waits in line, {_behind(ahead)}, for {what}", node, Reason.COLD_LOAD.value)


def waits_for_node(model: str, ahead: int) -> Verdict:
    return Verdict(
        End.WAITS, f"{model} waits in line, {_behind(ahead)}: no node that has it can load it now", "", "cold_load"
    )


def bar_text(bar: Bar, health: str, loaded_ctx: int, asked_ctx: int) -> str:
    return {
        Bar.DOWN: f"the node is {health}",
        Bar.DRAINING: "the node is draining",
        Bar.NOT_READY: "not in memory",
        Bar.EXCLUDED: "this call has been there",
        Bar.CONTEXT: f"loaded with a context of {loaded_ctx} tokens, {asked_ctx} are asked for",
    }[bar]


def slots_text(used: int, slots: int) -> str:
    return f"{used} of {slots} slots taken"


def learnt_text(learnt: int, declared: int | None) -> str:
    if declared is None:
        return f"slots learned: {learnt}, none are declared"
    return f"slots learned: {learnt} of {declared} declared, further calls waited inside the node"


def _behind(ahead: int) -> str:
    return f"behind {ahead}" if ahead else "first"
