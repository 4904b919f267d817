"""The store's contract: in which order those who wait are served, and who has to go when a line is full."""

from __future__ import annotations

from random import Random

import pytest

from router.errors import QueueFull
from router.fleet.tickets import Lease, Place, Priority, Ticket
from router.policy.fair_queue import AGING_GRANTS, AGING_S, LOOKAHEAD, LOOKAHEAD_TOKENS
from router.policy.limits import TeamLimits, TeamTable
from router.policy.shares import DEBT_MAX_TOKENS
from router.store.answers import Full, Gone, Limits
from router.store.book import Book
from tests.contracts.conftest import MakePool
from tests.contracts.store_driver import Pool, call


def wait_in_line(pool: Pool, tickets: str, *targets: str, cost: int = 1000, **more: object) -> None:
    """Names separated by spaces; the team is the first letter."""
    for name in tickets.split():
        ticket = call(name, *targets, team=name[0], estimate_tokens=cost, **more)
        assert isinstance(pool.take("a", ticket), Place)


def serve(pool: Pool, lease: Lease, calls: int, *, tokens: int = 1000) -> str:
    """Who gets this slot, one after the other. The last keeps it."""
    order = []
    for _ in range(calls):
        told = len(pool.got["a"])
        pool.give_back("a", lease, tokens)
        (lease,) = pool.got["a"][told:]
        pool.ack("a", lease.id)
        order.append(lease.ticket)
    return " ".join(order)


def occupied(pool: Pool, node: str = "n1", *, weights: str = "w", keys: str = "m", team: str = "o") -> Lease:
    """The only slot of a copy, taken by somebody else."""
    pool.ready("a", node, weights=weights, keys=keys)
    lease = pool.take("a", call(f"{team}-{node}-{weights}", keys.split(maxsplit=1)[0], team=team, estimate_tokens=1000))
    assert isinstance(lease, Lease)
    return lease


# shares


