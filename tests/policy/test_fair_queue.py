"""One line's order: lanes, teams and kinds; what is asked and what is walked. The store's suite says what it means."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.fair_queue import AGING_GRANTS, AGING_S, DUE, LOOKAHEAD, Choice, FairQueue, Kind, Spot
from router.policy.shares import Front, Shares

HIGH, NORMAL, LOW = 1, 2, 3
PLAIN = Kind("a", frozenset(), 0, names_no_ctx=False)
PICKY = Kind("a", frozenset({"n1"}), 0, names_no_ctx=False)


class Line:
    """A queue with its accounts: tickets are order numbers."""

    def __init__(self) -> None:
        self.shares = Shares()
        self.fronts = [Front() for _ in range(4)]
        self.queue = FairQueue()
        self.spots: dict[int, tuple[Spot, str]] = {}

    def add(self, order: int, team: str, lane: int = NORMAL, kind: Kind = PLAIN) -> None:
        account = self.shares.account(team, 1.0)
        standing = None if lane == DUE else self.shares.enter(self.fronts[lane], account)
        if standing is not None:
            standing.waiting += 1
        self.spots[order] = (Spot(order, kind, lane), team)
        self.queue.add(self.spots[order][0], account, standing, 0.0)

    def remove(self, order: int) -> None:
        spot, team = self.spots.pop(order)
        self.queue.remove(spot, self.shares.accounts[team])
        if spot.lane != DUE:
            self.fronts[spot.lane].standings[team].waiting -= 1

    def first(self, fits: Callable[[Kind], bool] = lambda kind: True, now_s: float = 0.0) -> int | None:
        choice = self.queue.first(fits, now_s)
        return None if choice is None else choice.order


@pytest.fixture
def line() -> Line:
    return Line()


def test_empty_line_has_no_first(line: Line) -> None:
    assert line.first() is None


def test_due_come_before_all_bands_and_bands_in_their_order(line: Line) -> None:
    for order, lane in ((1, LOW), (2, NORMAL), (3, HIGH), (4, DUE)):
        line.add(order, "x", lane)
    served = []
    while (order_first := line.first()) is not None:
        served.append(order_first)
        line.remove(order_first)
    assert served == [4, 3, 2, 1]


def test_oldest_of_those_who_fit_is_first_in_its_team(line: Line) -> None:
    line.add(1, "x", kind=PICKY)
    line.add(2, "x")
    assert line.first(lambda kind: kind is PLAIN) == 2
    assert line.first() == 1


def test_choice_asks_once_for_all_tickets_alike(line: Line) -> None:
    asked: list[Kind] = []
    for order in range(500):
        line.add(order, "x", kind=PICKY)
    line.add(1_000, "x")

    def fits(kind: Kind) -> bool:
        asked.append(kind)
        return kind is PLAIN

    assert line.first(fits) == 1_000
    assert len(asked) == 2


def test_team_that_is_held_back_is_not_offered_and_comes_back_where_it_was(line: Line) -> None:
    line.add(1, "x")
    line.add(2, "y")
    line.shares.accounts["x"].hold(True)
    assert line.first() == 2
    line.shares.accounts["x"].hold(False)
    assert line.first() == 1


def test_aged_lane_goes_before_higher_ones_if_anybody_in_it_fits(line: Line) -> None:
    line.add(1, "x", NORMAL)
    line.add(2, "y", LOW, PICKY)
    for _ in range(AGING_GRANTS):
        line.queue.passed_over(NORMAL)
    assert line.first(now_s=AGING_S) == 2
    assert line.first(lambda kind: kind is PLAIN, AGING_S) == 1
    line.add(3, "z", DUE)
    assert line.first(now_s=AGING_S) == 3


def test_of_two_aged_lanes_the_one_that_waits_longer_is_next(line: Line) -> None:
    for order, lane in ((1, HIGH), (2, NORMAL), (3, LOW)):
        line.add(order, "x", lane)
    for _ in range(AGING_GRANTS):
        line.queue.passed_over(HIGH)
    line.queue.served(NORMAL, 1.0)
    for _ in range(AGING_GRANTS):
        line.queue.passed_over(HIGH)
    assert line.first(now_s=AGING_S + 1.0) == 3


def test_those_who_are_due_age_nobody(line: Line) -> None:
    line.add(1, "x", NORMAL)
    line.add(2, "y", LOW)
    for _ in range(AGING_GRANTS):
        line.queue.passed_over(DUE)
    assert line.first(now_s=AGING_S) == 1


def test_choices_of_two_lines_compare(line: Line) -> None:
    other = Line()
    line.add(2, "x")
    other.add(1, "y")
    first, second = line.queue.first(lambda kind: True, 0.0), other.queue.first(lambda kind: True, 0.0)
    assert first is not None
    assert second is not None
    assert second < first
    assert Choice(0, 0.0, (9.0, 9, "z"), 9, DUE) < second


def test_window_serves_teams_on_paper(line: Line) -> None:
    for order, team in enumerate("xxxyyz", 1):
        line.add(order, team)
    first = line.queue.first(lambda kind: True, 0.0)
    assert first is not None
    costs = {1: 10.0, 2: 10.0, 3: 10.0, 4: 1.0, 5: 20.0, 6: 1.0}
    assert list(line.queue.window(first, lambda kind: True, costs.__getitem__)) == [1, 4, 6, 5, 2, 3]
    assert list(line.queue.window(first, lambda kind: True, lambda order: 1e9)) == [1, 4, 6]


def test_window_is_no_longer_than_the_look_ahead(line: Line) -> None:
    for order in range(40):
        line.add(order, f"team-{order % 20}")
    first = line.queue.first(lambda kind: True, 0.0)
    assert first is not None
    assert list(line.queue.window(first, lambda kind: True, lambda order: 0.0)) == list(range(LOOKAHEAD))


def test_place_of_one_who_is_due_is_among_those_who_are(line: Line) -> None:
    for order, team, lane in ((1, "x", DUE), (2, "y", DUE), (3, "x", DUE), (4, "y", HIGH)):
        line.add(order, team, lane)
    assert line.queue.ahead(line.spots[3][0], line.shares.accounts["x"], 1.0) == 2
    assert line.queue.ahead(line.spots[4][0], line.shares.accounts["y"], 1.0) == 3


def test_team_far_behind_is_before_nobody(line: Line) -> None:
    line.add(1, "x")
    line.add(2, "y")
    line.shares.accounts["x"].charge(100)
    assert line.queue.ahead(line.spots[2][0], line.shares.accounts["y"], 10.0) == 0
    assert line.queue.ahead(line.spots[1][0], line.shares.accounts["x"], 10.0) == 1


def test_ticket_that_may_use_other_copies_stands_where_it_stood(line: Line) -> None:
    line.add(1, "x", kind=PICKY)
    line.add(2, "x")
    assert line.first(lambda kind: kind is PLAIN) == 2
    line.queue.change(line.spots[1][0], PLAIN, line.shares.accounts["x"])
    assert line.first(lambda kind: kind is PLAIN) == 1


def test_removing_who_never_stood_here_is_a_bug(line: Line) -> None:
    line.add(1, "x")
    with pytest.raises(AssertionError, match="never stood here"):
        line.queue.remove(Spot(0, PLAIN, NORMAL), line.shares.accounts["x"])


histories = st.lists(
    st.tuples(st.sampled_from("xyz"), st.sampled_from([DUE, HIGH, NORMAL, LOW]), st.booleans(), st.integers(0, 50)),
    max_size=80,
)


@given(histories)
def test_index_says_what_a_scan_would(steps: list[tuple[str, int, bool, int]]) -> None:
    line = Line()
    for order, (team, lane, leaves, tokens) in enumerate(steps):
        line.add(order, team, lane)
        if leaves:
            line.remove(sorted(line.spots)[tokens % len(line.spots)])
        line.shares.accounts[team].charge(tokens)
        if line.spots:
            tags = {
                each: (spot.lane, 0.0 if spot.lane == DUE else line.fronts[spot.lane].standings[name].tag)
                for each, (spot, name) in line.spots.items()
            }
            heads: dict[tuple[int, str], int] = {}
            for each, (spot, name) in sorted(line.spots.items()):
                heads.setdefault((spot.lane, name), each)
            assert line.first() == min(heads.values(), key=lambda each: (*tags[each], each))
        assert line.queue.depth == len(line.spots) == sum(line.queue.counts.values())
        assert sorted(line.queue.orders()) == sorted(line.spots)
