"""The store's contract: what a team may use, run and have waiting."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import Allowance, Allowances, LoadFailed, RateLimited, TeamQueueFull
from router.fleet.tickets import BEAT_S, Lease, Place, Priority, Waits
from router.policy.limits import TeamLimits, TeamTable
from router.store.answers import Full, Limits, Refused
from router.store.teams import TEAMS_KEPT
from tests.contracts.conftest import MakePool
from tests.contracts.store_driver import Pool, call


def limited(make_pool: MakePool, max_waiting: int = 256, **limits: Any) -> Pool:
    """A pool in which team `x` has limits, one node with plenty of slots."""
    pool = make_pool(teams={"x": TeamLimits(**limits)}, max_waiting=max_waiting)
    pool.wait(BEAT_S)
    return pool


def refusal_of(value: object) -> Any:
    assert isinstance(value, Refused)
    return value.refusal


# requests and tokens


def test_requests_are_refused_exactly_at_the_limit(make_pool: MakePool) -> None:
    pool = limited(make_pool, requests_per_minute=60)
    pool.ready("a", "n1", slots=100)
    answers = [pool.take("a", call(str(i), team="x")) for i in range(61)]
    assert [type(answer) for answer in answers[:60]] == [Lease] * 60
    refusal = refusal_of(answers[60])
    assert isinstance(refusal, RateLimited)
    assert (refusal.status, refusal.code, refusal.retry_after_s) == (429, "rate_limit_exceeded", 1.0)
    assert (refusal.requests.limit, refusal.requests.remaining, refusal.requests.reset_s) == (60, 0, 60.0)
    assert refusal.tokens is None
    assert isinstance(pool.take("a", call("other", team="y")), Lease)
    pool.wait(1, beating="ab")
    assert isinstance(pool.take("a", call("later", team="x")), Lease)


def test_the_answer_to_a_first_take_tells_what_its_team_has_left(make_pool: MakePool) -> None:
    pool = limited(make_pool, requests_per_minute=60, tokens_per_minute=6_000, tokens_per_day=7_000)
    pool.ready("a", "n1", slots=1)
    served = pool.take("a", call("1", team="x", estimate_tokens=1_000))
    waits = pool.take("a", call("2", team="x", estimate_tokens=1_000))
    assert served.left == Allowances(Allowance(60, 59, 1.0), Allowance(6_000, 5_000, 10.0))
    assert waits.left == Allowances(Allowance(60, 58, 2.0), Allowance(6_000, 4_000, 20.0))
    pool.give_back("a", served, tokens=5_500)
    assert pool.got["a"][-1].left is None, "its place has told it"
    refused = refusal_of(pool.take("a", call("3", team="x", estimate_tokens=1_000)))
    assert (refused.requests.remaining, refused.tokens.limit, refused.tokens.remaining) == (58, 7_000, 500)
    assert pool.take("a", call("4", team="y")).left is None, "a team without limits"


def test_tokens_are_booked_by_the_estimate_when_a_call_comes(make_pool: MakePool) -> None:
    pool = limited(make_pool, tokens_per_minute=6_000)
    assert isinstance(pool.take("a", call("1", team="x", estimate_tokens=4_000)), Place)
    refusal = refusal_of(pool.take("a", call("2", team="x", estimate_tokens=4_000)))
    assert (refusal.tokens.limit, refusal.tokens.remaining, refusal.tokens.reset_s) == (6_000, 2_000, 40.0)
    assert refusal.retry_after_s == 20.0
    assert isinstance(pool.take("a", call("3", team="x", estimate_tokens=2_000)), Place)


@pytest.mark.parametrize(("used", "admitted"), [(1_000, True), (4_000, False), (9_000, False)])
def test_true_use_takes_the_place_of_the_estimate(make_pool: MakePool, used: int, admitted: bool) -> None:
    pool = limited(make_pool, tokens_per_minute=6_000)
    pool.ready("a", "n1", slots=9)
    pool.give_back("a", pool.take("a", call("1", team="x", estimate_tokens=4_000)), used)
    answer = pool.take("a", call("2", team="x", estimate_tokens=5_000))
    assert isinstance(answer, Lease) == admitted
    if not admitted:
        assert refusal_of(answer).retry_after_s == (5_000 - (6_000 - used)) / 100


def test_call_larger_than_the_limit_goes_when_nothing_is_used(make_pool: MakePool) -> None:
    pool = limited(make_pool, tokens_per_minute=6_000)
    pool.ready("a", "n1", slots=9)
    assert isinstance(pool.take("a", call("1", team="x", estimate_tokens=50_000)), Lease)
    assert refusal_of(pool.take("a", call("2", team="x", estimate_tokens=100))).retry_after_s == 441.0


def test_the_day_has_a_limit_of_its_own(make_pool: MakePool) -> None:
    pool = limited(make_pool, tokens_per_minute=6_000, tokens_per_day=8_640)
    pool.ready("a", "n1", slots=9)
    assert isinstance(pool.take("a", call("1", team="x", estimate_tokens=6_000)), Lease)
    pool.wait(60, beating="ab")
    refusal = refusal_of(pool.take("a", call("2", team="x", estimate_tokens=3_000)))
    assert (refusal.tokens.limit, refusal.tokens.remaining) == (8_640, 2_646)
    assert refusal.retry_after_s == pytest.approx(3_540.0)


def test_only_what_was_used_is_kept_of_a_call_that_leaves(make_pool: MakePool) -> None:
    pool = limited(make_pool, tokens_per_minute=6_000)
    pool.take("a", call("1", team="x", estimate_tokens=6_000))
    pool.leave("a", "1")
    pool.ready("a", "n1", slots=9)
    pool.take("a", call("2", team="x", estimate_tokens=6_000))
    pool.leave("a", "2", tokens=2_000)
    assert isinstance(pool.take("a", call("3", team="x", estimate_tokens=4_000)), Lease)


def test_refused_call_is_as_if_it_had_not_come(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_waiting=1, requests_per_minute=4, tokens_per_minute=6_000)
    pool.take("b", call("y1", team="y"))
    for i in range(9):
        assert isinstance(pool.take("a", call(f"no{i}", team="x", estimate_tokens=6_000)), Full)
    pool.leave("b", "y1")
    for i in range(9):
        assert isinstance(pool.take("a", call(f"x{i}", team="x", estimate_tokens=6_000)), Place)
        pool.refuse("a", "m", LoadFailed("no"))


def test_call_that_made_room_is_as_if_it_had_not_come(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_waiting=2, requests_per_minute=4, tokens_per_minute=6_000)
    for i in range(2):
        pool.take("a", call(f"x{i}", team="x", estimate_tokens=3_000))
    pool.take("b", call("y1", team="y"))
    pool.read("a")
    assert [news.ticket for news in pool.refused["a"]] == ["x1"]
    pool.leave("b", "y1")
    assert isinstance(pool.take("a", call("x2", team="x", estimate_tokens=3_000)), Place)


def test_next_attempt_is_no_other_request_and_never_refused(make_pool: MakePool) -> None:
    pool = limited(make_pool, requests_per_minute=1, tokens_per_minute=6_000)
    pool.ready("a", "n1", slots=9)
    pool.give_back("a", pool.take("a", call("1", team="x", estimate_tokens=6_000)), 6_000)
    assert isinstance(pool.take("a", call("1", attempt=2, team="x", estimate_tokens=6_000)), Lease)
    assert refusal_of(pool.take("a", call("2", team="x", estimate_tokens=100))).retry_after_s == 61.0


# running calls


def test_calls_above_the_limit_wait_beside_free_slots_and_hold_up_nobody(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_concurrent=2)
    pool.ready("a", "n1", slots=4)
    assert [type(pool.take("a", call(f"x{i}", team="x"))) for i in range(3)] == [Lease, Lease, Place]
    place = pool.take("a", call("x2", team="x"))
    assert place.reason is Waits.FOR_TEAM
    assert isinstance(pool.take("a", call("y1", team="y")), Lease)
    assert pool.leases_on("n1") == 3


def test_team_at_its_limit_is_skipped_in_line(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_concurrent=1)
    pool.ready("a", "n1", slots=2)
    pool.take("a", call("x1", team="x"))
    other = pool.take("a", call("y1", team="y"))
    pool.take("a", call("x2", team="x"))
    assert pool.take("a", call("y2", team="y")).position == 1, "who is held back is before nobody"
    pool.give_back("a", other)
    assert [lease.ticket for lease in pool.got["a"]] == ["y2"]


def test_slot_given_back_serves_the_team_in_every_line_in_which_it_was_held_back(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_concurrent=1)
    pool.ready("a", "n1", slots=1, weights="w", keys="m")
    pool.ready("a", "n2", slots=3, weights="v", keys="k")
    first = pool.take("a", call("x1", "m", team="x"))
    pool.take("a", call("y1", "m", team="y"))
    pool.take("a", call("x2", "k", team="x", num_ctx=8192))
    pool.take("a", call("x3", "k", team="x"))
    pool.give_back("a", first)
    assert [(lease.ticket, lease.node) for lease in pool.got["a"]] == [("y1", "n1"), ("x2", "n2")]
    pool.give_back("a", pool.got["a"][1])
    assert [lease.ticket for lease in pool.got["a"]][2:] == ["x3"]


def test_of_a_team_that_may_run_one_more_its_highest_band_is_next_then_its_oldest(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_concurrent=1)
    pool.ready("a", "n1", slots=2, weights="w", keys="m")
    pool.ready("a", "n2", slots=2, weights="v", keys="k")
    pool.ready("a", "n3", slots=2, weights="u", keys="other")
    lease = pool.take("a", call("x1", "other", team="x"))
    pool.take("a", call("x2", "m", team="x", priority=Priority.LOW))
    pool.take("a", call("x3", "k", team="x"))
    pool.take("a", call("x4", "m", team="x"))
    for _ in range(3):
        pool.give_back("a", lease)
        lease = pool.got["a"][-1]
    assert [lease.ticket for lease in pool.got["a"]] == ["x3", "x4", "x2"]


def test_lease_that_its_replica_brings_back_counts_for_its_team(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_concurrent=1)
    pool.ready("a", "n1", slots=4)
    before = pool.harness.snapshot()
    lease = pool.take("a", call("x1", team="x"))
    pool.harness.fail_over(before)
    pool.hello("a", leases=[lease])
    pool.wait(BEAT_S, beating="ab")
    assert isinstance(pool.take("a", call("x2", team="x")), Place)
    pool.give_back("a", lease)
    assert [lease.ticket for lease in pool.got["a"]] == ["x2"]


# waiting calls


def test_calls_beyond_what_may_wait_are_refused_exactly_at_the_limit(make_pool: MakePool) -> None:
    pool = make_pool(teams={"x": TeamLimits(max_waiting=2)})
    answers = [pool.take("a", call(f"x{i}", team="x")) for i in range(4)]
    assert [type(answer) for answer in answers] == [Place, Place, Refused, Refused]
    first, second = refusal_of(answers[2]), refusal_of(answers[3])
    assert isinstance(first, TeamQueueFull)
    assert (first.status, first.code) == (429, "team_queue_full")
    assert 1.0 <= first.retry_after_s <= 1.2
    assert 1.6 <= second.retry_after_s <= 2.4
    assert isinstance(pool.take("a", call("y1", team="y")), Place)


def test_team_waits_in_all_lines_together(make_pool: MakePool) -> None:
    pool = make_pool(teams={"x": TeamLimits(max_waiting=2)})
    pool.take("a", call("x1", "m", "k", team="x"))
    assert isinstance(pool.take("a", call("x2", "k", team="x")), Place)
    assert isinstance(pool.take("a", call("x3", "other", team="x")), Refused)


def test_free_slot_is_never_refused_for_who_waits(make_pool: MakePool) -> None:
    pool = make_pool(teams={"x": TeamLimits(max_waiting=1)})
    pool.wait(BEAT_S)
    pool.take("a", call("x1", "cold", team="x"))
    pool.ready("a", "n1")
    assert isinstance(pool.take("a", call("x2", team="x")), Lease)


# what a place says, what is forgotten


def test_place_says_what_is_waited_for(pool: Pool) -> None:
    assert pool.take("a", call("1")).reason is Waits.FOR_COPY
    pool.ready("a", "n1")
    assert pool.take("a", call("2")).reason is Waits.FOR_SLOT
    pool.drop_node("a", "n1", 1)
    assert pool.take("a", call("2")).reason is Waits.FOR_COPY


def test_only_so_many_idle_teams_are_kept(pool: Pool) -> None:
    pool.take("a", call("kept", "cold", team="waits"))
    pool.ready("a", "n1", slots=TEAMS_KEPT + 10)
    leases = pool.each("a", "take", [(call(f"t{i}", team=f"team-{i}"),) for i in range(TEAMS_KEPT + 10)])
    pool.each("a", "give_back", [(lease.id,) for lease in leases])
    pool.beat("a")
    assert pool.harness.teams_known() == TEAMS_KEPT
    assert pool.harness.knows_team("waits")
    assert not pool.harness.knows_team("team-0")
    assert isinstance(pool.take("a", call("again", team="team-0")), Lease)


# limits that change


def test_what_was_used_of_the_old_limits_is_used_of_the_new_ones(make_pool: MakePool) -> None:
    pool = limited(make_pool, requests_per_minute=10)
    pool.ready("a", "n1", slots=100)
    for i in range(8):
        assert isinstance(pool.take("a", call(str(i), team="x")), Lease)
    pool.set_limits("a", Limits(teams=TeamTable({"x": TeamLimits(requests_per_minute=9)})))
    assert isinstance(pool.take("a", call("9th", team="x")), Lease)
    assert isinstance(refusal_of(pool.take("a", call("10th", team="x"))), RateLimited)
    pool.set_limits("a", Limits(teams=TeamTable({"x": TeamLimits()})))
    assert isinstance(pool.take("a", call("11th", team="x")), Lease)


def test_a_team_that_may_run_more_does_at_once(make_pool: MakePool) -> None:
    pool = limited(make_pool, max_concurrent=1)
    pool.ready("a", "n1", slots=9)
    assert isinstance(pool.take("a", call("1", team="x")), Lease)
    assert isinstance(pool.take("a", call("2", team="x")), Place)
    pool.set_limits("a", Limits(teams=TeamTable({"x": TeamLimits(max_concurrent=2)})))
    assert [lease.ticket for lease in pool.answer.grants] == ["2"]
    pool.set_limits("a", Limits(teams=TeamTable({"x": TeamLimits(max_concurrent=1)})))
    assert isinstance(pool.take("a", call("3", team="x")), Place), "two run, and one may"


def test_a_line_that_has_become_shorter_keeps_those_who_stand_in_it(pool: Pool) -> None:
    for i in range(3):
        pool.take("a", call(str(i)))
    pool.set_limits("a", Limits(max_waiting=1))
    assert pool.lines("a")["m"].depth == 3
    assert isinstance(pool.take("a", call("new")), Full)


def test_a_weight_that_changes_counts_for_who_has_too_much_of_a_full_line(make_pool: MakePool) -> None:
    pool = make_pool(teams={"x": TeamLimits(weight=9.0)}, max_waiting=4)
    pool.wait(BEAT_S)
    for number in range(3):
        pool.take("a", call(f"x{number}", team="x"))
    pool.take("a", call("y0", team="y"))
    pool.set_limits("a", Limits(4, teams=TeamTable({"x": TeamLimits(weight=1.0)})))
    assert isinstance(pool.take("a", call("z0", team="z")), Place)
    assert [refused.ticket for refused in pool.answer.refusals] == ["x2"], "the newest of three over one"
    pool.leave("a", "x0")
    pool.leave("a", "x1")
    assert pool.lines("a")["m"].depth == 2
