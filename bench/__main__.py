"""Runs the rows, contenders interleaved in rounds, and prints one table. Progress goes to stderr."""

from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvloop

from bench.crowd import Size
from bench.live import Sizes, measured, say
from bench.measure import machine, raise_open_files
from bench.proxying import PROXYING
from bench.report import ROUTER, Report, as_json, render
from bench.rivals import NAMES, NotStarted
from bench.scale import scale
from bench.scraped import SCRAPED_LIVE
from bench.seen import SEEN
from bench.shared import SHARED

GROUPS = (PROXYING, SHARED, SEEN, SCRAPED_LIVE)
LIVE_ROWS = tuple(row for group in GROUPS for row in group.rows)
RATE_OF = {"latency": "plain", "redis_latency": "redis"}  # rows that another one tells the rate
SCALE = "scale"
MICRO_ROWS = ("intent", "decision", "store", "telemetry", "scrape")


FULL = Sizes(rounds=3, window_s=5.0, warm_s=1.0)
QUICK = Sizes(rounds=1, window_s=1.5, warm_s=0.5)
LARGE = Size()
QUICK_LARGE = Size(nodes=100, models=20, running=400, calls_per_s=200)


def micro(report: Report, rows: list[str], repeats: int) -> None:
    # Not at the top: a row must not fail because another one's part cannot be imported.
    from bench import micro as parts  # noqa: PLC0415
    from bench import telemetry  # noqa: PLC0415

    measures: dict[str, Callable[[int], dict[str, float]]] = {
        "intent": parts.intent,
        "decision": parts.decision,
        "store": parts.store,
        "telemetry": telemetry.telemetry,
        "scrape": telemetry.scrape,
    }
    for row in rows:
        say(row)
        for number in range(1, repeats + 1):
            try:
                values = measures[row](number)
            except Exception as error:  # one row must not cost the others their figures
                report.notes.append(f"{row}: {error!r}")
                break
            for key, value in values.items():
                report.add(key, ROUTER, number, value)


def main() -> int:
    asked = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the contenders are stopped too
    raise_open_files()
    basis = QUICK if asked.quick else FULL
    sizes = Sizes(asked.rounds or basis.rounds, asked.seconds or basis.window_s, basis.warm_s)
    report = Report(machine())
    try:
        run(report, sizes, QUICK_LARGE if asked.quick else LARGE, asked.only, asked.contenders)
    except KeyboardInterrupt:
        return 130
    except NotStarted as error:
        say(str(error))
        return 1
    print(render(report))
    if asked.json is not None:
        asked.json.write_text(json.dumps(as_json(report), indent=1) + "\n")
    return 0


def run(report: Report, sizes: Sizes, large: Size, wanted: list[str], names: list[str]) -> None:
    micro(report, [row for row in MICRO_ROWS if row in wanted], max(3, sizes.rounds))
    gc.freeze()
    gc.disable()  # collected between the runs: a collection inside a window would show as delay
    for group in GROUPS:
        rows = [row for row in group.rows if row in wanted or any(RATE_OF.get(one) == row for one in wanted)]
        if rows:
            uvloop.run(measured(group, report, sizes, rows, names))
    for number in range(1, sizes.rounds + 1) if SCALE in wanted else ():
        uvloop.run(scale(report, number, replace(large, window_s=sizes.window_s)))


def _parser() -> argparse.ArgumentParser:
    rows = (*MICRO_ROWS, *LIVE_ROWS, SCALE)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}")
    parser.add_argument("--seconds", type=float, help=f"of each window, default {FULL.window_s:g}")
    parser.add_argument("--quick", action="store_true", help="one short round: says whether it runs, not how fast")
    parser.add_argument("--only", type=_words(rows), default=list(rows), metavar="ROW,...", help=", ".join(rows))
    parser.add_argument(
        "--contenders", type=_words(NAMES), default=list(NAMES), metavar="NAME,...", help=", ".join(NAMES)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="every sample and verdict")
    if sys.platform != "linux":
        parser.error("CPU is read from /proc and from process clocks: Linux only")
    return parser


def _words(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    def words(text: str) -> list[str]:
        asked = [word.strip() for word in text.split(",") if word.strip()]
        for word in asked:
            if word not in known:
                raise argparse.ArgumentTypeError(f"{word!r} is none of: {', '.join(known)}")
        return asked

    return words


if __name__ == "__main__":
    sys.exit(main())
