"""The store's contract: reports, incarnations, loads and gates."""

from __future__ import annotations

from router.fleet.node import CopyState
from router.fleet.tickets import LOAD_S_MAX, CopyReport, Gate, Lease, Place
from router.store.copies import ABSENT_COPIES_MAX, DOWN_NODES_MAX
from tests.contracts.store_driver import Pool, call
from tests.contracts.test_store import granted

ON_DISK = {"state": CopyState.ON_DISK}

# reports


def test_report_that_is_older_than_the_last_is_ignored(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.ready("b", "n1", seen_at_s=pool.clock_s - 0.5, **ON_DISK)
    assert isinstance(pool.take("a", call("1")), Lease)


def test_report_from_the_future_does_not_lock_out_others(pool: Pool) -> None:
    pool.ready("a", "n1", seen_at_s=pool.clock_s + 1_000)
    pool.wait(1)
    pool.ready("b", "n1", **ON_DISK)
    assert isinstance(pool.take("a", call("1")), Place)


def test_report_of_an_older_start_of_the_node_is_ignored(pool: Pool) -> None:
    pool.ready("a", "n1", incarnation=2, **ON_DISK)
    pool.ready("b", "n1", incarnation=1)
    assert isinstance(pool.take("a", call("1")), Place)


def test_every_report_hands_out_what_is_free_changed_or_not(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.take("b", call("3"))
    pool.ready("a", "n1", slots=3)
    assert granted(pool, "b") == [("3", "n1")]


def test_copy_whose_slots_shrink_keeps_its_leases_and_gets_no_new_ones(pool: Pool) -> None:
    pool.ready("a", "n1", slots=3)
    leases = [pool.take("a", call(str(i))) for i in range(3)]
    pool.take("b", call("next"))
    pool.ready("a", "n1", slots=1)
    assert pool.leases_on("n1") == 3
    pool.give_back("a", leases[0])
    pool.give_back("a", leases[1])
    assert granted(pool, "b") == []
    pool.give_back("a", leases[2])
    assert granted(pool, "b") == [("next", "n1")]


def test_copy_that_left_the_memory_grants_nothing(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    lease = pool.take("a", call("1"))
    pool.ready("a", "n1", slots=2, **ON_DISK)
    assert isinstance(pool.take("a", call("2")), Place)
    pool.give_back("a", lease)
    assert granted(pool) == []
    pool.ready("a", "n1", slots=2)
    assert granted(pool) == [("2", "n1")]


def test_name_stands_for_the_weights_that_were_reported_last(pool: Pool) -> None:
    pool.ready("a", "n1", weights="old", keys="m alias")
    pool.ready("a", "n1", weights="new", keys="m")
    assert pool.take("a", call("1")).weights == "new"
    assert isinstance(pool.take("a", call("2")), Place)
    assert pool.take("a", call("3", "alias")).weights == "old"


def test_remembered_absent_copies_are_bounded(pool: Pool) -> None:
    pool.ready("a", "n1", weights="first", **ON_DISK)
    facts = ((), CopyState.ON_DISK, 1, 0, pool.clock_s)
    pool.each("a", "set_copy", [(CopyReport("n1", 1, f"w{i}", *facts),) for i in range(ABSENT_COPIES_MAX)])
    pool.ready("a", "n1", weights="first", seen_at_s=pool.clock_s - 1)  # older, but who remembers
    assert isinstance(pool.take("a", call("1")), Lease)


# incarnations


def test_incarnation_is_the_same_while_it_is_the_same_start(pool: Pool) -> None:
    assert [pool.incarnate(who, "n1", "uid-1") for who in "aabb"] == [1, 1, 1, 1]
    assert [pool.incarnate(who, "n2") for who in "ab"] == [1, 1]


def test_another_uid_is_one_more_and_the_old_one_keeps_its_number(pool: Pool) -> None:
    pool.incarnate("a", "n1", "uid-1")
    assert pool.incarnate("a", "n1", "uid-2") == 2
    assert pool.incarnate("b", "n1", "uid-1") == 1
    assert pool.incarnate("b", "n1", "uid-2") == 2


def test_down_and_up_again_is_one_more(pool: Pool) -> None:
    pool.incarnate("a", "n1")
    pool.drop_node("a", "n1", 1)
    assert pool.incarnate("b", "n1") == 2
    pool.drop_node("a", "n1", 1)  # of the start before: known to be over
    assert pool.incarnate("a", "n1") == 2


def test_new_start_has_nothing_in_memory(pool: Pool) -> None:
    pool.incarnate("a", "n1", "uid-1")
    pool.ready("a", "n1")
    pool.incarnate("a", "n1", "uid-2")
    assert isinstance(pool.take("a", call("1")), Place)
    pool.ready("a", "n1", incarnation=2)
    assert granted(pool) == [("1", "n1")]


def test_dropped_node_serves_nobody_and_its_leases_stay_until_given_back(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    lease = pool.take("a", call("1"))
    pool.drop_node("b", "n1", 1)
    pool.ready("a", "n1", slots=2)
    assert isinstance(pool.take("a", call("2")), Place)
    assert pool.leases_on("n1") == 1
    pool.give_back("a", lease)
    assert pool.leases_on("n1") == 0


def test_remembered_nodes_that_are_down_are_bounded(pool: Pool) -> None:
    pool.ready("a", "n0")
    pool.each("a", "drop_node", [(f"n{i}", 5) for i in range(DOWN_NODES_MAX + 1)])
    assert pool.incarnate("a", "n0") == 1
    assert pool.incarnate("a", "n1") == 6


def test_forgotten_node_is_never_one_with_leases(pool: Pool) -> None:
    pool.ready("a", "n0")
    lease = pool.take("a", call("1"))
    pool.each("a", "drop_node", [(f"n{i}", 5) for i in range(DOWN_NODES_MAX + 1)])
    assert pool.leases_on("n0") == 1
    assert pool.incarnate("a", "n1") == 1
    pool.give_back("a", lease)
    assert pool.incarnate("a", "n0") == 6


def test_report_of_an_older_start_is_told_what_the_store_believes(pool: Pool) -> None:
    pool.incarnate("a", "n1", "x")
    assert pool.ready("b", "n1") is None
    pool.drop_node("a", "n1", 1)
    assert pool.ready("b", "n1") == (1, True)
    assert pool.incarnate("a", "n1", "x") == 2
    assert pool.ready("b", "n1") == (2, False)
    assert pool.ready("b", "n1", incarnation=2) is None


# loads


def test_load_begins_once(pool: Pool) -> None:
    assert pool.begin("a", "n1", "w") is True
    assert pool.begin("b", "n1", "w") is False
    assert pool.begin("b", "n1", "w", loading=False) is False


def test_node_loads_one_model_at_a_time(pool: Pool) -> None:
    assert pool.begin("a", "n1", "w") is True
    assert pool.begin("a", "n1", "v") is False
    assert pool.begin("a", "n2", "v") is True
    assert pool.begin("a", "n1", "u", loading=False) is True


def test_older_leader_begins_nothing(pool: Pool) -> None:
    assert pool.begin("a", "n1", "w", epoch=2) is True
    assert pool.begin("b", "n2", "w", epoch=1) is False
    assert pool.begin("a", "n2", "w", epoch=2) is True


def test_nothing_begins_on_a_node_that_is_down(pool: Pool) -> None:
    pool.drop_node("a", "n1", 1)
    assert pool.begin("a", "n1", "w") is False


def test_probe_does_not_end_a_load_but_its_loader_does(pool: Pool) -> None:
    pool.incarnate("a", "n1")
    pool.take("b", call("1"))
    pool.begin("a", "n1", "w")
    pool.wait(1)
    pool.ready("a", "n1")
    pool.ready("b", "n1", is_probe=False)
    assert granted(pool, "b") == []
    pool.ready("a", "n1", is_probe=False)
    assert granted(pool, "b") == [("1", "n1")]


def test_copy_that_unloads_serves_nobody_and_fails_back_by_its_loaders_word(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.begin("b", "n1", "w", loading=False)
    pool.wait(1)
    pool.ready("a", "n1")
    assert isinstance(pool.take("a", call("1")), Place)
    pool.ready("b", "n1", is_probe=False)
    assert granted(pool) == [("1", "n1")]


def test_only_begin_makes_a_copy_loading(pool: Pool) -> None:
    pool.ready("a", "n1", state=CopyState.LOADING)
    assert pool.begin("b", "n1", "w") is True
    pool.ready("b", "n1", state=CopyState.LOADING, is_probe=False)
    assert pool.begin("b", "n1", "w") is False


def test_load_ends_with_a_new_start_of_the_node(pool: Pool) -> None:
    pool.incarnate("a", "n1", "uid-1")
    pool.begin("a", "n1", "w")
    pool.incarnate("b", "n1", "uid-2")
    pool.ready("b", "n1", incarnation=2)
    assert isinstance(pool.take("a", call("1")), Lease)


def test_load_ends_when_its_loader_is_reaped(pool: Pool) -> None:
    pool.incarnate("a", "n1")
    pool.begin("a", "n1", "w")
    pool.wait(7, beating="b")
    pool.ready("b", "n1")
    assert isinstance(pool.take("b", call("1")), Lease)


def test_load_ends_after_the_longest_time_ollama_gives_it(pool: Pool) -> None:
    pool.begin("a", "n1", "w")
    pool.wait(LOAD_S_MAX - 1, beating="ab")
    assert pool.begin("b", "n1", "w") is False
    pool.wait(1, beating="ab")
    assert pool.begin("b", "n1", "w") is True


# gates


def test_closed_and_draining_gates_pass_nobody(pool: Pool) -> None:
    pool.ready("a", "n1", slots=4)
    pool.gate("a", "n1", "w", Gate.CLOSED)
    assert isinstance(pool.take("a", call("1")), Place)
    pool.gate("a", "n1", None, Gate.DRAINING)
    pool.gate("a", "n1", "w", Gate.OPEN)
    assert granted(pool) == []
    pool.gate("a", "n1", None, Gate.OPEN)
    assert granted(pool) == [("1", "n1")]


def test_gate_of_a_copy_says_nothing_about_its_neighbours(pool: Pool) -> None:
    pool.ready("a", "n1", weights="w", keys="m")
    pool.ready("a", "n1", weights="v", keys="k")
    pool.gate("a", "n1", "w", Gate.CLOSED)
    assert isinstance(pool.take("a", call("1", "k")), Lease)


def test_probe_lifts_no_gate(pool: Pool) -> None:
    pool.gate("a", "n1", "w", Gate.CLOSED)
    pool.gate("a", "n2", None, Gate.DRAINING)
    pool.ready("a", "n1")
    pool.ready("a", "n2")
    assert isinstance(pool.take("a", call("1")), Place)


def test_half_open_copy_passes_one_lease_at_a_time(pool: Pool) -> None:
    pool.ready("a", "n1", slots=4)
    running = pool.take("a", call("0"))
    pool.gate("a", "n1", "w", Gate.HALF_OPEN)
    for i in (1, 2):
        pool.take("a", call(str(i)))
    assert granted(pool) == []
    pool.give_back("a", running)
    assert granted(pool) == [("1", "n1")]
    pool.give_back("a", pool.got["a"][0])
    assert granted(pool) == [("1", "n1"), ("2", "n1")]


def test_half_open_node_passes_one_lease_over_all_its_copies(pool: Pool) -> None:
    pool.gate("a", "n1", None, Gate.HALF_OPEN)
    pool.ready("a", "n1", weights="w", keys="m", slots=2)
    pool.ready("a", "n1", weights="v", keys="k", slots=2)
    lease = pool.take("a", call("1", "m"))
    pool.take("a", call("2", "k"))
    pool.take("a", call("3", "m"))
    assert granted(pool) == []
    pool.give_back("a", lease)
    assert granted(pool) == [("2", "n1")]


def test_closed_gate_is_half_open_when_its_time_is_over(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    pool.gate("a", "n1", "w", Gate.CLOSED, until_s=pool.clock_s + 30)
    pool.take("a", call("1"))
    pool.take("a", call("2"))
    pool.wait(29, beating="ab")
    assert granted(pool) == []
    pool.wait(1, beating="ab")
    assert granted(pool) == [("1", "n1")]


def test_gate_closed_until_a_time_that_has_passed_is_half_open(pool: Pool) -> None:
    pool.ready("a", "n1", slots=2)
    pool.gate("a", "n1", None, Gate.CLOSED, until_s=pool.clock_s)
    assert isinstance(pool.take("a", call("1")), Lease)
    assert isinstance(pool.take("a", call("2")), Place)


def test_drain_ends_by_word_only(pool: Pool) -> None:
    pool.ready("a", "n1")
    pool.gate("a", "n1", None, Gate.DRAINING, until_s=pool.clock_s + 1)
    pool.wait(5, beating="ab")
    assert isinstance(pool.take("a", call("1")), Place)
