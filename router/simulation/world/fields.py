"""Reads a mapping field by field: what is missing, of a wrong kind or unknown is told with its path."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

_MISSING = object()


class ScenarioError(ValueError):
    """The text says where in the file, and what is wrong there."""


class Fields:
    """`with Fields(...) as fields:` reads what is known; on leaving, whatever was not asked for is an error."""

    def __init__(self, value: object, path: str = "") -> None:
        self.path = path
        if not isinstance(value, Mapping):
            raise ScenarioError(f"{path or 'the file'}: should be a mapping, not {_kind(value)}")
        self._values: Mapping[object, object] = value
        self._asked: set[str] = set()

    def __enter__(self) -> Fields:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unknown = [key for key in self._values if key not in self._asked]
        if error is None and unknown:
            known = ", ".join(sorted(self._asked))
            raise ScenarioError(f"{self._at(str(unknown[0]))}: unknown key; known here: {known}")

    def has(self, key: str) -> bool:
        self._asked.add(key)
        return key in self._values

    def text(self, key: str, default: object = _MISSING) -> str:
        value = self._value(key, default)
        if not isinstance(value, str) or not value.strip():
            raise self._wrong(key, "a text", value)
        return value

    def label(self, key: str) -> str:
        """A text, or the number that YAML takes for one."""
        value = self._value(key, _MISSING)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.text(key)

    def choice(self, key: str, among: Sequence[str]) -> str:
        value = self.text(key)
        if value not in among:
            raise ScenarioError(f"{self._at(key)}: should be one of {', '.join(among)}, not {value!r}")
        return value

    def number(self, key: str, default: object = _MISSING, *, above: float | None = None) -> float:
        """At least 0, or above `above`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, "a number", value)
        if not math.isfinite(value):
            raise self._wrong(key, "a finite number", value)
        if above is not None and value <= above:
            raise ScenarioError(f"{self._at(key)}: should be above {above:g}, not {value:g}")
        if above is None and value < 0:
            raise ScenarioError(f"{self._at(key)}: should not be negative")
        return float(value)

    def count(self, key: str, default: object = _MISSING, *, least: int = 1) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self._wrong(key, f"a whole number from {least}", value)
        return value

    def flag(self, key: str, *, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false", value)
        return value

    def part(self, key: str) -> Fields:
        return Fields(self._value(key, {}), self._at(key))

    def parts(self, key: str, *, least: int = 0) -> Iterator[Fields]:
        value = self._value(key, ())
        if not isinstance(value, list | tuple):
            raise self._wrong(key, "a list", value)
        if len(value) < least:
            raise ScenarioError(f"{self._at(key)}: should have at least {least} item")
        for index, item in enumerate(value):
            yield Fields(item, f"{self._at(key)}[{index}]")

    def names(self, key: str, default: object) -> str | tuple[str, ...]:
        """A text, or a list of texts."""
        value = self._value(key, default)
        if isinstance(value, str):
            return value
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of texts", value)
        return tuple(value)

    def _value(self, key: str, default: object) -> object:
        self._asked.add(key)
        value = self._values.get(key, default)
        if value is _MISSING:
            raise ScenarioError(f"{self._at(key)}: missing")
        return value

    def _wrong(self, key: str, wanted: str, value: object) -> ScenarioError:
        return ScenarioError(f"{self._at(key)}: should be {wanted}, not {_kind(value)}")

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _kind(value: object) -> str:
    return "nothing" if value is None else f"{value!r}"[:60]
