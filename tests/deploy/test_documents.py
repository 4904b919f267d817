"""What the pages for operators of a cluster tell people to set and to type exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("helm_python", reason="no Helm for this platform: the chart is not checked here")

from tests.deploy import chart_docs
from tests.deploy.render import CHART, ROOT, objects_of
from tests.docs import tables

PAGES = [
    ROOT / "docs" / name for name in ("kubernetes.md", "security.md", "sizing.md", "troubleshooting.md", "store.md")
]
PAGES += [*sorted((ROOT / "docs/edges").glob("*.md")), ROOT / "docs/observing.md", CHART / "README.md"]
VALUES = {value.name: value for value in chart_docs.values()}
TOPS = {name.split(".")[0] for name in VALUES}
CODE = re.compile(r"`([^`\n]+)`")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# A page may name the router's own settings as well.
SETTINGS = {row.split("`")[1] for row in tables.settings()}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def mentioned(page: Path) -> set[str]:
    """Dotted names that begin as a value of the chart does."""
    text = FENCED.sub("", page.read_text())
    found = set()
    for code in CODE.findall(text):
        name = re.split(r"[:={ ]", code)[0]
        if re.fullmatch(r"[a-zA-Z]+(\.[a-zA-Z]+)+", name) and name.split(".")[0] in TOPS:
            found.add(name)
    return found


def is_known(name: str) -> bool:
    """A value, a group of them, what stands in one that is open, or a setting, under `config` as well."""
    parts = name.split(".")
    above = [".".join(parts[: count + 1]) for count in range(len(parts))]
    setting = name.removeprefix("config.")
    is_setting = any(one == setting or one.startswith(f"{setting}.") for one in SETTINGS)
    of_config = name in ("config.existingConfigMap", "config.existingConfigMapKey")
    return is_setting or of_config or name in VALUES or any(one in VALUES and VALUES[one].is_open for one in above)


@each_page
def test_values_that_a_page_names_exist(page: Path) -> None:
    assert [name for name in sorted(mentioned(page)) if not is_known(name)] == []


def test_the_installing_page_names_values_at_all() -> None:
    assert len(mentioned(ROOT / "docs/kubernetes.md")) > 20


@each_page
def test_commands_are_of_programs_and_objects_that_there_are(page: Path) -> None:
    names = {(one["kind"].lower(), one["metadata"]["name"].removeprefix("r-")) for one in objects_of()}
    short = {"deploy": "deployment", "svc": "service"}
    for _, block in FENCED.findall(page.read_text()):
        for kind, name in re.findall(
            r"\b(deploy|deployment|service|svc|statefulset)[/ ](ollama-router[a-z-]*)\b", block
        ):
            assert (short.get(kind, kind), name) in names, f"{kind}/{name}"
        for command in re.findall(r"^(?:kubectl|helm) .*", block, re.MULTILINE):
            told = command.split()
            assert told[1] in KUBECTL | HELM or told[1].startswith("--"), command


HELM = {"install", "test", "upgrade", "rollback", "uninstall", "history"}
KUBECTL = {
    "annotate",
    "apply",
    "auth",
    "create",
    "delete",
    "describe",
    "exec",
    "get",
    "label",
    "logs",
    "port-forward",
    "rollout",
}


@pytest.mark.parametrize("path", sorted((ROOT / "k8s/overlays").iterdir()), ids=lambda path: path.name)
def test_overlays_that_the_page_names_exist(path: Path) -> None:
    assert "k8s/overlays/dev        # or prod" in (ROOT / "docs/kubernetes.md").read_text()
    assert path.name in ("dev", "prod")


def test_upgrades_take_the_new_chart_s_defaults() -> None:
    """`--reuse-values` would render a new chart with the old one's, in which its new keys are missing."""
    for page in (*PAGES, ROOT / "README.md"):
        for _, block in FENCED.findall(page.read_text()):
            assert " --reuse-values" not in block, page.name
