"""Chunks are gathered where they come fast, as network cards moderate interrupts: a wake-up that finds five costs
little more than one that finds one, and most of what a chunk costs is the kernel's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

# A hundredth of what lies between two tokens of a fast model. Linux adds 50 us of timer slack.
PAUSE_S = 0.0004
# From here on a pause gathers two chunks and more.
BUSY_CHUNKS_PER_S = 5_000
# So much work found at once needs no gathering: a loop that is behind shall not rest.
FULL_TURN_CHUNKS = 32
# What the rate is taken over.
WINDOW_S = 0.05


def _soon(callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(callback)


class Moderation:
    """One for all connections of a loop. After a turn that passed chunks on, while they come fast, the loop rests."""

    def __init__(
        self,
        *,
        soon: Callable[[Callable[[], None]], object] = _soon,
        clock: Callable[[], float] = time.monotonic,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        self._soon = soon
        self._clock = clock
        self._rest = rest
        self._in_turn = 0
        self._in_window = 0
        self._since_s = clock()
        self._is_busy = False

    def __repr__(self) -> str:
        return f"<Moderation {'gathering' if self._is_busy else 'at once'}>"

    def chunk(self) -> None:
        """A chunk was passed on: what it wrote is sent before the loop rests."""
        self._in_turn += 1
        if self._in_turn == 1:
            self._soon(self._end_turn)

    def _end_turn(self) -> None:
        if self.is_worth_a_pause(self._in_turn):
            self._rest(PAUSE_S)
        self._in_turn = 0

    def is_worth_a_pause(self, chunks: int) -> bool:
        """Told once for each turn that brought chunks, with their number."""
        self._in_window += chunks
        elapsed_s = self._clock() - self._since_s
        if elapsed_s >= WINDOW_S:
            self._is_busy = self._in_window >= BUSY_CHUNKS_PER_S * elapsed_s
            self._in_window, self._since_s = 0, self._since_s + elapsed_s
        return self._is_busy and chunks < FULL_TURN_CHUNKS
