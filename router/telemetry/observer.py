"""The pipeline's observer: each call is told to the metrics and to the log."""

from __future__ import annotations

from router.seams import Record
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics


class Telemetry:
    """An `Observer` over both. Costs no wait and no I/O on the caller's side."""

    def __init__(self, metrics: Metrics, logs: Logs) -> None:
        self._metrics = metrics
        self._logs = logs
        self.forwarding = metrics.forwarding
        self.attempt_ended = metrics.attempt_ended

    def __repr__(self) -> str:
        return f"<Telemetry {self._metrics!r} | {self._logs!r}>"

    def observe(self, record: Record) -> None:
        self._metrics.observe(record)
        self._logs.observe(record)
