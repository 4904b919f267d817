"""What goes wrong without anything failing is seen, counted and forgotten."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.node import Health, Node
from router.fleet.snapshot import snapshot_of
from router.policy.troubles import COME_S, EVICTIONS_MAX, NO_TROUBLES, WINDOW_S, Eviction, Gone, Pair, Troubles, saw
from router.policy.verdicts import pair_text, skew_text
from tests.fleet.builders import fleet, node

DISK = "x y z"


class Story:
    """One node, look after look, a second apart unless said otherwise."""

    def __init__(self) -> None:
        self.troubles: Troubles = NO_TROUBLES
        self.now_s = 0.0
        self.heard: list[Eviction] = []

    def look(
        self,
        ready: str = "",
        *,
        loads: str = "",
        told: str = "",
        after_s: float = 1.0,
        expiring: str = "",
        start: int = 0,
    ) -> tuple[Pair, ...]:
        self.now_s += after_s
        holder = replace(node("a", disk=DISK, ready=ready, expiring=expiring), incarnation=start)
        self.troubles, evictions = saw(
            self.troubles,
            fleet(holder),
            loaders={"a": f"w:{loads}"} if loads else {},
            unloaded={("a", f"w:{key}") for key in told.split()},
            now_s=self.now_s,
        )
        self.heard += evictions
        return self.troubles.pairs

    @property
    def causes(self) -> list[tuple[str, Gone, str]]:
        return [(one.key, one.cause, one.by_key) for one in self.heard]


def test_two_models_that_take_turns_in_one_memory_are_a_pair_with_its_count() -> None:
    story = Story()
    for key, other in ("xy", "yx") * 3:
        story.look(key)
        story.look("", loads=other)
        pairs = story.look(other)
    assert pairs == (Pair("a", ("x", "y"), 6),)
    assert {cause for _, cause, _ in story.causes} == {Gone.OURS}
    assert pair_text(pairs[0]) == "x and y evict one another: 6 times in 10 minutes"


def test_one_eviction_is_no_thrashing() -> None:
    story = Story()
    story.look("x")
    assert story.look("y", loads="y") == ()
    assert story.causes == [("x", Gone.OURS, "y")]


def test_a_ring_of_three_is_thrashing_too() -> None:
    story = Story()
    for key in "xyzxy":
        pairs = story.look(key, loads=key)
    assert {pair.keys for pair in pairs} == {("x", "y"), ("y", "z"), ("x", "z")}


def test_what_others_load_is_seen_to_evict_though_it_is_listed_only_when_it_has_loaded() -> None:
    story = Story()
    story.look("x")
    story.look("")
    story.look("y", after_s=COME_S - 2)
    assert story.causes == [("x", Gone.OLLAMA, "")]
    assert [(one.key, one.by_key) for one in story.troubles.evictions] == [("x", "y")]
    story.look("")
    story.look("x", after_s=COME_S + 1)
    assert story.troubles.pairs == (), "it came too late to be the reason"


def test_what_expires_or_is_unloaded_was_evicted_by_nothing() -> None:
    story = Story()
    story.look("", expiring="x")
    story.look("y")
    story.look("")
    story.look("x")
    story.look("", told="x")
    assert story.causes == [("x", Gone.OLLAMA, "y"), ("y", Gone.OLLAMA, ""), ("x", Gone.OURS, "")]
    story = Story()
    story.look("", expiring="x")
    story.look("")
    assert story.causes == [("x", Gone.EXPIRED, "")]


def test_a_node_that_begins_anew_or_is_down_has_evicted_nothing() -> None:
    story = Story()
    story.look("x")
    story.look("y", start=1)
    assert story.causes == []
    down = node("a", disk=DISK, health=Health.DOWN)
    story.troubles, evictions = saw(story.troubles, fleet(down), loaders={}, unloaded=frozenset(), now_s=9.0)
    assert evictions == ()


def test_thrashing_ends_with_the_window() -> None:
    story = Story()
    for key in "xyxy":
        story.look(key, loads=key)
    assert story.look("y", after_s=WINDOW_S - 5) != ()
    assert story.look("y", after_s=10.0) == ()
    assert story.troubles.evictions == ()


def test_evictions_are_remembered_within_bounds() -> None:
    story = Story()
    story.troubles = replace(
        story.troubles,
        evictions=tuple(Eviction("a", "w:x", "x", Gone.OURS, 0.0, "w:y", "y") for _ in range(EVICTIONS_MAX)),
    )
    story.look("x")
    story.look("y", loads="y")
    assert len(story.troubles.evictions) == EVICTIONS_MAX


def test_a_copy_partly_in_cpu_memory_is_told_until_it_is_not() -> None:
    story = Story()
    spilled = fleet(node("a", spilled="x"), node("b", disk="x", ready="x"))
    story.troubles, _ = saw(story.troubles, spilled, loaders={}, unloaded=frozenset(), now_s=1.0)
    assert story.troubles.spilled == {("a", "w:x")}
    again, _ = saw(story.troubles, spilled, loaders={}, unloaded=frozenset(), now_s=2.0)
    assert again.spilled == {("a", "w:x")}
    story.look("x")
    assert story.troubles.spilled == frozenset()


def with_digest(holder: Node, key: str, digest: str) -> Node:
    models = {**holder.models, key: replace(holder.models[key], digest=digest)}
    return replace(holder, models=MappingProxyType(models))


def test_one_name_with_several_digests_is_told_with_who_has_which() -> None:
    nodes = [
        node("a", disk="x y"),
        node("b", disk="x y"),
        with_digest(node("c", disk="x"), "x", "sha256:0123456789abcdef"),
    ]
    troubles, _ = saw(NO_TROUBLES, snapshot_of(nodes), loaders={}, unloaded=frozenset(), now_s=0.0)
    assert troubles.skewed == {"x": {"d:x": ("a", "b"), "sha256:0123456789abcdef": ("c",)}}
    assert skew_text("x", troubles.skewed["x"]) == "x is not the same on all its nodes: d:x on a, b; 0123456789ab on c"
    left, _ = saw(troubles, snapshot_of(nodes[:2]), loaders={}, unloaded=frozenset(), now_s=1.0)
    assert left.skewed == {}


@given(st.lists(st.tuples(st.sampled_from(["", "x", "y", "z", "x y"]), st.sampled_from(["", "x", "y"])), max_size=12))
def test_a_pair_is_of_two_models_that_both_were_evicted(looks: list[tuple[str, str]]) -> None:
    story = Story()
    for ready, loads in looks:
        for pair in story.look(ready, loads=loads):
            assert pair.keys[0] != pair.keys[1]
            assert pair.evictions >= 1
            assert set(pair.keys) <= {one.key for one in story.heard}
