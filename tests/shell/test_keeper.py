"""The fleet's picture: what probes, loads and traffic tell it, and that the store hears the same."""

from __future__ import annotations

import json
from random import Random

import pytest
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from router.control.keeper import FleetKeeper
from router.errors import Outcome
from router.fleet.breaker import Circuit
from router.fleet.node import CopyState, Health, NodeSpec
from router.fleet.reports import Shown, parse_ps, parse_tags
from router.fleet.tickets import Gate, Lease, Place, Ticket
from router.policy.retry import Failure
from router.store.memory import MemoryStore
from router.wire.names import parse_name

KEY = parse_name("m:1").key
FOREVER = "2300-01-01T00:00:00Z"
SOON = "2026-01-01T00:00:01Z"
NOON_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z


class Clock:
    def __init__(self) -> None:
        self.time_s = 100.0

    def now_s(self) -> float:
        return self.time_s

    def wall_s(self) -> float:
        return NOON_S


def run(step) -> None:  # type: ignore[no-untyped-def]
    """Neither the keeper nor the store in memory ever suspends: a step is one call."""
    with pytest.raises(StopIteration):
        step.send(None)


def key_of(name: str) -> str:
    return parse_name(name).key


def tags(*names: str):  # type: ignore[no-untyped-def]
    models = [{"name": name, "model": name, "digest": f"d-{name}", "size": 10, "details": {}} for name in names]
    return parse_tags(json.dumps({"models": models}).encode(), key_of)


def ps(*names: str, until: str = FOREVER):  # type: ignore[no-untyped-def]
    models = [
        {"name": name, "digest": f"d-{name}", "size": 10, "size_vram": 10, "context_length": 4096, "expires_at": until}
        for name in names
    ]
    return parse_ps(json.dumps({"models": models}).encode(), key_of)


class House:
    """Nodes a, b ... that are up and have m:1 on disk."""

    def __init__(self, nodes: str = "a") -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock, Random(0))
        self.circuits: list[tuple[str, Circuit]] = []
        self.keeper = FleetKeeper(
            self.store,
            self.clock,
            interval_s=2.0,
            on_circuit=lambda node, circuit: self.circuits.append((node, circuit)),
        )
        self.granted: list[Lease] = []
        run(self.store.open(self._on_grant, lambda ticket, refusal: None))
        for name in nodes:
            run(self.keeper.add(NodeSpec(name, name, 11434)))
            run(self.keeper.answered(name, "0.33.0"))
            run(self.keeper.saw_tags(name, tags("m:1")))

    def _on_grant(self, lease: Lease) -> bool:
        self.granted.append(lease)
        return True

    def take(self, ticket: str) -> Lease | Place:
        try:
            self.store.take(Ticket(ticket, (KEY,))).send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("the store in memory never waits")

    def lease(self, ticket: str) -> Lease:
        lease = self.take(ticket)
        assert isinstance(lease, Lease), lease
        return lease

    def saw_ps(self, name: str, *names: str, asked_at_s: float | None = None, until: str = FOREVER) -> None:
        asked_s = self.store.now_s() if asked_at_s is None else asked_at_s
        run(self.keeper.saw_ps(name, ps(*names, until=until), NOON_S, asked_s))

    def fail(self, lease: Lease, failure: Failure | None, outcome: Outcome = Outcome.OK) -> None:
        """In the pipeline's order: the slot goes on only when it is known what came of it."""
        run(self.keeper.attempt_ended(lease, failure, outcome))
        run(self.store.give_back(lease, outcome, 0))

    def is_ready(self, name: str) -> bool:
        return any(row.node == name for row in self.keeper.snapshot.holding(KEY).ready.rows)


def test_what_is_resident_serves_and_what_is_not_does_not() -> None:
    house = House()
    assert isinstance(house.take("t1"), Place)
    house.saw_ps("a", "m:1")
    assert [lease.ticket for lease in house.granted] == ["t1"]
    run(house.store.give_back(house.granted[0], Outcome.OK, 0))
    house.saw_ps("a")
    assert not house.is_ready("a")
    assert isinstance(house.take("t2"), Place)