def test_teams_take_turns_however_many_calls_each_has_waiting(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 x3 x4 x5 x6 y1 y2 z1")
    assert serve(pool, lease, 9) == "x1 y1 z1 x2 y2 x3 x4 x5 x6"


def test_one_team_is_served_first_come_first_served(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 x3 x4")
    assert serve(pool, lease, 4) == "x1 x2 x3 x4"


def test_turns_follow_tokens_and_not_calls(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 x3", cost=4000)
    wait_in_line(pool, "y1 y2 y3 y4 y5 y6", cost=1000)
    order = []
    for _ in range(8):
        cost = 4000 if lease.team == "x" else 1000
        order.append(serve(pool, lease, 1, tokens=cost))
        lease = pool.got["a"][-1]
    assert order == ["x1", "y1", "y2", "y3", "y4", "x2", "y5", "y6"]


def test_weights_divide_what_a_turn_costs(make_pool: MakePool) -> None:
    pool = make_pool(teams={"x": TeamLimits(weight=2.0)})
    pool.wait(1)
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 x3 x4 x5 y1 y2 y3")
    assert serve(pool, lease, 8) == "x1 y1 x2 x3 y2 x4 x5 y3"


def test_true_use_moves_the_team_when_it_is_known(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 y1 y2 y3 y4 y5")
    assert serve(pool, lease, 1) == "x1"
    assert serve(pool, pool.got["a"][-1], 1, tokens=4000) == "y1"
    assert serve(pool, pool.got["a"][-1], 4) == "y2 y3 y4 x2"


def test_estimate_that_was_too_high_is_given_back(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 x3", cost=4000)
    wait_in_line(pool, "y1 y2")
    assert serve(pool, lease, 1) == "x1"
    assert serve(pool, pool.got["a"][-1], 1, tokens=10) == "y1"
    assert serve(pool, pool.got["a"][-1], 1) == "x2"


def test_call_that_leaves_is_charged_what_it_used(pool: Pool) -> None:
    occupied(pool)
    wait_in_line(pool, "x1 x2 y1 y2 y3 y4")
    pool.leave("a", "o-n1-w")
    pool.leave("a", "x1", tokens=3000)
    assert [lease.ticket for lease in pool.got["a"]] == ["x1", "y1"]
    assert serve(pool, pool.got["a"][-1], 3) == "y2 y3 x2"


def test_call_that_only_waited_is_charged_nothing(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 x3 y1 y2")
    pool.leave("a", "x1")
    pool.leave("a", "x2")
    assert serve(pool, lease, 2) == "x3 y1"


def test_time_without_a_call_earns_nothing(pool: Pool) -> None:
    lease = occupied(pool, team="x")
    wait_in_line(pool, " ".join(f"x{i}" for i in range(30)))
    serve(pool, lease, 20)
    wait_in_line(pool, "y1 y2 y3")
    assert serve(pool, pool.got["a"][-1], 4) == "x20 y1 x21 y2"


def test_slots_that_no_other_team_waits_for_are_free(pool: Pool) -> None:
    """Whoever uses what would stand idle takes nothing from anybody: a night alone costs nothing in the morning."""
    lease = occupied(pool, team="x")
    wait_in_line(pool, "x1 x2", cost=1_000_000)
    serve(pool, lease, 1, tokens=1_000_000)
    wait_in_line(pool, "y1 y2")
    assert serve(pool, pool.got["a"][-1], 3, tokens=1_000_000) == "x2 y1 y2"


def test_what_one_call_cost_puts_a_team_back_by_no_more_than_the_largest_debt(pool: Pool) -> None:
    lease = occupied(pool, team="x")
    wait_in_line(pool, "x1", cost=1_000_000)
    wait_in_line(pool, " ".join(f"y{i}" for i in range(60)))
    assert serve(pool, lease, 1) == "x1"
    wait_in_line(pool, "x2")
    calls = int(DEBT_MAX_TOKENS / 1000) + 2
    assert "x2" in serve(pool, pool.got["a"][-1], calls, tokens=1000)


def test_who_leaves_the_line_for_a_moment_keeps_its_debt(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 y1 y2 y3 y4", cost=1000)
    assert serve(pool, lease, 1) == "x1"
    assert serve(pool, pool.got["a"][-1], 1, tokens=3000) == "y1"
    wait_in_line(pool, "x2")
    assert serve(pool, pool.got["a"][-1], 4) == "y2 y3 y4 x2"


# lines and names


def test_team_pays_in_one_line_for_what_it_used_in_another(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 y1 y2 y3 y4")
    elsewhere = occupied(pool, "n2", weights="v", keys="other")
    wait_in_line(pool, "x9 z1 z2", "other", cost=100)
    assert serve(pool, lease, 2) == "x1 y1"
    again = pool.got["a"][-1]
    assert serve(pool, elsewhere, 3, tokens=2000) == "z1 x9 z2"
    assert serve(pool, again, 4) == "y2 y3 x2 y4"


def test_team_new_to_a_line_stands_behind_by_what_it_used_elsewhere(pool: Pool) -> None:
    elsewhere = occupied(pool, "n2", weights="v", keys="other")
    wait_in_line(pool, "x9 z1 z2", "other", cost=100)
    assert serve(pool, elsewhere, 2, tokens=3000) == "x9 z1"
    lease = occupied(pool)
    wait_in_line(pool, "x1 y1 y2 y3 y4")
    assert serve(pool, lease, 5) == "y1 y2 y3 x1 y4"


def test_newcomer_to_a_slow_line_starts_where_that_line_is(pool: Pool) -> None:
    """One virtual time for the pool would put it behind all that a fast line served."""
    slow, fast = occupied(pool), occupied(pool, "n2", weights="v", keys="fast", team="f")
    wait_in_line(pool, "x1 x2 x3 x4 y1 y2 y3 y4")
    assert serve(pool, slow, 2) == "x1 y1"
    slow = pool.got["a"][-1]
    wait_in_line(pool, " ".join(f"f{i}" for i in range(40)), "fast")
    serve(pool, fast, 40, tokens=5000)
    wait_in_line(pool, "z1")
    assert "z1" in serve(pool, slow, 3)


def test_slow_line_stays_fair_while_another_is_fast(pool: Pool) -> None:
    slow, fast = occupied(pool), occupied(pool, "n2", weights="v", keys="fast", team="f")
    wait_in_line(pool, "x1 x2 x3 x4 y1 y2 y3 y4")
    wait_in_line(pool, " ".join(f"f{i}" for i in range(40)), "fast")
    assert serve(pool, slow, 1) == "x1"
    slow = pool.got["a"][-1]
    serve(pool, fast, 40, tokens=5000)
    assert serve(pool, slow, 1, tokens=3000) == "y1"
    assert serve(pool, next(lease for lease in pool.got["a"] if lease.ticket == "y1"), 3) == "y2 y3 x2"


def test_flood_under_one_name_of_a_copy_does_not_pass_those_of_another(pool: Pool) -> None:
    lease = occupied(pool, keys="m alias")
    wait_in_line(pool, "x1 x2 x3 x4", "alias")
    wait_in_line(pool, "y1 y2", "m")
    assert serve(pool, lease, 6) == "x1 y1 x2 y2 x3 x4"


def test_two_lines_that_come_to_share_a_copy_keep_who_is_behind_in_each(pool: Pool) -> None:
    lease, other = occupied(pool), occupied(pool, "n2", weights="v", keys="k")
    wait_in_line(pool, "x1 x2 y1 y2 y3")
    wait_in_line(pool, "z1 z2 z3 w1 w2 w3", "k")
    assert serve(pool, other, 3) == "z1 w1 z2"
    assert serve(pool, lease, 1) == "x1"
    pool.ready("a", "n3", weights="u", keys="m k")
    shared = pool.got["a"][-1]
    assert (shared.ticket, shared.node) == ("y1", "n3")
    assert serve(pool, shared, 4) == "w2 x2 y2 z3", "z is behind its own front by one call, as x is"


# bands


def test_higher_band_is_served_first(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "l1 l2", priority=Priority.LOW)
    wait_in_line(pool, "n1 n2")
    assert serve(pool, lease, 4) == "n1 n2 l1 l2"


def test_call_asks_for_no_more_than_the_band_of_its_team(make_pool: MakePool) -> None:
    pool = make_pool(teams={"h": TeamLimits(priority=Priority.HIGH), "l": TeamLimits(priority=Priority.LOW)})
    pool.wait(1)
    lease = occupied(pool)
    wait_in_line(pool, "l1", priority=Priority.HIGH)
    wait_in_line(pool, "n1", priority=Priority.HIGH)
    wait_in_line(pool, "h1", priority=Priority.LOW)
    wait_in_line(pool, "h2")
    assert serve(pool, lease, 4) == "h2 n1 l1 h1"


def test_lower_band_is_served_once_in_a_bound_of_time_and_grants(pool: Pool) -> None:
    """No starvation: with p before it in its band a ticket gets at most the (p + 1)-th turn of that band, and a band
    that waits has a turn once AGING_S and AGING_GRANTS have passed since the last."""
    lease = occupied(pool)
    wait_in_line(pool, "l1 l2", priority=Priority.LOW)
    wait_in_line(pool, " ".join(f"n{i}" for i in range(40)))
    assert "l" not in serve(pool, lease, AGING_GRANTS + 3), "strict while it is quick"
    pool.wait(AGING_S, beating="ab")
    assert serve(pool, pool.got["a"][-1], 1) == "l1"
    pool.wait(AGING_S, beating="ab")
    assert "l" not in serve(pool, pool.got["a"][-1], AGING_GRANTS), "a slow line serves higher bands between"
    assert serve(pool, pool.got["a"][-1], 1) == "l2"


def test_aging_counts_what_other_names_of_the_copy_took(pool: Pool) -> None:
    lease = occupied(pool, keys="m alias")
    wait_in_line(pool, "l1", "alias", priority=Priority.LOW)
    wait_in_line(pool, " ".join(f"n{i}" for i in range(10)), "m")
    serve(pool, lease, AGING_GRANTS)
    pool.wait(AGING_S, beating="ab")
    assert serve(pool, pool.got["a"][-1], 1) == "l1"


# attempts


def test_next_attempt_goes_before_all_whose_turn_has_not_been(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 y1 y2")
    assert serve(pool, lease, 1) == "x1"
    first = pool.got["a"][-1]
    assert serve(pool, first, 1, tokens=0) == "y1"
    again = call("x1", team="x", estimate_tokens=1000, attempt=2, priority=Priority.LOW)
    assert pool.take("a", again).position == 1
    assert serve(pool, pool.got["a"][-1], 3) == "x1 y2 x2"


def test_attempt_that_made_nothing_costs_its_team_next_to_nothing(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2 y1 y2", cost=1000)
    assert serve(pool, lease, 1) == "x1"
    assert serve(pool, pool.got["a"][-1], 1, tokens=0) == "y1"
    assert serve(pool, pool.got["a"][-1], 2) == "x2 y2"


# look-ahead


def test_slot_goes_to_one_of_the_next_whose_prompt_the_node_knows(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2")
    wait_in_line(pool, "x3", preferred=("n1",))
    wait_in_line(pool, "x4", preferred=("n2", "n1"))
    assert serve(pool, lease, 4) == "x3 x1 x2 x4"


def test_look_ahead_ends_after_its_count(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, " ".join(f"x{i}" for i in range(LOOKAHEAD)), cost=10)
    wait_in_line(pool, "x-last", preferred=("n1",), cost=10)
    assert serve(pool, lease, 2) == "x0 x-last"


def test_look_ahead_costs_the_fairest_no_more_than_its_bound(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2", cost=int(LOOKAHEAD_TOKENS) + 1)
    wait_in_line(pool, "x3", preferred=("n1",))
    assert serve(pool, lease, 1) == "x1"


def test_nobody_is_passed_over_for_ever(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x0", cost=1)
    wait_in_line(pool, " ".join(f"x{i}" for i in range(1, 20)), preferred=("n1",), cost=1)
    order = serve(pool, lease, LOOKAHEAD + 1).split()
    assert order[:2] == ["x1", "x2"]
    assert order[LOOKAHEAD] == "x0"


def test_nobody_is_passed_over_for_ever_by_its_own_team(pool: Pool) -> None:
    """x0 is never the fairest: its team always has a little more than y, by the calls that overtook it."""
    lease = occupied(pool)
    wait_in_line(pool, " ".join(f"y{i}" for i in range(30)), cost=100)
    wait_in_line(pool, "x0", cost=100)
    wait_in_line(pool, " ".join(f"x{i}" for i in range(1, 30)), preferred=("n1",), cost=100)
    order = [name for name in serve(pool, lease, 50, tokens=100).split() if name[0] == "x"]
    assert order.index("x0") == LOOKAHEAD


def test_look_ahead_leaves_no_slot_empty(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1 x2", preferred=("elsewhere",))
    assert serve(pool, lease, 2) == "x1 x2"


def test_look_ahead_never_leaves_the_band(pool: Pool) -> None:
    lease = occupied(pool)
    wait_in_line(pool, "x1")
    wait_in_line(pool, "l1", preferred=("n1",), priority=Priority.LOW)
    assert serve(pool, lease, 2) == "x1 l1"


# full lines


def test_newest_of_the_team_most_over_its_share_makes_room(make_pool: MakePool) -> None:
    pool = make_pool(m=4)
    wait_in_line(pool, "x1 x2 x3 y1 y2")
    assert [news.ticket for news in pool.refused["a"]] == ["x3"]
    refusal = pool.refused["a"][0].refusal
    assert isinstance(refusal, QueueFull)
    assert 1.0 <= refusal.retry_after_s <= 1.2
    assert pool.take("a", call("x3", team="x")) is Gone.LEFT
    assert pool.lines("a")["m"].teams == {"x": 2, "y": 2}


def test_newcomer_of_the_team_most_over_its_share_is_refused_itself(make_pool: MakePool) -> None:
    pool = make_pool(m=4)
    wait_in_line(pool, "x1 x2 y1 y2")
    assert isinstance(pool.take("a", call("x3", team="x")), Full)
    assert pool.refused["a"] == []


def test_newcomer_that_would_have_as_much_as_the_largest_is_refused_itself(make_pool: MakePool) -> None:
    pool = make_pool(m=4)
    wait_in_line(pool, "x1 x2 y1 z1")
    assert isinstance(pool.take("a", call("y2", team="y")), Full)
    assert pool.refused["a"] == []


def test_refused_for_a_full_line_are_told_ever_longer_whoever_had_to_go(make_pool: MakePool) -> None:
    pool = make_pool(m=6)
    wait_in_line(pool, "x1 x2 x3 x4 x5 x6 y1 z1")
    told = [news.refusal.retry_after_s for news in pool.refused["a"]]
    third = pool.take("a", call("x7", team="x")).retry_after_s
    assert [round(each / k, 1) for k, each in enumerate([*told, third], 1)] == pytest.approx([1.0] * 3, abs=0.21)


def test_shares_of_a_full_line_follow_weights(make_pool: MakePool) -> None:
    pool = make_pool(m=6, teams={"x": TeamLimits(weight=4.0)})
    wait_in_line(pool, "x1 x2 x3 x4 y1 y2")
    assert isinstance(pool.take("a", call("y3", team="y")), Full), "2 of weight 1 are more than 4 of weight 4"
    wait_in_line(pool, "x5")
    assert [news.ticket for news in pool.refused["a"]] == ["y2"]


def test_who_makes_room_in_one_line_stays_in_its_others(make_pool: MakePool) -> None:
    pool = make_pool(m=2)
    wait_in_line(pool, "x1 x2", "m", "k")
    wait_in_line(pool, "y1", "m")
    assert pool.refused["a"] == []
    assert {key: view.teams for key, view in pool.lines("a").items()} == {"m": {"x": 1, "y": 1}, "k": {"x": 2}}


def test_ticket_that_was_served_before_makes_room_for_nobody(make_pool: MakePool) -> None:
    pool = make_pool(m=1)
    pool.wait(1)
    lease = occupied(pool, team="x")
    pool.give_back("a", lease, 5)
    pool.drop_node("a", "n1", 1)
    assert isinstance(pool.take("a", call("x-again", team="x", attempt=1)), Place)
    pool.leave("a", "x-again")
    assert isinstance(pool.take("a", call(lease.ticket, team="x", attempt=2)), Place)
    assert isinstance(pool.take("a", call("x2", team="x")), Full)
    assert isinstance(pool.take("a", call("y1", team="y")), Full)


# places


def test_place_is_told_in_fair_order(pool: Pool) -> None:
    wait_in_line(pool, "x1 x2 x3 x4")
    assert pool.take("b", call("y1", team="y", estimate_tokens=1000)) == Place("m", 2, 5)
    assert pool.take("b", call("y2", team="y", estimate_tokens=1000)) == Place("m", 4, 6)
    assert pool.take("b", call("z1", team="z", estimate_tokens=1000, priority=Priority.LOW)) == Place("m", 7, 7)


def test_line_says_how_many_each_team_has_waiting(pool: Pool) -> None:
    wait_in_line(pool, "x1 y1 x2")
    assert pool.lines("a")["m"].teams == {"x": 2, "y": 1}


# the whole


@pytest.mark.parametrize("seed", range(12))
def test_backlogged_teams_share_by_their_weights(seed: int) -> None:
    """Jain's index of tokens over weight, with calls of all sizes and estimates that are off."""
    index = jain(backlogged_run(seed))
    assert index >= 0.95, f"seed {seed}: {index}"


@pytest.mark.parametrize("seed", range(12))
def test_newcomer_waits_for_no_more_than_one_turn_of_each_team(seed: int) -> None:
    """Within a band: no starvation, whatever others have waiting and however large their calls are."""
    rng = Random(seed)
    pool = Pool(_Unchecked(Limits(10_000)))
    pool.hello("a")
    teams = [f"team-{i}" for i in range(rng.randint(2, 6))]
    for i in range(300):
        pool.take("a", call(f"{i}", team=rng.choice(teams), estimate_tokens=rng.randint(1, 4_000)))
    pool.ready("a", "n1")
    for i in range(40):
        for _ in range(rng.randint(0, 4)):
            lease = pool.got["a"][-1]
            pool.give_back("a", lease, lease.estimate_tokens)
        pool.take("a", call(f"new-{i}", team=f"new-{i}", estimate_tokens=rng.randint(1, 4_000)))
        waited = 0
        while pool.got["a"][-1].ticket != f"new-{i}":
            lease = pool.got["a"][-1]
            pool.give_back("a", lease, lease.estimate_tokens)
            waited += 1
        assert waited <= len(teams) + 1, f"seed {seed}: {waited} turns of {len(teams)} teams and the last newcomer"


def backlogged_run(seed: int, calls: int = 3_000) -> list[float]:
    """Tokens over weight by team, each with its own size of call and ten waiting all the time over two names."""
    rng = Random(seed)
    teams = [f"team-{i}" for i in range(rng.randint(2, 8))]
    weights = {team: rng.choice([0.5, 1.0, 2.0, 4.0]) for team in teams}
    sizes = {team: rng.choice([50, 400, 3_000]) for team in teams}
    table = TeamTable({team: TeamLimits(weight=weight) for team, weight in weights.items()})
    pool = Pool(_Unchecked(Limits(10_000, teams=table)))
    pool.hello("a")
    made = 0

    def arrive(team: str) -> None:
        nonlocal made
        made += 1
        key = "m" if made % 3 else "alias"
        pool.take("a", Ticket(f"{made}", (key,), team=team, estimate_tokens=rng.choice([0, sizes[team]])))

    for team in teams * 10:
        arrive(team)
    pool.ready("a", "n1", slots=rng.randint(1, 4), keys="m alias")
    used = dict.fromkeys(teams, 0.0)
    running = list(pool.got["a"])
    for _ in range(calls):
        lease = running.pop(rng.randrange(len(running)))
        pool.clock_s += rng.expovariate(1.0)
        tokens = rng.randint(1, 2 * sizes[lease.team])
        used[lease.team] += tokens / weights[lease.team]
        arrive(lease.team)
        told = len(pool.got["a"])
        pool.give_back("a", lease, tokens)
        running += pool.got["a"][told:]
    return list(used.values())


def jain(values: list[float]) -> float:
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


class _Unchecked:
    """A harness without invariants after each step, for long runs."""

    def __init__(self, limits: Limits) -> None:
        self.store = Book(Random(1), limits, settle_s=0.0)

    def check(self) -> None: ...
