"""A process around a running router: its log, its signals and its exit code."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from dataclasses import dataclass
from random import Random

import uvloop

from router.control.config import Files
from router.lifecycle import LoopDied, Loops
from router.meaning import discovery_sources
from router.server.listen import Berth
from router.settings import Loaded, Origin, Settings
from router.simulation.pool import SimulatedPool
from router.telemetry.logs import Logs
from router.telemetry.turn import FileTurn
from router.wiring import Rereading, running

log = logging.getLogger("router")

# A call makes hundreds of objects and nearly no cycles: collecting every 700, the default, cost 6 % of a plain call.
YOUNG_OBJECTS = 50_000
# So long may a thread that reads a large body keep the loop waiting at a time; Python lets it for 5 ms.
SWITCH_S = 0.001


def serve(origin: Origin) -> int:
    """Runs until SIGTERM or SIGINT, then leaves well. The exit code. Refuses with ConfigError."""
    return uvloop.run(_serve(origin))


def work(origin: Origin, berth: Berth, number: int, turn: str) -> int:
    """As `serve`, beside other workers under one parent. `turn` is the file by which they take turns in the log."""
    return uvloop.run(_serve(origin, _Worker(berth, number, turn)))


def demo(settings: Settings, nodes: int, seed: int) -> int:
    """Simulated nodes in this process, and a router in front of them."""
    return uvloop.run(_demo(settings, nodes, seed))


@dataclass(frozen=True, slots=True)
class _Worker:
    berth: Berth
    number: int
    turn: str


async def _serve(origin: Origin, worker: _Worker | None = None) -> int:
    asked = asyncio.Event()
    # From the beginning and to the end: without a handler SIGHUP would end the process.
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
    seen = Files().look([origin.file] if origin.file else [])
    return await _run(origin.read(), Rereading(origin, asked, seen=seen), worker)


async def _demo(settings: Settings, nodes: int, seed: int) -> int:
    async with SimulatedPool(nodes=nodes, seed=seed) as pool:
        simulated = [{"url": node.url, "name": node.name} for node in pool.nodes]
        return await _run(Loaded(Settings(**{**settings.model_dump(), "nodes": simulated, "discovery": {}})), None)


async def _run(loaded: Loaded, rereading: Rereading | None, worker: _Worker | None = None) -> int:
    settings, berth = loaded.settings, worker.berth if worker is not None else None
    logs = _logs(settings, worker)
    logs.open()
    logs.take_over()
    sys.setswitchinterval(SWITCH_S)
    try:
        async with running(loaded, logs, Random(), rereading, berth) as router:
            log.info(
                "serving on %s, metrics and health on %s, admin on %s, %d nodes by: %s",
                settings.listen,
                settings.metrics_listen,
                settings.admin.listen,
                len(router.keeper.snapshot.nodes),
                ", ".join([*(node.url for node in settings.nodes), *discovery_sources(settings)]),
            )
            # What stands now stands until the end: the collector need not walk it during a stream.
            gc.collect()
            gc.freeze()
            gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
            try:
                await _until_told(router.loops, obeys_twice=worker is None)
            finally:
                # Also without one of its loops: streams need none of them, and end well.
                await router.leave()
        log.info("left well")
    except LoopDied:
        return 1
    finally:
        logs.close()
    return 0


def _logs(settings: Settings, worker: _Worker | None) -> Logs:
    told = settings.log
    if worker is None:
        return Logs(log_format=told.format, level=told.level)
    return Logs(log_format=told.format, level=told.level, worker=worker.number, turn=FileTurn(worker.turn))


async def _until_told(loops: Loops, *, obeys_twice: bool) -> None:
    """A worker is told by its parent, and may be told by whoever signals the whole group as well: once is enough."""
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    try:
        await loops.first_of(told)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT) if obeys_twice else ():
            # A second signal ends the process at once, as anybody who presses Ctrl-C twice expects.
            loop.remove_signal_handler(number)
