"""What it costs a call to be seen: counted, logged, traced; and a scrape of a large pool. CPU of all threads."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence

import uvloop
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from router.errors import Outcome
from router.fleet.node import Copy, CopyState, DiskModel, Health, Node, NodeSpec
from router.fleet.snapshot import Snapshot, snapshot_of
from router.seams import Record
from router.telemetry.gauges import Sources
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.telemetry.tracing import Tracer

CALLS = 5000
TRACED_AT_ONCE = 500  # their spans have room in the exporter's queue: none is dropped
NODES = 20
MODELS = 50
ROUTES = ("chat_completions", "api_chat")
TICK_S = 0.001
HEADERS = [(b"Host", b"router"), (b"Content-Type", b"application/json"), (b"Authorization", b"Bearer x")] * 3


def telemetry(number: int) -> dict[str, float]:
    """CPU a call of each on its own, so that what is off costs what the others do not show."""
    metrics = metrics_of(fleet())
    found = {"seen_metrics": _each_us(lambda record: counted(metrics, record))}
    found["seen_log"] = _logged_us()
    for share in (0.0, 0.01, 1.0):
        found[f"seen_traced_{share * 100:g}"] = _traced_us(share, number)
    return found


def scrape(number: int) -> dict[str, float]:
    """A page of more than 10,000 series, while the loop ticks every millisecond."""
    wall_s, gap_s, series = uvloop.run(_scraped())
    return {"scrape_wall": wall_s * 1000, "scrape_gap": gap_s * 1000, "scrape_series": series}


def fleet() -> Snapshot:
    """Each model in the memory of four nodes."""
    keys = [f"model-{index}:latest" for index in range(MODELS)]
    return snapshot_of(
        _node(at, keys, [key for index, key in enumerate(keys) if index % 5 == at % 5]) for at in range(NODES)
    )


def _node(number: int, keys: Sequence[str], ready: Sequence[str]) -> Node:
    return Node(
        NodeSpec(f"gpu-{number}", "127.0.0.1", 11434, slots=4),
        health=Health.HEALTHY,
        models={key: DiskModel(key, key, f"d-{key}", f"w-{key}") for key in keys},
        copies={f"w-{key}": Copy(f"w-{key}", CopyState.READY, (key,), slots=4, num_ctx=4096) for key in ready},
        is_read=True,
    )


def metrics_of(snapshot: Snapshot) -> Metrics:
    sources = Sources(snapshot=lambda: snapshot, occupancy=dict, waiting=dict, queue_limit=lambda key: 256)
    return Metrics(sources, models_max=200)


def record_of(index: int) -> Record:
    """A stream that was served at once."""
    return Record(
        f"request-{index}",
        ROUTES[index % len(ROUTES)],
        0.0,
        time.time(),
        model=f"model-{index % MODELS}:latest",
        node=f"gpu-{index % NODES}",
        attempts=1,
        status=200,
        reason="affinity",
        affinity="hit",
        is_stream=True,
        body_bytes=900,
        first_token_s=0.2,
        duration_s=2.0,
        node_s=1.9,
        input_tokens=200,
        output_tokens=120,
    )


def counted(metrics: Metrics, record: Record) -> None:
    """All that a call tells."""
    metrics.forwarding(record.route, record.model, 1)
    metrics.forwarding(record.route, record.model, -1)
    metrics.attempt_ended(record.node, record.model, "ok", record.node_s)
    metrics.observe(record)


def _each_us(see: Callable[[Record], None], calls: int = CALLS) -> float:
    records = [record_of(index) for index in range(calls)]
    began_ns = time.process_time_ns()
    for record in records:
        see(record)
    return (time.process_time_ns() - began_ns) / 1000 / calls


def _logged_us() -> float:
    """To the end of the thread that writes."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logs = Logs(log_format="json", level="info", descriptor=nowhere)
    records = [record_of(index) for index in range(CALLS)]
    began_ns = time.process_time_ns()
    logs.open()
    for record in records:
        logs.observe(record)
    logs.close()
    os.close(nowhere)
    return (time.process_time_ns() - began_ns) / 1000 / CALLS


class _Discard(SpanExporter):
    """Encodes as for a collector, and sends nothing."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


def _traced_us(share: float, seed: int) -> float:
    """Ids, what the pipeline notes, the spans, and their encoding in the exporter's thread."""
    rng = random.Random(seed)
    return sum(_some_traced_us(share, rng) for _ in range(CALLS // TRACED_AT_ONCE)) * TRACED_AT_ONCE / CALLS


def _some_traced_us(share: float, rng: random.Random) -> float:
    tracer = Tracer(_Discard(), sample_ratio=share, service_name="bench", rng=rng)

    def see(record: Record) -> None:
        trace = record.trace = tracer.begin("/v1/chat/completions", HEADERS)
        trace.waits.append((0.001, 0.001))
        trace.next_hop(record.node, "127.0.0.1", 11434, record.model)
        tracer.observe(record)

    used_us = _each_us(see, TRACED_AT_ONCE)
    began_ns = time.process_time_ns()
    tracer.close()
    return used_us + (time.process_time_ns() - began_ns) / 1000 / TRACED_AT_ONCE


async def _scraped() -> tuple[float, float, float]:
    """Seconds, the longest that the loop was stopped, and how many series there were."""
    metrics = metrics_of(fleet())
    for index in range(MODELS * NODES * len(ROUTES)):
        for outcome in (Outcome.OK, Outcome.CANCELLED):
            record = record_of(index)
            record.node, record.outcome = f"gpu-{index // (MODELS * len(ROUTES))}", outcome
            counted(metrics, record)
    gap_s = 0.0

    async def tick() -> None:
        nonlocal gap_s
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(TICK_S)
            gap_s = max(gap_s, time.perf_counter() - began_s - TICK_S)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(10 * TICK_S)
    gap_s = 0.0
    began_s = time.perf_counter()
    page = b"".join([piece async for piece in metrics.render()])
    wall_s = time.perf_counter() - began_s
    ticking.cancel()
    return wall_s, gap_s, sum(not line.startswith(b"#") for line in page.splitlines())
