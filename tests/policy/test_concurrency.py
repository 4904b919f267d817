"""Slots learnt from when calls came and went: never more than a node has, and less than declared where it has less."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.concurrency import (
    AGAIN_S_MAX,
    AGAIN_S_MIN,
    QUEUED_TIMES,
    RANS_KEPT,
    SHOWN_FOR_S,
    SLOTS_MAX,
    TRIAL_AFTER_S,
    TRIAL_S,
    Learnt,
    Ran,
    aged,
    decided,
    fresh,
    queued_elsewhere,
    ran,
    shown_elsewhere,
    tried,
)

LAG_S = 0.1  # a node's word is heard so much later at most


@dataclass
class Copy:
    """A node's copy with slots, first come, first served, as Ollama; and a router that keeps it as busy as it may."""

    slots: int
    learnt: Learnt
    now_s: float = 1000.0
    free_s: list[float] = field(default_factory=list)  # when each slot is free
    running: list[tuple[float, float]] = field(default_factory=list)  # ends as heard, and when sent

    def serve(self, lengths: list[tuple[float, float, float]]) -> Copy:
        """Calls that wait in line, each with its prefill, its decoding and the lag of its words."""
        self.free_s = [self.now_s] * self.slots
        ends: list[tuple[float, int, Ran]] = []
        leases: list[float] = []
        for number, (prefill_s, decode_s, lag_s) in enumerate(lengths):
            while len(leases) >= self.learnt.slots:
                self._end(ends, leases)
            self.learnt = tried(self.learnt, TRIAL_AFTER_S, self.now_s)
            began_s = max(self.now_s, heapq.heappop(self.free_s))
            ended_s = began_s + prefill_s + decode_s
            heapq.heappush(self.free_s, ended_s)
            call = Ran(self.now_s, began_s + prefill_s + lag_s, ended_s + lag_s, len(leases) + 1)
            heapq.heappush(ends, (call.ended_s, number, call))
            leases.append(call.ended_s)
            self.now_s += 0.3  # the next one is sent after what puts calls in order
        while ends:
            self._end(ends, leases)
        return self

    def _end(self, ends: list[tuple[float, int, Ran]], leases: list[float]) -> None:
        ended_s, _, call = heapq.heappop(ends)
        leases.remove(ended_s)
        self.now_s = max(self.now_s, ended_s)
        self.learnt = aged(ran(self.learnt, call), self.now_s)


calls = st.lists(st.tuples(st.floats(0.01, 30.0), st.floats(0.0, 60.0), st.floats(0.0, LAG_S)), min_size=1, max_size=60)


@given(st.integers(1, 6), calls)
def test_what_is_learnt_is_never_more_than_a_node_runs_at_once(
    slots: int, lengths: list[tuple[float, float, float]]
) -> None:
    copy = Copy(slots, fresh(None)).serve(lengths)
    assert 1 <= copy.learnt.base <= slots
    assert copy.learnt.slots <= slots + 1, "one more at most is lent, while it is tried"


@given(st.integers(1, 6), st.integers(1, 6), calls)
def test_what_is_declared_is_never_exceeded(
    slots: int, declared: int, lengths: list[tuple[float, float, float]]
) -> None:
    copy = Copy(slots, fresh(declared)).serve(lengths)
    assert 1 <= copy.learnt.slots <= declared


@pytest.mark.parametrize("slots", [1, 2, 4, 8])
def test_a_copy_under_a_live_line_shows_all_its_slots(slots: int) -> None:
    copy = Copy(slots, fresh(None)).serve([(0.5, 10.0, 0.0)] * 60)
    assert copy.learnt.base == slots


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_slots_that_a_node_does_not_have_are_noticed(slots: int) -> None:
    copy = Copy(slots, fresh(4)).serve([(0.5, 10.0, 0.0)] * 60)
    assert copy.learnt.base == slots


@pytest.mark.parametrize("declared", [2, 4])
def test_slots_that_a_node_has_stay_as_declared(declared: int) -> None:
    mixed = [(0.2, 5.0, 0.0), (8.0, 0.5, 0.0), (0.5, 30.0, 0.0), (3.0, 3.0, 0.05)] * 30
    copy = Copy(declared, fresh(declared)).serve(mixed)
    assert copy.learnt.base == declared


def test_one_call_alone_shows_nothing() -> None:
    assert ran(fresh(None), Ran(0, 1, 9, 1)).slots == 1


def test_an_answer_that_comes_while_an_earlier_one_runs_shows_two_slots() -> None:
    learnt = ran(ran(fresh(None), Ran(1, 2, 8, 2)), Ran(0, 1, 9, 1))
    assert (learnt.base, learnt.is_on_trial) == (2, False)


@pytest.mark.parametrize("other", [Ran(0.9, 1, 9, 1), Ran(0, 1, 2.1, 1)])
def test_what_the_order_of_two_connections_may_have_done_shows_nothing(other: Ran) -> None:
    assert ran(ran(fresh(None), Ran(1, 2, 8, 2)), other).base == 1


