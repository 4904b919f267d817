"""The store of one process: `Book` behind the `Store` seam, without a single suspension.

Replicas of a simulation may share one Book; then each has its own MemoryStore, and reads at its beat what the others'
steps brought it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from types import MappingProxyType
from typing import TypeVar

from router.errors import Outcome, QueueFull, QueueTimeout, Refusal, Unavailable
from router.fleet.tickets import CopyReport, Gate, Lease, LineView, Place, Ticket
from router.seams import Clock, Store
from router.store.answers import Answer, Caller, Full, Gone, Limits, Refused, Stale
from router.store.book import Book

T = TypeVar("T")


class MemoryStore(Store):
    """Fills the `Store` seam for one replica. Grants reach `on_grant` after the step that made them, never within."""

    def __init__(
        self,
        clock: Clock,
        rng: Random,
        limits: Limits | None = None,
        *,
        replica: str = "local",
        book: Book | None = None,
    ) -> None:
        self._clock = clock
        # Alone in its process nobody can hold a lease that is older than the store: it settles at once.
        self.book = book if book is not None else Book(rng, limits, settle_s=0.0)
        self._caller = Caller(replica, 0)
        self._last_seq = 0
        # What hello names, by ticket id: leases that were claimed and not given back, and tickets that wait.
        self._leases: dict[str, Lease] = {}
        self._tickets: dict[str, Ticket] = {}
        self._news: deque[Lease | Refused] = deque()
        self._is_telling = False
        self._on_grant: Callable[[Lease], bool] = _nobody_waits
        self._on_refusal: Callable[[str, Refusal], None] = _nobody_listens
        self._occupancy = MappingProxyType(self.book.ledger.copies.occupancy)

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._tickets)} waiting | {len(self._leases)} leased | {self.book!r}>"

    async def open(self, on_grant: Callable[[Lease], bool], on_refusal: Callable[[str, Refusal], None]) -> None:
        self._on_grant = on_grant
        self._on_refusal = on_refusal
        self._hello()

    async def close(self) -> None:
        self._heed(self.book.bye(self._caller, self._clock.now_s()))
        self._leases.clear()
        self._tickets.clear()

    @property
    def limits(self) -> Limits:
        return self.book.ledger.limits

    def set_limits(self, limits: Limits) -> None:
        """For newcomers; whoever waits keeps its place. What a team has used of its old limits it has used of these."""
        self._ask(lambda: self.book.set_limits(self._caller, limits, self._clock.now_s()))

    # tickets

    async def take(self, ticket: Ticket) -> Lease | Place:
        """Raises RateLimited, TeamQueueFull, QueueFull; QueueTimeout for a ticket that has left, or a past attempt."""
        self._tickets[ticket.id] = ticket  # before the step: telling its news may already serve this ticket
        value = self._ask(lambda: self.book.take(self._caller, ticket, self._clock.now_s()))
        if isinstance(value, Place):
            return value
        self._tickets.pop(ticket.id, None)
        if isinstance(value, Lease):
            self._leases[ticket.id] = value
            return value
        if isinstance(value, Full):
            raise QueueFull(retry_after_s=value.retry_after_s)
        if isinstance(value, Refused):
            raise value.refusal
        raise QueueTimeout("this call was given up before it was served")

    async def widen(self, ticket_id: str, targets: tuple[str, ...]) -> Lease | Place:
        """Raises Unavailable for a ticket that is neither waiting nor served."""
        value = self._ask(lambda: self.book.widen(self._caller, ticket_id, targets, self._clock.now_s()))
        if isinstance(value, Gone):
            raise Unavailable("this call does not wait for anything")
        if isinstance(value, Lease):
            self._tickets.pop(ticket_id, None)
            self._leases[ticket_id] = value
        elif (ticket := self._tickets.get(ticket_id)) is not None:
            every = tuple(dict.fromkeys((*ticket.targets, *targets)))
            self._tickets[ticket_id] = replace(ticket, targets=every)  # a hello names all its lines
        return value

    async def place_of(self, ticket_id: str) -> Place | None:
        return self._ask(lambda: self.book.place_of(self._caller, ticket_id, self._clock.now_s()))

    async def leave(self, ticket_id: str, tokens: int = 0) -> None:
        self._tickets.pop(ticket_id, None)
        self._leases.pop(ticket_id, None)
        self._ask(lambda: self.book.leave(self._caller, ticket_id, self._clock.now_s(), tokens=tokens))

    async def give_back(self, lease: Lease, outcome: Outcome, tokens: int) -> None:
        self._give_back(lease, tokens)

    def _give_back(self, lease: Lease, tokens: int) -> None:
        held = self._leases.get(lease.ticket)
        if held is lease or held == lease:
            del self._leases[lease.ticket]
        self._ask(lambda: self.book.give_back(self._caller, lease.id, self._clock.now_s(), tokens=tokens))

    async def refuse(self, model: str, refusal: Refusal) -> int:
        return self._ask(lambda: self.book.refuse(self._caller, model, refusal, self._clock.now_s()))

    async def lines(self) -> Sequence[LineView]:
        return self._ask(lambda: self.book.lines(self._caller, self._clock.now_s()))

    # nodes

    async def set_copy(self, report: CopyReport) -> None:
        self._ask(lambda: self.book.set_copy(self._caller, report, self._clock.now_s()))

    async def drop_node(self, node: str, incarnation: int) -> None:
        self._ask(lambda: self.book.drop_node(self._caller, node, incarnation, self._clock.now_s()))

    async def incarnate(self, node: str, uid: str) -> int:
        return self._ask(lambda: self.book.incarnate(self._caller, node, uid, self._clock.now_s()))

    async def begin(self, node: str, weights: str, *, loading: bool, epoch: int) -> bool:
        now_s = self._clock.now_s()
        return self._ask(lambda: self.book.begin(self._caller, node, weights, now_s, loading=loading, epoch=epoch))

    async def gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        now_s = self._clock.now_s()
        self._ask(lambda: self.book.gate(self._caller, node, weights, gate, now_s, until_s=until_s))

    async def beat(self) -> None:
        """Besides, brings what other replicas' steps granted."""
        self._ask(lambda: self.book.beat(self._caller, (), self._clock.now_s()))

    def now_s(self) -> float:
        return self.book.store_time_s(self._clock.now_s())

    @property
    def occupancy(self) -> Mapping[tuple[str, str], int]:
        return self._occupancy

    # steps

    def _ask(self, command: Callable[[], Answer[T]]) -> T:
        answer = command()
        if isinstance(answer.value, Stale):
            self._hello()
            answer = command()
            assert not isinstance(answer.value, Stale), "a session that ends with its own hello"
        self._heed(answer)
        return answer.value

    def _hello(self) -> None:
        answer = self.book.hello(
            self._caller.replica,
            self._last_seq,
            tuple(self._leases.values()),
            tuple(self._tickets.values()),
            self._clock.now_s(),
        )
        assert not isinstance(answer.value, Stale)
        self._caller = Caller(self._caller.replica, answer.value)
        self._heed(answer)

    def _heed(self, answer: Answer[T]) -> None:
        self._last_seq = answer.seq
        if answer.grants or answer.refusals:
            self._news.extend(answer.grants)
            self._news.extend(answer.refusals)
            self._tell()

    def _tell(self) -> None:
        """One at a time and in order: what a waiter does in its turn, or a lease it does not take, makes more news."""
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while self._news:
                news = self._news.popleft()
                if isinstance(news, Refused):
                    self._tickets.pop(news.ticket, None)
                    self._on_refusal(news.ticket, news.refusal)
                else:
                    self._deliver(news)
        finally:
            self._is_telling = False

    def _deliver(self, lease: Lease) -> None:
        if self._leases.get(lease.ticket) == lease:
            return  # told before: a beat names every unclaimed grant again
        self._tickets.pop(lease.ticket, None)
        if self._on_grant(lease):
            self._leases[lease.ticket] = lease
            self._ask(lambda: self.book.ack(self._caller, (lease.id,), self._clock.now_s()))
        else:
            self._give_back(lease, 0)


def _nobody_waits(lease: Lease) -> bool:
    return False


def _nobody_listens(ticket_id: str, refusal: Refusal) -> None:
    """Before `open`: nobody can wait."""
