"""One replica's side of a store: what it holds, what it waits for, and its waiters, who are told of it.

What hello names is what stands here. News come after the step that made them, never within.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from router.errors import QueueFull, QueueTimeout, Refusal, Unavailable
from router.fleet.tickets import Lease, Place, Ticket
from router.store.answers import Full, Gone, Refused


class Desk:
    """`claim` tells the store of a grant that came, and then `claimed` what the store said; `decline` gives one back at
    once that found no waiter. A grant that came too late is another's by now: nobody uses one that is not claimed.
    """

    def __init__(self, claim: Callable[[Lease], None], decline: Callable[[Lease], None]) -> None:
        self.leases: dict[str, Lease] = {}  # by ticket: claimed and not given back
        self.tickets: dict[str, Ticket] = {}  # that wait
        self.on_grant: Callable[[Lease], bool] = _nobody_waits
        self.on_refusal: Callable[[str, Refusal], None] = _nobody_listens
        self._claim = claim
        self._decline = decline
        self._claiming: set[str] = set()  # ids of grants of which the store has not said yet whether they stand
        self._refused: list[str] = []
        self._news: deque[Lease | Refused] = deque()
        self._is_telling = False

    def took(self, ticket: Ticket, value: Lease | Place | Full | Gone | Refused) -> None:
        """What a take brought. A grant may have overtaken it."""
        if isinstance(value, Lease):
            self.tickets.pop(ticket.id, None)
            self.leases[ticket.id] = value
        elif not isinstance(value, Place):
            self.tickets.pop(ticket.id, None)
        elif ticket.id not in self.leases:
            self.tickets[ticket.id] = ticket

    def went_further(self, ticket_id: str, targets: tuple[str, ...]) -> None:
        """It stands in these lines as well: hello names all of them."""
        ticket = self.tickets.get(ticket_id)
        if ticket is not None:
            every = tuple(dict.fromkeys((*ticket.targets, *targets)))
            self.tickets[ticket_id] = replace(ticket, targets=every)

    def waiting(self) -> dict[str, int]:
        """By model: how many of this replica's own calls stand in its line. One that overflowed stands in several."""
        return dict(Counter(model for ticket in self.tickets.values() for model in dict.fromkeys(ticket.targets)))

    def forget(self, ticket_id: str) -> None:
        self.tickets.pop(ticket_id, None)
        self.leases.pop(ticket_id, None)

    def gave_back(self, lease: Lease) -> None:
        held = self.leases.get(lease.ticket)
        if held is lease or held == lease:
            del self.leases[lease.ticket]

    def hear(self, news: Iterable[Lease | Refused]) -> None:
        """One at a time and in order: what a waiter does in its turn, or a lease it does not take, makes more news."""
        self._news.extend(news)
        if self._is_telling:
            return
        self._is_telling = True
        try:
            while self._news:
                one = self._news.popleft()
                if isinstance(one, Refused):
                    self.tickets.pop(one.ticket, None)
                    self._refused.append(one.ticket)
                    self.on_refusal(one.ticket, one.refusal)
                else:
                    self._deliver(one)
        finally:
            self._is_telling = False

    def refused_since(self) -> tuple[str, ...]:
        """Tickets whose refusals were heard here since the last time: for the store, which names them until then."""
        refused, self._refused = tuple(self._refused), []
        return refused

    def _deliver(self, lease: Lease) -> None:
        """Once: a beat names every unclaimed grant again."""
        if lease.id not in self._claiming and self.leases.get(lease.ticket) != lease:
            self._claiming.add(lease.id)
            self._claim(lease)

    def claimed(self, lease: Lease, *, stands: bool) -> bool:
        """Whether its waiter has it now. Of a grant that lapsed the ticket waits on."""
        self._claiming.discard(lease.id)
        if not stands or self.leases.get(lease.ticket) == lease:  # or a repeated take has brought it meanwhile
            return False
        self.tickets.pop(lease.ticket, None)
        if self.on_grant(lease):
            self.leases[lease.ticket] = lease
            return True
        self._decline(lease)
        return False


def given(value: Lease | Place | Full | Gone | Refused) -> Lease | Place:
    """Raises what the store refused a take with; QueueTimeout for a ticket that has left, or a past attempt."""
    if isinstance(value, Lease | Place):
        return value
    if isinstance(value, Full):
        raise QueueFull(retry_after_s=value.retry_after_s)
    if isinstance(value, Refused):
        raise value.refusal
    raise QueueTimeout("this call was given up before it was served")


def widened(value: Lease | Place | Gone) -> Lease | Place:
    """Raises Unavailable for a ticket that is neither waiting nor served."""
    if isinstance(value, Gone):
        raise Unavailable("this call does not wait for anything")
    return value


def _nobody_waits(lease: Lease) -> bool:
    return False


def _nobody_listens(ticket_id: str, refusal: Refusal) -> None:
    """Before `open`: nobody can wait."""
