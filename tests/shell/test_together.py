"""Pages of several workers are one page, on which nothing goes back that Prometheus expects to grow."""

from __future__ import annotations

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_families

from router.telemetry.families import FAMILIES, GAUGE
from router.telemetry.together import RULES, Sums
from tests.shell.clients import Scrape, generate, get
from tests.shell.scenes import QUICK, holding

UP = '# HELP ollama_router_node_up 1.\n# TYPE ollama_router_node_up gauge\nollama_router_node_up{node="a"} 1.0\n'
CALLS = "# HELP ollama_router_requests_total Calls.\n# TYPE ollama_router_requests_total counter\n"


def page(requests: float, more: str = "", labels: str = 'model="m"') -> str:
    return f"{CALLS}ollama_router_requests_total{{{labels}}} {requests}\n{UP}{more}"


def gauge(name: str, *samples: str) -> str:
    lines = [f"ollama_router_{name}{sample}" for sample in samples]
    return "\n".join([f"# HELP ollama_router_{name} It.", f"# TYPE ollama_router_{name} gauge", *lines, ""])


def joined(sums: Sums, living: str = "ab", **texts: str) -> Scrape:
    return Scrape(sums.page(texts, living, is_open=False))


def test_every_gauge_that_is_no_fact_of_the_pool_has_a_rule_and_no_rule_is_left_over() -> None:
    ours = {name: family.scope for name, family in FAMILIES.items() if family.kind == GAUGE}
    foreign = {name for name in RULES if name.startswith(("process_", "python_"))}
    assert RULES.keys() - foreign <= ours.keys()
    assert [name for name, scope in ours.items() if scope == "L" and name not in RULES] == []


def test_a_count_of_what_all_workers_see_is_the_highest_and_does_not_go_back() -> None:
    def seen(count: int) -> str:
        name = "ollama_router_slots_oversubscribed_total"
        return f'{UP}# HELP {name} T\n# TYPE {name} counter\n{name}{{node="a"}} {count}\n'

    sums = Sums()
    assert joined(sums, a=seen(3), b=seen(2)).value("slots_oversubscribed_total") == 3
    assert joined(sums, "bc", b=seen(2), c=seen(0)).value("slots_oversubscribed_total") == 3
    assert joined(sums, "bc", b=seen(4), c=seen(2)).value("slots_oversubscribed_total") == 4


def test_counters_are_summed_and_so_are_series_that_only_one_has() -> None:
    sums = Sums()
    found = joined(sums, a=page(2), b=page(3, labels='model="n"'))
    assert found.value("requests_total") == 5
    assert found.labels("requests_total", "model") == {"m", "n"}


def test_what_a_worker_had_counted_stays_when_it_ends_and_its_next_life_begins_at_nothing() -> None:
    sums = Sums()
    assert joined(sums, a=page(2), b=page(3)).value("requests_total") == 5
    assert joined(sums, "a", a=page(2)).value("requests_total") == 5
    assert joined(sums, "ac", a=page(4), c=page(1)).value("requests_total") == 8
    assert joined(sums, "d", d=page(0)).value("requests_total") == 8


def test_a_worker_that_does_not_answer_this_time_counts_with_what_it_said_last() -> None:
    sums = Sums()
    joined(sums, a=page(2), b=page(3))
    assert joined(sums, a=page(3)).value("requests_total") == 6
    assert joined(sums, a=page(3), b=page(9)).value("requests_total") == 12


def test_sums_of_fractions_never_lose_their_last_digit() -> None:
    sums = Sums()
    parts = dict(zip("abc", (0.1, 0.2, 0.3), strict=True))
    before = joined(sums, "abc", **{life: page(part) for life, part in parts.items()}).value("requests_total")
    for gone in "abc":
        del parts[gone]
        living = "".join([*parts, "z"])
        after = joined(sums, living, z=page(0), **{life: page(part) for life, part in parts.items()})
        assert after.value("requests_total") >= before
        before = after.value("requests_total")


