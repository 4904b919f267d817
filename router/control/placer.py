"""Carries out what `policy.placement` decides: loads that belong to the router, so that no client's leaving ends one.

Woken when somebody begins to wait, when a node changes, and once a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from router.control.declarations import Declarations, Look
from router.control.keeper import FleetKeeper
from router.errors import LoadFailed, NoNode, NotLoaded, Refusal, Rejection
from router.fleet.node import Node, NodeSpec
from router.fleet.reports import MalformedReport, PsEntry, parse_ps
from router.fleet.tickets import LineView
from router.policy.degraded import loading_node
from router.policy.experience import NOTHING_LEARNT, loaded, looked
from router.policy.guard import KEEP_ALIVE_MIN_S
from router.policy.placement import Action, Cause, Load, LoadFailure, Mode, Refuse, failed_again, hopeless, place
from router.policy.room import OFFERED_S
from router.seams import Clock, NodeFailed, Store
from router.wire.names import key_of

log = logging.getLogger(__name__)

PASS_EVERY_S = 1.0  # nothing is lost when a wake-up is: the next pass sees the same line
RESTS = 4.0  # after a pass, in passes: they take a fifth of the loop at most
RETRY_AFTER_S = 5.0
MEMORY_READ_S = 2.0  # those in line wait for it; a node that is slower to list its memory is believed unseen
FAILURES_MAX = 1000  # copies with a failed load remembered; a pool has fewer (node, model) pairs that fail at once


class PlacerApi(Protocol):
    """The part of a node's api that is asked here."""

    async def ps(self, node: NodeSpec) -> tuple[bytes, float | None]: ...

    async def load(self, node: NodeSpec, model: str, num_ctx: int, keep_alive_s: float | None) -> float: ...

    async def unload(self, node: NodeSpec, model: str) -> None: ...


