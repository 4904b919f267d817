"""A limit of time that counts only while this process runs."""

from __future__ import annotations

import asyncio
from types import TracebackType

SLICES = 5


class Patience:
    """`async with`, as `asyncio.timeout`: raises TimeoutError at its end.

    However long the loop stood still (the process was paused, or others had its processor), that counts as one slice of
    the limit: what came meanwhile is read before anybody says that nothing came.
    """

    __slots__ = ("_left", "_limit", "_slice_s", "_timer")

    def __init__(self, limit_s: float) -> None:
        self._slice_s = limit_s / SLICES
        self._left = SLICES
        self._limit = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()
        self._wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        await self._limit.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._slice_s, self._passed)

    def _passed(self) -> None:
        self._left -= 1
        if self._left:
            self._wait()
        else:
            self._limit.reschedule(asyncio.get_running_loop().time())