def test_a_node_that_has_left_takes_its_counts_along_also_those_of_workers_that_ended() -> None:
    tokens = "# HELP ollama_router_node_tokens_total Tokens.\n# TYPE ollama_router_node_tokens_total counter\n"
    of_both = "".join(f'ollama_router_node_tokens_total{{node="{node}",model="m",type="input"}} 7\n' for node in "ab")
    both = UP + 'ollama_router_node_up{node="b"} 1.0\n' + tokens + of_both
    sums = Sums()
    assert joined(sums, "ac", a=both, c=both).value("node_tokens_total") == 28
    assert joined(sums, "c", c=both).value("node_tokens_total", node="b") == 14
    assert joined(sums, "c", c=UP + tokens).labels("node_tokens_total", "node") == {"a"}


@pytest.mark.parametrize(
    ("name", "values", "together"),
    [
        ("requests_in_flight", (2, 3), 5),
        ("queue_depth", (4, 3), 7),
        ("queue_limit", (9, 9), 9),
        ("degraded_mode", (0, 1), 1),
        ("redis_up", (1, 0), 0),
        ("config_last_reload_successful", (1, 0), 0),
        ("node_slots", (4, 3), 4),
    ],
)
def test_gauges_are_joined_by_what_they_mean(name: str, values: tuple[float, float], together: float) -> None:
    first, second = (page(0, gauge(name, f" {value}")) for value in values)
    assert joined(Sums(), a=first, b=second).value(name) == together


def test_states_that_exclude_one_another_are_those_of_one_worker() -> None:
    up = gauge("node_state", '{node="a",state="healthy"} 1.0', '{node="a",state="down"} 0.0')
    down = gauge("node_state", '{node="a",state="healthy"} 0.0', '{node="a",state="down"} 1.0')
    assert joined(Sums(), a=page(0, up), b=page(0, down)).labels("node_state", "state") == {"healthy"}


def test_a_name_may_hold_whatever_separates_samples() -> None:
    odd = r'model="a} 7 # {trace_id=\"f\"} 1 2\\"'
    text = Sums().page({"a": page(1, labels=odd), "b": page(2, labels=odd)}, "ab", is_open=False)
    assert f"ollama_router_requests_total{{{odd}}} 3.0\n" in text


async def test_two_pages_of_real_routers_are_one_in_both_formats() -> None:
    async with holding(1) as (_, first), holding(1) as (_, second):
        for router in (first, first, second):
            assert (await generate(router, QUICK)).status == 200
        plain = [(await get(router.metrics_port, "/metrics")).body.decode() for router in (first, second)]
        found = joined(Sums(), a=plain[0], b=plain[1])
        assert found.value("requests_total") == 3
        assert found.value("request_duration_seconds_count") == 3
        assert found.value("request_duration_seconds_bucket", le="+Inf") == 3
        assert found.families.keys() == Scrape(plain[0]).families.keys()


def test_exemplars_stay_the_latest_of_each_bucket() -> None:
    head = "# HELP ollama_router_request_duration_seconds T\n# TYPE ollama_router_request_duration_seconds histogram\n"

    def bucket(trace: str, at_s: float) -> str:
        name = "ollama_router_request_duration_seconds"
        seen = f'{name}_bucket{{le="+Inf"}} 1.0 # {{trace_id="{trace}"}} 0.5 {at_s}'
        return f"{UP}{head}{seen}\n{name}_sum 0.5\n{name}_count 1.0\n# EOF\n"

    text = Sums().page({"a": bucket("aa", 20.5), "b": bucket("bb", 10.5)}, "ab", is_open=True)
    (family,) = [one for one in open_families(text) if one.name == "ollama_router_request_duration_seconds"]
    seen = family.samples[0]
    assert seen.value == 2
    assert seen.exemplar is not None
    assert seen.exemplar.labels == {"trace_id": "aa"}
