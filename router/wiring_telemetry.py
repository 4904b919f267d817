"""What the outside may see, joined to where it is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

from router import meaning
from router.control.evictions import Evictions
from router.control.keeper import FleetKeeper
from router.control.unloader import Unloader
from router.discovery.static import StaticDiscovery
from router.reload import Parts
from router.seams import Clock
from router.settings import ConfigError, Loaded, Settings
from router.settings.files import problem, read_trace_headers
from router.store.memory import MemoryStore
from router.telemetry.gauges import Sources
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.telemetry.observer import Telemetry

if TYPE_CHECKING:
    from router.telemetry.tracing import Tracer


def metrics_of(
    settings: Settings, store: MemoryStore, discovery: StaticDiscovery, logs: Logs, keeper: Callable[[], FleetKeeper]
) -> Metrics:
    sources = Sources(
        snapshot=lambda: keeper().snapshot,
        occupancy=lambda: store.occupancy,
        lines=store.lines,
        queue_limit=lambda key: store.limits.of(key),  # noqa: PLW0108 - the limits may be set anew
        circuits=lambda: keeper().circuits(),
        discovered=lambda: {discovery.source: len(discovery.nodes)},
        log_lines_dropped=lambda: logs.dropped,
    )
    told = settings.metrics
    named = meaning.named_models(settings)
    teams_max = told.teams_max if told.teams else None
    return Metrics(sources, models_max=told.models_max, named=named, teams_max=teams_max)


def observer_of(metrics: Metrics, logs: Logs, tracer: Tracer | None) -> Telemetry:
    return Telemetry(metrics, logs, tracer.observe if tracer is not None else None)


@asynccontextmanager
async def tracing(loaded: Loaded, rng: Random) -> AsyncIterator[Tracer | None]:
    """None, and no OpenTelemetry in this process, without an endpoint. Refuses with ConfigError."""
    told = loaded.settings.tracing
    if told.endpoint is None:
        yield None
        return
    headers = {name.decode(): value.decode() for name, value in read_trace_headers(loaded)}
    try:
        from router.telemetry.tracing import Tracer, exporter_to  # noqa: PLC0415 - 30 MB that most need not have
    except ImportError as error:
        text = f"needs the extra 'tracing': pip install 'ollama-router[tracing]' ({error})"
        raise ConfigError([problem(loaded, ("tracing", "endpoint"), text)]) from None
    exporter = exporter_to(told.endpoint, headers)
    tracer = Tracer(exporter, sample_ratio=told.sample_ratio, service_name=told.service_name, rng=rng)
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)


def count_evictions(parts: Parts, unloader: Unloader, clock: Clock) -> None:
    def ours() -> set[tuple[str, str]]:
        return {*parts.placer.leaving, *parts.placer.loading.items(), *unloader.unloading}

    parts.keeper.on_swap = Evictions(parts.metrics.copy_evicted, ours, clock).saw
