"""Writes what stands here as Python: `python -m dashboards`."""

from __future__ import annotations

import json
from pathlib import Path

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
    found = {"rules/ollama-router.yaml": HEAD + rules}
    for board in boards():
        found[f"{board['uid']}.json"] = json.dumps(board, indent=2, ensure_ascii=False) + "\n"
    return found


if __name__ == "__main__":
    for name, text in files().items():
        (HERE / name).write_text(text)
