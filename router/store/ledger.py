"""Tickets, leases and lines over copies: who gets which slot. Knows sessions and silence only as what `Book` says.

Kept true after every step: nobody waits while a free copy fits it, but for tickets of replicas that let a grant lapse
(until they are heard again), of teams that run as many calls as they may, and while the store settles.

What a ticket costs is booked twice. Its team's *budget* (limits by minute and day) is charged when the ticket comes,
its *account* (fairness) when it gets a slot. Both by the estimate, which the true use replaces when it is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random

from router.errors import Allowances, QueueFull, Refusal, TeamQueueFull
from router.fleet.tickets import LEFT_IDS_S, Lease, LineView, Place, Ticket, Waits
from router.policy.shares import COST_MIN_TOKENS
from router.store.answers import Full, Gone, Limits, Refused
from router.store.copies import Copies
from router.store.lines import Entry, Memory, Past
from router.store.nodes import CopyEntry
from router.store.queues import Queues, Turn
from router.store.teams import Team

LEFT_IDS_MAX = 65_536  # a thousand calls a second that all give up, for LEFT_IDS_S
PAST_IDS_MAX = 16_384  # a next attempt comes within a second: this is room for ten thousand calls a second


class Ledger:
    """One pool's tickets. `Book` sets the two times before each step."""

    def __init__(self, rng: Random, limits: Limits, leases_made: int = 0) -> None:
        self.now_s = 0.0
        self.answering_s = 0.0
        self.is_settling = False  # nothing is handed out
        self.copies = Copies()
        self.queues = Queues(limits)
        self.tickets: dict[str, Entry] = {}
        self.leases: dict[str, Entry] = {}
        self.unclaimed: dict[str, Entry] = {}  # grants nobody has acknowledged, oldest first, by lease id
        self.unheard: set[str] = set()  # replicas that let a grant lapse and have not been heard since
        self.left: Memory[Refusal | None] = Memory(LEFT_IDS_S, LEFT_IDS_MAX)  # with what they were refused by
        self.past: Memory[Past] = Memory(LEFT_IDS_S, PAST_IDS_MAX)
        self.news: list[tuple[str, Lease | Refused]] = []  # of this step, by replica
        self._freed_teams: list[Team] = []  # in this step: they were held back by their own limit
        self._rng = rng
        self._arrivals = 0
        self._leases_made = leases_made  # ids count from here: no other store of these tickets gives the same

    @property
    def waiting(self) -> Mapping[int, Entry]:
        """Every ticket without a lease, by order number: the smaller, the older."""
        return self.queues.waiting

    @property
    def limits(self) -> Limits:
        return self.queues.limits

    def set_limits(self, limits: Limits) -> None:
        """Nobody who waits already is sent away by it; a team that may run more now does."""
        self.queues.set_limits(limits, self.now_s)
        self.seek(self.waiting.values())

    # what a caller asks

    def take(self, replica: str, ticket: Ticket) -> Lease | Place | Full | Gone | Refused:
        assert ticket.targets, "a ticket that wants nothing"
        entry = self.tickets.get(ticket.id)
        if entry is not None:
            return self._take_again(entry, ticket)
        past = self.past.get(ticket.id)
        if ticket.id in self.left or (past is not None and ticket.attempt <= past.attempt):
            return Gone.LEFT
        team = self.queues.teams.of(ticket.team, self.now_s)
        if past is None and team.budget is not None:
            limited = team.budget.admit(ticket.estimate_tokens, self.now_s)
            if limited is not None:
                return Refused(ticket.id, limited)
        elif past is not None:
            team.book(ticket.estimate_tokens)
        entry = self.enter(ticket, replica, past)
        left = team.budget.left(entry.estimate) if past is None and team.budget is not None else None
        found = self._pick(entry)
        if found is not None:
            return self._serve(entry, *found, left)
        refused = self._make_room(entry) if past is None else None
        if refused is not None:
            team.cancel(entry.estimate)
            del self.tickets[ticket.id]
            return refused
        self.queues.stand(entry, self.now_s)
        return self._place(entry, left)

    def _take_again(self, entry: Entry, ticket: Ticket) -> Lease | Place | Gone:
        if ticket.attempt < entry.ticket.attempt:
            return Gone.LEFT
        if ticket.attempt > entry.ticket.attempt:
            if entry.lease is None:
                self.queues.renew(entry, ticket)
            else:  # its give_back was lost: a ticket has one lease at a time
                entry.ticket = ticket
                self.offer(self.take_back(entry))
        return self._answer(entry)

    def _make_room(self, entry: Entry) -> Full | Refused | None:
        """A place for a newcomer, in the lines that have room, else in the first where another team has too much."""
        queues, team, now_s = self.queues, entry.team, self.now_s
        lines = [queues.line(key, now_s) for key in entry.keys]
        limit = team.limits.max_waiting
        if limit is not None and team.waiting >= limit:
            team.refused += 1
            wait_s = lines[0].wait_s(team.refused, now_s, self._rng)
            return Refused(entry.ticket.id, TeamQueueFull(limit, retry_after_s=wait_s))
        if keys := tuple(line.key for line in lines if not line.is_full):
            entry.keys = keys
            return None
        for line in lines:
            victim = queues.victim(line.key, entry)
            if victim is not None:
                entry.keys = (line.key,)
                self._expel(victim, line.key, QueueFull(retry_after_s=line.refuse_one(now_s, self._rng)))
                return None
        return Full(lines[0].refuse_one(now_s, self._rng))

    def widen(self, ticket_id: str, targets: Iterable[str]) -> Lease | Place | Gone:
        entry = self.tickets.get(ticket_id)
        if entry is None:
            return Gone.LEFT
        if entry.lease is None:
            self.queues.widen(entry, targets, self.now_s)
        return self._answer(entry)

    def leave(self, ticket_id: str, tokens: int = 0) -> None:
        self.left.add(ticket_id, None, self.answering_s)
        self.past.drop(ticket_id)
        entry = self.tickets.pop(ticket_id, None)
        if entry is None:
            return
        if entry.lease is None:
            self.queues.step_out(entry)
            entry.team.book(tokens - entry.estimate)
        else:
            freed = self.release(entry)
            self._settle(entry, tokens)
            self.offer(freed)

    def give_back(self, lease_id: str, tokens: int = 0) -> None:
        entry = self.leases.get(lease_id)
        if entry is None:
            return
        ticket = entry.ticket
        del self.tickets[ticket.id]
        self.past.add(ticket.id, Past(ticket.attempt, entry.arrival, entry.arrived_s), self.answering_s)
        freed = self.release(entry)
        self._settle(entry, tokens)
        self.offer(freed)

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
        return sum(self._expel(entry, model, refusal) for entry in sorted(self.queues.standing(model), key=_age))

    def _expel(self, entry: Entry, key: str, refusal: Refusal) -> bool:
        """Out of this line; whoever stands in no other is refused, and that was nothing to its team."""
        if self.queues.narrow(entry, key):
            return False
        del self.tickets[entry.ticket.id]
        self.left.add(entry.ticket.id, refusal, self.answering_s)
        entry.team.cancel(entry.estimate)
        self.news.append((entry.replica, Refused(entry.ticket.id, refusal)))
        return True

    def place_of(self, ticket_id: str) -> Place | None:
        entry = self.tickets.get(ticket_id)
        return None if entry is None or entry.lease is not None else self._place(entry)

    def views(self) -> tuple[LineView, ...]:
        return self.queues.views(self.now_s)

    def heard(self, replica: str) -> None:
        """A replica that let a grant lapse is there again."""
        self.unheard.discard(replica)
        self.seek(entry for entry in self.waiting.values() if entry.replica == replica)

    def settled(self) -> None:
        self.is_settling = False
        self.seek(self.waiting.values())

    def forget(self) -> None:
        """What is kept for a time only."""
        self.left.forget(self.answering_s)
        self.past.forget(self.answering_s)
        self.copies.expire_loads(self.answering_s)
        self.queues.forget(self.copies.serving, self.now_s)

    # slots to tickets, tickets to slots

    def offer(self, copies: Sequence[CopyEntry]) -> None:
        """Gives the free slots of these copies to those whose turn it is.

        Where copies share what is free, as those of a half-open node do, the oldest of these goes first: turns in lines
        of different weights compare by nothing else. A team that was held back until now looks for a slot in all its
        lines: others than these may have one.
        """
        if self.is_settling or not self.waiting:
            self._freed_teams.clear()
            return
        while turns := [turn for copy in copies if copy.is_free and (turn := self._turn_at(copy)) is not None]:
            self._grant(min(turns, key=lambda turn: turn.entry.order))
        while self._freed_teams:
            team = self._freed_teams.pop()
            while not team.account.is_held and any(self._seek_one(entry) for entry in self.queues.heads(team)):
                pass

    def seek(self, entries: Iterable[Entry]) -> None:
        """Finds the slots that these may use. Who gets them is fairness's choice, these or others."""
        for entry in sorted(entries, key=_age):
            while entry.lease is None and self._seek_one(entry):
                pass

    def _seek_one(self, entry: Entry) -> bool:
        found = self._pick(entry)
        turn = None if found is None else self._turn_at(found[0])
        if turn is None:
            return False
        self._grant(turn)
        return True

    def _pick(self, entry: Entry) -> tuple[CopyEntry, str] | None:
        if self.is_settling or entry.team.account.is_held or (self.unheard and entry.replica in self.unheard):
            return None
        return self.copies.pick(entry.ticket, entry.keys, self._rng)

    def _turn_at(self, copy: CopyEntry) -> Turn | None:
        return self.queues.first_for(copy, self.unheard, self.now_s)

    def _grant(self, turn: Turn) -> None:
        entry, copy = turn.entry, turn.copy
        self.queues.granted(turn, self.now_s)
        key = next(key for key in entry.keys if key in copy.keys)
        lease = self._lend(entry, copy, key)
        self.queues.line(key, self.now_s).granted(self.now_s)
        entry.granted_s = self.answering_s
        self.unclaimed[lease.id] = entry
        self.news.append((entry.replica, lease))

    def _serve(self, entry: Entry, copy: CopyEntry, key: str, left: Allowances | None) -> Lease:
        """Without a wait: nobody else who may use this copy is there."""
        self.queues.served(entry, copy, key)
        return self._lend(entry, copy, key, left)

    def _lend(self, entry: Entry, copy: CopyEntry, key: str, left: Allowances | None = None) -> Lease:
        ticket = entry.ticket
        self._leases_made += 1
        # The ticket's id is in it: after a fail-over the numbers come again, for other tickets.
        lease_id = f"{ticket.id}/{ticket.attempt}/{self._leases_made}"
        lease = Lease(
            *(lease_id, ticket.id, ticket.attempt, key, copy.node.name, copy.weights, copy.num_ctx),
            *(ticket.team, entry.estimate, left),
        )
        self.hold(entry, lease, copy)
        return lease

    def hold(self, entry: Entry, lease: Lease, copy: CopyEntry) -> None:
        entry.lease = lease
        entry.copy = copy
        entry.team.began()
        self.leases[lease.id] = entry
        self.copies.occupy(copy)

    def release(self, entry: Entry) -> Sequence[CopyEntry]:
        """Takes the lease from a ticket, which then is nowhere. Answers the copies that may be free now."""
        lease, copy = entry.lease, entry.copy
        assert lease is not None
        assert copy is not None
        entry.lease = entry.copy = None
        del self.leases[lease.id]
        self.unclaimed.pop(lease.id, None)
        if entry.team.ended():
            self._freed_teams.append(entry.team)
        return self.copies.release(copy)

    def take_back(self, entry: Entry) -> Sequence[CopyEntry]:
        """Takes the lease from a ticket that has not used it, as if it had not been lent; the ticket stands first."""
        freed = self.release(entry)
        self.uncharge(entry)
        entry.is_due = True
        self.queues.stand(entry, self.now_s)
        return freed

    def uncharge(self, entry: Entry) -> None:
        if entry.payer is not None:
            entry.payer.charge(-entry.cost)
            entry.payer = None

    def _settle(self, entry: Entry, tokens: int) -> None:
        """What the call really used, in place of its estimate."""
        if entry.payer is not None:
            entry.payer.charge(max(COST_MIN_TOKENS, tokens) - entry.cost)
        entry.team.book(tokens - entry.estimate)

    def _answer(self, entry: Entry) -> Lease | Place:
        """The lease that a ticket has or can have now, else its place. What goes out here needs no acknowledgement."""
        self.seek((entry,))
        lease = entry.lease
        if lease is None:
            return self._place(entry)
        if self.unclaimed.pop(lease.id, None) is not None:
            self.news = [news for news in self.news if news[1] is not lease]  # made in this very step: told once
        return lease

    # places in line

    def enter(self, ticket: Ticket, replica: str, past: Past | None) -> Entry:
        team = self.queues.teams.of(ticket.team, self.now_s)
        if past is None:
            self._arrivals += 1
            entry = Entry(ticket, replica, team, self._arrivals, self.now_s)
        else:
            self.past.drop(ticket.id)
            entry = Entry(ticket, replica, team, past.arrival, past.arrived_s)
            entry.is_due = True
        self.tickets[ticket.id] = entry
        return entry

    def _place(self, entry: Entry, left: Allowances | None = None) -> Place:
        line = self.queues.lines[entry.keys[0]]
        position = self.queues.ahead(entry) + 1
        rate = line.drain.per_s(self.now_s)
        if entry.team.account.is_held:
            reason = Waits.FOR_TEAM
        else:
            reason = Waits.FOR_SLOT if self.copies.is_any_ready(entry.keys) else Waits.FOR_COPY
        return Place(line.key, position, line.depth, position / rate if rate else None, reason, left)


def _age(entry: Entry) -> int:
    return entry.order
