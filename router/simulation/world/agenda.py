"""Virtual time: what happens when. Events of one moment happen in the order in which they were planned."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
Do = Callable[[], None]


class Timer:
    __slots__ = ("at_s", "do")

    def __init__(self, at_s: float, do: Do) -> None:
        self.at_s = at_s
        self.do: Do | None = do

    def cancel(self) -> None:
        self.do = None


class Agenda:
    """Fills `seams.Clock`: in a simulation a second is a second, and the Unix epoch is where it began."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._planned: list[tuple[float, int, Timer]] = []
        self._count = 0

    def __repr__(self) -> str:
        return f"<Agenda {self._now_s:.3f} s | {len(self._planned)} planned>"

    def now_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return self._now_s

    def at(self, at_s: float, do: Do) -> Timer:
        timer = Timer(max(at_s, self._now_s), do)
        self._count += 1
        heapq.heappush(self._planned, (timer.at_s, self._count, timer))
        return timer

    def after(self, seconds: float, do: Do) -> Timer:
        return self.at(self._now_s + seconds, do)

    def next(self) -> bool:
        """The next event happens; False when nothing is planned any more."""
        while self._planned:
            at_s, _, timer = heapq.heappop(self._planned)
            if timer.do is not None:
                self._now_s = at_s
                timer.do()
                return True
        return False


def at_once(step: Coroutine[Any, Any, T]) -> T:
    """The result of a step of production code that never waits, since its store is in memory."""
    try:
        step.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    step.close()
    raise AssertionError("a step over a store in memory waited for something")
