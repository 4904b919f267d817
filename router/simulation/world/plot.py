"""Results as one SVG picture, written by hand: no library, and text that can be searched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

WIDTH = 1200
LEFT, RIGHT = 150, 210  # for names before, and keys after a panel
PANEL_HEIGHT = 200
ROW_HEIGHT = 22
GAP = 56
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e", "#9498a0")
NODES_MAX = 60  # rows of memory in one picture

Results = Mapping[str, Any]


class Axis:
    """Seconds from left to right."""

    def __init__(self, end_s: float) -> None:
        self.end_s = end_s

    def x(self, at_s: float) -> float:
        return LEFT + min(at_s, self.end_s) / self.end_s * (WIDTH - LEFT - RIGHT)


def picture(report: Mapping[str, Any]) -> str:
    """Time to first token of every policy; then lines and memory of ours, or of the first that ran."""
    axis = Axis(report["duration_s"])
    results: Sequence[Results] = report["policies"]
    shown = next((result for result in results if result["policy"] == "ours"), results[0])
    parts, top = [], float(GAP)
    for draw in (
        _first_tokens(results, axis, report["patience_s"]),
        _lines(shown, report["models"], axis),
        _memory(shown, report, axis),
    ):
        height, drawn = draw
        parts.append(f'<g transform="translate(0 {top:.0f})">{"".join(drawn)}</g>')
        top += height + GAP
    title = _text(LEFT, 24, f"{report['scenario']}, seed {report['seed']}", size=16)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top:.0f}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="#fff"/>{title}{"".join(parts)}</svg>\n'
    )


def _first_tokens(results: Sequence[Results], axis: Axis, patience_s: float) -> tuple[float, Iterator[str]]:
    series = [
        (result["policy"], [(point["at_s"], point["p95"]) for point in result["over_time"]]) for result in results
    ]
    return PANEL_HEIGHT, _panel("time to first token, p95 of 30 s (s)", series, axis, patience_s)


def _lines(result: Results, models: Sequence[str], axis: Axis) -> tuple[float, Iterator[str]]:
    names = sorted({name for sample in result["lines"] for name in sample["waiting"]})
    series = [
        (name, [(sample["at_s"], float(sample["waiting"].get(name, 0))) for sample in result["lines"]])
        for name in names
    ]
    highest = max((value for _, points in series for _, value in points), default=1.0)
    return PANEL_HEIGHT, _panel(f"calls without a slot ({result['policy']})", series, axis, max(1.0, highest))


def _panel(
    title: str, series: Sequence[tuple[str, Sequence[tuple[float, float]]]], axis: Axis, highest: float
) -> Iterator[str]:
    yield _text(LEFT, -8, title, size=14)
    yield from _frame(axis, PANEL_HEIGHT)
    for share in (0.0, 0.5, 1.0):
        yield _text(LEFT - 8, PANEL_HEIGHT * (1 - share) + 4, f"{highest * share:g}", anchor="end")
    for index, (name, points) in enumerate(series):
        color = COLORS[index % len(COLORS)]
        path = " ".join(
            f"{axis.x(at_s):.1f},{PANEL_HEIGHT * (1 - min(1.0, value / highest)):.1f}" for at_s, value in points
        )
        yield f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        yield _key(index, name, color)


def _memory(result: Results, report: Mapping[str, Any], axis: Axis) -> tuple[float, Iterator[str]]:
    nodes = [node["name"] for node in report["nodes"]][:NODES_MAX]
    color_of = {key: COLORS[index % len(COLORS)] for index, key in enumerate(report["models"])}
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
) -> Iterator[str]:
    yield _text(LEFT, -8, f"which model sits in which memory ({result['policy']}); pale while it loads", size=14)
    yield from _frame(axis, height)
    for node, stays in lanes.items():
        yield _text(LEFT - 8, tops[node] + 15, node, anchor="end")
        for lane, stay in stays:
            top, color = tops[node] + lane * ROW_HEIGHT, color_of[stay["model"]]
            end_s = axis.end_s if stay["end_s"] is None else stay["end_s"]
            ready_s = end_s if stay["ready_s"] is None else stay["ready_s"]
            yield _bar(axis, (stay["load_s"], ready_s), top, color, opacity=0.35, name=stay["model"])
            yield _bar(axis, (ready_s, end_s), top, color, opacity=0.9, name=stay["model"])
    for index, (name, color) in enumerate(color_of.items()):
        yield _key(index, name, color)


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


def _bar(axis: Axis, span: tuple[float, float], top: float, color: str, *, opacity: float, name: str) -> str:
    left, right = axis.x(span[0]), axis.x(span[1])
    if right <= left:
        return ""
    tip = f"<title>{escape(name)}, {span[0]:.0f} to {span[1]:.0f} s</title>"
    return (
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" height="{ROW_HEIGHT - 2}" '
        f'fill="{color}" opacity="{opacity}">{tip}</rect>'
    )


def _frame(axis: Axis, height: float) -> Iterator[str]:
    right = WIDTH - RIGHT
    yield f'<rect x="{LEFT}" y="0" width="{right - LEFT}" height="{height:.0f}" fill="none" stroke="#bbb"/>'
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at_s = axis.end_s * share
        yield _text(axis.x(at_s), height + 16, f"{at_s:.0f} s", anchor="middle")


def _key(index: int, name: str, color: str) -> str:
    left, top = WIDTH - RIGHT + 12, index * 17
    swatch = f'<rect x="{left}" y="{top}" width="11" height="11" fill="{color}"/>'
    return swatch + _text(left + 17, top + 10, name)


def _text(left: float, top: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    return f'<text x="{left:.1f}" y="{top:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
