"""Counts and histograms as plain numbers, and their text. One loop writes and reads them: there are no locks."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping
from types import MappingProxyType

from router.telemetry.families import COUNTER, PREFIX, Family
from router.telemetry.names import Pair

Labels = tuple[str, ...]
Sample = tuple[Labels, float]
_NONE: Mapping[int, str] = MappingProxyType({})
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class Counter:
    __slots__ = ("family", "values")

    def __init__(self, family: Family) -> None:
        self.family = family
        self.values: dict[Labels, float] = {}

    def add(self, labels: Labels, amount: float = 1) -> None:
        values = self.values
        values[labels] = values.get(labels, 0) + amount

    def forget(self, living: Container[str], over: Container[Pair]) -> None:
        _forget(self.family, self.values, living, over)

    def text(self, *, has_exemplars: bool = False) -> Iterator[str]:
        """Has none, but is asked as histograms are."""
        # A copy: between two slices of a scrape calls go on and may add series.
        return sample_text(self.family, list(self.values.items()))


class Histogram:
    """Each series is a list: a count for each bucket, one for what is above them all, and the sum."""

    __slots__ = ("_blank", "_bounds", "_exemplars", "family", "values")

    def __init__(self, family: Family) -> None:
        self.family = family
        self._bounds = family.bounds
        self._blank: list[float] = [0] * (len(family.bounds) + 2)
        self.values: dict[Labels, list[float]] = {}
        self._exemplars: dict[Labels, dict[int, str]] = {}  # by bucket: the last one, as text

    def observe(self, labels: Labels, value: float) -> None:
        row = self.values.get(labels)
        if row is None:
            row = self.values[labels] = self._blank.copy()
        row[bisect_left(self._bounds, value)] += 1  # le is inclusive
        row[-1] += value

    def exemplify(self, labels: Labels, value: float, trace_id: str, wall_s: float) -> None:
        """A trace that shows what this value was like; the last one of each bucket is kept."""
        text = f' # {{trace_id="{trace_id}"}} {value!r} {wall_s:.3f}'
        self._exemplars.setdefault(labels, {})[bisect_left(self._bounds, value)] = text

    def forget(self, living: Container[str], over: Container[Pair]) -> None:
        _forget(self.family, self.values, living, over)

    def text(self, *, has_exemplars: bool = False) -> Iterator[str]:
        """One piece a series, never torn: its count and its buckets belong to the same moment."""
        name = PREFIX + self.family.name
        edges = [*(f'le="{bound!r}"}} ' for bound in map(float, self._bounds)), 'le="+Inf"} ']
        for labels, row in list(self.values.items()):
            pairs = _pairs(self.family.labels, labels)
            head = f"{name}_bucket{{{pairs}," if pairs else f"{name}_bucket{{"
            shown = self._exemplars.get(labels, _NONE) if has_exemplars else _NONE
            lines, total = [], 0.0
            for bucket, (edge, count) in enumerate(zip(edges, row, strict=False)):
                total += count
                lines.append(f"{head}{edge}{total!r}{shown.get(bucket, '')}\n")
            tail = f"{{{pairs}}}" if pairs else ""
            yield f"{''.join(lines)}{name}_sum{tail} {float(row[-1])!r}\n{name}_count{tail} {total!r}\n"


def header(family: Family, *, is_open: bool = False) -> str:
    """`is_open`: for OpenMetrics, where a counter's family has its name without `_total`."""
    name = PREFIX + (family.name.removesuffix("_total") if is_open and family.kind == COUNTER else family.name)
    meaning = family.help.translate(_ESCAPES).replace(r"\"", '"')
    return f"# HELP {name} {meaning} ({family.scope})\n# TYPE {name} {family.kind}\n"


def sample_text(family: Family, samples: Iterable[Sample]) -> Iterator[str]:
    name = PREFIX + family.name
    for labels, value in samples:
        pairs = _pairs(family.labels, labels)
        yield f"{name}{{{pairs}}} {float(value)!r}\n" if pairs else f"{name} {float(value)!r}\n"


def _pairs(names: Labels, values: Labels) -> str:
    return ",".join([f'{name}="{value.translate(_ESCAPES)}"' for name, value in zip(names, values, strict=True)])


def _forget(
    family: Family,
    values: dict[Labels, list[float]] | dict[Labels, float],
    living: Container[str],
    over: Container[Pair],
) -> None:
    """Series of nodes that have left, and of models that have left a node's memory: they would be scraped for ever."""
    if family.labels[:1] != ("node",):
        return
    tells_models = family.labels[1:2] == ("model",)
    for labels in list(values):
        if labels[0] not in living or (tells_models and labels[:2] in over):
            del values[labels]
