"""How long a call may take: the operator's limits, the client's own, and what a refusal names."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import QueueTimeout, UpstreamTimeout
from router.fleet.tickets import Place
from router.policy.advice import RETRY_AFTER_S_MAX, RETRY_AFTER_S_MIN, come_back_s
from router.policy.deadlines import Deadlines, at_node, first_byte, in_line
from router.wire.headers import client_timeout_s

LIMITS = Deadlines(first_byte_s=590, plain_s=3600, idle_s=300, max_wait_s=300, max_wait_of={"slow": 60, "big": 900})
ARRIVED_S = 1000.0


@pytest.mark.parametrize(
    ("client_s", "due_s", "whose"),
    [
        (None, 590, "timeouts.first_byte_s"),
        (600, 590, "timeouts.first_byte_s"),
        (100, 99, "client"),
        (2, 1.9, "client"),
        (0.1, 0.095, "client"),
    ],
)
def test_a_first_byte_is_due_at_the_earlier_of_two_limits_and_a_little_before_the_clients(
    client_s: float | None, due_s: float, whose: str
) -> None:
    due = first_byte(LIMITS, ARRIVED_S, client_s)
    assert due.at_s == pytest.approx(ARRIVED_S + due_s)
    assert whose in str(due)


def test_a_plain_call_has_longer_at_the_node_but_not_longer_than_its_client() -> None:
    def due_s(client_s: float | None, *, streams: bool) -> float:
        return at_node(LIMITS, ARRIVED_S, client_s, ARRIVED_S + 50, streams=streams).at_s - ARRIVED_S

    assert due_s(None, streams=True) == 590
    assert due_s(None, streams=False) == 3650
    assert due_s(1200, streams=False) == 1199
    assert due_s(7200, streams=False) == 3650


@pytest.mark.parametrize(
    ("model", "queued_s", "client_s", "until_s", "is_lines"),
    [
        ("any", 0, None, 310, True),
        ("any", 100, None, 210, True),
        ("slow", 0, None, 70, True),
        ("big", 0, None, 590, False),
        ("any", 0, 20, 19, False),
    ],
)
def test_a_line_is_left_at_its_own_limit_or_when_the_first_byte_is_due(
    model: str, queued_s: float, client_s: float | None, until_s: float, is_lines: bool
) -> None:
    term = in_line(LIMITS, model, ARRIVED_S, client_s, queued_s, ARRIVED_S + 10)
    assert term.until_s == ARRIVED_S + until_s
    refusal = term.refusal("asked", None, Random(0))
    assert isinstance(refusal, QueueTimeout if is_lines else UpstreamTimeout)
    assert "'asked'" in refusal.text


@given(st.integers(1, 300), st.floats(0.01, 100), st.integers(0, 1000))
def test_who_has_waited_too_long_is_told_when_all_who_wait_now_will_be_served(
    depth: int, per_s: float, seed: int
) -> None:
    place = Place("m", 1, depth, 1 / per_s)
    refusal = in_line(LIMITS, "m", 0.0, None, 0.0, 0.0).refusal("m", place, Random(seed))
    assert refusal.retry_after_s is not None
    honest_s = min(RETRY_AFTER_S_MAX, max(RETRY_AFTER_S_MIN, depth / per_s))
    assert 0.6 * honest_s <= refusal.retry_after_s <= 1.25 * honest_s


@given(st.integers(1, 10_000), st.none() | st.floats(0.001, 1000), st.integers(0, 1000))
def test_advice_keeps_its_bounds(grants: int, per_s: float | None, seed: int) -> None:
    assert RETRY_AFTER_S_MIN <= come_back_s(grants, per_s, Random(seed)) <= RETRY_AFTER_S_MAX + 1e-9


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        (("30",), 30),
        (("0.5", "600", ""), 0.5),
        (("600.0", "", "600"), 600),
        (("86400",), 86400),
        (("86401",), None),
        (("None", "0", "-3"), None),
        (("nan", "inf", "1e3"), None),
        (("5 s", " 5", "0x5"), None),
        ((), None),
    ],
)
def test_the_shortest_sane_time_that_a_client_gives_counts(values: tuple[str, ...], seconds: float | None) -> None:
    assert client_timeout_s(*values) == seconds
