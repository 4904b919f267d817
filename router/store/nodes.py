"""A node and its copies as the store keeps them, and when a copy is free. `Copies` owns and changes them."""

from __future__ import annotations

from collections.abc import Sequence

from router.fleet.node import CopyState
from router.fleet.tickets import Gate, Ticket
from router.policy.fair_queue import Kind

NEVER_S = float("inf")


class NodeEntry:
    """A node as the store knows it. A node that is down has no copy in memory until `incarnate` gives a new number."""

    __slots__ = ("copies", "gate", "incarnation", "is_down", "leases", "name", "past", "uid", "until_s")

    def __init__(self, name: str) -> None:
        self.name = name
        self.incarnation = 0
        self.uid = ""
        self.past = ("", 0)  # uid and number of the start before, for replicas that still believe in it
        self.is_down = False
        self.gate = Gate.OPEN
        self.until_s = NEVER_S
        self.leases = 0
        self.copies: dict[str, CopyEntry] = {}  # by weights


class CopyEntry:
    """One set of weights on one node. `leases` may exceed `slots` after these shrank or a fail-over."""

    __slots__ = (
        *("gate", "is_free", "keys", "leases", "loader", "named_ctx", "node", "num_ctx", "seen_at_s", "since_s"),
        *("slots", "state", "until_s", "weights"),
    )

    def __init__(self, node: NodeEntry, weights: str) -> None:
        self.node = node
        self.weights = weights
        self.keys: tuple[str, ...] = ()
        self.state = CopyState.ON_DISK
        self.slots = 0
        self.num_ctx = 0
        self.named_ctx = 0
        self.seen_at_s = -NEVER_S
        self.leases = 0
        self.gate = Gate.OPEN
        self.until_s = NEVER_S
        self.loader = ""  # the replica that loads or unloads it
        self.since_s = 0.0  # answering time (`Book`) of `begin`
        self.is_free = False  # as in the index

    def fits(self, ticket: Ticket | Kind) -> bool:
        """Whether this ticket, or all of a kind, may use this copy, free or not. An unknown context fits everybody."""
        if self.node.name in ticket.excluded or (ticket.names_no_ctx and self.named_ctx):
            return False
        return not self.num_ctx or self.num_ctx >= ticket.num_ctx


def has_room(copy: CopyEntry) -> bool:
    """The definition of a free copy; the index must agree with it."""
    if copy.state is not CopyState.READY or copy.leases >= copy.slots:
        return False
    node = copy.node
    if copy.gate is Gate.OPEN and node.gate is Gate.OPEN:
        return True
    return _passes(copy.gate, copy.leases) and _passes(node.gate, node.leases)


def _passes(gate: Gate, leases: int) -> bool:
    return gate is Gate.OPEN or (gate is Gate.HALF_OPEN and not leases)


def behind(gated: NodeEntry | CopyEntry) -> Sequence[CopyEntry]:
    return (gated,) if isinstance(gated, CopyEntry) else tuple(gated.copies.values())
