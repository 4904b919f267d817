"""Asks nodes what they are, in their own time: one task a node, so that a dead or slow one delays only itself.

`/api/version` is liveness; `/api/ps` may stall for seconds on a busy but healthy node (server/sched.go), so its
failure is told and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, KeysView, Sequence
from dataclasses import dataclass
from random import Random

from router.control.keeper import FleetKeeper
from router.fleet.health import next_probe_in_s
from router.fleet.node import Health, NodeSpec
from router.fleet.reports import MalformedReport, TagEntry, parse_ps, parse_show, parse_tags, parse_version
from router.seams import Clock, Discovery, NodeApi, NodeFailed, Store
from router.upstream.pool import ConnectionPool
from router.upstream.resolver import REFRESH_S, Resolver
from router.wire.names import key_of
from router.wire.show import ShowBody

log = logging.getLogger(__name__)

LOOKUPS = 16  # names looked up at once, in threads


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    interval_s: float
    timeout_s: float
    concurrency: int


class Prober:
    """Follows discovery and runs one task for each node."""

    def __init__(
        self,
        *,
        api: NodeApi,
        keeper: FleetKeeper,
        store: Store,
        clock: Clock,
        rng: Random,
        limits: ProbeLimits,
        resolver: Resolver,
        connections: ConnectionPool,
        observe: Callable[[str, float, str], None],
    ) -> None:
        """`observe` hears of every probe: node, seconds, and why it failed ('' when it did not)."""
        self._api = api
        self._keeper = keeper
        self._store = store
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._resolver = resolver
        self._connections = connections
        self._observe = observe
        self._turns = asyncio.Semaphore(limits.concurrency)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._pausing: set[str] = set()  # nodes whose task waits for its next probe
        self._ending: set[asyncio.Task[None]] = set()  # probes in hand of nodes that another replica has taken
        self._specs: dict[str, NodeSpec] = {}
        self._told: dict[str, str] = {}  # why a node's probe failed last, where the log says it
        self._unasked: set[str] = set()  # nodes whose first probe has not ended, well or not
        # Whether this replica probes the node: the others hear of it. Set by whoever shares the probing.
        self.is_mine: Callable[[str], bool] = lambda name: True
        self.added = 0  # nodes, and what is said of them anew
        self.has_discovered = asyncio.Event()
        self.has_looked = asyncio.Event()  # every node of the first discovery was asked once

    def __repr__(self) -> str:
        return f"<Prober {len(self._tasks)} nodes>"

    def set_limits(self, limits: ProbeLimits) -> None:
        """From each node's next probe on; probes in hand keep their turn of the old ones."""
        if limits.concurrency != self._limits.concurrency:
            self._turns = asyncio.Semaphore(limits.concurrency)
        self._limits = limits

    async def follow(self, discovery: Discovery) -> None:
        async for specs in discovery.watch():
            await self._set_nodes(specs)
            self.has_discovered.set()
            self.note_asked("")

    async def close(self) -> None:
        tasks = (*self._tasks.values(), *self._ending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _set_nodes(self, specs: tuple[NodeSpec, ...]) -> None:
        wanted = {spec.name: spec for spec in specs}
        # Who comes before who goes: in between a model must not seem to be nowhere.
        for name, spec in wanted.items():
            known = self._specs.get(name)
            if spec == known:
                continue
            if known is not None and known.is_another_than(spec):
                await self._let_go(name)  # another server under an old name: nothing that was seen is true of it
            else:
                self._stop(name)
            self._specs[name] = spec
            self._unasked.add(name)
            await self._keeper.add(spec)
            self.added += 1
            self.take_turns(name)
        for name in [name for name in self._specs if name not in wanted]:
            await self._let_go(name)

    async def _let_go(self, name: str) -> None:
        """Calls that run there run on to their end."""
        del self._specs[name]
        self._stop(name)
        self._unasked.discard(name)
        self._told.pop(name, None)
        self._connections.drop_node(name)
        await self._keeper.remove(name)

    @property
    def names(self) -> KeysView[str]:
        """Every node that is known here, whoever probes it."""
        return self._specs.keys()

    def take_turns(self, name: str) -> None:
        """Probes the node from now on, or no longer, as `is_mine` says."""
        spec = self._specs.get(name)
        if spec is None or not self.is_mine(name):
            # A probe in hand goes on to its end: half of what it showed would be worse than nothing.
            task = self._tasks.pop(name, None)
            if task is not None and name in self._pausing:
                task.cancel()
            elif task is not None:
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        elif name not in self._tasks:
            self._tasks[name] = asyncio.create_task(self._watch(spec), name=f"probe {name}")

    def _stop(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()

    async def resolve_others(self) -> None:
        """Addresses of nodes that another replica probes: calls go there all the same."""
        turns = asyncio.Semaphore(LOOKUPS)

        async def refresh(spec: NodeSpec) -> None:
            async with turns:
                await self._resolver.refresh(spec, self._limits.timeout_s)

        while True:
            await asyncio.gather(*(refresh(spec) for name, spec in self._specs.items() if name not in self._tasks))
            await asyncio.sleep(REFRESH_S)

    async def _watch(self, spec: NodeSpec) -> None:
        if self._keeper.fails_of(spec.name):
            await self._pause(spec.name)  # another replica has just asked in vain
        while self._tasks.get(spec.name) is asyncio.current_task():
            try:
                async with self._turns:
                    await self._resolver.refresh(spec, self._limits.timeout_s)
                    is_alive = await self._is_alive(spec)
                if is_alive:
                    await self._read(spec)
            except Exception:
                # A supervisor: whatever a node's answers do to us, this node is probed again.
                log.exception("probe of %s failed", spec.name)
            self.note_asked(spec.name)
            await self._pause(spec.name)

    async def _pause(self, name: str) -> None:
        node = self._keeper.snapshot.nodes.get(name)
        state = node.health if node is not None else Health.UNREAD
        fails = self._keeper.fails_of(name)
        self._pausing.add(name)
        try:
            await asyncio.sleep(next_probe_in_s(state, fails, self._limits.interval_s, self._rng))
        finally:
            self._pausing.discard(name)

    def note_asked(self, name: str) -> None:
        """By this replica or another."""
        self._unasked.discard(name)
        if self.has_discovered.is_set() and not self._unasked:
            self.has_looked.set()

    async def _is_alive(self, spec: NodeSpec) -> bool:
        began_s = self._clock.now_s()
        try:
            version = parse_version(await self._api.version(spec))
        except (NodeFailed, MalformedReport) as failed:
            self._observe(spec.name, self._clock.now_s() - began_s, _reason(failed))
            await self._note_missed(spec.name, failed)
            return False
        self._observe(spec.name, self._clock.now_s() - began_s, "")
        self._told.pop(spec.name, None)
        await self._keeper.answered(spec.name, version)
        return True

    async def _note_missed(self, name: str, failed: NodeFailed | MalformedReport) -> None:
        """Told once for each reason until it answers. A probe that we could not send for want of our own says nothing
        about the node."""
        text = failed.text if isinstance(failed, NodeFailed) else str(failed)
        if self._told.get(name) != text:
            self._told[name] = text
            log.warning("probe of %s failed: %s", name, text)
        if not (isinstance(failed, NodeFailed) and failed.is_local):
            await self._keeper.missed(name)

    async def _read(self, spec: NodeSpec) -> None:
        """Disk before memory: which weights a resident name stands for is known from the disk."""
        for read in (self._read_tags, self._read_ps):
            began_s = self._clock.now_s()
            try:
                await read(spec)
            except (NodeFailed, MalformedReport) as failed:
                self._observe(spec.name, self._clock.now_s() - began_s, f"{read.__name__[6:]}_{_reason(failed)}")
        self._keeper.wake_placer()

    async def _read_tags(self, spec: NodeSpec) -> None:
        entries = parse_tags(await self._api.tags(spec), key_of)
        try:
            await self._read_weights(spec, entries)
        except (NodeFailed, MalformedReport) as failed:
            # Digests stand in for weights: only sharing between names goes unseen, until the next probe.
            self._observe(spec.name, 0.0, f"show_{_reason(failed)}")
        await self._keeper.saw_tags(spec.name, entries)

    async def _read_weights(self, spec: NodeSpec, entries: Sequence[TagEntry]) -> None:
        """Before the list is told: a copy that changes its key while it loads would be loaded twice."""
        for entry in entries:
            if entry.digest and not entry.is_cloud and self._keeper.lacks(entry.digest):
                body = await self._api.show(spec, entry.name)
                self._keeper.saw_show(entry.digest, parse_show(body))
                self._keeper.bodies.keep(entry.digest, ShowBody(entry.name, body))

    async def _read_ps(self, spec: NodeSpec) -> None:
        asked_at_s = self._store.now_s()
        body, node_now_s = await self._api.ps(spec)
        entries = parse_ps(body, key_of)
        await self._keeper.saw_ps(spec.name, entries, node_now_s or self._clock.wall_s(), asked_at_s)


def _reason(failed: NodeFailed | MalformedReport) -> str:
    """A closed set: the label of `node_probe_failures_total`."""
    if isinstance(failed, MalformedReport):
        return "malformed"
    return f"http_{failed.status // 100}xx" if failed.status else failed.reason