def test_a_node_that_left_is_still_known_to_its_leases_and_its_return_is_another_start() -> None:
    house = House()
    spec = house.keeper.spec_of("a")
    starts = []
    for _ in range(3):
        for event in (house.keeper.missed, house.keeper.missed, house.keeper.missed):
            run(event("a"))
        for _ in range(2):
            run(house.keeper.answered("a", "0.33.0"))
        run(house.keeper.remove("a"))
        assert house.keeper.spec_of("a") == spec
        run(house.keeper.add(spec))
        starts.append(house.keeper.snapshot.nodes["a"].incarnation)
        run(house.keeper.answered("a", "0.33.0"))
        run(house.keeper.saw_tags("a", tags("m:1")))
        house.saw_ps("a", "m:1")
        house.fail(house.lease(f"t{len(starts)}"), None)
    assert starts == sorted(set(starts)), "an old number's reports would be ignored"


def test_a_node_that_left_with_an_open_circuit_comes_back_without_one() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    for number in range(3):
        house.fail(house.lease(f"t{number}"), Failure.CONNECT_TIMEOUT)
    assert house.keeper.circuits.not_closed() == {("a", None): Circuit.OPEN}
    run(house.keeper.remove("a"))
    run(house.keeper.add(NodeSpec("a", "a", 11434, slots=2)))
    run(house.keeper.answered("a", "0.33.0"))
    run(house.keeper.saw_tags("a", tags("m:1")))
    house.saw_ps("a", "m:1")
    assert [house.lease(ticket).node for ticket in ("t8", "t9")] == ["a", "a"]


def test_of_nodes_that_left_the_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.control.left.LEFT_MAX", 2)
    house = House("abc")
    for name in "abc":
        run(house.keeper.remove(name))
    assert [house.keeper.spec_of(name).name for name in "bc"] == ["b", "c"]
    with pytest.raises(KeyError):
        house.keeper.spec_of("a")


def test_a_report_that_was_asked_for_before_a_load_ended_changes_nothing() -> None:
    """/api/ps does not list what is loading, and its answer may come after the load's."""
    house = House()
    asked_at_s = house.store.now_s()
    house.clock.time_s += 1
    run(house.store.begin("a", house.keeper.snapshot.nodes["a"].models[KEY].weights, loading=True, epoch=1))
    run(house.keeper.loaded("a", house.keeper.snapshot.nodes["a"].models[KEY].weights, 4096))
    house.saw_ps("a", asked_at_s=asked_at_s)
    assert house.is_ready("a")
    assert house.lease("t1").num_ctx == 4096


def test_a_copy_about_to_expire_is_not_ready_unless_somebody_uses_it() -> None:
    house = House()
    house.saw_ps("a", "m:1", until=SOON)
    assert not house.is_ready("a")
    house.saw_ps("a", "m:1")
    lease = house.lease("t1")
    house.saw_ps("a", "m:1", until=SOON)
    assert house.is_ready("a"), "expires_at stands still while a call runs"
    run(house.store.give_back(lease, Outcome.OK, 0))
    house.saw_ps("a", "m:1", until=SOON)
    assert not house.is_ready("a")


def test_a_refused_connection_takes_the_node_down_at_once_for_everybody() -> None:
    house = House("ab")
    for name in "ab":
        house.saw_ps(name, "m:1")
    leases = {lease.node: lease for lease in (house.lease("t1"), house.lease("t2"))}
    house.fail(leases["a"], Failure.CONNECT_REFUSED)
    assert house.keeper.snapshot.nodes["a"].health is Health.DOWN
    assert not house.is_ready("a")
    assert isinstance(house.take("t3"), Place), "b is taken, a is down"
    assert house.keeper.circuits.not_closed() == {}, "down says more than a breaker"


