"""What happened over time, for tables and pictures: who sat in which memory, how long the lines were, bad luck."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.simulation.facts import CopyEvent, Event
from router.simulation.world.agenda import Agenda
from router.simulation.world.clients import Clients
from router.simulation.world.scenario import Fault

SAMPLE_S = 5.0

_GONE = frozenset({Event.EVICTED, Event.EXPIRED, Event.RELOADED, Event.DIED})


@dataclass(slots=True)
class Stay:
    """Of a model in a node's memory, from the beginning of its load; `ready_s` is None where the load was given up."""

    node: str
    model: str
    load_s: float
    ready_s: float | None
    end_s: float | None = None


@dataclass(slots=True)
class History:
    agenda: Agenda
    stays: list[Stay] = field(default_factory=list)
    lines: list[tuple[float, dict[str, int]]] = field(default_factory=list)  # who waits, by model, now and then
    faults: list[Fault] = field(default_factory=list)
    loads: int = 0
    evictions: int = 0
    loading_s: float = 0.0
    _open: dict[tuple[str, str], Stay] = field(default_factory=dict)
    _clients: Clients | None = None

    def watch(self, clients: Clients) -> None:
        self._clients = clients
        self._sample()

    def close(self) -> None:
        now_s = self.agenda.now_s()
        for stay in self._open.values():
            stay.end_s = now_s
        self._open.clear()

    def struck(self, fault: Fault) -> None:
        self.faults.append(fault)

    def copy_changed(self, node: str, event: CopyEvent) -> None:
        place = (node, event.name)
        if event.event is Event.LOAD_STARTED:
            self.loads += 1
            self._open[place] = Stay(node, event.name, event.at_s, None)
            self.stays.append(self._open[place])
        elif event.event is Event.LOAD_FINISHED:
            stay = self._open.get(place)
            if stay is None:  # it was there from the beginning
                stay = self._open[place] = Stay(node, event.name, event.at_s, None)
                self.stays.append(stay)
            stay.ready_s = event.at_s
            self.loading_s += event.at_s - stay.load_s
        elif event.event is Event.LOAD_ABORTED:
            stay = self._open.pop(place)
            stay.end_s = event.at_s
            self.loading_s += event.at_s - stay.load_s
        elif event.event in _GONE:
            self.evictions += event.event is Event.EVICTED
            gone = self._open.pop(place, None)
            if gone is not None:
                gone.end_s = event.at_s

    def _sample(self) -> None:
        clients = self._clients
        assert clients is not None
        waiting: dict[str, int] = {}
        for call in clients.open.values():
            if call.began_s is None:
                key = call.request.model.key
                waiting[key] = waiting.get(key, 0) + 1
        self.lines.append((self.agenda.now_s(), waiting))
        if clients.to_come or clients.open:
            self.agenda.after(SAMPLE_S, self._sample)
