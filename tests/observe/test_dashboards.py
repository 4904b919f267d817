"""Dashboards as grafana's dashboard-linter would read them, and every expression as Prometheus would."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards.rules import groups
from dashboards.thresholds import RUNBOOKS
from router.telemetry.families import FAMILIES, HISTOGRAM, PREFIX

ROOT = Path(__file__).parents[2]
BOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "dashboards").glob("*.json"))}
EACH = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)

# As Grafana fills them in.
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$namespace": ".*", "$team": ".*"}
UNITS = {"reqps", "cps", "s", "short", "percentunit", "bytes", "none"}
FOREIGN = {"up", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
           "kube_deployment_status_replicas_available", "kube_deployment_spec_replicas"}  # fmt: skip


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in board["panels"] if panel["type"] != "row")


def expressions(board: dict[str, Any]) -> Iterator[str]:
    yield from (target["expr"] for panel in panels(board) for target in panel["targets"])


def filled(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return re.sub(r"\$\w+", ".+", expr)


def selectors(expr: str) -> Iterator[tuple[str, str, str]]:
    """What comes before it, name, and matchers of each metric that is asked for."""
    yield from re.findall(r"([\w]*\(?)((?:ollama_router|process|kube)[\w:]+|\bup\b)(?:\{([^}]*)\})?", expr)


def test_there_are_the_five() -> None:
    assert set(BOARDS) == {f"ollama-router-{name}" for name in ("overview", "nodes", "models", "teams", "slo")}


@EACH
def test_a_dashboard_is_what_every_grafana_takes(board: dict[str, Any]) -> None:
    assert (board["id"], board["editable"], board["graphTooltip"]) == (None, False, 1)
    assert 39 <= board["schemaVersion"] <= 41
    assert len(board["uid"]) <= 40
    assert board["uid"] in BOARDS
    assert board["links"][0]["keepTime"]


@EACH
def test_variables_choose_source_namespace_job_and_instance(board: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert list(variables)[:4] == ["datasource", "namespace", "job", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["label"]) == ("datasource", "Data source")
    for name, variable in list(variables.items())[1:]:
        assert (variable["label"], variable["multi"], variable["refresh"]) == (name, True, 2)
        assert variable["allValue"] == (".*" if name in ("namespace", "team") else ".+")
        assert variable["datasource"]["uid"] == "${datasource}"
        promql_parser.parse(re.search(r"label_values\((.*), \w+\)", filled(variable["query"]["query"]))[1])  # type: ignore[index]


@EACH
def test_every_panel_says_what_it_shows_in_which_unit(board: dict[str, Any]) -> None:
    for panel in panels(board):
        assert panel["title"]
        assert re.search(r"\.$", panel["description"]), panel["title"]
        assert panel["targets"]
        assert panel["datasource"]["uid"] == "${datasource}"
        unit = panel["fieldConfig"]["defaults"]["unit"]
        assert unit in UNITS, (panel["title"], unit)


@EACH
def test_a_panels_description_names_its_metrics(board: dict[str, Any]) -> None:
    for panel in panels(board):
        described = re.findall(r"[a-z_0-9]{6,}", panel["description"])
        for target in panel["targets"]:
            for _, name, _ in selectors(target["expr"]):
                short = re.sub(r"^ollama_router_|^ollama_router:|:ratio_rate\w+$|_(bucket|count|sum)$", "", name)
                assert short in described, (panel["title"], short)


@EACH
def test_ids_are_unique_and_panels_do_not_lie_on_one_another(board: dict[str, Any]) -> None:
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(refs) == len(set(refs))


@EACH
def test_every_line_of_the_grid_is_full(board: dict[str, Any]) -> None:
    widths: dict[int, int] = {}
    for panel in board["panels"]:
        widths[panel["gridPos"]["y"]] = widths.get(panel["gridPos"]["y"], 0) + panel["gridPos"]["w"]
    assert {y: width for y, width in widths.items() if width != 24} == {}


@EACH
def test_every_expression_parses(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        promql_parser.parse(filled(expr))


@EACH
def test_every_query_is_narrowed_to_the_chosen_routers(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        for _, name, matchers in selectors(expr):
            assert 'job=~"$job"' in matchers, expr
            # What is recorded is about a pool and has no instance.
            assert ('instance=~"$instance"' in matchers) == (not name.startswith("ollama_router:")), expr


def test_what_the_linter_shall_leave_out_is_only_what_rules_make() -> None:
    exclusions = yaml.safe_load((ROOT / "dashboards" / ".lint").read_text())["exclusions"]
    assert list(exclusions) == ["target-instance-rule"]
    left_out = {(each["dashboard"], each["panel"]) for each in exclusions["target-instance-rule"]["entries"]}
    for board in BOARDS.values():
        for panel in panels(board):
            made = any("ollama_router:" in target["expr"] or "ALERTS{" in target["expr"] for target in panel["targets"])
            assert ((board["title"], panel["title"]) in left_out) == made, panel["title"]


def test_every_alert_has_a_panel_that_leads_to_its_runbook() -> None:
    links = [link for board in BOARDS.values() for panel in panels(board) for link in panel["links"]]
    led_to = {link["url"].removeprefix(f"{RUNBOOKS}/").removesuffix(".md") for link in links}
    assert led_to == {rule["alert"] for group in groups()["groups"] for rule in group["rules"] if "alert" in rule}


@EACH
def test_counters_are_only_ever_looked_at_as_rates(board: dict[str, Any]) -> None:
    for expr in expressions(board):
        for before, name, _ in selectors(expr):
            if name.endswith("_total") or name.endswith("_bucket"):
                assert before in ("rate(", "increase("), expr
        windows = re.findall(r"\[([^\]]+)\]", expr)
        assert set(windows) <= {"$__rate_interval", "$__range"}, expr


def known(name: str) -> str:
    """The family of a sample's name, empty where there is none."""
    short = name.removeprefix(PREFIX)
    base = re.sub(r"_(bucket|count|sum)$", "", short)
    if short in FAMILIES:
        return short
    return base if base in FAMILIES and FAMILIES[base].kind == HISTOGRAM else ""


