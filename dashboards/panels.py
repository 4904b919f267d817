"""Grafana's classic dashboard model (schemaVersion 39), as far as these dashboards use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dashboards.thresholds import RUNBOOKS

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
TAG = "ollama-router"
PREFIX = "ollama_router_"
COLUMNS = 24

# What every query is narrowed by. `namespace` may be empty: outside of Kubernetes there is none.
SCOPE = 'namespace=~"$namespace", job=~"$job", instance=~"$instance"'
# A recorded rule is about a pool and has no instance.
POOL_SCOPE = 'namespace=~"$namespace", job=~"$job"'

GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "text"
NO_TRAFFIC = [
    {"type": "special", "options": {"match": match, "result": {"text": "No traffic", "color": GREY}}}
    for match in ("nan", "null")
]

Json = dict[str, Any]
Query = tuple[str, str]  # expression and legend


@dataclass(frozen=True, slots=True)
class Panel:
    """`height` and `width` in Grafana's grid of 24 columns; `body` is everything that its kind needs."""

    title: str
    description: str
    queries: Sequence[Query]
    body: Json
    width: int = 8
    height: int = 8
    as_table: bool = False
    as_heatmap: bool = False
    alerts: tuple[str, ...] = ()  # whose runbooks are linked from it


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: Sequence[Panel]
    repeat: str = ""  # a variable: one such row for each of its values


def watched(panel: Panel, *alerts: str) -> Panel:
    """What it shows is what these look at."""
    return replace(panel, alerts=tuple(f"OllamaRouter{alert}" for alert in alerts))


def selector(name: str, more: str = "") -> str:
    return f"{PREFIX}{name}{{{SCOPE}{', ' + more if more else ''}}}"


def rate(name: str, by: str = "", more: str = "") -> str:
    """A counter, over all replicas, a second."""
    return f"sum{_by(by)} (rate({selector(name, more)}[$__rate_interval]))"


def highest(name: str, by: str = "", more: str = "") -> str:
    """A fact that every replica reports."""
    return f"max{_by(by)} ({selector(name, more)})"


def together(name: str, by: str = "", more: str = "") -> str:
    """A gauge that each replica has a part of."""
    return f"sum{_by(by)} ({selector(name, more)})"


def quantile(share: float, name: str, by: str = "", more: str = "") -> str:
    buckets = f"rate({selector(f'{name}_bucket', more)}[$__rate_interval])"
    return f"histogram_quantile({share:g}, sum by ({', '.join(filter(None, (by, 'le')))}) ({buckets}))"


def parts(name: str, by: str, more: str = "") -> list[Query]:
    """A counter by its parts, and all of it, which is 0 where nothing of the kind has happened yet."""
    legend = " ".join(f"{{{{{label.strip()}}}}}" for label in by.split(","))
    return [(rate(name, by, more), legend), (f"{rate(name, '', more)} or vector(0)", "all")]


def or_none(expr: str, label: str, text: str) -> str:
    """0 under a legend that says why, where there is nothing of the kind. `label` stands in the query's legend."""
    return f'{expr} or label_replace(vector(0), "{label}", "{text}", "", "")'


def quantiles(name: str, more: str = "") -> list[Query]:
    return [(quantile(share, name, "", more), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


def _by(labels: str) -> str:
    return f" by ({labels})" if labels else ""


# kinds of panels


def stat(
    title: str, description: str, expr: str, unit: str, *, steps: Sequence[tuple[float | None, str]] = (), **more: Any
) -> Panel:
    body = {
        "type": "stat",
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "mappings": NO_TRAFFIC,
                "color": {"mode": "thresholds"},
                "thresholds": _thresholds(steps or ((None, BLUE),)),
                **({"decimals": more.pop("decimals")} if "decimals" in more else {}),
            },
            "overrides": [],
        },
        "options": {
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "textMode": "auto",
        },
    }
    return Panel(title, description, [(expr, "")], body, more.get("width", 4), 4)


