"""Recording rules and alerts: Prometheus takes them, each fires once and stays quiet once, and each has its runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dashboards import rules as source
from dashboards import thresholds
from dashboards.__main__ import files
from router.telemetry.families import FIRST_TOKEN_S
from tests.observe.promtool import promtool
from tests.observe.scenes_of_alerts import ERRORS, FIRST_TOKENS, SCENES, Scene, Series

ROOT = Path(__file__).parents[2]
RULES = ROOT / "dashboards" / "rules" / "ollama-router.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS = [rule for group in source.groups()["groups"] for rule in group["rules"] if "alert" in rule]


def scenes_of(name: str) -> list[Scene]:
    """One, or one for each pair of windows."""
    if name == "OllamaRouterErrorBudgetBurn":
        return list(ERRORS.values())
    if name == "OllamaRouterTTFTBudgetBurn":
        return list(FIRST_TOKENS.values())
    return [SCENES[name]]


def the_rule(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return next(
        rule for rule in ALERTS if rule["alert"] == name and rule["labels"].get("long", "") == labels.get("long", "")
    )


def filled(text: str, scene: Scene) -> str:
    text = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda match: scene.labels.get(match[1], ""), text)
    return re.sub(r"\{\{ \$value( \| \w+)? \}\}", scene.value, text)


def alone(rule: dict[str, Any]) -> dict[str, Any]:
    """With the recordings that it names: the windows of other burn rates would fire with it, a little later."""
    recorded = [each for each in source.recording() if re.search(rf"{each['record']}\b", rule["expr"])]
    groups = [{"name": "recorded", "rules": recorded}, {"name": "alert", "rules": [rule]}]
    return {"groups": [group for group in groups if group["rules"]]}


def case_of(name: str, series: Series, scene: Scene, *, is_quiet: bool = False) -> dict[str, Any]:
    rule = the_rule(name, scene.labels)
    expected = {
        "exp_labels": {**scene.labels, "severity": rule["labels"]["severity"]},
        "exp_annotations": {key: filled(text, scene) for key, text in rule["annotations"].items()},
    }
    return {
        "interval": scene.interval,
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "alert_rule_test": [{"alertname": name, "eval_time": scene.at, "exp_alerts": [] if is_quiet else [expected]}],
    }


def test_what_is_written_is_what_is_said() -> None:
    stale = [name for name, text in files().items() if (ROOT / "dashboards" / name).read_text() != text]
    assert stale == [], "python -m dashboards writes them"


def test_prometheus_takes_the_rules() -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("name", sorted({rule["alert"] for rule in ALERTS}))
def test_an_alert_fires_when_it_should_and_is_quiet_when_it_should(name: str, tmp_path: Path) -> None:
    for number, scene in enumerate(scenes_of(name)):
        rules, path = tmp_path / f"rules-{number}.yaml", tmp_path / f"test-{number}.yaml"
        rules.write_text(yaml.safe_dump(alone(the_rule(name, scene.labels))))
        cases = [case_of(name, scene.fires, scene), case_of(name, scene.quiet, scene, is_quiet=True)]
        test = {"rule_files": [str(rules)], "evaluation_interval": scene.interval, "tests": cases}
        path.write_text(yaml.safe_dump(test))
        ran = promtool("test", "rules", path)
        assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_has_a_scene_and_every_scene_an_alert() -> None:
    burning = {"OllamaRouterErrorBudgetBurn", "OllamaRouterTTFTBudgetBurn"}
    assert {rule["alert"] for rule in ALERTS} == {*SCENES, *burning}
    assert len(ERRORS) == len(FIRST_TOKENS) == len(thresholds.BURNS)


def test_every_alert_says_what_why_and_where_to_read_on() -> None:
    for rule in ALERTS:
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["runbook_url"] == f"{thresholds.RUNBOOKS}/{rule['alert']}.md"


def test_every_alert_has_its_runbook_and_no_runbook_is_left_over() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {rule["alert"] for rule in ALERTS}


def test_the_latency_objective_is_a_bound_of_its_histogram() -> None:
    assert thresholds.TTFT_S in FIRST_TOKEN_S
