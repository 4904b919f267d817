"""The store's contract (ARCHITECTURE.md) as a synchronous state machine for any number of replicas.

Each method is one atomic step. Nothing here waits or reads a clock: `now_s` is an argument, so that the memory store, a
simulator and the model that tests other stores share these decisions.

Two times. *Store time* never goes back: a clock that does is moved forward. *Answering time* is what deadlines are
measured by: no step adds more than one beat to it, so a store that was frozen, or a clock that jumped, reaps nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

from router.errors import Refusal
from router.fleet.tickets import BEAT_S, SILENT_BEATS, CopyReport, Gate, Leading, Lease, LineView, Place, Ticket
from router.store import custody
from router.store.answers import Answer, Caller, Full, Gone, Limits, Outdated, Refused, Stale
from router.store.ledger import Ledger
from router.store.nodes import CopyEntry
from router.store.replica import Replica

T = TypeVar("T")

SILENCE_S = SILENT_BEATS * BEAT_S


class Book:
    """Slots and lines of one pool. `run` names this life of the store, `seq` counts its steps.

    `settle_s` is how long after its first hello a store that is empty, or may have lost writes, hands out nothing:
    0 where no lease can be older than the store itself, as in one process.
    """

    def __init__(
        self,
        rng: Random,
        limits: Limits | None = None,
        *,
        run: str = "1",
        settle_s: float = BEAT_S,
        leases_made: int = 0,
    ) -> None:
        self.run = run
        self.seq = 0
        self.ledger = Ledger(rng, limits or Limits(), leases_made)
        self.replicas: dict[str, Replica] = {}
        self._epoch = 0
        self._leader = ""  # the replica that places
        self._settle_s = settle_s
        self._settled_at_s = 0.0  # answering time
        self._ahead_s = 0.0  # store time less the clock's
        self._is_new = True
        self._greeted_run = ""  # the life in which somebody said hello first

    def __repr__(self) -> str:
        ledger = self.ledger
        waiting, leased, nodes = len(ledger.waiting), len(ledger.leases), len(ledger.copies.nodes)
        return f"<Book {waiting} waiting | {leased} leased | {nodes} nodes | {len(self.replicas)} replicas>"

    def store_time_s(self, now_s: float) -> float:
        return max(self.ledger.now_s, now_s + self._ahead_s)

    # replicas

    def hello(
        self,
        replica: str,
        last_seq: int,
        leases: Sequence[Lease],
        tickets: Sequence[Ticket],
        now_s: float,
        *,
        greeting: int,
    ) -> Answer[int]:
        """Opens a session, its number. On connecting, after REAPED, and whenever `run` changed or `seq` went back.

        `greeting` counts the replica's hellos. One that comes after a later one, or twice, names what was held then: it
        changes nothing.
        """
        # Also where this replica saw none of the lost writes: another may hold what they gave it.
        is_new_life = self.seq == 0 or self._greeted_run != self.run
        self._advance(now_s)
        known = self.replicas.get(replica)
        if known is not None and greeting <= known.greeting:
            return self._stale(Stale.OLD_SESSION)
        if is_new_life or last_seq >= self.seq:
            self._settle()
        # Above any number given before a fail-over, which this life of the store may not remember.
        session = max(self.seq, last_seq + 1)
        self.seq = session
        self.replicas[replica] = Replica(session, greeting, self.ledger.answering_s)
        if known is not None:  # what was not read yet: refusals are told once
            self.replicas[replica].stream = known.stream
        self.ledger.offer(custody.adopt(self.ledger, replica, leases, tickets))
        self.ledger.heard(replica)
        return self._answer(replica, session)

    def bye(self, caller: Caller, now_s: float) -> Answer[None]:
        """A replica that leaves in order: frees at once what reaping would free later."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        self.ledger.offer(self._drop(caller.replica))
        return self._answer(caller.replica, None)

    def beat(
        self, caller: Caller, acked: Iterable[str], now_s: float, *, heard: Iterable[str] = ()
    ) -> Answer[tuple[str, ...]]:
        """Answers every unclaimed grant of the caller, and as value those of `acked` that had lapsed; and every refusal
        but for those of the tickets `heard`."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        replica = self.replicas[caller.replica]
        for ticket_id in heard:
            replica.owed.pop(ticket_id, None)
        lapsed = self.ledger.acknowledge(caller.replica, acked)
        freed = custody.lapse(self.ledger)
        for name in self._silent():
            freed += self._drop(name)
        self.ledger.offer(freed)
        self.ledger.forget()
        replica.stream.clear()
        answer = self._answer(caller.replica, lapsed)
        mine = tuple(e.lease for e in self.ledger.unclaimed.values() if e.replica == caller.replica and e.lease)
        return answer._replace(grants=mine, refusals=self._owed_to(replica))

    def read(self, caller: Caller, now_s: float) -> Answer[None]:
        """What other replicas' steps brought the caller since it last read or beat. Lapsed grants are left out."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        grants, refusals = self._read(caller.replica)
        answer = self._answer(caller.replica, None)
        return answer._replace(grants=grants + answer.grants, refusals=refusals + answer.refusals)

    def ack(self, caller: Caller, lease_ids: Iterable[str], now_s: float) -> Answer[tuple[str, ...]]:
        """Grants that found their waiter; the value as in `beat`."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        return self._answer(caller.replica, self.ledger.acknowledge(caller.replica, lease_ids))

    def reap(self, now_s: float) -> Answer[tuple[str, ...]]:
        """Names of the replicas that were silent for too long; what they held is free."""
        self._advance(now_s)
        silent = self._silent()
        self.ledger.offer([copy for name in silent for copy in self._drop(name)])
        return self._answer("", silent)

    # tickets

    def take(self, caller: Caller, ticket: Ticket, now_s: float) -> Answer[Lease | Place | Full | Gone | Refused]:
        """Refused: the team has used up what it may (RateLimited), or has too many waiting (TeamQueueFull)."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        return self._answer(caller.replica, self.ledger.take(caller.replica, ticket))

    def widen(
        self, caller: Caller, ticket_id: str, targets: Iterable[str], now_s: float
    ) -> Answer[Lease | Place | Gone]:
        """Full lines are passed over: the ticket has its place already."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        return self._answer(caller.replica, self.ledger.widen(ticket_id, targets))

    def place_of(self, caller: Caller, ticket_id: str, now_s: float) -> Answer[Place | None]:
        """None for a ticket that does not wait: unknown, gone, or served by now."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        return self._answer(caller.replica, self.ledger.place_of(ticket_id))

    def leave(self, caller: Caller, ticket_id: str, now_s: float, *, tokens: int = 0) -> Answer[None]:
        """`tokens`: what the call used, as in `give_back`; 0 for one that only waited."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        self.ledger.leave(ticket_id, tokens)
        return self._answer(caller.replica, None)

    def give_back(self, caller: Caller, lease_id: str, now_s: float, *, tokens: int = 0) -> Answer[None]:
        """`tokens`: prompt and output that the call really used, in place of its estimate."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        self.ledger.give_back(lease_id, tokens)
        return self._answer(caller.replica, None)

    def refuse(self, caller: Caller, model: str, refusal: Refusal, now_s: float) -> Answer[int]:
        """Those who stand in this line only; the others just leave it."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        return self._answer(caller.replica, self.ledger.refuse(model, refusal))

    def lines(self, caller: Caller, now_s: float) -> Answer[tuple[LineView, ...]]:
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        return self._answer(caller.replica, self.ledger.views())

    def set_limits(self, caller: Caller, limits: Limits, now_s: float) -> Answer[None]:
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        self.ledger.set_limits(limits)
        return self._answer(caller.replica, None)

    # nodes

    def set_copy(self, caller: Caller, report: CopyReport, now_s: float) -> Answer[Outdated | None]:
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        ledger = self.ledger
        copy = ledger.copies.report(report, caller.replica, ledger.now_s)
        if len(copy.keys) > 1:
            ledger.queues.shares.join(copy.keys)
        ledger.offer((copy,))
        node = copy.node
        is_outdated = node.is_down or report.incarnation < node.incarnation
        return self._answer(caller.replica, Outdated(node.incarnation, node.is_down) if is_outdated else None)

    def drop_node(self, caller: Caller, node: str, incarnation: int, now_s: float) -> Answer[None]:
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        self.ledger.copies.drop_node(node, incarnation)
        return self._answer(caller.replica, None)

    def incarnate(self, caller: Caller, node: str, uid: str, now_s: float) -> Answer[int]:
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        return self._answer(caller.replica, self.ledger.copies.incarnate(node, uid))

    def lead(self, caller: Caller, now_s: float, *, wants: bool = True) -> Answer[Leading]:
        """The caller leads from now on where nobody does, or whoever did is gone; unless it does not want to."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        if not wants and self._leader == caller.replica:
            self._leader = ""
        if wants and self._leader not in self.replicas:
            self._leader = caller.replica
            self._epoch += 1
        return self._answer(caller.replica, Leading(self._epoch, self._leader == caller.replica))

    def begin(
        self, caller: Caller, node: str, weights: str, now_s: float, *, loading: bool, epoch: int
    ) -> Answer[bool]:
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        if epoch < self._epoch:
            return self._answer(caller.replica, False)
        self._epoch = epoch
        copies, since_s = self.ledger.copies, self.ledger.answering_s
        return self._answer(caller.replica, copies.begin(node, weights, caller.replica, since_s, loading=loading))

    def gate(
        self, caller: Caller, node: str, weights: str | None, gate: Gate, now_s: float, *, until_s: float
    ) -> Answer[None]:
        """A CLOSED gate whose `until_s` (store time) has passed is HALF_OPEN; the others ignore it."""
        if stale := self._enter(caller, now_s):
            return self._stale(stale)
        self.ledger.offer(self.ledger.copies.gate(node, weights, gate, until_s, self.ledger.now_s))
        return self._answer(caller.replica, None)

    # every step

    def _enter(self, caller: Caller, now_s: float) -> Stale | None:
        self._advance(now_s)
        replica = self.replicas.get(caller.replica)
        if replica is None:
            return Stale.REAPED
        if replica.session != caller.session:
            return Stale.OLD_SESSION
        replica.heard_s = self.ledger.answering_s
        if caller.replica in self.ledger.unheard:
            self.ledger.heard(caller.replica)
        return None

    def _advance(self, clock_s: float) -> None:
        """One more step, at this time."""
        self.seq += 1
        ledger = self.ledger
        if self._is_new:
            self._is_new = False
            ledger.now_s = clock_s
        passed_s = clock_s + self._ahead_s - ledger.now_s
        if passed_s < 0.0:
            self._ahead_s -= passed_s
            passed_s = 0.0
        ledger.now_s += passed_s
        ledger.answering_s += min(passed_s, BEAT_S)
        if ledger.now_s >= ledger.copies.next_gate_s:
            ledger.offer(ledger.copies.open_due(ledger.now_s))
        if ledger.is_settling and ledger.answering_s >= self._settled_at_s:
            ledger.settled()

    def _settle(self) -> None:
        self._settled_at_s = self.ledger.answering_s + self._settle_s
        self._greeted_run = self.run
        self.ledger.is_settling = self._settle_s > 0.0

    def _silent(self) -> tuple[str, ...]:
        silent_s = self.ledger.answering_s - SILENCE_S
        return tuple(name for name, replica in self.replicas.items() if replica.heard_s <= silent_s)

    def _drop(self, name: str) -> list[CopyEntry]:
        del self.replicas[name]
        return custody.drop(self.ledger, name)

    def _read(self, name: str) -> tuple[tuple[Lease, ...], tuple[Refused, ...]]:
        stream, unclaimed = self.replicas[name].stream, self.ledger.unclaimed
        grants = tuple(news for news in stream if isinstance(news, Lease) and news.id in unclaimed)
        refusals = tuple(news for news in stream if isinstance(news, Refused))
        stream.clear()
        return grants, refusals

    def _owed_to(self, replica: Replica) -> tuple[Refused, ...]:
        refusals = [(ticket_id, self.ledger.left.get(ticket_id)) for ticket_id in replica.owed]
        found = tuple(Refused(ticket_id, refusal) for ticket_id, refusal in refusals if refusal is not None)
        replica.owed = {refused.ticket: None for refused in found}  # of the others it left, or was served after all
        return found

    def _answer(self, name: str, value: T) -> Answer[T]:
        """Sends this step's news to those they are for; the caller's own go with the answer."""
        ledger = self.ledger
        if not ledger.news:
            return Answer(self.run, self.seq, ledger.now_s, value)
        mine: list[Lease | Refused] = []
        for replica, news in ledger.news:
            if isinstance(news, Lease) and news.id not in ledger.unclaimed:
                continue  # the same step took it back
            if isinstance(news, Refused):
                self.replicas[replica].owe(news.ticket)
            if replica == name:
                mine.append(news)
            else:
                self.replicas[replica].stream.append(news)
        ledger.news.clear()
        grants = tuple(news for news in mine if isinstance(news, Lease))
        refusals = tuple(news for news in mine if isinstance(news, Refused))
        return Answer(self.run, self.seq, ledger.now_s, value, grants, refusals)

    def _stale(self, why: Stale) -> Answer[T]:
        return self._answer("", why)  # type: ignore[arg-type]  # a Stale stands in for every kind of value
