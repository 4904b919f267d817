"""The store's contract: tickets, leases and lines."""

from __future__ import annotations

import pytest

from router.errors import LoadFailed
from router.fleet.tickets import LEFT_IDS_S, Lease, Place
from router.policy.advice import RETRY_AFTER_S_MAX, RETRY_AFTER_S_MIN
from router.store.answers import Full, Gone
from router.store.ledger import LEFT_IDS_MAX, PAST_IDS_MAX
from tests.contracts.conftest import MakePool
from tests.contracts.store_driver import Pool, call


def granted(pool: Pool, who: str = "a") -> list[tuple[str, str]]:
    """(ticket, node) of every grant that this replica was told of, in order."""
    pool.read(who)
    return [(lease.ticket, lease.node) for lease in pool.got[who]]


# taking


def test_free_slot_is_leased_at_once(pool: Pool) -> None:
    pool.ready("a", "n1", num_ctx=8192)
    lease = pool.take("b", call("1"))
    assert (lease.ticket, lease.attempt, lease.model, lease.node, lease.weights, lease.num_ctx) == (
        *("1", 1, "m", "n1", "w"),
        8192,
    )
    assert pool.leases_on("n1") == 1


def test_without_a_free_slot_the_ticket_stands_in_line(pool: Pool) -> None:
    assert pool.take("a", call("1")) == Place("m", 1, 1)
    assert pool.take("b", call("2")) == Place("m", 2, 2)


def test_preferred_node_is_taken_while_it_is_free_in_the_order_of_preference(pool: Pool) -> None:
    for node in ("n1", "n2", "n3", "n4"):
        pool.ready("a", node)
    nodes = [pool.take("a", call(str(i), preferred=("gone", "n3", "n2"))).node for i in range(4)]
    assert nodes[:2] == ["n3", "n2"]
    assert sorted(nodes) == ["n1", "n2", "n3", "n4"]


def test_without_a_preference_load_is_spread(pool: Pool) -> None:
    for i in range(10):
        pool.ready("a", f"n{i}", slots=8)
    for i in range(40):
        pool.take("a", call(str(i)))
    assert max(pool.leases_on(f"n{i}") for i in range(10)) <= 6


def test_repeated_take_answers_the_same(pool: Pool) -> None:
    pool.ready("a", "n1")
    lease = pool.take("a", call("1"))
    assert pool.take("a", call("1")) == lease
    place = pool.take("a", call("2"))
    assert pool.take("a", call("2")) == place
    assert pool.leases_on("n1") == 1


