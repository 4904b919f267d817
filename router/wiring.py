"""The one place where everything concrete is named and joined."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from random import Random

import uvloop

from router.admission import Admission
from router.control.keeper import FleetKeeper
from router.control.placer import Placer
from router.control.prober import ProbeLimits, Prober
from router.control.replicas import beat_for_ever, watch_lag
from router.discovery.static import StaticDiscovery
from router.errors import Rejection
from router.lifecycle import DrainLimits, Lifecycle, LoopDied, Loops, Phase
from router.pipeline import Pipeline
from router.policy.alias import Aliases, aliases_of
from router.policy.deadlines import Deadlines
from router.server.app import App
from router.server.buffers import Buffers
from router.server.catalog import Catalog
from router.server.client import ClientLimits
from router.server.inference import BodyLimits, Inference
from router.server.listen import ClientListener, listen_clients, listen_probes, raise_file_limit
from router.server.probes import Probes
from router.settings import NumCtxGuard, Settings, host_port, node_specs
from router.simulation.pool import SimulatedPool
from router.store.answers import Limits
from router.store.memory import MemoryStore
from router.telemetry.gauges import Sources
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.telemetry.observer import Telemetry
from router.upstream.course import RetryLimits
from router.upstream.errand import Guards
from router.upstream.node_api import HttpNodeApi
from router.upstream.pool import ConnectionPool
from router.upstream.resolver import Resolver

log = logging.getLogger("router")

# A call makes hundreds of objects and nearly no cycles: collecting every 700, the default, cost 6 % of a plain call.
YOUNG_OBJECTS = 50_000


class SystemClock:
    """The monotonic clock that the loop's timers run on, but finer: uvloop's time stands still within a turn."""

    def now_s(self) -> float:
        return time.monotonic()

    def wall_s(self) -> float:
        return time.time()


@dataclass(frozen=True, slots=True)
class Router:
    """A running router, as tests and the command line hold it."""

    settings: Settings
    port: int
    metrics_port: int
    lifecycle: Lifecycle
    loops: Loops
    pipeline: Pipeline
    keeper: FleetKeeper
    placer: Placer
    store: MemoryStore
    connections: ConnectionPool
    buffers: Buffers
    metrics: Metrics
    listener: ClientListener

    async def leave(self) -> None:
        await self.lifecycle.leave(self.pipeline, self.listener.close)
        await self.placer.finish(self.lifecycle.loads_s)


@asynccontextmanager
async def running(settings: Settings, logs: Logs, rng: Random) -> AsyncIterator[Router]:
    """Everything joined and started; on exit everything is closed, in the opposite order."""
    async with AsyncExitStack() as stack:
        core = await _core(stack, settings, logs, rng)
        lifecycle = Lifecycle(DrainLimits(settings.shutdown.drain_delay_s, settings.shutdown.stream_drain_s))
        buffers = Buffers(settings.limits.buffered_bytes)
        listener = await listen_clients(
            _app(settings, core, lifecycle, buffers),
            *host_port(settings.listen),
            _client_limits(settings),
            on_surplus=lambda: core.metrics.refused(Rejection.CONNECTIONS),
        )
        stack.push_async_callback(listener.shutdown)
        stack.push_async_callback(listener.close)
        checks = {
            "discovery": core.prober.has_discovered.is_set,
            "nodes_asked": core.prober.has_looked.is_set,
            "serving": lambda: lifecycle.phase is Phase.SERVING,
        }
        metrics_port, close_probes = await listen_probes(
            Probes(core.metrics, checks), *host_port(settings.metrics_listen)
        )
        stack.push_async_callback(close_probes)
        await core.loops.first_of(core.prober.has_discovered)
        lifecycle.phase = Phase.SERVING
        yield Router(
            settings=settings,
            port=listener.port,
            metrics_port=metrics_port,
            lifecycle=lifecycle,
            loops=core.loops,
            pipeline=core.pipeline,
            keeper=core.keeper,
            placer=core.placer,
            store=core.store,
            connections=core.connections,
            buffers=buffers,
            metrics=core.metrics,
            listener=listener,
        )


@dataclass(frozen=True, slots=True)
class _Core:
    """All that serves calls but for the sockets."""

    aliases: Aliases
    store: MemoryStore
    keeper: FleetKeeper
    connections: ConnectionPool
    metrics: Metrics
    pipeline: Pipeline
    prober: Prober
    placer: Placer
    loops: Loops


async def _core(stack: AsyncExitStack, settings: Settings, logs: Logs, rng: Random) -> _Core:
    clock = SystemClock()
    limits = _limits(settings)
    aliases = aliases_of(settings.aliases)
    store = MemoryStore(clock, rng, limits)
    resolver = Resolver()
    connections = ConnectionPool(connect_s=settings.timeouts.connect_s, resolve=resolver.addresses)
    stack.push_async_callback(connections.close)
    # The keeper comes after what it tells: metrics look it up at the scrape.
    metrics = _metrics(settings, store, limits, logs, lambda: keeper)
    keeper = FleetKeeper(store, clock, interval_s=settings.probe.interval_s, on_circuit=metrics.circuit_changed)
    api = await stack.enter_async_context(
        HttpNodeApi(clock, connect_s=settings.timeouts.connect_s, timeout_s=settings.probe.timeout_s)
    )
    prober = Prober(
        api=api,
        keeper=keeper,
        store=store,
        clock=clock,
        rng=rng,
        limits=ProbeLimits(settings.probe.interval_s, settings.probe.timeout_s, settings.probe.concurrency),
        resolver=resolver,
        connections=connections,
        observe=metrics.probe_ended,
    )
    stack.push_async_callback(prober.close)
    placer = Placer(
        api=api, keeper=keeper, store=store, clock=clock, mode=settings.placement.mode, observe=metrics.load_ended
    )
    pipeline = await _pipeline(settings, store, keeper, connections, aliases, Telemetry(metrics, logs), clock, rng)
    loops = Loops()
    stack.push_async_callback(loops.close)
    loops.start("discovery", prober.follow(StaticDiscovery(node_specs(settings))))
    loops.start("placer", placer.run())
    loops.start("heartbeat", beat_for_ever(store))
    loops.start("loop lag", watch_lag(metrics.loop_lagged))
    return _Core(aliases, store, keeper, connections, metrics, pipeline, prober, placer, loops)


async def _pipeline(  # noqa: PLR0917 - joined here and nowhere else
    settings: Settings,
    store: MemoryStore,
    keeper: FleetKeeper,
    connections: ConnectionPool,
    aliases: Aliases,
    observer: Telemetry,
    clock: SystemClock,
    rng: Random,
) -> Pipeline:
    admission = Admission(store, keeper)
    await admission.open()
    keeper.on_context = admission.context_known
    return Pipeline(
        pool_name=settings.pool,
        fleet=keeper,
        store=store,
        admission=admission,
        connections=connections,
        aliases=aliases,
        observer=observer,
        clock=clock,
        rng=rng,
        deadlines=_deadlines(settings),
        retries=RetryLimits(settings.retry.attempts, settings.retry.budget),
        guards=Guards(settings.guard.num_ctx is NumCtxGuard.PASS, settings.guard.keep_alive_max),
    )


def _limits(settings: Settings) -> Limits:
    own = {key: line.max_waiting for key, line in settings.line.models.items() if line.max_waiting is not None}
    return Limits(settings.line.max_waiting_per_model, own)


def _deadlines(settings: Settings) -> Deadlines:
    timeouts, line = settings.timeouts, settings.line
    return Deadlines(
        timeouts.first_byte_s,
        timeouts.plain_s,
        timeouts.idle_s,
        line.max_wait_s,
        {key: own.max_wait_s for key, own in line.models.items() if own.max_wait_s is not None},
        line.comment_after_s,
        line.comment_every_s,
    )


def _app(settings: Settings, core: _Core, lifecycle: Lifecycle, buffers: Buffers) -> App:
    fresh_id = _ids()
    inference = Inference(
        core.pipeline,
        clock=SystemClock(),
        buffers=buffers,
        limits=BodyLimits(settings.limits.body_bytes, settings.client.body_s),
        stall_s=settings.client.client_stall_s,
        fresh_id=fresh_id,
        is_leaving=lambda: lifecycle.is_leaving,
    )
    return App(inference, Catalog(lambda: core.keeper.snapshot, core.aliases), fresh_id)


def serve(settings: Settings) -> int:
    """Runs until SIGTERM or SIGINT, then leaves well. The exit code."""
    return uvloop.run(_serve(settings))


def demo(settings: Settings, nodes: int, seed: int) -> int:
    """Simulated nodes in this process, and a router in front of them."""
    return uvloop.run(_demo(settings, nodes, seed))


async def _demo(settings: Settings, nodes: int, seed: int) -> int:
    async with SimulatedPool(nodes=nodes, seed=seed) as pool:
        simulated = [{"url": node.url, "name": node.name} for node in pool.nodes]
        return await _serve(Settings(**{**settings.model_dump(), "nodes": simulated}))


async def _serve(settings: Settings) -> int:
    logs = Logs(log_format=settings.log.format, level=settings.log.level)
    logs.open()
    logs.take_over()
    needed, there_are = raise_file_limit(settings.client.connections)
    if there_are < needed:
        log.warning("%d file descriptors are too few for client.connections: %d are needed", there_are, needed)
    try:
        async with running(settings, logs, Random()) as router:
            log.info(
                "serving on %s, metrics and health on %s, %d nodes: %s",
                settings.listen,
                settings.metrics_listen,
                len(settings.nodes),
                ", ".join(node.url for node in settings.nodes),
            )
            # What stands now stands until the end: the collector need not walk it during a stream.
            gc.collect()
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
            try:
                await _until_told(router.loops)
            finally:
                # Also without one of its loops: streams need none of them, and end well.
                await router.leave()
        log.info("left well")
    except LoopDied:
        return 1
    finally:
        logs.close()
    return 0


async def _until_told(loops: Loops) -> None:
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        await loops.first_of(told)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            # A second signal ends the process at once, as anybody who presses Ctrl-C twice expects.
            loop.remove_signal_handler(number)


def _metrics(
    settings: Settings, store: MemoryStore, limits: Limits, logs: Logs, keeper: Callable[[], FleetKeeper]
) -> Metrics:
    sources = Sources(
        snapshot=lambda: keeper().snapshot,
        occupancy=lambda: store.occupancy,
        lines=store.lines,
        queue_limit=limits.of,
        circuits=lambda: keeper().circuits(),
        discovered=lambda: {"static": len(settings.nodes)},
        log_lines_dropped=lambda: logs.dropped,
    )
    named = {
        *settings.aliases.values(),
        *settings.line.models,
        *(key for node in settings.nodes for key in node.models),
    }
    return Metrics(sources, models_max=settings.metrics.models_max, named=named)


def _client_limits(settings: Settings) -> ClientLimits:
    client = settings.client
    return ClientLimits(
        header_bytes=client.header_bytes,
        header_s=client.header_s,
        keep_alive_s=client.keep_alive_s,
        connections=client.connections,
        stall_s=client.client_stall_s,
        stream_buffer_bytes=settings.limits.stream_buffer_bytes,
    )


def _ids() -> Callable[[], str]:
    """Ids that never repeat: this start's own prefix, and a count."""
    prefix = secrets.token_hex(6)
    count = itertools.count(1)
    return lambda: f"{prefix}-{next(count):x}"