def lines(
    title: str,
    description: str,
    queries: Sequence[Query],
    unit: str,
    *,
    stacked: bool = False,
    colours: dict[str, str] | None = None,
    limit: float | None = None,
    width: int = 8,
    height: int = 8,
) -> Panel:
    custom: Json = {
        "drawStyle": "line",
        "lineWidth": 1,
        "fillOpacity": 30 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
    }
    if stacked:
        custom["stacking"] = {"mode": "normal", "group": "A"}
    defaults: Json = {"unit": unit, "min": 0, "custom": custom, "color": {"mode": "palette-classic"}}
    if limit is not None:
        custom["thresholdsStyle"] = {"mode": "dashed"}
        defaults["thresholds"] = _thresholds(((None, GREEN), (limit, RED)))
    body = {
        "type": "timeseries",
        "fieldConfig": {
            "defaults": defaults,
            "overrides": [_coloured(name, colour) for name, colour in (colours or {}).items()],
        },
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "showLegend": True, "calcs": ["mean", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }
    return Panel(title, description, queries, body, width, height)


def timeline(
    title: str,
    description: str,
    queries: Sequence[Query],
    mappings: dict[str, tuple[str, str]],
    *,
    width: int = 12,
    height: int = 8,
    link: tuple[str, str] | None = None,
) -> Panel:
    """`mappings`: a value's text and colour. `link`: title and address of where a series leads; may name its labels."""
    options = {
        value: {"text": text, "color": colour, "index": at}
        for at, (value, (text, colour)) in enumerate(mappings.items())
    }
    body = {
        "type": "state-timeline",
        "fieldConfig": {
            "defaults": {
                "unit": "none",
                "custom": {"fillOpacity": 80, "lineWidth": 0},
                "color": {"mode": "thresholds"},
                "mappings": [{"type": "value", "options": options}],
                **({"links": [{"title": link[0], "url": link[1], "targetBlank": True}]} if link else {}),
                "thresholds": _thresholds(((None, GREY),)),
            },
            "overrides": [],
        },
        "options": {
            "mergeValues": True,
            "showValue": "never",
            "rowHeight": 0.8,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        },
    }
    return Panel(title, description, queries, body, width, height)


def bars(title: str, description: str, expr: str, unit: str, legend: str, *, width: int = 8) -> Panel:
    body = {
        "type": "bargauge",
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "color": {"mode": "palette-classic"},
                "thresholds": _thresholds(((None, BLUE),)),
            },
            "overrides": [],
        },
        "options": {
            "displayMode": "basic",
            "orientation": "horizontal",
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "showUnfilled": True,
        },
    }
    return Panel(title, description, [(expr, legend)], body, width)


def heatmap(title: str, description: str, name: str, more: str, unit: str, *, width: int = 8) -> Panel:
    body = {
        "type": "heatmap",
        "fieldConfig": {"defaults": {"unit": "short"}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {
                "mode": "scheme",
                "scheme": "Oranges",
                "exponent": 0.5,
                "steps": 64,
                "reverse": False,
                "fill": "dark-orange",
                "scale": "exponential",
            },
            "legend": {"show": True},
            "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": False},
            "yAxis": {"unit": unit, "axisPlacement": "left", "reverse": False},
            "rowsFrame": {"layout": "auto"},
            "filterValues": {"le": 1e-9},
            "showValue": "never",
        },
    }
    buckets = f"sum by (le) (increase({selector(f'{name}_bucket', more)}[$__rate_interval]))"
    return Panel(title, description, [(buckets, "{{le}}")], body, width, as_heatmap=True)


def table(
    title: str,
    description: str,
    queries: Sequence[Query],
    columns: dict[str, tuple[str, str]],
    *,
    width: int = 24,
    hidden: Iterable[str] = (),
) -> Panel:
    """Instant values joined by their labels. `columns`: name of a field to its title and unit; queries are Value #A, #B."""
    dropped = {"Time": True, **dict.fromkeys(hidden, True)}
    overrides = [
        {"matcher": {"id": "byName", "options": title_}, "properties": [{"id": "unit", "value": unit}]}
        for title_, unit in columns.values()
        if unit
    ]
    body = {
        "type": "table",
        "fieldConfig": {
            "defaults": {"unit": "none", "custom": {"align": "auto", "filterable": True}},
            "overrides": overrides,
        },
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "footer": {"show": False, "reducer": ["sum"], "countRows": False, "fields": ""},
        },
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": dropped,
                    "renameByName": {name: text for name, (text, _) in columns.items()},
                    "indexByName": {name: at for at, name in enumerate(columns)},
                },
            },
        ],
    }
    return Panel(title, description, queries, body, width, as_table=True)


