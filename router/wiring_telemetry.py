"""What the outside may see, joined to where it is known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING

from router.lifecycle import Phase
from router.reload import Parts
from router.server.listen import Spot, listen_pages
from router.server.probes import Probes
from router.settings import ConfigError, Loaded
from router.settings.files import problem, read_trace_headers
from router.settings.tracing import TraceProtocol
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.telemetry.observer import Telemetry

if TYPE_CHECKING:
    from router.telemetry.tracing import Tracer


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
        from router.telemetry import tracing as told_to  # noqa: PLC0415 - 30 MB that most need not have
    except ImportError as error:
        text = f"needs the extra 'tracing': pip install 'ollama-router[tracing]' ({error})"
        raise ConfigError([problem(loaded, ("tracing", "endpoint"), text)]) from None
    make = told_to.json_exporter_to if told.protocol is TraceProtocol.HTTP_JSON else told_to.exporter_to
    exporter = make(told.endpoint, headers)
    tracer = told_to.Tracer(exporter, sample_ratio=told.sample_ratio, service_name=told.service_name, rng=rng)
    try:
        yield tracer
    finally:
        await asyncio.to_thread(tracer.close)


async def listen_probes(spot: Spot, parts: Parts) -> tuple[int, Callable[[], Awaitable[None]]]:
    """Metrics and health: the port, and what closes it."""
    checks = {
        "discovery": parts.prober.has_discovered.is_set,
        "nodes_asked": parts.prober.has_looked.is_set,
        "serving": lambda: parts.lifecycle.phase is Phase.SERVING,
    }
    return await listen_pages(Probes(parts.metrics, checks).application(), spot)
