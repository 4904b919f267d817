"""The one place where everything concrete is named and joined."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING

from router import meaning
from router.admission import Admission
from router.control.alias_watch import watch_aliases
from router.control.config import POLL_S, ConfigWatch, Digest, Files
from router.control.keeper import FleetKeeper
from router.control.placer import Placer
from router.control.prober import Prober
from router.control.replicas import beat_for_ever, watch_lag
from router.control.slots import SlotLearner
from router.control.unloader import Unloader
from router.control.watch import Watch
from router.lifecycle import Lifecycle, Loops, Phase
from router.pipeline import Pipeline
from router.reload import Parts, Prepared, Preparer, Reloader, files_of
from router.server.app import App, fresh_ids
from router.server.buffers import Buffers
from router.server.catalog import Catalog
from router.server.inference import Inference
from router.server.listen import Berth, ClientListener
from router.server.pages import Pages
from router.server.show import NODE_S, QUESTIONS_MAX, Shows
from router.server.tls import ListenerTls
from router.settings import Loaded, Origin, Settings
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.telemetry.observer import Telemetry
from router.upstream.access import AccessBook
from router.upstream.node_api import HttpNodeApi
from router.upstream.pool import ConnectionPool
from router.upstream.resolver import Resolver
from router.wiring_admin import listen_admin
from router.wiring_clients import look_first, open_to_clients
from router.wiring_discovery import joined_discovery, nodes_expected
from router.wiring_metrics import metrics_of
from router.wiring_sharing import start_sharing
from router.wiring_store import make_store
from router.wiring_telemetry import listen_probes, observer_of, tracing

if TYPE_CHECKING:
    from router.store.either import PoolStore
    from router.telemetry.tracing import Tracer

log = logging.getLogger("router")


class SystemClock:
    """The monotonic clock that the loop's timers run on, but finer: uvloop's time stands still within a turn."""

    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


@dataclass(frozen=True, slots=True)
class Rereading:
    """How a running router learns of another configuration. `asked` is set by whoever wants it read at once."""

    origin: Origin
    asked: asyncio.Event
    poll_s: float = POLL_S
    seen: Mapping[str, Digest] = field(default_factory=dict)  # files as they were before they were read


@dataclass(frozen=True, slots=True)
class Router:
    """A running router, as tests and the command line hold it."""

    port: int
    metrics_port: int
    admin_port: int
    lifecycle: Lifecycle
    loops: Loops
    pipeline: Pipeline
    keeper: FleetKeeper
    placer: Placer
    prober: Prober
    store: PoolStore
    connections: ConnectionPool
    buffers: Buffers
    metrics: Metrics
    listener: ClientListener
    reloader: Reloader

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self.reloader.settings

    async def leave(self) -> None:
        await self.lifecycle.leave(self.pipeline, self.listener.close)
        await self.placer.finish(self.lifecycle.loads_s)


@asynccontextmanager
async def running(
    given: Settings | Loaded, logs: Logs, rng: Random, rereading: Rereading | None = None, worker: Berth | None = None
) -> AsyncIterator[Router]:
    """Everything joined and started; on exit everything is closed, in the opposite order.

    Refuses with ConfigError what is wrong in the files that settings name.
    """
    loaded = given if isinstance(given, Loaded) else Loaded(given)
    rereading = rereading or Rereading(Origin(overrides=loaded.settings.model_dump()), asyncio.Event())
    # Before they are read: what changes from here on is seen as a change.
    seen = {**Files().look(files_of(rereading.origin, loaded.settings)), **rereading.seen}
    preparer = Preparer()
    prepared = preparer.prepare(loaded)
    async with AsyncExitStack() as stack:
        tracer = await stack.enter_async_context(tracing(loaded, rng))
        parts, loops = await _parts(stack, prepared, logs, rng, tracer)
        doors = worker.doors if worker is not None else meaning.doors(prepared.settings)
        if worker is not None:
            await look_first(worker, parts, loops)
        pages = await _pages(stack, prepared.settings, parts)
        app = App(parts.inference, pages, fresh_ids(), clock=SystemClock(), on_page=parts.metrics.page_answered)
        nodes = nodes_expected(prepared.settings)
        listener = await open_to_clients(stack, app, prepared.settings, doors, parts, nodes=nodes)
        metrics_port, close_probes = await listen_probes(doors.metrics, parts)
        stack.push_async_callback(close_probes)
        reloader = Reloader(rereading.origin, prepared, preparer, parts)
        admin_port, close_admin = await listen_admin(doors.admin, reloader, parts, SystemClock().now_s)
        stack.push_async_callback(close_admin)
        watch = ConfigWatch(reloader.files, reloader.reload, rereading.asked, seen=seen, poll_s=rereading.poll_s)
        reloader.on_named = watch.note
        loops.start("configuration", watch.run())
        await loops.first_of(parts.prober.has_discovered)
        parts.lifecycle.phase = Phase.SERVING
        yield Router(
            port=listener.port,
            metrics_port=metrics_port,
            admin_port=admin_port,
            lifecycle=parts.lifecycle,
            loops=loops,
            pipeline=parts.pipeline,
            keeper=parts.keeper,
            placer=parts.placer,
            prober=parts.prober,
            store=parts.store,
            connections=parts.connections,
            buffers=parts.buffers,
            metrics=parts.metrics,
            listener=listener,
            reloader=reloader,
        )


async def _parts(
    stack: AsyncExitStack, prepared: Prepared, logs: Logs, rng: Random, tracer: Tracer | None
) -> tuple[Parts, Loops]:
    """All that serves calls but for the sockets, and the loops that keep it fresh."""
    settings, clock, resolver, access = prepared.settings, SystemClock(), Resolver(), AccessBook()
    store = make_store(stack, prepared, clock, rng, lambda *trip: metrics.redis_asked(*trip))  # noqa: PLW0108 - they come later
    access.replace(prepared.accesses)
    connections = ConnectionPool(connect_s=settings.timeouts.connect_s, resolve=resolver.addresses, access=access.of)
    stack.push_async_callback(connections.close)
    # The keeper comes after what it tells, and discovery's sources after metrics: these look them up at the scrape.
    metrics = metrics_of(settings, store, lambda: discovery, logs, lambda: keeper, lambda: placer, lambda: parts.watch)
    discovery = joined_discovery(prepared, metrics, rng)
    keeper = FleetKeeper(
        store,
        clock,
        interval_s=settings.probe.interval_s,
        on_circuit=metrics.circuit_changed,
        cloud_slots=meaning.cloud_slots(settings),
    )
    timeouts, probe_s = settings.timeouts, settings.probe.timeout_s
    api = HttpNodeApi(clock, connect_s=timeouts.connect_s, timeout_s=probe_s, access=access.of)
    await stack.enter_async_context(api)
    prober = Prober(
        api=api,
        keeper=keeper,
        store=store,
        clock=clock,
        rng=rng,
        limits=meaning.probe_limits(settings),
        resolver=resolver,
        connections=connections,
        observe=metrics.probe_ended,
    )
    stack.push_async_callback(prober.close)
    placer = Placer(
        api=api, keeper=keeper, store=store, clock=clock, mode=settings.placement.mode, observe=metrics.load_ended
    )
    placer.declarations.declared = meaning.declarations(settings)
    pipeline = await _pipeline(prepared, store, keeper, connections, observer_of(metrics, logs, tracer), clock, rng)
    lifecycle, buffers = Lifecycle(meaning.drain_limits(settings)), Buffers(settings.limits.buffered_bytes)
    parts = Parts(
        access=access,
        api=api,
        buffers=buffers,
        connections=connections,
        discovery=discovery,
        inference=_inference(settings, pipeline, clock, lifecycle, buffers, tracer),
        keeper=keeper,
        lifecycle=lifecycle,
        logs=logs,
        metrics=metrics,
        pipeline=pipeline,
        placer=placer,
        prober=prober,
        store=store,
        tls=ListenerTls(prepared.serving) if prepared.serving is not None else None,
        slots=SlotLearner(keeper, store, clock),
        watch=Watch(keeper, store, clock, recent=placer.recent, is_leading=lambda: placer.is_leading, counts=metrics),
    )
    return parts, _loops(stack, parts)


def _loops(stack: AsyncExitStack, parts: Parts) -> Loops:
    loops = Loops()
    stack.push_async_callback(loops.close)
    for name, work in parts.store.loops().items():
        loops.start(name, work)
    start_sharing(loops, parts, SystemClock())
    loops.start("discovery", parts.prober.follow(parts.discovery))
    loops.start("placer", parts.placer.run())
    placer = parts.placer
    unloader = Unloader(
        parts.api,
        parts.keeper,
        parts.store,
        lambda: placer.mode,
        declared=lambda: placer.declarations.holds.declared,
        on_unload=parts.watch.unloaded,
    )
    parts.keeper.on_ran = parts.slots.ended
    placer.declarations.has_looked = parts.prober.has_looked.is_set
    loops.start("watch", parts.watch.run())
    loops.start("slots", parts.slots.run())
    parts.keeper.on_unload = unloader.want
    loops.start("unloader", unloader.run())
    loops.start("heartbeat", beat_for_ever(parts.store))
    loops.start("alias watch", watch_aliases(lambda: parts.keeper.snapshot, lambda: parts.pipeline.rules.aliases))
    loops.start("loop lag", watch_lag(parts.metrics.loop_lagged))
    return loops


async def _pipeline(  # noqa: PLR0917 - joined here and nowhere else
    prepared: Prepared,
    store: PoolStore,
    keeper: FleetKeeper,
    connections: ConnectionPool,
    observer: Telemetry,
    clock: SystemClock,
    rng: Random,
) -> Pipeline:
    admission = Admission(store, keeper)
    await admission.open()
    keeper.on_context = admission.context_known
    return Pipeline(
        pool_name=prepared.settings.pool,
        fleet=keeper,
        store=store,
        admission=admission,
        connections=connections,
        observer=observer,
        clock=clock,
        rng=rng,
        rules=prepared.rules,
    )


def _inference(  # noqa: PLR0917 - as above
    settings: Settings,
    pipeline: Pipeline,
    clock: SystemClock,
    lifecycle: Lifecycle,
    buffers: Buffers,
    tracer: Tracer | None,
) -> Inference:
    return Inference(
        pipeline,
        clock=clock,
        buffers=buffers,
        limits=meaning.body_limits(settings),
        stall_s=settings.client.client_stall_s,
        fresh_id=fresh_ids(),
        is_leaving=lambda: lifecycle.is_leaving,
        begin_trace=tracer.begin if tracer is not None else None,
    )


async def _pages(stack: AsyncExitStack, settings: Settings, parts: Parts) -> Pages:
    keeper, pipeline = parts.keeper, parts.pipeline
    catalog = Catalog(lambda: keeper.snapshot, lambda: pipeline.rules.aliases)
    # Connections of their own: a crowd that asks about models must not make probes wait, which would take nodes down.
    connect_s, access = settings.timeouts.connect_s, parts.access.of
    api = HttpNodeApi(SystemClock(), connect_s=connect_s, timeout_s=NODE_S, per_node=QUESTIONS_MAX, access=access)
    await stack.enter_async_context(api)

    def has_cloud() -> bool:
        return pipeline.rules.reach.has_cloud

    shows = Shows(api, keeper.bodies, catalog, lambda: keeper.snapshot, has_cloud)
    stack.push_async_callback(shows.close)
    return Pages(
        catalog,
        shows,
        access=lambda: pipeline.rules.access,
        allowed=lambda: pipeline.rules.origins,
        has_cloud=has_cloud,
        is_full=lambda: parts.buffers.is_full,
        on_refused=parts.metrics.refused,
    )
