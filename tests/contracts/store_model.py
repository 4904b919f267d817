"""The store's contract once more, as lists and scans: it does not choose, it judges what a store chose.

Each method applies what a command changes, then `judge` takes the slots that the store handed out in that step, in its
order, and asserts that each went to whose turn it was, and that nobody still waits beside a free slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from router.errors import RateLimited, TeamQueueFull
from router.fleet.node import CopyState
from router.fleet.tickets import LEFT_IDS_S, LOAD_S_MAX, UNACKED_S, CopyReport, Gate, Lease, Place, Ticket, Waits
from router.policy.limits import TeamTable
from router.store.answers import Full, Gone, Refused
from tests.contracts.fair_model import FairModel, Held

BUSY = (CopyState.LOADING, CopyState.UNLOADING)


@dataclass
class NodeFacts:
    number: int = 0
    uid: str = ""
    past: tuple[str, int] = ("", 0)
    down: bool = False
    gate: Gate = Gate.OPEN
    until: float = float("inf")


@dataclass
class CopyFacts:
    node: str
    weights: str
    keys: list[str] = field(default_factory=list)
    state: CopyState = CopyState.ON_DISK
    slots: int = 0
    num_ctx: int = 0
    named_ctx: int = 0
    seen: float = float("-inf")
    loader: str = ""
    since: float = 0.0
    gate: Gate = Gate.OPEN
    until: float = float("inf")


class Model:
    def __init__(self, max_waiting: int, teams: TeamTable | None = None) -> None:
        self.max_waiting = max_waiting
        self.fair = FairModel(teams or TeamTable())
        self.grants: dict[str, list[float]] = {}  # when each line moved
        self.now = 0.0  # store time
        self.answering = 0.0
        self.settles_until: float | None = None
        self.held: list[Held] = []
        self.left: dict[str, float] = {}
        self.refused: set[str] = set()  # of those that left: the store refused them
        self.owed: dict[str, set[str]] = {}  # by replica: of whose refusal it has not said that it heard
        self.past: dict[str, tuple[int, int, float]] = {}  # attempt, arrival, when
        self.nodes: dict[str, NodeFacts] = {}
        self.copies: list[CopyFacts] = []
        self.heard: dict[str, float] = {}
        self.unheard: set[str] = set()
        self.sessions: dict[str, int] = {}
        self.epoch = 0
        self.arrivals = 0
        self._clock: float | None = None

    # scans

    def tick(self, clock: float) -> None:
        passed = 0.0 if self._clock is None else max(0.0, clock - self._clock)
        self.now = clock if self._clock is None else self.now + passed
        self._clock = clock
        self.answering += min(passed, 1.0)
        if self.settles_until is not None and self.answering >= self.settles_until:
            self.settles_until = None

    def enter(self, replica: str) -> None:
        self.heard[replica] = self.answering
        self.unheard.discard(replica)

    def find(self, ticket_id: str) -> Held | None:
        return next((held for held in self.held if held.ticket.id == ticket_id), None)

    def copy(self, node: str, weights: str) -> CopyFacts:
        self.node(node)
        for copy in self.copies:
            if (copy.node, copy.weights) == (node, weights):
                return copy
        self.copies.append(CopyFacts(node, weights))
        return self.copies[-1]

    def node(self, name: str) -> NodeFacts:
        return self.nodes.setdefault(name, NodeFacts())

    def waiting(self, key: str | None = None) -> list[Held]:
        found = [held for held in self.held if held.lease is None and (key is None or key in held.keys)]
        return sorted(found, key=lambda held: held.order)

    def is_held_back(self, team: str) -> bool:
        limit = self.fair.table.of(team).max_concurrent
        running = sum(held.lease is not None and held.ticket.team == team for held in self.held)
        return limit is not None and running >= limit

    def leases(self, node: str, weights: str | None = None) -> int:
        return sum(
            held.lease is not None and held.lease.node == node and weights in (None, held.lease.weights)
            for held in self.held
        )

    def passes(self, gate: Gate, until: float, leases: int) -> bool:
        if gate is Gate.CLOSED and self.now >= until:
            gate = Gate.HALF_OPEN
        return gate is Gate.OPEN or (gate is Gate.HALF_OPEN and leases == 0)

    def is_free(self, copy: CopyFacts) -> bool:
        node = self.node(copy.node)
        mine = self.leases(copy.node, copy.weights)
        return (
            copy.state is CopyState.READY
            and mine < copy.slots
            and self.passes(copy.gate, copy.until, mine)
            and self.passes(node.gate, node.until, self.leases(copy.node))
        )

    def may_use(self, held: Held, copy: CopyFacts) -> bool:
        ticket = held.ticket
        return (
            self.settles_until is None
            and held.replica not in self.unheard
            and not self.is_held_back(ticket.team)
            and any(key in copy.keys for key in held.keys)
            and copy.node not in ticket.excluded
            and (ticket.num_ctx == 0 or copy.num_ctx == 0 or copy.num_ctx >= ticket.num_ctx)
            and (copy.named_ctx == 0 or not ticket.names_no_ctx)
        )

    def choices(self, held: Held) -> list[CopyFacts]:
        return [copy for copy in self.copies if self.is_free(copy) and self.may_use(held, copy)]

    def unclaimed_by(self, replica: str) -> set[str]:
        return {held.ticket.id for held in self.held if held.replica == replica and held.unclaimed_since is not None}

    # what the store handed out

    def judge(self, grants: list[Lease], *, answered: Lease | None = None) -> None:
        """`answered` is the one that the step answered instead of telling it as news: it needs no acknowledgement."""
        made = [*grants, *([answered] if answered is not None else [])]
        for lease in sorted(made, key=lambda lease: int(lease.id.rsplit("/", 1)[1])):
            self._grant(lease)
            if lease is not answered:
                self._find(lease).unclaimed_since = self.answering
        for held in self.waiting():
            assert not self.choices(held), f"{held.ticket.id} waits beside a free slot"

    def _grant(self, lease: Lease) -> None:
        held, copy = self._find(lease), self.copy(lease.node, lease.weights)
        assert held.lease is None, "granted twice"
        assert self.is_free(copy), "a slot that was not free"
        turn = self.fair.turn(copy.keys, copy.node, self.waiting(), lambda other: self.may_use(other, copy), self.now)
        assert turn is not None
        assert held is turn[0], f"{held.ticket.id} was served, and it was the turn of {turn[0].ticket.id}"
        self.fair.granted(*turn, copy.keys, self.now)
        self._charge(held, copy, turn[-1])
        self.grants.setdefault(lease.model, []).append(self.now)
        self._lend(held, lease, copy)

    def _charge(self, held: Held, copy: CopyFacts, key: str, *, is_in_line: bool = True) -> None:
        others = [
            other.ticket.team
            for other in self.waiting()
            if other.ticket.team != held.ticket.team and any(key in copy.keys for key in other.keys)
        ]
        is_waited_for = not all(self.is_held_back(team) for team in others)
        waiting = [other for other in self.waiting() if is_in_line or other is not held]
        self.fair.serve(held, key, waiting, is_waited_for=is_waited_for)

    def _lend(self, held: Held, lease: Lease, copy: CopyFacts) -> None:
        assert lease.model == next(key for key in held.keys if key in copy.keys)
        assert (lease.attempt, lease.num_ctx, lease.team) == (held.ticket.attempt, copy.num_ctx, held.ticket.team)
        assert self.find_lease(lease.id) is None, "a lease id given twice"
        held.lease = lease

    def _find(self, lease: Lease) -> Held:
        held = self.find(lease.ticket)
        assert held is not None, "granted to a ticket that is not there"
        return held

    def _new(self, ticket: Ticket, replica: str, past: tuple[int, int, float] | None) -> Held:
        self.arrivals += past is None
        limits = self.fair.know(ticket.team, self.now)
        arrival = self.arrivals if past is None else past[1]
        return Held(ticket, replica, arrival, [], limits, is_due=past is not None)

    def _stand(self, held: Held, keys: Iterable[str]) -> None:
        keys = list(dict.fromkeys(keys))
        held.keys = []
        self.fair.stand(held, keys, [other for other in self.waiting() if other is not held], self.now)
        if held not in self.held:
            self.held.append(held)

    def _take_back(self, held: Held) -> None:
        held.lease = held.unclaimed_since = None
        self.fair.correct(held, 0)
        held.is_due = True
        self._stand(held, held.keys)

    def find_lease(self, lease_id: str) -> Held | None:
        return next((held for held in self.held if held.lease is not None and held.lease.id == lease_id), None)

    # tickets

    def take(self, replica: str, ticket: Ticket, value: object, grants: list[Lease], refused: set[str]) -> None:
        """`refused` are the tickets of whose refusal this step told."""
        held = self.find(ticket.id)
        past = self.past.get(ticket.id)
        if held is None and (ticket.id in self.left or (past is not None and ticket.attempt <= past[0])):
            assert value is Gone.LEFT
        elif held is None:
            assert not grants
            self._first_take(replica, ticket, past, value, refused)
        elif ticket.attempt < held.ticket.attempt:
            assert value is Gone.LEFT
        else:
            is_next = ticket.attempt > held.ticket.attempt
            if is_next:  # a repeat changes nothing
                held.ticket = ticket
            if is_next and held.lease is not None:
                self._take_back(held)
            self._same_again(held, value, grants)
            return
        self.judge(grants)

    def _first_take(
        self, replica: str, ticket: Ticket, past: tuple[int, int, float] | None, value: object, refused: set[str]
    ) -> None:
        held = self._new(ticket, replica, past)
        if past is not None:
            self.fair.book(ticket.team, ticket.estimate_tokens)
        elif not self.fair.admits(ticket, self.now):
            assert isinstance(value, Refused)
            assert isinstance(value.refusal, RateLimited)
            self.arrivals -= 1
            return
        keys = list(dict.fromkeys(ticket.targets))
        held.keys = keys
        if choices := self.choices(held):
            assert isinstance(value, Lease)
            self._serve_at_once(held, value, choices)
        elif self._turns_away(held, past, value, refused):
            self.fair.book(ticket.team, -ticket.estimate_tokens, requests=-1)
            return
        else:
            self._stand(held, held.keys)
            self._is_place(held, value)
        self.past.pop(ticket.id, None)

    def _serve_at_once(self, held: Held, lease: Lease, choices: list[CopyFacts]) -> None:
        free = {copy.node for copy in choices}
        wished = [node for node in held.ticket.preferred if node in free]
        assert not wished or lease.node in (wished if len(held.keys) > 1 else wished[:1])
        copy = self.copy(lease.node, lease.weights)
        assert copy in choices
        assert lease.model in copy.keys
        self.fair.enter(held, lease.model, self.waiting())
        if not held.is_due:
            self.fair.advance(held, lease.model, self.fair.tag(held, lease.model))
        self._charge(held, copy, lease.model)
        self.held.append(held)
        assert (lease.attempt, lease.num_ctx, lease.team) == (held.ticket.attempt, copy.num_ctx, held.ticket.team)
        held.lease = lease

    def _turns_away(self, held: Held, past: tuple[int, int, float] | None, value: object, refused: set[str]) -> bool:
        """A newcomer; else it stands in `held.keys`, and whoever had to go is gone."""
        if past is not None:
            return False
        mine = [other for other in self.waiting() if other.ticket.team == held.ticket.team]
        if held.limits.max_waiting is not None and len(mine) >= held.limits.max_waiting:
            assert isinstance(value, Refused)
            assert isinstance(value.refusal, TeamQueueFull)
            assert 1.0 <= (value.refusal.retry_after_s or 0.0) <= 60.0
            return True
        if open_keys := [key for key in held.keys if len(self.waiting(key)) < self.max_waiting]:
            held.keys = open_keys
            return False
        for key in held.keys:
            victim = self.fair.victim(key, held, self.waiting())
            if victim is not None:
                held.keys = [key]
                victim.keys.remove(key)
                if not victim.keys:
                    assert victim.ticket.id in refused, "the newest of the team most over its share"
                    self._expel(victim)
                return False
        assert isinstance(value, Full)
        assert 1.0 <= value.retry_after_s <= 60.0
        return True

    def _expel(self, held: Held) -> None:
        self.held.remove(held)
        self.left[held.ticket.id] = self.answering
        self.refused.add(held.ticket.id)
        self.owed.setdefault(held.replica, set()).add(held.ticket.id)
        self.fair.book(held.ticket.team, -held.ticket.estimate_tokens, requests=-1)

    def _same_again(self, held: Held, value: object, grants: list[Lease]) -> None:
        """Its own grant, made in this very step, is named by the value and not among the grants."""
        is_new = isinstance(value, Lease) and held.lease is None
        self.judge(grants, answered=value if is_new and isinstance(value, Lease) else None)
        if held.lease is None:
            self._is_place(held, value)
        else:
            assert value == held.lease
            held.unclaimed_since = None

    def _is_place(self, held: Held, value: object) -> None:
        assert isinstance(value, Place)
        line = self.waiting(held.keys[0])
        position = self.fair.position(held, line, self.is_held_back)
        assert (value.model, value.position, value.depth) == (held.keys[0], position, len(line))
        assert (value.reason is Waits.FOR_TEAM) == self.is_held_back(held.ticket.team)

    def widen(self, ticket_id: str, targets: Iterable[str], value: object, grants: list[Lease]) -> None:
        held = self.find(ticket_id)
        if held is None:
            assert value is Gone.LEFT
            self.judge(grants)
            return
        if held.lease is None:
            more = [
                key
                for key in dict.fromkeys(targets)
                if key not in held.keys and len(self.waiting(key)) < self.max_waiting
            ]
            self.fair.stand(held, more, [other for other in self.waiting() if other is not held], self.now)
        self._same_again(held, value, grants)

    def place_of(self, ticket_id: str, value: object) -> None:
        held = self.find(ticket_id)
        if held is None or held.lease is not None:
            assert value is None
        else:
            self._is_place(held, value)

    def leave(self, ticket_id: str, tokens: int) -> None:
        held = self.find(ticket_id)
        if held is not None:
            self._ends(held, tokens)
        self.past.pop(ticket_id, None)
        self.left[ticket_id] = self.answering
        self.refused.discard(ticket_id)

    def give_back(self, lease_id: str, tokens: int) -> None:
        held = self.find_lease(lease_id)
        if held is not None:
            self._ends(held, tokens)
            self.past[held.ticket.id] = (held.ticket.attempt, held.arrival, self.answering)

    def _ends(self, held: Held, tokens: int) -> None:
        self.held.remove(held)
        if held.lease is not None:
            self.fair.correct(held, max(1, tokens))
        self.fair.book(held.ticket.team, tokens - held.ticket.estimate_tokens)

    def refuse(self, model: str) -> list[str]:
        refused = [held for held in self.waiting(model) if held.keys == [model]]
        for held in self.waiting(model):
            held.keys.remove(model)
        for held in refused:
            self._expel(held)
        return sorted(held.ticket.id for held in refused)

    def ack(self, replica: str, lease_ids: Iterable[str]) -> tuple[str, ...]:
        lapsed = []
        for lease_id in lease_ids:
            held = self.find_lease(lease_id)
            if held is None or held.replica != replica:
                lapsed.append(lease_id)
            else:
                held.unclaimed_since = None
        return tuple(lapsed)

    # replicas

    def beat(self) -> None:
        for held in self.held:
            if held.unclaimed_since is not None and self.answering - held.unclaimed_since >= UNACKED_S:
                self.unheard.add(held.replica)
                self._take_back(held)
        for name in [name for name, heard in self.heard.items() if self.answering - heard >= 6.0]:
            self.bye(name)
        self.left = {key: at for key, at in self.left.items() if self.answering - at < LEFT_IDS_S}
        self.refused &= self.left.keys()
        self.past = {key: entry for key, entry in self.past.items() if self.answering - entry[2] < LEFT_IDS_S}
        self._end_loads(lambda copy: self.answering - copy.since >= LOAD_S_MAX)

    def forget(self) -> None:
        """At the very end of a beat: lines that moved in it are kept."""
        self.fair.forget(self._is_needed)

    def _is_needed(self, key: str) -> bool:
        has_moved = any(int(at) >= self.now - 30.0 for at in self.grants.get(key, ()))
        return bool(self.waiting(key)) or has_moved or any(key in copy.keys for copy in self.copies)

    def owed_to(self, name: str) -> set[str]:
        return self.owed.get(name, set()) & self.refused

    def bye(self, name: str) -> None:
        self.owed.pop(name, None)
        del self.heard[name]
        self.unheard.discard(name)
        for held in [held for held in self.held if held.replica == name]:
            self._drop(held)
        self._end_loads(lambda copy: copy.loader == name)

    def hello(self, name: str, leases: list[Lease], tickets: list[Ticket], *, settles: bool) -> None:
        if settles:
            self.settles_until = self.answering + 1.0
        self.enter(name)
        named = {lease.id for lease in leases}
        standing = {ticket.id for ticket in tickets} | {lease.ticket for lease in leases}
        for held in [held for held in self.held if held.replica == name]:
            held.unclaimed_since = None
            is_gone = held.ticket.id not in standing
            if held.lease is not None and held.lease.id in named:
                continue
            if is_gone:
                self._drop(held)
            elif held.lease is not None:
                self._take_back(held)
        for lease in leases:
            if self.find_lease(lease.id) is None:
                self.left.pop(lease.ticket, None)
                self.refused.discard(lease.ticket)
                self._restore(name, lease)
        self.owed[name] = {ticket.id for ticket in tickets} & self.refused
        for ticket in tickets:
            held = self.find(ticket.id)
            if held is not None and held.lease is None:
                held.ticket = ticket
            elif held is None and ticket.id not in self.left:
                held = self._new(ticket, name, self.past.pop(ticket.id, None))
                self.fair.book(ticket.team, ticket.estimate_tokens)
                self._stand(held, ticket.targets)

    def _restore(self, name: str, lease: Lease) -> None:
        held = self.find(lease.ticket)
        if held is None:
            ticket = Ticket(lease.ticket, (lease.model,), lease.attempt, team=lease.team)
            ticket = replace(ticket, estimate_tokens=lease.estimate_tokens)
            held = self._new(ticket, name, self.past.pop(lease.ticket, None))
            self.fair.book(ticket.team, ticket.estimate_tokens)
            held.keys = [lease.model]
            self.held.append(held)
        elif held.lease is not None:
            self.fair.correct(held, 0)
        self._charge(held, self.copy(lease.node, lease.weights), lease.model, is_in_line=False)
        held.lease = lease

    def _drop(self, held: Held) -> None:
        """What a running call used nobody can tell: its estimate stands."""
        self.held.remove(held)
        if held.lease is None:
            self.fair.book(held.ticket.team, -held.ticket.estimate_tokens)

    # nodes

    def set_copy(self, replica: str, report: CopyReport) -> None:
        self._set_copy(replica, report)
        keys = self.copy(report.node, report.weights).keys
        if len(keys) > 1:
            self.fair.join(keys)

    def _set_copy(self, replica: str, report: CopyReport) -> None:
        node = self.node(report.node)
        if report.incarnation > node.number:
            self._restart(report.node, report.incarnation)
        copy = self.copy(report.node, report.weights)
        if report.incarnation < node.number or node.down:
            return
        if copy.state in BUSY:
            if report.is_probe or replica != copy.loader or report.state in BUSY:
                return
        elif report.seen_at_s < copy.seen:
            return
        for other in self.copies:
            if other is not copy and other.node == copy.node:
                other.keys = [key for key in other.keys if key not in report.keys]
        copy.seen = max(copy.seen, min(report.seen_at_s, self.now))
        copy.keys, copy.slots = list(report.keys), report.slots
        copy.num_ctx, copy.named_ctx = report.num_ctx, report.named_ctx
        copy.state = CopyState.READY if report.state is CopyState.READY else CopyState.ON_DISK

    def incarnate(self, name: str, uid: str) -> int:
        node = self.node(name)
        if uid and uid == node.past[0]:
            return node.past[1]
        is_other = uid != "" and node.uid not in ("", uid)
        if is_other:
            node.past = (node.uid, node.number)
        if is_other or node.down or node.number == 0:
            self._restart(name, node.number + 1)
        node.uid = uid or node.uid
        return node.number

    def drop_node(self, name: str, incarnation: int) -> None:
        if incarnation >= self.node(name).number:
            self._restart(name, incarnation)
            self.node(name).down = True

    def _restart(self, name: str, number: int) -> None:
        node = self.node(name)
        node.number, node.down = number, False
        for copy in self.copies:
            if copy.node == name:
                copy.state = CopyState.ON_DISK

    def begin(self, replica: str, name: str, weights: str, *, loading: bool, epoch: int) -> bool:
        if epoch < self.epoch:
            return False
        self.epoch = epoch
        copy = self.copy(name, weights)
        others = [other for other in self.copies if other.node == name and other.state is CopyState.LOADING]
        if self.node(name).down or copy.state in BUSY or (loading and others):
            return False
        copy.state = CopyState.LOADING if loading else CopyState.UNLOADING
        copy.loader, copy.since = replica, self.answering
        return True

    def _end_loads(self, is_over: Callable[[CopyFacts], bool]) -> None:
        for copy in self.copies:
            if copy.state in BUSY and is_over(copy):
                copy.state = CopyState.ON_DISK

    def gate(self, name: str, weights: str | None, gate: Gate, until: float) -> None:
        gated = self.node(name) if weights is None else self.copy(name, weights)
        gated.gate, gated.until = gate, until
