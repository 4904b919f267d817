"""Tells what goes wrong without anything failing, when it begins and when it ends. `policy.troubles` decides what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from router.control.keeper import FleetKeeper
from router.fleet.slots import excess
from router.policy.placement import Load
from router.policy.troubles import NO_TROUBLES, WINDOW_S, Pair, Troubles, saw
from router.policy.verdicts import pair_text, skew_text
from router.seams import Clock, Store

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # half of a probe's interval: nothing that probes see is missed
UNLOADED_S = 10.0  # an unload that a team asked for is seen by the probes that follow it


class Counts(Protocol):
    def copy_evicted(self, node: str, model: str, cause: str) -> None: ...

    def slots_oversubscribed(self, node: str, leases: int) -> None:
        """By so many more leases its copies are above what they serve."""


class Watch:
    """Owns `troubles`."""

    def __init__(
        self,
        keeper: FleetKeeper,
        store: Store,
        clock: Clock,
        *,
        recent: Callable[[], Sequence[Load]],
        is_leading: Callable[[], bool],
        counts: Counts,
    ) -> None:
        """`recent`: our loads that run or have just ended. All replicas see what leaves memory: who leads counts it."""
        self._keeper = keeper
        self._clock = clock
        self._recent = recent
        self._is_leading = is_leading
        self._store = store
        self._counts = counts
        self._excess: dict[str, int] = {}
        self._unloaded: dict[tuple[str, str], float] = {}
        self._turn = asyncio.Lock()
        self.troubles = NO_TROUBLES

    def __repr__(self) -> str:
        return f"<Watch {len(self.troubles.pairs)} thrashing | {len(self.troubles.spilled)} spilled>"

    def unloaded(self, node: str, weights: str) -> None:
        """By this router, since a team asked for it."""
        self._unloaded[node, weights] = self._clock.now_s()

    async def run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """One at a time: what has left memory is counted once."""
        async with self._turn:
            await self._look()

    async def _look(self) -> None:
        now_s, before = self._clock.now_s(), self.troubles
        self._unloaded = {place: at_s for place, at_s in self._unloaded.items() if now_s - at_s < UNLOADED_S}
        loads = [load for load in self._recent() if not load.is_renewal]
        displaced = {(load.node, weights) for load in loads for weights in load.displaces}
        # In a thread: all disks of a thousand nodes must not stop a stream.
        self.troubles, evictions = await asyncio.to_thread(
            saw,
            before,
            self._keeper.snapshot,
            loaders={load.node: load.weights for load in loads},
            unloaded=displaced | self._unloaded.keys(),
            now_s=now_s,
        )
        for one in evictions if self._is_leading() else ():
            self._counts.copy_evicted(one.node, one.key, one.cause.value)
        self._count_excess()
        _tell_pairs(before, self.troubles)
        _tell_spills(before, self.troubles)
        _tell_skews(before, self.troubles)

    def _count_excess(self) -> None:
        now = excess(self._keeper.snapshot.nodes, self._store.occupancy)
        for node, leases in now.items():
            more = leases - self._excess.get(node, 0)
            if more > 0:
                self._counts.slots_oversubscribed(node, more)
        self._excess = now


def _tell_pairs(before: Troubles, now: Troubles) -> None:
    def places(pairs: Sequence[Pair]) -> dict[tuple[str, tuple[str, str]], Pair]:
        return {(pair.node, pair.keys): pair for pair in pairs}

    old, new = places(before.pairs), places(now.pairs)
    for place, pair in new.items():
        if place not in old:
            log.warning("%s on %s", pair_text(pair), pair.node)
    for node, keys in old.keys() - new.keys():
        log.info("%s and %s have not evicted one another on %s for %.0f s", *keys, node, WINDOW_S)


def _tell_spills(before: Troubles, now: Troubles) -> None:
    for name, weights in sorted(now.spilled - before.spilled):
        copy = now.nodes[name].copies[weights]
        outside = copy.size_bytes - copy.vram_bytes
        log.warning(
            "%s on %s is partly in CPU memory: %d of %d bytes", *_named(now, name, weights), outside, copy.size_bytes
        )
    for name, weights in sorted(before.spilled - now.spilled):
        log.info("%s on %s is no longer partly in CPU memory", *_named(before, name, weights))


def _named(at: Troubles, name: str, weights: str) -> tuple[str, str]:
    keys = at.nodes[name].copies[weights].keys
    return (keys[0] if keys else weights), name


def _tell_skews(before: Troubles, now: Troubles) -> None:
    for key in sorted(now.skewed):
        if now.skewed[key] != before.skewed.get(key):
            log.warning("%s", skew_text(key, now.skewed[key]))
    for key in sorted(before.skewed.keys() - now.skewed.keys()):
        log.info("%s is the same on all its nodes again", key)
