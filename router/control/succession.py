"""Loads that run, told between replicas, so that whoever leads next knows of them. `policy.succession` decides."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Coroutine, Mapping
from dataclasses import replace

from router.control.keeper import FleetKeeper
from router.control.node_memory import NodeMemory
from router.fleet.words import SharedLoad
from router.policy.placement import Action, Cause, Displace, Load
from router.policy.succession import Begun, Estate, estate_of, taken_over
from router.seams import Clock, Store

log = logging.getLogger(__name__)


class Succession:
    """Owns what this replica had go for loads of others: whoever ordered one that is late may order nothing more."""

    def __init__(self, keeper: FleetKeeper, store: Store, clock: Clock, memory: NodeMemory) -> None:
        self._keeper = keeper
        self._store = store
        self._clock = clock
        self._memory = memory
        self._estate = Estate()
        self._displaced: dict[str, tuple[Load, float]] = {}  # by node: with what went for it here, and when it last did
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Succession {len(self._estate.running)} running elsewhere | {len(self._estate.orphaned)} orphaned>"

    @property
    def loading(self) -> dict[str, str]:
        """Weights by node, of other replicas' loads."""
        return {node: begun.load.weights for node, begun in self._estate.running.items()}

    @property
    def leaving(self) -> frozenset[tuple[str, str]]:
        """What they displace, by (node, weights)."""
        loads = [begun.load for begun in self._estate.running.values()] + [load for load, _ in self._displaced.values()]
        return frozenset((load.node, weights) for load in loads for weights in load.displaces)

    @property
    def since_s(self) -> dict[str, float]:
        """By node, on our clock: when its load began, or displaced last."""
        ahead_s = self._clock.now_s() - self._store.now_s()
        since = {node: begun.since_s + ahead_s for node, begun in self._estate.running.items()}
        return {node: max(at_s, self._displaced.get(node, (None, at_s))[1]) for node, at_s in since.items()}

    def look(self, own: Collection[str]) -> None:
        """At what was told until now. `own`: nodes that load for this replica."""
        heard = self._keeper.firsthand.loads
        # Alone nobody knows who else lives: whatever may run is asked for where it may run.
        live = frozenset[str]() if self._store.is_alone else heard.live
        told = [_begun(node, by, load) for (node, by), load in heard.of_others.items()]
        self._estate = estate_of(told, live, self._store.now_s(), own=own)
        for node in self._displaced.keys() - self._estate.running.keys():
            load, _ = self._displaced.pop(node)
            self._start(self._memory.tell_displaced(load), f"the end of loading {load.key} on {node}")

    def taken_over(self, action: Action, excluded: Mapping[str, frozenset[str]]) -> Action:
        """`excluded`: by model, what nobody in its line may use."""
        if not isinstance(action, Load):
            return action
        load = taken_over(action, self._estate, self._keeper.snapshot, excluded.get(action.key, frozenset()))
        if load.node != action.node:
            by = self._estate.orphaned[load.node].by
            log.info("%s may still be loading on %s, for %s, which is gone: asked for there", load.key, load.node, by)
        return load

    async def displace(self, action: Displace, epoch: int) -> None:
        """For another replica's load that should have ended long ago."""
        node, begun = action.node, self._estate.running.get(action.node)
        if begun is None or not await self._store.begin(node, action.weights, loading=False, epoch=epoch):
            return
        before = self._displaced.get(node)
        displaces = (*(before[0].displaces if before is not None else ()), action.weights)
        load = replace(begun.load, displaces=displaces)
        self._displaced[node] = (load, self._clock.now_s())
        log.info("%s on %s waits for memory: %s gets no new calls there", load.key, node, action.weights[:19])
        self._start(self._memory.let_go(load, (action.weights,)), f"offer for {load.key} on {node}")

    # ours, for the others

    def began(self, load: Load) -> None:
        """Or displaced more."""
        if not load.is_renewal:
            self._keeper.firsthand.loads.began(load.node, _shared(load, self._store.now_s()))

    def ended(self, load: Load) -> None:
        """However it ended. Nobody need ask there again for one that was taken over."""
        if not load.is_renewal:
            self._keeper.firsthand.loads.ended(load.node, self._store.now_s())

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(_watched(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _watched(work: Coroutine[object, object, None], name: str) -> None:
    try:
        await work
    except Exception:
        # A supervisor: what was to be told is seen by the next probe.
        log.exception("%s went wrong", name)


def _shared(load: Load, now_s: float) -> SharedLoad:
    keep_alive_s = -1.0 if load.keep_alive_s == math.inf else load.keep_alive_s
    names, wishes = (load.weights, load.key, load.model), (load.num_ctx, keep_alive_s, load.is_default)
    return SharedLoad(*names, *wishes, load.displaces, load.cause.value, now_s)


def _begun(node: str, by: str, told: SharedLoad) -> Begun:
    keep_alive_s = math.inf if told.keep_alive_s == -1.0 else told.keep_alive_s
    load = Load(
        *(node, told.model, told.key, told.weights, told.num_ctx, keep_alive_s),
        is_default=told.is_default,
        displaces=told.displaces,
        cause=Cause(told.cause) if told.cause in set(Cause) else Cause.LINE,
    )
    return Begun(load, by, told.since_s)
