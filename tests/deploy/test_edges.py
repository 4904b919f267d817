"""docs/edges: every page has numbers with their sources, values that render, and the arithmetic of leaving right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("helm_python", reason="no Helm for this platform: the chart is not checked here")

from router.settings import load_settings
from tests.deploy.render import ROOT, Object, check, config_of, is_foreign, named, objects_of, pod_of

FOLDER = ROOT / "docs" / "edges"
INDEX = (FOLDER / "README.md").read_text()
PAGES = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
VALUES = re.compile(r"^```yaml\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(page, match[1], id=f"{page.name}:{page.read_text().count(chr(10), 0, match.start()) + 1}")
    for page in PAGES
    for match in VALUES.finditer(page.read_text())
]
# Kinds of the edges themselves, of which no schema is at hand here.
OF_EDGES = ("gateway.envoyproxy.io/", "networking.gke.io/", "cloud.google.com/", "route.openshift.io/")
SUM = re.compile(r"(\d+) \+ (\d+) \+ 15 = (\d+) s")
each_example = pytest.mark.parametrize(("page", "text"), EXAMPLES)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def rendered(text: str) -> list[Object]:
    values: dict[str, Any] = yaml.safe_load(text)
    return objects_of(values)


@each_example
def test_values_of_a_page_render_and_kubernetes_takes_them(page: Path, text: str) -> None:
    for one in rendered(text):
        if not is_foreign(one) and not str(one["apiVersion"]).startswith(OF_EDGES):
            check(one)


@each_example
def test_the_router_takes_what_they_say_to_it(page: Path, text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config_of(rendered(text))))
    loaded = load_settings(str(file))
    assert [warning for warning in loaded.warnings if "auth" not in warning] == []


@each_example
def test_the_arithmetic_of_leaving_is_that_of_the_values(page: Path, text: str) -> None:
    objects = rendered(text)
    leaving = config_of(objects)["shutdown"]
    delay, streams = int(leaving["drain_delay_s"]), int(leaving["stream_drain_s"])
    pod = pod_of(named(objects, "Deployment", "r-ollama-router"))
    told = [tuple(map(int, match)) for match in SUM.findall(page.read_text())]
    assert told
    assert set(told) == {(delay, streams, pod["terminationGracePeriodSeconds"])}


@each_example
def test_an_edge_s_own_draining_is_no_shorter_than_the_router_s(page: Path, text: str) -> None:
    leaving = config_of(rendered(text))["shutdown"]
    least = int(leaving["drain_delay_s"]) + int(leaving["stream_drain_s"])
    said = re.findall(
        r"(?:deregistration_delay\.timeout_seconds=|drainingTimeoutSec: |draining-timeout: \")(\d+)", text
    )
    assert [int(seconds) for seconds in said if int(seconds) < least] == []


@each_example
def test_targets_of_the_edge_s_policies_are_objects_of_the_chart(page: Path, text: str) -> None:
    objects = rendered(text)
    there = {(one["kind"], one["metadata"]["name"]) for one in objects}
    for one in objects:
        if str(one["apiVersion"]).startswith(OF_EDGES):
            spec = one["spec"]
            for target in [*spec.get("targetRefs", []), *([spec["targetRef"]] if "targetRef" in spec else [])]:
                assert (target["kind"], target["name"]) in there


@each_page
def test_a_page_says_where_its_numbers_are_from_and_how_to_see_that_it_works(page: Path) -> None:
    text = page.read_text()
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == ["Values", "Leaving", "Seeing that it works"]
    limits = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert limits
    for line in limits:
        assert "](https://" in line or line.rstrip(" |").endswith("the same"), f"no source: {line}"
    assert "README.md#how-to-check-an-edge" in text
    assert VALUES.search(text)


def test_the_index_has_a_row_for_every_page() -> None:
    linked = re.findall(r"^\| \[[^\]]+\]\(([a-z-]+\.md)\)", INDEX, re.MULTILINE)
    assert sorted(linked) == [page.name for page in PAGES]


def test_the_drain_delays_of_the_index_are_those_of_the_pages() -> None:
    for name, delay in re.findall(r"^\| \[[^\]]+\]\(([a-z-]+\.md)\) .*\| (\d+) \|$", INDEX, re.MULTILINE):
        (told,) = {int(match[0]) for match in SUM.findall((FOLDER / name).read_text())}
        assert told == int(delay), name


def test_what_the_index_says_of_the_router_is_its_default() -> None:
    settings = load_settings(overrides={"nodes": ["gpu-1"]}).settings
    told = (settings.line.comment_after_s, settings.line.comment_every_s)
    assert f"`line.comment_after_s` ({told[0]:g} s)" in INDEX
    assert f"`line.comment_every_s` ({told[1]:g} s)" in INDEX
    assert f"`timeouts.first_byte_s` is {settings.timeouts.first_byte_s:g}" in INDEX
    assert f"`timeouts.idle_s` ({settings.timeouts.idle_s:g} s)" in INDEX
    assert f"`client.keep_alive_s` ({settings.client.keep_alive_s:g} s)" in INDEX
