"""Traces by OTLP over HTTP. Imported only where tracing is on: without it nobody pays for OpenTelemetry.

A call's spans are made when it is over, of its record, with the times that stand there; while it runs only ids are
drawn. Export has a thread and a bounded queue of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from router import __version__
from router.errors import Outcome
from router.seams import Record
from router.telemetry import trace_names as names
from router.telemetry.otlp_json import JsonSpanExporter
from router.wire.headers import Pair
from router.wire.trace import Hop, Trace, is_drawn, parent_of

QUEUE_SPANS = 4096  # a second of one busy process, every call sampled; more is dropped, and OpenTelemetry's log says so
BATCH_SPANS = 512
BATCH_EVERY_MS = 2000
EXPORT_S = 5.0  # also what a dead collector can hold up the end of the process

_SCOPE = InstrumentationScope("ollama-router", __version__, names.SCHEMA_URL)
_FAILED = frozenset((Outcome.UPSTREAM_ERROR, Outcome.UPSTREAM_TRUNCATED, Outcome.TIMEOUT, Outcome.DRAINED))

Attributes = dict[str, str | bool | int | float]


class Tracer:
    """Owns the exporter, with its thread, from making to `close`. The caller's decision counts, else `sample_ratio`."""

    def __init__(self, exporter: SpanExporter, *, sample_ratio: float, service_name: str, rng: Random) -> None:
        self._ratio = sample_ratio
        self._bits = rng.getrandbits
        # With what OTEL_RESOURCE_ATTRIBUTES says; by default the SDK would name the service itself.
        self._resource = Resource.create({"service.name": service_name, "service.version": __version__})
        self._processor = BatchSpanProcessor(
            exporter,
            max_queue_size=QUEUE_SPANS,
            max_export_batch_size=BATCH_SPANS,
            schedule_delay_millis=BATCH_EVERY_MS,
        )

    def __repr__(self) -> str:
        return f"<Tracer {self._ratio:g}>"

    def begin(self, path: str, headers: Sequence[Pair]) -> Trace:
        parent = parent_of(headers)
        if parent is not None:
            return Trace(
                parent.trace_id, self._id(), parent.span_id, parent.is_sampled, parent.state, self._id, path=path
            )
        trace_id = f"{self._bits(128) or 1:032x}"
        is_sampled = is_drawn(trace_id, self._ratio)
        return Trace(trace_id, self._id(), is_sampled=is_sampled, fresh_id=self._id, path=path)

    def _id(self) -> str:
        return f"{self._bits(64) or 1:016x}"

    def observe(self, record: Record) -> None:
        trace = record.trace
        if trace is not None and trace.is_sampled:
            for span in spans_of(record, trace, self._resource):
                self._processor.on_end(span)

    def close(self) -> None:
        """Sends what waits. Blocks for EXPORT_S where nobody takes it."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]


def exporter_to(endpoint: str, headers: Mapping[str, str]) -> SpanExporter:
    return OTLPSpanExporter(endpoint=endpoint, headers=headers, timeout=EXPORT_S)


def json_exporter_to(endpoint: str, headers: Mapping[str, str]) -> SpanExporter:
    return JsonSpanExporter(endpoint, headers, EXPORT_S)


def spans_of(record: Record, trace: Trace, resource: Resource) -> Iterator[ReadableSpan]:
    """Children first: that is the order in which they ended."""
    make = _Maker(record, trace, resource)
    end_s = record.arrived_s + record.duration_s
    routed_s = trace.waits[0][0] if trace.waits else end_s
    yield make.span("route", trace.fresh_id(), record.arrived_s + record.read_s, routed_s, {})
    for since_s, until_s in trace.waits:
        yield make.span("queue", trace.fresh_id(), since_s, until_s, {})
    for number, hop in enumerate(trace.hops, 1):
        yield make.attempt(number, hop, end_s)
    yield make.call(end_s)


class _Maker:
    def __init__(self, record: Record, trace: Trace, resource: Resource) -> None:
        self._record = record
        self._trace = trace
        self._resource = resource
        self._state = TraceState.from_header([trace.state.decode("latin-1")]) if trace.state else TraceState()
        self._wall_s = record.arrived_wall_s - record.arrived_s  # what to add to monotonic time
        self._own = self._context(trace.span_id)

    def call(self, end_s: float) -> ReadableSpan:
        record, trace = self._record, self._trace
        given: Attributes = {
            names.HTTP_METHOD: "POST",
            names.HTTP_ROUTE: trace.path,
            names.HTTP_STATUS: record.status,
            names.OUTCOME: record.outcome.value,
            names.REQUEST_ID: record.request_id,
            names.TEAM: record.team,
            names.NODE: record.node,
            names.REASON: record.reason,
            names.REJECTION: record.rejection.value if record.rejection is not None else "",
            names.COLD: record.is_cold,
        }
        has_failed = record.status >= 500 or record.outcome in _FAILED
        parent = self._context(trace.parent_id, is_remote=True) if trace.parent_id else None
        return self._make(
            f"POST {trace.path}",
            self._own,
            parent,
            (record.arrived_s, end_s),
            {name: value for name, value in given.items() if value != ""},
            kind=SpanKind.SERVER,
            error=(record.rejection or record.outcome).value if has_failed else "",
        )

    def attempt(self, number: int, hop: Hop, end_s: float) -> ReadableSpan:
        """Without an end of its own it was left while it connected: it ended with its call."""
        record = self._record
        operation = names.OPERATIONS[record.route]
        attributes: Attributes = {
            names.OPERATION: operation,
            names.PROVIDER: names.OLLAMA,
            names.REQUEST_MODEL: hop.model,
            names.REQUEST_STREAM: record.is_stream,
            names.SERVER_ADDRESS: hop.host,
            names.SERVER_PORT: hop.port,
            names.NODE: hop.node,
            names.ATTEMPT: number,
        }
        started_s = hop.started_s if hop.started_s is not None else end_s
        if hop.status:
            attributes[names.HTTP_STATUS] = hop.status
        if hop.first_token_s is not None:
            attributes[names.TIME_TO_FIRST_CHUNK] = hop.first_token_s - started_s
        if hop.input_tokens is not None:
            attributes[names.INPUT_TOKENS] = hop.input_tokens
        if hop.output_tokens is not None:
            attributes[names.OUTPUT_TOKENS] = hop.output_tokens
        return self.span(
            f"{operation} {hop.model}",
            hop.span_id,
            started_s,
            hop.ended_s if hop.ended_s is not None else end_s,
            attributes,
            kind=SpanKind.CLIENT,
            error=hop.error,
        )

    def span(
        self,
        name: str,
        span_id: str,
        start_s: float,
        end_s: float,
        attributes: Attributes,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        error: str = "",
    ) -> ReadableSpan:
        return self._make(name, self._context(span_id), self._own, (start_s, end_s), attributes, kind=kind, error=error)

    def _make(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        times_s: tuple[float, float],
        attributes: Attributes,
        *,
        kind: SpanKind,
        error: str,
    ) -> ReadableSpan:
        if error:
            attributes[names.ERROR_TYPE] = error
        start_s, end_s = times_s
        return ReadableSpan(
            name,
            context,
            parent,
            self._resource,
            attributes,
            kind=kind,
            status=Status(StatusCode.ERROR) if error else Status(StatusCode.UNSET),
            start_time=self._wall_ns(start_s),
            end_time=self._wall_ns(max(start_s, end_s)),
            instrumentation_scope=_SCOPE,
        )

    def _context(self, span_id: str, *, is_remote: bool = False) -> SpanContext:
        return SpanContext(
            int(self._trace.trace_id, 16), int(span_id, 16), is_remote, TraceFlags(TraceFlags.SAMPLED), self._state
        )

    def _wall_ns(self, time_s: float) -> int:
        return round((time_s + self._wall_s) * 1e9)
