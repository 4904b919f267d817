"""A node as another replica saw it: its words applied to what we believed. Pure; the spec stays our own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from router.fleet.health import Vitals
from router.fleet.node import Copy, CopyState, Health, Node
from router.fleet.tickets import CopyReport, report_of
from router.fleet.words import Memory, Reach


def with_reach(node: Node, vitals: Vitals, told: Reach) -> tuple[Node, Vitals]:
    """Another start has nothing in memory. What discovery and operators say of the node is not the prober's to tell.
    Of an older start than we know only silence counts: whoever told it will name the new one when the node answers."""
    is_silent = told.reach in (Health.DOWN, Health.UNREAD)
    if told.incarnation < node.incarnation and not is_silent:
        return node, vitals
    incarnation = max(told.incarnation, node.incarnation)
    came_back = vitals.reach is Health.DOWN and told.reach in (Health.HEALTHY, Health.DEGRADED)
    oks = vitals.oks if told.reach is vitals.reach else 0
    vitals = replace(vitals, reach=told.reach, fails=told.fails, oks=oks, returns=vitals.returns + came_back)
    is_another = incarnation != node.incarnation or vitals.health is Health.DOWN
    node = node.begun_anew if is_another else node
    return replace(node, health=vitals.health, incarnation=incarnation, version=told.version), vitals


def with_memory(node: Node, told: Memory) -> Node:
    """Of another start than we know, or of a node that is down: nothing."""
    if told.incarnation != node.incarnation or node.health is Health.DOWN:
        return node
    return replace(node, copies=told.copies, learnt=told.learnt)


def with_named(node: Node, named: Mapping[str, int]) -> Node:
    """`named`: contexts that loads of ours named, by weights. No probe shows who named the one that it sees, and it may
    be younger than the word of whoever loaded."""
    copies = {
        weights: replace(copy, named_ctx=copy.num_ctx)
        for weights, copy in node.copies.items()
        if not copy.named_ctx and copy.num_ctx and named.get(weights) == copy.num_ctx
    }
    return replace(node, copies=MappingProxyType({**node.copies, **copies})) if copies else node


def reports_between(before: Node, node: Node, seen_at_s: float) -> Iterator[CopyReport]:
    """What its prober told the store of it, from one to the other."""
    for weights, copy in before.copies.items():
        if weights not in node.copies:
            gone = Copy(weights, CopyState.ON_DISK, copy.keys, slots=0)
            yield report_of(node, gone, seen_at_s, is_probe=True)
    for weights, copy in node.copies.items():
        if before.copies.get(weights) != copy or before.incarnation != node.incarnation:
            yield report_of(node, copy, seen_at_s, is_probe=True)
