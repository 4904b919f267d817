"""Rows of what passing calls through costs: requests, chunks, latency, many streams at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench import load
from bench.live import Group, Measure, Rows
from bench.measure import memory_bytes, quantile, reset_memory_peak
from bench.report import ROUTER
from bench.rivals import ALIAS, Contender
from bench.stub import MODEL


class ProxyRows(Rows):
    def measures(self) -> Mapping[str, tuple[Measure, Sequence[Contender]]]:
        return {
            "plain": (self._plain, self.field),
            "stream": (self._stream, self.field),
            "alias": (self._alias, self.field),
            "latency": (self._latency, [self.direct, *self.field]),
            "many": (self._many, [self.direct, *self.field]),
        }

    async def _plain(self, contender: Contender, number: int) -> None:
        run = await load.plain(contender.ports, self.sizes.window_s, self.sizes.warm_s, contender.cpu)
        self.keep("plain", contender, number, run, run.cpu_us_each)

    async def _stream(self, contender: Contender, number: int) -> None:
        run = await self._streams(contender, MODEL)
        self.keep("stream", contender, number, run, run.cpu_us_each)

    async def _alias(self, contender: Contender, number: int) -> None:
        # Nobody else has aliases: the others answer the model's own name, measured again beside it.
        run = await self._streams(contender, ALIAS if contender.name == ROUTER else MODEL)
        self.keep("alias", contender, number, run, run.cpu_us_each)

    async def _streams(self, contender: Contender, model: str) -> load.Run:
        sizes = self.sizes
        return await load.streams(
            contender.ports, sizes.streams, sizes.chunk_rate, sizes.window_s, sizes.warm_s, contender.cpu, model
        )

    async def _latency(self, contender: Contender, number: int) -> None:
        """At a third of the core as the router uses it, for all the same rate: so that direct can be taken off."""
        router_us = self.report.rounds("plain", ROUTER).get(number) or max(
            (self.report.rounds("plain", one.name).get(number, 0.0) for one in self.field), default=0.0
        )
        if not router_us:
            self.note("latency needs the row plain, which tells the rate")
            return
        rate = 1e6 / router_us / 3
        run = await load.paced(
            contender.ports, rate, self.sizes.window_s, self.sizes.warm_s, contender.cpu, seed=number
        )
        self.keep("latency_p50", contender, number, run, quantile(run.delays_us, 0.5) / 1000)
        self.keep("latency_p99", contender, number, run, quantile(run.delays_us, 0.99) / 1000)
        self.keep("latency_rate", contender, number, run, rate)

    async def _many(self, contender: Contender, number: int) -> None:
        sizes = self.sizes
        if contender.pids:
            try:
                reset_memory_peak(contender.pids)
            except OSError as error:
                self.note(f"the memory peak of {contender.name} is that of all its life: {error}")
        run = await load.streams(
            contender.ports, sizes.many_streams, sizes.many_rate, sizes.window_s, sizes.warm_s, contender.cpu
        )
        self.keep("many_p99", contender, number, run, quantile(run.delays_us, 0.99) / 1000)
        if contender.pids:
            self.keep("many_cpu", contender, number, run, run.cpu_us_each)
            self.keep("many_rss", contender, number, run, memory_bytes(contender.pids, "VmHWM") / 1e6)


PROXYING = Group(
    ("plain", "stream", "alias", "latency", "many"),
    ("nginx", "vllm-router", "vllm-router lean", "aiohttp proxy", ROUTER),
    ProxyRows,
)
