"""Scenario files and traces: what is wrong is told with its place, and what is right is read as it is meant."""

from __future__ import annotations

import copy
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from router.cli import main
from router.cli_simulate import POLICIES
from router.simulation.world.fields import ScenarioError
from router.simulation.world.plot import Box, Words, picture
from router.simulation.world.results import results_of
from router.simulation.world.scenario import read_scenario, scenario_of
from router.simulation.world.workload import Request, requests_of
from router.simulation.world.world import POLICY_NAMES, World

SCENARIOS = sorted((Path(__file__).parents[2] / "bench" / "scenarios").glob("*.yaml"))
GOOD: dict[str, Any] = {
    "name": "t",
    "trace": {"file": "t.csv", "format": "azure", "duration_s": 100},
    "models": [
        {
            "name": "m",
            "share": 3,
            "kind": "chat",
            "slots": 2,
            "vram_gib": 4,
            "load_s": 1,
            "prefill_tps": 9,
            "decode_tps": 9,
        },
        {"name": "e", "share": 1, "kind": "embedding", "vram_gib": 1, "load_s": 1, "prefill_tps": 9},
    ],
    "nodes": [{"name": "a", "count": 2, "vram_gib": 8}, {"name": "b", "vram_gib": 8, "models": ["m"]}],
}


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD, with one thing otherwise; `path` is dotted, numbers are indices."""
    whole = copy.deepcopy(GOOD)
    *way, last = path.split(".")
    at: Any = whole
    for step in way:
        at = at[int(step)] if step.isdigit() else at.setdefault(step, {})
    at[last] = value
    return whole


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("modles", [], "modles: unknown key"),
        ("models.0.vram", 4, "models[0].vram: unknown key"),
        ("trace.speed", 4, "trace.speed: unknown key"),
        ("models.0.share", "much", "models[0].share: should be a number, not 'much'"),
        ("models.0.share", 0, "models[0].share: should be above 0, not 0"),
        ("models.0.slots", 1.5, "models[0].slots: should be a whole number from 1"),
        ("models.1.kind", "image", "models[1].kind: should be one of chat, embedding, not 'image'"),
        ("models.0.name", "a b", "models[0].name: "),
        ("models", [], "models: should have at least 1 item"),
        ("nodes", {}, "nodes: should be a list"),
        ("nodes.1.models", ["x"], "nodes[1].models: 'x' is none of the models above"),
        ("nodes.1.name", "a-0", "nodes: 'a-0' is there twice"),
        ("trace.duration_s", float("inf"), "trace.duration_s: should be a finite number"),
        (
            "faults",
            [{"at_s": 1, "kind": "node_down", "target": "a", "for_s": 1}],
            "faults[0].target: 'a' is none of a-0",
        ),
        ("faults", [{"at_s": 1, "kind": "node_slow", "target": "a-0", "for_s": 1}], "faults[0].factor: missing"),
        ("faults", [{"at_s": 1, "kind": "node_down", "for_s": 1}], "faults[0].target: missing"),
        (
            "faults",
            [{"at_s": 1, "kind": "router_down", "target": 1, "for_s": 1}],
            "faults[0].target: '1' is none of 0",
        ),
        (
            "faults",
            [{"at_s": 1, "kind": "store_down", "for_s": 1, "slow": 2}],
            "faults[0].slow: unknown key; known here: at_s, factor, for_s, kind, target",
        ),
        ("models.1.name", "M:latest", "models: 'm' and 'M:latest' are one model to Ollama"),
        ("client.patience_s", -1, "client.patience_s: should be above 0"),
        ("routers.replicas", 0, "routers.replicas: should be a whole number from 1"),
    ],
)
def test_what_is_wrong_is_told_with_its_path(path: str, value: object, told: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario_of(changed(path, value), Path())
    assert str(caught.value).startswith(told)


def test_a_router_is_named_by_its_number_and_the_store_need_not_be_named() -> None:
    faults = [
        {"at_s": 1, "kind": "router_down", "target": 0, "for_s": 1},
        {"at_s": 1, "kind": "store_down", "for_s": 1},
    ]
    assert [fault.target for fault in scenario_of({**GOOD, "faults": faults}, Path()).faults] == ["0", "store"]


def test_counted_nodes_have_numbers_and_a_single_one_its_name() -> None:
    scenario = scenario_of(GOOD, Path())
    assert [node.name for node in scenario.nodes] == ["a-0", "a-1", "b"]
    assert [len(node.models) for node in scenario.nodes] == [2, 2, 1]
    assert [team.name for team in scenario.teams] == ["default"]


def test_time_is_stretched_and_what_falls_outside_is_left_out(tmp_path: Path) -> None:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    lines += [f"2023-11-16 18:15:{second:02}.5000000,{second + 1},7" for second in range(60)]
    with gzip.open(tmp_path / "t.csv.gz", "wt") as packed:
        packed.write("\n".join(lines))
    trace = {"file": "t.csv", "format": "azure", "duration_s": 100, "start_s": 10, "rate_scale": 0.5}
    asked = requests_of(scenario_of({**GOOD, "trace": trace}, tmp_path))
    assert [request.at_s for request in asked[:3]] == [0.0, 2.0, 4.0]
    assert asked[0].prompt_tokens == 11
    assert len(asked) == 50


def test_blocks_of_a_trace_are_what_prompts_share(tmp_path: Path) -> None:
    rows = [{"timestamp": 1000 * n, "input_length": 900, "output_length": 5, "hash_ids": [0, n % 2]} for n in range(4)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    value = changed("trace", {"file": "t.jsonl", "format": "mooncake", "duration_s": 100})
    value["models"] = value["models"][:1]
    asked = requests_of(scenario_of(value, tmp_path))
    assert [request.blocks for request in asked] == [(0, 0), (0, 1), (0, 0), (0, 1)]
    assert len({request.affinity for request in asked}) == 2


def test_a_trace_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ScenarioError, match=r"t\.csv: is no azure trace"):
        requests_of(scenario_of(GOOD, tmp_path))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_the_scenarios_here_draw_models_by_their_shares(path: Path) -> None:
    scenario = read_scenario(path)
    asked = requests_of(scenario)
    drawn = Counter(request.model.name for request in asked)
    total = sum(model.share for model in scenario.models)
    assert len(asked) > 1000
    for model in scenario.models:
        assert drawn[model.name] / len(asked) == pytest.approx(model.share / total, abs=0.03)


def test_the_command_prints_a_table_and_writes_figures_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    scenario = tmp_path / "t.yaml"
    scenario.write_text(json.dumps(GOOD))
    out = [str(tmp_path / name) for name in ("o.json", "o.svg", "o.png")]
    policies = ["--policy", "ours", "--policy", "least_connections"]
    assert main(["simulate", str(scenario), "--plot", out[2]]) == 0
    capsys.readouterr()
    assert main(["simulate", str(scenario), *policies, "--json", out[0], "--plot", out[1], "--check"]) == 0
    told = capsys.readouterr()
    assert told.err == "", "no progress bar where nobody looks"
    assert [line.split("|")[1].strip() for line in told.out.splitlines()[4:6]] == ["ours", "least_connections"]
    assert [result["served"] for result in json.loads(Path(out[0]).read_text())["policies"]] == [1, 1]
    drawn = ElementTree.parse(out[1]).getroot()
    assert drawn.tag.endswith("svg")
    with Image.open(out[2]) as image:
        assert image.size == (2 * int(drawn.attrib["width"]), 2 * int(drawn.attrib["height"]))


@pytest.mark.parametrize(
    ("name", "told"), [("o.pdf", "should end in .svg"), ("o.png", "pip install 'ollama-router[plot]'")]
)
def test_a_picture_that_cannot_be_written_is_told_before_anything_runs(
    name: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.cli_simulate.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        main(["simulate", "there-is-none.yaml", "--plot", name])
    assert told in capsys.readouterr().err


def test_what_failed_when_and_which_model_sat_where_stands_in_the_picture() -> None:
    fault = {"at_s": 40, "kind": "node_down", "target": "a-0", "for_s": 20}
    scenario = scenario_of({**GOOD, "faults": [fault]}, Path())
    model, team = scenario.models[0], scenario.teams[0]
    world = World(scenario, "ours")
    world.run([Request(number, 1.0 + number, model, team, 50, 9, ()) for number in range(60)])
    report = {
        "scenario": "t",
        "seed": 0,
        "duration_s": 100.0,
        "patience_s": 60.0,
        "nodes": [{"name": node.name} for node in scenario.nodes],
        "models": [model.key for model in scenario.models],
        "policies": [results_of(world)],
    }
    shapes = picture(report).shapes
    said = {shape.text for shape in shapes if isinstance(shape, Words)}
    assert {"node_down a-0", "a-0", "a-1", "b", "m:latest", "ours"} <= said
    assert [shape for shape in shapes if isinstance(shape, Box) and shape.tip.startswith("m:latest, ")]


def test_a_bad_scenario_is_bad_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "t.yaml"
    scenario.write_text("name: x\nnodes: [")
    assert main(["simulate", str(scenario)]) == 2
    scenario.write_text(json.dumps(changed("extra", 1)))
    assert main(["simulate", str(scenario)]) == 2
    assert f"{scenario}: extra: unknown key" in capsys.readouterr().err
    assert main(["simulate", str(tmp_path / "none.yaml")]) == 1


def test_the_command_line_knows_every_policy() -> None:
    assert POLICIES == POLICY_NAMES
