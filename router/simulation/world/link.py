"""A replica's way to the shared store: the production store over one Book, late by the network, and sometimes cut."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TypeVar

from router.errors import Refusal
from router.fleet.tickets import CopyReport, Gate, Lease, Ticket
from router.seams import Clock
from router.simulation.world.agenda import at_once
from router.store.answers import Answer
from router.store.book import Book
from router.store.memory import MemoryStore

T = TypeVar("T")


class StoreGone(Exception):
    """The store does not answer."""


class SharedStore(MemoryStore):
    """What a store behind a network adds. While it is cut off commands raise StoreGone, and what is only told (copies,
    gates, nodes) is told again when it is back."""

    def __init__(self, clock: Clock, rng: Random, replica: str, book: Book, on_step: Callable[[], None]) -> None:
        super().__init__(clock, rng, replica=replica, book=book)
        self.is_cut_off = False
        self.replicas_seen = 1  # alive at the last beat
        self._on_step = on_step
        self._untold: dict[tuple[str, str], CopyReport] = {}
        self._numbers: dict[str, int] = {}

    @property
    def replica(self) -> str:
        return self._caller.replica

    @property
    def has_mail(self) -> bool:
        known = self.book.replicas.get(self._caller.replica)
        return known is not None and bool(known.stream)

    def read(self) -> None:
        self._ask(lambda: self.book.read(self._caller, self._clock.now_s()))

    async def beat(self) -> None:
        await super().beat()
        self.replicas_seen = len(self.book.replicas)

    def cut(self) -> None:
        self.is_cut_off = True

    def reconnect(self) -> None:
        """Hello names all that this replica holds; then what changed meanwhile."""
        self.is_cut_off = False
        self._hello()
        untold, self._untold = self._untold, {}
        for report in untold.values():
            at_once(self.set_copy(report))
        self._on_step()

    # what it holds without the store's doing, so that hello names it

    def hold(self, lease: Lease) -> None:
        self._desk.tickets.pop(lease.ticket, None)
        self._desk.leases[lease.ticket] = lease

    def stand(self, ticket: Ticket) -> None:
        self._desk.tickets[ticket.id] = ticket

    def forget(self, ticket_id: str) -> None:
        self._desk.tickets.pop(ticket_id, None)
        self._desk.leases.pop(ticket_id, None)

    # what is told

    async def set_copy(self, report: CopyReport) -> None:
        if not self.is_cut_off:
            await super().set_copy(report)
        elif not report.is_probe:
            self._untold[report.node, report.weights] = report

    async def drop_node(self, node: str, incarnation: int) -> None:
        if not self.is_cut_off:
            await super().drop_node(node, incarnation)

    async def gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        if not self.is_cut_off:
            await super().gate(node, weights, gate, until_s)

    async def incarnate(self, node: str, uid: str) -> int:
        if not self.is_cut_off:
            self._numbers[node] = await super().incarnate(node, uid)
        return self._numbers.get(node, 0)

    async def refuse(self, model: str, refusal: Refusal) -> int:
        return 0 if self.is_cut_off else await super().refuse(model, refusal)

    def _ask(self, command: Callable[[], Answer[T]]) -> T:
        if self.is_cut_off:
            raise StoreGone
        value = super()._ask(command)
        self._on_step()
        return value
