"""Runbooks, as somebody reads them who was woken: what they name exists, and what they say to run runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import promql_parser
import pytest

from dashboards.rules import groups
from router.settings.load import setting_paths
from tests.deploy.chart_docs import values
from tests.docs import admin_scene
from tests.observe.scenes_of_alerts import SCENES
from tests.observe.test_dashboards import FOREIGN, known, selectors
from tests.shell.clients import get

BOOKS = sorted((Path(__file__).parents[2] / "docs" / "runbooks").glob("*.md"))
EACH = pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Causes", "Mitigation", "Silence"]
EXPORTERS = {"container_cpu_cfs_throttled_seconds_total"}  # of machines, not ours
KUBECTL = {"get", "logs", "describe", "top", "auth", "rollout", "delete"}
REDIS = {"ping", "info", "slowlog", "--latency"}
BURNS = {"OllamaRouterErrorBudgetBurn", "OllamaRouterTTFTBudgetBurn"}


def blocks(path: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", path.read_text(), re.DOTALL)


def commands(path: Path) -> list[list[str]]:
    """The first of each pipe."""
    lines = [line for block in blocks(path, "sh") for line in block.splitlines()]
    return [shlex.split(line.split(" | ")[0]) for line in lines]


def part(path: Path, heading: str) -> str:
    return path.read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0].strip()


@EACH
def test_a_runbook_says_what_it_means_what_to_run_first_why_what_to_do_and_how_to_be_left_alone(path: Path) -> None:
    assert re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) == [path.stem, *HEADINGS]
    assert all(part(path, heading) for heading in HEADINGS)
    assert re.findall(r"^(\d)\. ", part(path, "Diagnosis"), re.MULTILINE) == ["1", "2", "3"]
    for heading in ("Causes", "Mitigation"):
        assert part(path, heading).startswith("- ")


@EACH
def test_metrics_that_are_named_exist(path: Path) -> None:
    for block in blocks(path, "promql"):
        for expr in block.split("\n\n"):
            promql_parser.parse(expr)
    named = {name for block in blocks(path, "promql") for _, name, _ in selectors(block)}
    named |= set(re.findall(r"`(\w+_total)`", path.read_text()))
    assert {name for name in named if not known(name) and name not in FOREIGN | EXPORTERS} == set()


@EACH
def test_settings_that_are_named_exist_in_the_router_or_in_its_chart(path: Path) -> None:
    named = {
        re.sub(r"\[\]|\{.*", "", name) for name in re.findall(r"`([a-z]+\w*(?:\[\])?\.[\w.<>]+)", path.read_text())
    }
    settings = {re.sub(r"\[\]", "", setting) for setting in setting_paths()}
    known_names = settings | {value.name for value in values()}
    assert {name for name in named if name not in known_names and "router.io" not in name} == set()


@EACH
def test_commands_are_of_programs_that_have_them(path: Path) -> None:
    for program, *words in commands(path):
        match program:
            case "ollama-router" | "curl":
                pass  # these are run below
            case "kubectl":
                assert words[0] in KUBECTL, words
                assert all(word == "app.kubernetes.io/name=ollama-router" for word in after("-l", words)), words
            case "redis-cli":
                assert words[:2] == ["-u", "URL"], words
                assert words[2] in REDIS, words
            case _:
                assert program in ("amtool", "journalctl"), program


def after(option: str, words: list[str]) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


@EACH
def test_a_silence_names_its_alert_by_labels_that_it_has_and_says_why_and_for_how_long(path: Path) -> None:
    (block,) = blocks(path, "sh")[-1:]
    program, verb, order, *rest = shlex.split(block)
    assert (program, verb, order) == ("amtool", "silence", "add")
    matchers = dict(word.split("=", 1) for word in rest if not word.startswith("--"))
    options = dict(word.removeprefix("--").split("=", 1) for word in rest if word.startswith("--"))
    assert matchers.pop("alertname") == path.stem
    assert matchers.keys() <= ({"long", "short"} if path.stem in BURNS else SCENES[path.stem].labels.keys())
    assert re.fullmatch(r"\d+[mh]", options["duration"])
    assert options["comment"]


async def test_what_they_say_to_ask_of_a_router_is_answered(tmp_path: Path) -> None:
    config = tmp_path / "router.yaml"
    config.write_text("nodes: [http://gpu-1:11434]\n")
    stands_for = {"NODE": "gpu-1", "MODEL": "llama3.2:3b", "FILE": str(config)}
    in_text = {
        tuple(found.split()) for path in BOOKS for found in re.findall(r"`(ollama-router [^`]+)`", path.read_text())
    }
    asked = {tuple(words) for path in BOOKS for words in commands(path) if words[0] == "ollama-router"} | in_text
    assert len(asked) >= 5, "the pattern finds nothing any more"
    async with admin_scene.pool() as router:
        for _, *words in sorted(asked):
            if words[0] != "serve":
                said = await admin_scene.run(router, [stands_for.get(word, word) for word in words])
                assert "usage:" not in said, said
                assert said.startswith(("NAME", "MODEL", "llama3.2:3b", "gpu-1", str(config))), said


async def test_addresses_that_they_say_to_ask_answer() -> None:
    urls = {words[-1] for path in BOOKS for words in commands(path) if words[0] == "curl"}
    async with admin_scene.pool() as router:
        ports = {"9464": router.metrics_port, "11434": router.port}
        for url in urls:
            port, target = re.fullmatch(r"http://[A-Z]+:(\d+)(/\S+)", url).groups()  # type: ignore[union-attr]
            assert (await get(ports[port], target)).status == 200, url


def test_every_runbook_that_another_one_leads_to_is_of_an_alert() -> None:
    alerts = {rule["alert"] for group in groups()["groups"] for rule in group["rules"] if "alert" in rule}
    named = {name for path in BOOKS for name in re.findall(r"OllamaRouter[A-Z]\w+", path.read_text())}
    assert named == alerts
