"""Breakers open on failures in a row or by share, and close on a success."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.breaker import (
    IN_A_ROW,
    OPEN_S_MAX,
    OPEN_S_MIN,
    SAMPLES,
    WINDOW_S,
    Breaker,
    Circuit,
    Event,
    step,
)

OK, BAD, TIME = Event.SUCCEEDED, Event.FAILED, Event.TIME_PASSED


def after(*history: tuple[float, Event]) -> Breaker:
    breaker = Breaker()
    for now_s, event in history:
        breaker = step(breaker, event, now_s)
    return breaker


def tripped(at_s: float = 0.0) -> Breaker:
    return after(*[(at_s, BAD)] * IN_A_ROW)


def test_failures_in_a_row_open_it() -> None:
    assert after((0, BAD), (1, BAD)).circuit is Circuit.CLOSED
    assert after((0, BAD), (1, BAD), (2, OK), (3, BAD)).circuit is Circuit.CLOSED
    assert after((0, BAD), (1, BAD), (2, BAD)).circuit is Circuit.OPEN


def test_a_copy_that_fails_every_other_call_is_opened() -> None:
    assert after(*[(float(n), BAD if n % 2 else OK) for n in range(SAMPLES)]).circuit is Circuit.OPEN


def test_old_failures_are_forgotten() -> None:
    assert after((0, BAD), (1, BAD), (WINDOW_S + 2, BAD)).circuit is Circuit.CLOSED


def test_open_becomes_half_open_with_time_and_a_success_closes_it() -> None:
    breaker = tripped()
    assert step(breaker, TIME, OPEN_S_MIN / 2).circuit is Circuit.OPEN
    half = step(breaker, TIME, OPEN_S_MIN)
    assert half.circuit is Circuit.HALF_OPEN
    assert step(half, OK, 3).circuit is Circuit.CLOSED
    assert step(half, BAD, 3).circuit is Circuit.OPEN


def test_calls_that_began_before_do_not_move_an_open_breaker() -> None:
    breaker = tripped()
    assert step(step(breaker, BAD, 0.5), OK, 0.6) == breaker


def test_each_failed_trial_doubles_the_time_up_to_a_minute() -> None:
    breaker, opened = tripped(), []
    now_s = 0.0
    for _ in range(8):
        opened.append(breaker.until_s - now_s)
        now_s = breaker.until_s
        breaker = step(breaker, BAD, now_s)
    assert opened == [2, 4, 8, 16, 32, OPEN_S_MAX, OPEN_S_MAX, OPEN_S_MAX]


def test_a_long_good_time_makes_the_next_opening_short() -> None:
    breaker = step(step(tripped(), BAD, 2), OK, 10)
    soon = breaker
    for _ in range(IN_A_ROW):
        soon, breaker = step(soon, BAD, 20), step(breaker, BAD, 1000)
    assert soon.until_s - 20 == 8
    assert breaker.until_s - 1000 == OPEN_S_MIN


@given(st.lists(st.tuples(st.floats(0, 30), st.sampled_from(list(Event))), max_size=60))
def test_every_history_stays_within_its_bounds(history: list[tuple[float, Event]]) -> None:
    breaker, now_s, seen = Breaker(), 0.0, []
    for pause_s, event in history:
        now_s += pause_s
        seen.append(breaker.circuit)
        breaker = step(breaker, event, now_s)
        assert len(breaker.recent) <= SAMPLES
        assert breaker.until_s <= now_s + OPEN_S_MAX
    seen.append(breaker.circuit)
    assert (Circuit.CLOSED, Circuit.HALF_OPEN) not in set(pairwise(seen))


@pytest.mark.parametrize("fail_rate", [1.0, 0.7])
def test_a_node_that_fails_fast_gets_a_few_per_cent_of_the_traffic(fail_rate: float) -> None:
    """Ten calls a second for ten minutes to two nodes; the broken one is always free, so it is first when it may."""
    rng, breaker, to_broken = random.Random(5), Breaker(), 0
    for n in range(6000):
        now_s = n / 10
        breaker = step(breaker, TIME, now_s)
        if breaker.circuit is not Circuit.OPEN:
            to_broken += 1
            breaker = step(breaker, BAD if rng.random() < fail_rate else OK, now_s)
    assert to_broken / 6000 < 0.03
