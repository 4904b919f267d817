"""What a simulated node saw, for assertions."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from router.simulation.facts import Began, CopyEvent, Effect, Event

CALLS_KEPT = 4096
EVENTS_KEPT = 4096
BODY_BYTES_KEPT = 33_554_432  # of one call: a large vision body is kept whole


@dataclass(slots=True)
class Seen:
    """One request. `ending` is open, done, gone (the client left) or broken (a fault ended it)."""

    number: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    arrived_s: float  # loop time
    status: int = 0
    ending: str = "open"

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    def header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name.lower()), "")


class Journal:
    def __init__(self) -> None:
        self.calls: deque[Seen] = deque(maxlen=CALLS_KEPT)
        self.events: deque[CopyEvent] = deque(maxlen=EVENTS_KEPT)
        self.counts: Counter[Event] = Counter()
        self.max_running: Counter[str] = Counter()  # by weights blob

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {event}" for event, count in self.counts.items())
        return f"<Journal {len(self.calls)} calls | {counts or 'no loads'}>"

    @property
    def loads_started(self) -> int:
        return self.counts[Event.LOAD_STARTED]

    @property
    def loads_finished(self) -> int:
        return self.counts[Event.LOAD_FINISHED]

    @property
    def loads_aborted(self) -> int:
        return self.counts[Event.LOAD_ABORTED]

    def to(self, path: str) -> list[Seen]:
        return [seen for seen in self.calls if seen.path == path]

    def note(self, effects: Iterable[Effect], blob_of: dict[int, str]) -> None:
        """`blob_of`: the weights that each running call asked for."""
        for effect in effects:
            if isinstance(effect, CopyEvent):
                self.counts[effect.event] += 1
                self.events.append(effect)
            elif isinstance(effect, Began):
                blob = blob_of.get(effect.call, "")
                self.max_running[blob] = max(self.max_running[blob], effect.running)
