"""The configuration file: its values, and the line on which each stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

# A list of 1,000 nodes with everything said takes 200 KB; more is a wrong file.
CONFIG_BYTES_MAX = 4 * 1024 * 1024
Steps = tuple[int | str, ...]


class FileProblem(Exception):
    """The file cannot be read, or is no YAML mapping. The text names file and line."""


@dataclass(frozen=True, slots=True)
class YamlFile:
    name: str = "configuration file"
    values: Mapping[str, Any] = field(default_factory=dict)
    tree: yaml.Node | None = None

    def line_of(self, steps: Steps) -> int | None:
        """Counted from 1; of the longest part of the path that the file holds. None when it holds nothing of it."""
        line, node = None, self.tree
        for step in steps:
            child = _child(node, step)
            if child is None:
                return line
            line, node = child
        return line


def read_yaml(name: str) -> YamlFile:
    """Refuses with FileProblem."""
    try:
        with open(name, "rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise FileProblem(f"{name}: {error.strerror or error}") from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise FileProblem(f"{name}: larger than {CONFIG_BYTES_MAX} bytes, which is no configuration of this router")
    return parse_yaml(name, raw)


def parse_yaml(name: str, raw: bytes) -> YamlFile:
    try:
        tree = yaml.compose(raw, yaml.SafeLoader)
        values = yaml.safe_load(raw)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise FileProblem(f"{name}{line}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:  # bytes that are no text; a date that does not exist
        raise FileProblem(f"{name}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise FileProblem(f"{name}: nested too deeply") from None
    if values is None:
        return YamlFile(name)
    if not isinstance(values, dict):
        raise FileProblem(f"{name}:1: should hold settings by name, such as 'nodes:'")
    for key in _repeated(tree, set()):
        raise FileProblem(f"{name}:{key.start_mark.line + 1}: {key.value!r} stands here a second time")
    # A group with nothing but comments in it reads as null.
    return YamlFile(name, {key: value for key, value in values.items() if value is not None}, tree)


def _child(node: yaml.Node | None, step: int | str) -> tuple[int, yaml.Node] | None:
    """The line of the key, or of the list's item, and what stands there."""
    if isinstance(node, yaml.MappingNode):
        found = [(key, value) for key, value in node.value if key.value == str(step)]
        return (found[-1][0].start_mark.line + 1, found[-1][1]) if found else None
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        item: yaml.Node = node.value[step]
        return item.start_mark.line + 1, item
    return None


def _repeated(node: yaml.Node | None, seen: set[int]) -> Iterator[yaml.ScalarNode]:
    """Keys that YAML would let the last one win of. Anchored nodes are looked at once."""
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _repeated(item, seen)
    elif isinstance(node, yaml.MappingNode):
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names:
                    yield key
                names.add(key.value)
            yield from _repeated(value, seen)
