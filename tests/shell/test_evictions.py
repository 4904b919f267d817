"""Who ended a copy, by what was believed of its node before and after."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from router.control.evictions import Evictions
from router.fleet.node import Copy, CopyState, Health, Node, NodeSpec

NOW_S = 1000.0


class Clock:
    def now_s(self) -> float:
        return 0.0

    def wall_s(self) -> float:
        return NOW_S


def node_with(*copies: Copy, incarnation: int = 1, health: Health = Health.HEALTHY) -> Node:
    held = MappingProxyType({copy.weights: copy for copy in copies})
    return Node(NodeSpec("a", "127.0.0.1", 11434), incarnation=incarnation, health=health, copies=held)


LASTING = Copy("w", CopyState.READY, ("llama3.2:3b",), slots=1, expires_at_s=NOW_S + 300)


def seen(before: Node | None, after: Node, *, ours: bool = False) -> list[tuple[str, str, str]]:
    told: list[tuple[str, str, str]] = []
    Evictions(lambda *each: told.append(each), lambda: {("a", "w")} if ours else set(), Clock()).saw(before, after)
    return told


@pytest.mark.parametrize(
    ("copy", "ours", "cause"),
    [
        (LASTING, False, "ollama"),
        (LASTING, True, "ours"),
        (replace(LASTING, state=CopyState.ON_DISK), False, "expired"),  # so the keeper marks what is about to expire
        (replace(LASTING, expires_at_s=NOW_S - 1), False, "expired"),
    ],
)
def test_a_copy_that_is_gone_has_one_cause(copy: Copy, ours: bool, cause: str) -> None:
    assert seen(node_with(copy), node_with(), ours=ours) == [("a", "llama3.2:3b", cause)]


def test_what_a_node_loses_by_going_down_or_starting_again_is_no_eviction() -> None:
    assert seen(node_with(LASTING), node_with(health=Health.DOWN)) == []
    assert seen(node_with(LASTING), node_with(incarnation=2)) == []
    assert seen(None, node_with(LASTING)) == []
    assert seen(node_with(LASTING), node_with(replace(LASTING, num_ctx=8192))) == []
