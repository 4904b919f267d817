"""The fleet's picture in this process: one frozen snapshot, swapped by whoever learns something, told on to the store.

Probes, loads and traffic all speak here; what their words mean is decided in `fleet` and `policy`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from router.control.circuits import Circuits
from router.control.firsthand import Firsthand
from router.control.left import LeftNodes
from router.control.shown import SHOW_BYTES_MAX, ShownBodies, ShownManifests
from router.errors import Outcome
from router.fleet import health
from router.fleet.adoption import with_named
from router.fleet.breaker import Circuit
from router.fleet.cloud import with_cloud
from router.fleet.health import Event, Vitals
from router.fleet.node import Copy, CopyState, Health, Node, NodeSpec
from router.fleet.reports import PsEntry, Shown, TagEntry
from router.fleet.slots import unseen_copy, with_learnt
from router.fleet.snapshot import Snapshot, apply_ps, apply_tags, apply_version
from router.fleet.tickets import Lease, report_of
from router.policy.concurrency import Ran
from router.policy.retry import Blame, Failure, blame_of
from router.seams import Clock, Store

log = logging.getLogger(__name__)

_LEVELS = dict.fromkeys(Health, logging.INFO) | dict.fromkeys((Health.DEGRADED, Health.DOWN), logging.WARNING)


class FleetKeeper:
    """Owns the snapshot and the vitals. Every method leaves the store knowing what the snapshot says.

    `interval_s` between probes and `cloud_slots` may be set anew.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        interval_s: float,
        on_circuit: Callable[[str, Circuit], None],
        cloud_slots: int = 0,
    ) -> None:
        """`cloud_slots` of each cloud stub; 0 where they are switched off."""
        self._store = store
        self.interval_s = interval_s
        self.cloud_slots = cloud_slots
        self._vitals: dict[str, Vitals] = {}
        self._left = LeftNodes()
        self.circuits = Circuits(
            store,
            clock,
            on_circuit,
            lambda name: name in self._vitals and self._vitals[name].drains,
            lambda name, weights: self.snapshot.name_of(name, weights),  # noqa: PLW0108 - by then it is another one
        )
        self.firsthand = Firsthand()
        self.shown = ShownManifests()
        self.bodies = ShownBodies(SHOW_BYTES_MAX)  # what was shown, word for word, as far as there is room
        self.snapshot = Snapshot()
        self.placer_wanted = asyncio.Event()
        # Told the key of a model that a team wants out of memory. Set by whoever unloads.
        self.on_unload: Callable[[str], None] = lambda key: None
        # Told the keys of a copy that became ready with a known context. Set by whoever holds the waiting calls.
        self.on_context: Callable[[Sequence[str]], None] = lambda keys: None
        # Told what a call showed of its copy's slots. Set by whoever learns from it.
        self.on_ran: Callable[[Lease, Ran], Awaitable[None]] | None = None

    def __repr__(self) -> str:
        return f"<FleetKeeper {self.snapshot!r}>"

    def loaded_ctx(self, node: str, weights: str) -> int:
        known = self.snapshot.nodes.get(node)
        copy = known.copies.get(weights) if known is not None else None
        return copy.named_ctx if copy is not None else 0

    def spec_of(self, node: str) -> NodeSpec:
        known = self.snapshot.nodes.get(node)
        return known.spec if known is not None else self._left.spec_of(node)

    def unload(self, model: str) -> None:
        self.on_unload(model)

    def wake_placer(self) -> None:
        self.placer_wanted.set()

    def fails_of(self, name: str) -> int:
        return self._vitals[name].fails if name in self._vitals else 0

    # discovery

    async def add(self, spec: NodeSpec) -> None:
        vitals = self._vitals.setdefault(spec.name, Vitals(returns=self._left.starts_of(spec.name)))
        incarnation = await self._store.incarnate(spec.name, vitals.start_of(spec.uid))
        known = self.snapshot.nodes.get(spec.name, Node(spec))
        self._swap(replace(known.under(spec), incarnation=incarnation))
        vitals = self._vitals[spec.name]  # probes may have spoken while the store was asked
        if vitals.presence is not spec.presence:
            await self._become(spec.name, health.stand(vitals, spec.presence))
            await self.circuits.tell_gate((spec.name, None))

    async def remove(self, name: str) -> None:
        node = self.snapshot.nodes.get(name)
        if node is None:
            return
        self.snapshot = self.snapshot.without_node(name)
        self._left.note(name, node.spec, self._vitals.pop(name, Vitals()).returns)
        self.firsthand.forget(name)
        await self._store.drop_node(name, node.incarnation)
        await self.circuits.forget(name)
        self.wake_placer()

    # drains

    def drained(self) -> frozenset[str]:
        """By an operator's word or discovery's; one that is down is among them, and drains on its return."""
        return frozenset(name for name, vitals in self._vitals.items() if vitals.drains)

    async def drain(self, name: str) -> None:
        """From here on it gets no new call or load; what runs there ends as it would. Repeating it changes nothing."""
        await self._step(name, Event.DRAINED)
        await self.circuits.tell_gate((name, None))

    async def resume(self, name: str) -> None:
        await self._step(name, Event.RESUMED)
        await self.circuits.tell_gate((name, None))

    # probes

    async def answered(self, name: str, version: str) -> None:
        if name in self.snapshot.nodes:
            self._swap(apply_version(self.snapshot.nodes[name], version))
            await self._reach(name, Event.PROBE_OK)

    async def missed(self, name: str) -> None:
        await self._reach(name, Event.PROBE_FAILED)

    async def saw_tags(self, name: str, entries: Sequence[TagEntry]) -> None:
        node = self.snapshot.nodes.get(name)
        if node is not None:
            self._swap(with_cloud(apply_tags(node, entries, self.shown), self.cloud_slots))
            await self._tell_copies(node, self._store.now_s())

    async def saw_ps(self, name: str, entries: Sequence[PsEntry], node_now_s: float, asked_at_s: float) -> None:
        """`asked_at_s` is store time: what a load reported after the question was asked is younger than the answer."""
        node = self.snapshot.nodes.get(name)
        if node is None or asked_at_s < self.firsthand.resident_s(name):
            return
        self.firsthand.resident(name, asked_at_s)
        leased = {weights for (holder, weights), leases in self._store.occupancy.items() if holder == name and leases}
        seen = apply_ps(node, entries, self.shown, node_now_s=node_now_s, interval_s=self.interval_s, leased=leased)
        seen = with_named(seen, self.firsthand.named_of(name))
        self._swap(with_cloud(seen, self.cloud_slots))
        await self._tell_copies(node, asked_at_s)

    def lacks(self, digest: str) -> bool:
        """Whether the node should be asked what this manifest's weights are; once for all nodes."""
        return digest not in self.shown and self.shown.has_room(self.snapshot)

    def saw_show(self, digest: str, shown: Shown) -> None:
        if digest in self.shown or self.shown.has_room(self.snapshot):
            self.shown[digest] = shown

    # loads

    async def loaded(
        self, name: str, weights: str, named_ctx: int, *, has_ctx: int = 0, is_renewal: bool = False
    ) -> None:
        """A load of ours has ended well; the next probe tells the rest. `named_ctx` is what the load asked for,
        `has_ctx` what the copy has; 0 where none was named, or nobody could tell."""
        node = self.snapshot.nodes.get(name)
        if node is None:
            return
        num_ctx = has_ctx or named_ctx
        now_s = self._store.now_s()
        self._saw_memory(name, now_s)
        known = node.copies.get(weights)
        copy = known if known is not None else unseen_copy(node, weights)
        # A renewal that names what the copy had leaves it as it was: the node's default, or ours.
        is_as_before = is_renewal and named_ctx == copy.num_ctx
        is_ours = copy.named_ctx > 0 if is_as_before else named_ctx > 0
        copy = replace(
            copy,
            state=CopyState.READY,
            num_ctx=num_ctx or copy.num_ctx,
            named_ctx=num_ctx if is_ours else 0,
            expires_at_s=float("inf"),
        )
        self.firsthand.named_ctx(name, weights, now_s, copy.named_ctx)
        if 0 < has_ctx < named_ctx:
            node = self._capped(node, weights, has_ctx)
        self._swap(replace(node, copies=MappingProxyType({**node.copies, weights: copy})))
        await self._store.set_copy(report_of(node, copy, now_s, is_probe=False))

    async def kept(self, name: str, weights: str) -> None:
        """A copy that a load of ours was to displace is in memory after all: it serves again, as it was."""
        node = self.snapshot.nodes.get(name)
        copy = node.copies.get(weights) if node is not None else None
        if copy is None:
            await self.not_loaded(name, weights)
        else:
            await self.loaded(name, weights, copy.num_ctx, is_renewal=True)

    def _capped(self, node: Node, weights: str, num_ctx: int) -> Node:
        """A load that got less context than it named met the training context, which no /api/show had told: without
        this, whoever asks for more would have the model loaded over and over."""
        models = dict(node.models)
        for key in node.keys_of(weights):
            digest = models[key].digest
            models[key] = replace(models[key], context_max=num_ctx)
            if digest in self.shown:
                self.shown[digest] = replace(self.shown[digest], context_max=num_ctx)
        return replace(node, models=MappingProxyType(models))

    async def not_loaded(self, name: str, weights: str) -> None:
        """A load of ours has failed, or a copy turned out to be gone."""
        node = self.snapshot.nodes.get(name)
        if node is None:
            return
        now_s = self._store.now_s()
        self._saw_memory(name, now_s)
        keys = node.keys_of(weights)
        copies = {other: copy for other, copy in node.copies.items() if other != weights}
        self._swap(replace(node, copies=MappingProxyType(copies)))
        gone = Copy(weights, CopyState.ON_DISK, keys, slots=0)
        await self._store.set_copy(report_of(node, gone, now_s, is_probe=False))
        self.wake_placer()

    async def learnt_slots(self, name: str, weights: str, slots: int) -> None:
        """What calls have shown that a copy runs at once."""
        self.firsthand.names.add(name)
        node = with_learnt(self.snapshot.nodes[name], weights, slots)
        self._swap(node)
        if weights in node.copies:
            await self._store.set_copy(report_of(node, node.copies[weights], self._store.now_s(), is_probe=True))

    # traffic

    async def attempt_ended(
        self, lease: Lease, failure: Failure | None, outcome: Outcome, ran: Ran | None = None
    ) -> None:
        if ran is not None and self.on_ran is not None:
            await self.on_ran(lease, ran)
        if failure is Failure.CONNECT_REFUSED:
            self.firsthand.names.add(lease.node)
            await self._reach(lease.node, Event.CONNECT_REFUSED)
            return
        if failure is Failure.MODEL_GONE:
            await self._forget_model(lease)
            return
        # A 5xx that passed to the client too: a copy that fails fast is never busy, and would draw everybody's calls.
        blame = blame_of(failure, blames_copy=outcome in (Outcome.UPSTREAM_TRUNCATED, Outcome.UPSTREAM_ERROR))
        if blame is Blame.NODE:
            await self.circuits.judge((lease.node, None), has_failed=True)
        elif blame is Blame.COPY:
            await self.circuits.judge((lease.node, lease.weights), has_failed=True)
        elif failure is None and outcome in (Outcome.OK, Outcome.CLIENT_ERROR):
            await self.circuits.judge((lease.node, lease.weights), has_failed=False)
            await self.circuits.judge((lease.node, None), has_failed=False)

    async def _forget_model(self, lease: Lease) -> None:
        node = self.snapshot.nodes.get(lease.node)
        if node is not None:
            models = {key: model for key, model in node.models.items() if key != lease.model}
            self._swap(replace(node, models=MappingProxyType(models)))
        await self.not_loaded(lease.node, lease.weights)

    # the picture

    def vitals_of(self, name: str) -> Vitals:
        known = self._vitals.get(name)
        return known if known is not None else Vitals()  # asked for each node, five times a second

    def adopt(self, changes: Mapping[str, tuple[Node, Vitals]]) -> None:
        """What other replicas have seen, and told the store. One swap for all of it."""
        for name, (_, vitals) in changes.items():
            old, self._vitals[name] = self._vitals[name], vitals
            if vitals.health is not old.health:
                log.log(_LEVELS[vitals.health], "node %s is %s, was %s", name, vitals.health, old.health)
        self._swap(*(node for node, _ in changes.values()))
        self.wake_placer()

    def _saw_memory(self, name: str, now_s: float) -> None:
        self.firsthand.resident(name, now_s)
        self.firsthand.names.add(name)

    async def _reach(self, name: str, event: Event) -> None:
        self.firsthand.reached(name, self._store.now_s())
        await self._step(name, event)

    async def _step(self, name: str, event: Event) -> None:
        if name in self._vitals:
            await self._become(name, health.step(self._vitals[name], event))

    async def _become(self, name: str, new: Vitals) -> None:
        node = self.snapshot.nodes.get(name)
        if node is None:
            return
        old, self._vitals[name] = self._vitals[name], new
        if new.health is old.health:
            return
        log.log(_LEVELS[new.health], "node %s is %s, was %s", name, new.health, old.health)
        incarnation = node.incarnation
        if new.returns != old.returns:
            incarnation = await self._store.incarnate(name, new.start_of(node.spec.uid))
        if new.health is Health.DOWN:
            await self._store.drop_node(name, node.incarnation)
        # Read again: others may have swapped while the store was asked.
        node = self.snapshot.nodes.get(name)
        if node is not None:
            is_another = new.health is Health.DOWN or incarnation != node.incarnation
            if is_another:
                self.firsthand.named.pop(name, None)
                node = node.begun_anew
            self._swap(replace(node, health=new.health, incarnation=incarnation))
        self.wake_placer()

    async def _tell_copies(self, before: Node, seen_at_s: float) -> None:
        node = self.snapshot.nodes[before.name]
        for weights, copy in before.copies.items():
            if weights not in node.copies:
                gone = replace(copy, state=CopyState.ON_DISK)
                await self._store.set_copy(report_of(node, gone, seen_at_s, is_probe=True))
        for copy in node.copies.values():
            await self._store.set_copy(report_of(node, copy, seen_at_s, is_probe=True))

    def _swap(self, *nodes: Node) -> None:
        before, after = self.snapshot, self.snapshot
        for node in nodes:
            after = after.with_node(node)
        self.snapshot = after
        for node in nodes:
            self._tell_contexts(before.nodes.get(node.name), node)

    def _tell_contexts(self, before: Node | None, node: Node) -> None:
        for weights, copy in node.copies.items():
            known = before.copies.get(weights) if before is not None else None
            is_old = known is not None and (known.state, known.num_ctx) == (copy.state, copy.num_ctx)
            if copy.state is CopyState.READY and copy.num_ctx and not is_old:
                self.on_context(copy.keys)
