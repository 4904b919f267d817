"""The placer's shell in virtual time: what `control.placer` does with `policy.placement`'s decisions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from router.control.keeper import FleetKeeper
from router.errors import LoadFailed, NoNode
from router.fleet.snapshot import Row
from router.policy.experience import NOTHING_LEARNT, loaded, looked
from router.policy.placement import Load, LoadFailure, Mode, Refuse, failed_again, hopeless, place
from router.policy.room import OFFERED_S
from router.simulation.facts import Ready, Want, Work
from router.simulation.world.agenda import at_once
from router.simulation.world.card import Heard
from router.simulation.world.link import SharedStore

if TYPE_CHECKING:
    from router.simulation.world.replica import Replica

PASS_S = 1.0
WAKES_APART_S = 0.05  # a process that is woken while it passes passes once more, not once for each waking
WORDS = "the node went away while it loaded"


class Placing:
    """Owns the loads of one replica. Only the leader passes over the lines; the epoch is the store's to compare."""

    def __init__(self, replica: Replica, store: SharedStore, keeper: FleetKeeper, leads: Callable[[], bool]) -> None:
        self._replica = replica
        self._store = store
        self._keeper = keeper
        self._leads = leads
        self._loads: dict[str, tuple[Load, int]] = {}  # by node: what loads there, and the connection that asked
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
        for node, (_, number) in self._loads.items():
            self._replica.cards[node].leave(number)
        self._loads.clear()

    def _pass(self) -> None:
        if not self._leads() or self._store.is_cut_off:
            return
        self._passed_s = now_s = self._replica.agenda.now_s()
        lines = [line for line in at_once(self._store.lines()) if line.depth]
        self._experience = looked(self._experience, lines, self._keeper.snapshot, self._store.occupancy, now_s)
        if not lines:
            return
        actions = place(
            lines,
            self._keeper.snapshot,
            loading={node: load.weights for node, (load, _) in self._loads.items()},
            backoff={copy: failure.until_s for copy, failure in self._failures.items()},
            now_s=now_s,
            mode=Mode.ON_DEMAND,
            occupancy=self._store.occupancy,
            experience=self._experience,
            leaving={(load.node, weights) for load, _ in self._loads.values() for weights in load.displaces},
        )
        for action in actions:
            if isinstance(action, Refuse):
                at_once(self._store.refuse(action.key, NoNode("no node that has it is up")))
            elif at_once(self._store.begin(action.node, action.weights, loading=True, epoch=self.epoch)):
                for weights in action.displaces:
                    at_once(self._store.begin(action.node, weights, loading=False, epoch=self.epoch))
                    self._offer(action.node, weights)
                self._load(action)
        for line in lines:
            words = hopeless(line, self._keeper.snapshot, self._failures, now_s)
            if words is not None:
                at_once(self._store.refuse(line.model, LoadFailed(words)))

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
        self._loads[load.node] = (load, 0)
        number = card.submit(work, partial(self._heard, load))
        if load.node in self._loads:  # else it was there already
            self._loads[load.node] = (load, number)

    def _heard(self, load: Load, effect: Heard) -> None:
        current = self._loads.pop(load.node, None)
        if current is None or not self._replica.is_up:
            return
        if isinstance(effect, Ready):
            self._failures.pop((load.node, load.weights), None)
            if not load.displaces and not load.is_renewal:  # else it waited for what had to go, or loaded nothing
                self._experience = loaded(self._experience, load.weights, effect.load_s)
            self._replica.read_memory(load.node)
            at_once(self._keeper.loaded(load.node, load.weights, load.num_ctx, has_ctx=0, is_renewal=load.is_renewal))
        else:
            self._failed(load)
        self._tell_displaced(load)
        self._replica.alone.freed()
        self.wake()

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
