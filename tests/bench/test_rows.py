"""What the bench's figures are made of: rows, bars, contenders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench import telemetry, uncounted
from bench.__main__ import LIVE_ROWS, MICRO_ROWS, SCALE
from bench.report import ROWS, Report, Row, verdicts
from bench.routers import KINDS, Places, command
from bench.scraper import series
from bench.stub import MODEL, Catalog, name_of
from router.settings import load_settings
from router.telemetry.logs import Logs

README = Path(__file__).parents[2] / "bench" / "README.md"
PLACES = Places(11435, 9464, 11434, nodes=3, redis_port=6379)


def row(key: str) -> Row:
    return next(one for one in ROWS if one.key == key)


def report(row_key: str, **rounds: list[float]) -> Report:
    made = Report({})
    for contender, values in rounds.items():
        for number, value in enumerate(values, 1):
            made.add(row_key, contender.replace("_", " "), number, value)
    return made


def test_the_bar_of_the_store_in_redis_speaks_of_the_routers_that_have_it() -> None:
    told = report("redis", router=[1.0], router_redis=[500.0])
    told.add("redis", "vllm-router", 1, 125.0)
    (verdict,) = verdicts(told, row("redis"))
    assert (verdict.measured, verdict.holds) == (4.0, True)


def test_what_scraping_adds_is_taken_within_a_round() -> None:
    told = report("scraped_p99", not_scraped=[5.0, 1.0], scraped_every_second=[5.5, 3.0])
    (verdict,) = verdicts(told, row("scraped_p99"))
    assert (verdict.measured, verdict.holds) == (1.25, False)


@pytest.mark.parametrize("name", [*LIVE_ROWS, *MICRO_ROWS, SCALE])
def test_every_row_that_can_be_asked_for_is_explained(name: str) -> None:
    assert f"\n| {name} |" in README.read_text()


@pytest.mark.parametrize("name", KINDS)
def test_every_way_to_run_the_router_has_a_configuration_that_it_takes(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    *_, path = command(kind, tmp_path / "router.yaml", PLACES)
    settings = load_settings(path).settings
    assert settings.store.is_shared == kind.has_redis
    assert (settings.tracing.endpoint is not None) == (kind.traced_share is not None)
    assert len(settings.nodes) == PLACES.nodes


async def test_a_call_that_no_metric_counts_is_logged_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    logs = Logs(log_format="json", level="info", descriptor=descriptor)
    logs.open()
    metrics = telemetry.metrics_of(telemetry.fleet())
    observer = uncounted.observer_of(metrics, logs, None)
    record = telemetry.record_of(1)
    observer.forwarding(record.route, record.model, 1)
    observer.attempt_ended(record.node, record.model, "ok", 1.0)
    observer.observe(record)
    logs.close()
    os.close(descriptor)
    assert json.loads(path.read_text())["request_id"] == record.request_id
    page = b"".join([piece async for piece in metrics.render()])
    assert b"ollama_router_node_up{" in page
    assert b"ollama_router_requests_total{" not in page


def test_each_model_of_the_stub_has_weights_of_its_own() -> None:
    catalog = Catalog(models=3)
    names = [model["name"] for model in json.loads(catalog.pages["/api/ps"])["models"]]
    assert names == [MODEL, name_of(1), name_of(2)]
    shown = {catalog.show(json.dumps({"model": name}).encode()) for name in names}
    assert len(shown) == 3


def test_a_pages_series_are_counted_without_its_comments_and_frames() -> None:
    page = b'# HELP a 1 when\n# TYPE a gauge\na 1\nb{c="d e"} 2\n'
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(page), page)
    assert series(answer) == 2
