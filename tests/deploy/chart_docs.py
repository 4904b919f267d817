"""README.md and values.schema.json of the chart, from values.yaml: `python -m tests.deploy.chart_docs` writes them.

A `# --` comment above a key describes it; `@open` lets a mapping hold anything, `@enum a b ""` and `@type a b` say what
a default cannot. `@of string` or `@of team key` says what stands in a list: texts, or mappings of these texts.
`@alerts` stands for the chart's alerts, by name; `@settings` for settings of the router, whose names alone are checked:
what they may be the router says.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from router.settings import Settings

CHART = Path(__file__).parents[2] / "helm" / "ollama-router"
THRESHOLD = "# threshold"  # marks the number in an alert's expression
BEGIN, END = "<!-- values -->", "<!-- end of values -->"
DIRECTIVES = "open|enum|type|of|alerts|settings"
SAID_BY_THE_CHART = (
    "nodes",
    "aliases",
    "discovery",
    "store",
    "auth",
    "shutdown",
    "tracing",
    "listen",
    "metrics_listen",
)
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}


@dataclass
class Value:
    path: tuple[str, ...]
    default: Any
    text: str = ""
    is_open: bool = False
    enum: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    is_of_alerts: bool = False
    is_of_settings: bool = False

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def is_group(self) -> bool:
        is_closed = not (self.is_open or self.is_of_alerts or self.is_of_settings)
        return isinstance(self.default, dict) and is_closed


def values() -> list[Value]:
    """In the order of the file."""
    source = (CHART / "values.yaml").read_text()
    lines = source.splitlines()
    found: list[Value] = []

    def walk(node: yaml.MappingNode, path: tuple[str, ...]) -> None:
        for key, child in node.value:
            at = (*path, key.value)
            value = _described(Value(at, _plain(child)), _comment(lines, key.start_mark.line))
            found.append(value)
            if value.is_group and isinstance(child, yaml.MappingNode):
                walk(child, at)

    root = yaml.compose(source, yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    walk(root, ())
    return found


def _plain(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    return loader.construct_object(node, deep=True)


def _comment(lines: list[str], line: int) -> str:
    told: list[str] = []
    while line > 0 and lines[line - 1].strip().startswith("#"):
        line -= 1
        told.insert(0, lines[line].strip().removeprefix("#").strip())
    text = " ".join(told)
    return text[text.index("-- ") + 3 :] if "-- " in text else ""


def _described(value: Value, text: str) -> Value:
    for directive, rest in re.findall(rf"@({DIRECTIVES})\b([^@]*)", text):
        if directive == "open":
            value.is_open = True
        elif directive == "alerts":
            value.is_of_alerts = True
        elif directive == "settings":
            value.is_of_settings = True
        elif directive == "of":
            value.items = rest.split()
        elif directive == "enum":
            value.enum = shlex.split(rest)
        else:
            value.types = rest.split()
    value.text = re.split(rf"\s*@(?:{DIRECTIVES})\b", text)[0].strip()
    return value


# --- the schema


def schema() -> dict[str, Any]:
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "ollama-router",
        **_object(),
    }
    for value in values():
        parent = root
        for step in value.path[:-1]:
            parent = parent["properties"][step]
        parent["properties"][value.path[-1]] = _schema_of(value)
    return root


def _object() -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": {}}


def _schema_of(value: Value) -> dict[str, Any]:
    told = {"description": value.text} if value.text else {}
    if value.is_group:
        return {**told, **_object()}
    if value.is_of_alerts:
        return {**told, **_object(), "properties": {name: _alert(rules) for name, rules in alerts().items()}}
    if value.is_of_settings:
        return {**told, **_names_of_settings()}
    if value.items:
        return {**told, "type": "array", "items": _item(value.items)}
    if value.enum:
        return {**told, "enum": value.enum}
    if value.types:
        return {**told, "type": value.types}
    kind = TYPES[type(value.default)]
    if kind == "array" and value.default and all(isinstance(one, str) for one in value.default):
        return {**told, "type": kind, "items": {"type": "string"}}
    return {**told, "type": kind, **(_bounds(value) if kind in ("integer", "number") else {})}


def _names_of_settings() -> dict[str, Any]:
    """Those that have a place of their own in the chart are let through: its own words for them say more."""
    whole = Settings.model_json_schema()
    named: dict[str, Any] = {"type": "object", **_names(whole, whole["$defs"])}
    of_the_chart = {name: {"type": "string"} for name in ("existingConfigMap", "existingConfigMapKey")}
    named["properties"] |= of_the_chart | {name: {} for name in SAID_BY_THE_CHART}
    return named


def _names(schema: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """Which keys may stand in it, and in what stands in it; a setting of several shapes may be anything."""
    if "$ref" in schema:
        return _names(known[schema["$ref"].rpartition("/")[2]], known)
    if "properties" in schema:
        inner = {name: _names(one, known) for name, one in schema["properties"].items()}
        return {"additionalProperties": False, "properties": inner}
    if isinstance(schema.get("additionalProperties"), dict):
        return {"additionalProperties": _names(schema["additionalProperties"], known)}
    return {"items": _names(schema["items"], known)} if "items" in schema else {}


def _bounds(value: Value) -> dict[str, int]:
    return {"minimum": 1, "maximum": 65535} if value.path[-1].lower().endswith("port") else {"minimum": 0}


def _item(words: list[str]) -> dict[str, Any]:
    if words == ["string"]:
        return {"type": "string", "minLength": 1}
    texts = {word: {"type": "string", "minLength": 1} for word in words}
    return {**_object(), "properties": texts, "required": words}


def alerts() -> dict[str, list[dict[str, Any]]]:
    """Rules of the chart's alerts, by name: pairs of windows share one."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((CHART / "alerts").glob("*.yaml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    found.setdefault(rule["alert"], []).append(rule)
    return found


def _alert(rules: list[dict[str, Any]]) -> dict[str, Any]:
    texts = {rule["annotations"]["summary"] for rule in rules}
    changes: dict[str, Any] = {
        "enabled": {"type": "boolean"},
        "for": {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"},
        "severity": {"type": "string", "minLength": 1},
    }
    if all(THRESHOLD in rule["expr"] for rule in rules):
        changes["threshold"] = {"type": "number", "minimum": 0}
    return {"description": " / ".join(sorted(texts)), **_object(), "properties": changes}


# --- the README


def table() -> Iterator[str]:
    yield "| key | default | what it does |"
    yield "| --- | --- | --- |"
    for value in values():
        if not value.is_group:
            default = json.dumps(value.default, ensure_ascii=False).replace("|", "\\|")
            text = value.text.replace("|", "\\|")
            one_of = f" One of {', '.join(one or '``' for one in value.enum)}." if value.enum else ""
            yield f"| `{value.name}` | `{default}` | {text}{one_of} |"


def readme() -> str:
    """The file as it should be: what a person wrote, with the table renewed."""
    text = (CHART / "README.md").read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{chr(10).join(table())}\n{END}{after}"


def schema_text() -> str:
    return json.dumps(schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme())
    (CHART / "values.schema.json").write_text(schema_text())
