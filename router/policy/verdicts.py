"""The words of an explanation: one sentence for what would become of the call, and a few for each node."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from router.errors import Rejection
from router.policy.filters import Bar
from router.policy.schedule import Reason


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


def _behind(ahead: int) -> str:
    return f"behind {ahead}" if ahead else "first"
