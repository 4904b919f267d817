"""The store's contract: grants on their way, sessions, silence, fail-over."""

from __future__ import annotations

from router.errors import LoadFailed
from router.fleet.tickets import BEAT_S, SILENT_BEATS, UNACKED_S, Lease, Place
from router.store.answers import Stale
from router.store.replica import STREAM_MAXLEN
from tests.contracts.conftest import MakePool
from tests.contracts.store_driver import Pool, call
from tests.contracts.test_store import granted

# grants on their way


def test_grant_comes_with_the_answer_of_its_own_replica_and_by_stream_to_others(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.ready("a", "n1", slots=2)
    assert [lease.ticket for lease in pool.answer.grants] == ["1"]
    assert [lease.ticket for lease in pool.read("b")] == ["2"]
    assert pool.read("b") == ()


def test_beat_names_every_unclaimed_grant_until_it_is_acknowledged(pool: Pool) -> None:
    pool.take("b", call("1"))
    pool.ready("a", "n1")
    pool.beat("b")
    (lease,) = pool.answer.grants
    pool.beat("b")
    assert pool.answer.grants == (lease,)
    pool.beat("b", [lease.id])
    assert pool.answer.grants == ()


def test_unacknowledged_grant_is_passed_on_and_its_late_claim_is_told(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.ready("b", "n1")
    pool.wait(UNACKED_S - 1, beating="b")
    assert granted(pool, "b") == []
    pool.wait(1, beating="b")
    assert granted(pool, "b") == [("2", "n1")]
    assert pool.read("a") == (), "a lapsed grant is not read any more"
    assert pool.ack("a", "1/1/1") == ("1/1/1",)
    assert pool.take("a", call("1")).position == 1


def test_ticket_of_a_lapsed_grant_stands_where_it_stood_once_its_replica_is_heard(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.ready("b", "n1")
    pool.wait(UNACKED_S, beating="b")
    assert pool.leases_on("n1") == 0, "nobody else waits, and nobody is there to take it"
    pool.beat("a")
    (lease,) = pool.answer.grants
    assert (lease.ticket, lease.node) == ("1", "n1")


def test_acknowledged_grant_stays(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.ready("a", "n1")
    pool.ack("a", pool.got["a"][0].id)
    pool.wait(UNACKED_S + 1, beating="ab")
    assert granted(pool, "b") == []


def test_grants_lost_from_a_full_stream_come_with_the_next_beat(make_pool: MakePool) -> None:
    pool = make_pool(max_waiting=STREAM_MAXLEN + 2)
    pool.wait(1)
    pool.each("b", "take", [(call(str(i)),) for i in range(STREAM_MAXLEN + 2)])
    pool.ready("a", "n1", slots=STREAM_MAXLEN + 2)
    assert pool.read("b")[0].ticket == "2"
    pool.beat("b")
    assert len(pool.answer.grants) == STREAM_MAXLEN + 2


# sessions and silence


def test_stranger_is_told_to_say_hello(make_pool: MakePool) -> None:
    pool = make_pool("a")
    pool.callers["x"] = pool.callers["a"]._replace(replica="x")
    assert pool.take("x", call("1")) is Stale.REAPED


def test_commands_of_an_older_session_change_nothing(pool: Pool) -> None:
    pool.ready("a", "n1")
    old = pool.callers["a"]
    lease = pool.take("a", call("1"))
    pool.hello("a", leases=[lease])
    new, pool.callers["a"] = pool.callers["a"], old
    assert pool.give_back("a", lease) is Stale.OLD_SESSION
    assert pool.beat("a") is Stale.OLD_SESSION
    pool.callers["a"] = new
    assert pool.leases_on("n1") == 1


def test_a_hello_that_comes_after_a_later_one_or_twice_changes_nothing(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    first = pool.take("a", call("1"))
    late = pool.last_hello["a"]
    pool.hello("a", leases=[first])
    twice = pool.last_hello["a"]
    second, waiting = pool.take("a", call("2")), call("3")
    pool.take("a", waiting)
    pool.give_back("a", first)
    assert [lease.ticket for lease in pool.got["a"]] == ["3"]
    for said in (late, twice):
        assert pool.late_hello("a", said) is Stale.OLD_SESSION
        assert pool.leases_on("n1") == 2, "the second and the third, which it does not name, stand"
    assert pool.give_back("a", second) is None, "in the session that the latest opened"


def test_hello_keeps_what_it_names_and_drops_the_rest(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    kept, dropped = pool.take("a", call("1")), pool.take("a", call("2"))
    waiting, leaving = call("3", excluded="n1"), call("4", excluded="n1")
    pool.take("a", waiting)
    pool.take("a", leaving)
    pool.hello("a", leases=[kept], tickets=[waiting])
    assert pool.leases_on("n1") == 1
    assert pool.lines("a")["m"].depth == 1
    pool.give_back("a", dropped)
    assert pool.leases_on("n1") == 1


def test_hello_that_waits_for_a_ticket_with_an_unseen_grant_gets_it_again(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.ready("b", "n1")
    pool.hello("a", tickets=[call("1")])
    assert [lease.ticket for lease in pool.answer.grants] == ["1"]
    assert pool.leases_on("n1") == 1


def test_refusal_that_was_not_read_before_hello_is_told_by_it(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.refuse("b", "m", LoadFailed("no room"))
    pool.hello("a", tickets=[call("1")])
    pool.beat("a", heard=["1"])
    assert [refused.ticket for refused in pool.refused["a"]] == ["1"]


def test_a_refusal_is_named_by_each_beat_until_the_replica_says_that_it_heard(pool: Pool) -> None:
    """Its answer may be lost with it, also where it was the caller's own."""
    for who in "ab":
        pool.take(who, call(who))
    pool.refuse("a", "m", LoadFailed("no room"))
    for who in "ab":
        for _ in range(2):
            pool.beat(who)
            assert [refused.ticket for refused in pool.answer.refusals] == [who]
        pool.beat(who, heard=[who])
        assert pool.answer.refusals == ()
        pool.beat(who)
        assert pool.answer.refusals == ()


def test_hello_that_still_waits_for_a_refused_ticket_is_told_in_its_answer(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.refuse("b", "m", LoadFailed("no room"))
    pool.beat("a", heard=["1", "2"])
    pool.hello("a", tickets=[call("2"), call("3")])
    assert [(told.ticket, told.refusal.text) for told in pool.answer.refusals] == [("2", "no room")]
    assert pool.lines("a")["m"].depth == 1
    pool.beat("a", heard=["2"])
    assert pool.answer.refusals == ()


def test_a_reaped_replica_hears_of_the_refusal_that_it_missed(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.refuse("b", "m", LoadFailed("no room"))
    pool.wait(SILENT_BEATS, beating="b")
    pool.hello("a", tickets=[call("1")])
    assert [told.ticket for told in pool.answer.refusals] == ["1"]


def test_every_refusal_of_more_than_a_stream_holds_is_told(make_pool: MakePool) -> None:
    pool = make_pool(max_waiting=STREAM_MAXLEN + 2)
    pool.wait(1)
    pool.each("b", "take", [(call(str(i)),) for i in range(STREAM_MAXLEN + 2)])
    pool.refuse("a", "m", LoadFailed("no room"))
    pool.beat("b")
    assert len(pool.answer.refusals) == STREAM_MAXLEN + 2


def test_silent_replica_is_reaped_after_six_beats(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.take("b", call("3"))
    pool.wait((SILENT_BEATS - 1) * BEAT_S, beating="b")
    assert granted(pool, "b") == []
    pool.wait(BEAT_S, beating="b")
    assert granted(pool, "b") == [("3", "n1")]
    assert pool.beat("a") is Stale.REAPED
    assert pool.take("a", call("4")) is Stale.REAPED


def test_any_command_shows_that_a_replica_lives(pool: Pool) -> None:
    for _ in range(3):
        pool.wait(SILENT_BEATS - 1, beating="b")
        assert pool.read("a") == ()


def test_reaped_replica_comes_back_with_what_it_still_holds(pool: Pool) -> None:
    pool.ready("a", "n1")
    lease = pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.wait(SILENT_BEATS, beating="b")
    other = pool.take("b", call("3"))
    assert isinstance(other, Lease)
    pool.hello("a", leases=[lease], tickets=[call("2")])
    assert pool.leases_on("n1") == 2, "an excess ends with its calls"
    pool.give_back("b", other)
    assert granted(pool, "a") == []
    pool.give_back("a", lease)
    assert granted(pool, "a") == [("2", "n1")]


def test_lease_that_was_passed_on_is_counted_when_its_holder_says_hello(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.ready("b", "n1", slots=1)
    (lease,) = pool.read("a")
    pool.wait(UNACKED_S, beating="b")
    pool.hello("a", leases=[lease])
    assert pool.leases_on("n1") == 1
    assert pool.lines("a") == {}


def test_store_that_was_frozen_reaps_nobody(pool: Pool) -> None:
    pool.ready("a", "n1")
    lease = pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.give_back("a", lease)
    pool.wait(3_600)
    assert pool.beat("b") == ()
    assert pool.beat("a") == ()
    assert granted(pool, "a") == [("2", "n1"), ("2", "n1")], "told again, not passed on"


def test_clock_that_jumps_back_stops_nothing(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    pool.take("a", call("1"))
    before_s = pool.answer.now_s
    pool.clock_s -= 3_600
    pool.beat("b")
    assert pool.answer.now_s == before_s
    pool.wait(SILENT_BEATS, beating="b")
    assert pool.answer.now_s == before_s + SILENT_BEATS
    assert pool.beat("a") is Stale.REAPED


def test_replica_that_leaves_in_order_frees_all_at_once(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.bye("a")
    assert granted(pool, "b") == [("2", "n1")]
    assert pool.beat("a") is Stale.REAPED


def test_reaping_can_be_asked_for_by_nobody_in_particular(pool: Pool) -> None:
    for _ in range(SILENT_BEATS):
        pool.wait(BEAT_S)
        reaped = pool.harness.store.reap(pool.clock_s).value
    assert reaped == ("a", "b")


# empty stores and lost writes


def test_empty_store_hands_out_nothing_for_one_beat(make_pool: MakePool) -> None:
    pool = make_pool("a")
    pool.ready("a", "n1")
    assert pool.take("a", call("1")) == Place("m", 1, 1)
    pool.wait(BEAT_S / 2)
    pool.ready("a", "n1")
    assert granted(pool) == []
    pool.wait(BEAT_S / 2)
    assert granted(pool) == [("1", "n1")]


def test_replica_that_merely_joins_delays_nobody(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.hello("c")
    assert isinstance(pool.take("a", call("1")), Lease)


def test_after_lost_writes_nothing_is_handed_out_until_all_have_said_hello(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    kept = pool.take("a", call("1"))
    past = pool.harness.snapshot()
    lost, waiting = pool.take("b", call("2")), call("3")
    pool.take("b", waiting)
    pool.harness.fail_over(past)
    pool.hello("a", leases=[kept])
    assert pool.take("a", call("4")) == Place("m", 1, 1)
    pool.hello("b", leases=[lost], tickets=[waiting])
    assert pool.leases_on("n1") == 2
    pool.wait(BEAT_S, beating="ab")
    assert granted(pool, "a") == []
    pool.give_back("b", lost)
    assert granted(pool, "a") == [("4", "n1")]


def test_replica_that_saw_more_than_the_store_knows_makes_it_settle_in_the_same_life_too(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.hello("b", last_seq=1_000)
    assert pool.take("a", call("1")) == Place("m", 1, 1)
    pool.wait(BEAT_S, beating="b")
    assert granted(pool, "a") == [("1", "n1")]


def test_session_of_a_lost_hello_is_never_given_again(pool: Pool) -> None:
    past = pool.harness.snapshot()
    lost = pool.hello("a")
    pool.harness.fail_over(past)
    assert pool.hello("a") > lost


def test_every_answer_says_which_life_of_the_store_and_which_step(pool: Pool) -> None:
    pool.beat("a")
    first = pool.answer
    pool.beat("b")
    assert (pool.answer.run, pool.answer.seq) == (first.run, first.seq + 1)
    pool.harness.fail_over(pool.harness.snapshot())
    pool.beat("b")
    assert pool.answer.run != first.run


def test_refusals_travel_by_stream_too(pool: Pool) -> None:
    pool.take("b", call("1"))
    pool.refuse("a", "m", LoadFailed("no"))
    pool.beat("b")
    assert [news.ticket for news in pool.answer.refusals] == ["1"]


def test_a_lease_that_a_replica_holds_outlives_the_refusal_of_the_place_it_was_put_back_to(pool: Pool) -> None:
    """The grant was passed on while its replica was not heard, and the line refused; then the replica names it."""
    pool.take("b", call("1"))
    pool.ready("a", "n1")
    (lease,) = pool.read("b")
    pool.wait(UNACKED_S + 1, beating="a")
    pool.refuse("a", "m", LoadFailed("out of memory"))
    pool.hello("b", leases=[lease])
    assert pool.take("b", call("1")) == lease
    assert isinstance(pool.take("a", call("2")), Place), "its slot is taken"


# who places


def test_first_who_asks_leads_until_it_is_gone_and_the_next_epoch_is_higher(pool: Pool) -> None:
    first = pool.lead("a")
    assert first.is_mine
    assert pool.lead("b") == (first.epoch, False)
    pool.wait(SILENT_BEATS, beating="b")
    assert pool.lead("b") == (first.epoch + 1, True)


def test_orders_of_a_leader_that_was_thought_dead_are_refused(pool: Pool) -> None:
    late = pool.lead("a").epoch
    pool.wait(SILENT_BEATS, beating="b")
    now = pool.lead("b").epoch
    assert pool.begin("b", "n1", "w", epoch=now)
    pool.hello("a")
    assert not pool.begin("a", "n2", "w", epoch=late)
    assert pool.lead("a") == (now, False)


def test_leader_that_gives_up_makes_room_and_does_not_lead_again_by_itself(pool: Pool) -> None:
    first = pool.lead("a")
    assert pool.lead("a", wants=False) == (first.epoch, False)
    assert pool.lead("b") == (first.epoch + 1, True)


def test_leader_that_leaves_in_order_makes_room_at_once(pool: Pool) -> None:
    pool.lead("a")
    pool.bye("a")
    assert pool.lead("b").is_mine
