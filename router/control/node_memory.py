"""What nodes have in memory at this moment, and which of it they are told to let go first. Asked around each load."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from router.control.keeper import FleetKeeper
from router.fleet.node import CopyState, Node, NodeSpec
from router.fleet.reports import MalformedReport, PsEntry, parse_ps
from router.policy.placement import Cause, Load
from router.policy.room import OFFERED_S, Held, took_room
from router.seams import Clock, NodeFailed, Store
from router.wire.names import key_of

log = logging.getLogger(__name__)

MEMORY_READ_S = 2.0  # those in line wait for it; a node that is slower to list its memory is believed unseen


class PlacerApi(Protocol):
    """The part of a node's api that is asked here, and by the placer."""

    async def ps(self, node: NodeSpec) -> tuple[bytes, float | None]: ...

    async def load(self, node: NodeSpec, model: str, num_ctx: int, keep_alive_s: float | None) -> float: ...

    async def unload(self, node: NodeSpec, model: str) -> None: ...


class Memory(NamedTuple):
    entries: Sequence[PsEntry]
    node_now_s: float  # on the node's own clock

    def keys(self) -> frozenset[str]:
        return frozenset(entry.key for entry in self.entries)

    def entry_of(self, load: Load, node: Node) -> PsEntry | None:
        """Of the copy that was loaded, under whichever of its names; None where it is not there."""
        sharing = {load.key, *node.keys_of(load.weights)}
        return next((entry for entry in self.entries if entry.key in sharing), None)


class NodeMemory:
    def __init__(self, api: PlacerApi, keeper: FleetKeeper, store: Store, clock: Clock) -> None:
        self._api = api
        self._keeper = keeper
        self._store = store
        self._clock = clock

    async def read(self, node: Node) -> Memory | None:
        """The keeper hears it before anybody places again: by the next probe a copy that has just come would take no
        room, and one that has just gone would still get calls. None where the node does not say."""
        asked_at_s = self._store.now_s()
        try:
            async with asyncio.timeout(MEMORY_READ_S):
                body, node_now_s = await self._api.ps(node.spec)
            entries = parse_ps(body, key_of)
        except (NodeFailed, MalformedReport, TimeoutError) as error:
            log.warning("what %s has in memory stays unknown until the next probe: %s", node.name, error)
            return None
        now_s = node_now_s or self._clock.wall_s()
        await self._keeper.saw_ps(node.name, entries, now_s, asked_at_s)
        return Memory(entries, now_s)

    def held(self, name: str) -> dict[str, Held]:
        """By weights, as last seen."""
        node = self._keeper.snapshot.nodes.get(name)
        copies = [] if node is None else [copy for copy in node.copies.values() if copy.state is CopyState.READY]
        return {copy.weights: Held(copy.vram_bytes, copy.expires_at_s) for copy in copies}

    async def let_go(self, load: Load, displaced: Iterable[str]) -> None:
        """Ollama evicts the copy with the shortest keep-alive first (server/sched.go, ByDurationAndName). What is idle
        and goes for a declared copy is unloaded outright: that was decided, whatever Ollama would find room for."""
        node = self._keeper.snapshot.nodes.get(load.node)
        if node is None:
            return
        for weights in displaced:
            copy, keys = node.copies.get(weights), node.keys_of(weights)
            if copy is None or not keys:
                continue
            name = node.models[keys[0]].name
            is_idle = not self._store.occupancy.get((load.node, weights))
            try:
                if load.cause is not Cause.LINE and is_idle:
                    await self._api.unload(node.spec, name)
                    log.info("unloaded %s on %s for %s", keys[0], load.node, load.key)
                else:
                    # As a renewal: it names the loaded context, or a copy that was loaded with another one reloads.
                    await self._api.load(node.spec, name, copy.num_ctx, OFFERED_S)
            except NodeFailed as failed:
                log.warning("%s on %s keeps its keep-alive: %s", keys[0], load.node, failed.text)

    async def tell_displaced(self, load: Load) -> None:
        """What the load was to displace gets calls again where Ollama kept it after all."""
        node = self._keeper.snapshot.nodes.get(load.node)
        if node is None or not load.displaces:
            return
        memory = await self.read(node)
        resident = frozenset() if memory is None else memory.keys()
        for weights in load.displaces:
            if resident.isdisjoint(node.keys_of(weights)):
                await self._keeper.not_loaded(load.node, weights)
            else:
                await self._keeper.kept(load.node, weights)


def too_much_for(load: Load, node: Node, before: dict[str, Held], memory: Memory) -> int | None:
    """How many bytes its node has less than, if this load shows it; see `room.took_room`."""
    came = memory.entry_of(load, node)
    if came is None or load.is_renewal or load.cause is not Cause.LINE:
        return None
    resident = memory.keys()
    stayed = {weights for weights in before if not resident.isdisjoint(node.keys_of(weights))}
    return took_room(before, stayed, came.vram_bytes, memory.node_now_s)
