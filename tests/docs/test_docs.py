"""What the documents say exists, and what exists is in the documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.cli import main
from router.wire.endpoints import BY_PATH
from tests.docs import admin_scene, tables

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bench/*.md")])
README = (ROOT / "README.md").read_text()
MAKE_TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def rows_of(page: str) -> list[str]:
    return [line for line in (ROOT / "docs" / page).read_text().splitlines() if line.startswith("| `")]


def test_every_setting_is_documented_and_none_that_does_not_exist() -> None:
    assert rows_of("settings.md") == tables.settings(), "python -m tests.docs.tables settings prints the table"


def test_every_metric_is_documented_and_none_that_does_not_exist() -> None:
    assert rows_of("metrics.md") == tables.metrics(), "python -m tests.docs.tables metrics prints the table"


def test_every_word_of_a_label_is_documented() -> None:
    told = (ROOT / "docs/metrics.md").read_text().partition("## Words")[2]
    rows = [line for line in told.splitlines() if (line.startswith("| ") and "`" in line) or " | - | " in line]
    assert rows == tables.words(), "python -m tests.docs.tables words prints the table"


def test_every_alert_is_documented_and_none_that_does_not_exist() -> None:
    told = [line for line in (ROOT / "docs/observing.md").read_text().splitlines() if line.startswith("| [Olla")]
    assert told == tables.alerts(), "python -m tests.docs.tables alerts prints the table"


def test_every_inference_route_is_in_the_readme() -> None:
    assert [path for path in BY_PATH if f"`{path}`" not in README] == []


def test_every_header_of_ours_is_in_the_readme() -> None:
    sources = (path.read_text() for path in (ROOT / "router").rglob("*.py"))
    headers = {name for text in sources for name in re.findall(r"\bx-ollama-router-[a-z-]+[a-z]", text)}
    assert headers, "the pattern finds nothing any more"
    assert sorted(name for name in headers if f"`{name}`" not in README) == []


def test_every_command_is_in_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z-]+) ", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) > 3
    assert [command for command in commands if f"ollama-router {command}" not in README] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_that_are_mentioned_exist(page: Path) -> None:
    mentioned = set(re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", page.read_text(), re.MULTILINE))
    assert mentioned <= MAKE_TARGETS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_exist(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    broken = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if admin_scene.SAMPLE.search(page.read_text())], ids=str)
async def test_samples_of_commands_are_what_the_commands_say(page: Path) -> None:
    text = page.read_text()  # noqa: ASYNC240 - a test reads its own repository
    async with admin_scene.pool() as router:
        assert await admin_scene.renewed(router, text) == text, "python -m tests.docs.admin_scene PAGE prints it"


def test_both_pages_for_operators_have_samples() -> None:
    sampled = {page.name for page in PAGES if admin_scene.SAMPLE.search(page.read_text())}
    assert sampled == {"README.md", "admin.md"}


def test_every_make_target_says_what_it_does() -> None:
    described = set(re.findall(r"^([a-z0-9-]+):.*  ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert described == MAKE_TARGETS


def test_the_changelog_begins_with_what_is_not_released() -> None:
    headings = re.findall(r"^## \[?([^\]\n]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
