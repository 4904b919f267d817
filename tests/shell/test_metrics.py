"""Records and the fleet's picture go in, a page that Prometheus can read comes out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from router.errors import Outcome, Rejection
from router.fleet.breaker import Circuit
from router.fleet.node import Copy, CopyState, DiskModel, Health, Node, NodeSpec
from router.fleet.snapshot import Snapshot, snapshot_of
from router.policy.access import NO_TEAM
from router.seams import Observer, Record, Trace
from router.telemetry.families import FAMILIES, PREFIX, Family
from router.telemetry.gauges import Sources
from router.telemetry.logs import Logs
from router.telemetry.metrics import Metrics
from router.telemetry.names import PAIR_S
from router.telemetry.observer import Telemetry
from router.telemetry.page import SLICE_BYTES
from router.telemetry.series import Histogram
from tests.shell.house import router_before

LLAMA = "llama3.2:3b"
Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def node_with(
    name: str, *keys: str, ready: Sequence[str] = (), health: Health = Health.HEALTHY, digest: str = "d"
) -> Node:
    models = {key: DiskModel(key, key, f"{digest}-{key}", f"w-{key}") for key in keys}
    copies = {
        f"w-{key}": Copy(f"w-{key}", CopyState.READY, (key,), slots=4, size_bytes=10, vram_bytes=7) for key in ready
    }
    return Node(
        NodeSpec(name, "127.0.0.1", 11434, backlog=1),
        health=health,
        version="0.33.0",
        models=MappingProxyType(models),
        copies=MappingProxyType(copies),
        is_read=True,
    )


def metrics_of(
    *nodes: Node,
    waiting: dict[str, int] | None = None,
    occupancy: dict[tuple[str, str], int] | None = None,
    circuits: dict[tuple[str, str | None], Circuit] | None = None,
    models_max: int = 200,
    named: Sequence[str] = (),
    teams_max: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Metrics:
    snapshot: Snapshot = snapshot_of(nodes)

    sources = Sources(
        snapshot=lambda: snapshot,
        occupancy=lambda: occupancy or {},
        waiting=lambda: waiting or {},
        queue_limit=lambda key: 256,
        circuits=lambda: circuits or {},
        discovered=lambda: {"static": len(nodes)},
        discovery_synced=lambda: {"dns": 1_700_000_000.0},
        log_lines_dropped=lambda: 3,
    )
    return Metrics(sources, models_max=models_max, named=named, teams_max=teams_max, clock=clock)


def record_of(**facts: Any) -> Record:
    usual: dict[str, Any] = {"model": LLAMA, "status": 200, "node": "a", "attempts": 1, "reason": "loaded"}
    return Record("id", "chat_completions", 0.0, 0.0, **(usual | facts))


async def open_page_of(metrics: Metrics) -> str:
    return b"".join([piece async for piece in metrics.render(is_open=True)]).decode()


async def page_of(metrics: Metrics) -> Values:
    text = b"".join([piece async for piece in metrics.render()]).decode()
    return {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(page: Values, name: str, **labels: str) -> float | None:
    return page.get((name, frozenset(labels.items())))


# --- calls


async def test_a_call_counts_once_by_what_became_of_it() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(duration_s=2.0))
    metrics.observe(record_of(duration_s=2.0))
    metrics.observe(record_of(status=499, outcome=Outcome.CANCELLED, phase_left="prefill"))

    page = await page_of(metrics)

    here = {"route": "chat_completions", "model": LLAMA}
    assert value(page, "requests_total", **here, outcome="ok", code="200") == 2
    assert value(page, "requests_total", **here, outcome="cancelled", code="499") == 1
    assert value(page, "request_duration_seconds_count", **here, outcome="ok") == 2
    assert value(page, "request_duration_seconds_sum", **here, outcome="ok") == 4
    assert value(page, "client_disconnects_total", model=LLAMA, phase="prefill") == 1
    assert value(page, "routing_decisions_total", policy="default", reason="loaded") == 3


async def test_a_refused_call_says_why_and_touches_no_node_metric() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(
        record_of(status=503, outcome=Outcome.REJECTED, rejection=Rejection.QUEUE_FULL, attempts=0, node="", reason="",
                  queue_result="rejected")
    )  # fmt: skip
    metrics.refused(Rejection.CONNECTIONS, NO_TEAM)

    page = await page_of(metrics)

    assert value(page, "rejections_total", model=LLAMA, reason="queue_full") == 1
    assert value(page, "rejections_total", model="unknown", reason="connections") == 1
    assert value(page, "queue_wait_seconds_count", model=LLAMA, result="rejected") == 1
    assert not [name for name, _ in page if name.startswith(("routing_decisions", "overhead", "upstream"))]


async def test_a_call_that_was_never_in_line_says_nothing_about_lines() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(attempts=0, reason="", status=400, outcome=Outcome.REJECTED, rejection=Rejection.INVALID))
    assert not [name for name, _ in await page_of(metrics) if name.startswith("queue_wait_seconds_")]


async def test_pace_is_the_time_between_tokens_after_the_first() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(is_stream=True, first_token_s=1.0, duration_s=3.0, output_tokens=21, is_cold=True))

    page = await page_of(metrics)

    assert value(page, "time_per_output_token_seconds_sum", route="chat_completions", model=LLAMA) == pytest.approx(0.1)
    cold = {"route": "chat_completions", "model": LLAMA, "start": "cold"}
    assert value(page, "time_to_first_token_seconds_bucket", **cold, le="0.75") == 0
    assert value(page, "time_to_first_token_seconds_bucket", **cold, le="1.0") == 1  # le is inclusive


async def test_a_client_that_sends_its_body_slowly_makes_no_first_token_late() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(is_stream=True, read_s=40.0, first_token_s=41.0, duration_s=43.0, output_tokens=3))

    page = await page_of(metrics)

    labels = {"route": "chat_completions", "model": LLAMA}
    assert value(page, "time_to_first_token_seconds_sum", **labels, start="warm") == 1.0
    assert value(page, "time_per_output_token_seconds_sum", **labels) == 1.0
    assert value(page, "request_duration_seconds_sum", **labels, outcome="ok") == 43.0


async def test_pages_are_counted_without_a_model() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.page_answered("models", 200, 0.001)
    metrics.page_answered("other", 404, 0.001)
    metrics.page_answered("api_manage", 403, 0.001, is_refused=True)

    page = await page_of(metrics)

    def of(route: str, outcome: str, code: str) -> float | None:
        return value(page, "requests_total", route=route, model="", outcome=outcome, code=code)

    assert of("models", "ok", "200") == of("other", "client_error", "404") == of("api_manage", "rejected", "403") == 1


async def test_one_token_has_no_pace() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(is_stream=True, first_token_s=1.0, duration_s=1.0, output_tokens=1))
    assert not [name for name, _ in await page_of(metrics) if name.startswith("time_per_output_token_seconds_")]


async def test_tokens_are_the_nodes_counts_and_estimates_stand_apart() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(input_tokens=30, output_tokens=200, content_events=190))
    metrics.observe(record_of(outcome=Outcome.CANCELLED, content_events=17))

    page = await page_of(metrics)

    assert value(page, "tokens_total", model=LLAMA, type="input") == 30
    assert value(page, "tokens_total", model=LLAMA, type="output") == 200
    assert value(page, "tokens_estimated_total", model=LLAMA, type="output") == 17
    assert value(page, "request_tokens_bucket", model=LLAMA, type="output", le="256.0") == 1


async def test_a_retry_on_the_same_node_is_no_failover() -> None:
    metrics = metrics_of(node_with("a", LLAMA), node_with("b", LLAMA))
    metrics.observe(record_of(node="b", attempts=3, retries=[("a", "busy"), ("a", "reset")]))

    page = await page_of(metrics)

    assert value(page, "retries_total", model=LLAMA, reason="busy") == 1
    assert value(page, "failovers_total", model=LLAMA, reason="busy") is None
    assert value(page, "failovers_total", model=LLAMA, reason="reset") == 1


async def test_calls_at_a_node_are_in_flight_until_they_are_not() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.forwarding("api_chat", LLAMA, 1)
    metrics.forwarding("api_chat", LLAMA, 1)
    metrics.forwarding("api_chat", LLAMA, -1)
    assert value(await page_of(metrics), "requests_in_flight", route="api_chat", model=LLAMA) == 1
    metrics.forwarding("api_chat", LLAMA, -1)
    assert value(await page_of(metrics), "requests_in_flight", route="api_chat", model=LLAMA) is None


async def test_loops_tell_of_probes_loads_breakers_and_lag() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.probe_ended("a", 0.004, "")
    metrics.probe_ended("a", 3.0, "no_answer")
    metrics.load_ended("a", LLAMA, "line", "ok", 4.0)
    metrics.load_ended("a", LLAMA, "line", "oom", 9.0)
    metrics.circuit_changed("a", Circuit.OPEN)
    metrics.loop_lagged(0.02)
    metrics.attempt_ended("a", LLAMA, "reset", 1.0)

    page = await page_of(metrics)

    assert value(page, "node_probe_duration_seconds_count", node="a") == 2
    assert value(page, "node_probe_failures_total", node="a", reason="no_answer") == 1
    assert value(page, "model_loads_total", node="a", model=LLAMA, reason="line", result="oom") == 1
    assert value(page, "model_load_seconds_sum", model=LLAMA) == 4.0
    assert value(page, "circuit_state_changes_total", node="a", state="open") == 1
    assert value(page, "event_loop_lag_seconds_bucket", le="0.025") == 1
    assert value(page, "upstream_requests_total", node="a", model=LLAMA, outcome="reset") == 1


# --- the fleet


async def test_the_fleet_is_read_at_the_scrape() -> None:
    metrics = metrics_of(
        node_with("a", LLAMA, "qwen3:8b", ready=[LLAMA]),
        node_with("b", LLAMA, health=Health.DOWN, digest="other"),
        occupancy={("a", f"w-{LLAMA}"): 3, ("gone", "w"): 1},
        circuits={("a", f"w-{LLAMA}"): Circuit.OPEN, ("b", None): Circuit.HALF_OPEN},
        waiting={LLAMA: 5},
    )

    page = await page_of(metrics)

    assert (value(page, "node_up", node="a"), value(page, "node_up", node="b")) == (1, 0)
    assert value(page, "node_state", node="b", state="down") == 1
    assert value(page, "node_state", node="b", state="healthy") == 0
    assert value(page, "node_info", node="a", version="0.33.0", zone="", gpus="") == 1
    assert value(page, "node_slots", node="a") == 5  # four and the backlog
    assert value(page, "node_slots_used", node="a") == 3
    assert value(page, "node_model_loaded", node="a", model=LLAMA) == 1
    assert value(page, "node_model_vram_bytes", node="a", model=LLAMA) == 7
    assert value(page, "copy_cpu_bytes", node="a", model=LLAMA) == 3
    assert value(page, "circuit_state", node="a", model=LLAMA, state="open") == 1
    assert value(page, "circuit_state", node="b", model="all", state="half_open") == 1
    assert value(page, "model_nodes", model=LLAMA, state="available") == 1
    assert value(page, "model_nodes", model="qwen3:8b", state="loaded") == 0
    assert value(page, "model_digest_skew", model=LLAMA) == 2
    assert value(page, "queue_depth", model=LLAMA) == 5
    assert value(page, "queue_limit", model=LLAMA) == 256
    assert value(page, "discovery_nodes", source="static") == 2
    assert value(page, "log_lines_dropped_total") == 3
    assert value(page, "degraded_mode") == 0


async def test_a_line_that_is_empty_again_shows_zero() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of())
    assert value(await page_of(metrics), "queue_depth", model=LLAMA) == 0


async def test_series_of_a_node_leave_with_it() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.attempt_ended("left", LLAMA, "ok", 1.0)
    metrics.probe_ended("left", 1.0, "refused")
    page = await page_of(metrics)
    assert not [labels for _, labels in page if ("node", "left") in labels]


async def test_series_of_a_model_leave_a_node_an_hour_after_its_copy() -> None:
    now_s = 0.0
    loaded, stored = node_with("a", LLAMA, "qwen3:8b", ready=[LLAMA, "qwen3:8b"]), node_with("a", LLAMA, "qwen3:8b")
    metrics = metrics_of(loaded, clock=lambda: now_s)
    for key in (LLAMA, "qwen3:8b"):
        metrics.attempt_ended("a", key, "ok", 1.0)
    await page_of(metrics)
    metrics._sources = replace(metrics._sources, snapshot=lambda: snapshot_of([stored]))
    metrics.copy_evicted("a", LLAMA, "ollama")
    now_s += PAIR_S
    page = await page_of(metrics)
    assert value(page, "model_evictions_total", node="a", model=LLAMA, cause="ollama") == 1
    metrics._sources = replace(
        metrics._sources, snapshot=lambda: snapshot_of([node_with("a", LLAMA, "qwen3:8b", ready=["qwen3:8b"])])
    )
    now_s += 1.0
    page = await page_of(metrics)
    assert not [name for name, labels in page if {("node", "a"), ("model", LLAMA)} <= labels]
    assert value(page, "upstream_requests_total", node="a", model="qwen3:8b", outcome="ok") == 1
    assert value(page, "upstream_request_duration_seconds_count", node="a") == 2, "a node's own stay"


async def test_what_a_copy_is_loaded_with_and_how_long_it_stays_is_told() -> None:
    lasting = replace(
        next(iter(node_with("a", LLAMA, ready=[LLAMA]).copies.values())), num_ctx=8192, expires_at_s=1764000000.0
    )
    staying = replace(lasting, weights="w-other", keys=("qwen3:8b",), num_ctx=4096, expires_at_s=float("inf"))
    node = replace(
        node_with("a", LLAMA, "qwen3:8b"),
        copies=MappingProxyType({lasting.weights: lasting, staying.weights: staying}),
    )

    page = await page_of(metrics_of(node))

    assert value(page, "node_model_context_tokens", node="a", model=LLAMA) == 8192
    assert value(page, "node_model_context_tokens", node="a", model="qwen3:8b") == 4096
    assert value(page, "node_model_expiry_timestamp_seconds", node="a", model=LLAMA) == 1764000000
    assert value(page, "node_model_expiry_timestamp_seconds", node="a", model="qwen3:8b") is None


async def test_tokens_per_second_of_a_node_are_those_of_its_streams() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(is_stream=True, first_token_s=1.0, duration_s=3.0, input_tokens=7, output_tokens=21))
    metrics.observe(record_of(first_token_s=1.0, duration_s=9.0, input_tokens=7, output_tokens=50))  # tells no pace

    page = await page_of(metrics)

    assert value(page, "node_decode_tokens_total", node="a", model=LLAMA) == 20
    assert value(page, "node_decode_seconds_total", node="a", model=LLAMA) == 2
    assert value(page, "node_tokens_total", node="a", model=LLAMA, type="output") == 71
    assert value(page, "node_tokens_total", node="a", model=LLAMA, type="input") == 14


async def test_conversations_are_counted_by_where_they_went_with_what_a_cache_could_save() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(affinity="hit", input_tokens=100))
    metrics.observe(record_of(affinity="hit", input_tokens=50))
    metrics.observe(record_of(affinity="spilled"))
    metrics.observe(record_of(input_tokens=9))

    page = await page_of(metrics)

    assert value(page, "affinity_total", model=LLAMA, result="hit") == 2
    assert value(page, "affinity_tokens_total", model=LLAMA, result="hit") == 150
    assert value(page, "affinity_total", model=LLAMA, result="spilled") == 1
    assert value(page, "affinity_total", model=LLAMA, result="miss") is None


async def test_a_team_pays_for_the_slots_it_held_where_teams_are_told_apart() -> None:
    node = node_with("a", LLAMA, ready=[LLAMA])  # four slots and one of backlog
    metrics = metrics_of(node, teams_max=2)
    metrics.observe(record_of(team="research", node_s=10.0))
    metrics.observe(record_of(team="research", node_s=5.0))
    page = await page_of(metrics)
    assert value(page, "team_gpu_seconds_total", team="research") == 3

    untold = metrics_of(node)
    untold.observe(record_of(team="research", node_s=10.0))
    assert not [name for name, _ in await page_of(untold) if name.startswith("team_")]


# --- OpenMetrics


async def test_openmetrics_says_the_same_as_the_plain_page() -> None:
    metrics = metrics_of(node_with('a"\\\n', LLAMA, ready=[LLAMA]), named=[LLAMA])
    metrics.observe(record_of(duration_s=2.0, first_token_s=1.0, is_stream=True, output_tokens=3))

    plain, text = await page_of(metrics), await open_page_of(metrics)

    samples = {
        (sample.name.removeprefix(PREFIX), frozenset(sample.labels.items())): sample.value
        for family in parse_openmetrics(text)
        for sample in family.samples
    }
    ours = {key: found for key, found in plain.items() if not key[0].startswith(("process_", "python_"))}
    assert {key: samples.get(key) for key in ours} == ours


async def test_openmetrics_is_for_those_who_ask_for_it() -> None:
    async with router_before([]) as router, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{router.metrics_port}/metrics"
        async with session.get(
            url, headers={"Accept": "application/openmetrics-text;version=1.0.0,*/*;q=0.1"}
        ) as answer:
            assert answer.content_type == "application/openmetrics-text"
            assert (await answer.text()).endswith("# EOF\n")
        async with session.get(url) as answer:
            assert answer.content_type == "text/plain"
            assert "# EOF" not in await answer.text()


async def test_an_exemplar_leads_from_a_bucket_to_a_trace() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(duration_s=2.0))
    trace = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", is_sampled=True)
    metrics.observe(record_of(duration_s=2.2, trace=trace))
    metrics.observe(record_of(duration_s=2.3, trace=replace(trace, trace_id="f" * 32, is_sampled=False)))

    families = {family.name: family for family in parse_openmetrics(await open_page_of(metrics))}
    buckets = families[f"{PREFIX}request_duration_seconds"].samples
    shown = {sample.labels["le"]: sample.exemplar for sample in buckets if sample.exemplar}

    assert list(shown) == ["2.5"]
    assert (shown["2.5"].labels, shown["2.5"].value) == ({"trace_id": trace.trace_id}, 2.2)
    plain = b"".join([piece async for piece in metrics.render()]).decode()
    assert trace.trace_id not in plain


# --- labels


async def test_a_client_cannot_make_series() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    for number in range(1000):
        metrics.observe(record_of(model=f"nonsense-{number}:latest", status=404))
    page = await page_of(metrics)
    labels = {dict(labels).get("model") for _, labels in page}
    assert labels == {None, "unknown", LLAMA}


async def test_models_beyond_the_cap_share_a_label_and_configured_ones_are_exempt() -> None:
    keys = [f"model-{number}:latest" for number in range(5)]
    metrics = metrics_of(node_with("a", *keys, ready=keys), models_max=2, named=[keys[4]])
    for key in keys:
        metrics.observe(record_of(model=key))

    page = await page_of(metrics)

    counted = {dict(labels)["model"]: count for (name, labels), count in page.items() if name == "requests_total"}
    assert counted == {keys[0]: 1, keys[1]: 1, "other": 2, keys[4]: 1}
    assert value(page, "node_model_vram_bytes", node="a", model="other") == 14


async def test_teams_are_told_apart_where_that_is_wanted_and_only_so_many() -> None:
    metrics = metrics_of(node_with("a", LLAMA), teams_max=2)
    for team in ("research", "product", "research", "late"):
        metrics.observe(record_of(team=team, input_tokens=3, output_tokens=4))
    metrics.observe(record_of(team=NO_TEAM, status=401, outcome=Outcome.REJECTED, rejection=Rejection.UNAUTHORIZED))
    metrics.refused(Rejection.UNAUTHORIZED, NO_TEAM)
    metrics.refused(Rejection.FORBIDDEN_VERB, "product")

    page = await page_of(metrics)

    def of(name: str, **labels: str) -> float:
        return sum(found for (sample, has), found in page.items() if sample == name and labels.items() <= set(has))

    told = ("default", "research", "product", "other", "unknown")
    assert [of("requests_total", team=team) for team in told] == [0, 2, 0, 2, 1]
    assert of("tokens_total", team="research", type="output") == 8
    assert of("rejections_total", team="unknown", reason="unauthorized") == 2
    assert of("rejections_total", team="other", reason="forbidden_verb") == 1


async def test_teams_are_not_told_apart_unasked() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    metrics.observe(record_of(team="research"))
    assert not [sample for sample, labels in await page_of(metrics) if "team" in dict(labels)]


async def test_counters_of_configured_models_start_at_zero() -> None:
    page = await page_of(metrics_of(named=[LLAMA]))
    assert value(page, "tokens_total", model=LLAMA, type="output") == 0
    assert value(page, "rejections_total", model=LLAMA, reason="queue_full") == 0
    assert value(page, "model_nodes", model=LLAMA, state="available") == 0


async def test_label_values_are_escaped() -> None:
    metrics = metrics_of(node_with('a"\\\n', LLAMA))
    assert value(await page_of(metrics), "node_up", node='a"\\\n') == 1


def test_labels_are_of_a_closed_set_that_holds_nothing_of_a_client() -> None:
    """No user, key, address, path, request, prompt or session; a team only where metrics.teams says so."""
    known = {"route", "model", "outcome", "code", "start", "result", "type", "reason", "phase", "policy", "alias"}
    known |= {"option", "action", "node", "state", "version", "zone", "gpus", "kind", "cause", "source", "revision"}
    known |= {"python", "operation"}
    assert {label for family in FAMILIES.values() for label in family.labels} - known == {"team"}
    assert [family.name for family in FAMILIES.values() if "team" in family.labels] == ["team_gpu_seconds_total"]


def test_a_histogram_has_two_labels_at_most_and_a_third_only_of_few_words() -> None:
    few = {"outcome", "start", "result", "type"}
    for family in FAMILIES.values():
        if family.kind == "histogram":
            assert len(set(family.labels) - few) <= 2, family.name
            assert len(family.labels) <= 3, family.name
            assert not {"node", "model"} <= set(family.labels), "as many as both together"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_names_and_units_follow_prometheus(family: Family) -> None:
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert family.scope in ("L", "S")
    assert family.help.endswith(".")
    assert bool(family.bounds) == (family.kind == "histogram")
    assert list(family.bounds) == sorted(set(family.bounds))


# --- the page


async def test_every_family_is_on_the_page_with_its_kind_and_scope() -> None:
    text = b"".join([piece async for piece in metrics_of().render()]).decode()
    for family in FAMILIES.values():
        assert f"# TYPE {PREFIX}{family.name} {family.kind}\n" in text
        assert f"({family.scope})\n# TYPE {PREFIX}{family.name} " in text
    assert "process_cpu_seconds_total" in text
    assert "python_gc_collections_total" in text


async def test_a_large_page_comes_in_slices_and_lets_others_run_between_them() -> None:
    keys = [f"model-{number}:latest" for number in range(150)]
    metrics = metrics_of(node_with("a", *keys))
    for key in keys:
        metrics.observe(record_of(model=key, duration_s=1.0))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(turn())
    pieces = [piece async for piece in metrics.render()]
    other.cancel()

    assert len(pieces) > 3
    assert turns >= len(pieces) - 1
    longest_piece = 25 * 120  # a histogram's series is never torn
    assert max(map(len, pieces[:-1])) < SLICE_BYTES + longest_piece


async def test_calls_that_end_during_a_scrape_do_not_break_it() -> None:
    keys = [f"model-{number}:latest" for number in range(100)]
    metrics = metrics_of(node_with("a", *keys))
    for key in keys[:50]:
        metrics.observe(record_of(model=key))
    fresh = iter(keys[50:])
    pieces = []
    async for piece in metrics.render():
        pieces.append(piece)
        metrics.observe(record_of(model=next(fresh)))
    assert list(text_string_to_metric_families(b"".join(pieces).decode()))


async def test_a_pool_of_20_nodes_and_50_models_stays_under_20000_series() -> None:
    """The pool that docs/metrics.md speaks of: 4 copies, 2 routes and 2 outcomes a model."""
    keys = [f"model-{number}:latest" for number in range(50)]
    nodes = [
        node_with(f"gpu-{at}", *keys, ready=[key for index, key in enumerate(keys) if index % 5 == at % 5])
        for at in range(20)
    ]
    metrics = metrics_of(*nodes)
    for node in nodes:
        metrics.probe_ended(node.name, 0.01, "")
        for key in [copy.keys[0] for copy in node.copies.values()]:
            metrics.attempt_ended(node.name, key, "ok", 1.0)
            metrics.load_ended(node.name, key, "line", "ok", 4.0)
            metrics.copy_evicted(node.name, key, "expired")
            for route in ("chat_completions", "api_chat"):
                for outcome in (Outcome.OK, Outcome.CANCELLED):
                    record = record_of(model=key, is_stream=True, first_token_s=1.0, input_tokens=9, output_tokens=9)
                    record.node, record.route, record.outcome = node.name, route, outcome
                    record.affinity = "hit"
                    metrics.observe(record)
    assert 14_000 < len(await page_of(metrics)) < 15_500


@given(values=st.lists(st.floats(0, 2000), max_size=40))
def test_a_histogram_counts_every_value_in_the_first_bucket_that_holds_it(values: list[float]) -> None:
    family = FAMILIES["request_duration_seconds"]
    histogram = Histogram(family)
    for each in values:
        histogram.observe(("r", "m", "ok"), each)
    text = "# TYPE x histogram\n" + "".join(histogram.text())
    samples = [sample for found in text_string_to_metric_families(text) for sample in found.samples]
    for sample in samples:
        if "le" in sample.labels:
            assert sample.value == sum(each <= float(sample.labels["le"]) for each in values)
        elif sample.name.endswith("_sum"):
            assert sample.value == pytest.approx(sum(values))
        else:
            assert sample.value == len(values)


async def test_a_call_is_told_to_metrics_and_log_alike() -> None:
    metrics = metrics_of(node_with("a", LLAMA))
    logs = Logs(log_format="json", level="info")  # never opened: its lines stay where they are
    telemetry: Observer = Telemetry(metrics, logs)
    telemetry.forwarding("chat_completions", LLAMA, 1)
    telemetry.attempt_ended("a", LLAMA, "ok", 1.0)
    telemetry.observe(record_of())

    page = await page_of(metrics)

    assert value(page, "requests_in_flight", route="chat_completions", model=LLAMA) == 1
    assert value(page, "requests_total", route="chat_completions", model=LLAMA, outcome="ok", code="200") == 1
    assert repr(logs) == "<Logs 1 waiting | 0 dropped>"
