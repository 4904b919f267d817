"""What counts as backlogged, and the index of how just teams were served while they were."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest

from router.simulation.world.call import Call
from router.simulation.world.clients import Backlog
from router.simulation.world.results import TURNS_MIN, jain
from router.simulation.world.scenario import scenario_of
from router.simulation.world.workload import Request
from tests.sim.test_worlds import pool

CHAT = {"share": 1, "kind": "embedding", "slots": 1, "vram_gib": 1, "load_s": 1, "prefill_tps": 9}
TEAMS = [{"name": "x", "share": 1, "weight": 1}, {"name": "y", "share": 1, "weight": 3}]
SCENARIO = scenario_of(pool(models=[{**CHAT, "name": "m"}, {**CHAT, "name": "n"}], teams=TEAMS), Path())
WEIGHTS = {team.name: team.weight for team in SCENARIO.teams}


class Clients:
    """`waits("x x y")`: two calls of x and one of y, each of 100 tokens."""

    def __init__(self) -> None:
        self.backlog = Backlog()
        self.calls: list[Call] = []
        self._numbers = count()

    def wait(self, teams: str, *, model: int = 0) -> None:
        by_name = {team.name: team for team in SCENARIO.teams}
        for name in teams.split():
            call = Call(Request(next(self._numbers), 0.0, SCENARIO.models[model], by_name[name], 60, 40, ()))
            self.calls.append(call)
            self.backlog.add(call, 0.0)

    def serve(self, teams: Sequence[str]) -> None:
        for name in teams:
            call = next(call for call in self.calls if call.request.team.name == name)
            self.calls.remove(call)
            self.backlog.charge(call, WEIGHTS, 10.0)
            self.backlog.drop(call)


def test_teams_that_wait_for_different_models_have_no_claim_to_each_others_slots() -> None:
    clients = Clients()
    clients.wait("x x x")
    clients.wait("y y y", model=1)
    clients.serve("xxx")
    assert clients.backlog.turns == 0


def test_a_single_call_is_no_backlog() -> None:
    clients = Clients()
    clients.wait("x x x y")
    clients.serve("xyx")
    assert clients.backlog.turns == 0


def test_service_is_divided_by_weight_among_those_with_a_backlog() -> None:
    clients = Clients()
    clients.wait("x x x y y y y y")
    clients.serve("yyyx")
    assert clients.backlog.got == {"y": 300.0, "x": 100.0}
    assert clients.backlog.due == {"y": 300.0, "x": 100.0}


@pytest.mark.parametrize(("turn", "index"), [("yyyx", 1.0), ("xxxy", 3 / 7), ("xy", 0.75)])
def test_the_index_is_1_for_what_was_due_and_falls_with_what_was_not(turn: str, index: float) -> None:
    clients = Clients()
    clients.wait("x " * 200 + "y " * 200)
    clients.serve(turn * 40)
    assert clients.backlog.turns >= TURNS_MIN
    assert jain(clients.backlog) == pytest.approx(index)


def test_a_few_turns_say_nothing() -> None:
    clients = Clients()
    clients.wait("x " * 100 + "y " * 100)
    clients.serve("x" * (TURNS_MIN - 1))
    assert jain(clients.backlog) is None
    clients.serve("x")
    assert jain(clients.backlog) == pytest.approx(0.25)
