"""The store's contract once more, as lists and scans: it does not choose, it judges what a store chose.

Each method applies what a command changes, then `judge` takes the slots that the store handed out in that step and
asserts that it could hand out these, that it passed nobody over, and that nobody still waits beside a free slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from router.fleet.node import CopyState
from router.fleet.tickets import LEFT_IDS_S, LOAD_S_MAX, UNACKED_S, CopyReport, Gate, Lease, Place, Ticket
from router.store.answers import Full, Gone

BUSY = (CopyState.LOADING, CopyState.UNLOADING)


@dataclass
class Held:
    ticket: Ticket
    replica: str
    arrival: int
    keys: list[str]
    lease: Lease | None = None
    unclaimed_since: float | None = None


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
    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.now = 0.0  # store time
        self.answering = 0.0
        self.settles_until: float | None = None
        self.held: list[Held] = []
        self.left: dict[str, float] = {}
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
        return sorted(found, key=lambda held: held.arrival)

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

    def judge(self, grants: list[Lease]) -> None:
        for lease in grants:
            held = self.find(lease.ticket)
            assert held is not None, "granted to a ticket that is not there"
            assert held.lease is None, "granted twice"
            self.hand_out(held, lease)
            held.unclaimed_since = self.answering
        self._nobody_older_is_left(grants)
        for held in self.waiting():
            assert not self.choices(held), f"{held.ticket.id} waits beside a free slot"

    def hand_out(self, held: Held, lease: Lease) -> None:
        """Any order of a step's grants is legal if each copy was free when its turn came and nobody older is left."""
        copy = self.copy(lease.node, lease.weights)
        assert self.is_free(copy), "a slot that was not free"
        assert self.may_use(held, copy)
        assert lease.model in held.keys
        assert lease.model in copy.keys
        assert (lease.attempt, lease.num_ctx) == (held.ticket.attempt, copy.num_ctx)
        assert self.find_lease(lease.id) is None, "a lease id given twice"
        held.lease = lease

    def _nobody_older_is_left(self, grants: list[Lease]) -> None:
        for lease in grants:
            winner = self.find(lease.ticket)
            copy = self.copy(lease.node, lease.weights)
            for held in self.waiting():
                assert winner is None or held.arrival > winner.arrival or not self.may_use(held, copy), "passed over"

    def find_lease(self, lease_id: str) -> Held | None:
        return next((held for held in self.held if held.lease is not None and held.lease.id == lease_id), None)

    # tickets

    def take(self, replica: str, ticket: Ticket, value: object, grants: list[Lease]) -> None:
        held = self.find(ticket.id)
        past = self.past.get(ticket.id)
        if held is None and (ticket.id in self.left or (past is not None and ticket.attempt <= past[0])):
            assert value is Gone.LEFT
        elif held is None:
            self._first_take(replica, ticket, past, value, grants)
            return
        elif ticket.attempt < held.ticket.attempt:
            assert value is Gone.LEFT
        elif ticket.attempt == held.ticket.attempt:
            self._same_again(held, value, grants)
            return
        else:
            held.lease = held.unclaimed_since = None
            held.ticket = ticket
            self._same_again(held, value, grants)
            return
        self.judge(grants)

    def _first_take(
        self, replica: str, ticket: Ticket, past: tuple[int, int, float] | None, value: object, grants: list[Lease]
    ) -> None:
        self.judge(grants)
        self.arrivals += 1
        held = Held(ticket, replica, self.arrivals if past is None else past[1], list(dict.fromkeys(ticket.targets)))
        open_keys = [key for key in held.keys if len(self.waiting(key)) < self.max_waiting]
        if isinstance(value, Full):
            assert past is None
            assert not open_keys
            assert not self.choices(held)
            assert 1.0 <= value.retry_after_s <= 60.0
            return
        self.past.pop(ticket.id, None)
        if isinstance(value, Lease):
            free = {copy.node for copy in self.choices(held)}
            wished = [node for node in ticket.preferred if node in free]
            assert not wished or value.node in (wished if len(held.keys) > 1 else wished[:1])
            self.held.append(held)
            self.hand_out(held, value)
        else:
            assert past is not None or open_keys, "a line over its limit"
            assert not self.choices(held)
            if past is None:
                held.keys = open_keys
            self.held.append(held)
            self._is_place(held, value)

    def _same_again(self, held: Held, value: object, grants: list[Lease]) -> None:
        """Its own grant, made in this very step, is named by the value and not among the grants."""
        if isinstance(value, Lease) and held.lease is None:
            self.hand_out(held, value)
            self._nobody_older_is_left([value])
        self.judge(grants)
        if held.lease is None:
            self._is_place(held, value)
        else:
            assert value == held.lease
            held.unclaimed_since = None

    def _is_place(self, held: Held, value: object) -> None:
        assert isinstance(value, Place)
        line = self.waiting(held.keys[0])
        assert (value.model, value.position, value.depth) == (held.keys[0], line.index(held) + 1, len(line))

    def widen(self, ticket_id: str, targets: Iterable[str], value: object, grants: list[Lease]) -> None:
        held = self.find(ticket_id)
        if held is None:
            assert value is Gone.LEFT
            self.judge(grants)
            return
        if held.lease is None:
            held.keys += [
                key
                for key in dict.fromkeys(targets)
                if key not in held.keys and len(self.waiting(key)) < self.max_waiting
            ]
        self._same_again(held, value, grants)

    def place_of(self, ticket_id: str, value: object) -> None:
        held = self.find(ticket_id)
        if held is None or held.lease is not None:
            assert value is None
        else:
            self._is_place(held, value)

    def leave(self, ticket_id: str) -> None:
        self.held = [held for held in self.held if held.ticket.id != ticket_id]
        self.past.pop(ticket_id, None)
        self.left[ticket_id] = self.answering

    def give_back(self, lease_id: str) -> None:
        held = self.find_lease(lease_id)
        if held is not None:
            self.held.remove(held)
            self.past[held.ticket.id] = (held.ticket.attempt, held.arrival, self.answering)

    def refuse(self, model: str) -> list[str]:
        refused = [held for held in self.waiting(model) if held.keys == [model]]
        for held in self.waiting(model):
            held.keys.remove(model)
        for held in refused:
            self.held.remove(held)
            self.left[held.ticket.id] = self.answering
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
                held.lease = held.unclaimed_since = None
                self.unheard.add(held.replica)
        for name in [name for name, heard in self.heard.items() if self.answering - heard >= 6.0]:
            self.bye(name)
        self.left = {key: at for key, at in self.left.items() if self.answering - at < LEFT_IDS_S}
        self.past = {key: entry for key, entry in self.past.items() if self.answering - entry[2] < LEFT_IDS_S}
        self._end_loads(lambda copy: self.answering - copy.since >= LOAD_S_MAX)

    def bye(self, name: str) -> None:
        del self.heard[name]
        self.unheard.discard(name)
        self.held = [held for held in self.held if held.replica != name]
        self._end_loads(lambda copy: copy.loader == name)

    def hello(self, name: str, leases: list[Lease], tickets: list[Ticket], *, settles: bool) -> None:
        if settles:
            self.settles_until = self.answering + 1.0
        self.enter(name)
        named = {lease.id for lease in leases}
        standing = {ticket.id for ticket in tickets} | {lease.ticket for lease in leases}
        for held in [held for held in self.held if held.replica == name]:
            held.unclaimed_since = None
            if held.lease is not None and held.lease.id not in named:
                held.lease = None
            if held.lease is None and held.ticket.id not in standing:
                self.held.remove(held)
        for lease in leases:
            if self.find_lease(lease.id) is None:
                self.left.pop(lease.ticket, None)
                self._found(name, Ticket(lease.ticket, (lease.model,), attempt=lease.attempt)).lease = lease
                self.copy(lease.node, lease.weights)
        for ticket in tickets:
            held = self.find(ticket.id)
            if held is not None and held.lease is None:
                held.ticket = ticket
            elif held is None and ticket.id not in self.left:
                self._found(name, ticket)

    def _found(self, name: str, ticket: Ticket) -> Held:
        held = self.find(ticket.id)
        if held is None:
            self.arrivals += 1
            past = self.past.pop(ticket.id, None)
            held = Held(ticket, name, self.arrivals if past is None else past[1], list(dict.fromkeys(ticket.targets)))
            self.held.append(held)
        return held

    # nodes

    def set_copy(self, replica: str, report: CopyReport) -> None:
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