def test_three_missed_probes_take_it_down_and_two_good_ones_bring_back_another_start() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    before = house.keeper.snapshot.nodes["a"].incarnation
    for health in (Health.DEGRADED, Health.DEGRADED, Health.DOWN):
        assert house.is_ready("a")
        run(house.keeper.missed("a"))
        assert house.keeper.snapshot.nodes["a"].health is health
    run(house.keeper.answered("a", "0.33.0"))
    assert house.keeper.snapshot.nodes["a"].health is Health.DOWN
    run(house.keeper.answered("a", "0.33.0"))
    node = house.keeper.snapshot.nodes["a"]
    assert (node.health, node.incarnation, dict(node.copies)) == (Health.HEALTHY, before + 1, {})
    assert KEY in node.models, "the disk is as it was"


def test_a_pod_with_another_uid_has_nothing_in_memory() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    run(house.keeper.add(NodeSpec("a", "a", 11434, uid="other")))
    assert isinstance(house.take("t1"), Place)


def test_a_model_that_a_node_has_lost_is_absent_there() -> None:
    house = House("ab")
    for name in "ab":
        house.saw_ps(name, "m:1")
    leases = {lease.node: lease for lease in (house.lease("t1"), house.lease("t2"))}
    house.fail(leases["a"], Failure.MODEL_GONE)
    assert list(house.keeper.snapshot.holding(KEY).by_node) == ["b"]
    assert isinstance(house.take("t3"), Place)


def test_a_copy_that_fails_is_closed_and_tried_with_one_call_at_a_time() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    for number in range(3):
        house.fail(house.lease(f"f{number}"), Failure.RESET)
    assert isinstance(house.take("t1"), Place)
    assert isinstance(house.take("t2"), Place)
    house.clock.time_s += 3
    run(house.store.beat())
    (trial,) = house.granted
    house.fail(trial, Failure.RESET)
    run(house.store.beat())
    assert len(house.granted) == 1, "the trial failed: closed again, for longer"
    assert isinstance(house.take("t3"), Place)
    house.clock.time_s += 5
    run(house.store.beat())
    house.fail(house.granted[1], None)
    assert house.keeper.circuits.not_closed() == {}
    assert house.circuits == [("a", Circuit.OPEN), ("a", Circuit.OPEN), ("a", Circuit.CLOSED)]
    assert [lease.ticket for lease in house.granted] == ["t1", "t2", "t3"]


def test_what_says_nothing_about_the_node_is_held_against_nobody() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    for number, outcome in enumerate([Outcome.CANCELLED, Outcome.STALLED, Outcome.DRAINED, Outcome.TIMEOUT] * 5):
        house.fail(house.lease(f"c{number}"), None, outcome)
    for number in range(12):
        house.fail(house.lease(f"b{number}"), Failure.BUSY)
    assert house.keeper.circuits.not_closed() == {}


def test_a_copy_whose_own_errors_pass_is_closed_like_one_that_breaks() -> None:
    """It is never busy: it would draw the calls of all that are."""
    house = House()
    house.saw_ps("a", "m:1")
    for number in range(3):
        house.fail(house.lease(f"f{number}"), None, Outcome.UPSTREAM_ERROR)
    assert house.circuits == [("a", Circuit.OPEN)]
    assert isinstance(house.take("t1"), Place)


def test_whoever_waits_is_told_when_a_copy_is_ready_with_another_context() -> None:
    house, told = House("ab"), list[tuple[str, ...]]()
    house.keeper.on_context = lambda keys: told.append(tuple(keys))
    weights = house.keeper.snapshot.nodes["b"].models[KEY].weights
    house.saw_ps("a", "m:1")
    house.saw_ps("a", "m:1")
    assert told == [(KEY,)], "once, not with every probe"
    run(house.keeper.loaded("b", weights, 0))
    assert told == [(KEY,)], "nobody knows the context yet"
    run(house.keeper.loaded("b", weights, 8192))
    run(house.keeper.loaded("b", weights, 16384))
    assert told == [(KEY,)] * 3


