"""A whole router on loopback in front of simulated nodes, in one loop, as production runs it: on uvloop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any

from router.settings import Settings
from router.simulation.node import SimulatedNode
from router.telemetry.logs import Logs
from router.wiring import Router, running

LOOPBACK = "127.0.0.1:0"


def settings_for(nodes: Sequence[SimulatedNode], /, **changes: Any) -> Settings:
    """Quick probes and no drain delay; everything else as an operator gets it."""
    basis: dict[str, Any] = {
        "listen": LOOPBACK,
        "metrics_listen": LOOPBACK,
        "admin": {"listen": LOOPBACK},
        "nodes": [{"url": node.url, "name": node.name} for node in nodes],
        "probe": {"interval_s": 0.1},
        "shutdown": {"drain_delay_s": 0},
    }
    return Settings(**{**basis, **changes})


@asynccontextmanager
async def router_before(
    nodes: Sequence[SimulatedNode], /, *, seed: int = 0, descriptor: int | None = None, **changes: Any
) -> AsyncIterator[Router]:
    """Ready when every node was read. Log lines go to `descriptor`, by default nowhere."""
    with quiet_logs(descriptor) as logs:
        async with running(settings_for(nodes, **changes), logs, Random(seed)) as router:
            await until(lambda: router.keeper.snapshot.all_read or not nodes)
            yield router


@contextmanager
def quiet_logs(descriptor: int | None = None) -> Iterator[Logs]:
    silent = os.open(os.devnull, os.O_WRONLY) if descriptor is None else descriptor
    logs = Logs(log_format="json", level="info", descriptor=silent)
    logs.open()
    try:
        yield logs
    finally:
        logs.close()
        if descriptor is None:
            os.close(silent)


async def until(holds: Callable[[], bool], within_s: float = 10.0) -> None:
    """Waits for a fact, a turn of the loop at a time; fails when it does not come."""
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110 - facts of many parts, none of which shall know its tests
            await asyncio.sleep(0.001)


def assert_at_rest(router: Router) -> None:
    """Nothing is held for anybody: what every call must leave behind, however it ended."""
    assert not router.pipeline.live
    assert not any(router.store.occupancy.values()), dict(router.store.occupancy)
    assert router.connections.busy == 0
    assert router.buffers.held == 0