class Placer:
    """Owns the loads that run, by node, the memory of those that failed, and `experience`. `mode` may be set anew, and
    what `declarations` says."""

    def __init__(
        self,
        *,
        api: PlacerApi,
        keeper: FleetKeeper,
        store: Store,
        clock: Clock,
        mode: Mode,
        observe: Callable[[str, str, str, str, float], None],
    ) -> None:
        """`observe` hears of every load that ended: node, model key, reason, result, seconds."""
        self._api = api
        self._keeper = keeper
        self._store = store
        self._clock = clock
        self.mode = mode
        self._observe = observe
        self._loads: dict[str, tuple[Load, asyncio.Task[None]]] = {}
        self._failures: dict[tuple[str, str], LoadFailure] = {}
        self.experience = NOTHING_LEARNT
        self.declarations = Declarations()
        self.is_leaving = False

    def __repr__(self) -> str:
        return f"<Placer {len(self._loads)} loading | {len(self._failures)} in backoff>"

    @property
    def loading(self) -> dict[str, str]:
        """The weights that each node is asked to load, by node."""
        return {node: load.weights for node, (load, _) in self._loads.items()}

    @property
    def leaving(self) -> frozenset[tuple[str, str]]:
        """What these loads displace, by (node, weights)."""
        return frozenset((node, weights) for node, (load, _) in self._loads.items() for weights in load.displaces)

    def recent(self) -> tuple[Load, ...]:
        """Loads that run or have just ended."""
        return (*self.declarations.recent, *(load for load, _ in self._loads.values()))

    @property
    def failures(self) -> Mapping[tuple[str, str], LoadFailure]:
        """By (node, weights)."""
        return MappingProxyType(self._failures)

    async def run(self) -> None:
        while True:
            began_s = self._clock.now_s()
            try:
                await self._pass()
            except Exception:
                # A supervisor: one bad pass must not leave every later line without a load.
                log.exception("placement pass failed")
            # Each probe wakes us: in a large pool passes would follow one another and leave nothing to the calls.
            await asyncio.sleep(min(RESTS * (self._clock.now_s() - began_s), PASS_EVERY_S))
            with suppress(TimeoutError):
                async with asyncio.timeout(PASS_EVERY_S):
                    await self._keeper.placer_wanted.wait()
            self._keeper.placer_wanted.clear()

    async def finish(self, within_s: float) -> None:
        """Begins nothing more and waits for the loads that run: a load dies with the connection that asked for it.
        Those that take longer die with it all the same: whoever stops this process does not wait for ever."""
        self.is_leaving = True
        await self._store.lead(wants=False)
        running = {task for _, task in self._loads.values()}
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=within_s)
        if late:
            log.warning("%d loads are given up after %.1f s", len(late), within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _pass(self) -> None:
        lines = [line for line in await self._store.lines() if line.depth]
        snapshot, occupancy, now_s = self._keeper.snapshot, self._store.occupancy, self._clock.now_s()
        self.experience = looked(self.experience, lines, snapshot, occupancy, now_s)
        at = Look(
            lines, snapshot, occupancy, self.experience, self.loading, self.leaving, self._backoff, now_s, self.mode
        )
        self.declarations.look(at)
        if self.is_leaving:
            return
        leading = await self._store.lead()
        if not leading.is_mine:
            return
        if lines:
            await self._carry(self._placed(at), leading.epoch)
            await self._refuse_hopeless(lines)
        await self._carry(
            self.declarations.keep(replace(at, loading=self.loading, leaving=self.leaving)), leading.epoch
        )

    def _placed(self, at: Look) -> tuple[Action, ...]:
        return place(
            at.lines,
            at.snapshot,
            loading=at.loading,
            backoff=at.backoff,
            now_s=at.now_s,
            mode=at.mode,
            occupancy=at.occupancy,
            experience=at.experience,
            leaving=at.leaving,
            holds=self.declarations.holds,
        )

    @property
    def _backoff(self) -> dict[tuple[str, str], float]:
        return {copy: failure.until_s for copy, failure in self._failures.items()}

    async def _carry(self, actions: Iterable[Action], epoch: int) -> None:
        for action in (self._named_by_all(action) for action in actions):
            if isinstance(action, Refuse):
                await self._store.refuse(action.key, _refusal(action))
            elif await self._store.begin(action.node, action.weights, loading=True, epoch=epoch):
                for weights in action.displaces:
                    # Ollama waits for what runs there; whatever came now would wait for two loads.
                    await self._store.begin(action.node, weights, loading=False, epoch=epoch)
                task = asyncio.create_task(self._load(action), name=f"load {action.key} on {action.node}")
                self._loads[action.node] = (action, task)

    def _named_by_all(self, action: Load | Refuse) -> Load | Refuse:
        """Without the store every replica that has tickets for a model must ask the same node: Ollama loads once."""
        if isinstance(action, Refuse) or action.is_renewal or not self._store.is_alone:
            return action
        row = loading_node(self._keeper.snapshot.holding(action.key).by_node.values())
        if row is None or row.node == action.node or row.node in self._loads:
            return action
        return replace(action, node=row.node, model=row.name, weights=row.weights, displaces=())

    async def _load(self, load: Load) -> None:
        """Never ends without a word, and never leaves its node marked as loading here."""
        try:
            await self._carry_out(load)
        except Exception:
            # A supervisor: whatever the load did to us, its node may load again.
            log.exception("the end of loading %s on %s went untold", load.key, load.node)
        finally:
            try:
                await self._tell_displaced(load)
            finally:
                self._loads.pop(load.node, None)
                self.declarations.ended(load, self._clock.now_s())
                self._keeper.wake_placer()

    async def _carry_out(self, load: Load) -> None:
        reason = "renew" if load.is_renewal else load.cause.value
        began_s = self._clock.now_s()
        log.info("loading %s on %s (%s)", load.key, load.node, reason)
        try:
            took_s = await self._ask_to_load(load)
        except Exception as error:
            if isinstance(error, NodeFailed):
                failed = error
                log.warning("loading %s on %s failed: %s", load.key, load.node, failed.text)
            else:
                failed = NodeFailed(0, f"{type(error).__name__}: {error}")
                log.exception("loading %s on %s failed", load.key, load.node)
            if not failed.is_local:
                self._note_failure((load.node, load.weights), failed)
            self._observe(load.node, load.key, reason, _result(failed), self._clock.now_s() - began_s)
            await self._keeper.not_loaded(load.node, load.weights)
            return
        self._failures.pop((load.node, load.weights), None)
        self._observe(load.node, load.key, reason, "ok", took_s)
        log.info("loaded %s on %s in %.1f s", load.key, load.node, took_s)
        if not load.displaces and not load.is_renewal:  # else it waited for what had to go, or had nothing to load
            self.experience = loaded(self.experience, load.weights, took_s)
        has_ctx = await self._context_of(load)
        await self._keeper.loaded(load.node, load.weights, load.num_ctx, has_ctx=has_ctx, is_renewal=load.is_renewal)

    async def _ask_to_load(self, load: Load) -> float:
        keep_alive_s = load.keep_alive_s
        if keep_alive_s is not None and keep_alive_s < KEEP_ALIVE_MIN_S:
            keep_alive_s = None  # as for forwarded calls: what is loaded for a line must not vanish under it
        await self._offer(load)
        spec = self._keeper.spec_of(load.node)
        took_s = await self._api.load(spec, load.model, load.num_ctx, keep_alive_s)
        if self._keeper.spec_of(load.node).url != spec.url:
            raise NodeFailed(0, "another node has its name now")
        return took_s

    async def _offer(self, load: Load) -> None:
        """Ollama evicts the copy with the shortest keep-alive first (server/sched.go, ByDurationAndName). What is idle
        and goes for a declared copy is unloaded outright: that was decided, whatever Ollama would find room for."""
        node = self._keeper.snapshot.nodes.get(load.node)
        if node is None:
            return
        for weights in load.displaces:
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

    async def _context_of(self, load: Load) -> int:
        """What the copy has, before anybody is let in: a call that asks for more would reload it. 0: unknown."""
        node = self._keeper.snapshot.nodes.get(load.node)
        if node is None:
            return 0
        sharing = {load.key, *node.keys_of(load.weights)}
        return next((entry.num_ctx for entry in await self._resident(node) if entry.key in sharing), 0)

    async def _tell_displaced(self, load: Load) -> None:
        """What the load was to displace gets calls again where Ollama kept it after all."""
        node = self._keeper.snapshot.nodes.get(load.node)
        if node is None or not load.displaces:
            return
        resident = {entry.key for entry in await self._resident(node)}
        for weights in load.displaces:
            if resident.isdisjoint(node.keys_of(weights)):
                await self._keeper.not_loaded(load.node, weights)
            else:
                await self._keeper.kept(load.node, weights)

    async def _resident(self, node: Node) -> Sequence[PsEntry]:
        """What it has in memory now. The keeper hears it before anybody places again: by the next probe a copy that has
        just come would take no room, and one that has just gone would still get calls."""
        asked_at_s = self._store.now_s()
        try:
            async with asyncio.timeout(MEMORY_READ_S):
                body, node_now_s = await self._api.ps(node.spec)
            entries = parse_ps(body, key_of)
        except (NodeFailed, MalformedReport, TimeoutError) as error:
            log.warning("what %s has in memory stays unknown until the next probe: %s", node.name, error)
            return ()
        await self._keeper.saw_ps(node.name, entries, node_now_s or self._clock.wall_s(), asked_at_s)
        return entries

    def _note_failure(self, copy: tuple[str, str], failed: NodeFailed) -> None:
        if copy not in self._failures and len(self._failures) >= FAILURES_MAX:
            self._failures.pop(next(iter(self._failures)))
        self._failures[copy] = failed_again(self._failures.get(copy), self._clock.now_s(), failed.text)

    async def _refuse_hopeless(self, lines: Sequence[LineView]) -> None:
        """A line whose every node has just failed to load would wait for nothing: it gets the node's words."""
        now_s = self._clock.now_s()
        for line in lines:
            text = hopeless(line, self._keeper.snapshot, self._failures, now_s)
            if text is not None:
                await self._store.refuse(line.model, LoadFailed(text))


def _refusal(action: Refuse) -> Refusal:
    if action.kind is Rejection.NOT_LOADED:
        return NotLoaded(
            f"no node has '{action.key}' loaded, and this router loads nothing", retry_after_s=RETRY_AFTER_S
        )
    return NoNode(f"no node that has '{action.key}' can serve it now", retry_after_s=RETRY_AFTER_S)


def _result(failed: NodeFailed) -> str:
    return "oom" if "out-of-memory" in failed.text or "out of memory" in failed.text else "failed"
