"""Rows of what it costs that calls are seen: by metrics, by traces, and by a scraper while streams run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench import load
from bench.live import Group, Measure, Rows
from bench.report import ROUTER
from bench.rivals import Contender


class SeenRows(Rows):
    """At a rate, not in a closed loop: at the rate of that, spans of all calls would be dropped, which is cheaper."""

    def measures(self) -> Mapping[str, tuple[Measure, Sequence[Contender]]]:
        return {"seen_plain": (self._plain, self.field), "seen_stream": (self._stream, self.field)}

    async def _plain(self, contender: Contender, number: int) -> None:
        sizes = self.sizes
        run = await load.paced(
            contender.ports, sizes.plain_rate, sizes.window_s, sizes.warm_s, contender.cpu, seed=number
        )
        self.keep("seen_plain", contender, number, run, run.cpu_us_each)

    async def _stream(self, contender: Contender, number: int) -> None:
        sizes = self.sizes
        run = await load.short_streams(
            contender.ports,
            sizes.streams // 2,
            sizes.chunk_rate,
            sizes.short_chunks,
            sizes.window_s,
            sizes.warm_s,
            contender.cpu,
        )
        self.keep("seen_stream", contender, number, run, run.cpu_us_each)


SEEN = Group(
    ("seen_plain", "seen_stream"),
    ("nginx", "router uncounted", ROUTER, "router traced 0", "router traced 1", "router traced 100"),
    SeenRows,
)
