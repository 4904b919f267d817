"""Runs the rows, contenders interleaved in rounds, and prints one table. Progress goes to stderr."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench import load
from bench.measure import cores, machine, memory_bytes, quantile, raise_open_files, reset_memory_peak
from bench.report import ROUTER, Report, as_json, render
from bench.rivals import ALIAS, COMMANDS, Contender, NotStarted, Stable
from bench.stub import MODEL

LIVE_ROWS = ("plain", "stream", "alias", "latency", "many")
MICRO_ROWS = ("intent", "decision", "store", "telemetry", "scrape")


@dataclass(frozen=True, slots=True)
class Sizes:
    """`window_s` of 4 s and more keeps what a probe or a collection costs below a percent."""

    rounds: int
    window_s: float
    warm_s: float
    streams: int = 200
    chunk_rate: int = 50
    many_streams: int = 2000
    many_rate: int = 5


FULL = Sizes(rounds=3, window_s=5.0, warm_s=1.0)
QUICK = Sizes(rounds=1, window_s=1.5, warm_s=0.5)


class Bench:
    """`field` are the contenders that started; `direct` is the stub without anything before it."""

    def __init__(self, sizes: Sizes, report: Report, direct: Contender, field: list[Contender]) -> None:
        self._sizes = sizes
        self._report = report
        self._direct = direct
        self._field = field

    async def round(self, number: int, rows: list[str]) -> None:
        measures = {
            "plain": (self._plain, self._field),
            "stream": (self._stream, self._field),
            "alias": (self._alias, self._field),
            "latency": (self._latency, [self._direct, *self._field]),
            "many": (self._many, [self._direct, *self._field]),
        }
        for row in rows:
            measure, contenders = measures[row]
            for contender in contenders:
                say(f"round {number}: {row}: {contender.name}")
                gc.collect()
                await measure(contender, number)
                if not await load.settle(self._direct.port):
                    self._note(f"{row}, {contender.name}: the node still ran streams {load.SETTLE_S_MAX:g} s after")

    async def _plain(self, contender: Contender, number: int) -> None:
        run = await load.plain(contender.port, self._sizes.window_s, self._sizes.warm_s, contender.cpu)
        self._keep("plain", contender, number, run, run.cpu_us_each)

    async def _stream(self, contender: Contender, number: int) -> None:
        run = await self._streams(contender, MODEL)
        self._keep("stream", contender, number, run, run.cpu_us_each)

    async def _alias(self, contender: Contender, number: int) -> None:
        # Nobody else has aliases: the others answer the model's own name, measured again beside it.
        run = await self._streams(contender, ALIAS if contender.name == ROUTER else MODEL)
        self._keep("alias", contender, number, run, run.cpu_us_each)

    async def _streams(self, contender: Contender, model: str) -> load.Run:
        sizes = self._sizes
        return await load.streams(
            contender.port, sizes.streams, sizes.chunk_rate, sizes.window_s, sizes.warm_s, contender.cpu, model
        )

    async def _latency(self, contender: Contender, number: int) -> None:
        """At a third of the core as the router uses it, for all the same rate: so that direct can be taken off."""
        router_us = self._report.rounds("plain", ROUTER).get(number) or max(
            (self._report.rounds("plain", one.name).get(number, 0.0) for one in self._field), default=0.0
        )
        if not router_us:
            self._note("latency needs the row plain, which tells the rate")
            return
        rate = 1e6 / router_us / 3
        run = await load.paced(
            contender.port, rate, self._sizes.window_s, self._sizes.warm_s, contender.cpu, seed=number
        )
        self._keep("latency_p50", contender, number, run, quantile(run.delays_us, 0.5) / 1000)
        self._keep("latency_p99", contender, number, run, quantile(run.delays_us, 0.99) / 1000)
        self._keep("latency_rate", contender, number, run, rate)

    async def _many(self, contender: Contender, number: int) -> None:
        sizes = self._sizes
        if contender.pids:
            try:
                reset_memory_peak(contender.pids)
            except OSError as error:
                self._note(f"the memory peak of {contender.name} is that of all its life: {error}")
        run = await load.streams(
            contender.port, sizes.many_streams, sizes.many_rate, sizes.window_s, sizes.warm_s, contender.cpu
        )
        self._keep("many_p99", contender, number, run, quantile(run.delays_us, 0.99) / 1000)
        if contender.pids:
            self._keep("many_cpu", contender, number, run, run.cpu_us_each)
            self._keep("many_rss", contender, number, run, memory_bytes(contender.pids, "VmHWM") / 1e6)

    def _keep(self, row: str, contender: Contender, number: int, run: load.Run, value: float) -> None:
        self._report.add(row, contender.name, number, value)
        if run.errors:
            self._note(f"round {number}, {row}, {contender.name}: {run.errors} errors, the first: {run.error}")

    def _note(self, text: str) -> None:
        if text not in self._report.notes:
            self._report.notes.append(text)


async def live(report: Report, sizes: Sizes, rows: list[str], names: list[str]) -> None:
    load_core, contender_core = cores()
    os.sched_setaffinity(0, {load_core})
    if load_core == contender_core:
        report.notes.append("one core only: load generator and contender disturb each other")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        os.chmod(name, 0o755)  # nginx's worker gives up root and must still reach its directories
        stable = Stable(Path(name), load_core, contender_core)
        try:
            direct = await stable.start_stub()
            field = await _start_all(stable, names, direct, report)
            bench = Bench(sizes, report, direct, field)
            for number in range(1, sizes.rounds + 1):
                await bench.round(number, rows)
        finally:
            stable.stop()


async def _start_all(stable: Stable, names: list[str], direct: Contender, report: Report) -> list[Contender]:
    """Raises NotStarted when it is the router that does not start: the rest may be missing."""
    field = []
    for name in names:
        try:
            field.append(await stable.start(name, direct.port))
            say(f"{name} is up")
        except NotStarted as error:
            if name == ROUTER:
                raise
            say(f"{name}: {error}")
            report.notes.append(f"{name}: {error}")
    return field


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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    asked = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the contenders are stopped too
    raise_open_files()
    basis = QUICK if asked.quick else FULL
    sizes = Sizes(asked.rounds or basis.rounds, asked.seconds or basis.window_s, basis.warm_s)
    report = Report(machine())
    try:
        run(report, sizes, asked.only, asked.contenders)
    except KeyboardInterrupt:
        return 130
    except NotStarted as error:
        say(str(error))
        return 1
    print(render(report))
    if asked.json is not None:
        asked.json.write_text(json.dumps(as_json(report), indent=1) + "\n")
    return 0


def run(report: Report, sizes: Sizes, wanted: list[str], names: list[str]) -> None:
    micro(report, [row for row in MICRO_ROWS if row in wanted], max(3, sizes.rounds))
    # Latency is taken at a rate that the row plain tells.
    live_rows = [row for row in LIVE_ROWS if row in wanted or (row == "plain" and "latency" in wanted)]
    if live_rows:
        gc.freeze()
        gc.disable()  # collected between the runs: a collection inside a window would show as delay
        uvloop.run(live(report, sizes, live_rows, names))


def _parser() -> argparse.ArgumentParser:
    rows, names = (*MICRO_ROWS, *LIVE_ROWS), tuple(COMMANDS)
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"default {FULL.rounds}")
    parser.add_argument("--seconds", type=float, help=f"of each window, default {FULL.window_s:g}")
    parser.add_argument("--quick", action="store_true", help="one short round: says whether it runs, not how fast")
    parser.add_argument("--only", type=_words(rows), default=list(rows), metavar="ROW,...", help=", ".join(rows))
    parser.add_argument(
        "--contenders", type=_words(names), default=list(names), metavar="NAME,...", help=", ".join(names)
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
