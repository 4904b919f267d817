"""Log lines, the calls' own among them. They leave by a bounded queue and a thread: a stuck pipe never stops the loop.

What waits to be written is dropped above QUEUE_LINES and counted. Prompts and keys are in no record, so in no line.
"""

from __future__ import annotations

import json
import logging
import os
import select
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime

from router.seams import Record
from router.telemetry.repeats import Repeats

# About five seconds of one busy process, and 10 MB.
QUEUE_LINES = 10_000
# Formatting holds the interpreter: so many lines take the loop half a millisecond, then the write lets it go.
BATCH_LINES = 50
# Lines are collected for so long, so that a busy process wakes the thread 20 times a second, not for every call.
LINGER_S = 0.05
# What a reader that has stopped is waited for at the end.
CLOSE_S = 2.0
NAME_CHARS_MAX = 200  # of a model's name as the client wrote it; Ollama's own longest is 350 with the host
ERROR_CHARS_MAX = 1000

_FOREIGN_PARSERS = "aiohttp.http_exceptions"
_BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:/@+-")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Entry = Mapping[str, object]

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class Logs:
    """Owns one file descriptor and one daemon thread, from `open` to `close`. Safe to write to from any thread."""

    def __init__(
        self,
        *,
        log_format: str,
        level: str,
        descriptor: int = 1,
        lines_max: int = QUEUE_LINES,
        worker: int | None = None,
        turn: AbstractContextManager[object] | None = None,
    ) -> None:
        """`turn` is held while lines are written, where other processes write to the same descriptor."""
        self._level = _LEVELS[level]
        self._write_entry = _as_text if log_format == "text" else _as_json
        self._descriptor = descriptor
        self._lines_max = lines_max
        self._worker = worker
        self._turn = turn or nullcontext()
        self._waiting: deque[Record | Entry] = deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._has_reader = True
        self._root: logging.Logger | None = None  # once it was taken over
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<Logs {len(self._waiting)} waiting | {self.dropped} dropped>"

    def open(self) -> None:
        self._thread.start()

    def close(self, wait_s: float = CLOSE_S) -> None:
        """Writes what waits, for at most `wait_s`; what a stuck pipe does not take by then is lost."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(wait_s)

    def observe(self, record: Record) -> None:
        """The record must not change any more: it becomes a line later, in the thread."""
        if self._level <= logging.INFO:
            self.put(record)

    @property
    def level(self) -> int:
        """As `logging` numbers it."""
        return self._level

    def set_level(self, level: str) -> None:
        self._level = _LEVELS[level]
        if self._root is not None:
            self._root.setLevel(self._level)

    def put(self, item: Record | Entry) -> None:
        if len(self._waiting) >= self._lines_max or not self._has_reader:
            self._drop(1)
            return
        self._waiting.append(item)
        if not self._wake.is_set():
            self._wake.set()

    def take_over(self, root: logging.Logger | None = None) -> None:
        """From here on what the process logs by `logging` goes the same way, in the same format."""
        self._root = root = root or logging.getLogger()
        root.handlers[:] = [_Handler(self)]
        root.setLevel(self._level)
        logging.getLogger("aiohttp.access").disabled = True
        logging.getLogger("aiohttp.server").addFilter(_quiet_parser_error)

    def _drop(self, count: int) -> None:
        with self._counting:
            self.dropped += count

    # the thread

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._closing.wait(LINGER_S)
            self._wake.clear()
            while self._waiting:
                self._write_batch()
            if self._closing.is_set() and not self._waiting:
                return

    def _write_batch(self) -> None:
        lines: list[str] = []
        while self._waiting and len(lines) < BATCH_LINES:
            item = self._waiting.popleft()
            entry = call_entry(item) if isinstance(item, Record) else item
            lines.append(self._write_entry(entry if self._worker is None else {**entry, "worker": self._worker}))
        text = "\n".join([*lines, ""])
        with self._turn:
            is_sent = self._send(text.encode("utf-8", "backslashreplace"))
        if not is_sent:
            self._drop(len(lines))

    def _send(self, data: bytes) -> bool:
        rest = memoryview(data)
        while rest and self._has_reader:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # a descriptor that somebody has made non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError:  # the reader is gone; nobody is left to tell
                self._has_reader = False
        return self._has_reader


class _Handler(logging.Handler):
    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        left_out = self._repeats.left_out_before(record)
        if left_out is not None:
            self._logs.put(log_entry(record, left_out))

    def handleError(self, record: logging.LogRecord) -> None:
        """Never reached: `emit` only appends. Overridden since the default writes to stderr and may wait there."""


def _quiet_parser_error(record: logging.LogRecord) -> bool:
    """What a client sent that is no HTTP is a client's affair: at debug only, and without a traceback."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None or not any(kind.__module__ == _FOREIGN_PARSERS for kind in type(error).__mro__):
        return True
    record.msg, record.args = f"{record.getMessage()}: {type(error).__name__}", ()
    record.levelno, record.levelname, record.exc_info = logging.DEBUG, "DEBUG", None
    return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


