"""What loads of other replicas mean to whoever places now."""

from __future__ import annotations

import math
from dataclasses import replace

from router.fleet.node import Health
from router.fleet.tickets import LOAD_S_MAX
from router.policy.placement import Load
from router.policy.succession import Begun, Estate, estate_of, taken_over
from tests.fleet.builders import fleet, node

X = Load("a", "X", "x", "w:x", 8192, 60.0, displaces=("w:y",))
HERE = fleet(node("a", disk="x y", ready="y"), node("b", disk="x"))
WANTED = Load("b", "X", "x", "w:x")


def begun(by: str = "old", load: Load = X, since_s: float = 100.0) -> Begun:
    return Begun(load, by, since_s)


def orphan(load: Load = X) -> Estate:
    return estate_of([begun(load=load)], frozenset({"me"}), 101.0)


def test_a_load_runs_while_whoever_asked_for_it_lives_also_when_it_leads_no_more() -> None:
    estate = estate_of([begun()], frozenset({"old", "me"}), 101.0)
    assert (dict(estate.running), dict(estate.orphaned)) == ({"a": begun()}, {})
    assert taken_over(WANTED, estate, HERE) == WANTED


def test_of_one_whose_replica_is_gone_nobody_knows_and_it_is_asked_for_where_it_may_run() -> None:
    taken = taken_over(WANTED, orphan(), HERE)
    assert taken == replace(X, keep_alive_s=60.0)
    assert taken.displaces == ("w:y",), "what was to go for it goes"


def test_it_is_asked_for_with_the_longest_keep_alive_and_the_largest_context_of_both() -> None:
    wanted = replace(WANTED, num_ctx=16384, keep_alive_s=math.inf)
    taken = taken_over(wanted, orphan(), HERE)
    assert (taken.num_ctx, taken.keep_alive_s) == (16384, math.inf)


def test_whoever_needs_the_node_s_own_context_gets_it() -> None:
    assert taken_over(replace(WANTED, is_default=True), orphan(), HERE).num_ctx == 0


def test_a_load_of_other_weights_and_a_renewal_go_where_they_were_to_go() -> None:
    for load in (replace(WANTED, key="y", weights="w:y"), replace(WANTED, is_renewal=True)):
        assert taken_over(load, orphan(), HERE) == load


def test_a_node_that_cannot_serve_those_who_wait_is_not_asked() -> None:
    assert taken_over(WANTED, orphan(), HERE, frozenset("a")) == WANTED
    for gone in (node("a", disk="x", health=Health.DOWN), node("a"), node("a", disk="x", ready="x")):
        assert taken_over(WANTED, orphan(), fleet(gone, node("b", disk="x"))) == WANTED


def test_what_began_too_long_ago_is_over_whatever_was_told() -> None:
    for live in (frozenset[str](), frozenset({"old"})):
        assert estate_of([begun()], live, 100.0 + LOAD_S_MAX) == Estate()


def test_a_node_that_loads_for_us_is_our_own_business() -> None:
    assert estate_of([begun()], frozenset({"old"}), 101.0, own={"a": None}) == Estate()


def test_of_two_on_one_node_the_living_one_s_counts_and_of_two_living_the_later() -> None:
    first, later, gone = begun("p", since_s=90.0), begun("q", since_s=95.0), begun("old")
    estate = estate_of([gone, later, first], frozenset("pq"), 101.0)
    assert (dict(estate.running), dict(estate.orphaned)) == ({"a": later}, {})
