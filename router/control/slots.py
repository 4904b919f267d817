"""Slots of copies as calls show them, told to the fleet's picture and through it to the store. `policy.concurrency`
decides, at one replica for each node: the one that probes it. The others tell it what their calls have shown.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from router.control.findings import About
from router.control.keeper import FleetKeeper
from router.fleet.node import Node
from router.fleet.slots import declared_slots
from router.fleet.snapshot import Row
from router.fleet.tickets import Lease
from router.fleet.words import QUEUED, SHOWN, SLOTS, Finding
from router.policy.concurrency import (
    SHOWN_FOR_S,
    Learnt,
    Ran,
    aged,
    decided,
    fresh,
    queued_elsewhere,
    ran,
    shown_elsewhere,
    tried,
)
from router.seams import Clock, Store

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
COPIES_MAX = 4096  # whose slots are learnt: more are never in memory at once; the one that was learnt first goes


@dataclass(slots=True)
class Known:
    """Of one copy in one start of its node, under one declaration."""

    incarnation: int
    declared: int | None
    learnt: Learnt
    is_ours: bool = False  # to decide
    upto_s: float = 0.0  # store time: what others found until then is in `learnt`


class SlotLearner:
    """Owns what was learnt, by (node, weights)."""

    def __init__(self, keeper: FleetKeeper, store: Store, clock: Clock) -> None:
        self._keeper = keeper
        # Whether this replica decides on the node's slots. Set by whoever shares the probing.
        self.is_mine: Callable[[str], bool] = lambda name: True
        self._store = store
        self._clock = clock
        self._known: dict[tuple[str, str], Known] = {}

    def __repr__(self) -> str:
        return f"<SlotLearner {len(self._known)} copies>"

    @property
    def known(self) -> Mapping[tuple[str, str], Known]:
        return self._known

    async def ended(self, lease: Lease, call: Ran) -> None:
        known = self._of(lease.node, lease.weights)
        if known is None:
            return
        after = ran(known.learnt, call)
        if known.is_ours:
            await self._learn(lease.node, lease.weights, known, after)
            return
        before, known.learnt = known.learnt, replace(after, base=known.learnt.base)
        if after.base < before.base:
            self._find(QUEUED, lease.node, lease.weights, after.base)
        elif after.shown_s > before.shown_s:
            self._find(SHOWN, lease.node, lease.weights, after.base)

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Trials end, and begin where somebody has waited long for a copy that is full: one for each line."""
        now_s = self._clock.now_s()
        for name, weights in dict.fromkeys((*self._known, *self._keeper.firsthand.findings.copies())):
            known = self._of(name, weights)
            if known is not None and known.is_ours:
                await self._learn(name, weights, known, aged(self._merged(name, weights, known, now_s), now_s))
        if not any(self._would_try(*copy, now_s) for copy in tuple(self._store.occupancy)):
            return  # whoever waits: a look at all lines costs Redis more than most calls
        for line in await self._store.lines():
            for row in self._keeper.snapshot.holding(line.model).ready.rows if line.depth else ():
                if self._is_full(row) and await self._try(row, line.oldest_wait_s, now_s):
                    break

    def _would_try(self, name: str, weights: str, now_s: float) -> bool:
        """A copy of ours that is full, where somebody has waited for it long enough."""
        node = self._keeper.snapshot.nodes.get(name)
        copy = None if node is None else node.copies.get(weights)
        if copy is None or self._store.occupancy.get((name, weights), 0) < copy.slots:
            return False
        known = self._of(name, weights)
        return known is not None and known.is_ours and tried(known.learnt, math.inf, now_s) is not known.learnt

    def _is_full(self, row: Row) -> bool:
        return self._store.occupancy.get(row.copy, 0) >= row.slots

    async def _try(self, row: Row, wait_s: float, now_s: float) -> bool:
        known = self._of(*row.copy)
        if known is None or not known.is_ours:
            return False
        learnt = tried(known.learnt, wait_s, now_s)
        is_tried = learnt is not known.learnt
        await self._learn(*row.copy, known, learnt)
        return is_tried

    def _of(self, name: str, weights: str) -> Known | None:
        """None where nothing is to be learnt: it has left, is a cloud model, or one slot is all there can be."""
        node = self._keeper.snapshot.nodes.get(name)
        if node is None:
            self._known.pop((name, weights), None)
        if node is None or any(node.models[key].is_cloud for key in node.keys_of(weights)):
            return None
        said = declared_slots(node, weights)
        known = self._known.get((name, weights))
        if known is None or (known.incarnation, known.declared) != (node.incarnation, said):
            known = Known(node.incarnation, said, fresh(said))
            if len(self._known) >= COPIES_MAX:
                del self._known[next(iter(self._known))]
            self._known[name, weights] = known
        self._follow(name, weights, known)
        return known if known.learnt.most > 1 else None

    def _follow(self, name: str, weights: str, known: Known) -> None:
        """Whoever does not decide has what was decided, and so begins whoever decides from now on."""
        said = self._keeper.firsthand.findings.of(About(SLOTS, name, weights), known.incarnation)
        if not known.is_ours:
            base = fresh(known.declared).base if said is None else said.slots
            known.learnt = decided(known.learnt, base)
            known.upto_s = max(known.upto_s, said.at_s if said is not None else 0.0)
        known.is_ours = self.is_mine(name)

    def _merged(self, name: str, weights: str, known: Known, now_s: float) -> Learnt:
        """With what others have found since the last time."""
        findings, learnt = self._keeper.firsthand.findings, known.learnt
        told = [
            (found, fold)
            for kind, fold in ((SHOWN, shown_elsewhere), (QUEUED, queued_elsewhere))
            if (found := findings.of(About(kind, name, weights), known.incarnation)) and found.at_s > known.upto_s
        ]
        for found, fold in sorted(told, key=lambda one: one[0].at_s):
            learnt = fold(learnt, found.slots, now_s)
            known.upto_s = found.at_s
        return learnt

    def _find(self, kind: str, name: str, weights: str, slots: int) -> None:
        """Tells it; a proof that was told lately is as good as new."""
        node, now_s = self._keeper.snapshot.nodes[name], self._store.now_s()
        findings, about = self._keeper.firsthand.findings, About(kind, name, weights)
        last = findings.of(about, node.incarnation)
        if kind == SHOWN and last is not None and last.slots == slots and now_s - last.at_s < SHOWN_FOR_S / 2:
            return
        findings.note(about, Finding(now_s, node.incarnation, slots))

    async def _learn(self, name: str, weights: str, known: Known, learnt: Learnt) -> None:
        before, known.learnt = known.learnt, learnt
        node = self._keeper.snapshot.nodes.get(name)
        if node is None:
            return
        at_first = fresh(known.declared).base
        said = self._keeper.firsthand.findings.of(About(SLOTS, name, weights), known.incarnation)
        if learnt.base != (said.slots if said is not None else at_first):
            self._find(SLOTS, name, weights, learnt.base)
        if learnt.slots == node.learnt.get(weights, at_first):
            return
        if before.base != learnt.base:
            beside = "none are declared" if known.declared is None else f"{known.declared} are declared"
            level = logging.WARNING if learnt.base < before.base else logging.INFO
            log.log(level, "%s on %s runs %d calls at once, %s", _key_of(node, weights), name, learnt.base, beside)
        await self._keeper.learnt_slots(name, weights, learnt.slots)


def _key_of(node: Node, weights: str) -> str:
    return next(iter(node.keys_of(weights)), weights)
