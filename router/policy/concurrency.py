"""How many calls a copy runs at once, learnt from when calls were sent, answered and ended (docs/adr/0011).

Ollama queues what exceeds its slots in silence, first come, first served. So a call that is answered while others that
were sent before it still run shows that all of them have slots; and one that is answered only when another has ended
looks as if it had none until then. One state for each copy; every fold answers the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

ORDER_S = 0.25  # two connections: what was sent later by less may have come first
SEEN_S = 0.25  # a loop that was busy reads what came meanwhile in any order
WAIT_S_MIN = 1.0  # a wait at the node that is worth a suspicion
REST = 4.0  # and it was so many times longer than from the other's end to its own first byte
QUEUED_TIMES = 4  # in a row: a long prompt may end by chance when another call does
TRIAL_AFTER_S = 5.0  # the first in line has waited so long
TRIAL_S = 60.0  # for one more slot to show itself
AGAIN_S_MIN = 600.0  # after a trial that showed nothing; twice as long after the next
AGAIN_S_MAX = 21_600.0
RANS_KEPT = 32  # of one copy: more than run at once
RAN_KEPT_S = 600.0
SLOTS_MAX = 16  # learnt; more have to be declared
SHOWN_FOR_S = 60.0  # what was proved so lately at one replica, suspicions of another do not lower


@dataclass(frozen=True, slots=True)
class Ran:
    """A call that a copy answered in full, on the clock of the process. `beside`: leases on the copy when it was sent,
    its own included."""

    sent_s: float
    first_s: float  # first byte of the answer
    ended_s: float
    beside: int


@dataclass(frozen=True, slots=True)
class Learnt:
    """`base` slots are believed, up to `most`. `trial_until_s`: one more is lent until then."""

    base: int
    most: int
    trial_until_s: float = -math.inf
    again_s: float = -math.inf  # no trial before
    fails: int = 0  # trials that showed nothing, in a row
    queued: int = 0  # suspicions in a row
    depth: int = 0  # the fewest calls that were at the node in one of them
    rans: tuple[Ran, ...] = ()
    shown_s: float = -math.inf  # when all of `base` last proved to be there, by calls of this replica
    told_s: float = -math.inf  # and when another one told that it had proved them

    @property
    def is_on_trial(self) -> bool:
        return self.trial_until_s > -math.inf

    @property
    def slots(self) -> int:
        return min(self.most, self.base + self.is_on_trial)


def fresh(declared: int | None) -> Learnt:
    """What is declared is believed at first and never exceeded; where nothing is, one slot."""
    return Learnt(1, SLOTS_MAX) if declared is None else Learnt(declared, declared)


def ran(old: Learnt, call: Ran) -> Learnt:
    """After a call has ended well."""
    kept = tuple(one for one in old.rans if call.ended_s - one.ended_s < RAN_KEPT_S)
    rans = (*kept, call)[-RANS_KEPT:]
    shown = min(old.most, max(_shown(call, rans)))
    new = replace(old, rans=rans)
    if shown > old.base:
        return replace(_raised(new, shown), shown_s=call.ended_s)
    if shown == old.base > 1:
        return replace(new, queued=0, shown_s=call.ended_s)
    if shown >= call.beside > 1:
        return replace(new, queued=0)
    if call.beside < 2 or call.ended_s - old.told_s < SHOWN_FOR_S or not _looks_queued(call, rans):
        return new
    depth = min(old.depth, call.beside) if old.queued else call.beside
    if old.queued + 1 < QUEUED_TIMES:
        return replace(new, queued=old.queued + 1, depth=depth)
    return _lowered(new, depth - 1, call.ended_s)


def shown_elsewhere(old: Learnt, slots: int, now_s: float) -> Learnt:
    """Calls of another replica proved so many: a proof is one, whoever has it."""
    shown = min(old.most, slots)
    if shown < max(old.base, 2):
        return old
    new = _raised(old, shown) if shown > old.base else replace(old, queued=0)
    return replace(new, told_s=now_s)


def queued_elsewhere(old: Learnt, slots: int, now_s: float) -> Learnt:
    """Calls of another replica looked queued, as if there were no more than so many. A proof of late says otherwise."""
    is_proved = now_s - max(old.shown_s, old.told_s) < SHOWN_FOR_S
    return old if is_proved or slots >= old.slots else _lowered(old, slots, now_s)


def decided(old: Learnt, base: int) -> Learnt:
    """As the replica that decides has it; what this one suspected of another number is void."""
    base = max(1, min(base, old.most))
    return (
        old if base == old.base and not old.is_on_trial else replace(old, base=base, trial_until_s=-math.inf, queued=0)
    )


def tried(old: Learnt, wait_s: float, now_s: float) -> Learnt:
    """With one more slot on trial, where a line has waited `wait_s` for this copy and all its slots are taken. Whoever
    gets it was first in line: at the worst it waits inside the node for the slot that it would have had anyway."""
    may_try = old.base < old.most and wait_s >= TRIAL_AFTER_S and now_s >= old.again_s and not old.is_on_trial
    return replace(old, trial_until_s=now_s + TRIAL_S) if may_try else old


def aged(old: Learnt, now_s: float) -> Learnt:
    """A trial that showed nothing is over, and repeated later and later."""
    return _failed(old, now_s) if old.is_on_trial and now_s >= old.trial_until_s else old


def _raised(old: Learnt, base: int) -> Learnt:
    return replace(old, base=base, trial_until_s=-math.inf, again_s=-math.inf, fails=0, queued=0)


def _lowered(old: Learnt, base: int, now_s: float) -> Learnt:
    failed = _failed(old, now_s)
    return replace(failed, base=min(old.base, max(1, base)), queued=0)


def _failed(old: Learnt, now_s: float) -> Learnt:
    pause_s = min(AGAIN_S_MAX, AGAIN_S_MIN * 2 ** min(old.fails, 16))
    return replace(old, trial_until_s=-math.inf, again_s=now_s + pause_s, fails=old.fails + 1)


def _shown(call: Ran, rans: tuple[Ran, ...]) -> Iterator[int]:
    """How many ran at once, as far as this call's end tells: when it was answered, and when those were that came later
    and were answered before its end."""
    yield _at_once(call, rans) if call.beside > 1 else 1
    for one in rans:
        if one.beside > 1 and one is not call and _was_there(call, one):
            yield _at_once(one, rans)


def _at_once(call: Ran, rans: tuple[Ran, ...]) -> int:
    return 1 + sum(_was_there(other, call) for other in rans if other is not call)


def _was_there(other: Ran, call: Ran) -> bool:
    """Sent before it, and still running when it was answered: it had a slot, since the node serves in order."""
    return other.sent_s + ORDER_S <= call.sent_s and other.ended_s >= call.first_s + SEEN_S


def _looks_queued(call: Ran, rans: tuple[Ran, ...]) -> bool:
    """Answered only when another had ended, soon after it, and nobody who came later was answered before."""
    others = [one for one in rans if one is not call]
    ends = [one.ended_s for one in others if one.sent_s < call.sent_s < one.ended_s < call.first_s + SEEN_S]
    if not ends or any(one.sent_s > call.sent_s and one.first_s < call.first_s for one in others):
        return False
    waited_s = max(ends) - call.sent_s
    return waited_s >= WAIT_S_MIN and call.first_s - max(ends) <= waited_s / REST
