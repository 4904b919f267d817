"""Rows of a router with a large page of metrics: what its streams feel of being scraped."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from bench import load
from bench.live import Group, Measure, Rows
from bench.measure import quantile
from bench.report import ROUTER
from bench.rivals import HERE, Contender
from bench.stub import name_of

NODES, MODELS = 10, 50
CALLS_EACH = 30  # of a model on a route: with chance on its side every node serves some of them
AT_ONCE = 25
ROUTES = ("/v1/chat/completions", "/api/chat")
QUIET, SCRAPED = "not scraped", "scraped every second"


@dataclass(slots=True)
class Scrapes:
    walls_s: list[float] = field(default_factory=list)
    series: int = 0


class ScrapedRows(Rows):
    """The same streams of the same router, with and without somebody who scrapes it, in turn."""

    _is_filled = False

    def measures(self) -> Mapping[str, tuple[Measure, Sequence[Contender]]]:
        return {"scraped": (self._streams, self.field)}

    async def _streams(self, contender: Contender, number: int) -> None:
        if not self._is_filled:
            await fill(contender.port)
            self._is_filled = True
        run = await self._run(contender)
        self._keep(QUIET, number, run)
        async with scraping(contender.metrics_ports[0]) as scrapes:
            run = await self._run(contender)
        self._keep(SCRAPED, number, run)
        self.report.add("scraped_wall", ROUTER, number, median(scrapes.walls_s) * 1000)
        self.report.add("scraped_series", ROUTER, number, scrapes.series)

    async def _run(self, contender: Contender) -> load.Run:
        sizes = self.sizes
        return await load.streams(
            contender.ports, sizes.streams, sizes.chunk_rate, sizes.window_s, sizes.warm_s, contender.cpu
        )

    def _keep(self, who: str, number: int, run: load.Run) -> None:
        self.report.add("scraped_p50", who, number, quantile(run.delays_us, 0.5) / 1000)
        self.report.add("scraped_p99", who, number, quantile(run.delays_us, 0.99) / 1000)
        self.report.add("scraped_cpu", who, number, run.cpu_us_each)
        if run.errors:
            self.note(f"round {number}, {who}: {run.errors} errors, the first: {run.error}")


async def fill(port: int) -> None:
    """So many calls that every model has been called on every node and by both routes."""
    requests = [
        _request(path, name_of(model), call) for call in range(CALLS_EACH) for model in range(MODELS) for path in ROUTES
    ]
    for at in range(0, len(requests), AT_ONCE):
        await asyncio.gather(*(load.exchange(port, request) for request in requests[at : at + AT_ONCE]))


def _request(path: str, model: str, call: int) -> bytes:
    """Conversations that differ: each may go to another node."""
    wanted = {"max_tokens": 3} if path.startswith("/v1") else {"options": {"num_predict": 3}}
    messages = [{"role": "user", "content": f"{call}: why is the sky blue? 1000/s"}]
    body = json.dumps({"model": model, "messages": messages, "stream": True, **wanted}).encode()
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (path.encode(), len(body)) + body


@asynccontextmanager
async def scraping(port: int) -> AsyncIterator[Scrapes]:
    """What was seen stands there at the end."""
    command = (sys.executable, "-m", "bench.scraper", "--port", str(port))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=HERE.parent)
    scrapes = Scrapes()
    try:
        yield scrapes
    finally:
        process.terminate()
        told, _ = await process.communicate()
    *pages, series = told.decode().splitlines()
    scrapes.walls_s += [float(line.split()[0]) for line in pages]
    scrapes.series = int(series)


SCRAPED_LIVE = Group(("scraped",), (ROUTER,), ScrapedRows, nodes=NODES, models=MODELS)
