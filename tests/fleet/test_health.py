"""A node's health is a table, and every state of it is reached."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.health import (
    BACK_AFTER,
    DOWN_AFTER,
    PROBE_INTERVAL_S_MAX,
    TRANSITIONS,
    Event,
    Vitals,
    next_probe_in_s,
    stand,
    step,
)
from router.fleet.node import Health, Presence

REACH = [health for health in Health if health is not Health.DRAINING]
MOVES = [event for event in Event if event not in (Event.DRAINED, Event.RESUMED)]


def after(*events: Event) -> Vitals:
    vitals = Vitals()
    for event in events:
        vitals = step(vitals, event)
    return vitals


def test_the_table_answers_every_event_in_every_state() -> None:
    assert set(TRANSITIONS) == {(health, event) for health in REACH for event in MOVES}


def test_the_table_reaches_every_state() -> None:
    seen, edge = {Vitals()}, [Vitals()]
    while edge:
        vitals = edge.pop()
        for event in Event:
            reached = step(vitals, event)
            if (
                reached not in seen
                and reached.fails <= DOWN_AFTER
                and reached.oks <= BACK_AFTER
                and reached.returns < 2
            ):
                seen.add(reached)
                edge.append(reached)
    assert {vitals.health for vitals in seen} == set(Health)


def test_the_first_answer_makes_a_node_healthy() -> None:
    assert Vitals().health is Health.UNREAD
    assert after(Event.PROBE_OK).health is Health.HEALTHY


def test_traffic_that_is_refused_takes_a_node_down_at_once() -> None:
    assert after(Event.PROBE_OK, Event.CONNECT_REFUSED).health is Health.DOWN


def test_failed_probes_degrade_and_the_third_takes_it_down() -> None:
    vitals = after(Event.PROBE_OK)
    seen = []
    for _ in range(DOWN_AFTER):
        vitals = step(vitals, Event.PROBE_FAILED)
        seen.append(vitals.health)
    assert seen == [Health.DEGRADED, Health.DEGRADED, Health.DOWN]


def test_a_busy_node_that_answers_traffic_is_not_taken_down_by_slow_probes() -> None:
    vitals = after(Event.PROBE_OK)
    for _ in range(20):
        vitals = step(step(vitals, Event.PROBE_FAILED), Event.ANSWERED)
    assert vitals.health is Health.HEALTHY


def test_two_good_probes_in_a_row_bring_a_node_back_as_a_new_incarnation() -> None:
    down = after(Event.PROBE_OK, Event.CONNECT_REFUSED)
    wavering = step(step(step(down, Event.PROBE_OK), Event.PROBE_FAILED), Event.PROBE_OK)
    assert wavering.health is Health.DOWN
    back = step(wavering, Event.PROBE_OK)
    assert (back.health, back.returns) == (Health.HEALTHY, down.returns + 1)


def test_an_old_stream_does_not_bring_a_node_back() -> None:
    assert after(Event.CONNECT_REFUSED, *[Event.ANSWERED] * 5).health is Health.DOWN


def test_a_drain_outlives_an_outage() -> None:
    drained = after(Event.PROBE_OK, Event.DRAINED)
    assert drained.health is Health.DRAINING
    down = step(drained, Event.CONNECT_REFUSED)
    assert down.health is Health.DOWN
    back = step(step(down, Event.PROBE_OK), Event.PROBE_OK)
    assert back.health is Health.DRAINING
    assert step(back, Event.RESUMED).health is Health.HEALTHY


@given(st.lists(st.sampled_from(list(Event)), max_size=40))
def test_a_node_is_down_only_for_a_reason_and_comes_back_only_by_probes(events: list[Event]) -> None:
    vitals, before = Vitals(), Vitals()
    for event in events:
        before, vitals = vitals, step(vitals, event)
        if vitals.reach is Health.DOWN and before.reach is not Health.DOWN:
            assert event is Event.CONNECT_REFUSED or vitals.fails >= DOWN_AFTER
        came_back = before.reach is Health.DOWN and vitals.reach is not Health.DOWN
        assert not came_back or (event is Event.PROBE_OK and vitals.oks >= BACK_AFTER)
        assert vitals.returns == before.returns + came_back


@given(st.sampled_from(list(Health)), st.integers(0, 10**6), st.floats(0.1, 60), st.integers())
def test_probes_neither_hurry_nor_stop(health: Health, fails: int, interval_s: float, seed: int) -> None:
    wait_s = next_probe_in_s(health, fails, interval_s, random.Random(seed))
    assert 0.9 * interval_s <= wait_s <= max(PROBE_INTERVAL_S_MAX, interval_s)


@pytest.mark.parametrize(("fails", "usual_s"), [(3, 2), (15, 2), (16, 4), (21, 8), (60, 30), (10**9, 30)])
def test_probes_slow_down_for_a_node_long_down(fails: int, usual_s: float) -> None:
    assert next_probe_in_s(Health.DOWN, fails, 2.0, random.Random(1)) == pytest.approx(usual_s, rel=0.1)
    assert next_probe_in_s(Health.HEALTHY, fails, 2.0, random.Random(1)) == pytest.approx(2, rel=0.1)


def test_a_node_that_leaves_drains_whatever_an_operator_says() -> None:
    vitals = stand(after(Event.PROBE_OK), Presence.LEAVING)
    assert (vitals.health, vitals.drains) == (Health.DRAINING, True)
    assert step(vitals, Event.RESUMED).health is Health.DRAINING
    assert stand(vitals, Presence.READY).health is Health.HEALTHY
    assert stand(step(vitals, Event.DRAINED), Presence.READY).health is Health.DRAINING, "the operator's word stands"


def test_a_node_that_is_not_ready_is_down_whatever_it_answers() -> None:
    vitals = stand(after(Event.PROBE_OK), Presence.NOT_READY)
    assert step(vitals, Event.PROBE_OK).health is Health.DOWN
    assert stand(Vitals(), Presence.NOT_READY).health is Health.UNREAD


def test_ready_again_is_another_start() -> None:
    vitals = stand(after(Event.PROBE_OK), Presence.NOT_READY)
    assert stand(vitals, Presence.READY).returns == vitals.returns + 1
    assert stand(vitals, Presence.NOT_READY).returns == vitals.returns
    assert stand(stand(Vitals(), Presence.NOT_READY), Presence.READY).returns == 0, "it never served"
