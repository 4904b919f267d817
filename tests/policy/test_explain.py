"""An explanation is the decision itself, in words: whatever the fleet, it names whom the decision names."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Rejection
from router.fleet.breaker import Circuit
from router.fleet.node import Health
from router.fleet.snapshot import Snapshot, snapshot_of
from router.fleet.tickets import LineView
from router.policy.candidates import Circumstances
from router.policy.experience import NOTHING_LEARNT
from router.policy.explain import Explanation, Question, explain
from router.policy.filters import Bar, bar_of, usable
from router.policy.placement import Load, LoadFailure, Mode, Refuse, place
from router.policy.schedule import SAMPLE_MAX, Want, schedule
from router.policy.verdicts import End
from tests.fleet.builders import fleet, node, nodes

NOW_S = 100.0
LIMIT = 4


def line(key: str, depth: int = 0, drain_per_s: float = 0.0) -> LineView:
    return LineView(key, depth, 1.0 if depth else 0.0, 0, None, LIMIT, drain_per_s)


def at(snapshot: Snapshot, busy: Mapping[tuple[str, str], int] | None = None, **more: Any) -> Circumstances:
    basis: dict[str, Any] = {
        "lines": {key: line(key) for key in ("x", "y", "a", "b", "none", "x:cloud")},
        "circuits": {},
        "loading": {},
        "failures": {},
        "mode": Mode.ON_DEMAND,
        "now_s": NOW_S,
    }
    return Circumstances(snapshot=snapshot, occupancy=busy or {}, **{**basis, **more})


def about(moment: Circumstances, *, seed: int = 1, **more: Any) -> Explanation:
    return explain(Question(**{"model": "X", "targets": ("x",), **more}), moment, random.Random(seed))


def ending(explanation: Explanation) -> tuple[End, str, str]:
    verdict = explanation.verdict
    return verdict.end, verdict.node, verdict.reason


fleets = st.lists(nodes("abcdefghijkl"), max_size=12).map(snapshot_of)
occupancies = st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(0, 4)).map(
    lambda leases: {(name, weights): count for name, count in leases.items() for weights in ("w:a", "w:b", "w")}
)


@given(
    fleets,
    occupancies,
    st.sampled_from([("a",), ("b", "a")]),
    st.sampled_from([0, 2048, 4096, 9999]),
    st.sampled_from(["", "talk"]),
    st.integers(),
)
def test_the_first_candidate_is_whom_the_decision_prefers(
    snapshot: Snapshot,
    busy: dict[tuple[str, str], int],
    targets: tuple[str, ...],
    num_ctx: int,
    affinity: str,
    seed: int,
) -> None:
    said = about(at(snapshot, busy), seed=seed, targets=targets, num_ctx=num_ctx, affinity=affinity)
    decision = schedule(Want(targets, affinity, num_ctx), snapshot, busy, random.Random(seed))
    open_ones = [candidate for candidate in said.candidates if candidate.bar is None]
    assert tuple(dict.fromkeys(one.node for one in open_ones if one.rank))[:8] == decision.preferred
    if decision.preferred:
        assert (open_ones[0].node, open_ones[0].rank) == (decision.preferred[0], 1)
    else:
        assert not open_ones
        assert said.verdict.end is not End.SERVED


@given(fleets, occupancies, st.sampled_from([0, 2048, 4096, 9999]))
def test_every_node_that_has_the_model_appears_once_as_a_candidate_or_barred_with_a_reason(
    snapshot: Snapshot, busy: dict[tuple[str, str], int], num_ctx: int
) -> None:
    said = about(at(snapshot, busy), targets=("a", "b"), num_ctx=num_ctx)
    places = [(one.model, one.node) for one in said.candidates]
    assert sorted(places) == sorted((key, name) for key in ("a", "b") for name in snapshot.holding(key).by_node)
    for one in said.candidates:
        assert one.why
        assert all(one.why)
        assert (one.load is None) == (one.bar is not None)
        assert not one.has_room or one.bar is None


@given(fleets, st.frozensets(st.sampled_from("abcdef")), st.sampled_from([0, 2048, 4096, 9999]))
def test_what_is_barred_is_exactly_what_a_decision_does_not_look_at(
    snapshot: Snapshot, excluded: frozenset[str], num_ctx: int
) -> None:
    for key in "ab":
        rows = snapshot.holding(key)
        looked_at = {
            row.node for ring in (rows.ready, rows.last_resort) for row in usable(ring.rows, excluded, num_ctx)
        }
        assert {row.node for row in rows.by_node.values() if bar_of(row, excluded, num_ctx) is None} == looked_at


@given(fleets, occupancies, st.sampled_from([Mode.ON_DEMAND, Mode.OBSERVE]))
def test_a_load_is_foretold_where_the_placer_would_begin_one(
    snapshot: Snapshot, busy: dict[tuple[str, str], int], mode: Mode
) -> None:
    said = about(at(snapshot, busy, mode=mode), targets=("a",))
    actions = place([line("a", 1)], snapshot, loading={}, backoff={}, now_s=NOW_S, mode=mode, occupancy=busy)
    loads = [action.node for action in actions if isinstance(action, Load)]
    if said.verdict.end is End.WAITS:
        assert loads == [said.verdict.node] * len(loads)
    if any(isinstance(action, Refuse) for action in actions):
        assert said.verdict.end is End.REFUSED


def test_every_reason_to_pass_over_a_node_is_told() -> None:
    snapshot = fleet(
        node("free", ready="x", disk="x", num_ctx=8192),
        node("narrow", ready="x", disk="x", num_ctx=2048),
        node("drains", ready="x", disk="x", health=Health.DRAINING),
        node("down", disk="x", health=Health.DOWN),
        node("disk", disk="x"),
        node("loads", disk="x y"),
        node("other", disk="x y"),
        node("failed", disk="x"),
        node("cloudy", cloud="x"),
    )
    moment = at(
        snapshot,
        loading={"loads": "w:x", "other": "w:y"},
        failures={("failed", "w:x"): LoadFailure(2, NOW_S + 7, "no memory")},
    )
    said = {one.node: (one.bar, one.state, one.why[0]) for one in about(moment, num_ctx=8192).candidates}
    assert said == {
        "free": (None, "ready", "0 of 1 slots taken"),
        "narrow": (Bar.CONTEXT, "ready", "loaded with a context of 2048 tokens, 8192 are asked for"),
        "drains": (Bar.DRAINING, "ready", "the node is draining"),
        "down": (Bar.DOWN, "on_disk", "the node is down"),
        "disk": (Bar.NOT_READY, "on_disk", "on disk, not in memory"),
        "loads": (Bar.NOT_READY, "loading", "is loading it"),
        "other": (Bar.NOT_READY, "on_disk", "on disk; the node loads another model"),
        "failed": (Bar.NOT_READY, "on_disk", "on disk; its last load failed, not again for 7 s: no memory"),
        "cloudy": (Bar.NOT_READY, "on_disk", "a cloud model: nothing to load"),
    }


def test_a_copy_about_to_go_is_told_apart_from_one_on_disk() -> None:
    said = about(at(fleet(node("a", expiring="x", disk="x"), node("b", expiring="x")))).candidates
    assert [one.why[0] for one in said] == [
        "about to leave memory",
        "about to leave memory, and in no list of its disk",
    ]


def test_spilled_copies_and_circuits_are_told() -> None:
    snapshot = fleet(node("s", disk="x", spilled="x"), node("a", disk="x", ready="x", slots=2))
    said = about(at(snapshot, {("a", "w:x"): 1}, circuits={("a", None): Circuit.HALF_OPEN}))
    assert [(one.node, one.circuit, one.has_room, one.why[1]) for one in said.candidates] == [
        ("a", "half_open", False, "its circuit is half-open"),
        ("s", "closed", True, "partly in CPU memory, 50% of it: a last resort"),
    ]
    assert ending(said) == (End.SERVED, "s", "least_busy")


@pytest.mark.parametrize("key", [("a", "w:x"), ("a", None)])
def test_an_open_circuit_gives_out_nothing_and_a_half_open_one_a_single_lease(key: tuple[str, str | None]) -> None:
    snapshot = fleet(node("a", disk="x", ready="x", slots=4))
    for circuit, used, ends in [
        (Circuit.OPEN, 0, End.WAITS),
        (Circuit.HALF_OPEN, 0, End.SERVED),
        (Circuit.HALF_OPEN, 1, End.WAITS),
    ]:
        moment = at(snapshot, {("a", "w:x"): used} if used else {}, circuits={key: circuit})
        assert about(moment).verdict.end is ends


def test_a_conversation_is_told_where_it_is_at_home() -> None:
    snapshot = fleet(*(node(name, disk="x", ready="x") for name in "abc"))
    said = about(at(snapshot), affinity="talk")
    home = said.candidates[0]
    assert (home.affinity, home.why[1]) == (1, "has this conversation")
    assert sum(one.affinity == 1 for one in said.candidates) == 1
    assert ending(said) == (End.SERVED, home.node, "affinity")
    full = about(at(snapshot, {(name, "w:x"): 1 for name in "abc"}), affinity="talk")
    (own,) = [one for one in full.candidates if one.node == home.node]
    assert own.why[1:] == ("has this conversation, but no room or more than its share",) or own.rank == 1
    assert full.verdict.end is End.WAITS


def test_a_line_is_told_with_its_depth_and_pace() -> None:
    snapshot = fleet(node("a", disk="x", ready="x", slots=2))
    moment = at(snapshot, {("a", "w:x"): 2}, lines={"x": line("x", 3, 2.0)})
    said = about(moment)
    assert said.verdict.text == "x waits in line, behind 3, for one of 2 slots: about 2 s"
    assert [(wait.model, wait.depth, wait.max_waiting, wait.estimate_s) for wait in said.lines] == [
        ("x", 3, LIMIT, 2.0)
    ]
    still = about(at(snapshot, {("a", "w:x"): 2}))
    assert still.verdict.text == "x waits in line, first, for one of 2 slots: for how long nobody knows yet"


def test_refusals_name_the_reason_that_the_call_would_get() -> None:
    loaded = fleet(node("a", disk="x", ready="x", num_ctx=4096))
    cold, failed = fleet(node("a", disk="x")), {("a", "w:x"): LoadFailure(1, NOW_S + 5, "no memory")}
    full = at(loaded, {("a", "w:x"): 1}, lines={"x": line("x", LIMIT)})
    cases: list[tuple[Circumstances, dict[str, Any], str]] = [
        (at(fleet(node("a", disk="y"))), {}, Rejection.MODEL_NOT_FOUND),
        (at(fleet(node("a", disk="y"), node("b", is_read=False))), {}, Rejection.NO_NODE),
        (at(fleet(node("a", cloud="x"))), {}, Rejection.CLOUD),
        (at(fleet(node("a", disk="x:cloud"))), {"targets": ("x:cloud",)}, Rejection.CLOUD),
        (at(fleet(node("a", disk="x", health=Health.DOWN))), {}, Rejection.NO_NODE),
        (at(loaded), {"num_ctx": 5000}, Rejection.NUM_CTX),
        (full, {}, Rejection.QUEUE_FULL),
        (at(cold, mode=Mode.OBSERVE), {}, Rejection.NOT_LOADED),
        (at(cold, failures=failed), {}, ""),
    ]
    for moment, more, reason in cases:
        said = about(moment, **more)
        assert ending(said) == (End.REFUSED, "", reason), said.verdict


def test_a_call_waits_for_the_first_target_that_can_be_had_however_free_the_next_one_is() -> None:
    snapshot = fleet(node("a", disk="x y", ready="x y"), node("b", disk="y"))
    busy = {("a", "w:x"): 1}
    said = about(at(snapshot, busy), targets=("none", "x", "y"), overflows=(("y", 20.0),))
    assert (said.verdict.end, said.overflows) == (End.WAITS, (("y", 20.0),))
    assert said.verdict.text.startswith("x waits in line, first, for one of 1 slots")
    full = {key: line(key, depth) for key, depth in {"none": 0, "x": LIMIT, "y": 0}.items()}
    assert ending(about(at(snapshot, busy, lines=full), targets=("x", "y"))) == (End.REFUSED, "", "queue_full")


def test_a_cloud_model_is_refused_only_where_they_are_switched_off_and_nothing_else_is_asked() -> None:
    snapshot = fleet(node("a", disk="y", ready="y", cloud="x"))
    assert about(at(snapshot, has_cloud=True)).verdict.reason != Rejection.CLOUD
    assert ending(about(at(snapshot), targets=("x", "y"))) == (End.SERVED, "a", "loaded")


def test_a_copy_that_serves_on_is_known_to_be_in_the_way() -> None:
    crowded = fleet(node("a", disk="x y", ready="y", vram_bytes=1500))
    young = replace(NOTHING_LEARNT, ready_since={("a", "w:y"): NOW_S - 2.0})
    busy = {("a", "w:y"): 1}
    waiting = {"x": replace(line("x", depth=2), oldest_wait_s=600.0), "y": line("y")}
    assert ending(about(at(crowded, busy, lines=waiting))) == (End.WAITS, "a", "cold_load")
    assert ending(about(at(crowded, busy, lines=waiting, experience=young))) == (End.WAITS, "", "cold_load")


def test_a_load_that_runs_and_one_that_cannot_begin_are_waited_for() -> None:
    cold = fleet(node("a", disk="x y"))
    assert ending(about(at(cold))) == (End.WAITS, "a", "cold_load")
    assert "a load that runs on a" in about(at(cold, loading={"a": "w:x"})).verdict.text
    assert ending(about(at(cold, loading={"a": "w:y"}))) == (End.WAITS, "", "cold_load")


def test_more_copies_than_are_scored_are_said_to_be_a_sample() -> None:
    many = snapshot_of(node(f"n{number}", disk="x", ready="x") for number in range(SAMPLE_MAX + 1))
    assert about(at(many)).is_sampled
    assert not about(at(fleet(node("a", ready="x")))).is_sampled


@pytest.mark.parametrize(("began_s_ago", "node_told"), [(1.0, ""), (0.0, "slow")])
def test_a_load_that_runs_is_taken_for_as_long_as_it_has_to_go(began_s_ago: float, node_told: str) -> None:
    """The fast node is half as fast again: whatever is there in less than 10 s is worth waiting for."""
    fast = node("fast", disk="x y", loading="y", weight=1.5, vram_bytes=3000)
    snapshot = fleet(fast, node("slow", disk="x", vram_bytes=3000))
    learnt = replace(NOTHING_LEARNT, load_s=MappingProxyType({"w:x": 10.0, "w:y": 10.0}))
    since_s = {"fast": NOW_S - began_s_ago}
    said = about(at(snapshot, loading={"fast": "w:y"}, since_s=since_s, experience=learnt))
    assert ending(said) == (End.WAITS, node_told, "cold_load")
