"""A call between arrival and its end, so that a shutdown can reach it wherever it is."""

from __future__ import annotations

import asyncio

from router.errors import Refusal
from router.upstream.attempt import Attempt
from router.upstream.forward import Passage
from router.wire.trace import Trace


class LiveCall:
    """What can be ended from outside: the passage when one runs, else the task that reads, waits or asks."""

    __slots__ = ("_refusal", "_task", "_trace", "_waits_from_s", "attempt", "passage")

    def __init__(self, trace: Trace | None = None) -> None:
        self._task = asyncio.current_task()
        self._refusal: Refusal | None = None
        self._waits_from_s: float | None = None  # None but in line
        self._trace = trace
        self.passage: Passage | None = None
        self.attempt: Attempt | None = None  # the last one begun since it stood in line

    def stand_in_line(self, now_s: float) -> None:
        self._waits_from_s = now_s
        self.attempt = None

    def step_out(self, now_s: float) -> float | None:
        """Seconds in line since `stand_in_line`; None when it did not wait."""
        since_s, self._waits_from_s = self._waits_from_s, None
        if self._trace is not None and since_s is not None:
            self._trace.waits.append((since_s, now_s))
        return None if since_s is None else now_s - since_s

    def attach(self, passage: Passage | None) -> None:
        self.passage = passage
        if passage is not None:
            self.attempt = passage.attempt

    def abort(self, refusal: Refusal) -> None:
        """Ends it from our side: in its stream when one runs, else as an answer of its own."""
        if self.passage is not None:
            self.passage.abort(refusal)
        elif self._task is not None and self._refusal is None:
            self._refusal = refusal
            self._task.cancel()

    def over(self) -> None:
        """Nobody ends it any more. A task that was cancelled keeps all frames of its call, and they would keep us."""
        self._task = None

    def why_cancelled(self) -> Refusal | None:
        """None when the client left; otherwise the cancellation was ours and is taken back."""
        if self._refusal is not None and self._task is not None:
            self._task.uncancel()
        return self._refusal
