"""The store of one process: `Book` behind the `Store` seam, without a single suspension.

Replicas of a simulation may share one Book; then each has its own MemoryStore, and reads at its beat what the others'
steps brought it.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from random import Random
from types import MappingProxyType
from typing import TypeVar

from router.errors import Outcome, Refusal
from router.fleet.tickets import CopyReport, Gate, Leading, Lease, LineView, Place, Ticket
from router.seams import Clock, Store
from router.store.answers import Answer, Caller, Limits, Stale
from router.store.book import Book
from router.store.desk import Desk, given, widened

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
        self._greetings = 0
        self._desk = Desk(self._claim, lambda lease: self._give_back(lease, 0))
        self._occupancy = MappingProxyType(self.book.ledger.copies.occupancy)

    def __repr__(self) -> str:
        return f"<MemoryStore {len(self._desk.tickets)} waiting | {len(self._desk.leases)} leased | {self.book!r}>"

    @property
    def is_alone(self) -> bool:
        """It shares nothing that it could miss."""
        return False

    @property
    def is_up(self) -> bool | None:
        """There is no Redis."""
        return None

    @property
    def board(self) -> None:
        """Nor another replica to tell of nodes."""
        return None

    def loops(self) -> Mapping[str, Coroutine[object, object, None]]:
        """Nothing has to run for it."""
        return {}

    async def open(self, on_grant: Callable[[Lease], bool], on_refusal: Callable[[str, Refusal], None]) -> None:
        self._desk.on_grant = on_grant
        self._desk.on_refusal = on_refusal
        self._hello()

    async def close(self) -> None:
        self._heed(self.book.bye(self._caller, self._clock.now_s()))
        self._desk.leases.clear()
        self._desk.tickets.clear()

    @property
    def limits(self) -> Limits:
        return self.book.ledger.limits

    def set_limits(self, limits: Limits) -> None:
        """For newcomers; whoever waits keeps its place. What a team has used of its old limits it has used of these."""
        self._ask(lambda: self.book.set_limits(self._caller, limits, self._clock.now_s()))

    def expect(self, replicas: int) -> None:
        """It shares nothing."""

    # tickets

    async def take(self, ticket: Ticket) -> Lease | Place:
        """Raises RateLimited, TeamQueueFull, QueueFull; QueueTimeout for a ticket that has left, or a past attempt."""
        # Before the step: telling its news may already serve this ticket.
        self._desk.tickets[ticket.id] = ticket
        value = self._ask(lambda: self.book.take(self._caller, ticket, self._clock.now_s()))
        if not isinstance(value, Place):
            self._desk.took(ticket, value)
        return given(value)

    async def widen(self, ticket_id: str, targets: tuple[str, ...]) -> Lease | Place:
        """Raises Unavailable for a ticket that is neither waiting nor served."""
        value = widened(self._ask(lambda: self.book.widen(self._caller, ticket_id, targets, self._clock.now_s())))
        if isinstance(value, Lease):
            self._desk.tickets.pop(ticket_id, None)
            self._desk.leases[ticket_id] = value
        else:
            self._desk.went_further(ticket_id, targets)
        return value

    async def place_of(self, ticket_id: str) -> Place | None:
        return self._ask(lambda: self.book.place_of(self._caller, ticket_id, self._clock.now_s()))

    async def leave(self, ticket_id: str, tokens: int = 0) -> None:
        self._desk.forget(ticket_id)
        self._ask(lambda: self.book.leave(self._caller, ticket_id, self._clock.now_s(), tokens=tokens))

    async def give_back(self, lease: Lease, outcome: Outcome, tokens: int) -> None:
        self._give_back(lease, tokens)

    def _give_back(self, lease: Lease, tokens: int) -> None:
        self._desk.gave_back(lease)
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

    async def lead(self, *, wants: bool = True) -> Leading:
        return self._ask(lambda: self.book.lead(self._caller, self._clock.now_s(), wants=wants))

    async def begin(self, node: str, weights: str, *, loading: bool, epoch: int) -> bool:
        now_s = self._clock.now_s()
        return self._ask(lambda: self.book.begin(self._caller, node, weights, now_s, loading=loading, epoch=epoch))

    async def gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        now_s = self._clock.now_s()
        self._ask(lambda: self.book.gate(self._caller, node, weights, gate, now_s, until_s=until_s))

    async def beat(self) -> None:
        """Besides, brings what other replicas' steps granted."""
        heard = self._desk.refused_since()
        self._ask(lambda: self.book.beat(self._caller, (), self._clock.now_s(), heard=heard))

    def now_s(self) -> float:
        return self.book.store_time_s(self._clock.now_s())

    @property
    def occupancy(self) -> Mapping[tuple[str, str], int]:
        return self._occupancy

    @property
    def is_led_elsewhere(self) -> bool:
        """As far as it knows without asking."""
        return False

    def waiting(self) -> Mapping[str, int]:
        """By model."""
        return self._desk.waiting()

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
        self._greetings += 1
        answer = self.book.hello(
            self._caller.replica,
            self._last_seq,
            tuple(self._desk.leases.values()),
            tuple(self._desk.tickets.values()),
            self._clock.now_s(),
            greeting=self._greetings,
        )
        assert not isinstance(answer.value, Stale)
        self._caller = Caller(self._caller.replica, answer.value)
        self._heed(answer)

    def _heed(self, answer: Answer[T]) -> None:
        self._last_seq = answer.seq
        if answer.grants or answer.refusals:
            self._desk.hear((*answer.grants, *answer.refusals))

    def _claim(self, lease: Lease) -> None:
        lapsed = self._ask(lambda: self.book.ack(self._caller, (lease.id,), self._clock.now_s()))
        self._desk.claimed(lease, stands=not lapsed)
