"""The tables of docs/ as the code says them. `python -m tests.docs.tables settings` prints one to paste."""

from __future__ import annotations

import json
import sys
from enum import Enum

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from router.settings.changes import NEED_RESTART
from router.settings.load import setting_paths
from router.telemetry.families import FAMILIES, PREFIX, Family


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
    print("\n".join({"settings": settings, "metrics": metrics}[sys.argv[1]]()))
