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

from router.control.declarations import Declarations, Look
from router.control.keeper import FleetKeeper
from router.control.loading import Loading, refusal_of, result_of
from router.control.node_memory import NodeMemory, PlacerApi, too_much_for
from router.control.succession import Succession
from router.errors import LoadFailed
from router.fleet.tickets import LineView
from router.policy.degraded import loading_node
from router.policy.experience import NOTHING_LEARNT, did_not_fit, loaded, looked
from router.policy.guard import KEEP_ALIVE_MIN_S
from router.policy.placement import Action, Displace, Load, LoadFailure, Mode, Refuse, failed_again, hopeless
from router.policy.room import ran_out
from router.seams import Clock, NodeFailed, Store

log = logging.getLogger(__name__)

PASS_EVERY_S = 1.0  # nothing is lost when a wake-up is: the next pass sees the same line
RESTS = 4.0  # after a pass, in passes: they take a fifth of the loop at most
# Pairs of a line and a node that one pass weighs, at 1.5 us each. More are weighed in a thread: 100 lines on 1,000
# nodes would stop every stream for 150 ms.
PAIRS_ON_LOOP_MAX = 2_000
FAILURES_MAX = 1000  # copies with a failed load remembered; a pool has fewer (node, model) pairs that fail at once


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
        self._memory = NodeMemory(api, keeper, store, clock)
        self._succession = Succession(keeper, store, clock, self._memory)
        self._loads: dict[str, Loading] = {}
        self._failures: dict[tuple[str, str], LoadFailure] = {}
        self.experience = NOTHING_LEARNT
        self.declarations = Declarations()
        self.is_leaving = False
        self.is_leading = False

    def __repr__(self) -> str:
        return f"<Placer {len(self._loads)} loading | {len(self._failures)} in backoff>"

    @property
    def loading(self) -> dict[str, str]:
        """The weights that each node is asked to load, by node."""
        return {node: running.load.weights for node, running in self._loads.items()}

    @property
    def leaving(self) -> frozenset[tuple[str, str]]:
        """What these loads displace, by (node, weights)."""
        loads = [running.load for running in self._loads.values()]
        return frozenset((load.node, weights) for load in loads for weights in load.displaces)

    @property
    def since_s(self) -> dict[str, float]:
        """When they began, or displaced something last, by node. A renewal waits for no memory and has none."""
        return {node: one.since_s for node, one in self._loads.items() if not one.load.is_renewal}

    def recent(self) -> tuple[Load, ...]:
        """Loads that run or have just ended."""
        return (*self.declarations.recent, *(running.load for running in self._loads.values()))

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
        self.is_leaving, self.is_leading = True, False
        await self._store.lead(wants=False)
        await self._succession.close()
        running = {running.task for running in self._loads.values() if running.task is not None}
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=within_s)
        if late:
            log.warning("%d loads are given up after %.1f s", len(late), within_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _pass(self) -> None:
        if self._store.is_led_elsewhere:
            # The lines are the leader's to look at: hundreds of routers that did would keep Redis from the calls.
            self._follow()
            return
        lines = [line for line in await self._store.lines() if line.depth]
        at = self._look(lines)
        if self.is_leaving:
            return
        leading = await self._store.lead()
        self.is_leading = leading.is_mine
        if not leading.is_mine:
            self.declarations.follow(at)
            return
        if lines:
            excluded = {line.model: line.excluded for line in lines}
            await self._carry(await self._weighed(at), leading.epoch, excluded)
            await self._refuse_hopeless(lines)
        now = replace(at, loading=self._all_loading, leaving=self._all_leaving)
        await self._carry(self.declarations.keep(now), leading.epoch, {})

    def _follow(self) -> None:
        """What stands of the declared copies, and what is asked of models by calls that run."""
        self.is_leading = False
        self.declarations.follow(self._look(()))

    def _look(self, lines: Sequence[LineView]) -> Look:
        snapshot, occupancy, now_s = self._keeper.snapshot, self._store.occupancy, self._clock.now_s()
        self.experience = looked(self.experience, lines, snapshot, occupancy, now_s)
        self._succession.look(self._loads.keys())
        under_way = (self._all_loading, self._all_leaving)
        at = Look(lines, snapshot, occupancy, self.experience, *under_way, self._backoff, now_s, self.mode)
        self.declarations.look(at)
        return at

    @property
    def _all_loading(self) -> dict[str, str]:
        """Of all replicas."""
        return {**self._succession.loading, **self.loading}

    @property
    def _all_leaving(self) -> frozenset[tuple[str, str]]:
        return self._succession.leaving | self.leaving

    async def _weighed(self, at: Look) -> tuple[Action, ...]:
        since_s = {**self._succession.since_s, **self.since_s}
        if len(at.lines) * len(at.snapshot.nodes) <= PAIRS_ON_LOOP_MAX:
            return at.placed(self.declarations.holds, since_s)
        # Of all that is looked at only this one goes on changing: the rest is made for this pass, or is never changed.
        still = replace(at, occupancy=dict(at.occupancy))
        actions = await asyncio.to_thread(still.placed, self.declarations.holds, since_s)
        return () if self.is_leaving else actions

    @property
    def _backoff(self) -> dict[tuple[str, str], float]:
        return {copy: failure.until_s for copy, failure in self._failures.items()}

    async def _carry(self, actions: Iterable[Action], epoch: int, excluded: Mapping[str, frozenset[str]]) -> None:
        for decided in actions:
            action = self._succession.taken_over(self._named_by_all(decided), excluded)
            if isinstance(action, Refuse):
                await self._store.refuse(action.key, refusal_of(action))
            elif isinstance(action, Displace):
                await self._displace(action, epoch)
            elif await self._store.begin(action.node, action.weights, loading=True, epoch=epoch):
                for weights in action.displaces:
                    # Ollama waits for what runs there; whatever came now would wait for two loads.
                    await self._store.begin(action.node, weights, loading=False, epoch=epoch)
                running = Loading(action, self._clock.now_s(), self._memory.held(action.node))
                running.task = asyncio.create_task(self._load(running), name=f"load {action.key} on {action.node}")
                self._loads[action.node] = running
                self._succession.began(action)

    async def _displace(self, action: Displace, epoch: int) -> None:
        """For a load that should have ended long ago. What it displaces is told when the load ends."""
        running = self._loads.get(action.node)
        if running is None:
            await self._succession.displace(action, epoch)
            return
        if running.is_over:
            return
        load = running.load
        # Noted before the store is asked: should the load end meanwhile, this copy is told with the others.
        running.load = replace(load, displaces=(*load.displaces, action.weights))
        running.since_s = self._clock.now_s()
        if not await self._store.begin(action.node, action.weights, loading=False, epoch=epoch):
            running.load = load
        elif not running.is_over:
            self._succession.began(running.load)
            displaced = self._keeper.snapshot.name_of(load.node, action.weights)
            log.info("%s on %s waits for memory: %s gets no new calls there", load.key, load.node, displaced)
            # A node that waits for memory may take its time to answer: other nodes' lines do not wait for it.
            offer = asyncio.create_task(self._offer(load, action.weights), name=f"offer for {load.key} on {load.node}")
            running.offers.add(offer)

    async def _offer(self, load: Load, weights: str) -> None:
        try:
            await self._memory.let_go(load, (weights,))
        except Exception:
            # A supervisor: the load goes on, and who displaces next tries again.
            log.exception("%s on %s was not offered", self._keeper.snapshot.name_of(load.node, weights), load.node)

    def _named_by_all(self, action: Action) -> Action:
        """Without the store every replica that has tickets for a model must ask the same node: Ollama loads once."""
        if not isinstance(action, Load) or action.is_renewal or not self._store.is_alone:
            return action
        row = loading_node(self._keeper.snapshot.holding(action.key).by_node.values())
        if row is None or row.node == action.node or row.node in self._loads:
            return action
        return replace(action, node=row.node, model=row.name, weights=row.weights, displaces=())

    async def _load(self, running: Loading) -> None:
        """Never ends without a word, and never leaves its node marked as loading here."""
        load = running.load
        try:
            await self._carry_out(running)
        except Exception:
            # A supervisor: whatever the load did to us, its node may load again.
            log.exception("the end of loading %s on %s went untold", load.key, load.node)
        finally:
            running.is_over = True
            for offer in running.offers:
                offer.cancel()
            try:
                await self._memory.tell_displaced(running.load)
            finally:
                self._loads.pop(load.node, None)
                self._succession.ended(load)
                self.declarations.ended(running.load, self._clock.now_s())
                self._keeper.wake_placer()

    async def _carry_out(self, running: Loading) -> None:
        load = running.load
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
            if result_of(failed) == "oom":
                self._note_oom(running)
            self._observe(load.node, load.key, reason, result_of(failed), self._clock.now_s() - began_s)
            await self._keeper.not_loaded(load.node, load.weights)
            return
        self._failures.pop((load.node, load.weights), None)
        self._observe(load.node, load.key, reason, "ok", took_s)
        log.info("loaded %s on %s in %.1f s", load.key, load.node, took_s)
        has_ctx = await self._learn(running, took_s)
        await self._keeper.loaded(load.node, load.weights, load.num_ctx, has_ctx=has_ctx, is_renewal=load.is_renewal)

    async def _learn(self, running: Loading, took_s: float) -> int:
        """From a load that is done. Answers the context of the copy before anybody is let in: a call that asks for more
        would reload it. 0: unknown."""
        load = running.load
        if not load.is_renewal:
            waited = bool(running.load.displaces)
            self.experience = loaded(self.experience, load.weights, took_s, waited=waited)
        node = self._keeper.snapshot.nodes.get(load.node)
        memory = None if node is None else await self._memory.read(node)
        if node is None or memory is None:
            return 0
        too_much = too_much_for(load, node, running.before, memory)
        self.experience = did_not_fit(self.experience, load.node, too_much)
        entry = memory.entry_of(load, node)
        return 0 if entry is None else entry.num_ctx

    async def _ask_to_load(self, load: Load) -> float:
        keep_alive_s = load.keep_alive_s
        if keep_alive_s is not None and keep_alive_s < KEEP_ALIVE_MIN_S:
            keep_alive_s = None  # as for forwarded calls: what is loaded for a line must not vanish under it
        await self._memory.let_go(load, load.displaces)
        spec = self._keeper.spec_of(load.node)
        took_s = await self._api.load(spec, load.model, load.num_ctx, keep_alive_s)
        if self._keeper.spec_of(load.node).url != spec.url:
            raise NodeFailed(0, "another node has its name now")
        return took_s

    def _note_failure(self, copy: tuple[str, str], failed: NodeFailed) -> None:
        if copy not in self._failures and len(self._failures) >= FAILURES_MAX:
            self._failures.pop(next(iter(self._failures)))
        self._failures[copy] = failed_again(self._failures.get(copy), self._clock.now_s(), failed.text)

    def _note_oom(self, running: Loading) -> None:
        load, node = running.load, self._keeper.snapshot.nodes.get(running.load.node)
        model = None if node is None else node.models.get(load.key)
        disk_bytes = 0 if model is None else model.size_bytes
        self.experience = ran_out(self.experience, load.node, load.weights, disk_bytes, running.before)

    async def _refuse_hopeless(self, lines: Sequence[LineView]) -> None:
        """A line whose every node has just failed to load would wait for nothing: it gets the node's words."""
        now_s = self._clock.now_s()
        for line in lines:
            text = hopeless(line, self._keeper.snapshot, self._failures, now_s)
            if text is not None:
                await self._store.refuse(line.model, LoadFailed(text))
