"""Further copies, and whose turn it is where memory is short."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from router.fleet.node import Health
from router.fleet.snapshot import Snapshot
from router.fleet.tickets import LineView
from router.policy import placement
from router.policy.experience import NOTHING_LEARNT, Experience, Utilization, did_not_fit, loaded, looked
from router.policy.placement import Displace, Load, Mode, place
from router.policy.room import LATE, Held, ran_out, took_room
from tests.fleet.builders import fleet, node

NOW_S = 1000.0
OLD: Experience = replace(NOTHING_LEARNT, load_s=MappingProxyType({"w:x": 10.0, "w:y": 10.0, "w:z": 10.0}))


def line(model: str, depth: int, wait_s: float, drain_per_s: float = 0.0) -> LineView:
    return LineView(model, depth, wait_s, 0, None, 256, drain_per_s)


def loads(
    snapshot: Snapshot,
    *lines: LineView,
    experience: Experience = OLD,
    occupancy: dict[tuple[str, str], int] | None = None,
    leaving: frozenset[tuple[str, str]] = frozenset(),
    loading: dict[str, str] | None = None,
    since_s: dict[str, float] | None = None,
) -> list[tuple[str, str, tuple[str, ...]]]:
    actions = place(
        lines,
        snapshot,
        loading=loading or {},
        backoff={},
        now_s=NOW_S,
        mode=Mode.ON_DEMAND,
        occupancy=occupancy or {},
        experience=experience,
        leaving=leaving,
        since_s=since_s or {},
    )
    return [(action.node, action.key, action.displaces) for action in actions if isinstance(action, Load)]


def test_a_second_copy_comes_when_the_line_would_wait_longer_than_a_load() -> None:
    snapshot = fleet(node("a", disk="x", ready="x"), node("b", disk="x"))
    assert loads(snapshot, line("x", depth=20, wait_s=5, drain_per_s=1.0)) == [("b", "x", ())]
    assert loads(snapshot, line("x", depth=9, wait_s=5, drain_per_s=1.0)) == []
    assert loads(snapshot, line("x", depth=99, wait_s=1.9, drain_per_s=1.0)) == [], "a burst that is young"


def test_several_further_copies_come_at_once_where_one_more_would_not_be_enough_and_nothing_has_to_go() -> None:
    snapshot = fleet(
        node("a", disk="x", ready="x"),
        node("b", disk="x", loading="x"),
        node("c", disk="x y", vram_bytes=2000),
        node("d", disk="x y", ready="y", vram_bytes=2000),
    )
    on_b = {"b": "w:x"}
    assert loads(snapshot, line("x", depth=21, wait_s=5, drain_per_s=1.0), loading=on_b) == [("c", "x", ())]
    assert loads(snapshot, line("x", depth=20, wait_s=5, drain_per_s=1.0), loading=on_b) == [], "with b's it is served"
    full = fleet(*(each for name, each in snapshot.nodes.items() if name != "c"))
    assert loads(full, line("x", depth=999, wait_s=99, drain_per_s=1.0), loading=on_b) == [], "y would have to go"


def test_what_comes_to_a_faster_node_counts_for_more() -> None:
    def pool(weight: float) -> Snapshot:
        loading = node("b", disk="x", loading="x", weight=weight)
        return fleet(node("a", disk="x", ready="x"), loading, node("c", disk="x"))

    on_b, waiting = {"b": "w:x"}, line("x", depth=31, wait_s=5, drain_per_s=1.0)
    assert loads(pool(2.0), waiting, loading=on_b) == [("c", "x", ())], "31 s, of which a third is left: more than 10 s"
    assert loads(pool(2.2), waiting, loading=on_b) == []


def fast_and_slow(*, weight: float = 2.0, vram_bytes: int = 3000) -> Snapshot:
    """The fast one loads y; `weight` is its own, and x would have room on both."""
    fast = node("fast", disk="x y", loading="y", weight=weight, vram_bytes=vram_bytes)
    return fleet(fast, node("slow", disk="x", vram_bytes=3000))


def test_a_cold_model_waits_for_a_faster_node_that_is_about_to_end_its_load() -> None:
    """20 s, since it is twice as fast: the load of 10 s there and back."""

    def at(*, wait_s: float, began_s: float, snapshot: Snapshot) -> list[tuple[str, str, tuple[str, ...]]]:
        since_s = {"fast": NOW_S - began_s}
        return loads(snapshot, line("x", depth=3, wait_s=wait_s), loading={"fast": "w:y"}, since_s=since_s)

    assert at(wait_s=1.0, began_s=2.0, snapshot=fast_and_slow()) == []
    assert at(wait_s=18.0, began_s=9.0, snapshot=fast_and_slow()) == []
    on_slow = [("slow", "x", ())]
    assert at(wait_s=20.0, began_s=30.0, snapshot=fast_and_slow()) == on_slow, "nobody waits without end"
    assert at(wait_s=1.0, began_s=0.0, snapshot=fast_and_slow(weight=1.5)) == on_slow, "it is not so much faster"
    assert at(wait_s=1.0, began_s=9.0, snapshot=fast_and_slow(weight=1.0)) == on_slow
    assert at(wait_s=1.0, began_s=9.0, snapshot=fast_and_slow(vram_bytes=1500)) == on_slow, "no room beside y"


def test_of_two_cold_models_the_second_waits_for_the_faster_node_that_the_first_took() -> None:
    snapshot = fleet(node("fast", disk="x y", weight=2.0, vram_bytes=3000), node("slow", disk="x y", vram_bytes=3000))
    both = (line("y", depth=1, wait_s=2.0), line("x", depth=1, wait_s=1.0))
    assert loads(snapshot, *both) == [("fast", "y", ())]


def test_while_the_first_copy_comes_no_further_one_does() -> None:
    snapshot = fleet(node("a", disk="x", loading="x"), node("b", disk="x"))
    assert loads(snapshot, line("x", depth=999, wait_s=99), loading={"a": "w:x"}) == []


def test_copies_that_have_just_come_show_first_what_they_make_of_the_line() -> None:
    snapshot = fleet(node("a", disk="x", ready="x"), node("b", disk="x"))
    young = replace(OLD, ready_since=MappingProxyType({("a", "w:x"): NOW_S - 1.0}))
    assert loads(snapshot, line("x", depth=99, wait_s=20, drain_per_s=1.0), experience=young) == []


def full(*, slots: int = 2) -> Snapshot:
    """A card that holds x, and has room for nothing beside it."""
    return fleet(node("a", disk="x y", ready="x", slots=slots, vram_bytes=1500))


def test_who_waits_for_a_cold_model_gets_a_turn_when_it_has_waited_as_much_as_that_costs() -> None:
    busy = {("a", "w:x"): 2}
    assert loads(full(), line("y", depth=2, wait_s=19), occupancy=busy) == []
    assert loads(full(), line("y", depth=2, wait_s=20), occupancy=busy) == [("a", "y", ("w:x",))]


def test_where_others_wait_for_what_goes_a_turn_is_three_times_as_long() -> None:
    """A memory too small for both lines would spend half of its time loading."""
    busy, others = {("a", "w:x"): 2}, line("x", depth=1, wait_s=1)
    assert loads(full(), line("y", depth=2, wait_s=59), others, occupancy=busy) == []
    assert loads(full(), line("y", depth=2, wait_s=60), others, occupancy=busy) == [("a", "y", ("w:x",))]


def test_a_lone_call_gets_its_turn_while_it_is_still_there() -> None:
    """Three times 160 slot-seconds would be more than anybody waits."""
    busy, others = {("a", "w:x"): 8}, line("x", depth=9, wait_s=9)
    assert loads(full(slots=8), line("y", depth=1, wait_s=159), others, occupancy=busy) == []
    assert loads(full(slots=8), line("y", depth=1, wait_s=160), others, occupancy=busy) == [("a", "y", ("w:x",))]


def short_lines_for(waited_s: float, *, is_short: bool = False, served_s: float = 60.0) -> Experience:
    """Of x, which is never in use for a whole minute; a load of it costs 20 slot-seconds."""
    return replace(
        OLD,
        utilization=MappingProxyType({"w:x": Utilization(0.5, 1.0)}),
        waited_s=MappingProxyType({"w:x": waited_s}),
        is_short=is_short,
        ready_since=MappingProxyType({("a", "w:x"): NOW_S - served_s}),
    )


def pair(*, weight: float = 1.0) -> Snapshot:
    """Of x, which has two slots on a; on b it may be loaded."""
    return fleet(node("a", disk="x", ready="x", slots=2), node("b", disk="x", slots=2, weight=weight))


def test_a_further_copy_comes_when_short_lines_have_waited_as_long_as_it_costs() -> None:
    short = line("x", depth=1, wait_s=0.5, drain_per_s=1.0)
    assert loads(pair(), short, experience=short_lines_for(20.1)) == [("b", "x", ())]
    assert loads(pair(), short, experience=short_lines_for(20.0)) == []
    assert loads(pair(), short, experience=short_lines_for(99.0, served_s=1.9)) == [], "that was before it came"


def test_a_slower_node_must_be_paid_for_longer() -> None:
    short = line("x", depth=1, wait_s=0.5, drain_per_s=1.0)
    assert loads(pair(weight=0.5), short, experience=short_lines_for(40.0)) == []
    assert loads(pair(weight=0.5), short, experience=short_lines_for(40.1)) == [("b", "x", ())]
    assert loads(pair(weight=9.0), short, experience=short_lines_for(20.0)) == [], "and a faster one is no cheaper"


def test_for_short_lines_nothing_is_displaced_and_no_memory_taken_that_others_need() -> None:
    short = line("x", depth=1, wait_s=0.5, drain_per_s=1.0)
    assert loads(pair(), short, experience=short_lines_for(99.0, is_short=True)) == []
    on_b = node("b", disk="x y", ready="y", slots=2, vram_bytes=1500)
    full_up = fleet(node("a", disk="x", ready="x", slots=2), on_b)
    assert loads(full_up, short, experience=short_lines_for(99.0)) == [], "y is idle, and stays"


def test_what_short_lines_have_waited_is_forgotten_when_a_copy_comes() -> None:
    serving = fleet(node("a", disk="x", ready="x", slots=2), node("b", disk="x", slots=2))
    seen = NOTHING_LEARNT
    for second in range(10):
        seen = looked(seen, (line("x", 3, 1.0),), serving, {("a", "w:x"): 2}, float(second))
    assert 27 < seen.waited_s["w:x"] < 30
    later = looked(seen, (), serving, {}, 9.0 + 60.0)
    assert later.waited_s["w:x"] == pytest.approx(seen.waited_s["w:x"], rel=0.02), "a pause that nobody saw is none"
    coming = fleet(node("a", disk="x", ready="x", slots=2), node("b", disk="x", loading="x", slots=2))
    assert looked(seen, (line("x", 3, 1.0),), coming, {("a", "w:x"): 2}, 10.0).waited_s == {}


def test_who_waits_for_a_first_copy_does_not_ask_for_a_second() -> None:
    cold = fleet(node("a", disk="x"), node("b", disk="x"))
    assert looked(NOTHING_LEARNT, (line("x", 9, 30.0),), cold, {}, 0.0).waited_s == {}


def test_memory_is_short_while_something_that_was_asked_for_is_in_none() -> None:
    warm = fleet(node("a", disk="x y", ready="x"))
    assert not looked(NOTHING_LEARNT, (line("x", 1, 1.0),), warm, {}, 0.0).is_short
    seen = looked(NOTHING_LEARNT, (line("x", 1, 1.0), line("y", 1, 1.0)), warm, {}, 0.0)
    assert seen.is_short
    assert looked(seen, (), warm, {}, 60.0).is_short, "that was a minute ago"
    assert not looked(seen, (), warm, {}, 3600.0).is_short


def test_what_nobody_uses_makes_room_at_once() -> None:
    assert loads(full(), line("y", depth=1, wait_s=0)) == [("a", "y", ("w:x",))]


def test_a_copy_serves_its_time_before_it_goes() -> None:
    busy = {("a", "w:x"): 2}
    young = replace(OLD, ready_since=MappingProxyType({("a", "w:x"): NOW_S - 5.0}))
    assert loads(full(), line("y", depth=2, wait_s=900), experience=young, occupancy=busy) == []


def test_a_further_copy_never_displaces_what_is_waited_for() -> None:
    snapshot = fleet(
        node("a", disk="x y", ready="x", slots=2, vram_bytes=1500),
        node("b", disk="x y", ready="y", slots=2, vram_bytes=1500),
    )
    long = line("x", depth=200, wait_s=100, drain_per_s=1.0)
    light = {("b", "w:y"): 1, ("a", "w:x"): 2}
    assert loads(snapshot, long, occupancy=light) == [("b", "x", ("w:y",))]
    assert loads(snapshot, long, line("y", depth=1, wait_s=1), occupancy=light) == []


def test_the_load_goes_where_what_goes_has_another_copy() -> None:
    snapshot = fleet(
        node("a", disk="x y z", ready="x", slots=4, vram_bytes=1500),
        node("b", disk="x y z", ready="x", slots=4, vram_bytes=1500),
        node("c", disk="x y z", ready="z", slots=4, vram_bytes=1500),
    )
    busy = {("a", "w:x"): 1, ("c", "w:z"): 1}
    assert loads(snapshot, line("y", depth=1, wait_s=0), occupancy=busy)[0][2] == ("w:x",)
    gone = {"occupancy": busy, "leaving": frozenset({("b", "w:x")}), "loading": {"b": "w:q"}}
    assert loads(snapshot, line("y", depth=1, wait_s=0), **gone) == [], "the other copy is leaving already"


def test_large_models_keep_a_card_that_is_nearly_empty() -> None:
    snapshot = fleet(node("a", disk="x y", vram_bytes=8000), node("b", disk="x y", ready="y", vram_bytes=8000))
    assert loads(snapshot, line("x", depth=1, wait_s=0)) == [("b", "x", ())]


def test_demand_is_averaged_and_fades() -> None:
    snapshot = fleet(node("a", disk="x", ready="x"))
    seen = looked(NOTHING_LEARNT, (line("x", 3, 1.0),), snapshot, {("a", "w:x"): 1}, 0.0)
    assert seen.heat_of("w:x") == 4.0
    assert seen.resident_bytes == {"w:x": 1000}
    later = looked(seen, (), snapshot, {}, 60.0)
    assert 1.4 < later.heat_of("w:x") < 1.5
    assert later.ready_since == {("a", "w:x"): 0.0}
    assert looked(later, (), snapshot, {}, 3600.0).heat == {}


def test_load_times_follow_what_loads_take() -> None:
    assert NOTHING_LEARNT.load_s_of("w", 0) == 10.0
    assert NOTHING_LEARNT.load_s_of("w", 8_000_000_000) == 8.0
    once = loaded(NOTHING_LEARNT, "w", 20.0)
    assert loaded(once, "w", 10.0).load_s_of("w", 1) == 15.0
    assert loaded(once, "w", 30.0, waited=True) == once, "it waited for what had to go, nobody knows how long"
    assert loaded(once, "w", 10.0, waited=True).load_s_of("w", 1) == 15.0


def test_a_copy_that_no_probe_has_seen_yet_takes_its_room_all_the_same() -> None:
    """Taken for nothing, a load beside it would make Ollama evict what has just come, or wait for it without end."""
    known = node("a", disk="x y", ready="x", vram_bytes=2200, size_bytes=1000)
    unseen = replace(known.copies["w:x"], size_bytes=0, vram_bytes=0)
    snapshot = fleet(replace(known, copies=MappingProxyType({"w:x": unseen})))
    assert loads(snapshot, line("y", depth=1, wait_s=0)) == [("a", "y", ("w:x",))]


def test_a_model_that_was_never_seen_in_a_memory_takes_more_than_its_file() -> None:
    snapshot = fleet(node("a", disk="x y", ready="x", vram_bytes=2400, size_bytes=1000))
    assert loads(snapshot, line("y", depth=1, wait_s=0)) == [("a", "y", ("w:x",))]
    seen = replace(OLD, resident_bytes=MappingProxyType({"w:y": 1000}))
    assert loads(snapshot, line("y", depth=1, wait_s=0), experience=seen) == [("a", "y", ())]


def test_a_burst_before_copies_that_are_idle_most_of_the_time_brings_no_further_one() -> None:
    snapshot = fleet(node("a", disk="x", ready="x", slots=4), node("b", disk="x", slots=4))
    long = line("x", depth=99, wait_s=20, drain_per_s=1.0)
    for share, expected in ((0.69, []), (0.7, [("b", "x", ())])):
        used = replace(OLD, utilization=MappingProxyType({"w:x": Utilization(share, 1.0)}))
        assert loads(snapshot, long, experience=used) == expected


def test_utilization_is_a_mean_over_the_time_since_a_model_was_asked_for_first() -> None:
    snapshot = fleet(node("a", disk="x", ready="x", slots=4))
    seen = looked(NOTHING_LEARNT, (), snapshot, {}, 0.0)
    assert seen.utilization_of("w:x") == 1.0, "nobody knows"
    for at_s, leases in ((1.0, 4), (2.0, 4), (3.0, 0), (4.0, 0)):
        seen = looked(seen, (), snapshot, {("a", "w:x"): leases} if leases else {}, at_s)
    assert 0.45 < seen.utilization_of("w:x") < 0.5
    waiting = looked(seen, (line("x", 100, 1.0),), snapshot, {}, 5.0)
    assert seen.utilization_of("w:x") < waiting.utilization_of("w:x") < 0.62, "never more than all of its slots"
    assert looked(waiting, (), snapshot, {}, 5.0).utilization == waiting.utilization, "no time has passed"


# memory that nobody has declared


def undeclared() -> Snapshot:
    return fleet(node("a", disk="x y z", ready="x y", slots=1, size_bytes=1000))


def test_what_once_did_not_fit_makes_room_the_next_time() -> None:
    assert loads(undeclared(), line("z", depth=1, wait_s=0)) == [("a", "z", ())]
    learnt = did_not_fit(replace(OLD, resident_bytes=MappingProxyType({"w:z": 1000})), "a", 3250)
    assert len(loads(undeclared(), line("z", depth=1, wait_s=0), experience=learnt)[0][2]) == 1
    assert loads(fleet(node("a", disk="z")), line("z", depth=1, wait_s=0), experience=learnt) == [("a", "z", ())]


def test_a_node_that_holds_what_should_not_fit_has_more_memory_than_that() -> None:
    learnt = did_not_fit(NOTHING_LEARNT, "a", 2000)
    assert did_not_fit(learnt, "a", 3000).vram_bytes == {"a": 2000}
    assert looked(learnt, (), undeclared(), {}, 1.0).vram_bytes == {}
    assert looked(did_not_fit(learnt, "a", 1999), (), fleet(node("a", ready="x")), {}, 1.0).vram_bytes == {"a": 1999}


def test_memory_that_was_learnt_is_that_of_a_node_that_is_there() -> None:
    learnt = did_not_fit(did_not_fit(NOTHING_LEARNT, "gone", 2000), "down", 2000)
    snapshot = fleet(node("down", disk="x", health=Health.DOWN), node("a", disk="x"))
    assert looked(did_not_fit(learnt, "a", 2000), (), snapshot, {}, 1.0).vram_bytes == {"a": 2000}


def test_what_went_for_a_load_tells_how_much_is_too_much() -> None:
    before = {"x": Held(1000, 900.0), "y": Held(500, 50.0)}
    assert took_room(before, {"y"}, 800, 100.0) == 2500
    assert took_room(before, {"x"}, 800, 100.0) is None, "it may have gone for its age"
    assert took_room(before, {"x", "y"}, 800, 100.0) is None, "nothing went"
    assert took_room({**before, "z": Held(1, 900.0)}, {"y", "z"}, 800, 100.0) is None, "it may have gone for the number"


def test_a_load_that_failed_for_want_of_memory_makes_room_the_next_time() -> None:
    learnt = ran_out(OLD, "a", "w:z", 1000, {"w:x": Held(1000, 0.0), "w:y": Held(1000, 0.0)})
    assert learnt.vram_bytes == {"a": 3250}
    assert ran_out(OLD, "a", "w:z", 0, {}) == OLD, "nobody knows how large it is"
    assert len(loads(undeclared(), line("z", depth=1, wait_s=0), experience=learnt)[0][2]) == 1


def test_a_load_that_waits_for_memory_gets_it_by_sending_calls_elsewhere() -> None:
    """Ollama waits until a copy is idle, and while calls go on coming it never is."""
    busy = {("a", "w:x"): 1, ("a", "w:y"): 1}
    snapshot = fleet(node("a", disk="x y z", ready="x y", loading="z"))

    def late(
        began_s: float, leaving: frozenset[tuple[str, str]] = frozenset(), mode: Mode = Mode.ON_DEMAND
    ) -> list[str]:
        actions = place(
            (line("z", depth=1, wait_s=60),),
            snapshot,
            loading={"a": "w:z"},
            backoff={},
            now_s=NOW_S,
            mode=mode,
            occupancy=busy,
            experience=OLD,
            leaving=leaving,
            since_s={"a": began_s},
        )
        return [action.weights for action in actions if isinstance(action, Displace)]

    assert late(NOW_S - LATE * 10.0 + 1.0) == []
    (first,) = late(NOW_S - LATE * 10.0)
    (second,) = late(NOW_S - LATE * 10.0, frozenset({("a", first)}))
    assert {first, second} == {"w:x", "w:y"}
    assert late(0.0, frozenset({("a", first), ("a", second)})) == [], "nothing is left that could go"
    assert late(0.0, mode=Mode.OBSERVE) == [], "the mode was turned down while it loaded"


def test_a_line_that_has_cost_nothing_of_late_is_not_weighed_on_every_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over a hundred busy lines and a thousand nodes would stop every stream for seconds."""
    weighed: list[str] = []
    monkeypatch.setattr(placement, "cost_of", lambda row, pool: weighed.append(row.node))
    monkeypatch.setattr(placement, "has_paid", lambda row, serving, pool: weighed.append(row.node))
    snapshot = fleet(node("a", disk="x", ready="x"), *(node(f"n{number}", disk="x") for number in range(200)))
    assert loads(snapshot, line("x", depth=1, wait_s=0.5, drain_per_s=1.0)) == []
    assert weighed == []
    paid = replace(short_lines_for(99.0), ready_since=MappingProxyType({("a", "w:x"): NOW_S - 60.0}))
    loads(snapshot, line("x", depth=1, wait_s=0.5, drain_per_s=1.0), experience=paid)
    assert len(weighed) == placement.COSTED_MAX


def test_what_was_learnt_of_more_models_than_a_pool_serves_goes_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.policy.experience.LEARNT_MAX", 2)
    learnt = NOTHING_LEARNT
    for weights in ("w:x", "w:y", "w:z"):
        learnt = loaded(learnt, weights, 7.0)
        learnt = looked(learnt, (), fleet(node("a", ready=weights.removeprefix("w:"))), {}, 0.0)
    assert set(learnt.load_s) == set(learnt.resident_bytes) == {"w:y", "w:z"}
