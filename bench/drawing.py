"""Panels of Grafana's classic dashboards as SVG, as far as ours use them: roughly what Grafana draws."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

LEGEND_MAX = 5
PER_S = {"reqps": " req/s", "cps": " c/s"}
CHARACTER = 6.6  # pixels, at most, of a table's text
STEP_S = 2  # between two points
COLOURS = ("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300")
NAMED = {
    "green": "#73bf69",
    "yellow": "#f2cc0c",
    "red": "#f2495c",
    "blue": "#5794f2",
    "text": "#9aa0a6",
    "purple": "#b877d9",
}

Points = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Series:
    """`ref` is its query's; `legend` is what Grafana would write."""

    ref: str
    labels: dict[str, str]
    legend: str
    points: Points

    @property
    def last(self) -> float:
        return self.points[-1][1]


def told(value: float, unit: str, decimals: int | None = None) -> str:
    """As Grafana writes it, roughly."""
    if unit == "percentunit":
        return f"{value * 100:.{1 if decimals is None else decimals}f}%"
    if unit == "s":
        size = abs(value)
        return (
            f"{value * 1e6:.0f} us"
            if 0 < size < 1e-3
            else f"{value * 1000:.0f} ms"
            if 0 < size < 1
            else f"{value:.3g} s"
        )
    if unit == "none":
        return f"{value:.{decimals}f}" if decimals is not None else f"{value:.4g}"
    steps, suffixes = (1024, ("B", "KiB", "MiB", "GiB")) if unit == "bytes" else (1000, ("", "K", "Mil", "Bil"))
    at = 0
    while abs(value) >= steps and at < len(suffixes) - 1:
        value, at = value / steps, at + 1
    ending = f" {suffixes[at]}" if suffixes[at] else ""
    return f"{value:.3g}{ending}{PER_S.get(unit, '')}"


def text(
    x: float,
    y: float,
    words: str,
    *,
    size: int = 11,
    colour: str = "#ccccdc",
    anchor: str = "start",
    weight: str = "normal",
) -> str:
    style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{max(height, 0):.1f}" fill="{colour}"/>'


def drawn(panel: dict[str, Any], series: list[Series], x: float, y: float, width: float, height: float) -> str:
    parts = [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="#181b1f" stroke="#2c3235"/>',
        text(x + 8, y + 17, panel["title"], size=12, weight="bold"),
    ]
    draw = {
        "stat": _stat,
        "timeseries": _lines,
        "state-timeline": _timeline,
        "bargauge": _bars,
        "heatmap": _heatmap,
        "table": _table,
    }[panel["type"]]
    inner = (x + 8, y + 26, width - 16, height - 34)
    return "".join(
        [
            *parts,
            draw(panel, series, *inner)
            if series
            else text(x + width / 2, y + height / 2, "No data", anchor="middle", colour="#6e7680"),
        ]
    )


def _stat(panel: dict[str, Any], series: list[Series], x: float, y: float, width: float, height: float) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    value = series[0].last
    colour = next(
        step["color"]
        for step in reversed(defaults["thresholds"]["steps"])
        if step["value"] is None or value >= step["value"]
    )
    return text(
        x + width / 2,
        y + height / 2 + 12,
        told(value, defaults["unit"], defaults.get("decimals")),
        size=26,
        colour=NAMED[colour],
        anchor="middle",
        weight="bold",
    )


def _lines(panel: dict[str, Any], series: list[Series], x: float, y: float, width: float, height: float) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    is_stacked = "stacking" in defaults["custom"]
    shown = sorted(series, key=lambda each: -max(value for _, value in each.points))
    height -= 14 * min(len(shown), LEGEND_MAX) + 6
    begin, end = min(each.points[0][0] for each in shown), max(each.points[-1][0] for each in shown)
    base: dict[float, float] = {}
    curves: list[tuple[str, Points, Points]] = []
    for at, each in enumerate(shown):
        below = [(when, base.get(when, 0.0)) for when, _ in each.points]
        above = [(when, value + (base.get(when, 0.0) if is_stacked else 0.0)) for when, value in each.points]
        base.update(above if is_stacked else ())
        curves.append((COLOURS[at % len(COLOURS)], below, above))
    top = max(value for _, _, above in curves for _, value in above) or 1.0
    left, right = x + 52, x + width
    parts = []
    for share in (0.0, 0.5, 1.0):
        level = y + height * (1 - share)
        parts += [
            f'<line x1="{left}" y1="{level:.1f}" x2="{right}" y2="{level:.1f}" stroke="#2c3235"/>',
            text(left - 5, level + 4, told(top * share, defaults["unit"]), size=9, anchor="end", colour="#9aa0a6"),
        ]

    def place(when: float, value: float) -> str:
        return (
            f"{left + (right - left) * (when - begin) / ((end - begin) or 1):.1f},{y + height * (1 - value / top):.1f}"
        )

    for colour, below, above in reversed(curves):
        line = " ".join(place(*point) for point in above)
        if is_stacked:
            area = f"{line} {' '.join(place(*point) for point in reversed(below))}"
            parts.append(f'<polygon points="{area}" fill="{colour}" fill-opacity="0.3"/>')
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
    for at, each in enumerate(shown[:LEGEND_MAX]):
        level = y + height + 16 + 14 * at
        more = f"  (and {len(shown) - LEGEND_MAX} more)" if at == LEGEND_MAX - 1 and len(shown) > LEGEND_MAX else ""
        parts += [
            box(left, level - 7, 10, 3, COLOURS[at % len(COLOURS)]),
            text(left + 15, level, f"{each.legend}  {told(each.last, defaults['unit'])}{more}", size=10),
        ]
    return "".join(parts)


