"""How chunks are gathered: never where it would only cost time, and never for longer than one pause a turn."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from router.upstream.moderation import BUSY_CHUNKS_PER_S, FULL_TURN_CHUNKS, PAUSE_S, WINDOW_S, Moderation


class Loop:
    """Turns of a loop in virtual time; a pause takes as long as it is asked to."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.pauses_s: list[float] = []
        self._due: list[Callable[[], None]] = []
        self.moderation = Moderation(soon=self._due.append, clock=lambda: self.now_s, rest=self._rest)

    def _rest(self, pause_s: float) -> None:
        self.pauses_s.append(pause_s)
        self.now_s += pause_s

    def turn(self, chunks: int) -> None:
        for _ in range(chunks):
            self.moderation.chunk()
        due, self._due[:] = [*self._due], []
        for callback in due:
            callback()

    def run(self, *, chunks_per_s: float, for_s: float, chunks_a_turn: int = 1) -> int:
        """Pauses taken while chunks come at that rate, so many in each turn."""
        before, until_s = len(self.pauses_s), self.now_s + for_s
        while self.now_s < until_s:
            started_s = self.now_s
            self.turn(chunks_a_turn)
            self.now_s = max(self.now_s, started_s + chunks_a_turn / chunks_per_s)
        return len(self.pauses_s) - before


@given(st.floats(1, BUSY_CHUNKS_PER_S * 0.95), st.integers(1, 8))
def test_chunks_that_come_slowly_are_never_held(chunks_per_s: float, chunks_a_turn: int) -> None:
    assert Loop().run(chunks_per_s=chunks_per_s, for_s=1, chunks_a_turn=chunks_a_turn) == 0


def test_chunks_that_come_fast_are_gathered_after_one_window_by_one_pause_a_turn() -> None:
    loop = Loop()
    assert loop.run(chunks_per_s=10_000, for_s=WINDOW_S) <= 1
    loop.turn(3)
    loop.turn(3)
    assert loop.pauses_s[-2:] == [PAUSE_S, PAUSE_S]


def test_a_turn_without_chunks_is_never_paused() -> None:
    loop = Loop()
    loop.run(chunks_per_s=10_000, for_s=2 * WINDOW_S)
    before = len(loop.pauses_s)
    loop.turn(0)
    assert len(loop.pauses_s) == before


def test_a_loop_that_is_behind_does_not_rest() -> None:
    assert Loop().run(chunks_per_s=50_000, for_s=1, chunks_a_turn=FULL_TURN_CHUNKS) == 0


def test_the_first_chunks_after_a_rush_wait_for_one_pause_at_most() -> None:
    loop = Loop()
    loop.run(chunks_per_s=10_000, for_s=2 * WINDOW_S)
    assert loop.run(chunks_per_s=100, for_s=1) <= WINDOW_S * 100 + 1
    assert loop.run(chunks_per_s=100, for_s=1) == 0
