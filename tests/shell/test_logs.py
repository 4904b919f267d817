"""Lines leave the process one for each call, and nobody waits for whoever reads them."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import Outcome, Rejection
from router.seams import Record, Trace
from router.telemetry.logs import ERROR_CHARS_MAX, NAME_CHARS_MAX, QUEUE_LINES, Logs

ROOT = "stands for the root logger"  # whose handlers belong to pytest


def record_of(**facts: Any) -> Record:
    return Record("req-1", "chat_completions", 5.0, 1_763_877_666.5, **facts)


class Pipe:
    """Where the lines go. `read` closes the writing end and takes all that came."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        self._is_open = {self.reading, self.writing}

    def close(self, *ends: int) -> None:
        for end in ends or (self.reading, self.writing):
            if end in self._is_open:
                self._is_open.discard(end)
                os.close(end)

    def read(self) -> list[str]:
        self.close(self.writing)
        with os.fdopen(os.dup(self.reading), encoding="utf-8") as file:
            return file.read().splitlines()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def lines_of(
    pipe: Pipe, *items: Record | logging.LogRecord, log_format: str = "json", level: str = "info"
) -> list[str]:
    logs = Logs(log_format=log_format, level=level, descriptor=pipe.writing)
    logger = logging.getLogger(ROOT)
    logger.propagate = False
    logs.take_over(logger)
    logs.open()
    for item in items:
        if isinstance(item, Record):
            logs.observe(item)
        else:
            logger.handle(item)
    logs.close()
    return pipe.read()


@pytest.fixture(autouse=True)
def _aiohttp_loggers() -> Iterator[None]:
    """As they were: `take_over` is meant for a whole process."""
    server, access = logging.getLogger("aiohttp.server"), logging.getLogger("aiohttp.access")
    before = (list(server.filters), access.disabled)
    yield
    logging.getLogger(ROOT).handlers.clear()
    server.filters[:], access.disabled = before


# --- a call's line


def test_a_call_is_one_line_of_json(pipe: Pipe) -> None:
    record = record_of(
        model="qwen3:8b",
        model_asked="gpt-4",
        node="gpu-1",
        status=200,
        attempts=1,
        is_stream=True,
        queued_s=0.25,
        first_token_s=0.5,
        duration_s=2.0,
        input_tokens=30,
        output_tokens=200,
        reason="affinity",
    )
    (line,) = lines_of(pipe, record)
    assert json.loads(line) == {
        "ts": "2025-11-23T06:01:08.500Z",
        "level": "info",
        "event": "call",
        "request_id": "req-1",
        "route": "chat_completions",
        "model": "qwen3:8b",
        "model_requested": "gpt-4",
        "node": "gpu-1",
        "status": 200,
        "outcome": "ok",
        "stream": True,
        "queue_ms": 250.0,
        "ttft_ms": 500.0,
        "duration_ms": 2000.0,
        "input_tokens": 30,
        "output_tokens": 200,
        "attempts": 1,
        "team": None,
        "reason": "affinity",
    }


def test_a_refused_call_says_why(pipe: Pipe) -> None:
    record = record_of(status=503, outcome=Outcome.REJECTED, rejection=Rejection.QUEUE_FULL, error="server busy")
    entry = json.loads(*lines_of(pipe, record))
    assert (entry["rejection"], entry["error"], entry["node"]) == ("queue_full", "server busy", None)


def test_a_retried_call_names_each_node_and_reason(pipe: Pipe) -> None:
    entry = json.loads(*lines_of(pipe, record_of(retries=[("a", "busy"), ("b", "reset")])))
    assert entry["retries"] == ["a busy", "b reset"]


def test_text_is_one_line_for_eyes(pipe: Pipe) -> None:
    (line,) = lines_of(pipe, record_of(model="qwen3:8b", status=200, error="no such\nthing"), log_format="text")
    assert line.startswith(
        "2025-11-23T06:01:06.500Z INFO    call request_id=req-1 route=chat_completions model=qwen3:8b"
    )
    assert 'error="no such\\nthing"' in line
    assert "node=" not in line


def test_long_names_and_texts_are_cut(pipe: Pipe) -> None:
    entry = json.loads(*lines_of(pipe, record_of(model_asked="x" * 10_000, error="y" * 10_000)))
    assert len(entry["model_requested"]) == NAME_CHARS_MAX
    assert len(entry["error"]) == ERROR_CHARS_MAX


@given(asked=st.text(max_size=50), error=st.text(max_size=50), log_format=st.sampled_from(["json", "text"]))
def test_no_text_can_forge_a_second_line(asked: str, error: str, log_format: str) -> None:
    pipe = Pipe()
    try:
        lines = lines_of(pipe, record_of(model_asked=asked, error=error), log_format=log_format)
    finally:
        pipe.close()
    assert len(lines) == 1
    assert log_format == "text" or json.loads(lines[0])["event"] == "call"


def test_above_info_calls_are_silent_and_warnings_are_not(pipe: Pipe) -> None:
    warning = logging.LogRecord("router.x", logging.WARNING, "", 0, "node %s is down", ("a",), None)
    (line,) = lines_of(pipe, record_of(), warning, level="warning")
    assert json.loads(line)["message"] == "node a is down"


# --- everything else that is logged


def test_what_the_process_logs_goes_the_same_way_in_order(pipe: Pipe) -> None:
    message = logging.LogRecord("router.control", logging.INFO, "", 0, "loading %s", ("m",), None)
    call, other = map(json.loads, lines_of(pipe, record_of(), message))
    assert call["event"] == "call"
    assert (other["event"], other["level"], other["logger"], other["message"]) == (
        "log",
        "info",
        "router.control",
        "loading m",
    )


