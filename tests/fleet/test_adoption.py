"""What others tell of a node is taken over but for what is said of it here, and what is older than its start."""

from __future__ import annotations

from dataclasses import replace

from router.fleet.adoption import reports_between, with_memory, with_named, with_reach
from router.fleet.health import Vitals
from router.fleet.node import Copy, CopyState, Health, Node, NodeSpec, Presence
from router.fleet.words import Memory, Reach

COPY = Copy("w", CopyState.READY, ("m",), 2)
NODE = Node(NodeSpec("a", "a", 11434), incarnation=3, health=Health.HEALTHY, copies={"w": COPY}, learnt={"w": 2})
UP = Vitals(Health.HEALTHY)


def test_a_node_that_another_replica_reached_is_reached() -> None:
    node, vitals = with_reach(replace(NODE, health=Health.UNREAD), Vitals(), Reach(Health.HEALTHY, 0, 3, "0.33"))
    assert (node.health, node.version, vitals.reach) == (Health.HEALTHY, "0.33", Health.HEALTHY)
    assert node.copies == NODE.copies


def test_a_drain_and_what_discovery_says_are_our_own() -> None:
    drained = replace(UP, is_drained=True)
    assert with_reach(NODE, drained, Reach(Health.DEGRADED, 1, 3, ""))[0].health is Health.DRAINING
    absent = replace(UP, presence=Presence.NOT_READY)
    assert with_reach(NODE, absent, Reach(Health.HEALTHY, 0, 3, ""))[0].health is Health.DOWN


def test_a_node_that_is_down_or_began_anew_has_nothing_in_memory() -> None:
    down, vitals = with_reach(NODE, UP, Reach(Health.DOWN, 3, 3, ""))
    assert (down.health, down.copies, down.learnt) == (Health.DOWN, {}, {})
    back, vitals = with_reach(down, vitals, Reach(Health.HEALTHY, 0, 4, ""))
    assert (back.incarnation, back.copies, vitals.returns) == (4, {}, 1)


def test_an_older_start_says_nothing_but_that_the_node_is_silent() -> None:
    assert with_reach(NODE, UP, Reach(Health.DEGRADED, 1, 2, "")) == (NODE, UP)
    assert with_reach(NODE, UP, Reach(Health.DOWN, 3, 2, ""))[0].incarnation == 3


def test_memory_of_another_start_says_nothing() -> None:
    told = Memory(3, {"x": replace(COPY, weights="x")}, {"x": 4})
    assert with_memory(NODE, told).copies.keys() == {"x"}
    assert with_memory(NODE, replace(told, incarnation=2)) is NODE
    down = replace(NODE, health=Health.DOWN)
    assert with_memory(down, told) is down


def test_reports_tell_what_went_and_what_is_new() -> None:
    after = replace(NODE, copies={"x": replace(COPY, weights="x")})
    assert [(report.weights, report.state) for report in reports_between(NODE, after, 5.0)] == [
        ("w", CopyState.ON_DISK),
        ("x", CopyState.READY),
    ]
    assert not list(reports_between(NODE, NODE, 5.0))
    assert len(list(reports_between(NODE, replace(NODE, incarnation=4), 5.0))) == 1


def test_a_context_that_a_load_named_is_named_while_the_copy_has_it() -> None:
    node = replace(NODE, copies={"w": replace(COPY, num_ctx=8192)})
    assert with_named(node, {"w": 8192}).copies["w"].named_ctx == 8192
    assert with_named(node, {"w": 4096}) is node
    assert with_named(node, {}) is node
