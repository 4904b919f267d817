"""A circuit breaker as a value: one per copy, and one per node for connects. Who it blames is `policy.retry`'s table.

An open breaker lets nothing through until `until_s`; then half-open, which is one lease at a time in the store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

IN_A_ROW = 3  # failures: a copy that fails fast would otherwise draw the traffic of all that are busy
SAMPLES = 10  # outcomes remembered
FAILED_SHARE = 0.5  # of the last SAMPLES
WINDOW_S = 60.0  # older outcomes say nothing about now
OPEN_S_MIN = 2.0  # a runner restarts within seconds
OPEN_S_MAX = 60.0  # a copy that was repaired is tried within a minute
FORGIVEN_S = 120.0  # closed for so long, the next opening is short again


class Circuit(StrEnum):
    """Label of `circuit_state`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Event(StrEnum):
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIME_PASSED = "time_passed"


@dataclass(frozen=True, slots=True)
class Breaker:
    """`recent` are (when, whether it failed), oldest first, at most SAMPLES. `trips` sets how long it opens."""

    circuit: Circuit = Circuit.CLOSED
    recent: tuple[tuple[float, bool], ...] = ()
    trips: int = 0  # openings since it was last closed for FORGIVEN_S
    until_s: float = 0.0  # while open: when it becomes half-open
    closed_at_s: float = 0.0


def step(breaker: Breaker, event: Event, now_s: float) -> Breaker:
    """What ends while open is not counted: those calls began before. In half-open the first outcome decides."""
    if breaker.circuit is Circuit.OPEN and now_s >= breaker.until_s:
        breaker = replace(breaker, circuit=Circuit.HALF_OPEN)
    if event is Event.TIME_PASSED or breaker.circuit is Circuit.OPEN:
        return breaker
    has_failed = event is Event.FAILED
    if breaker.circuit is Circuit.HALF_OPEN:
        return _opened(breaker, now_s) if has_failed else _closed(breaker, now_s)
    fresh = tuple(outcome for outcome in breaker.recent if outcome[0] > now_s - WINDOW_S)
    breaker = replace(breaker, recent=(*fresh, (now_s, has_failed))[-SAMPLES:])
    return _opened(breaker, now_s) if has_failed and _is_tripped(breaker.recent) else breaker


def _is_tripped(recent: tuple[tuple[float, bool], ...]) -> bool:
    if len(recent) >= IN_A_ROW and all(failed for _, failed in recent[-IN_A_ROW:]):
        return True
    return len(recent) == SAMPLES and sum(failed for _, failed in recent) >= FAILED_SHARE * SAMPLES


def _opened(breaker: Breaker, now_s: float) -> Breaker:
    is_forgiven = breaker.circuit is Circuit.CLOSED and now_s - breaker.closed_at_s >= FORGIVEN_S
    trips = 1 if is_forgiven else min(breaker.trips + 1, 32)  # beyond every doubling that matters
    open_s = min(OPEN_S_MIN * 2 ** (trips - 1), OPEN_S_MAX)
    return replace(breaker, circuit=Circuit.OPEN, recent=(), trips=trips, until_s=now_s + open_s)


def _closed(breaker: Breaker, now_s: float) -> Breaker:
    return Breaker(trips=breaker.trips, closed_at_s=now_s)
