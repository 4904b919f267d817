"""Slots for tickets: take one, or wait in line for it. Every lease is given back on the screen that took it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from types import TracebackType

from router.errors import Allowances, Outcome, Refusal, Unavailable
from router.fleet.tickets import Lease, Place, Ticket, Waits
from router.policy.overflow import Overflow, widening
from router.seams import FleetView, Store
from router.upstream.waiting import WaitingStream
from router.wire import comments

Late = Callable[[Place | None], Refusal]
Judge = Callable[[], object]  # raises the Refusal that this call would get if it came now


class Waiter:
    """Somebody who asks for a slot. The answer, a lease or a refusal, may overtake what the store says to `take`."""

    __slots__ = (
        *("_bell", "answer", "further", "judge", "late", "left", "overflow", "ticket", "until_s", "waiting"),
        "widen_s",
    )

    def __init__(  # noqa: PLR0917 - what a call waits by
        self,
        ticket: Ticket,
        judge: Judge,
        late: Late,
        until_s: float,
        waiting: WaitingStream | None,
        overflow: Overflow | None,
    ) -> None:
        self.ticket = ticket
        self.judge = judge
        self.late = late
        self.until_s = until_s
        self.waiting = waiting
        self.overflow = overflow
        self.widen_s = math.inf if overflow is None else overflow.due_s  # loop time of the next look for further lines
        self.further: tuple[str, ...] = ()  # the lines that it went to besides
        self.left: Allowances | None = None
        self.answer: Lease | Refusal | None = None
        self._bell: asyncio.Future[None] | None = None

    def tell(self, answer: Lease | Refusal) -> None:
        self.answer = answer
        self._ring()

    async def rest(self, until_s: float) -> None:
        """Until the answer, or until then. Wakes in the turn after it: a refused ticket leaves the line at once."""
        loop = asyncio.get_running_loop()
        self._bell = loop.create_future()
        timer = loop.call_at(until_s, self._ring)
        try:
            await self._bell
        finally:
            timer.cancel()

    def _ring(self) -> None:
        if self._bell is not None and not self._bell.done():
            self._bell.set_result(None)


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

    def lease(  # noqa: PLR0917 - what a call waits by
        self,
        ticket: Ticket,
        until_s: float,
        late: Late,
        judge: Judge = _has_no_objection,
        waiting: WaitingStream | None = None,
        overflow: Overflow | None = None,
    ) -> SlotHold:
        """`late` makes what is raised when no slot came until then (loop time), of the place that it has by then;
        `judge` is asked by `context_known`; `waiting` hears of the place meanwhile; `overflow` says which further lines
        it goes to when."""
        return SlotHold(self, self._store, Waiter(ticket, judge, late, until_s, waiting, overflow))

    async def take(self, waiter: Waiter) -> Lease:
        """Raises QueueFull at once, what `late` makes in the end, or what the store or `judge` refuse it with."""
        # The waiter stands before the take: a grant may overtake the answer that says Place.
        ticket = waiter.ticket
        self._waiting[ticket.id] = waiter
        is_served = False
        try:
            answer = await self._store.take(ticket)
            waiter.left = answer.left
            if not isinstance(answer, Lease):
                if not ticket.preferred:
                    self._fleet.wake_placer()  # no copy may serve it now; who waits for a slot alone needs no load
                answer = await self._wait(waiter)
            is_served = True
            return answer
        finally:
            del self._waiting[ticket.id]
            if not is_served:
                # Valid at any time: also when a grant came in the very moment the client left.
                await self._store.leave(ticket.id)

    async def _wait(self, waiter: Waiter) -> Lease:
        """One timer at a time: for the next comment, for a further line, or for the end of all patience."""
        waiting = waiter.waiting
        while waiter.answer is None:
            now_s = monotonic()
            if now_s >= waiter.until_s:
                raise waiter.late(await self._store.place_of(waiter.ticket.id))
            if waiter.overflow is not None and now_s >= waiter.widen_s:
                await self._widen(waiter, waiter.overflow, now_s)
                continue
            if waiting is not None and now_s >= waiting.due_s:
                waiting.say(await self._place_told(waiter, waiting))
                continue
            await waiter.rest(min(waiter.until_s, waiter.widen_s, math.inf if waiting is None else waiting.due_s))
        if isinstance(waiter.answer, Refusal):
            raise waiter.answer
        return waiter.answer

    async def _widen(self, waiter: Waiter, overflow: Overflow, now_s: float) -> None:
        """Whoever leaves meanwhile leaves all its lines: `take` says so to the store whatever became of this."""
        place = await self._store.place_of(waiter.ticket.id)
        is_held = place is not None and place.reason is Waits.FOR_TEAM
        further, waiter.widen_s = widening(overflow, now_s, self._fleet.snapshot, is_held=is_held)
        if not further or waiter.answer is not None:
            return
        # For a ticket that was refused in this very moment; what it is told is on its way.
        with suppress(Unavailable):
            answer = await self._store.widen(waiter.ticket.id, further)
            waiter.further = further
            if isinstance(answer, Lease) and waiter.answer is None:
                waiter.tell(answer)

    async def _place_told(self, waiter: Waiter, waiting: WaitingStream) -> bytes:
        place = await self._store.place_of(waiter.ticket.id)
        return comments.in_line(
            reason=place.reason if place else None,
            position=place.position if place else None,
            of=place.depth if place else None,
            estimate_s=place.estimate_s if place else None,
            waited_s=waiting.waited_s,
            also=waiter.further,
        )

    def context_known(self, keys: Sequence[str]) -> None:
        """A copy of these models became ready, with a context: whoever waits for a larger one would wait in vain."""
        for waiter in list(self._waiting.values()):
            if waiter.ticket.num_ctx and waiter.answer is None and any(key in keys for key in waiter.ticket.targets):
                try:
                    waiter.judge()
                except Refusal as refusal:
                    waiter.tell(refusal)

    def _granted(self, lease: Lease) -> bool:
        waiter = self._waiting.get(lease.ticket)
        if waiter is None or waiter.answer is not None:
            return False
        waiter.tell(lease)
        return True

    def _refused(self, ticket_id: str, refusal: Refusal) -> None:
        waiter = self._waiting.get(ticket_id)
        if waiter is not None and waiter.answer is None:
            waiter.tell(refusal)


class SlotHold:
    """`async with`: a lease from entry to exit. Set `outcome` and `tokens` before leaving."""

    __slots__ = ("_admission", "_lease", "_store", "_waiter", "outcome", "tokens")

    def __init__(self, admission: Admission, store: Store, waiter: Waiter) -> None:
        self._admission = admission
        self._store = store
        self._waiter = waiter
        self._lease: Lease | None = None
        self.outcome = Outcome.CANCELLED
        self.tokens = 0

    @property
    def left(self) -> Allowances | None:
        """What the call's team may still use, where it has limits; told once a ticket."""
        return self._waiter.left

    async def __aenter__(self) -> Lease:
        self._lease = await self._admission.take(self._waiter)
        return self._lease

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._lease is not None
        await self._store.give_back(self._lease, self.outcome, self.tokens)
