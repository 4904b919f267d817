"""The pipeline's observer: each call is told to the metrics, to the log and, where they are wanted, to the traces."""

from __future__ import annotations

from collections.abc import Callable

from router.seams import Record
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics


class Telemetry:
    """An `Observer` over all. Costs no wait and no I/O on the caller's side."""

    def __init__(self, metrics: Metrics, logs: Logs, tell_trace: Callable[[Record], None] | None = None) -> None:
        """`tell_trace` is None where tracing is off."""
        self._metrics = metrics
        self._logs = logs
        self._tell_trace = tell_trace
        self.forwarding = metrics.forwarding
        self.attempt_ended = metrics.attempt_ended

    def __repr__(self) -> str:
        return f"<Telemetry {self._metrics!r} | {self._logs!r}>"

    def observe(self, record: Record) -> None:
        self._metrics.observe(record)
        self._logs.observe(record)
        if self._tell_trace is not None:
            self._tell_trace(record)
