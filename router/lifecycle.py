"""Leaving well: not ready at once, a delay in which new calls are still served, then the listener closes, waiting calls
are served and streams finish up to a limit, and what is left is told so in its dialect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from router.errors import Drained
from router.pipeline import Pipeline

log = logging.getLogger(__name__)

# Calls that were told to end need a turn of the loop or two to write their last bytes.
LAST_WORDS_S = 2.0


class Phase(StrEnum):
    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"  # not ready any more, still accepting
    DRAINING = "draining"  # the listener is closed
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class DrainLimits:
    drain_delay_s: float
    stream_drain_s: float


class Lifecycle:
    """The phase of this process. Only `leave` moves it forward, once."""

    def __init__(self, limits: DrainLimits) -> None:
        self._limits = limits
        self.phase = Phase.STARTING
        self.stop = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Lifecycle {self.phase}>"

    @property
    def is_leaving(self) -> bool:
        return self.phase not in (Phase.STARTING, Phase.SERVING)

    async def leave(self, pipeline: Pipeline, close_listener: Callable[[], Awaitable[None]]) -> None:
        """Returns when no call is left."""
        self.phase = Phase.LEAVING
        log.info("leaving: not ready, new calls are served for %g s more", self._limits.drain_delay_s)
        await asyncio.sleep(self._limits.drain_delay_s)
        await close_listener()
        self.phase = Phase.DRAINING
        log.info("draining: %d calls have %g s to end", len(pipeline.live), self._limits.stream_drain_s)
        await _until_none(pipeline, self._limits.stream_drain_s)
        if pipeline.live:
            log.warning("draining: %d calls are cut off", len(pipeline.live))
            for live in list(pipeline.live):
                live.abort(Drained("the router is shutting down"))
            await _until_none(pipeline, LAST_WORDS_S)
        self.phase = Phase.GONE


async def _until_none(pipeline: Pipeline, limit_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            await pipeline.is_idle.wait()