def test_take_repeated_after_its_grant_answers_the_granted_lease(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.ready("b", "n1")
    lease = pool.take("a", call("1"))
    assert isinstance(lease, Lease)
    pool.wait(4, beating="ab")
    assert pool.ack("a", lease.id) == ()


def test_copy_with_a_smaller_context_is_not_used(pool: Pool) -> None:
    pool.ready("a", "small", num_ctx=4096)
    assert isinstance(pool.take("a", call("1", num_ctx=8192)), Place)
    assert pool.take("a", call("2", num_ctx=4096)).node == "small"
    pool.ready("a", "unknown", num_ctx=0)
    assert granted(pool) == [("1", "unknown")]


def test_a_copy_with_a_named_context_is_not_used_by_who_cannot_name_it(pool: Pool) -> None:
    pool.ready("a", "named", num_ctx=8192, named_ctx=8192)
    assert isinstance(pool.take("a", call("1", names_no_ctx=True)), Place)
    assert pool.take("a", call("2")).node == "named"
    assert pool.lines("a")["m"].names_no_ctx
    pool.ready("a", "default", num_ctx=4096)
    assert granted(pool) == [("1", "default")]


def test_two_names_of_one_set_of_weights_share_its_slots(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2, keys="m alias")
    leases = [pool.take("a", call("1", "m")), pool.take("a", call("2", "alias"))]
    assert [lease.model for lease in leases] == ["m", "alias"]
    assert isinstance(pool.take("a", call("3", "m")), Place)
    assert isinstance(pool.take("b", call("4", "alias")), Place)
    pool.give_back("a", leases[0])
    pool.give_back("a", leases[1])
    assert granted(pool, "a") == [("3", "n1")]
    assert granted(pool, "b") == [("4", "n1")]


# lines


def test_slots_go_to_the_oldest_first_over_all_names_of_the_copy(pool: Pool) -> None:
    pool.take("a", call("1", "alias"))
    pool.take("b", call("2", "m"))
    pool.take("a", call("3", "alias"))
    pool.ready("a", "n1", slots=2, keys="m alias")
    assert granted(pool, "a") == [("1", "n1")]
    assert granted(pool, "b") == [("2", "n1")]


def test_head_that_may_not_use_a_copy_blocks_nobody_behind_it(pool: Pool) -> None:
    for i in range(30):
        pool.take("a", call(f"no{i}", excluded="n1"))
    pool.take("a", call("yes"))
    pool.ready("a", "n1")
    assert granted(pool) == [("yes", "n1")]
    pool.ready("a", "n2")
    assert granted(pool)[1:] == [("no0", "n2")]


def test_ticket_in_several_lines_leaves_all_with_its_first_grant(pool: Pool) -> None:
    pool.take("a", call("1", "m"))
    assert pool.widen("a", "1", "other", "m") == Place("m", 1, 1)
    assert pool.take("a", call("2", "other")) == Place("other", 2, 2)
    pool.ready("a", "n1", weights="v", keys="other")
    assert granted(pool) == [("1", "n1")]
    assert pool.got["a"][0].model == "other"
    assert list(pool.lines("a")) == ["other"]


def test_widening_finds_a_slot_that_is_free_already(pool: Pool) -> None:
    pool.take("a", call("1", "m"))
    pool.ready("a", "n1", weights="v", keys="other")
    lease = pool.widen("a", "1", "other")
    assert (lease.model, lease.node) == ("other", "n1")
    assert pool.widen("a", "1", "third") == lease
    assert pool.lines("a") == {}


def test_widening_passes_over_a_full_line(make_pool: MakePool) -> None:
    pool = make_pool(other=1)
    pool.take("a", call("1", "m"))
    pool.take("a", call("2", "other"))
    assert pool.widen("a", "1", "other") == Place("m", 1, 1)
    assert pool.lines("a")["other"].depth == 1


def test_a_line_tells_whose_first_it_is_and_what_only_they_ask_for(pool: Pool) -> None:
    pool.take("a", call("1", "m", num_ctx=8192, keep_alive_s=60.0))
    pool.wait(5, beating="ab")
    pool.widen("a", "1", "other")
    alone = pool.lines("a")["other"]
    assert (alone.depth, alone.overflowed, alone.own, alone.num_ctx, alone.oldest_wait_s) == (1, 1, 0, 8192, 5.0)
    pool.take("a", call("2", "other", num_ctx=2048))
    both = pool.lines("a")["other"]
    assert (both.depth, both.overflowed, both.own, both.num_ctx, both.keep_alive_s) == (2, 1, 1, 2048, None)
    assert both.oldest_wait_s == 0.0
    assert (pool.lines("a")["m"].depth, pool.lines("a")["m"].overflowed) == (1, 0)


def test_where_the_first_line_is_refused_the_other_becomes_the_first(pool: Pool) -> None:
    pool.take("a", call("1", "m"))
    pool.widen("a", "1", "other")
    assert pool.refuse("a", "m", LoadFailed("no")) == 0
    assert (pool.lines("a")["other"].depth, pool.lines("a")["other"].own) == (1, 1)
    assert pool.place_of("a", "1") == Place("other", 1, 1)


def test_widening_what_does_not_wait_is_refused(pool: Pool) -> None:
    assert pool.widen("a", "never", "m") is Gone.LEFT


def test_estimate_is_place_over_the_drain_rate_and_none_before_the_line_moved(pool: Pool) -> None:
    for i in range(8):
        place = pool.take("a", call(str(i)))
    assert place.estimate_s is None
    pool.wait(10, beating="ab")
    pool.ready("a", "n1", slots=5)
    assert pool.take("a", call("9")) == Place("m", 4, 4, estimate_s=8.0)


def test_place_is_told_as_it_has_become(pool: Pool) -> None:
    pool.ready("a", "n1")
    leases = [pool.take("a", call(str(i))) for i in range(4)]
    assert [pool.place_of("a", str(i)) for i in range(4)] == [None, *(Place("m", i, 3) for i in (1, 2, 3))]
    pool.leave("a", "1")
    assert pool.place_of("a", "3") == Place("m", 2, 2)
    pool.give_back("a", leases[0])
    assert pool.place_of("a", "2") is None, "served by now"
    place = pool.place_of("a", "3")
    assert (place.position, place.depth, place.estimate_s) == (1, 1, pytest.approx(1.0, rel=1))


def test_place_of_what_does_not_wait_is_none_and_changes_nothing(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.leave("a", "2")
    assert [pool.place_of("a", ticket) for ticket in ("1", "2", "never")] == [None, None, None]
    assert pool.leases_on("n1") == 1
    assert pool.take("a", call("3")) == Place("m", 1, 1)


def test_line_says_what_its_tickets_ask_for(pool: Pool) -> None:
    pool.take("a", call("1", num_ctx=4096, keep_alive_s=60.0, excluded="n1 n2"))
    pool.wait(2.5, beating="ab")
    pool.take("b", call("2", num_ctx=8192, excluded="n2 n3"))
    line = pool.lines("b")["m"]
    assert (line.depth, line.oldest_wait_s, line.num_ctx, line.keep_alive_s) == (2, 2.5, 8192, 60.0)
    assert (line.max_waiting, line.drain_per_s, line.excluded) == (256, 0.0, frozenset({"n2"}))


def test_drain_counts_the_last_half_minute_only(pool: Pool) -> None:
    for i in range(40):
        pool.take("a", call(str(i)))
    pool.ready("a", "n1", slots=30)
    pool.wait(1, beating="ab")
    assert pool.lines("a")["m"].drain_per_s == 30.0
    pool.wait(28, beating="ab")
    assert pool.lines("a")["m"].drain_per_s == pytest.approx(30 / 29)
    pool.wait(2, beating="ab")
    assert pool.lines("a")["m"].drain_per_s == 0.0


# leaving and giving back


def test_lease_given_back_goes_to_the_next_in_line(pool: Pool) -> None:
    pool.ready("a", "n1")
    lease = pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.give_back("a", lease)
    assert granted(pool, "b") == [("2", "n1")]
    assert pool.leases_on("n1") == 1


def test_second_give_back_changes_nothing(pool: Pool) -> None:
    pool.ready("a", "n1")
    lease = pool.take("a", call("1"))
    pool.give_back("a", lease)
    other = pool.take("b", call("2"))
    pool.give_back("a", lease)
    pool.give_back("a", "never/1/1")
    assert pool.leases_on("n1") == 1
    assert pool.take("b", call("2")) == other


def test_ticket_that_leaves_gives_its_place_to_those_behind(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.leave("a", "1")
    assert pool.take("b", call("2")) == Place("m", 1, 1)


def test_ticket_that_leaves_gives_back_its_lease_or_its_unclaimed_grant(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.take("b", call("3"))
    pool.leave("a", "1")
    pool.leave("a", "2")
    assert granted(pool, "b") == [("3", "n1")]
    assert pool.leases_on("n1") == 1


def test_leaving_twice_or_unknown_changes_nothing(pool: Pool) -> None:
    pool.take("a", call("1"))
    for _ in range(2):
        pool.leave("a", "1")
        pool.leave("a", "never")
    assert pool.lines("a") == {}


def test_take_that_arrives_after_its_leave_gets_nothing_for_a_minute(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.leave("a", "1")
    pool.wait(LEFT_IDS_S - 1, beating="ab")
    assert pool.take("a", call("1")) is Gone.LEFT
    assert pool.take("a", call("1", attempt=2)) is Gone.LEFT
    pool.wait(1, beating="ab")
    assert isinstance(pool.take("a", call("1")), Lease)


def test_only_so_many_left_ids_are_kept(pool: Pool) -> None:
    pool.each("a", "leave", [(f"t{i}",) for i in range(LEFT_IDS_MAX + 1)])
    assert isinstance(pool.take("a", call("t0")), Place)
    assert pool.take("a", call("t1")) is Gone.LEFT


def test_late_repeat_of_an_attempt_that_is_over_gets_no_second_lease(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.give_back("a", pool.take("a", call("1")))
    assert pool.take("a", call("1")) is Gone.LEFT
    assert pool.take("a", call("1", attempt=2)).attempt == 2
    assert pool.take("a", call("1", attempt=1)) is Gone.LEFT
    assert pool.leases_on("n1") == 1


def test_next_attempt_stands_where_its_arrival_puts_it(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    first, second = pool.take("a", call("1")), pool.take("a", call("2"))
    pool.drop_node("a", "n1", 1)
    pool.take("b", call("3"))
    pool.wait(1)
    pool.give_back("a", second)
    assert pool.take("a", call("2", attempt=2, excluded="n1")) == Place("m", 1, 2)
    pool.give_back("a", first)
    assert pool.take("a", call("1", attempt=2, excluded="n1")) == Place("m", 1, 3)
    assert pool.lines("a")["m"].oldest_wait_s == 1.0
    pool.ready("a", "n2")
    assert granted(pool) == [("1", "n2")]


def test_next_attempt_whose_give_back_was_lost_holds_one_lease_only(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.ready("a", "n2")
    pool.take("a", call("1", preferred=("n1",)))
    assert pool.take("a", call("1", attempt=2, excluded="n1")).node == "n2"
    assert (pool.leases_on("n1"), pool.leases_on("n2")) == (0, 1)


def test_next_attempt_of_a_waiting_ticket_changes_what_it_may_use(pool: Pool) -> None:
    pool.take("a", call("1", excluded="n1"))
    pool.ready("a", "n1")
    assert pool.take("a", call("1", attempt=2)).node == "n1"


def test_only_so_many_past_tickets_are_kept(pool: Pool) -> None:
    pool.ready("a", "n1", slots=PAST_IDS_MAX + 1)
    leases = pool.each("a", "take", [(call(f"t{i}"),) for i in range(PAST_IDS_MAX + 1)])
    pool.each("a", "give_back", [(lease.id,) for lease in leases])
    assert isinstance(pool.take("a", call("t0")), Lease)
    assert pool.take("a", call("t1")) is Gone.LEFT


# full lines


def test_newcomer_to_a_full_line_is_refused_exactly_at_the_limit(make_pool: MakePool) -> None:
    pool = make_pool(max_waiting=3, m=2)
    assert [type(pool.take("a", call(str(i)))) for i in range(3)] == [Place, Place, Full]
    assert [type(pool.take("a", call(f"k{i}", "k"))) for i in range(4)] == [Place, Place, Place, Full]
    pool.leave("a", "1")
    assert isinstance(pool.take("a", call("4")), Place)


def test_free_slot_is_never_refused_for_a_full_line(make_pool: MakePool) -> None:
    pool = make_pool(m=1)
    pool.wait(1)
    pool.take("a", call("1", excluded="n1"))
    pool.ready("a", "n1")
    assert isinstance(pool.take("a", call("2")), Lease)


def test_ticket_stands_in_those_of_its_lines_that_have_room(make_pool: MakePool) -> None:
    pool = make_pool(m=1)
    pool.take("a", call("1"))
    assert pool.take("a", call("2", "m", "k")) == Place("k", 1, 1)


def test_next_attempt_is_not_refused_by_a_full_line(make_pool: MakePool) -> None:
    pool = make_pool(m=1)
    pool.wait(1)
    pool.ready("a", "n1")
    lease = pool.take("a", call("1"))
    pool.take("a", call("2", excluded="n1"))
    pool.give_back("a", lease)
    assert pool.take("a", call("1", attempt=2, excluded="n1")) == Place("m", 1, 2)


def test_kth_refused_is_told_to_wait_for_k_grants(make_pool: MakePool) -> None:
    pool = make_pool(m=10)
    pool.wait(1)
    for i in range(10):
        pool.take("a", call(str(i)))
    pool.ready("a", "n1", slots=5)
    pool.wait(10, beating="ab")  # 5 grants in 10 s: half a grant a second
    for i in range(5):
        pool.take("a", call(f"more{i}"))
    for k in range(1, 25):
        told = pool.take("a", call(f"refused{k}")).retry_after_s
        assert 0.8 * k / 0.5 <= told <= 1.2 * k / 0.5
    for k in range(25, 80):
        told = pool.take("a", call(f"refused{k}")).retry_after_s
    assert RETRY_AFTER_S_MAX / 1.5 <= told <= RETRY_AFTER_S_MAX, "spread at the upper end too"


def test_line_that_never_moved_tells_a_short_wait_that_grows(make_pool: MakePool) -> None:
    pool = make_pool(m=1)
    pool.take("a", call("1"))
    told = [pool.take("a", call(f"refused{k}")).retry_after_s for k in range(1, 11)]
    assert RETRY_AFTER_S_MIN <= told[0] <= 1.2
    assert 8.0 <= told[9] <= 12.0


def test_each_grant_makes_room_for_one_of_the_refused(make_pool: MakePool) -> None:
    pool = make_pool(m=10)
    pool.wait(1)
    for i in range(10):
        pool.take("a", call(str(i)))
    for k in range(9):
        pool.take("a", call(f"refused{k}"))
    pool.wait(5, beating="ab")
    pool.ready("a", "n1", slots=5)  # one a second; 9 refused less 5 granted are 4
    for i in range(5):
        pool.take("a", call(f"more{i}"))
    told = pool.take("a", call("refused-fifth")).retry_after_s
    assert 0.8 * 5 <= told <= 1.2 * 5


# refusing those who wait


def test_refusing_a_model_reaches_all_who_wait_for_it_only(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.take("a", call("both", "m", "k"))
    pool.take("a", call("other", "k"))
    failed = LoadFailed("no")
    assert pool.refuse("a", "m", failed) == 2
    pool.read("b")
    told = [(news.ticket, type(news.refusal), news.refusal.text) for news in pool.refused["a"]]
    assert told == [("1", LoadFailed, failed.text)]
    assert [(news.ticket, news.refusal.text) for news in pool.refused["b"]] == [("2", failed.text)]
    assert {key: line.depth for key, line in pool.lines("a").items()} == {"k": 2}
    assert pool.take("a", call("1")) is Gone.LEFT


def test_refusing_a_model_nobody_waits_for_is_nothing(pool: Pool) -> None:
    assert pool.refuse("a", "m", LoadFailed("no")) == 0
