"""Accounts and fronts: what a team used moves its tags, and how far behind or ahead it may be when it comes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from router.policy.shares import DEBT_MAX_TOKENS, Front, Shares

teams = st.sampled_from(["x", "y", "z"])


def test_newcomer_starts_at_the_front() -> None:
    shares, front = Shares(), Front()
    front.serve(5_000.0)
    assert shares.enter(front, shares.account("x", 1.0)).tag == 5_000.0


def test_newcomer_who_used_other_lines_starts_behind_by_that() -> None:
    shares, front = Shares(), Front()
    account = shares.account("x", 2.0)
    shares.serve(account, 3_000)
    assert shares.enter(front, account).tag == 1_500.0


def test_charge_moves_the_tag_before_every_front() -> None:
    shares = Shares()
    account = shares.account("x", 1.0)
    standings = [shares.enter(shares.front(key, 0), account) for key in ("m", "k")]
    account.charge(70)
    assert [standing.tag for standing in standings] == [70.0, 70.0]


def test_team_that_stands_there_keeps_its_tag_when_the_front_moves_on() -> None:
    shares, front = Shares(), Front()
    standing = shares.enter(front, shares.account("x", 1.0))
    standing.waiting = 1
    front.serve(900.0)
    assert shares.enter(front, standing.account).tag == 0.0
    standing.waiting = 0
    assert shares.enter(front, standing.account).tag == 900.0


def test_joined_names_have_one_front_and_keep_everybodys_distance_to_it() -> None:
    shares = Shares()
    slow, fast = shares.front("m", 1), shares.front("k", 1)
    behind = shares.enter(slow, shares.account("x", 1.0))
    behind.account.charge(10)
    fast.serve(4_000.0)
    ahead = shares.enter(fast, shares.account("y", 1.0))
    shares.join(("k", "m", "new"))
    behind = shares.front("m", 1).standings["x"]
    assert shares.front("m", 1) is shares.front("k", 1) is shares.front("new", 1)
    assert (behind.tag, ahead.tag) == (4_010.0, 4_000.0)
    shares.join(("m", "k"))
    assert (behind.tag, ahead.tag) == (4_010.0, 4_000.0)


def test_team_before_both_of_joined_fronts_keeps_the_larger_debt() -> None:
    shares = Shares()
    account = shares.account("x", 1.0)
    first = shares.enter(shares.front("m", 0), account)
    account.charge(10)
    second = shares.enter(shares.front("k", 0), account)
    second.offset += 500.0
    shares.join(("m", "k"))
    assert shares.enter(shares.front("k", 0), account) is first
    assert first.tag == 510.0


def test_what_nobody_needs_is_forgotten() -> None:
    shares = Shares()
    kept, gone = shares.front("m", 0), shares.front("k", 0)
    shares.enter(kept, shares.account("x", 1.0))
    shares.forget(["m"], ["x"])
    assert shares.front("m", 0) is kept
    assert shares.front("k", 0) is not gone
    assert (kept.standings, shares.accounts) == ({}, {})


def test_account_says_what_an_operator_wants_to_know() -> None:
    account = Shares().account("x", 2.0)
    account.used = 1_234.0
    assert repr(account) == "<Account x 1234 used | weight 2 | 0 queues>"


@given(st.lists(st.tuples(teams, st.integers(-100_000, 100_000), st.booleans()), max_size=60))
def test_who_comes_is_never_before_the_front_nor_far_behind_it(steps: list[tuple[str, int, bool]]) -> None:
    shares, front = Shares(), Front()
    for name, tokens, is_served in steps:
        account = shares.account(name, 1.0)
        tag = shares.enter(front, account).tag
        assert front.time <= tag + 1e-6
        assert tag <= front.time + DEBT_MAX_TOKENS + 1e-6
        if is_served:
            front.serve(tag)
            shares.serve(account, abs(tokens))
        else:
            account.charge(tokens)
