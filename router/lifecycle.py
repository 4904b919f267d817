"""Leaving well: not ready at once, a delay in which new calls are still served, then the listener closes, waiting calls
are served and streams finish up to a limit, and what is left is told so in its dialect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from router.errors import Drained
from router.pipeline import Pipeline

log = logging.getLogger(__name__)

# Calls that were told to end need a turn of the loop or two to write their last bytes.
LAST_WORDS_S = 2.0
# A load that is about to end gets so much, also when the streams took all of the drain.
LOADS_S_MIN = 1.0


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
    """The phase of this process. Only `leave` moves it forward, once. `limits` may be set anew until then."""

    def __init__(self, limits: DrainLimits) -> None:
        self.limits = limits
        self.phase = Phase.STARTING
        self._drained_by_s = 0.0  # loop time

    def __repr__(self) -> str:
        return f"<Lifecycle {self.phase}>"

    @property
    def is_leaving(self) -> bool:
        return self.phase not in (Phase.STARTING, Phase.SERVING)

    @property
    def loads_s(self) -> float:
        """How long the loads that still run may take, once the calls have ended."""
        return max(LOADS_S_MIN, self._drained_by_s - asyncio.get_running_loop().time())

    async def leave(self, pipeline: Pipeline, close_listener: Callable[[], Awaitable[None]]) -> None:
        """Returns when no call is left."""
        self.phase = Phase.LEAVING
        log.info("leaving: not ready, new calls are served for %g s more", self.limits.drain_delay_s)
        await asyncio.sleep(self.limits.drain_delay_s)
        # From here on another replica serves better: what is served now may be cut before its end.
        pipeline.is_closing = True
        await close_listener()
        self.phase = Phase.DRAINING
        self._drained_by_s = asyncio.get_running_loop().time() + self.limits.stream_drain_s
        log.info("draining: %d calls have %g s to end", len(pipeline.live), self.limits.stream_drain_s)
        await _until_none(pipeline, self.limits.stream_drain_s)
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


class LoopDied(Exception):
    """A loop that the router cannot do without has ended; why was logged."""


class Loops:
    """The loops that live as long as the router. One that dies takes it along: what it kept fresh would only rot."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self.has_lost_one = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Loops {[task.get_name() for task in self._tasks if not task.done()]}>"

    def start(self, name: str, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        task.add_done_callback(self._ended)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def first_of(self, event: asyncio.Event) -> None:
        """Until the event comes. Raises LoopDied where a loop dies before."""
        waits = [asyncio.create_task(one.wait()) for one in (event, self.has_lost_one)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.has_lost_one.is_set():
            raise LoopDied

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("%s died", task.get_name(), exc_info=error)
            self.has_lost_one.set()
