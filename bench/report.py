"""Samples -> a table with ratios and verdicts. The bars are the numbers to hold, as data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median

ROUTER = "router"
DIRECT = "direct"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of one contender in one round."""

    row: str
    contender: str
    round: int
    value: float


@dataclass(frozen=True, slots=True)
class Bar:
    """At most `limit`, in the row's unit; with `rival`, a ratio to it; with `less`, the rest after taking it off.

    Of the rounds the median counts, or the worst where the bar says never.
    """

    limit: float
    rival: str = ""
    less: str = ""
    is_never_above: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    key: str
    title: str
    unit: str
    bars: tuple[Bar, ...] = ()
    has_ratios: bool = False
    ours: str = ROUTER  # whom the bars speak of


@dataclass(frozen=True, slots=True)
class Verdict:
    row: str
    text: str
    measured: float
    limit: float
    holds: bool | None  # None: not measured


@dataclass(slots=True)
class Report:
    machine: dict[str, object]
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, row: str, contender: str, round_number: int, value: float) -> None:
        self.samples.append(Sample(row, contender, round_number, value))

    def rounds(self, row: str, contender: str) -> dict[int, float]:
        return {s.round: s.value for s in self.samples if (s.row, s.contender) == (row, contender)}


_VLLM = "vllm-router"
_REDIS = "router redis"
_QUIET, _SCRAPED = "not scraped", "scraped every second"
_UNCHANGED = (Bar(1.0, less=_QUIET),)  # 1 ms is less than a page's slice takes
_CHUNK_BARS = (Bar(1.6, rival="nginx"), Bar(1.0, rival=_VLLM))

ROWS = (
    Row("plain", "plain request, 32 connections: CPU", "us", (Bar(2.5, rival=_VLLM),), has_ratios=True),
    Row("stream", "streamed chunk, 200 streams x 50/s: CPU", "us", _CHUNK_BARS, has_ratios=True),
    Row("alias", "streamed chunk behind an alias: CPU", "us", _CHUNK_BARS, has_ratios=True),
    Row("latency_p50", "latency at a third of a core's load: p50", "ms", (Bar(1.0, less=DIRECT),)),
    Row("latency_p99", "latency at a third of a core's load: p99", "ms", (Bar(5.0, less=DIRECT),)),
    Row("many_p99", "2,000 streams x 5/s: p99 chunk delay", "ms", (Bar(50.0, less=DIRECT),)),
    Row("many_cpu", "2,000 streams x 5/s: CPU per chunk", "us", has_ratios=True),
    Row("many_rss", "2,000 streams x 5/s: highest RSS", "MB", (Bar(250.0),)),
    Row(
        "redis",
        "plain request, store in Redis: CPU, Redis's own with it",
        "us",
        (Bar(4.0, rival=_VLLM),),
        has_ratios=True,
        ours=_REDIS,
    ),
    Row("redis_server", "plain request, store in Redis: CPU of Redis", "us"),
    Row("redis_trips", "plain request: round trips to Redis", "count", (Bar(2.0),), ours=_REDIS),
    Row("redis_one", "one plain request after another: CPU, Redis's own with it", "us"),
    Row("redis_one_server", "one plain request after another: CPU of Redis", "us"),
    Row("redis_one_trips", "one plain request after another: round trips to Redis", "count", (Bar(2.0),), ours=_REDIS),
    Row("redis_p50", "latency at a third of a core's load, Redis's own with it: p50", "ms"),
    Row("redis_p99", "latency at a third of a core's load, Redis's own with it: p99", "ms"),
    Row("intent_wall", "intent of a 20 MB vision body: wall time", "ms", (Bar(50.0),)),
    Row(
        "intent_gap", "intent of a 20 MB vision body: longest gap of the loop", "ms", (Bar(10.0, is_never_above=True),)
    ),
    Row("decision_20", "one decision, 1,000 nodes, 20 hold the model", "us", (Bar(100.0),)),
    Row("decision_1000", "one decision, 1,000 nodes, all hold the model", "us", (Bar(600.0),)),
    Row("store", "memory store: take and give back", "us"),
    Row("store_line", "memory store: pass a slot on and stand in line, 10,000 waiting", "us"),
    Row("scale_each", "one Redis, a large pool: CPU of Redis", "us"),
    Row("scale_trips", "one Redis, a large pool: round trips to Redis", "count"),
    Row("scale_take", "one Redis, a large pool: a take, until its answer", "ms"),
    Row("scale_share", "one Redis, a large pool: CPU of Redis", "% of a core"),
    Row("scale_most", "one Redis, a large pool: at most", ""),
    Row("scale_memory", "one Redis, a large pool: memory of Redis", "MB"),
    Row("seen_metrics", "a call's metrics: CPU", "us"),
    Row("seen_log", "a call's log line: CPU, its thread included", "us"),
    Row("seen_traced_0", "a call with tracing on, none sampled: CPU", "us"),
    Row("seen_traced_1", "a call with tracing on, 1 % sampled: CPU", "us"),
    Row("seen_traced_100", "a call with tracing on, all sampled: CPU, export included", "us"),
    Row("seen_plain", "plain request, 500/s, by what sees it: CPU", "us", has_ratios=True),
    Row("seen_stream", "streamed chunk, 100 streams of 50, by what sees it: CPU", "us", has_ratios=True),
    Row("scrape_wall", "a scrape: wall time", "ms", (Bar(200.0),)),
    Row("scrape_gap", "a scrape: longest gap of the loop", "ms"),
    Row("scrape_series", "a scrape: series", "count"),
    Row("scraped_p50", "200 streams x 50/s, large page: p50 chunk delay", "ms"),
    Row("scraped_p99", "200 streams x 50/s, large page: p99 chunk delay", "ms", _UNCHANGED, ours=_SCRAPED),
    Row("scraped_cpu", "200 streams x 50/s, large page: CPU per chunk, the page in it", "us"),
    Row("scraped_wall", "200 streams x 50/s, large page: wall time of a scrape", "ms", (Bar(200.0),)),
    Row("scraped_series", "200 streams x 50/s, large page: series", "count"),
)


