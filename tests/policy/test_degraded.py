"""Without the store: shares of copies, and one node for a cold model."""

from __future__ import annotations

from random import Random

import pytest

from router.fleet.node import Health
from router.policy.degraded import choose_alone, loading_node, share_of
from router.policy.schedule import Want
from tests.fleet.builders import fleet, node


@pytest.mark.parametrize(("slots", "replicas", "share"), [(4, 1, 4), (4, 2, 2), (4, 3, 2), (1, 3, 1), (4, 0, 4)])
def test_a_share_is_rounded_up_and_never_nothing(slots: int, replicas: int, share: int) -> None:
    assert share_of(slots, replicas) == share


def test_no_replica_goes_beyond_its_share_of_any_copy() -> None:
    snapshot = fleet(node("a", ready="x", slots=4), node("b", ready="x", slots=1))
    own: dict[tuple[str, str], int] = {}
    for _ in range(3):
        row = choose_alone(Want(("x",)), snapshot, own, 2, Random(1))
        assert row is not None
        own[row.copy] = own.get(row.copy, 0) + 1
    assert own == {("a", "w:x"): 2, ("b", "w:x"): 1}
    assert choose_alone(Want(("x",)), snapshot, own, 2, Random(1)) is None


def test_excluded_nodes_stay_excluded() -> None:
    snapshot = fleet(node("a", ready="x"), node("b", ready="x"))
    row = choose_alone(Want(("x",), excluded=frozenset({"a"})), snapshot, {}, 1, Random(1))
    assert row is not None
    assert row.node == "b"


def test_affinity_holds_without_the_store() -> None:
    snapshot = fleet(*(node(name, ready="x", slots=4) for name in "abcdef"))
    chosen = {choose_alone(Want(("x",), affinity="c1"), snapshot, {}, 2, Random(seed)) for seed in range(9)}
    assert len(chosen) == 1


def test_all_replicas_ask_the_same_node_and_another_node_moves_nothing_that_it_does_not_take() -> None:
    before = fleet(node("a", disk="x"), node("b", disk="x"), node("c", disk="x"))
    after = fleet(*before.nodes.values(), node("d", disk="x"))
    first = loading_node(before.holding("x").by_node.values())
    then = loading_node(reversed(after.holding("x").by_node.values()))
    assert first is not None
    assert then is not None
    assert then.node in (first.node, "d")


def test_nobody_is_asked_who_is_down_or_has_it_not_on_disk() -> None:
    snapshot = fleet(node("a", disk="x", health=Health.DOWN), node("b", ready="x"), node("c", disk="x"))
    asked = loading_node(snapshot.holding("x").by_node.values())
    assert asked is not None
    assert asked.node == "c"
    assert loading_node(()) is None
