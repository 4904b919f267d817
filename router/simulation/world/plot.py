"""Results as a picture of shapes, in pixels from the upper left. How a picture is written, `svg` and `png` say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

WIDTH = 1200
LEFT, RIGHT = 150, 210  # for names before, and keys after a panel
PANEL_HEIGHT = 200
ROW_HEIGHT = 22
GAP = 56
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
FRAME_COLOR = "#bbbbbb"
FAULT_COLOR = "#fde2e0"
NODES_MAX = 60  # rows of memory in one picture

Results = Mapping[str, Any]
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """Filled, or only framed. `tip` is shown where a form can."""

    left: float
    top: float
    width: float
    height: float
    color: str
    opacity: float = 1.0
    is_filled: bool = True
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    points: tuple[Point, ...]
    color: str


@dataclass(frozen=True, slots=True)
class Words:
    """`top` is the text's base line."""

    left: float
    top: float
    text: str
    size: int = 12
    anchor: str = "start"  # or middle, or end


Shape = Box | Curve | Words


@dataclass(frozen=True, slots=True)
class Picture:
    width: int
    height: int
    shapes: tuple[Shape, ...]


class Axis:
    """Seconds from left to right; and what was down or slow meanwhile."""

    def __init__(self, end_s: float, faults: Sequence[Results]) -> None:
        self.end_s = end_s
        self.faults = faults

    def x(self, at_s: float) -> float:
        return LEFT + min(at_s, self.end_s) / self.end_s * (WIDTH - LEFT - RIGHT)


def picture(report: Mapping[str, Any]) -> Picture:
    """Time to first token of every policy; then lines and memory of ours, or of the first that ran."""
    results: Sequence[Results] = report["policies"]
    shown = next((result for result in results if result["policy"] == "ours"), results[0])
    axis = Axis(report["duration_s"], shown["faults"])
    shapes: list[Shape] = [Words(LEFT, 24, f"{report['scenario']}, seed {report['seed']}", size=16)]
    top = float(GAP)
    for height, drawn in (
        _first_tokens(results, axis, report["patience_s"]),
        _lines(shown, report["models"], axis),
        _memory(shown, report, axis),
    ):
        shapes += [_lowered(shape, top) for shape in drawn]
        top += height + GAP
    return Picture(WIDTH, round(top), tuple(shapes))


def _lowered(shape: Shape, by: float) -> Shape:
    if isinstance(shape, Curve):
        return replace(shape, points=tuple((x, y + by) for x, y in shape.points))
    return replace(shape, top=shape.top + by)


def _first_tokens(results: Sequence[Results], axis: Axis, patience_s: float) -> tuple[float, Iterator[Shape]]:
    series = [
        Series(result["policy"], _color(index), [(point["at_s"], point["p95"]) for point in result["over_time"]])
        for index, result in enumerate(results)
    ]
    return PANEL_HEIGHT, _panel("time to first token, p95 of 30 s (s)", series, axis, patience_s)


def _lines(result: Results, models: Sequence[str], axis: Axis) -> tuple[float, Iterator[Shape]]:
    waited = {key for sample in result["lines"] for key in sample["waiting"]}
    series = [
        Series(key, _color(index), [(one["at_s"], float(one["waiting"].get(key, 0))) for one in result["lines"]])
        for index, key in enumerate(models)
        if key in waited
    ]
    highest = max((value for one in series for _, value in one.points), default=1.0)
    return PANEL_HEIGHT, _panel(f"calls without a slot ({result['policy']})", series, axis, max(1.0, highest))


class Series(NamedTuple):
    """`points` are seconds and values."""

    name: str
    color: str
    points: Sequence[Point]


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _panel(title: str, series: Sequence[Series], axis: Axis, highest: float) -> Iterator[Shape]:
    yield Words(LEFT, -8, title, size=14)
    yield from _frame(axis, PANEL_HEIGHT)
    for share in (0.0, 0.5, 1.0):
        yield Words(LEFT - 8, PANEL_HEIGHT * (1 - share) + 4, f"{highest * share:g}", anchor="end")
    for index, (name, color, points) in enumerate(series):
        path = tuple((axis.x(at_s), PANEL_HEIGHT * (1 - min(1.0, value / highest))) for at_s, value in points)
        yield Curve(path, color)
        yield from _key(index, name, color)
    for fault in axis.faults:
        yield Words(axis.x(fault["at_s"]) + 3, 12, f"{fault['kind']} {fault['target']}", size=9)


