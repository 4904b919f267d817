"""What is loaded where for the lines that wait: once per set of weights, on the best node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Rejection
from router.fleet.node import Health, Node
from router.fleet.snapshot import Snapshot, snapshot_of
from router.fleet.tickets import LineView
from router.policy.experience import in_line
from router.policy.placement import (
    BACKOFF_S_MAX,
    BACKOFF_S_MIN,
    Action,
    Load,
    Mode,
    Refuse,
    load_backoff_s,
    place,
)
from tests.fleet.builders import fleet, node, nodes

SAME = {"x": "w", "y": "w"}  # two names of one set of weights


def line(
    model: str = "x",
    depth: int = 1,
    *,
    wait_s: float = 1.0,
    num_ctx: int = 0,
    keep_alive_s: float | None = None,
    excluded: str = "",
    names_no_ctx: bool = False,
    overflowed: int = 0,
) -> LineView:
    return LineView(
        *(model, depth, wait_s, num_ctx, keep_alive_s, 256, 0.0, frozenset(excluded.split()), names_no_ctx),
        overflowed=overflowed,
    )


def placed(
    snapshot: Snapshot,
    *lines: LineView,
    loading: Mapping[str, str] | None = None,
    backoff: Mapping[tuple[str, str], float] | None = None,
    mode: Mode = Mode.ON_DEMAND,
    occupancy: Mapping[tuple[str, str], int] | None = None,
) -> tuple[Action, ...]:
    return place(
        lines or (line(),),
        snapshot,
        loading=loading or {},
        backoff=backoff or {},
        now_s=100.0,
        mode=mode,
        occupancy=occupancy or {},
    )


def where(actions: Sequence[Action]) -> list[str]:
    return [action.node for action in actions if isinstance(action, Load)]


def test_fifty_that_wait_for_a_cold_model_are_one_load() -> None:
    snapshot = fleet(node("a", disk="x"), node("b", disk="x"), node("c", disk="x"))
    (load,) = placed(snapshot, line(depth=50))
    assert load == Load(where([load])[0], "X", "x", "w:x")
    assert placed(snapshot, line(depth=50), loading={load.node: "w:x"}) == ()


def test_two_names_of_the_same_weights_are_one_load_with_what_both_ask_for() -> None:
    snapshot = fleet(node("a", disk="x y", weights=SAME), node("b", disk="x y", weights=SAME))
    asked = (line("x", num_ctx=8192, keep_alive_s=60), line("y", num_ctx=4096, keep_alive_s=600))
    (load,) = placed(snapshot, *asked)
    assert isinstance(load, Load)
    assert (load.weights, load.num_ctx, load.keep_alive_s) == ("w", 8192, 600)


def test_every_replica_chooses_the_same_node() -> None:
    members = [node(name, disk="x") for name in "abcdef"]
    assert where(placed(snapshot_of(members))) == where(placed(snapshot_of(reversed(members))))


def test_weights_spread_over_equal_nodes() -> None:
    models = [f"m{number}" for number in range(60)]
    snapshot = fleet(*(node(name, disk=" ".join(models)) for name in "abc"))
    assert {where(placed(snapshot, line(model)))[0] for model in models} == set("abc")


def test_for_more_context_than_any_copy_has_another_is_loaded_or_else_one_anew() -> None:
    """Those who wait for it are calls of an alias that overrides num_ctx: all others were refused."""
    small = node("a", disk="x", ready="x", num_ctx=2048)
    assert placed(fleet(small, node("b", disk="x")), line(num_ctx=8192)) == (Load("b", "X", "x", "w:x", 8192),)
    assert placed(fleet(small), line(num_ctx=8192)) == (Load("a", "X", "x", "w:x", 8192),)
    assert placed(fleet(small), line(num_ctx=8192), mode=Mode.OBSERVE) == ()
    assert placed(fleet(small, node("b", disk="x", ready="x", num_ctx=8192)), line(num_ctx=8192)) == ()
    trained_with_less = node("a", disk="x", ready="x", num_ctx=2048, context_max=2048)
    assert placed(fleet(trained_with_less), line(num_ctx=8192)) == ()


def test_a_ready_copy_is_waited_for() -> None:
    assert placed(fleet(node("a", disk="x", ready="x"), node("b", disk="x")), line(depth=99)) == ()


def test_a_ready_copy_that_the_line_may_not_use_is_not_waited_for() -> None:
    snapshot = fleet(node("a", disk="x", ready="x"), node("b", disk="x"))
    assert where(placed(snapshot, line(excluded="a"))) == ["b"]


def test_a_load_that_failed_goes_to_another_node_and_comes_back_after_its_backoff() -> None:
    snapshot = fleet(node("a", disk="x"), node("b", disk="x"))
    first = where(placed(snapshot))[0]
    other = "b" if first == "a" else "a"
    assert where(placed(snapshot, backoff={(first, "w:x"): 105.0})) == [other]
    both = {(first, "w:x"): 105.0, (other, "w:x"): 105.0}
    assert placed(snapshot, backoff=both) == ()
    assert where(placed(snapshot, backoff=dict.fromkeys(both, 100.0))) == [first]


def test_backoff_doubles_up_to_its_bound() -> None:
    assert [load_backoff_s(failures) for failures in (1, 2, 3)] == [BACKOFF_S_MIN, 10, 20]
    assert load_backoff_s(10**6) == BACKOFF_S_MAX


def test_a_node_loads_one_model_at_a_time() -> None:
    snapshot = fleet(node("a", disk="x y"))
    assert placed(snapshot, loading={"a": "w:z"}) == ()
    actions = placed(snapshot, line("x", wait_s=1), line("y", wait_s=9))
    assert [action.key for action in actions if isinstance(action, Load)] == ["y"]


def test_a_load_that_the_snapshot_already_shows_is_not_repeated() -> None:
    assert placed(fleet(node("a", disk="x", loading="x"), node("b", disk="x"))) == ()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (node("a", disk="x", vram_bytes=2000), node("b", disk="x", vram_bytes=1100)),
        (node("a", disk="x", vram_bytes=2000), node("b", disk="x")),
        (node("a", disk="x"), node("b", disk="x", vram_bytes=1000)),
        (node("a", disk="x"), node("b", disk="x z", ready="z")),
        (node("a", disk="x z", ready="z"), node("b", disk="x y", ready="y")),
        (node("a", disk="x", weight=2.0), node("b", disk="x")),
    ],
)
def test_the_load_goes_where_it_does_the_least_harm(better: Node, worse: Node) -> None:
    busy = {("b", "w:y"): 2, ("a", "w:z"): 1}
    assert where(placed(fleet(better, worse), occupancy=busy)) == ["a"]


def test_an_expiring_copy_with_a_line_is_renewed_where_it_is_as_it_is() -> None:
    snapshot = fleet(node("a", disk="x", weight=9.0), node("b", disk="x", expiring="x", num_ctx=8192))
    assert placed(snapshot) == (Load("b", "X", "x", "w:x", num_ctx=8192, is_renewal=True),)


def test_a_line_whose_model_no_node_can_serve_is_refused() -> None:
    for members in (
        [],
        [node("a", disk="y")],
        [node("a", disk="x", health=Health.DOWN)],
        [node("a", disk="x", health=Health.DRAINING)],
        [node("a", cloud="x")],
    ):
        assert placed(fleet(*members)) == (Refuse("x", Rejection.NO_NODE),)
    assert placed(fleet(node("a", disk="x")), line(excluded="a")) == (Refuse("x", Rejection.NO_NODE),)


def test_observing_never_loads_and_says_so() -> None:
    cold = fleet(node("a", disk="x"))
    assert placed(cold, mode=Mode.OBSERVE) == (Refuse("x", Rejection.NOT_LOADED),)
    assert placed(fleet(node("a", ready="x")), mode=Mode.OBSERVE) == ()


def test_an_empty_line_moves_nothing() -> None:
    assert placed(fleet(node("a", disk="x")), line(depth=0)) == ()


@given(
    st.lists(nodes(), max_size=5),
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.integers(0, 50), st.floats(0, 100), st.sets(st.sampled_from("pqrst"))),
        unique_by=lambda asked: asked[0],
        max_size=5,
    ),
    st.dictionaries(st.sampled_from("pqrst"), st.sampled_from(["w:a", "w"])),
    st.dictionaries(st.tuples(st.sampled_from("pqrst"), st.sampled_from(["w:a", "w"])), st.floats(0, 200)),
    st.sampled_from(Mode),
)
def test_no_pass_asks_for_the_impossible_or_twice(
    members: list[Node],
    asked: list[tuple[str, int, float, set[str]]],
    loading: dict[str, str],
    backoff: dict[tuple[str, str], float],
    mode: Mode,
) -> None:
    snapshot = snapshot_of(members)
    lines = [line(model, depth, wait_s=wait_s, excluded=" ".join(out)) for model, depth, wait_s, out in asked]
    actions = placed(snapshot, *lines, loading=loading, backoff=backoff, mode=mode) if lines else ()
    loads = [action for action in actions if isinstance(action, Load)]
    assert len({load.node for load in loads}) == len(loads)
    assert not loads or mode is not Mode.OBSERVE
    for load in loads:
        holder = snapshot.nodes[load.node]
        assert holder.health in (Health.HEALTHY, Health.DEGRADED)
        assert load.node not in loading
        assert backoff.get((load.node, load.weights), 0) <= 100
        assert holder.models[load.key].name == load.model
        assert load.key in {waiting.model for waiting in lines if waiting.depth and load.node not in waiting.excluded}
    acted = [action.key for action in actions]
    assert len(set(acted)) == len(acted)


def test_a_line_with_somebody_who_cannot_name_a_context_is_loaded_with_the_nodes_own() -> None:
    (load,) = placed(fleet(node("a", disk="x")), line(num_ctx=8192, names_no_ctx=True))
    assert (load.num_ctx, load.is_default) == (0, True)
    (shared,) = placed(
        fleet(node("a", disk="x y", weights=SAME)), line("x", num_ctx=8192), line("y", names_no_ctx=True)
    )
    assert (shared.num_ctx, shared.is_default) == (0, True)


@pytest.mark.parametrize("where_it_is", ["ready", "expiring"])
def test_a_copy_with_a_named_context_is_loaded_anew_for_who_cannot_name_it(where_it_is: str) -> None:
    snapshot = fleet(node("a", disk="x", num_ctx=8192, is_named=True, **{where_it_is: "x"}))
    (load,) = placed(snapshot, line(names_no_ctx=True))
    assert (load.node, load.num_ctx, load.is_renewal) == ("a", 0, False)
    if where_it_is == "ready":
        assert placed(snapshot, line()) == (), "who can name it has a copy"
    assert placed(snapshot, line(names_no_ctx=True), loading={"a": "w:x"}) == ()


# calls that overflowed, and wait in another line first


GIB = 2**30


def card(name: str, gib: int | None, *, ready: str = "", disk: str = "x y") -> Node:
    return node(name, disk=disk, ready=ready, size_bytes=8 * GIB, vram_bytes=None if gib is None else gib * GIB)


@pytest.mark.parametrize(
    ("snapshot", "loads"),
    [
        (fleet(card("a", 16, ready="y"), card("b", 16)), ["b"]),
        (fleet(card("a", 24, ready="y")), ["a"]),
        (fleet(card("a", 16, ready="y")), []),  # something would have to go
        (fleet(card("a", None, ready="y")), []),  # perhaps
        (fleet(card("a", None)), ["a"]),
        (fleet(card("a", 24, ready="x")), []),  # it is there, they wait for a slot
        (fleet(node("a", disk="x", expiring="x")), ["a"]),
    ],
)
def test_for_those_who_overflowed_a_model_is_loaded_only_where_nothing_goes_for_it(
    snapshot: Snapshot, loads: list[str]
) -> None:
    waiting = line("x", 5, wait_s=1e6, overflowed=5)
    assert where(placed(snapshot, waiting)) == loads
    assert where(placed(snapshot, waiting, mode=Mode.OBSERVE)) == []


def test_a_call_in_two_lines_asks_for_a_load_in_its_first_only() -> None:
    snapshot = fleet(card("a", 12), card("b", 12))
    both = (line("x", 5, wait_s=9), line("y", 5, wait_s=10, overflowed=5))
    assert [action.key for action in placed(fleet(card("a", 12)), *both) if isinstance(action, Load)] == ["x"]
    (load, other) = placed(snapshot, *both)
    assert isinstance(load, Load)
    assert isinstance(other, Load)
    assert (load.key, other.key) == ("x", "y"), "what is left may serve them sooner"


def test_no_further_copy_is_loaded_for_the_number_of_those_who_overflowed() -> None:
    snapshot = fleet(node("a", disk="x", ready="x"), node("b", disk="x"))
    long = replace(line("x", 200, wait_s=60.0), drain_per_s=0.5)
    assert where(placed(snapshot, long)) == ["b"]
    assert where(placed(snapshot, replace(long, overflowed=199))) == []


def test_demand_counts_each_call_once() -> None:
    snapshot = fleet(node("a", disk="x y"))
    assert in_line([line("x", 5), line("y", 7, overflowed=5)], snapshot) == {"w:x": 5, "w:y": 2}
