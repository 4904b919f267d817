"""Slots of copies as calls show them, told to the fleet's picture and through it to the store. `policy.concurrency`
decides."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from router.control.keeper import FleetKeeper
from router.fleet.node import Node
from router.fleet.slots import declared_slots
from router.fleet.snapshot import Row
from router.fleet.tickets import Lease
from router.policy.concurrency import Learnt, Ran, aged, fresh, ran, tried
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


class SlotLearner:
    """Owns what was learnt, by (node, weights)."""

    def __init__(self, keeper: FleetKeeper, store: Store, clock: Clock) -> None:
        self._keeper = keeper
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
        if known is not None:
            await self._learn(lease.node, lease.weights, known, ran(known.learnt, call))

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Trials end, and begin where somebody has waited long for a copy that is full: one for each line."""
        now_s = self._clock.now_s()
        for (name, weights), known in tuple(self._known.items()):
            await self._learn(name, weights, known, aged(known.learnt, now_s))
        for line in await self._store.lines():
            for row in self._keeper.snapshot.holding(line.model).ready.rows if line.depth else ():
                if self._is_full(row) and await self._try(row, line.oldest_wait_s, now_s):
                    break

    def _is_full(self, row: Row) -> bool:
        return self._store.occupancy.get(row.copy, 0) >= row.slots

    async def _try(self, row: Row, wait_s: float, now_s: float) -> bool:
        known = self._of(*row.copy)
        if known is None:
            return False
        learnt = tried(known.learnt, wait_s, now_s)
        is_tried = learnt is not known.learnt
        await self._learn(*row.copy, known, learnt)
        return is_tried

    def _of(self, name: str, weights: str) -> Known | None:
        """None where nothing is to be learnt: it has left, is a cloud model, or one slot is all there can be."""
        node = self._keeper.snapshot.nodes.get(name)
        if node is None or any(node.models[key].is_cloud for key in node.keys_of(weights)):
            return None
        said = declared_slots(node, weights)
        known = self._known.get((name, weights))
        if known is None or (known.incarnation, known.declared) != (node.incarnation, said):
            known = Known(node.incarnation, said, fresh(said))
            if len(self._known) >= COPIES_MAX:
                del self._known[next(iter(self._known))]
            self._known[name, weights] = known
        return known if known.learnt.most > 1 else None

    async def _learn(self, name: str, weights: str, known: Known, learnt: Learnt) -> None:
        before, known.learnt = known.learnt, learnt
        node = self._keeper.snapshot.nodes.get(name)
        if node is None:
            self._known.pop((name, weights), None)
        if node is None or before.slots == learnt.slots:
            return
        if before.base != learnt.base:
            said = "none are declared" if known.declared is None else f"{known.declared} are declared"
            level = logging.WARNING if learnt.base < before.base else logging.INFO
            log.log(level, "%s on %s runs %d calls at once, %s", _key_of(node, weights), name, learnt.base, said)
        await self._keeper.learnt_slots(name, weights, learnt.slots)


def _key_of(node: Node, weights: str) -> str:
    return next(iter(node.keys_of(weights)), weights)