def _timeline(panel: dict[str, Any], series: list[Series], x: float, y: float, width: float, height: float) -> str:
    options = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    shown = series[: max(1, int(height // 17))]
    begin, end = min(each.points[0][0] for each in series), max(each.points[-1][0] for each in series)
    step, left, right = height / len(shown), x + 170, x + width
    parts = []
    for at, each in enumerate(shown):
        parts.append(text(x, y + step * at + step / 2 + 4, each.legend[:28], size=10))
        for when, value in each.points:
            colour = NAMED[options.get(f"{value:g}", {"color": "text"})["color"]]
            wide = (right - left) * STEP_S / (end - begin + STEP_S)
            parts.append(
                box(
                    left + (right - left) * (when - begin) / (end - begin + STEP_S),
                    y + step * at + 2,
                    wide + 0.5,
                    step - 4,
                    colour,
                )
            )
    return "".join(parts)


def _bars(panel: dict[str, Any], series: list[Series], x: float, y: float, width: float, height: float) -> str:
    unit, top, step = (
        panel["fieldConfig"]["defaults"]["unit"],
        max(each.last for each in series) or 1.0,
        height / len(series),
    )
    parts = []
    for at, each in enumerate(series):
        level = y + step * at
        parts += [
            text(x, level + step / 2 + 4, each.legend),
            box(x + 110, level + 4, (width - 180) * each.last / top, step - 8, COLOURS[at % len(COLOURS)]),
            text(x + width, level + step / 2 + 4, told(each.last, unit), anchor="end"),
        ]
    return "".join(parts)


def _heatmap(panel: dict[str, Any], series: list[Series], x: float, y: float, width: float, height: float) -> str:
    """Buckets are cumulative: what stands in one is what it has more than the one below."""
    rows = sorted((float(each.labels["le"]), dict(each.points)) for each in series)
    times = sorted({when for _, points in rows for when in points})
    cells = [
        (row, column, points.get(when, 0.0) - (rows[row - 1][1].get(when, 0.0) if row else 0.0))
        for row, (_, points) in enumerate(rows)
        for column, when in enumerate(times)
    ]
    top, wide, high = max(value for _, _, value in cells) or 1.0, (width - 52) / len(times), height / len(rows)
    parts = []
    for row, column, value in cells:
        if value > 0:
            cell = box(x + 52 + wide * column, y + height - high * (row + 1), wide, high, "#ff9830")
            parts.append(f'<g fill-opacity="{value / top:.2f}">{cell}</g>')
    parts += [
        text(x + 47, y + height - high * row - 2, f"{le:g} s", size=9, anchor="end", colour="#9aa0a6")
        for row, (le, _) in enumerate(rows)
        if row % 4 == 0
    ]
    return "".join(parts)


def _table(panel: dict[str, Any], series: list[Series], x: float, y: float, width: float, height: float) -> str:
    organize = panel["transformations"][1]["options"]
    titles: dict[str, str] = organize["renameByName"]
    units = {each["matcher"]["options"]: each["properties"][0]["value"] for each in panel["fieldConfig"]["overrides"]}
    keys = [name for name in titles if not name.startswith("Value")]
    rows: dict[tuple[str, ...], dict[str, str]] = {}
    now_s = max((each.points[-1][0] for each in series), default=0.0)
    for each in series:
        if each.points[-1][0] < now_s - STEP_S:
            continue  # a table shows what is, and this has ended
        where = tuple(each.labels.get(key, "") for key in ("node", "model", "team") if key in keys)
        row = rows.setdefault(where, {})
        row.update({key: each.labels[key] for key in keys if key in each.labels})
        row[f"Value #{each.ref}"] = told(each.last, units.get(titles.get(f"Value #{each.ref}", ""), "short"))
    step = width / len(titles)
    parts = [text(x + step * at, y + 12, title, colour="#6e9fff") for at, title in enumerate(titles.values())]
    for line, (_, row) in enumerate(sorted(rows.items())[: int(height // 17) - 1]):
        fitting = int(step / CHARACTER)
        parts += [
            text(x + step * at, y + 30 + 17 * line, row.get(name, "")[:fitting]) for at, name in enumerate(titles)
        ]
    return "".join(parts)