def call_entry(record: Record) -> Entry:
    """The first fields stand in every line, null where there is nothing to say; the rest only where there is."""
    entry: dict[str, object] = {
        "ts": _iso(record.arrived_wall_s + record.duration_s),
        "level": "info",
        "event": "call",
        "request_id": record.request_id,
        "route": record.route,
        "model": record.model or None,
        "model_requested": record.model_asked[:NAME_CHARS_MAX] or None,
        "node": record.node or None,
        "status": record.status,
        "outcome": record.outcome.value,
        "stream": record.is_stream,
        "queue_ms": _ms(record.queued_s),
        "ttft_ms": _ms(record.ttft_s),
        "duration_ms": _ms(record.duration_s),
        "input_tokens": record.input_tokens,
        "output_tokens": record.output_tokens,
        "attempts": record.attempts,
        "team": record.team or None,
    }
    optional = {
        "reason": record.reason,
        "rejection": record.rejection.value if record.rejection is not None else "",
        "phase": record.phase_left,
        "cold": record.is_cold,
        "retries": [f"{node} {reason}" for node, reason in record.retries],
        "error": record.error[:ERROR_CHARS_MAX],
        "trace_id": record.trace.trace_id if record.trace is not None else "",
        "span_id": record.trace.span_id if record.trace is not None else "",
    }
    entry.update((name, value) for name, value in optional.items() if value)
    return entry


def log_entry(record: logging.LogRecord, left_out: int = 0) -> Entry:
    entry: dict[str, object] = {
        "ts": _iso(record.created),
        "level": record.levelname.lower(),
        "event": "log",
        "logger": record.name,
        "message": _message(record),
    }
    if left_out:
        entry["left_out"] = left_out  # lines like this one, since the last
    if record.exc_info and record.exc_info[0] is not None:
        entry["exception"] = logging.Formatter().formatException(record.exc_info)
    return entry


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):  # arguments that do not fit their format: a bug, but no reason to stop
        return f"{record.msg} {record.args!r}"


def _as_json(entry: Entry) -> str:
    return _encode(entry)


def _as_text(entry: Entry) -> str:
    """`2026-11-23T06:01:06.123Z INFO call route=chat_completions status=200`"""
    fields = dict(entry)
    head = f"{fields.pop('ts')} {str(fields.pop('level')).upper():<7}"
    event, message, trace = fields.pop("event"), fields.pop("message", None), fields.pop("exception", None)
    pairs = " ".join(f"{name}={_word(value)}" for name, value in fields.items() if value not in (None, False))
    worker = f"[{fields['worker']}]" if "worker" in fields else ""
    told = f"{fields.get('logger')}{worker}: {_one_line(str(message))}"
    line = f"{head} {event} {pairs}" if message is None else f"{head} {told}"
    if "left_out" in fields:
        line += f" (and {fields['left_out']} more like it)"
    return line if trace is None else f"{line}\n{trace}"


def _word(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text and _BARE.issuperset(text) else json.dumps(text, ensure_ascii=not text.isprintable())


def _one_line(text: str) -> str:
    """No message can pretend to be a second line."""
    return text if text.isprintable() else json.dumps(text)[1:-1]


def _iso(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