def rule_expressions() -> list[str]:
    return [rule["expr"] for group in groups()["groups"] for rule in group["rules"]]


def test_every_rule_parses() -> None:
    for expr in rule_expressions():
        promql_parser.parse(expr)


def test_what_dashboards_and_rules_ask_for_exists() -> None:
    recorded = {rule["record"] for group in groups()["groups"] for rule in group["rules"] if "record" in rule}
    asked = {name for board in BOARDS.values() for expr in expressions(board) for _, name, _ in selectors(expr)}
    asked |= {name for expr in rule_expressions() for _, name, _ in selectors(expr)}
    assert {name for name in asked if not known(name) and name not in recorded | FOREIGN} == set()


def test_every_metric_is_shown_or_watched_somewhere() -> None:
    asked = {name for board in BOARDS.values() for expr in expressions(board) for _, name, _ in selectors(expr)}
    asked |= {name for expr in rule_expressions() for _, name, _ in selectors(expr)}
    assert set(FAMILIES) - {known(name) for name in asked} == set()


def test_labels_that_are_asked_for_are_labels_of_the_metric() -> None:
    always = {"namespace", "job", "instance", "le", "team"}
    for expr in [each for board in BOARDS.values() for each in expressions(board)] + rule_expressions():
        for _, name, matchers in selectors(expr):
            family = FAMILIES.get(known(name))
            if family is not None:
                asked = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", matchers))
                assert asked <= always | set(family.labels), (name, asked)


@EACH
def test_grafanas_own_types_take_the_dashboard_and_lose_nothing(board: dict[str, Any]) -> None:
    again = json.loads(json.dumps(Dashboard.from_json(board), cls=JSONEncoder))
    lost = list(differences(board, again))
    assert lost == []


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """What they do not have as we said it. What they add is their default."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if value is not None:
                yield from differences(value, theirs.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for at, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{path}[{at}]")
    elif ours != theirs:
        yield f"{path}: {ours!r} became {theirs!r}"