def test_a_node_that_is_gone_from_discovery_leaves_nothing() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    for number in range(3):
        house.fail(house.lease(f"f{number}"), Failure.RESET)
    run(house.keeper.remove("a"))
    assert (dict(house.keeper.snapshot.nodes), dict(house.keeper.snapshot.index)) == ({}, {})
    assert house.keeper.circuits.not_closed() == {}
    assert isinstance(house.take("t1"), Place)
    # What was under way when it went has no effect any more.
    house.saw_ps("a", "m:1")
    run(house.keeper.saw_tags("a", tags("m:1")))
    run(house.keeper.answered("a", "0.33.0"))
    run(house.keeper.loaded("a", "w", 1))
    run(house.keeper.not_loaded("a", "w"))
    assert dict(house.keeper.snapshot.nodes) == {}


def test_a_node_that_drains_gets_nothing_new_and_keeps_what_it_has() -> None:
    house = House("ab")
    house.saw_ps("a", "m:1")
    running = house.lease("t1")
    assert isinstance(house.take("t2"), Place)
    run(house.keeper.drain("a"))
    run(house.keeper.drain("a"))
    assert house.keeper.snapshot.nodes["a"].health is Health.DRAINING
    assert dict(house.store.occupancy) == {("a", "d-m:1"): 1}
    house.fail(running, None)
    assert house.granted == [], "the slot that came free belongs to nobody: its node drains"
    house.saw_ps("b", "m:1")
    assert [(lease.ticket, lease.node) for lease in house.granted] == [("t2", "b")]
    house.fail(house.granted.pop(), None)
    run(house.keeper.resume("a"))
    run(house.keeper.resume("a"))
    assert (house.keeper.drained(), house.is_ready("a")) == (frozenset(), True)
    assert {house.lease("t3").node, house.lease("t4").node} == {"a", "b"}


def test_a_drain_outlives_probes_breakers_and_the_node_itself() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    lease = house.lease("t1")
    run(house.keeper.drain("a"))
    for _ in range(3):
        run(house.keeper.attempt_ended(lease, Failure.CONNECT_TIMEOUT, Outcome.OK))
    assert house.keeper.circuits.not_closed() == {("a", None): Circuit.OPEN}
    house.clock.time_s += 3
    house.fail(lease, None)
    assert house.keeper.circuits.not_closed() == {}, "it answered: the breaker is closed again, the drain is not lifted"
    assert isinstance(house.take("t2"), Place)
    run(house.keeper.attempt_ended(lease, Failure.CONNECT_REFUSED, Outcome.OK))
    assert (house.keeper.snapshot.nodes["a"].health, house.keeper.drained()) == (Health.DOWN, {"a"})
    run(house.keeper.answered("a", "0.33.0"))
    run(house.keeper.answered("a", "0.33.0"))
    house.saw_ps("a", "m:1")
    assert house.keeper.snapshot.nodes["a"].health is Health.DRAINING
    assert house.granted == []
    run(house.keeper.resume("a"))
    assert [lease.ticket for lease in house.granted] == ["t2"]


def test_a_breaker_that_is_open_stays_so_when_its_node_resumes() -> None:
    house = House()
    house.saw_ps("a", "m:1")
    lease = house.lease("t1")
    for _ in range(3):
        run(house.keeper.attempt_ended(lease, Failure.CONNECT_TIMEOUT, Outcome.OK))
    run(house.store.give_back(lease, Outcome.UPSTREAM_ERROR, 0))
    run(house.keeper.drain("a"))
    run(house.keeper.resume("a"))
    assert isinstance(house.take("t2"), Place)
    house.clock.time_s += 3
    run(house.store.beat())
    assert [lease.ticket for lease in house.granted] == ["t2"]


@pytest.mark.parametrize("why", ["drain", "breaker"])
def test_a_node_that_leaves_and_comes_back_is_shut_for_nothing_that_is_forgotten(why: str) -> None:
    house = House()
    house.saw_ps("a", "m:1")
    if why == "drain":
        run(house.keeper.drain("a"))
    else:
        for number in range(3):
            house.fail(house.lease(f"f{number}"), Failure.RESET)
    run(house.keeper.remove("a"))
    run(house.keeper.add(NodeSpec("a", "a", 11434, slots=2)))
    run(house.keeper.answered("a", "0.33.0"))
    run(house.keeper.saw_tags("a", tags("m:1")))
    house.saw_ps("a", "m:1")
    assert house.keeper.drained() == frozenset()
    assert [house.lease(f"t{number}").node for number in range(2)] == ["a", "a"]


