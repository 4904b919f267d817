"""Drives the pure node model by the event loop's clock and hands each effect to the call it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from router.simulation.facts import FOREVER_S, CopyEvent, Effect, Work
from router.simulation.journal import Journal
from router.simulation.model import NodeModel

Deliver = Callable[[Effect], None]


class Engine:
    """One timer for the whole node: no task wakes for a token. `deliver` must not raise and must not call back."""

    def __init__(self, model: NodeModel, journal: Journal) -> None:
        self.model = model
        self._journal = journal
        self._calls: dict[int, Deliver] = {}
        self._blobs: dict[int, str] = {}
        self._last_call = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = 0.0

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def submit(self, work: Work, deliver: Deliver) -> int:
        """The call's number. Whoever submits must `leave` in the end, however the call ended."""
        self._last_call += 1
        call = self._last_call
        self._calls[call] = deliver
        self._blobs[call] = work.weights.blob
        self._apply(lambda now_s: self.model.ask(call, work, now_s))
        return call

    def leave(self, call: int) -> None:
        self._calls.pop(call, None)
        self._apply(lambda now_s: self.model.leave(call, now_s))
        self._blobs.pop(call, None)

    def kill(self, blob: str) -> None:
        self._apply(lambda now_s: self.model.kill(blob, now_s))

    def kill_all(self) -> None:
        """As when the whole server dies: no call hears of it, no copy survives."""
        self._calls.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.model.reset()

    def set_speed(self, factor: float) -> None:
        """`factor` times as slow as the node is by nature."""

        def change(now_s: float) -> list[Effect]:
            self.model.set_speed(self.model.limits.speed / factor, now_s)
            return []

        self._apply(change)

    def catch_up(self) -> None:
        """Before anybody looks at the model: everything due until now has happened."""
        self._apply(lambda _: [])

    def _apply(self, change: Callable[[float], list[Effect]]) -> None:
        now_s = self.now_s()
        effects = self.model.advance(now_s)
        effects += change(now_s)
        self._dispatch(effects)
        self._arm()

    def _tick(self) -> None:
        self._timer = None
        self._dispatch(self.model.advance(self.now_s()))
        self._arm()

    def _arm(self) -> None:
        due_s = self.model.next_event_s()
        if self._timer is not None:
            if self._due_s == due_s:
                return
            self._timer.cancel()
            self._timer = None
        if due_s != FOREVER_S:
            self._due_s = due_s
            self._timer = asyncio.get_running_loop().call_at(due_s, self._tick)

    def _dispatch(self, effects: list[Effect]) -> None:
        self._journal.note(effects, self._blobs)
        for effect in effects:
            if not isinstance(effect, CopyEvent) and (deliver := self._calls.get(effect.call)):
                deliver(effect)
