"""Which nodes a call would like: loaded and free first, affinity within its bound, ties spread."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.node import Health
from router.fleet.snapshot import Snapshot, snapshot_of
from router.fleet.tickets import PREFERRED_MAX
from router.policy.schedule import SAMPLE_MAX, Affinity, Decision, Reason, Want, schedule
from router.policy.scorers import LOAD_BOUND, affine_rows
from tests.fleet.builders import fleet, node, nodes

Load = Mapping[tuple[str, str], int]


def load(**leases: int) -> Load:
    return {(name, "w:x"): count for name, count in leases.items()}


def decide(snapshot: Snapshot, busy: Load | None = None, *, seed: int = 1, **more: object) -> Decision:
    return schedule(Want(("x",), **more), snapshot, busy or {}, random.Random(seed))  # type: ignore[arg-type]


def ready(count: int, slots: int = 4) -> Snapshot:
    return snapshot_of(node(f"n{number}", disk="x", ready="x", slots=slots) for number in range(count))


def test_a_free_copy_comes_before_full_ones() -> None:
    snapshot = fleet(node("a", ready="x", slots=4), node("b", ready="x", slots=1))
    decision = decide(snapshot, load(a=4))
    assert (decision.preferred, decision.reason) == (("b", "a"), Reason.LEAST_BUSY)


def test_load_counts_by_slot_and_weight() -> None:
    snapshot = fleet(
        node("a", ready="x", slots=4), node("b", ready="x", slots=8), node("c", ready="x", slots=4, weight=3)
    )
    assert decide(snapshot, load(a=1, b=2, c=2)).preferred == ("c", "b", "a")


def test_the_only_copy_is_chosen_because_it_is_loaded() -> None:
    decision = decide(fleet(node("a", ready="x"), node("b", disk="x")))
    assert (decision.preferred, decision.reason) == (("a",), Reason.LOADED)


def test_a_model_in_no_memory_is_a_cold_load() -> None:
    for snapshot in (fleet(node("a", disk="x")), Snapshot(), fleet(node("a", ready="x", health=Health.DOWN))):
        assert decide(snapshot) == Decision((), Reason.COLD_LOAD)


def test_spilled_copies_come_last_and_alone_are_a_fallback() -> None:
    spilled, other = node("s", disk="x", spilled="x"), node("t", disk="x", spilled="x")
    busy = load(a=1)
    assert decide(fleet(spilled, other, node("a", ready="x", slots=2)), busy).preferred[0] == "a"
    alone = decide(fleet(spilled, other))
    assert (set(alone.preferred), alone.reason) == ({"s", "t"}, Reason.FALLBACK)


def test_a_draining_node_is_never_proposed_not_even_alone() -> None:
    draining = node("d", disk="x", ready="x", health=Health.DRAINING)
    assert decide(fleet(draining, node("a", ready="x"))).preferred == ("a",)
    assert decide(fleet(draining)) == Decision((), Reason.COLD_LOAD)


def test_a_copy_with_too_little_context_is_out_unless_the_model_has_no_more() -> None:
    snapshot = fleet(
        node("a", disk="x", ready="x", num_ctx=4096, context_max=8192),
        node("b", disk="x", ready="x", num_ctx=8192, context_max=8192),
    )
    assert decide(snapshot, num_ctx=4097).preferred == ("b",)
    assert decide(snapshot, num_ctx=100_000).preferred == ("b",)
    assert set(decide(snapshot, num_ctx=4096).preferred) == {"a", "b"}


def test_a_conversation_hits_its_copy_spills_to_another_or_finds_none() -> None:
    found = decide(ready(3), affinity="talk")
    assert found.affinity_of(found.affine) == Affinity.HIT
    assert found.affinity_of(next(f"n{at}" for at in range(3) if f"n{at}" != found.affine)) == Affinity.SPILLED
    assert decide(ready(0), affinity="talk").affinity_of("n0") == Affinity.MISS
    assert decide(ready(3)).affinity_of("n0") == decide(ready(0)).affinity_of("n0") == ""


def test_targets_are_wished_for_in_their_order() -> None:
    snapshot = fleet(node("a", ready="x"), node("b", ready="y"), node("c", ready="y"))
    decision = schedule(Want(("x", "y")), snapshot, {}, random.Random(1))
    assert decision.preferred[0] == "a"
    assert set(decision.preferred) == {"a", "b", "c"}
    assert schedule(Want(("z", "x")), snapshot, {}, random.Random(1)).preferred == ("a",)


@given(
    st.lists(nodes("abcdefghijkl"), max_size=12),
    st.sets(st.sampled_from("abcdef")),
    st.dictionaries(st.sampled_from("abcdefghijkl"), st.integers(0, 5)),
    st.sampled_from([0, 2048, 4096, 9999]),
    st.sampled_from(["", "talk"]),
    st.integers(),
)
def test_nothing_excluded_down_or_twice_is_ever_proposed(
    members: list, excluded: set[str], leases: dict[str, int], num_ctx: int, affinity: str, seed: int
) -> None:
    snapshot = snapshot_of(members)
    busy = {(name, weights): count for name, count in leases.items() for weights in ("w:a", "w:b", "w")}
    want = Want(("a", "b"), affinity, num_ctx, frozenset(excluded))
    decision = schedule(want, snapshot, busy, random.Random(seed))
    assert len(decision.preferred) == len(set(decision.preferred)) <= PREFERRED_MAX
    for name in decision.preferred:
        assert name not in excluded
        assert snapshot.nodes[name].health in (Health.HEALTHY, Health.DEGRADED)
        rows = [snapshot.holding(key).by_node.get(name) for key in want.targets]
        assert any(row and row.is_ready for row in rows)
    assert (decision.reason is Reason.COLD_LOAD) == (not decision.preferred)


def chi_square(counts: Counter[str], names: int) -> float:
    expected = counts.total() / names
    return sum((count - expected) ** 2 for count in counts.values()) / expected + (names - len(counts)) * expected


def test_equals_share_evenly() -> None:
    snapshot, rng = ready(10), random.Random(7)
    counts = Counter(schedule(Want(("x",)), snapshot, {}, rng).preferred[0] for _ in range(5000))
    assert chi_square(counts, 10) < 27.9  # 9 degrees of freedom, p = 0.001


def test_equals_share_evenly_where_only_a_sample_is_scored() -> None:
    count = 2 * SAMPLE_MAX
    snapshot, rng = ready(count), random.Random(7)
    counts = Counter(schedule(Want(("x",)), snapshot, {}, rng).preferred[0] for _ in range(6400))
    assert chi_square(counts, count) < 182  # 127 degrees of freedom, p = 0.001


def test_a_sample_without_a_usable_copy_looks_at_all() -> None:
    snapshot = ready(200)
    excluded = frozenset(snapshot.nodes) - {"n7"}
    assert all(decide(snapshot, seed=seed, excluded=excluded).preferred == ("n7",) for seed in range(20))


# Affinity


def homes(snapshot: Snapshot, talks: int = 300) -> list[str]:
    return [decide(snapshot, seed=talk, affinity=f"talk {talk}").preferred[0] for talk in range(talks)]


def test_a_conversation_stays_with_its_node() -> None:
    snapshot = ready(12)
    decisions = [decide(snapshot, seed=seed, affinity="talk") for seed in range(30)]
    assert len({decision.preferred[0] for decision in decisions}) == 1
    assert {decision.reason for decision in decisions} == {Reason.AFFINITY}
    assert decisions[0].affine == decisions[0].preferred[0]


def test_conversations_spread_over_the_nodes() -> None:
    counts = Counter(homes(ready(12), talks=1200))
    assert len(counts) == 12
    assert max(counts.values()) < 2 * 100


def test_a_node_that_goes_takes_along_only_its_own_conversations() -> None:
    before = ready(12)
    gone = homes(before)[0]
    for old, new in zip(homes(before), homes(before.without_node(gone)), strict=True):
        assert old in (new, gone)


def test_a_node_that_comes_takes_conversations_only_for_itself() -> None:
    before = ready(12)
    for old, new in zip(homes(before), homes(before.with_node(node("new", ready="x", slots=4))), strict=True):
        assert new in (old, "new")


def test_affinity_yields_when_its_node_has_more_than_its_share() -> None:
    snapshot = ready(10, slots=100)
    home = decide(snapshot, affinity="talk").preferred[0]
    fair = {(name, "w:x"): 8 for name in snapshot.nodes}
    assert decide(snapshot, fair, affinity="talk").preferred[0] == home
    crowded = fair | {(home, "w:x"): int(8 * LOAD_BOUND) + 2}
    spilled = decide(snapshot, crowded, affinity="talk")
    assert spilled.preferred[0] != home
    assert spilled.reason is Reason.AFFINITY
    assert {decide(snapshot, crowded, affinity="talk", seed=seed).preferred[0] for seed in range(9)} == {
        spilled.preferred[0]
    }


def test_affinity_never_waits_for_a_slot() -> None:
    snapshot = ready(4, slots=1)
    home = decide(snapshot, affinity="talk").preferred[0]
    assert decide(snapshot, load(**{home: 1}), affinity="talk").preferred[0] != home
    full = decide(snapshot, load(n0=1, n1=1, n2=1, n3=1), affinity="talk")
    assert (full.reason, full.affine) == (Reason.LEAST_BUSY, home)


def test_affinity_holds_where_only_a_sample_is_scored() -> None:
    snapshot = ready(300)
    assert len({decide(snapshot, seed=seed, affinity="talk").preferred[0] for seed in range(30)}) == 1


def test_an_excluded_home_hands_over_to_the_next() -> None:
    snapshot = ready(6)
    home = decide(snapshot, affinity="talk").preferred[0]
    successors = {
        decide(snapshot, seed=seed, affinity="talk", excluded=frozenset({home})).preferred[0] for seed in range(9)
    }
    assert len(successors) == 1
    assert home not in successors


def test_an_empty_ring_has_no_affine_rows() -> None:
    assert list(affine_rows(Snapshot().holding("x").ready, "talk")) == []


def test_the_reason_fits_the_node_that_was_granted() -> None:
    decision = Decision(("a", "b"), Reason.AFFINITY, "a")
    assert [decision.reason_of(name) for name in "ab"] == [Reason.AFFINITY, Reason.LEAST_BUSY]
    moved = Decision(("a", "b"), Reason.LEAST_BUSY, "b")
    assert moved.reason_of("b") is Reason.AFFINITY
    assert Decision((), Reason.COLD_LOAD).reason_of("a") is Reason.COLD_LOAD