def render(report: Report) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    lines = [f"machine: {facts}", ""]
    for row in ROWS:
        lines.extend(_row_lines(report, row))
    if report.notes:
        lines.append("notes")
        lines.extend(f"  {note}" for note in report.notes)
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, object]:
    return {
        "machine": report.machine,
        "samples": [asdict(sample) for sample in report.samples],
        "verdicts": [asdict(verdict) for row in ROWS for verdict in verdicts(report, row)],
        "notes": report.notes,
    }


def verdicts(report: Report, row: Row) -> Iterable[Verdict]:
    ours = report.rounds(row.key, row.ours)
    for bar in row.bars:
        if bar.rival:
            text, measured = f"<= {bar.limit:g} x {bar.rival}", _ratio(ours, report.rounds(row.key, bar.rival))
        elif bar.less:
            text, measured = f"<= {bar.limit:g} {row.unit} added", _added(ours, report.rounds(row.key, bar.less))
        elif bar.is_never_above:
            text, measured = f"never > {bar.limit:g} {row.unit}", max(ours.values(), default=math.nan)
        else:
            text, measured = f"<= {bar.limit:g} {row.unit}", _median(ours.values())
        yield Verdict(row.key, text, measured, bar.limit, None if math.isnan(measured) else measured <= bar.limit)


def _row_lines(report: Report, row: Row) -> list[str]:
    contenders = list(dict.fromkeys(sample.contender for sample in report.samples if sample.row == row.key))
    if not contenders:
        return []
    lines = [f"{f'{row.title}, {row.unit}':<58}{'median':>9}{_ratio_head(row)}   rounds"]
    lines.extend(_contender_line(report, row, contender) for contender in contenders)
    for verdict in verdicts(report, row):
        word = {True: "holds", False: "MISSED", None: "not measured"}[verdict.holds]
        measured = "" if verdict.holds is None else f"{verdict.measured:.2f}"
        lines.append(f"  {'bar ' + verdict.text:<56}{measured:>9}   {word}")
    return [*lines, ""]


def _ratio_head(row: Row) -> str:
    return f"{'x nginx':>9}{'x vllm-router':>15}" if row.has_ratios else ""


def _contender_line(report: Report, row: Row, contender: str) -> str:
    values = report.rounds(row.key, contender)
    ratios = ""
    if row.has_ratios:
        ratios = f"{_cell(_ratio(values, report.rounds(row.key, 'nginx'))):>9}"
        ratios += f"{_cell(_ratio(values, report.rounds(row.key, _VLLM))):>15}"
    rounds = " ".join(f"{value:.4g}" for value in values.values())
    return f"  {contender:<56}{_median(values.values()):>9.2f}{ratios}   {rounds}"


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _ratio(ours: dict[int, float], rival: dict[int, float]) -> float:
    """Median of the rounds' own ratios: what the machine did to one round it did to both."""
    return _median(ours[number] / rival[number] for number in ours if rival.get(number))


def _added(ours: dict[int, float], base: dict[int, float]) -> float:
    return _median(ours[number] - base[number] for number in ours if number in base)


def _median(values: Iterable[float]) -> float:
    known: Sequence[float] = [value for value in values if not math.isnan(value)]
    return median(known) if known else math.nan
