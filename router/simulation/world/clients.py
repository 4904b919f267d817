"""Whoever calls: arrivals, patience, and repeating what a router that died had not begun to answer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from random import Random

from router.fleet.tickets import Priority
from router.simulation.world.agenda import Agenda, Timer
from router.simulation.world.call import Call, Fate
from router.simulation.world.front import Front
from router.simulation.world.workload import Request

REPEAT_S = 0.5  # the official SDKs wait about so long before they repeat a call
Line = tuple[str, Priority]  # a model's, of one band: teams of another are served before or after it, by design
BACKLOGGED_S = 0.05  # who waits longer than this for a slot waits for somebody else's


class Backlog:
    """Who waits for which model, by team, and what each team got of the slots that several of them wanted.

    A slot can only go to those who wait for its model: whoever waits for another has no claim to it. And a team has a
    backlog while more than one of its calls waits: a single one is served in its turn, and to count that as a share of
    all would make whoever calls now and then look favoured.
    """

    def __init__(self) -> None:
        self._lines: dict[Line, dict[str, OrderedDict[int, float]]] = {}  # -> team -> call -> since when
        self.got: dict[str, float] = {}
        self.due: dict[str, float] = {}
        self.turns = 0

    def add(self, call: Call, now_s: float) -> None:
        teams = self._lines.setdefault(_line_of(call), {})
        teams.setdefault(call.request.team.name, OrderedDict())[call.request.number] = now_s

    def drop(self, call: Call) -> None:
        teams = self._lines.get(_line_of(call), {})
        teams.get(call.request.team.name, OrderedDict()).pop(call.request.number, None)

    def charge(self, call: Call, weights: dict[str, float], now_s: float) -> None:
        """A call got a slot while several teams had a backlog: its tokens are what its own got and all had coming."""
        line, own = self._lines.get(_line_of(call), {}), call.request.team.name
        teams = [team for team, calls in line.items() if _is_backlog(calls, now_s)]
        if len(teams) < 2 or own not in teams:
            return
        self.turns += 1
        tokens = float(call.request.prompt_tokens + call.request.output_tokens)
        total = sum(weights[team] for team in teams)
        self.got[own] = self.got.get(own, 0.0) + tokens
        for team in teams:
            self.due[team] = self.due.get(team, 0.0) + tokens * weights[team] / total


def _line_of(call: Call) -> Line:
    return call.request.model.name, call.request.team.priority


def _is_backlog(calls: OrderedDict[int, float], now_s: float) -> bool:
    return len(calls) > 1 and next(iter(calls.values())) <= now_s - BACKLOGGED_S


class Clients:
    """Fills `Desk`. Owns every call from its arrival to its fate."""

    def __init__(self, agenda: Agenda, rng: Random, fronts: Sequence[Front], patience_s: float) -> None:
        self._agenda = agenda
        self._rng = rng
        self._fronts = fronts
        self._patience_s = patience_s
        self._patience: dict[int, Timer] = {}
        self.calls: list[Call] = []
        self.open: dict[int, Call] = {}
        self.backlog = Backlog()
        self._weights: dict[str, float] = {}
        self.to_come = 0

    def __repr__(self) -> str:
        return f"<Clients {self.to_come} to come | {len(self.open)} open | {len(self.calls)} in all>"

    def expect(self, requests: Sequence[Request]) -> None:
        self._weights = {request.team.name: request.team.weight for request in requests}
        self.to_come = len(requests)
        for request in requests:
            self._agenda.at(request.at_s, lambda request=request: self._arrive(request))  # type: ignore[misc]

    def _arrive(self, request: Request) -> None:
        self.to_come -= 1
        call = Call(request)
        self.calls.append(call)
        self.open[request.number] = call
        self._patience[request.number] = self._agenda.after(self._patience_s, lambda: self._lose_patience(call))
        self.backlog.add(call, self._agenda.now_s())
        self._send(call)

    def _send(self, call: Call) -> None:
        if call.fate is not None:
            return
        live = [front for front in self._fronts if front.is_up]
        if not live:
            self._agenda.after(REPEAT_S, lambda: self._send(call))
            return
        front = live[int(self._rng.random() * len(live))]
        call.front = front
        call.tries += 1
        front.take(call)

    def _lose_patience(self, call: Call) -> None:
        if call.fate is None and not call.is_streaming:
            if call.front is not None:
                call.front.leave(call)
            self.ended(call, Fate.GAVE_UP)

    # Desk

    def began(self, call: Call) -> None:
        now_s = self._agenda.now_s()
        self.backlog.charge(call, self._weights, now_s)
        self.backlog.drop(call)

    def sent_back(self, call: Call) -> None:
        call.front = None
        call.began_s = None
        self.backlog.add(call, self._agenda.now_s())
        self._agenda.after(REPEAT_S, lambda: self._send(call))

    def ended(self, call: Call, fate: Fate) -> None:
        assert call.fate is None, f"{call!r} ended twice"
        call.fate = fate
        call.ended_s = self._agenda.now_s()
        call.front = None
        self.backlog.drop(call)
        self._patience.pop(call.request.number).cancel()
        del self.open[call.request.number]
