"""Writes what stands here as Python: `python -m dashboards`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from dashboards.boards import boards
from dashboards.rules import groups

HERE = Path(__file__).parent
HEAD = """\
# Written by `python -m dashboards`. Numbers stand in dashboards/thresholds.py, expressions in dashboards/rules.py.
"""


class _Dumper(yaml.SafeDumper):
    """Expressions of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def files() -> dict[str, str]:
    """Every written file, by its path under this folder."""
    rules = yaml.dump(groups(), Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    found = {"rules/ollama-router.yaml": HEAD + rules, ".lint": _lint(boards())}
    for board in boards():
        found[f"{board['uid']}.json"] = json.dumps(board, indent=2, ensure_ascii=False) + "\n"
    return found


def _lint(found: list[dict[str, Any]]) -> str:
    """What grafana's dashboard-linter is to leave out, each with its reason; it looks for this file beside a dashboard."""
    entries = [
        {"dashboard": board["title"], "panel": panel["title"], "targetIdx": str(at)}
        for board in found
        for panel in board["panels"]
        for at, target in enumerate(panel.get("targets", ()))
        if "instance" not in target["expr"]
    ]
    reason = "What rules record and fire is about a pool, and has no instance."
    return yaml.safe_dump({"exclusions": {"target-instance-rule": {"reason": reason, "entries": entries}}}, width=1000)


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text)