def queue(learnt: Learnt, times: int, beside: int = 2, start_s: float = 0.0) -> Learnt:
    """Pairs of calls, of which the second waited for the first's end."""
    for number in range(times):
        at_s = start_s + 20.0 * number
        learnt = ran(learnt, Ran(at_s, at_s + 1, at_s + 10, 1))
        learnt = ran(learnt, Ran(at_s + 0.5, at_s + 10.5, at_s + 19, beside))
    return learnt


def test_calls_that_waited_for_an_end_again_and_again_lower_what_is_declared_step_by_step() -> None:
    assert queue(fresh(4), QUEUED_TIMES - 1, beside=4).slots == 4
    lowered = queue(fresh(4), QUEUED_TIMES, beside=4)
    assert lowered.slots == 3
    assert queue(lowered, QUEUED_TIMES, beside=3, start_s=1000).slots == 2


def test_one_that_ran_beside_others_forgives_what_looked_queued() -> None:
    learnt = queue(fresh(2), QUEUED_TIMES - 1)
    learnt = ran(ran(learnt, Ran(501, 502, 508, 2)), Ran(500, 501, 509, 1))
    assert queue(learnt, QUEUED_TIMES - 1, start_s=1000).slots == 2


def test_what_was_lowered_is_tried_again_later_and_later() -> None:
    learnt = queue(fresh(2), QUEUED_TIMES)
    pauses = []
    for _ in range(8):
        assert tried(learnt, 99.0, learnt.again_s - 1) is learnt
        learnt = tried(learnt, TRIAL_AFTER_S, learnt.again_s)
        assert learnt.slots == 2
        over_s = learnt.trial_until_s
        assert aged(learnt, over_s - 1) is learnt
        learnt = aged(learnt, over_s)
        assert learnt.slots == 1
        pauses.append(learnt.again_s - over_s)
    assert pauses[:2] == [2 * AGAIN_S_MIN, 4 * AGAIN_S_MIN]
    assert pauses[-1] == AGAIN_S_MAX


def test_a_trial_needs_a_line_that_has_waited() -> None:
    assert tried(fresh(None), TRIAL_AFTER_S - 1, 0.0).slots == 1
    assert tried(fresh(None), TRIAL_AFTER_S, 0.0).trial_until_s == TRIAL_S
    assert tried(fresh(2), 1e9, 0.0).slots == 2, "what is declared is never exceeded"


def test_what_is_remembered_is_bounded() -> None:
    learnt = fresh(None)
    for number in range(3 * RANS_KEPT):
        learnt = ran(learnt, Ran(number, number + 0.5, number + 100, 1))
    assert len(learnt.rans) == RANS_KEPT
    many = fresh(None)
    for number in range(2 * SLOTS_MAX):
        many = ran(many, Ran(1 + number, 2 + number, 900 - number, number + 1))
    assert many.base <= SLOTS_MAX
    assert ran(learnt, Ran(1e6, 1e6 + 1, 1e6 + 2, 1)).rans == (Ran(1e6, 1e6 + 1, 1e6 + 2, 1),)


# --- what other replicas found

found = st.lists(st.tuples(st.booleans(), st.integers(0, SLOTS_MAX + 1), st.floats(0.0, 2 * SHOWN_FOR_S)), max_size=20)


@given(st.integers(1, SLOTS_MAX) | st.none(), found)
def test_of_what_others_found_a_proof_never_lowers_and_a_suspicion_never_raises_or_beats_a_proof_of_late(
    declared: int | None, words: list[tuple[bool, int, float]]
) -> None:
    learnt, now_s, proved_s = fresh(declared), 0.0, float("-inf")
    for is_proof, slots, after_s in words:
        now_s += after_s
        before, fold = learnt, shown_elsewhere if is_proof else queued_elsewhere
        learnt = fold(before, slots, now_s)
        assert 1 <= learnt.base <= learnt.most
        if is_proof:
            assert learnt.base == max(before.base, min(slots, before.most))
            proved_s = now_s if learnt is not before else proved_s
        else:
            assert learnt.base <= before.base
            assert learnt == before or now_s - proved_s >= SHOWN_FOR_S
        assert fold(learnt, slots, now_s).base == learnt.base, "told twice"
        assert decided(fresh(declared), learnt.base).base == learnt.base, "and all others have the same"


def test_a_suspicion_of_our_own_does_not_lower_what_another_replica_proved_of_late() -> None:
    learnt = shown_elsewhere(fresh(2), 2, 1000.0)
    for number in range(QUEUED_TIMES):
        end_s = 1002.0 + number
        learnt = ran(learnt, Ran(end_s - 1.6, end_s - 1.5, end_s - 0.2, 1))
        learnt = ran(learnt, Ran(end_s - 1.5, end_s - 0.1, end_s, 2))
    assert learnt.base == 2


def test_a_trial_ends_where_another_replica_saw_calls_wait_for_it() -> None:
    lent = tried(fresh(None), TRIAL_AFTER_S, 1000.0)
    assert lent.slots == 2
    assert queued_elsewhere(lent, 1, 1001.0).slots == 1