def _memory(result: Results, report: Mapping[str, Any], axis: Axis) -> tuple[float, Iterator[Shape]]:
    nodes = [node["name"] for node in report["nodes"]][:NODES_MAX]
    color_of = {key: _color(index) for index, key in enumerate(report["models"])}
    lanes = {node: _laned([stay for stay in result["stays"] if stay["node"] == node]) for node in nodes}
    tops, height = {}, 0.0
    for node in nodes:
        tops[node] = height
        height += ROW_HEIGHT * max(1, max((lane + 1 for lane, _ in lanes[node]), default=1)) + 6
    return height, _memory_rows(result, axis, lanes, tops, height, color_of)


def _memory_rows(  # noqa: PLR0917 - one caller
    result: Results,
    axis: Axis,
    lanes: Mapping[str, Sequence[tuple[int, Results]]],
    tops: Mapping[str, float],
    height: float,
    color_of: Mapping[str, str],
) -> Iterator[Shape]:
    yield Words(LEFT, -8, f"which model sits in which memory ({result['policy']}); pale while it loads", size=14)
    yield from _frame(axis, height)
    for node, stays in lanes.items():
        yield Words(LEFT - 8, tops[node] + 15, node, anchor="end")
        for lane, stay in stays:
            top, color = tops[node] + lane * ROW_HEIGHT, color_of[stay["model"]]
            end_s = axis.end_s if stay["end_s"] is None else stay["end_s"]
            ready_s = end_s if stay["ready_s"] is None else stay["ready_s"]
            yield from _bar(axis, (stay["load_s"], ready_s), top, color, opacity=0.35, name=stay["model"])
            yield from _bar(axis, (ready_s, end_s), top, color, opacity=0.9, name=stay["model"])
    for index, (name, color) in enumerate(color_of.items()):
        yield from _key(index, name, color)


def _laned(stays: Sequence[Results]) -> list[tuple[int, Results]]:
    """Each stay in the first lane that is empty again."""
    ends: list[float] = []
    laned = []
    for stay in sorted(stays, key=lambda stay: (stay["load_s"], stay["model"])):
        lane = next((lane for lane, end_s in enumerate(ends) if end_s <= stay["load_s"]), len(ends))
        end_s = float("inf") if stay["end_s"] is None else stay["end_s"]
        ends[lane : lane + 1] = [end_s]
        laned.append((lane, stay))
    return laned


def _bar(
    axis: Axis, span: tuple[float, float], top: float, color: str, *, opacity: float, name: str
) -> Iterator[Shape]:
    left, right = axis.x(span[0]), axis.x(span[1])
    if right > left:
        tip = f"{name}, {span[0]:.0f} to {span[1]:.0f} s"
        yield Box(left, top, right - left, ROW_HEIGHT - 2, color, opacity, tip=tip)


def _frame(axis: Axis, height: float) -> Iterator[Shape]:
    for fault in axis.faults:
        left, right = axis.x(fault["at_s"]), axis.x(fault["at_s"] + fault["for_s"])
        yield Box(left, 0, right - left, height, FAULT_COLOR, tip=f"{fault['kind']} {fault['target']}")
    yield Box(LEFT, 0, WIDTH - RIGHT - LEFT, height, FRAME_COLOR, is_filled=False)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at_s = axis.end_s * share
        yield Words(axis.x(at_s), height + 16, f"{at_s:.0f} s", anchor="middle")


def _key(index: int, name: str, color: str) -> Iterator[Shape]:
    left, top = WIDTH - RIGHT + 12, index * 17
    yield Box(left, top, 11, 11, color)
    yield Words(left + 17, top + 10, name)