def test_a_trace_stands_in_its_entry(pipe: Pipe) -> None:
    try:
        raise KeyError("lost")  # noqa: TRY301
    except KeyError as error:
        failed = logging.LogRecord("router", logging.ERROR, "", 0, "pass failed", (), (type(error), error, None))
    (line,) = lines_of(pipe, failed)
    assert "KeyError: 'lost'" in json.loads(line)["exception"]


def test_arguments_that_do_not_fit_are_shown_and_not_raised(pipe: Pipe) -> None:
    wrong = logging.LogRecord("router", logging.INFO, "", 0, "%d nodes", ("many",), None)
    assert json.loads(*lines_of(pipe, wrong))["message"] == "%d nodes ('many',)"


def parser_error() -> logging.LogRecord:
    """As aiohttp logs what is no HTTP, with its class known by its module."""
    kind = type("BadStatusLine", (Exception,), {"__module__": "aiohttp.http_exceptions"})
    facts = (kind, kind("\x16\x03"), None)
    return logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "Error handling request from %s", ("::1",), facts)


def test_what_a_client_sends_that_is_no_http_is_told_at_debug_without_a_trace(pipe: Pipe) -> None:
    logs = Logs(log_format="json", level="info", descriptor=pipe.writing)
    logs.take_over(logging.getLogger(ROOT))
    server = logging.getLogger("aiohttp.server")
    record = parser_error()
    assert not server.filter(record)
    server.setLevel(logging.DEBUG)
    try:
        assert server.filter(parser_error())
    finally:
        server.setLevel(logging.NOTSET)
    assert record.exc_info is None
    assert record.getMessage() == "Error handling request from ::1: BadStatusLine"


def test_other_errors_of_the_server_keep_their_trace(pipe: Pipe) -> None:
    Logs(log_format="json", level="info", descriptor=pipe.writing).take_over(logging.getLogger(ROOT))
    ours = logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, "x", (), (ValueError, ValueError("y"), None))
    assert logging.getLogger("aiohttp.server").filter(ours)
    assert ours.exc_info is not None


# --- a reader that does not read


def test_a_full_queue_drops_and_counts() -> None:
    logs = Logs(log_format="json", level="info", lines_max=2)  # never opened: nobody takes lines out
    for _ in range(5):
        logs.observe(record_of())
    assert logs.dropped == 3
    assert repr(logs) == "<Logs 2 waiting | 3 dropped>"
    assert QUEUE_LINES >= 1000


def test_a_stuck_pipe_stops_nobody(pipe: Pipe) -> None:
    logs = Logs(log_format="json", level="info", descriptor=pipe.writing, lines_max=100)
    logs.open()
    for _ in range(5000):  # 2 MB: far more than a pipe and the queue hold
        logs.observe(record_of())
    assert logs.dropped > 1000
    logs.close(wait_s=0)  # does not wait for the pipe either
    pipe.close(pipe.reading)  # lets the thread end,
    logs.close()  # which must be over before the descriptor's number belongs to somebody else


def test_a_reader_that_went_away_costs_lines_and_nothing_else(pipe: Pipe) -> None:
    pipe.close(pipe.reading)
    logs = Logs(log_format="json", level="info", descriptor=pipe.writing)
    logs.open()
    logs.observe(record_of())
    logs.close()
    logs.observe(record_of())
    assert logs.dropped == 2


def test_a_pipe_that_somebody_made_non_blocking_loses_no_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing, False)
    logs = Logs(log_format="json", level="info", descriptor=pipe.writing)
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(_until_end(pipe.reading)))
    reader.start()
    logs.open()
    for _ in range(2000):
        logs.observe(record_of())
    logs.close()
    pipe.close(pipe.writing)
    reader.join()
    assert (len(lines), logs.dropped) == (2000, 0)


def _until_end(descriptor: int) -> list[str]:
    with os.fdopen(os.dup(descriptor), encoding="utf-8") as file:
        return file.read().splitlines()


def failing(number: int, at_s: float) -> logging.LogRecord:
    """As one of many calls that meet the same defect, each with a traceback of its own."""
    trace = (ValueError, ValueError(number), None)
    record = logging.LogRecord("router", logging.ERROR, __file__, 1, "call %s met a defect", (f"id-{number}",), trace)
    record.created = at_s
    return record


def test_a_burst_of_failures_is_told_a_few_times_and_then_counted(pipe: Pipe) -> None:
    burst = [failing(number, 100.0 + number / 1000) for number in range(1000)]
    lines = [json.loads(line) for line in lines_of(pipe, *burst, failing(1000, 120.0))]
    assert [line["message"] for line in lines] == [f"call id-{number} met a defect" for number in (0, 1, 2, 3, 4, 1000)]
    assert [line.get("left_out") for line in lines] == [None] * 5 + [995]


def test_in_text_what_was_left_out_stands_behind_the_line(pipe: Pipe) -> None:
    burst = [failing(number, 100.0) for number in range(7)]
    lines = lines_of(pipe, *burst, failing(7, 120.0), log_format="text")
    assert any(line.endswith("router: call id-7 met a defect (and 2 more like it)") for line in lines)


def test_changes_of_state_are_told_each(pipe: Pipe) -> None:
    def change(number: int) -> logging.LogRecord:
        return logging.LogRecord("router", logging.INFO, __file__, 1, "node %s is %s", (f"gpu-{number}", "down"), None)

    assert len(lines_of(pipe, *map(change, range(500)))) == 500


def test_a_traced_call_names_its_trace(pipe: Pipe) -> None:
    trace = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    traced, plain = (json.loads(line) for line in lines_of(pipe, record_of(trace=trace), record_of()))
    assert (traced["trace_id"], traced["span_id"]) == (trace.trace_id, trace.span_id)
    assert "trace_id" not in plain
