"""One router process: it decides, takes slots, asks nodes and learns, as `pipeline`, `admission` and the prober do.

Its decisions, keeper and store are those of production; its waiting and its sockets are the agenda's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from router.control.keeper import FleetKeeper
from router.errors import Outcome, QueueFull, Refusal, Unavailable
from router.fleet.health import next_probe_in_s
from router.fleet.node import Health
from router.fleet.tickets import BEAT_S, Lease, Ticket
from router.policy.retry import Budget, Failure, Retry, Tries, verdict
from router.policy.schedule import Want, schedule
from router.simulation.world.agenda import Agenda, at_once
from router.simulation.world.alone import Alone
from router.simulation.world.call import Call, Case, Fate, Passage
from router.simulation.world.card import Card
from router.simulation.world.configured import Placement
from router.simulation.world.front import Desk
from router.simulation.world.further import Further
from router.simulation.world.link import SharedStore, StoreGone
from router.simulation.world.placing import Placing
from router.store.book import Book

PROBE_S = 2.0  # `probe.interval_s`
STORE_TIMEOUT_S = 0.25  # `store.timeout_s`
REFUSED_S = 0.001  # until a refused connection is told


class Keeper(FleetKeeper):
    """Wakes the placer by a call: nothing waits for events here."""

    on_wake: Callable[[], None] = staticmethod(lambda: None)

    def wake_placer(self) -> None:
        self.on_wake()


class Replica:
    """Fills `Front`. `take` to `ended` is the way of a call; everything else is what probes, beats and luck do."""

    def __init__(
        self,
        name: str,
        *,
        agenda: Agenda,
        rng: Random,
        desk: Desk,
        cards: Mapping[str, Card],
        latency_s: float,
        placement: Placement,
    ) -> None:
        self.name = name
        self.is_up = False
        self.cards = cards
        self.agenda = agenda
        self.rng = rng
        self._desk = desk
        self.latency_s, self._half_s = latency_s, latency_s / 2
        self._placement = placement
        self._lives = 0
        self.cases: dict[str, Case] = {}  # by ticket id, oldest first
        self.counted = 0  # retries at nodes
        self.running = 0

    def __repr__(self) -> str:
        state = "up" if self.is_up else "down"
        return f"<Replica {self.name} {state} | {len(self.cases)} calls | {self.running} running>"

    def join(self, book: Book, on_step: Callable[[], None], is_leader: Callable[[str], bool]) -> None:
        self._book, self._on_step, self._is_leader = book, on_step, is_leader
        self.come_up()

    # life

    def come_up(self) -> None:
        self._lives += 1
        self.is_up = True
        identity = f"{self.name}.{self._lives}"
        self.store = SharedStore(self.agenda, self.rng, identity, self._book, self._on_step)
        self.keeper = Keeper(self.store, self.agenda, interval_s=PROBE_S, on_circuit=lambda node, circuit: None)
        self.placing = Placing(self, self.store, self.keeper, lambda: self._is_leader(self.name), self._placement)
        self.alone = Alone(self)
        self.further = Further(self)
        at_once(self.store.open(self._granted, self._refused))
        for card in self.cards.values():
            at_once(self.keeper.add(card.spec))
            self._probe(card, is_first=True)
        self.keeper.on_wake = self.placing.wake
        self._every(BEAT_S, self._beat)
        self.placing.start()

    def go_down(self) -> None:
        """The process is killed: its connections close, its loads die; the store hears nothing more of it."""
        self.is_up = False
        self.placing.die()
        cases, self.cases = self.cases, {}
        self.running = self.counted = 0
        for case in cases.values():
            if case.passage is not None:
                case.passage.cut()
            if case.call.is_streaming:
                self._desk.ended(case.call, Fate.BROKEN)
            else:
                self._desk.sent_back(case.call)

    def _every(self, seconds: float, do: Callable[[], None]) -> None:
        def again() -> None:
            do()
            self.soon(seconds, again)

        self.soon(self.rng.random() * seconds, again)

    def _beat(self) -> None:
        if not self.store.is_cut_off:
            at_once(self.store.beat())

    # a call

    def take(self, call: Call) -> None:
        asked = call.request
        plan = self.further.plan_of(asked)
        # What it answers is not known before.
        ticket = Ticket(call.ticket, (plan.first.model,), team=asked.team.name, estimate_tokens=asked.prompt_tokens)
        case = Case(call, ticket)
        self.further.expect(case, plan)
        self._take(case)

    def _take(self, case: Case) -> None:
        want = self.want_of(case)
        decision = schedule(want, self.keeper.snapshot, self.store.occupancy, self.rng)
        case.ticket = replace(case.ticket, attempt=case.made + 1, preferred=decision.preferred)
        case.lease, case.passage, case.is_taken = None, None, False
        self.cases[case.ticket.id] = case
        self.soon(self._half_s, lambda: self._ask_store(case))

    def want_of(self, case: Case) -> Want:
        return Want(case.ticket.targets, case.call.request.affinity, excluded=case.ticket.excluded)

    def _ask_store(self, case: Case) -> None:
        if not self.is_open(case) or case.lease is not None:
            return
        try:
            answer = at_once(self.store.take(case.ticket))
        except StoreGone:
            self.store.stand(case.ticket)
            self.soon(STORE_TIMEOUT_S, lambda: self.alone.serve(case))
            return
        except QueueFull:
            self.soon(self._half_s, lambda: self._give_up(case, Fate.REFUSED))
            return
        except Unavailable:
            return  # it left before
        case.is_taken = True
        if isinstance(answer, Lease):
            self.use(case, answer, self._half_s)
        elif not case.ticket.preferred:
            self.keeper.wake_placer()

    def _granted(self, lease: Lease) -> bool:
        case = self.cases.get(lease.ticket)
        if case is None or case.lease is not None or not self.is_up:
            return False
        self.use(case, lease, self._half_s)
        return True

    def _refused(self, ticket_id: str, refusal: Refusal) -> None:
        case = self.cases.get(ticket_id)
        if case is not None and case.lease is None:
            self.soon(self._half_s, lambda: self._give_up(case, Fate.REFUSED))

    def use(self, case: Case, lease: Lease, after_s: float) -> None:
        case.lease = lease
        self.soon(after_s, lambda: self._forward(case, lease))

    def _forward(self, case: Case, lease: Lease) -> None:
        if not self.is_open(case) or case.lease is not lease:
            return
        self.running += 1
        self.counted += case.is_counted
        case.passage = Passage(
            case.call,
            lease.model,
            self.cards[lease.node],
            self._desk.began,
            lambda passage, failure: self._ended(case, failure),
        )
        case.passage.start()

    def leave(self, call: Call) -> None:
        case = self.cases.pop(call.ticket, None)
        if case is None:
            return
        if case.passage is not None:
            self._step_back(case)
            case.passage.cut()
        self._tell_store(lambda: at_once(self.store.leave(case.ticket.id)), case)

    def _ended(self, case: Case, failure: Failure | None) -> None:
        assert case.passage is not None
        assert case.lease is not None
        self._step_back(case)
        lease, is_broken = case.lease, case.passage.is_broken
        outcome = Outcome.UPSTREAM_TRUNCATED if is_broken else Outcome.UPSTREAM_ERROR if failure else Outcome.OK
        del self.cases[case.ticket.id]
        # Before the slot goes to the next in line: it must not be handed a copy that has just died.
        at_once(self.keeper.attempt_ended(lease, failure, outcome))
        tokens = case.call.request.prompt_tokens + case.call.request.output_tokens
        self._tell_store(lambda: at_once(self.store.give_back(lease, outcome, tokens)), case)
        if failure is None:
            self._desk.ended(case.call, Fate.BROKEN if is_broken else Fate.SERVED)
        else:
            self._again(case, lease.node, failure)

    def _again(self, case: Case, node: str, failure: Failure) -> None:
        """As `upstream.course.follow`."""
        excluded = case.ticket.excluded | {node}
        rows = self.keeper.snapshot.holding(case.ticket.targets[0]).by_node.values()
        tries = Tries(
            made=case.made + 1,
            has_met_dead_runner=case.has_met_dead_runner,
            has_other_node=any(row.is_up and row.node not in excluded for row in rows),
        )
        judged = verdict(failure, tries, Budget(self.running, self.counted))
        if not isinstance(judged, Retry):
            self._desk.ended(case.call, Fate.REFUSED)
            return
        case.made += 1
        case.has_met_dead_runner |= failure is Failure.RUNNER_DIED
        case.is_counted = judged.is_counted
        if judged.excludes_node:
            case.ticket = replace(case.ticket, excluded=excluded)
        # After the slot went back: a take of the next attempt must not overtake it.
        self.soon(REFUSED_S, lambda: self._take_again(case))

    def _take_again(self, case: Case) -> None:
        if case.call.fate is None and case.call.front is self:
            self._take(case)

    def _give_up(self, case: Case, fate: Fate) -> None:
        if self.is_open(case) and case.lease is None:
            del self.cases[case.ticket.id]
            self._desk.ended(case.call, fate)

    def _step_back(self, case: Case) -> None:
        self.running -= 1
        self.counted -= case.is_counted

    def is_open(self, case: Case) -> bool:
        return self.cases.get(case.ticket.id) is case and case.call.fate is None

    def _tell_store(self, tell: Callable[[], None], case: Case) -> None:
        """Half a round trip later, and not at all while the store is gone: hello says it then."""
        if self.store.is_cut_off:
            self.store.forget(case.ticket.id)
            self.alone.freed()
            return

        def arrive() -> None:
            try:
                tell()
            except StoreGone:
                self.store.forget(case.ticket.id)
                self.alone.freed()

        self.soon(self._half_s, arrive)

    def soon(self, seconds: float, do: Callable[[], None]) -> None:
        """If this process still lives by then."""
        life = self._lives

        def arrive() -> None:
            if self.is_up and life == self._lives:
                do()

        self.agenda.after(seconds, arrive)

    # mail, and the store's absence

    def fetch_mail(self) -> None:
        """Grants and refusals that other replicas' steps made are here half a round trip later."""
        self.soon(self._half_s, self._read)

    def _read(self) -> None:
        if not self.store.is_cut_off and self.store.has_mail:
            self.store.read()

    def store_lost(self) -> None:
        self.store.cut()
        if self.is_up:
            self.soon(STORE_TIMEOUT_S, self.alone.begin)

    def store_back(self) -> None:
        if not self.is_up:
            self.store.is_cut_off = False
            return
        self.alone.end()
        self.store.reconnect()
        for name, card in self.cards.items():
            node = self.keeper.snapshot.nodes.get(name)
            if node is not None and node.health is Health.DOWN:
                at_once(self.store.drop_node(name, node.incarnation))
            else:
                at_once(self.keeper.add(card.spec))
        for case in [case for case in self.cases.values() if case.lease is None and not case.is_taken]:
            self._ask_store(case)

    # probes

    def _probe(self, card: Card, *, is_first: bool = False) -> None:
        if is_first:
            self._look(card)

        def again() -> None:
            self._look(card)
            self._probe(card)

        node = self.keeper.snapshot.nodes[card.name]
        fails = self.keeper.fails_of(card.name)
        self.soon(next_probe_in_s(node.health, fails, PROBE_S, self.rng), again)

    def _look(self, card: Card) -> None:
        keeper = self.keeper
        if not card.is_up:
            at_once(keeper.missed(card.name))
            return
        at_once(keeper.answered(card.name, "0.33.0"))
        if not keeper.snapshot.nodes[card.name].is_read:  # disks do not change here
            at_once(keeper.saw_tags(card.name, card.tags()))
        self.read_memory(card.name)
        keeper.wake_placer()

    def read_memory(self, node: str) -> None:
        at_once(self.keeper.saw_ps(node, self.cards[node].ps(), self.agenda.now_s(), self.store.now_s()))
