"""Lines: who waits for a model key, in fair order, and how fast it moves. Knows nothing of copies."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from random import Random
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

from router.fleet.tickets import Lease, LineView, Priority, Ticket
from router.policy.advice import come_back_s
from router.policy.fair_queue import DUE, FairQueue, Kind, Spot
from router.store.nodes import CopyEntry
from router.store.teams import Team

T = TypeVar("T")

DRAIN_WINDOW_S = 30.0  # long enough for a few generations, short enough to follow a node that joined

NOWHERE = Spot(0, Kind("", frozenset(), 0, names_no_ctx=False), DUE)
_HIGHEST = int(Priority.HIGH)
_SERVED_BEFORE = 1 << 62  # makes the order numbers of those who are due smaller than all others


class Entry:
    """A ticket as the store keeps it: with a lease it is served, without one it waits in the lines of `keys`."""

    __slots__ = (
        *("arrival", "arrived_s", "band", "copy", "cost", "estimate", "granted_s", "is_charged", "is_due", "keys"),
        *("lease", "passes", "replica", "spot", "team", "ticket"),
    )

    def __init__(self, ticket: Ticket, replica: str, team: Team, arrival: int, arrived_s: float) -> None:
        self.ticket = ticket
        self.replica = replica
        self.team = team
        self.arrival = arrival  # one number per ticket over all lines: the older, the smaller
        self.arrived_s = arrived_s
        targets = ticket.targets
        self.keys = targets if len(targets) == 1 else tuple(dict.fromkeys(targets))
        self.estimate = ticket.estimate_tokens
        self.cost = self.estimate or 1  # what its team is charged when it gets a slot that others wait for
        self.lease: Lease | None = None
        self.copy: CopyEntry | None = None
        self.granted_s = 0.0  # answering time (`Book`), of a grant that nobody has acknowledged
        self.is_charged = False  # for the slot that it has
        self.is_due = False  # it had a lease before, so its turn has been
        self.passes = 0  # tickets behind it that went first, since their node knows their prompt
        allowed, asked = team.limits.priority, ticket.priority
        # From the highest, 0: what it asks for, never above what its team may.
        self.band = _HIGHEST - (allowed if asked is None or asked > allowed else asked)
        self.spot = NOWHERE  # while it waits

    @property
    def order(self) -> int:
        return self.spot.order

    def spot_now(self) -> Spot:
        """Where it is to stand among others."""
        ticket, order, lane = self.ticket, self.arrival, 1 + self.band
        if self.is_due:
            order, lane = order - _SERVED_BEFORE, DUE
        return Spot(order, Kind(self.replica, ticket.excluded, ticket.num_ctx, ticket.names_no_ctx), lane)


class Drain:
    """Grants per second over the last DRAIN_WINDOW_S, counted per second of store time."""

    __slots__ = ("_began_s", "_buckets", "_total")

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s
        self._buckets: deque[list[int]] = deque()  # [second, grants], at most one per second of the window
        self._total = 0

    def begin(self, now_s: float) -> None:
        """Somebody stands in an empty line: time without anybody waiting says nothing about its speed."""
        self._forget(now_s)
        if not self._buckets:
            self._began_s = now_s

    def count(self, now_s: float) -> None:
        second = int(now_s)
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += 1
        else:
            self._buckets.append([second, 1])
        self._total += 1
        self._forget(now_s)

    def per_s(self, now_s: float) -> float:
        """0.0 where nothing was granted within the window."""
        self._forget(now_s)
        return self._total / min(DRAIN_WINDOW_S, max(1.0, now_s - self._began_s))

    def _forget(self, now_s: float) -> None:
        while self._buckets and self._buckets[0][0] < now_s - DRAIN_WINDOW_S:
            self._total -= self._buckets.popleft()[1]


class Line:
    """The tickets that wait for one model key."""

    __slots__ = ("drain", "key", "max_waiting", "queue", "refused")

    def __init__(self, key: str, max_waiting: int, now_s: float) -> None:
        self.key = key
        self.max_waiting = max_waiting
        self.queue = FairQueue()
        self.drain = Drain(now_s)
        self.refused = 0  # sent away, and the line has not made room for them since

    @property
    def depth(self) -> int:
        return self.queue.depth

    @property
    def is_full(self) -> bool:
        return self.queue.depth >= self.max_waiting

    def granted(self, now_s: float) -> None:
        """One of this line got a slot of this key: room for one of those who were sent away."""
        self.drain.count(now_s)
        self.refused = max(0, self.refused - 1)

    def refuse_one(self, now_s: float, rng: Random) -> float:
        """Seconds after which to come back: the k-th who was sent away waits for k grants."""
        self.refused += 1
        return self.wait_s(self.refused, now_s, rng)

    def wait_s(self, grants: int, now_s: float, rng: Random) -> float:
        """Until there have been so many, as a Retry-After."""
        return come_back_s(grants, self.drain.per_s(now_s), rng)

    def view(self, entries: Iterable[Entry], now_s: float) -> LineView:
        entries = tuple(entries)
        own = [entry for entry in entries if entry.keys[0] == self.key]
        tickets = [entry.ticket for entry in own or entries]
        return LineView(
            model=self.key,
            depth=len(entries),
            oldest_wait_s=now_s - min(entry.arrived_s for entry in own or entries),
            num_ctx=max(ticket.num_ctx for ticket in tickets),
            keep_alive_s=max((t.keep_alive_s for t in tickets if t.keep_alive_s is not None), default=None),
            max_waiting=self.max_waiting,
            drain_per_s=self.drain.per_s(now_s),
            excluded=frozenset.intersection(*(ticket.excluded for ticket in tickets)),
            names_no_ctx=any(ticket.names_no_ctx for ticket in tickets),
            teams=MappingProxyType(dict(self.queue.counts)),
            overflowed=len(entries) - len(own),
        )


class Past(NamedTuple):
    """What is left of a ticket whose lease was given back: its place, should it come again."""

    attempt: int
    arrival: int
    arrived_s: float


class Memory(Generic[T]):
    """Ids for a while and up to a count; beyond either the oldest is forgotten."""

    __slots__ = ("_ids", "_kept_s", "_max")

    def __init__(self, kept_s: float, count_max: int) -> None:
        self._ids: OrderedDict[str, tuple[float, T]] = OrderedDict()
        self._kept_s = kept_s
        self._max = count_max

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, key: str) -> bool:
        return key in self._ids

    def add(self, key: str, value: T, now_s: float) -> None:
        self._ids[key] = (now_s, value)
        self._ids.move_to_end(key)
        if len(self._ids) > self._max:
            self._ids.popitem(last=False)

    def get(self, key: str) -> T | None:
        found = self._ids.get(key)
        return None if found is None else found[1]

    def drop(self, key: str) -> None:
        self._ids.pop(key, None)

    def forget(self, now_s: float) -> None:
        while self._ids and next(iter(self._ids.values()))[0] <= now_s - self._kept_s:
            self._ids.popitem(last=False)
