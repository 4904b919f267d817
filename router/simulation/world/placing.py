"""The placer's shell in virtual time: what `control.placer` does with `policy.placement`'s decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from router.control.declarations import Declarations, Look
from router.control.keeper import FleetKeeper
from router.errors import LoadFailed, NoNode
from router.fleet.snapshot import Row
from router.policy.experience import NOTHING_LEARNT, did_not_fit, loaded, looked
from router.policy.placement import Action, Displace, Load, LoadFailure, Refuse, failed_again, hopeless
from router.policy.room import OFFERED_S, Held, took_room
from router.simulation.facts import Ready, Want, Work
from router.simulation.world.agenda import at_once
from router.simulation.world.card import Heard
from router.simulation.world.configured import Placement
from router.simulation.world.link import SharedStore

if TYPE_CHECKING:
    from router.simulation.world.replica import Replica

PASS_S = 1.0
WAKES_APART_S = 0.05  # a process that is woken while it passes passes once more, not once for each waking
WORDS = "the node went away while it loaded"


@dataclass(slots=True)
class Loading:
    """A load that runs: since when, or since it displaced something last, what was in memory before, and the connection
    that asked."""

    load: Load
    since_s: float
    before: Mapping[str, Held]
    number: int = 0


class Placing:
    """Owns the loads of one replica. Only the leader passes over the lines; the epoch is the store's to compare."""

    def __init__(
        self,
        replica: Replica,
        store: SharedStore,
        keeper: FleetKeeper,
        leads: Callable[[], bool],
        placement: Placement,
    ) -> None:
        self._replica = replica
        self._store = store
        self._keeper = keeper
        self._leads = leads
        self._mode = placement.mode
        self._declarations = Declarations()
        self._declarations.declared = placement.declared
        self._loads: dict[str, Loading] = {}  # by node
        self._failures: dict[tuple[str, str], LoadFailure] = {}
        self._experience = NOTHING_LEARNT
        self._is_awake = False
        self._passed_s = -PASS_S
        self.epoch = 0

    def start(self) -> None:
        agenda = self._replica.agenda

        def again() -> None:
            if self._is_alive:
                self._pass()
                agenda.after(PASS_S, again)

        agenda.after(PASS_S, again)

    @property
    def _is_alive(self) -> bool:
        """Its replica has not been killed since."""
        return self._replica.is_up and self._replica.placing is self

    def wake(self) -> None:
        if not self._is_awake and self._leads():
            self._is_awake = True
            self._replica.agenda.at(self._passed_s + WAKES_APART_S, self._wake_up)

    def _wake_up(self) -> None:
        self._is_awake = False
        if self._is_alive:
            self._pass()

    def die(self) -> None:
        """A load dies with the connection that asked for it."""
        for node, running in self._loads.items():
            self._replica.cards[node].leave(running.number)
        self._loads.clear()

    def _pass(self) -> None:
        if not self._replica.is_up or self._store.is_cut_off:
            return
        if not self._leads():
            if self._declarations.declared:
                at = self._look()
                self._declarations.look(at)
                self._declarations.follow(at)
            return
        self._passed_s = self._replica.agenda.now_s()
        at = self._look()
        self._experience = at.experience
        self._declarations.look(at)
        if at.lines:
            since_s = {node: one.since_s for node, one in self._loads.items() if not one.load.is_renewal}
            self._carry(at.placed(self._declarations.holds, since_s))
            self._refuse_hopeless(at)
        if self._declarations.declared:
            self._carry(self._declarations.keep(replace(at, loading=self._loading, leaving=self._leaving)))

    def _look(self) -> Look:
        now_s, snapshot, occupancy = self._replica.agenda.now_s(), self._keeper.snapshot, self._store.occupancy
        lines = [line for line in at_once(self._store.lines()) if line.depth]
        return Look(
            lines,
            snapshot,
            occupancy,
            looked(self._experience, lines, snapshot, occupancy, now_s),
            self._loading,
            self._leaving,
            {copy: failure.until_s for copy, failure in self._failures.items()},
            now_s,
            self._mode,
        )

    @property
    def _loading(self) -> dict[str, str]:
        return {node: running.load.weights for node, running in self._loads.items()}

    @property
    def _leaving(self) -> set[tuple[str, str]]:
        return {(node, weights) for node, running in self._loads.items() for weights in running.load.displaces}

    def _carry(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Refuse):
                at_once(self._store.refuse(action.key, NoNode("no node that has it is up")))
            elif isinstance(action, Displace):
                self._displace(action)
            elif at_once(self._store.begin(action.node, action.weights, loading=True, epoch=self.epoch)):
                for weights in action.displaces:
                    self._let_go(action.node, weights)
                self._load(action)

    def _refuse_hopeless(self, at: Look) -> None:
        for line in at.lines:
            words = hopeless(line, self._keeper.snapshot, self._failures, at.now_s)
            if words is not None:
                at_once(self._store.refuse(line.model, LoadFailed(words)))

    def _displace(self, action: Displace) -> None:
        running = self._loads[action.node]
        running.load = replace(running.load, displaces=(*running.load.displaces, action.weights))
        running.since_s = self._replica.agenda.now_s()
        self._let_go(action.node, action.weights)

    def _let_go(self, node: str, weights: str) -> None:
        at_once(self._store.begin(node, weights, loading=False, epoch=self.epoch))
        self._offer(node, weights)

    def load_alone(self, row: Row, key: str) -> None:
        """Without a store nobody else's word is needed."""
        failure = self._failures.get(row.copy)
        is_backed_off = failure is not None and failure.until_s > self._replica.agenda.now_s()
        if row.node not in self._loads and not is_backed_off:
            self._load(Load(row.node, row.name, key, row.weights))

    def _load(self, load: Load) -> None:
        card = self._replica.cards[load.node]
        if not card.is_up:
            self._failed(load)
            return
        work = Work(load.key, card.weights[load.key], want=Want.LOAD, keep_alive_s=load.keep_alive_s)
        before = {weights: Held(copy.size_bytes, copy.expires_s) for weights, copy in card.model.copies.items()}
        self._loads[load.node] = running = Loading(load, self._replica.agenda.now_s(), before)
        running.number = card.submit(work, partial(self._heard, load.node))

    def _heard(self, node: str, effect: Heard) -> None:
        running = self._loads.pop(node, None)
        if running is None or not self._replica.is_up:
            return
        load = running.load
        if isinstance(effect, Ready):
            self._failures.pop((load.node, load.weights), None)
            if not load.is_renewal:
                self._learn(running, effect.load_s)
            self._replica.read_memory(load.node)
            at_once(self._keeper.loaded(load.node, load.weights, load.num_ctx, has_ctx=0, is_renewal=load.is_renewal))
        else:
            self._failed(load)
        self._tell_displaced(load)
        self._declarations.ended(load, self._replica.agenda.now_s())
        self._replica.alone.freed()
        self.wake()

    def _learn(self, running: Loading, took_s: float) -> None:
        load, copies = running.load, self._replica.cards[running.load.node].model.copies
        self._experience = loaded(self._experience, load.weights, took_s, waited=bool(load.displaces))
        now_s = self._replica.agenda.now_s()
        came = copies.get(load.weights)
        too_much = None if came is None else took_room(running.before, copies.keys(), came.size_bytes, now_s)
        self._experience = did_not_fit(self._experience, load.node, too_much)

    def _offer(self, node: str, weights: str) -> None:
        """A copy that Ollama may evict before others: it has the shortest keep-alive of them."""
        card = self._replica.cards[node]
        copy = card.model.copies.get(weights) if card.is_up else None
        if copy is not None:
            work = Work(copy.name, copy.weights, want=Want.LOAD, keep_alive_s=OFFERED_S)
            card.submit(work, lambda effect: None)

    def _tell_displaced(self, load: Load) -> None:
        """What the load was to displace gets calls again where Ollama kept it after all."""
        card, keeper = self._replica.cards[load.node], self._keeper
        for weights in load.displaces:
            if card.is_up and weights in card.model.copies:
                at_once(keeper.kept(load.node, weights))
            else:
                at_once(keeper.not_loaded(load.node, weights))

    def _failed(self, load: Load) -> None:
        copy = (load.node, load.weights)
        self._failures[copy] = failed_again(self._failures.get(copy), self._replica.agenda.now_s(), WORDS)
        at_once(self._keeper.not_loaded(load.node, load.weights))
