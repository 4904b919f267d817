"""A call between arrival and its end, so that a shutdown can reach it wherever it is."""

from __future__ import annotations

import asyncio

from router.errors import Refusal
from router.upstream.forward import Attempt, Passage


class LiveCall:
    """What can be ended from outside: the passage when one runs, else the task that reads, waits or asks."""

    __slots__ = ("_refusal", "_task", "attempt", "passage")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self._refusal: Refusal | None = None
        self.passage: Passage | None = None
        self.attempt: Attempt | None = None  # the last one begun

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

    def why_cancelled(self) -> Refusal | None:
        """None when the client left; otherwise the cancellation was ours and is taken back."""
        if self._refusal is not None and self._task is not None:
            self._task.uncancel()
        return self._refusal
