"""One policy on one scenario: everything joined, and run to its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from random import Random

from router.fleet.tickets import SILENT_BEATS
from router.policy.limits import TeamLimits, TeamTable
from router.simulation.facts import CopyEvent
from router.simulation.world.agenda import Agenda
from router.simulation.world.card import Card
from router.simulation.world.clients import Clients
from router.simulation.world.front import Front
from router.simulation.world.history import History
from router.simulation.world.replica import Replica
from router.simulation.world.rivals import POLICIES, Rival, Sight
from router.simulation.world.scenario import Fault, FaultKind, Scenario
from router.simulation.world.workload import Request
from router.store.answers import Limits
from router.store.book import Book

OURS = "ours"
FLOOR = "floor"
POLICY_NAMES = (OURS, *POLICIES, FLOOR)

OVERTIME_S = 3600.0  # after the last arrival: a stream that runs longer has no end
Progress = Callable[[float], None]  # virtual seconds so far


class World:
    """Same scenario, same policy: the same history, event by event."""

    def __init__(self, scenario: Scenario, policy: str) -> None:
        self.scenario = scenario
        self.policy = policy
        self.agenda = Agenda()
        self.history = History(self.agenda)
        self._rng = Random(f"world {scenario.seed}")
        models = {model.key: model for model in scenario.models}
        self.cards = {
            node.name: Card(node, models, self.agenda, self._copy_changed, is_free=policy == FLOOR)
            for node in scenario.nodes
        }
        self.fronts: list[Front] = []
        self.clients = Clients(self.agenda, Random(f"clients {scenario.seed}"), self.fronts, scenario.patience_s)
        self.book: Book | None = None
        self.replicas: list[Replica] = []
        self.leader = "0"
        self.is_store_up = True
        self._until_s: dict[tuple[FaultKind, str], float] = {}  # when what was struck is well again
        self.requests: Sequence[Request] = ()
        self._enter()
        for fault in scenario.faults:
            self.agenda.at(fault.at_s, partial(self._strike, fault))

    def __repr__(self) -> str:
        return f"<World {self.scenario.name} | {self.policy} | {self.agenda!r} | {self.clients!r}>"

    def run(
        self,
        requests: Sequence[Request],
        *,
        after_each: Callable[[], None] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.requests = requests
        self.clients.expect(requests)
        self.history.watch(self.clients)
        end_s = self.scenario.trace.duration_s + OVERTIME_S
        step = 0
        while self.clients.to_come or self.clients.open:
            assert self.agenda.next(), "calls are open, and nothing will ever happen"
            assert self.agenda.now_s() < end_s, f"no end: {self!r}"
            step += 1
            if after_each is not None:
                after_each()
            if progress is not None and step % 1024 == 0:
                progress(self.agenda.now_s())
        self.history.close()

    def _enter(self) -> None:
        count = self.scenario.replicas
        if self.policy in POLICIES:
            sight = Sight(self._rng)
            choose = POLICIES[self.policy]
            for number in range(count):
                rival = Rival(choose, sight, self.agenda, self.clients, self.cards, polls=number == 0)
                self.fronts.append(rival)
            return
        limits = {team.name: TeamLimits(weight=team.weight, priority=team.priority) for team in self.scenario.teams}
        teams = TeamTable(limits)
        self.book = Book(Random(f"store {self.scenario.seed}"), Limits(teams=teams))
        for number in range(count):
            rng = Random(f"replica {self.scenario.seed} {number}")
            latency_s = self.scenario.store_latency_s
            replica = Replica(
                str(number),
                agenda=self.agenda,
                rng=rng,
                desk=self.clients,
                cards=self.cards,
                latency_s=latency_s,
                placement=self.scenario.placement,
            )
            self.replicas.append(replica)
            self.fronts.append(replica)
        for replica in self.replicas:
            replica.join(self.book, self._mail, lambda name: name == self.leader)

    def _mail(self) -> None:
        """After a step of the store: whoever it has news for reads them, as from a stream it blocks on."""
        for replica in self.replicas:
            if replica.is_up and not replica.store.is_cut_off and replica.store.has_mail:
                replica.fetch_mail()

    def _copy_changed(self, node: str, event: CopyEvent) -> None:
        self.history.copy_changed(node, event)

    # luck

    def _strike(self, fault: Fault) -> None:
        """What two faults strike at once is well again when the later one ends."""
        self.history.struck(fault)
        heal = self._harm(fault)
        struck, until_s = (fault.kind, fault.target), self.agenda.now_s() + fault.for_s
        self._until_s[struck] = max(until_s, self._until_s.get(struck, 0.0))

        def end() -> None:
            if until_s >= self._until_s.get(struck, math.inf):
                del self._until_s[struck]
                heal()

        self.agenda.after(fault.for_s, end)

    def _harm(self, fault: Fault) -> Callable[[], None]:
        """Answers what makes it well again."""
        if fault.kind is FaultKind.NODE_DOWN:
            card = self.cards[fault.target]
            if card.is_up:
                card.go_down()
            return card.come_up
        if fault.kind is FaultKind.NODE_SLOW:
            card = self.cards[fault.target]
            card.slow_down(fault.factor)
            return partial(card.slow_down, 1.0)
        if fault.kind is FaultKind.ROUTER_DOWN:
            front = self.fronts[int(fault.target)]
            if front.is_up:
                front.go_down()
                self.agenda.after(float(SILENT_BEATS), self._elect)
            return front.come_up
        self.is_store_up = False
        for front in self.fronts:
            front.store_lost()
        return self._store_back

    def _store_back(self) -> None:
        self.is_store_up = True
        for front in self.fronts:
            front.store_back()

    def _elect(self) -> None:
        """The store's lease on leading has run out: the next one takes it, with another epoch."""
        if any(replica.name == self.leader and replica.is_up for replica in self.replicas):
            return
        following = next((replica for replica in self.replicas if replica.is_up), None)
        if following is None:
            self.agenda.after(1.0, self._elect)
            return
        self.leader = following.name
        epoch = max(replica.placing.epoch for replica in self.replicas) + 1
        for replica in self.replicas:
            replica.placing.epoch = epoch
        following.keeper.wake_placer()
