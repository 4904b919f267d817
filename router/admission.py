"""Slots for tickets: take one, or wait in line for it. Every lease is given back on the screen that took it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from router.errors import Outcome, Refusal
from router.fleet.tickets import Lease, Place, Ticket
from router.seams import FleetView, Store

Late = Callable[[], Refusal]
Judge = Callable[[], object]  # raises the Refusal that this call would get if it came now


@dataclass(slots=True)
class Waiter:
    ticket: Ticket
    judge: Judge
    future: asyncio.Future[Lease]


def _has_no_objection() -> None: ...


class Admission:
    """Owns the waiters, by ticket id. The store decides; nothing here does."""

    def __init__(self, store: Store, fleet: FleetView) -> None:
        self._store = store
        self._fleet = fleet
        self._waiting: dict[str, Waiter] = {}

    def __repr__(self) -> str:
        return f"<Admission {len(self._waiting)} waiting>"

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def open(self) -> None:
        await self._store.open(self._granted, self._refused)

    def lease(self, ticket: Ticket, wait_s: float, late: Late, judge: Judge = _has_no_objection) -> SlotHold:
        """`late` makes what is raised when no slot came within `wait_s`; `judge` is asked by `context_known`."""
        return SlotHold(self, self._store, ticket, wait_s, late, judge)

    async def take(self, ticket: Ticket, wait_s: float, late: Late, judge: Judge = _has_no_objection) -> Lease:
        """Raises QueueFull at once, what `late` makes after `wait_s`, or what the store or `judge` refuse it with."""
        # The future stands before the take: a grant may overtake the answer that says Place.
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[ticket.id] = Waiter(ticket, judge, future)
        is_served = False
        try:
            answer = await self._store.take(ticket)
            if isinstance(answer, Lease):
                is_served = True
                return answer
            assert isinstance(answer, Place)
            if not ticket.preferred:
                self._fleet.wake_placer()  # no copy may serve it now; who waits for a slot alone needs no load
            async with asyncio.timeout(wait_s):
                lease = await future
            is_served = True
            return lease  # noqa: TRY300 - the ticket is served exactly here
        except TimeoutError:
            raise late() from None
        finally:
            del self._waiting[ticket.id]
            if not is_served:
                # Valid at any time: also when a grant came in the very moment the client left.
                await self._store.leave(ticket.id)

    def context_known(self, keys: Sequence[str]) -> None:
        """A copy of these models became ready, with a context: whoever waits for a larger one would wait in vain."""
        for waiter in list(self._waiting.values()):
            if waiter.ticket.num_ctx and not waiter.future.done() and any(key in keys for key in waiter.ticket.targets):
                try:
                    waiter.judge()
                except Refusal as refusal:
                    waiter.future.set_exception(refusal)

    def _granted(self, lease: Lease) -> bool:
        waiter = self._waiting.get(lease.ticket)
        if waiter is None or waiter.future.done():
            return False
        waiter.future.set_result(lease)
        return True

    def _refused(self, ticket_id: str, refusal: Refusal) -> None:
        waiter = self._waiting.get(ticket_id)
        if waiter is not None and not waiter.future.done():
            waiter.future.set_exception(refusal)


class SlotHold:
    """`async with`: a lease from entry to exit. Set `outcome` and `tokens` before leaving."""

    __slots__ = ("_admission", "_judge", "_late", "_lease", "_store", "_ticket", "_wait_s", "outcome", "tokens")

    def __init__(  # noqa: PLR0917 - made by Admission only
        self, admission: Admission, store: Store, ticket: Ticket, wait_s: float, late: Late, judge: Judge
    ) -> None:
        self._admission = admission
        self._store = store
        self._ticket = ticket
        self._wait_s = wait_s
        self._late = late
        self._judge = judge
        self._lease: Lease | None = None
        self.outcome = Outcome.CANCELLED
        self.tokens = 0

    async def __aenter__(self) -> Lease:
        self._lease = await self._admission.take(self._ticket, self._wait_s, self._late, self._judge)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lease is not None
        await self._store.give_back(self._lease, self.outcome, self.tokens)
