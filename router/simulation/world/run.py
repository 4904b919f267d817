"""`ollama-router simulate`: scenario in, tables, files and pictures out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from router.simulation.world.checks import Checker
from router.simulation.world.plot import picture
from router.simulation.world.results import results_of
from router.simulation.world.scenario import Scenario, read_scenario
from router.simulation.world.svg import svg
from router.simulation.world.table import findings, table
from router.simulation.world.workload import requests_of
from router.simulation.world.world import POLICY_NAMES, World

Progress = Callable[[str, float], None]  # policy, and how much of its run is done: 0.0 to 1.0


def simulate(
    path: Path, policies: Sequence[str] = POLICY_NAMES, *, checks: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Every figure of every policy. Raises ScenarioError and OSError; AssertionError where a check finds a defect."""
    return run_all(read_scenario(path), policies, checks=checks, progress=progress)


def run_all(
    scenario: Scenario, policies: Sequence[str], *, checks: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    requests = requests_of(scenario)
    results = []
    for policy in dict.fromkeys(policies):
        world = World(scenario, policy)
        checker = Checker(world) if checks else None

        def tell(now_s: float, policy: str = policy) -> None:
            if progress is not None:
                progress(policy, min(1.0, now_s / scenario.trace.duration_s))

        world.run(requests, after_each=checker.look if checker is not None else None, progress=tell)
        if checker is not None:
            checker.look_at_the_end()
        results.append(results_of(world))
    return {
        "scenario": scenario.name,
        "seed": scenario.seed,
        "duration_s": scenario.trace.duration_s,
        "patience_s": scenario.patience_s,
        "nodes": [{"name": node.name, "vram_gib": node.vram_gib} for node in scenario.nodes],
        "models": [model.key for model in scenario.models],
        "policies": results,
    }


def summary(report: Mapping[str, Any]) -> str:
    """For people."""
    results = report["policies"]
    calls = results[0]["calls"] if results else 0
    head = f"{report['scenario']}: {calls} calls in {report['duration_s']:g} s, {len(report['nodes'])} nodes"
    found = findings(results, report["patience_s"])
    return "\n".join([head, "", table(results), *(["", *(f"ours: {line}" for line in found)] if found else [])])


def write_json(report: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_plot(report: Mapping[str, Any], path: Path) -> None:
    """As PNG where the name says so, which needs Pillow; else as SVG."""
    drawn = picture(report)
    if path.suffix == ".png":
        from router.simulation.world.png import png  # noqa: PLC0415 - an extra that may not be there

        path.write_bytes(png(drawn))
    else:
        path.write_text(svg(drawn), encoding="utf-8")
