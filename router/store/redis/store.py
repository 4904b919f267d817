"""The store of many replicas, as one of them sees it.

What needs no answer (a lease given back, a ticket that leaves, reports, gates) is queued without a wait and in order:
nobody who is cancelled can keep it from being sent.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from random import Random
from types import MappingProxyType
from typing import Any

from router.errors import Outcome, Refusal
from router.fleet.tickets import CopyReport, Gate, Leading, Lease, LineView, Place, Ticket
from router.seams import Clock, Store
from router.store.answers import Answer, Limits, Outdated
from router.store.desk import Desk, given, widened
from router.store.redis import codec
from router.store.redis.board import RedisBoard
from router.store.redis.link import Link
from router.store.redis.session import Session
from router.store.redis.starts import Starts
from router.store.redis.trips import Observe, Trips, unobserved

ALONE_EPOCH = 0  # of whoever leads nobody but itself: no leader of a pool has it


class RedisStore(Store):
    """Fills the `Store` seam, while its `loops` run."""

    def __init__(  # noqa: PLR0917 - joined in one place
        self, link: Link, replica: str, clock: Clock, rng: Random, limits: Limits, observe: Observe = unobserved
    ) -> None:
        """`observe` hears of every round trip."""
        self._desk = Desk(self._claim, lambda lease: self._return(lease, 0))
        self._session = Session(link, replica, clock, rng, Trips(clock, observe), desk=self._desk, limits=limits)
        self._starts = Starts()
        self._uids: dict[str, str] = {}
        self.board = RedisBoard(self._session, self._starts)

    def __repr__(self) -> str:
        desk = self._desk
        return f"<RedisStore {len(desk.tickets)} waiting | {len(desk.leases)} leased | {self._session!r}>"

    @property
    def is_alone(self) -> bool:
        return self._session.alone is not None

    @property
    def is_up(self) -> bool:
        """Redis answers."""
        return self._session.is_up

    @property
    def limits(self) -> Limits:
        return self._session.limits

    def loops(self) -> Mapping[str, Coroutine[object, object, None]]:
        """What has to run from `open` to `close`, by name."""
        return self._session.loops()

    async def open(self, on_grant: Callable[[Lease], bool], on_refusal: Callable[[str, Refusal], None]) -> None:
        self._desk.on_grant = on_grant
        self._desk.on_refusal = on_refusal
        await self._session.open()

    async def close(self) -> None:
        await self._session.close()

    def set_limits(self, limits: Limits) -> None:
        """For newcomers; whoever waits keeps its place. Replicas that differ have those that were told last."""
        self._session.limits = limits
        self._session.tell(codec.set_limits(limits), lambda book, caller, now_s: book.set_limits(caller, limits, now_s))

    def expect(self, replicas: int) -> None:
        """How many share the store, for as long as it has not told."""
        self._session.expect(replicas)

    # tickets

    async def take(self, ticket: Ticket) -> Lease | Place:
        """Raises RateLimited, TeamQueueFull, QueueFull; QueueTimeout for a ticket that has left, or a past attempt."""
        value = await self._session.ask(
            codec.take(ticket),
            lambda book, caller, now_s: book.take(caller, ticket, now_s),
            lambda value: self._took(ticket, value),
        )
        return given(value)

    async def widen(self, ticket_id: str, targets: tuple[str, ...]) -> Lease | Place:
        """Raises Unavailable for a ticket that is neither waiting nor served."""
        value = await self._session.ask(
            codec.widen(ticket_id, targets),
            lambda book, caller, now_s: book.widen(caller, ticket_id, targets, now_s),
            lambda value: self._widened(ticket_id, targets, value),
        )
        return widened(value)

    async def place_of(self, ticket_id: str) -> Place | None:
        value: Place | None = await self._session.ask(
            codec.place_of(ticket_id), lambda book, caller, now_s: book.place_of(caller, ticket_id, now_s)
        )
        return value

    async def leave(self, ticket_id: str, tokens: int = 0) -> None:
        """Queued, never waited for: a caller that is cancelled leaves all the same."""
        held = self._desk.leases.get(ticket_id)
        if held is not None:
            self._count(held, -1)
        self._desk.forget(ticket_id)
        self._session.tell(
            codec.leave(ticket_id, tokens),
            lambda book, caller, now_s: book.leave(caller, ticket_id, now_s, tokens=tokens),
        )

    async def give_back(self, lease: Lease, outcome: Outcome, tokens: int) -> None:
        self._return(lease, tokens)

    async def refuse(self, model: str, refusal: Refusal) -> int:
        value: int = await self._session.ask(
            codec.refuse(model, refusal), lambda book, caller, now_s: book.refuse(caller, model, refusal, now_s)
        )
        return value

    async def lines(self) -> Sequence[LineView]:
        value: Sequence[LineView] = await self._session.ask(
            codec.lines(), lambda book, caller, now_s: book.lines(caller, now_s)
        )
        return value

    # nodes

    async def set_copy(self, report: CopyReport) -> None:
        report = replace(report, incarnation=self._starts.number(report.node, report.incarnation))
        self._session.told.saw(report)
        self._session.tell(
            codec.set_copy(report),
            lambda book, caller, now_s: book.set_copy(caller, self._share(report), now_s),
            lambda outdated: self._ignored(report, outdated),
        )

    async def drop_node(self, node: str, incarnation: int) -> None:
        number = self._starts.number(node, incarnation)
        self._session.told.dropped(node, number)
        self._session.tell_drop(node, number)

    async def incarnate(self, node: str, uid: str) -> int:
        # A start is what the pool says it is: how often this replica saw the node return is nothing to the others.
        self._uids[node] = uid = uid.partition("/")[0]
        value: int = await self._session.ask(
            codec.incarnate(node, uid), lambda book, caller, now_s: book.incarnate(caller, node, uid, now_s)
        )
        self._starts.forget(node)
        return value

    async def lead(self, *, wants: bool = True) -> Leading:
        value: Leading = await self._session.ask(
            codec.lead(wants=wants),
            lambda book, caller, now_s: _led_alone(book.read(caller, now_s), wants=wants),
        )
        return value

    async def begin(self, node: str, weights: str, *, loading: bool, epoch: int) -> bool:
        if epoch == ALONE_EPOCH and not self.is_alone:
            return False  # decided without the pool, whose leader may have decided otherwise
        value: bool = await self._session.ask(
            codec.begin(node, weights, loading=loading, epoch=epoch),
            lambda book, caller, now_s: book.begin(caller, node, weights, now_s, loading=loading, epoch=ALONE_EPOCH),
            lambda has_begun: self._session.told.began(node, weights) if has_begun else None,
        )
        return value

    async def gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        self._session.tell_gate(node, weights, gate, until_s)

    async def beat(self) -> None:
        if not self.is_alone:
            # Before the beat's own answer, in the same batch.
            self._session.tell(codec.look(), lambda book, caller, now_s: book.read(caller, now_s), self._session.looked)
        heard = self._desk.refused_since()
        await self._session.ask(
            codec.beat((), heard), lambda book, caller, now_s: book.beat(caller, (), now_s, heard=heard)
        )

    def now_s(self) -> float:
        return self._session.now_s()

    @property
    def occupancy(self) -> Mapping[tuple[str, str], int]:
        """The pool's as of the last beat, with what this replica took and gave back since."""
        alone = self._session.alone
        return MappingProxyType(self._session.occupancy if alone is None else alone.book.ledger.copies.occupancy)

    @property
    def is_led_elsewhere(self) -> bool:
        return not self.is_alone and self._session.leader not in ("", self._session.replica)

    def waiting(self) -> Mapping[str, int]:
        """This replica's part of each line, by model."""
        return self._desk.waiting()

    # what values mean to this replica

    def _took(self, ticket: Ticket, value: Any) -> None:
        if isinstance(value, Lease) and ticket.id not in self._desk.leases:
            self._count(value, 1)
        self._desk.took(ticket, value)

    def _widened(self, ticket_id: str, targets: tuple[str, ...], value: Any) -> None:
        ticket = self._desk.tickets.get(ticket_id)
        if isinstance(value, Lease) and ticket is not None:
            self._took(ticket, value)
        elif isinstance(value, Place):
            self._desk.went_further(ticket_id, targets)

    def _claim(self, lease: Lease) -> None:
        self._session.tell(
            codec.ack((lease.id,)),
            lambda book, caller, now_s: book.ack(caller, (lease.id,), now_s),
            lambda lapsed: self._claimed(lease, stands=not lapsed),
        )

    def _claimed(self, lease: Lease, *, stands: bool) -> None:
        if self._desk.claimed(lease, stands=stands):
            self._count(lease, 1)

    def _return(self, lease: Lease, tokens: int) -> None:
        if self._desk.leases.get(lease.ticket) == lease:
            self._count(lease, -1)
        self._desk.gave_back(lease)
        self._session.tell(
            codec.give_back(lease.id, tokens),
            lambda book, caller, now_s: book.give_back(caller, lease.id, now_s, tokens=tokens),
        )

    def _count(self, lease: Lease, change: int) -> None:
        place = (lease.node, lease.weights)
        count = self._session.occupancy.get(place, 0) + change
        if count > 0:
            self._session.occupancy[place] = count
        else:
            self._session.occupancy.pop(place, None)

    # starts of nodes

    def _share(self, report: CopyReport) -> CopyReport:
        alone = self._session.alone
        return alone.share(report) if alone is not None else report

    def _ignored(self, report: CopyReport, outdated: Outdated | None) -> None:
        """Another replica saw the node go, or come again: what this one sees now is of the latest start."""
        if outdated is None or not report.is_probe or self.is_alone:
            return
        node, number = report.node, report.incarnation
        uid = self._uids.get(node, "")
        self._session.tell(
            codec.incarnate(node, uid),
            lambda book, caller, now_s: book.incarnate(caller, node, uid, now_s),
            lambda latest: self._starts.named(node, number, latest),
        )


def _led_alone(answer: Answer[Any], *, wants: bool) -> Answer[Any]:
    return answer._replace(value=Leading(ALONE_EPOCH, wants))
