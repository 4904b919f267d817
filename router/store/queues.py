"""All that waits in a pool: lines, teams, and whose turn it is at a copy. `Ledger` owns it and knows of leases.

Every operation is a few binary searches and look-ups for each line of a ticket; `ahead` walks the teams before it, and
`first_for` the kinds of tickets that may not use the copy (`policy.fair_queue`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from router.fleet.tickets import LineView, Ticket
from router.policy.fair_queue import DUE, LOOKAHEAD, Choice, FairQueue, Fits, Kind
from router.policy.shares import Front, Shares
from router.store.answers import Limits
from router.store.lines import Entry, Line
from router.store.nodes import CopyEntry
from router.store.teams import Team, Teams


class Turn(NamedTuple):
    """Whose turn it is at a copy, by which line's choice, and who was before it in fair order."""

    entry: Entry
    copy: CopyEntry
    line: Line
    choice: Choice
    overtaken: Sequence[Entry] = ()


class Queues:
    def __init__(self, limits: Limits) -> None:
        self.lines: dict[str, Line] = {}
        self.waiting: dict[int, Entry] = {}  # by order number
        self.shares = Shares()
        self.teams = Teams(limits.teams, self.shares)
        self.limits = limits

    def line(self, key: str, now_s: float) -> Line:
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(key, self.limits.of(key), now_s)
        return line

    def set_limits(self, limits: Limits, now_s: float) -> None:
        """Nobody who waits already is sent away by it."""
        self.limits = limits
        for key, line in self.lines.items():
            line.max_waiting = limits.of(key)
        for name, team in self.teams.by_name.items():
            weight = limits.teams.of(name).weight
            if weight != team.account.weight:
                for line in self.lines.values():
                    line.queue.reweigh(team.account, weight)
        self.teams.set_table(limits.teams, now_s)

    # standing

    def stand(self, entry: Entry, now_s: float) -> None:
        entry.spot = entry.spot_now()
        self.waiting[entry.order] = entry
        entry.team.waiting += 1
        for key in entry.keys:
            self._join(entry, key, now_s)

    def step_out(self, entry: Entry) -> None:
        """Out of all lines."""
        del self.waiting[entry.order]
        entry.team.waiting -= 1
        if not entry.team.waiting:
            entry.team.refused = 0
        for key in entry.keys:
            self._quit(entry, key)

    def renew(self, entry: Entry, ticket: Ticket) -> None:
        """As its next attempt wants it, where it stands."""
        entry.ticket, old = ticket, entry.spot
        entry.spot = entry.spot_now()
        for key in entry.keys:
            self.lines[key].queue.change(old, entry.spot.kind, entry.team.account)

    def widen(self, entry: Entry, keys: Iterable[str], now_s: float) -> None:
        """Into further lines; full ones are passed over."""
        more = [key for key in dict.fromkeys(keys) if key not in entry.keys and not self.line(key, now_s).is_full]
        for key in more:
            self._join(entry, key, now_s)
        entry.keys += tuple(more)

    def narrow(self, entry: Entry, key: str) -> bool:
        """Out of one line. False where that was the last, and it waits no more."""
        if entry.keys == (key,):
            self.step_out(entry)
            return False
        self._quit(entry, key)
        entry.keys = tuple(other for other in entry.keys if other != key)
        return True

    def _join(self, entry: Entry, key: str, now_s: float) -> None:
        line, account, standing = self.line(key, now_s), entry.team.account, None
        if not line.depth:
            line.drain.begin(now_s)
        if entry.spot.lane != DUE:
            standing = self.shares.enter(self._front(entry, key), account)
            standing.waiting += 1
        line.queue.add(entry.spot, account, standing, now_s)

    def _quit(self, entry: Entry, key: str) -> None:
        line, account = self.lines[key], entry.team.account
        line.queue.remove(entry.spot, account)
        if entry.spot.lane != DUE:
            self._front(entry, key).standings[account.name].waiting -= 1
        if not line.depth:
            line.refused = 0

    def _front(self, entry: Entry, key: str) -> Front:
        return self.shares.front(key, entry.band)

    # turns

    def first_for(self, copy: CopyEntry, unheard: set[str], now_s: float) -> Turn | None:
        """Whose turn it is among those who may use this copy, over all its names."""

        def fits(kind: Kind) -> bool:
            return copy.fits(kind) and kind.replica not in unheard

        best: tuple[Choice, Line] | None = None
        for key in copy.keys:
            line = self.lines.get(key)
            choice = line.queue.first(fits, now_s) if line is not None and line.depth else None
            if line is not None and choice is not None and (best is None or choice < best[0]):
                best = (choice, line)
        if best is None:
            return None
        choice, line = best
        entry, overtaken = self._look_ahead(line.queue, choice, fits, copy.node.name)
        return Turn(entry, copy, line, choice, overtaken)

    def _look_ahead(self, queue: FairQueue, choice: Choice, fits: Fits, node: str) -> tuple[Entry, Sequence[Entry]]:
        """Who is next, or one soon after whose prompt this node knows; each ticket is overtaken LOOKAHEAD times."""
        fairest = self.waiting[choice.order]
        if choice.lane == DUE or _prefers(fairest, node):
            return fairest, ()
        overtaken: list[Entry] = []
        for order in queue.window(choice, fits, self._cost):
            entry = self.waiting[order]
            if _prefers(entry, node):
                return entry, overtaken
            if entry.passes >= LOOKAHEAD:
                break
            overtaken.append(entry)
        return fairest, ()

    def _cost(self, order: int) -> float:
        entry = self.waiting[order]
        return entry.cost / entry.team.account.weight

    def granted(self, turn: Turn, now_s: float) -> None:
        """The one whose turn it was steps out and its team is charged."""
        entry, copy, line, choice, overtaken = turn
        for before in overtaken:
            before.passes += 1
        if choice.lane != DUE:
            self._front(entry, line.key).serve(choice.rank[0])
        for key in copy.keys:
            if (other := self.lines.get(key)) is not None:
                other.queue.passed_over(choice.lane)
        line.queue.served(choice.lane, now_s)
        self.charge(entry, copy)
        self.step_out(entry)
        entry.team.refused = max(0, entry.team.refused - 1)

    def charge(self, entry: Entry, copy: CopyEntry) -> None:
        """For a slot of this copy; one that no other team waited for is free."""
        account = entry.team.account
        lines = [self.lines[key] for key in copy.keys if key in self.lines]
        entry.is_charged = any(line.queue.is_waited_for(account.name) for line in lines)
        if entry.is_charged:
            self.shares.serve(account, entry.cost)

    def heads(self, team: Team) -> list[Entry]:
        """The first of each kind in each of its lines, in its own order: if none of these gets a slot nobody does."""
        queues = team.account.queues
        orders = {order for queue in queues for order in queue.firsts()}
        return sorted((self.waiting[order] for order in orders), key=lambda entry: (entry.spot.lane, entry.order))

    # room

    def victim(self, key: str, newcomer: Entry) -> Entry | None:
        """Who leaves a full line for a newcomer: the newest of the team most over its share, unless that is its own."""
        queue = self.lines[key].queue
        name = queue.most_over(newcomer.team.account) if queue.depth else None
        order = queue.newest(name) if name is not None else None
        return None if order is None else self.waiting[order]

    # looking

    def ahead(self, entry: Entry) -> int:
        """How many come before it in its first line."""
        queue = self.lines[entry.keys[0]].queue
        return queue.ahead(entry.spot, entry.team.account, entry.cost)

    def standing(self, key: str) -> Iterator[Entry]:
        line = self.lines.get(key)
        return (self.waiting[order] for order in (line.queue.orders() if line is not None else ()))

    def views(self, now_s: float) -> tuple[LineView, ...]:
        return tuple(line.view(self.standing(key), now_s) for key, line in self.lines.items() if line.depth)

    def forget(self, serving: Iterable[str], now_s: float) -> None:
        """Lines that are empty and have not moved lately, fronts that nobody stands before, idle teams."""
        for key in [key for key, line in self.lines.items() if not line.depth and not line.drain.per_s(now_s)]:
            del self.lines[key]
        self.shares.forget((*self.lines, *serving), self.teams.idle(now_s))


def _prefers(entry: Entry, node: str) -> bool:
    preferred = entry.ticket.preferred
    return bool(preferred) and preferred[0] == node
