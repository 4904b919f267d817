"""Who probes which node, where replicas share the probing, and what of it is worth telling the others.

Whoever probes a node has claimed it. The first in the node's order of replicas (rendezvous hashing) claims it at once;
until it has, whoever had it goes on. What nobody claims is claimed by the next in order, and the next: the first may
not know the node yet. A node that is down goes round, since another replica may see it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from router.fleet.node import Copy, Node
from router.fleet.snapshot import point_of
from router.fleet.words import Claim

UNCLAIMED_S = 3.0  # a claim travels in a fifth of a second; a configuration that is read again takes some more
EXPIRY_EVERY_S = 10.0  # each call moves its copy's end: pages and renewals may know it so much later


def order_of(node: str, replicas: Collection[str]) -> tuple[str, ...]:
    """The same in each replica; one that comes or goes moves nobody else's place."""
    return tuple(sorted(replicas, key=lambda replica: (point_of(f"{replica}\n{node}"), replica)))


def has_prober(claim: Claim, replicas: Collection[str]) -> bool:
    return claim.by in replicas


def is_prober(me: str, claim: Claim, order: Sequence[str], unclaimed_s: float) -> bool:
    """`order` is of the live replicas; `unclaimed_s`: since nobody of them has the node."""
    untried = [replica for replica in order if replica not in claim.tried or replica == claim.by] or list(order)
    if me not in untried:
        return False
    if claim.by in order:
        return me in (claim.by, untried[0])
    return untried.index(me) <= unclaimed_s / UNCLAIMED_S


def passed_on(claim: Claim, me: str, replicas: Collection[str]) -> Claim:
    """After a probe of a node that is down has failed here. When all have tried, the others begin again."""
    tried = (*(replica for replica in claim.tried if replica in replicas and replica != me), me)
    return Claim("", tried if len(tried) < len(replicas) else (me,))


def is_worth_telling(told: Node | None, node: Node, told_ago_s: float) -> bool:
    """Whether more of its memory has changed than when copies are to leave it."""
    if told is None or told_ago_s >= EXPIRY_EVERY_S:
        return True
    return _but_for_ends(told.copies) != _but_for_ends(node.copies) or told.learnt != node.learnt


def _but_for_ends(copies: Mapping[str, Copy]) -> dict[str, Copy]:
    return {weights: replace(copy, expires_at_s=0.0, listing="") for weights, copy in copies.items()}