class Histories(RuleBasedStateMachine):
    """Whatever is told in whatever order: the snapshot and the store agree on who may serve."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House("ab")
        self.leases: list[Lease] = []
        self.tickets = 0

    nodes = st.sampled_from("ab")

    @rule(name=nodes)
    def probe(self, name: str) -> None:
        run(self.house.keeper.answered(name, "0.33.0"))

    @rule(name=nodes)
    def miss(self, name: str) -> None:
        run(self.house.keeper.missed(name))

    @rule(name=nodes, resident=st.booleans(), until=st.sampled_from([FOREVER, SOON]))
    def report(self, name: str, resident: bool, until: str) -> None:
        if self.house.keeper.snapshot.nodes[name].health is not Health.DOWN:
            self.house.saw_ps(name, *["m:1"] * resident, until=until)

    @rule(name=nodes, listed=st.booleans())
    def list_disk(self, name: str, listed: bool) -> None:
        if self.house.keeper.snapshot.nodes[name].health is not Health.DOWN:
            run(self.house.keeper.saw_tags(name, tags(*["m:1"] * listed)))

    @rule(name=nodes, is_drain=st.booleans())
    def drain_or_resume(self, name: str, is_drain: bool) -> None:
        run(self.house.keeper.drain(name) if is_drain else self.house.keeper.resume(name))

    @rule()
    def arrive(self) -> None:
        self.tickets += 1
        answer = self.house.take(f"t{self.tickets}")
        if isinstance(answer, Lease):
            self.leases.append(answer)

    @rule(failure=st.sampled_from([None, *Failure]), which=st.integers(0, 99))
    def end(self, failure: Failure | None, which: int) -> None:
        self.leases += self.house.granted
        self.house.granted.clear()
        if self.leases:
            self.house.fail(self.leases.pop(which % len(self.leases)), failure)

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0]))
    def wait(self, seconds: float) -> None:
        self.house.clock.time_s += seconds
        run(self.house.store.beat())

    @invariant()
    def they_agree(self) -> None:
        for name, node in self.house.keeper.snapshot.nodes.items():
            entry = self.house.store.book.ledger.copies.nodes[name]
            ready = {weights for weights, copy in entry.copies.items() if copy.state is CopyState.READY}
            believed = {weights for weights, copy in node.copies.items() if copy.state is CopyState.READY}
            assert ready == (believed if node.health is not Health.DOWN else set())
            assert entry.incarnation == node.incarnation

    @invariant()
    def drains_are_lifted_by_word_only(self) -> None:
        nodes = self.house.store.book.ledger.copies.nodes
        assert {name for name, entry in nodes.items() if entry.gate is Gate.DRAINING} == self.house.keeper.drained()

    @invariant()
    def no_slot_is_used_twice(self) -> None:
        held = len(self.leases) + len(self.house.granted)
        assert sum(self.house.store.occupancy.values()) == held


Histories.TestCase.settings = examples(max_examples=40, stateful_step_count=30, deadline=None)
TestHistories = Histories.TestCase


def test_a_load_that_got_less_context_than_it_named_has_met_the_training_context() -> None:
    """Else whoever asks for more would have the model loaded over and over."""
    house = House()
    house.keeper.saw_show("d-m:1", Shown("w"))
    run(house.keeper.saw_tags("a", tags("m:1")))
    run(house.keeper.loaded("a", "w", 16384, has_ctx=8192))
    row = house.keeper.snapshot.holding(KEY).by_node["a"]
    assert (row.num_ctx, row.context_max) == (8192, 8192)
    run(house.keeper.saw_tags("a", tags("m:1")))
    assert house.keeper.snapshot.holding(KEY).by_node["a"].context_max == 8192
