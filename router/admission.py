"""Slots for tickets: take one, or wait in line for it. Every lease is given back on the screen that took it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from router.errors import Outcome, Refusal
from router.fleet.tickets import Lease, Place, Ticket
from router.seams import FleetView, Store

Late = Callable[[], Refusal]


class Admission:
    """Owns the futures of waiting tickets, by ticket id. The store decides; nothing here does."""

    def __init__(self, store: Store, fleet: FleetView) -> None:
        self._store = store
        self._fleet = fleet
        self._waiting: dict[str, asyncio.Future[Lease]] = {}

    def __repr__(self) -> str:
        return f"<Admission {len(self._waiting)} waiting>"

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def open(self) -> None:
        await self._store.open(self._granted, self._refused)

    def lease(self, ticket: Ticket, wait_s: float, late: Late) -> SlotHold:
        """`late` makes what is raised when no slot came within `wait_s`."""
        return SlotHold(self, self._store, ticket, wait_s, late)

    async def take(self, ticket: Ticket, wait_s: float, late: Late) -> Lease:
        """Raises QueueFull at once, what `late` makes after `wait_s`, or what the store refuses who waits with."""
        # The future stands before the take: a grant may overtake the answer that says Place.
        future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        self._waiting[ticket.id] = future
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

    def _granted(self, lease: Lease) -> bool:
        future = self._waiting.get(lease.ticket)
        if future is None or future.done():
            return False
        future.set_result(lease)
        return True

    def _refused(self, ticket_id: str, refusal: Refusal) -> None:
        future = self._waiting.get(ticket_id)
        if future is not None and not future.done():
            future.set_exception(refusal)


class SlotHold:
    """`async with`: a lease from entry to exit. Set `outcome` and `tokens` before leaving."""

    __slots__ = ("_admission", "_late", "_lease", "_store", "_ticket", "_wait_s", "outcome", "tokens")

    def __init__(self, admission: Admission, store: Store, ticket: Ticket, wait_s: float, late: Late) -> None:
        self._admission = admission
        self._store = store
        self._ticket = ticket
        self._wait_s = wait_s
        self._late = late
        self._lease: Lease | None = None
        self.outcome = Outcome.CANCELLED
        self.tokens = 0

    async def __aenter__(self) -> Lease:
        self._lease = await self._admission.take(self._ticket, self._wait_s, self._late)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lease is not None
        await self._store.give_back(self._lease, self.outcome, self.tokens)
