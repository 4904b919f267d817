"""Team limits: buckets that fill with time, estimates that the true use replaces."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Allowance, Allowances
from router.policy.limits import Budget, TeamLimits, TeamTable


def test_team_without_a_name_in_the_table_has_the_default_limits() -> None:
    table = TeamTable({"x": TeamLimits(weight=2.0)}, TeamLimits(max_waiting=5))
    assert (table.of("x").weight, table.of("y").max_waiting) == (2.0, 5)


def test_limit_of_nothing_is_no_limit() -> None:
    with pytest.raises(AssertionError):
        Budget(TeamLimits(tokens_per_minute=0), 0.0)


def test_budget_without_limits_admits_everything() -> None:
    budget = Budget(TeamLimits(), 0.0)
    assert budget.is_unlimited
    assert budget.is_untouched(0.0)
    assert all(budget.admit(10**9, 0.0) is None for _ in range(3))


def test_refusal_books_nothing() -> None:
    budget = Budget(TeamLimits(requests_per_minute=60, tokens_per_minute=600), 0.0)
    assert budget.admit(500, 0.0) is None
    for _ in range(5):
        refusal = budget.admit(500, 0.0)
        assert refusal is not None
        assert refusal.requests is not None
        assert refusal.tokens is not None
        assert (refusal.requests.remaining, refusal.tokens.remaining) == (59, 100)
        assert refusal.text == "this team has reached its limit of tokens; try again in 40 s"
    assert budget.admit(100, 0.0) is None


def test_what_is_told_of_tokens_is_the_limit_that_would_refuse_first() -> None:
    budget = Budget(TeamLimits(tokens_per_minute=600, tokens_per_day=1_000), 0.0)
    assert budget.admit(100, 0.0) is None
    assert budget.left(100) == Allowances(None, Allowance(600, 500, 10.0))
    budget.book(850)  # 350 below nothing in the minute, 50 left of the day: which takes far longer to be 100
    told = budget.left(100).tokens
    refusal = budget.admit(100, 0.0)
    assert refusal is not None
    assert told == refusal.tokens
    assert told is not None
    assert (told.limit, told.remaining) == (1_000, 50)


def test_refusal_names_what_is_waited_for_longest() -> None:
    budget = Budget(TeamLimits(requests_per_minute=1, tokens_per_minute=6_000), 0.0)
    assert budget.admit(6_000, 0.0) is None
    refusal = budget.admit(100, 0.0)
    assert refusal is not None
    assert (refusal.retry_after_s, "limit of requests" in refusal.text) == (60.0, True)


def test_use_beyond_the_estimate_is_waited_for() -> None:
    budget = Budget(TeamLimits(tokens_per_minute=600), 0.0)
    assert budget.admit(100, 0.0) is None
    budget.book(1_100)
    refusal = budget.admit(1, 0.0)
    assert refusal is not None
    assert refusal.retry_after_s == pytest.approx(60.1)
    assert refusal.tokens is not None
    assert (refusal.tokens.remaining, refusal.tokens.reset_s) == (0, 120.0)


def test_cancelled_call_leaves_no_trace() -> None:
    budget = Budget(TeamLimits(requests_per_minute=1, tokens_per_minute=600), 0.0)
    assert budget.admit(600, 0.0) is None
    assert not budget.is_untouched(0.0)
    budget.cancel(600)
    assert budget.is_untouched(0.0)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 500)), max_size=60), st.integers(1, 400))
def test_no_window_of_time_admits_more_than_a_full_bucket_and_what_flowed_in(
    calls: list[tuple[float, int]], limit: int
) -> None:
    budget = Budget(TeamLimits(tokens_per_minute=limit), 0.0)
    admitted, now_s = 0, 0.0
    for pause_s, tokens in calls:
        now_s += pause_s
        wanted = min(tokens, limit)
        if budget.admit(wanted, now_s) is None:
            admitted += wanted
    assert admitted <= limit * (1 + now_s / 60) + 1e-6


@given(st.integers(1, 1_000), st.lists(st.integers(1, 300), max_size=30))
def test_whoever_waits_as_long_as_told_is_admitted(limit: int, calls: list[int]) -> None:
    budget, now_s = Budget(TeamLimits(requests_per_minute=7, tokens_per_minute=limit), 0.0), 0.0
    for tokens in calls:
        refusal = budget.admit(tokens, now_s)
        if refusal is not None:
            assert refusal.retry_after_s is not None
            now_s += refusal.retry_after_s + 1e-6
            assert budget.admit(tokens, now_s) is None
