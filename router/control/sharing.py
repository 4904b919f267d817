"""Probing shared between replicas: each node is probed by one of them, and what it saw is told to all.

Five times a second: what changed here is told, what changed elsewhere is heard, and whose turn it is at which node is
settled (`policy.probing`). Without the store every replica probes everything itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterable

from router.control.hearing import Hearing
from router.control.keeper import FleetKeeper
from router.control.prober import Prober
from router.control.telling import Telling
from router.fleet.node import Health
from router.fleet.words import CLAIM, NOBODY, Claim, Heard, Word, claim_text, read_claim, read_topic, topic
from router.policy.probing import has_prober, is_prober, order_of, passed_on
from router.seams import Clock, FleetBoard, Store

log = logging.getLogger(__name__)

EXCHANGE_EVERY_S = 0.2  # five swaps of the snapshot a second, however much changes


class Turns:
    """Which nodes this replica probes. `claims` are by node, as the board has them."""

    def __init__(self, me: str) -> None:
        self.me = me
        self.claims: dict[str, Claim] = {}
        self.mine: set[str] = set()
        self._replicas: tuple[str, ...] = (me,)
        self._orders: dict[str, tuple[str, ...]] = {}  # of these replicas, by node
        self._unclaimed_s: dict[str, float] = {}  # since when nobody who lives has the node
        self._fails: dict[str, int] = {}  # of nodes of ours, as they were when we took them

    def __repr__(self) -> str:
        return f"<Turns {len(self.mine)} of {len(self.claims)} nodes | {len(self._replicas)} replicas>"

    def live(self, replicas: Iterable[str]) -> None:
        now = tuple(sorted({*replicas, self.me}))
        if now != self._replicas:
            self._replicas = now
            self._orders.clear()

    def settle(self, name: str, reach: Health, fails: int, now_s: float) -> Claim | None:
        """The claim that is to be told, if it changes. A node that is down is passed on after each probe of ours."""
        claim = self.claims.get(name, NOBODY)
        if name not in self._orders:
            self._orders[name] = order_of(name, self._replicas)
        if name in self.mine and reach is Health.DOWN and fails > self._fails[name] and len(self._replicas) > 1:
            self._drop(name)
            return self._claimed(name, passed_on(claim, self.me, self._replicas))
        if has_prober(claim, self._replicas):
            self._unclaimed_s.pop(name, None)
        unclaimed_s = now_s - self._unclaimed_s.setdefault(name, now_s)
        if not is_prober(self.me, claim, self._orders[name], unclaimed_s):
            self._drop(name)
            return None
        if name not in self.mine:
            self.mine.add(name)
            self._fails[name] = fails
        return None if claim.by == self.me else self._claimed(name, Claim(self.me, claim.tried))

    def leave(self, names: Collection[str]) -> set[str]:
        """All that are not among `names` are not known here any more. Those of them that were ours."""
        for of_nodes in (self.claims, self._orders, self._unclaimed_s):
            for name in of_nodes.keys() - names:
                del of_nodes[name]
        left = self.mine.difference(names)
        for name in left:
            self._drop(name)
        return left

    def all_alone(self, names: Iterable[str]) -> None:
        self.claims.clear()
        self._unclaimed_s.clear()
        self.mine = set(names)
        self._fails = dict.fromkeys(self.mine, 0)

    def _claimed(self, name: str, claim: Claim) -> Claim:
        self.claims[name] = claim
        self._unclaimed_s.pop(name, None)
        return claim

    def _drop(self, name: str) -> None:
        self.mine.discard(name)
        self._fails.pop(name, None)


class FleetSharing:
    """Joins the keeper and the prober to the board."""

    def __init__(self, board: FleetBoard, keeper: FleetKeeper, prober: Prober, store: Store, clock: Clock) -> None:
        self._board = board
        self._keeper = keeper
        self._prober = prober
        self._store = store
        self._clock = clock
        self.turns = Turns(board.replica)
        self._telling = Telling(keeper, board, store, clock)
        self._hearing = Hearing(keeper, prober, board, self._telling, clock)
        self._added = 0
        self._was_alone = False
        prober.is_mine = self.is_mine

    def __repr__(self) -> str:
        return f"<FleetSharing {self.turns!r}>"

    def is_mine(self, name: str) -> bool:
        return name in self.turns.mine

    async def run(self) -> None:
        while True:
            has_more = False
            try:
                has_more = await self.exchange()
            except Exception:
                # A supervisor: what could not be told or heard this time is told and heard the next.
                log.exception("exchange of what nodes show failed")
            if not has_more:
                await asyncio.sleep(EXCHANGE_EVERY_S)

    async def exchange(self) -> bool:
        """Whether there is more to hear at once."""
        names = self._names()
        if self._prober.added != self._added:
            self._added = self._prober.added
            self._board.read_again()  # what was told of a node before it was known here
        self._telling.look(names, self.turns.mine)
        heard = await self._board.exchange(self._telling.take())
        names = self._names()
        if heard is None:
            self._was_alone = True
            self._telling.forget()
            self.turns.all_alone(names)
        else:
            await self._hear(heard)
            if heard.has_more:
                return True
            self._settle(names)
            if self._was_alone:
                self._was_alone = False
                self._board.read_again()  # our own sight of what others probe now was the younger one
        for name in names:
            self._prober.take_turns(name)
        return False

    def _names(self) -> Collection[str]:
        return self._prober.names & self._keeper.snapshot.nodes.keys()

    async def _hear(self, heard: Heard) -> None:
        if heard.is_anew:
            self._telling.forget()
            self.turns.claims.clear()
        self.turns.live(heard.replicas)
        self._keeper.firsthand.loads.live = frozenset(heard.replicas)
        for word in heard.words:
            kind, name, _ = read_topic(word.topic)
            claim = read_claim(word.text) if kind == CLAIM else None
            if claim is not None:
                self.turns.claims[name] = claim
        self._telling.heard(heard.words)
        await self._hearing.hear(heard, self.turns.mine)

    def _settle(self, names: Collection[str]) -> None:
        now_s = self._clock.now_s()
        for name in names:
            vitals = self._keeper.vitals_of(name)
            self._tell_claim(name, self.turns.settle(name, vitals.reach, vitals.fails, now_s))
        for name in self.turns.leave(names):
            self._tell_claim(name, NOBODY)

    def _tell_claim(self, name: str, claim: Claim | None) -> None:
        if claim is not None:
            self._telling.tell(Word(topic(CLAIM, name), self._store.now_s(), claim_text(claim)))