def _thresholds(steps: Sequence[tuple[float | None, str]]) -> Json:
    return {"mode": "absolute", "steps": [{"value": value, "color": colour} for value, colour in steps]}


def _coloured(name: str, colour: str) -> Json:
    return {
        "matcher": {"id": "byRegexp", "options": name},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
    }


# the whole


def board(
    uid: str, title: str, description: str, rows: Sequence[Row], *, variables: Sequence[str] = (), since: str = "now-1h"
) -> Json:
    """`variables`: labels of ours to choose by, beside where the metrics come from."""
    return {
        "id": None,
        "uid": uid,
        "title": title,
        "description": description,
        "tags": [TAG],
        "editable": False,
        "schemaVersion": 39,
        "version": 1,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": since, "to": "now"},
        "timepicker": {},
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "weekStart": "",
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "ollama-router",
                "tags": [TAG],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {"list": _variables(variables)},
        "panels": list(_placed(rows)),
    }


def _variables(more: Sequence[str]) -> list[Json]:
    source = {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "multi": False,
        "includeAll": False,
        "hide": 0,
        "refresh": 1,
        "regex": "",
        "options": [],
        "current": {},
    }
    asked = {
        "namespace": f"label_values({PREFIX}build_info, namespace)",
        "job": f'label_values({PREFIX}build_info{{namespace=~"$namespace"}}, job)',
        "instance": f'label_values({PREFIX}build_info{{namespace=~"$namespace", job=~"$job"}}, instance)',
    }
    known = {"model": "model_nodes", "node": "node_up", "team": "requests_total"}
    asked |= {name: f"label_values({selector(known[name])}, {name})" for name in more}
    return [source, *(_variable(name, query) for name, query in asked.items())]


def _variable(name: str, query: str) -> Json:
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": f"{name}-variable"},
        "multi": True,
        "includeAll": True,
        "allValue": ".*" if name in ("namespace", "team") else ".+",  # these two may be missing
        "refresh": 2,
        "sort": 1,
        "hide": 0,
        "regex": "",
        "options": [],
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


def _placed(rows: Sequence[Row]) -> Iterable[Json]:
    """From left to right, a new line where the next one does not fit."""
    number = y = 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "panels": [],
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            **({"repeat": row.repeat} if row.repeat else {}),
        }
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            yield _shown(panel, number, {"x": x, "y": y, "w": panel.width, "h": panel.height})
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def _shown(panel: Panel, number: int, place: Json) -> Json:
    return {
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "gridPos": place,
        "links": [_runbook(alert) for alert in panel.alerts],
        "targets": [_target(panel, at, *query) for at, query in enumerate(panel.queries)],
        **panel.body,
    }


def _runbook(alert: str) -> Json:
    return {
        "type": "link",
        "title": f"Runbook: {alert}",
        "url": f"{RUNBOOKS}/{alert}.md",
        "icon": "doc",
        "tooltip": "",
        "tags": [],
        "asDropdown": False,
        "targetBlank": True,
        "includeVars": False,
        "keepTime": False,
    }


def _target(panel: Panel, at: int, expr: str, legend: str) -> Json:
    target: Json = {
        "refId": chr(ord("A") + at),
        "datasource": SOURCE,
        "expr": expr,
        "legendFormat": legend or "__auto",
        "editorMode": "code",
        "range": not panel.as_table,
        "instant": panel.as_table,
    }
    if panel.as_table:
        target["format"] = "table"
    if panel.as_heatmap:
        target["format"] = "heatmap"
    return target
