"""The tables of docs/ as the code says them. `python -m tests.docs.tables settings` prints one to paste."""

from __future__ import annotations

import json
import re
import sys
from enum import Enum
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dashboards.rules import groups
from router.settings.changes import NEED_RESTART
from router.settings.load import setting_paths
from router.telemetry.families import FAMILIES, PREFIX, Family
from router.telemetry.words import Words, closed


def settings() -> list[str]:
    return [
        f"| `{path}` | {_default(field)} | {field.description}{' Needs a restart.' if path in NEED_RESTART else ''} |"
        for path, field in setting_paths().items()
    ]


def metrics() -> list[str]:
    return [_metric(family) for family in FAMILIES.values()]


def _metric(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels) or "-"
    if family.may_tell_team:
        labels += " (and `team`)"
    return f"| `{PREFIX}{family.name}` | {family.kind} | {labels} | {family.scope} | {family.help} |"


def words() -> list[str]:
    """What closed labels may say: one row where several metrics have the same words."""
    of: dict[tuple[str, Words], list[str]] = {}
    for family, label, told in closed():
        of.setdefault((label, told), []).append(f"`{family}`")
    everywhere = {label for label in {label for label, _ in of} if len([1 for known, _ in of if known == label]) == 1}
    return [
        f"| {label} | {'-' if label in everywhere else ', '.join(names)} | {', '.join(told)} |"
        for (label, told), names in of.items()
    ]


def alerts() -> list[str]:
    """One row a name: pairs of windows share one."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for group in groups()["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                by_name.setdefault(rule["alert"], []).append(rule)
    return [_alert(name, rules) for name, rules in by_name.items()]


def _alert(name: str, rules: list[dict[str, Any]]) -> str:
    severities, holds = (" / ".join(dict.fromkeys(texts)) for texts in zip(*map(_told, rules), strict=True))
    threshold = re.search(r"(\S+)  # threshold", rules[0]["expr"])
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"`\1`", rules[0]["annotations"]["summary"])
    cells = (f"[{name}](runbooks/{name}.md)", severities, holds, threshold[1] if threshold else "-", summary)
    return f"| {' | '.join(cells)} |"


def _told(rule: dict[str, Any]) -> tuple[str, str]:
    return rule["labels"]["severity"], rule["for"]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, BaseModel) or value in ((), {}, "", None):
        return "-"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value).removesuffix('.0')}`"


if __name__ == "__main__":
    print("\n".join({"settings": settings, "metrics": metrics, "words": words, "alerts": alerts}[sys.argv[1]]()))
