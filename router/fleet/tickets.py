"""Who waits for what, and who holds what: the facts that pass through the store's contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import NamedTuple

from router.errors import Allowances
from router.fleet.node import Copy, CopyState, Node

BEAT_S = 1.0  # replicas beat once a second
SILENT_BEATS = 6  # a replica that missed this many is reaped: 6 s, so that its leases are free within 10
UNACKED_S = 2.0  # a grant that nobody acknowledged is passed on
LEFT_IDS_S = 60.0  # a take that arrives after its leave is refused for this long
LOAD_S_MAX = 330.0  # loading and unloading end after Ollama's own load timeout (5 min) and a little
PREFERRED_MAX = 8


class Gate(StrEnum):
    """Who may pass to a copy, or to every copy of a node. HALF_OPEN lets one lease through at a time."""

    OPEN = "open"  # leases pass
    HALF_OPEN = "half_open"
    CLOSED = "closed"  # none pass: a breaker has tripped
    DRAINING = "draining"


class Priority(IntEnum):
    """Bands: within a line a higher one is served first, but for aging (`policy.fair_queue`)."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class Waits(StrEnum):
    """What a waiting ticket waits for."""

    FOR_COPY = "copy"  # no copy of its models is in memory
    FOR_SLOT = "slot"
    FOR_TEAM = "team"  # for a running call of its own team: as many run as may


@dataclass(frozen=True, slots=True)
class Ticket:
    """A call as the store sees it. Never changes but for `attempt`, `preferred` and `excluded` of a next attempt."""

    id: str
    targets: tuple[str, ...]  # model keys it may use now
    attempt: int = 1
    preferred: tuple[str, ...] = ()  # node names, best first, a wish only
    excluded: frozenset[str] = frozenset()  # nodes it must not go to again
    num_ctx: int = 0  # asked for by the client; 0 when it did not ask
    names_no_ctx: bool = False  # its route cannot carry one: a copy with a named context would reload for it
    keep_alive_s: float | None = None
    team: str = "default"
    priority: Priority | None = None  # asked for; None is its team's, and never above that
    estimate_tokens: int = 0  # prompt and output, as far as they can be guessed: charged until the true use is known


@dataclass(frozen=True, slots=True)
class Lease:
    """A ticket's hold on a slot. Counts from the moment the store makes it; given back exactly once, by id."""

    id: str
    ticket: str
    attempt: int
    model: str  # the target key it was granted for
    node: str
    weights: str
    num_ctx: int  # context the copy is loaded with, 0 where unknown
    team: str = "default"
    estimate_tokens: int = 0
    left: Allowances | None = field(default=None, compare=False)  # in the answer to a first take: its team's limits


@dataclass(frozen=True, slots=True)
class Place:
    """Stands in line. `estimate_s` is None until the line has moved once.

    `position` counts from 1 and is the place in fair order, which those who come later may still push back.
    """

    model: str
    position: int
    depth: int
    estimate_s: float | None = None
    reason: Waits = field(default=Waits.FOR_SLOT, compare=False)
    left: Allowances | None = field(default=None, compare=False)  # as in a Lease: a grant tells it no more


class Leading(NamedTuple):
    """Who places. Orders carry the epoch of whoever led when they were made; those of an older one are refused."""

    epoch: int
    is_mine: bool


@dataclass(frozen=True, slots=True)
class LineView:
    """One line as the placer and the metrics see it.

    `overflowed` of its tickets stand in another line first. What is asked for is what the others ask for, if any.
    """

    model: str
    depth: int
    oldest_wait_s: float
    num_ctx: int  # the largest asked for in the line
    keep_alive_s: float | None  # the longest asked for in the line
    max_waiting: int
    drain_per_s: float
    excluded: frozenset[str] = frozenset()  # nodes that every waiting ticket excludes
    names_no_ctx: bool = False  # some waiting ticket cannot use a copy with a named context
    teams: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))  # depth by team
    overflowed: int = 0

    @property
    def own(self) -> int:
        """Those whose first line this is: a ticket asks for a load in one line only."""
        return self.depth - self.overflowed


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What a probe or a load saw of one copy. `seen_at_s` is store time; older ones are ignored.

    `is_probe` reports never overwrite loading or unloading. `slots` includes the node's backlog.
    """

    node: str
    incarnation: int
    weights: str
    keys: tuple[str, ...]
    state: CopyState
    slots: int
    num_ctx: int
    seen_at_s: float
    is_probe: bool = True
    named_ctx: int = 0  # see Copy


def report_of(node: Node, copy: Copy, seen_at_s: float, *, is_probe: bool) -> CopyReport:
    """What is believed of a copy, as the store is told it."""
    return CopyReport(
        node=node.name,
        incarnation=node.incarnation,
        weights=copy.weights,
        keys=copy.keys,
        state=copy.state,
        slots=copy.slots + node.spec.backlog,
        num_ctx=copy.num_ctx,
        seen_at_s=seen_at_s,
        is_probe=is_probe,
        named_ctx=copy.named_ctx,
    )
