"""What groups of rows on live traffic have in common: sizes, contenders, rounds."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import load
from bench.measure import cores
from bench.report import ROUTER, Report
from bench.rivals import Contender, NotStarted, Stable


@dataclass(frozen=True, slots=True)
class Sizes:
    """`window_s` of 4 s and more keeps what a probe or a collection costs below a percent."""

    rounds: int
    window_s: float
    warm_s: float
    plain_rate: int = 500  # a second, where a row does not find its own
    streams: int = 200
    chunk_rate: int = 50
    short_chunks: int = 50  # of streams that end within the window
    many_streams: int = 2000
    many_rate: int = 5


Measure = Callable[[Contender, int], Awaitable[None]]


class Rows:
    """Rows that one set of contenders runs. `field` are those that started; `direct` is the bare stub."""

    def __init__(self, sizes: Sizes, report: Report, direct: Contender, field: Sequence[Contender]) -> None:
        self.sizes = sizes
        self.report = report
        self.direct = direct
        self.field = field

    def measures(self) -> Mapping[str, tuple[Measure, Sequence[Contender]]]:
        """By row, and who is measured."""
        raise NotImplementedError

    def named(self, *names: str) -> list[Contender]:
        return [contender for contender in self.field if contender.name in names]

    async def round(self, number: int, rows: Sequence[str]) -> None:
        for row in rows:
            measure, contenders = self.measures()[row]
            for contender in contenders:
                say(f"round {number}: {row}: {contender.name}")
                gc.collect()
                await measure(contender, number)
                if not await load.settle(self.direct.port):
                    self.note(f"{row}, {contender.name}: the node still ran streams {load.SETTLE_S_MAX:g} s after")

    def keep(self, row: str, contender: Contender, number: int, run: load.Run, value: float) -> None:
        self.report.add(row, contender.name, number, value)
        if run.errors:
            self.note(f"round {number}, {row}, {contender.name}: {run.errors} errors, the first: {run.error}")

    def note(self, text: str) -> None:
        if text not in self.report.notes:
            self.report.notes.append(text)


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are measured together, in rounds, with nothing else running."""

    rows: tuple[str, ...]
    contenders: tuple[str, ...]
    make: Callable[[Sizes, Report, Contender, Sequence[Contender]], Rows]
    nodes: int = 1  # addresses of the stub
    models: int = 1  # that each of them has loaded


async def measured(group: Group, report: Report, sizes: Sizes, rows: Sequence[str], names: Sequence[str]) -> None:
    """Refuses with NotStarted when it is a router that does not start: the rest may be missing."""
    load_core, contender_core = cores()
    os.sched_setaffinity(0, {load_core})
    if load_core == contender_core:
        report.notes.append("one core only: load generator and contender disturb each other")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        os.chmod(name, 0o755)  # nginx's worker gives up root and must still reach its directories
        stable = Stable(Path(name), load_core, contender_core, group.nodes)
        try:
            direct = await stable.start_stub(group.models)
            field = await _start_all(stable, [one for one in group.contenders if one in names], direct, report)
            measuring = group.make(sizes, report, direct, field)
            for number in range(1, sizes.rounds + 1):
                await measuring.round(number, rows)
        finally:
            stable.stop()
            os.sched_setaffinity(0, {load_core, contender_core})


async def _start_all(stable: Stable, names: Sequence[str], direct: Contender, report: Report) -> list[Contender]:
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


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
