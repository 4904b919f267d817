"""Tickets, leases and lines over copies: who gets which slot. Knows sessions and silence only as what `Book` says.

Kept true after every step: nobody waits while a free copy fits it, but for tickets of replicas that let a grant lapse
(until they are heard again) and while the store settles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from heapq import merge
from random import Random

from router.errors import Refusal
from router.fleet.tickets import LEFT_IDS_S, UNACKED_S, Lease, LineView, Place, Ticket
from router.store.answers import Full, Gone, Limits, Refused
from router.store.copies import Copies
from router.store.lines import Entry, Line, Memory, Past
from router.store.nodes import CopyEntry

LEFT_IDS_MAX = 65_536  # a thousand calls a second that all give up, for LEFT_IDS_S
PAST_IDS_MAX = 16_384  # a next attempt comes within a second: this is room for ten thousand calls a second


class Ledger:
    """One pool's tickets. `Book` sets the two times before each step."""

    def __init__(self, rng: Random, limits: Limits) -> None:
        self.now_s = 0.0
        self.answering_s = 0.0
        self.is_settling = False  # nothing is handed out
        self.copies = Copies()
        self.lines: dict[str, Line] = {}
        self.tickets: dict[str, Entry] = {}
        self.waiting: dict[int, Entry] = {}  # by arrival
        self.leases: dict[str, Entry] = {}
        self.unclaimed: dict[str, Entry] = {}  # grants nobody has acknowledged, oldest first, by lease id
        self.unheard: set[str] = set()  # replicas that let a grant lapse and have not been heard since
        self.left: Memory[None] = Memory(LEFT_IDS_S, LEFT_IDS_MAX)
        self.past: Memory[Past] = Memory(LEFT_IDS_S, PAST_IDS_MAX)
        self.news: list[tuple[str, Lease | Refused]] = []  # of this step, by replica
        self._rng = rng
        self.limits = limits
        self._arrivals = 0
        self._leases_made = 0

    def set_limits(self, limits: Limits) -> None:
        """Nobody who waits already is sent away by it."""
        self.limits = limits
        for key, line in self.lines.items():
            line.max_waiting = limits.of(key)

    # what a caller asks

    def take(self, replica: str, ticket: Ticket) -> Lease | Place | Full | Gone:
        assert ticket.targets, "a ticket that wants nothing"
        entry = self.tickets.get(ticket.id)
        if entry is not None:
            return self._take_again(entry, ticket)
        past = self.past.get(ticket.id)
        if ticket.id in self.left or (past is not None and ticket.attempt <= past.attempt):
            return Gone.LEFT
        entry = self._enter(ticket, replica, past)
        found = self._pick(entry)
        if found is not None:
            return self._lend(entry, *found)
        if past is None:
            keys = tuple(key for key in entry.keys if not self._line(key).is_full)
            if not keys:
                del self.tickets[ticket.id]
                return Full(self._line(entry.keys[0]).refuse_newcomer(self.now_s, self._rng))
            entry.keys = keys
        self._stand(entry)
        return self._place(entry)

    def _take_again(self, entry: Entry, ticket: Ticket) -> Lease | Place | Gone:
        if ticket.attempt < entry.ticket.attempt:
            return Gone.LEFT
        if ticket.attempt > entry.ticket.attempt:
            entry.ticket = ticket
            if entry.lease is not None:  # its give_back was lost: a ticket has one lease at a time
                freed = self._release(entry)
                self._stand(entry)
                self.offer(freed)
        return self._answer(entry)

    def widen(self, ticket_id: str, targets: Iterable[str]) -> Lease | Place | Gone:
        entry = self.tickets.get(ticket_id)
        if entry is None:
            return Gone.LEFT
        if entry.lease is None:
            more = tuple(key for key in dict.fromkeys(targets) if key not in entry.keys and not self._line(key).is_full)
            for key in more:
                self._line(key).add(entry.arrival, self.now_s)
            entry.keys += more
        return self._answer(entry)

    def leave(self, ticket_id: str) -> None:
        self.left.add(ticket_id, None, self.answering_s)
        self.past.drop(ticket_id)
        entry = self.tickets.pop(ticket_id, None)
        if entry is not None:
            self.offer(self._release(entry) if entry.lease is not None else self._step_out(entry))

    def give_back(self, lease_id: str) -> None:
        entry = self.leases.get(lease_id)
        if entry is None:
            return
        ticket = entry.ticket
        del self.tickets[ticket.id]
        self.past.add(ticket.id, Past(ticket.attempt, entry.arrival, entry.arrived_s), self.answering_s)
        self.offer(self._release(entry))

    def acknowledge(self, replica: str, lease_ids: Iterable[str]) -> tuple[str, ...]:
        """Those that had lapsed before: their tickets stand in line again, and their slots may be another's."""
        lapsed = []
        for lease_id in lease_ids:
            entry = self.leases.get(lease_id)
            if entry is None or entry.replica != replica:
                lapsed.append(lease_id)
            else:
                self.unclaimed.pop(lease_id, None)
        return tuple(lapsed)

    def refuse(self, model: str, refusal: Refusal) -> int:
        line = self.lines.get(model)
        refused = 0
        for arrival in tuple(line.order) if line is not None else ():
            entry = self.waiting[arrival]
            if entry.keys == (model,):
                self._step_out(entry)
                del self.tickets[entry.ticket.id]
                self.left.add(entry.ticket.id, None, self.answering_s)
                self.news.append((entry.replica, Refused(entry.ticket.id, refusal)))
                refused += 1
            else:
                self._line(model).remove(arrival)
                entry.keys = tuple(key for key in entry.keys if key != model)
        return refused

    def place_of(self, ticket_id: str) -> Place | None:
        entry = self.tickets.get(ticket_id)
        return None if entry is None or entry.lease is not None else self._place(entry)

    def views(self) -> tuple[LineView, ...]:
        return tuple(line.view(self.waiting, self.now_s) for line in self.lines.values() if line.order)

    # what replicas lose and bring

    def lapse(self) -> None:
        """Passes on the grants that nobody acknowledged. Their tickets stand where they stood."""
        freed: list[CopyEntry] = []
        while self.unclaimed:
            entry = next(iter(self.unclaimed.values()))
            if self.answering_s - entry.granted_s < UNACKED_S:
                break
            self.unheard.add(entry.replica)
            freed += self._release(entry)
            self._stand(entry)
        self.offer(freed)

    def heard(self, replica: str) -> None:
        """A replica that let a grant lapse is there again."""
        self.unheard.discard(replica)
        self.seek(entry for entry in self.waiting.values() if entry.replica == replica)

    def drop(self, replica: str) -> None:
        """Frees all that a replica holds, and its places."""
        self.unheard.discard(replica)
        freed = list(self._drop_others(replica, (), ()))
        self.copies.end_loads(lambda copy: copy.loader == replica)
        self.offer(freed)

    def adopt(self, replica: str, leases: Sequence[Lease], tickets: Sequence[Ticket]) -> None:
        """Takes over what the replica says it holds, also above slots and limits, and drops what it does not name."""
        freed = self._drop_others(replica, leases, tickets)
        for lease in leases:
            freed += self._restore(replica, lease)
        for ticket in tickets:
            entry = self.tickets.get(ticket.id)
            if entry is None and ticket.id not in self.left:
                self._stand(self._enter(ticket, replica, self.past.get(ticket.id)))
            elif entry is not None and entry.lease is None:
                entry.ticket = ticket
        self.offer(freed)
        self.heard(replica)

    def settled(self) -> None:
        self.is_settling = False
        self.seek(self.waiting.values())

    def forget(self) -> None:
        """What is kept for a time only."""
        self.left.forget(self.answering_s)
        self.past.forget(self.answering_s)
        self.copies.expire_loads(self.answering_s)
        for key in [key for key, line in self.lines.items() if not line.order and not line.drain.per_s(self.now_s)]:
            del self.lines[key]

    def _drop_others(self, replica: str, leases: Sequence[Lease], tickets: Sequence[Ticket]) -> list[CopyEntry]:
        held = {lease.id for lease in leases}
        standing = {ticket.id for ticket in tickets} | {lease.ticket for lease in leases}
        freed: list[CopyEntry] = []
        for entry in [entry for entry in self.tickets.values() if entry.replica == replica]:
            if entry.lease is not None and entry.lease.id in held:
                self.unclaimed.pop(entry.lease.id, None)
                continue
            if entry.lease is not None:
                freed += self._release(entry)
                self._stand(entry)
            if entry.ticket.id not in standing:
                self._step_out(entry)
                del self.tickets[entry.ticket.id]
        return freed

    def _restore(self, replica: str, lease: Lease) -> Sequence[CopyEntry]:
        """A lease that the store lost, or that it passed on while the replica was silent."""
        if lease.id in self.leases:
            return ()
        # Its ticket may have been refused in the line that it was put back to: who serves it has the last word.
        self.left.drop(lease.ticket)
        freed: Sequence[CopyEntry] = ()
        entry = self.tickets.get(lease.ticket)
        if entry is None:
            ticket = Ticket(lease.ticket, (lease.model,), attempt=lease.attempt)
            entry = self._enter(ticket, replica, self.past.get(lease.ticket))
        elif entry.lease is not None:
            freed = self._release(entry)
        else:
            self._step_out(entry)
        self._hold(entry, lease, self.copies.copy(lease.node, lease.weights))
        return freed

    # slots to tickets, tickets to slots

    def offer(self, copies: Sequence[CopyEntry]) -> None:
        """Gives the free slots of these copies to those who wait for them, the oldest first."""
        if self.is_settling or not self.waiting:
            return
        while True:
            best: tuple[Entry, CopyEntry] | None = None
            for copy in copies:
                entry = self._oldest_for(copy) if copy.is_free else None
                if entry is not None and (best is None or entry.arrival < best[0].arrival):
                    best = (entry, copy)
            if best is None:
                return
            self._grant(*best)

    def seek(self, entries: Iterable[Entry]) -> None:
        """Looks for a slot for each of these, the oldest first."""
        for entry in sorted(entries, key=lambda entry: entry.arrival):
            found = self._pick(entry)
            if found is not None:
                self._grant(entry, found[0])

    def _oldest_for(self, copy: CopyEntry) -> Entry | None:
        orders = [line.order for key in copy.keys if (line := self.lines.get(key)) is not None and line.order]
        # A line is walked past those who may not use this copy: nobody behind them waits because of them.
        for arrival in merge(*orders) if len(orders) != 1 else orders[0]:
            entry = self.waiting[arrival]
            if copy.fits(entry.ticket) and entry.replica not in self.unheard:
                return entry
        return None

    def _pick(self, entry: Entry) -> tuple[CopyEntry, str] | None:
        if self.is_settling or entry.replica in self.unheard:
            return None
        return self.copies.pick(entry.ticket, entry.keys, self._rng)

    def _grant(self, entry: Entry, copy: CopyEntry) -> None:
        self._step_out(entry)
        key = next(key for key in entry.keys if key in copy.keys)
        lease = self._lend(entry, copy, key)
        self._line(key).granted(self.now_s)
        entry.granted_s = self.answering_s
        self.unclaimed[lease.id] = entry
        self.news.append((entry.replica, lease))

    def _lend(self, entry: Entry, copy: CopyEntry, key: str) -> Lease:
        ticket = entry.ticket
        self._leases_made += 1
        # The ticket's id is in it: after a fail-over the numbers come again, for other tickets.
        lease_id = f"{ticket.id}/{ticket.attempt}/{self._leases_made}"
        lease = Lease(lease_id, ticket.id, ticket.attempt, key, copy.node.name, copy.weights, copy.num_ctx)
        self._hold(entry, lease, copy)
        return lease

    def _hold(self, entry: Entry, lease: Lease, copy: CopyEntry) -> None:
        entry.lease = lease
        entry.copy = copy
        self.leases[lease.id] = entry
        self.copies.occupy(copy)

    def _release(self, entry: Entry) -> Sequence[CopyEntry]:
        """Takes the lease from a ticket, which then is nowhere. Answers the copies that may be free now."""
        lease, copy = entry.lease, entry.copy
        assert lease is not None
        assert copy is not None
        entry.lease = entry.copy = None
        del self.leases[lease.id]
        self.unclaimed.pop(lease.id, None)
        return self.copies.release(copy)

    def _answer(self, entry: Entry) -> Lease | Place:
        """The lease that a ticket has or can have now, else its place. What goes out here needs no acknowledgement."""
        lease = entry.lease
        if lease is not None:
            if self.unclaimed.pop(lease.id, None) is not None:
                self.news = [news for news in self.news if news[1] is not lease]  # made in this very step: told once
            return lease
        found = self._pick(entry)
        if found is None:
            return self._place(entry)
        self._step_out(entry)
        return self._lend(entry, *found)

    # places in line

    def _enter(self, ticket: Ticket, replica: str, past: Past | None) -> Entry:
        if past is None:
            self._arrivals += 1
            entry = Entry(ticket, replica, self._arrivals, self.now_s)
        else:
            self.past.drop(ticket.id)
            entry = Entry(ticket, replica, past.arrival, past.arrived_s)
        self.tickets[ticket.id] = entry
        return entry

    def _stand(self, entry: Entry) -> None:
        self.waiting[entry.arrival] = entry
        for key in entry.keys:
            self._line(key).add(entry.arrival, self.now_s)

    def _step_out(self, entry: Entry) -> Sequence[CopyEntry]:
        """Out of all lines. Nobody gets a slot by it, hence the empty answer."""
        del self.waiting[entry.arrival]
        for key in entry.keys:
            self.lines[key].remove(entry.arrival)
        return ()

    def _place(self, entry: Entry) -> Place:
        return self._line(entry.keys[0]).place(entry.arrival, self.now_s)

    def _line(self, key: str) -> Line:
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(key, self.limits.of(key), self.now_s)
        return line
