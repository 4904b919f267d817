"""Whole pools in virtual time: what must hold after every event, and the same history for the same seed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from router.policy import fair_queue, placement
from router.simulation.world import checks
from router.simulation.world.call import Fate
from router.simulation.world.checks import Checker
from router.simulation.world.clients import Clients
from router.simulation.world.results import results_of
from router.simulation.world.scenario import Scenario, scenario_of
from router.simulation.world.workload import Request
from router.simulation.world.world import POLICY_NAMES, World
from router.store import check, copies, queues
from tests.sim.worlds import configured, flood, one_card, small, uneven

ROOT = Path(__file__).parents[2]
SEEDS = 200
LONG_SEEDS = 24
Make = Callable[[int], tuple[Scenario, list[Request]]]
SHARDS = 8  # so that several processes share them


def checked(seed: int, policy: str, make: Make = small) -> World:
    scenario, requests = make(seed)
    world = World(scenario, policy)
    checker = Checker(world)
    try:
        world.run(requests, after_each=checker.look)
        checker.look_at_the_end()
    except AssertionError as error:
        raise AssertionError(f"{scenario.name}, {policy}, at {world.agenda.now_s():.3f} s: {error}") from error
    return world


@pytest.mark.parametrize("shard", range(SHARDS))
def test_invariants_hold_after_every_event_of_random_scenarios(shard: int) -> None:
    for seed in range(shard, SEEDS, SHARDS):
        checked(seed, "ours")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_invariants_hold_with_aliases_bands_declared_copies_and_memory_that_nobody_declared(shard: int) -> None:
    for seed in range(shard, LONG_SEEDS, SHARDS):
        checked(seed, "ours", configured)


@pytest.mark.parametrize("make", [flood, one_card, uneven])
@pytest.mark.parametrize("shard", range(SHARDS))
def test_nobody_starves_in_long_lines_or_before_a_memory_that_is_too_small(shard: int, make: Make) -> None:
    for seed in range(shard, LONG_SEEDS, SHARDS):
        world = checked(seed, "ours", make)
        assert all(call.fate is Fate.SERVED for call in world.clients.calls)


@pytest.mark.parametrize("seed", range(LONG_SEEDS))
def test_models_that_take_turns_on_one_card_are_loaded_for_batches_and_not_for_calls(seed: int) -> None:
    """Interleaved calls: without collating nearly each would cost a load."""
    world = checked(seed, "ours", one_card)
    calls = world.clients.calls
    switches = sum(one.request.model != other.request.model for one, other in pairwise(calls))
    assert world.history.loads <= switches / 2


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_call_has_one_fate_under_every_policy(policy: str) -> None:
    for seed in range(10):
        world = checked(seed, policy)
        results = results_of(world)
        assert sum(results[fate] for fate in Fate) == results["calls"] == len(world.clients.calls)


@pytest.mark.parametrize("policy", ["ours", "prefix_hash"])
def test_two_runs_of_one_seed_are_one_history(policy: str) -> None:
    for seed in (1, 5, 9):
        assert results_of(checked(seed, policy)) == results_of(checked(seed, policy))


def test_the_history_does_not_hang_on_how_python_hashes() -> None:
    program = (
        "import json; from tests.sim.test_worlds import checked, results_of;"
        "print(json.dumps([results_of(checked(seed, p)) for seed in (3, 4) for p in ('ours', 'residency_first')]))"
    )
    told = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        told.add(done.stdout)
    assert len(told) == 1
    assert len(json.loads(told.pop())) == 4


def all_checked(seeds: int, make: Make = small) -> None:
    for seed in range(seeds):
        checked(seed, "ours", make)


def pool(**more: object) -> dict[str, object]:
    chat = {"name": "m", "share": 1, "kind": "chat", "slots": 2, "vram_gib": 4, "load_s": 3, "prefill_tps": 1000}
    return {
        "name": "t",
        "trace": {"file": "none.csv", "format": "azure", "duration_s": 60},
        "models": [{**chat, "decode_tps": 50, "decode_exponent": 0.75}],
        "nodes": [{"name": "n", "count": 3, "vram_gib": 16}],
        "routers": {"replicas": 2, "store_latency_ms": 0.5},
        **more,
    }


def run(value: dict[str, object], policy: str, times: list[float]) -> World:
    scenario = scenario_of(value, Path())
    model, team = scenario.models[0], scenario.teams[0]
    world = World(scenario, policy)
    checker = Checker(world)
    requests = [Request(number, at_s, model, team, 500, 100, ()) for number, at_s in enumerate(times)]
    world.run(requests, after_each=checker.look)
    checker.look_at_the_end()
    return world


def test_fifty_cold_calls_at_two_replicas_are_one_load() -> None:
    world = run(pool(client={"patience_s": 600}), "ours", [0.1 + number / 1000 for number in range(50)])
    assert [stay.model for stay in world.history.stays if stay.ready_s is not None and stay.ready_s < 5] == ["m:latest"]
    assert all(call.fate is Fate.SERVED for call in world.clients.calls)


def test_a_second_cold_model_waits_for_the_fast_node_that_loads_the_first_instead_of_going_to_a_slow_one() -> None:
    chat = {"share": 1, "kind": "chat", "slots": 2, "vram_gib": 4, "load_s": 3, "prefill_tps": 1000, "decode_tps": 50}
    models = [{**chat, "name": name, "decode_exponent": 0.75} for name in "xy"]
    nodes = [{"name": "fast", "vram_gib": 24, "speed": 1.0}, {"name": "slow", "vram_gib": 24, "speed": 0.4}]
    scenario = scenario_of(pool(models=models, nodes=nodes), Path())
    world = World(scenario, "ours")
    team = scenario.teams[0]
    world.run([Request(number, 0.5 + number, scenario.models[number % 2], team, 500, 100, ()) for number in range(4)])
    assert [(stay.node, stay.model) for stay in world.history.stays] == [("fast", "x:latest"), ("fast", "y:latest")]


def test_a_model_gets_its_memory_where_none_is_declared_and_the_card_is_busy_all_the_time() -> None:
    """What Ollama would have to evict is never idle by itself; what was learnt the first time is known the second."""
    chat = {"share": 1, "kind": "chat", "slots": 2, "vram_gib": 9, "load_s": 3, "prefill_tps": 1000, "decode_tps": 50}
    models = [{**chat, "name": name, "decode_exponent": 0.75} for name in "xyz"]
    nodes = [{"name": "n", "vram_gib": 24, "declares_vram": False}]
    scenario = scenario_of(pool(models=models, nodes=nodes, client={"patience_s": 120}), Path())
    world = World(scenario, "ours")
    team = scenario.teams[0]
    busy = [Request(number, number / 2, scenario.models[number % 2], team, 500, 100, ()) for number in range(240)]
    late = [Request(1000 + number, 20.0 + 40.0 * number, scenario.models[2], team, 500, 100, ()) for number in range(2)]
    world.run(sorted([*busy, *late], key=lambda request: request.at_s))
    asked = [call for call in world.clients.calls if call.request.number >= 1000]
    assert [call.fate for call in asked] == [Fate.SERVED, Fate.SERVED]


def test_a_call_with_a_slot_waiting_costs_the_store_one_round_trip() -> None:
    world = run(pool(), "ours", [0.5, 20.0])
    hot = world.clients.calls[1]
    assert hot.first_token_s is not None
    assert hot.first_token_s - 20.0 == pytest.approx(0.5 + 0.0005)  # 500 tokens at 1,000 a second


def test_what_streams_from_a_dead_node_breaks_and_what_waits_there_is_served_elsewhere() -> None:
    fault = {"at_s": 10.0, "kind": "node_down", "target": "n-0", "for_s": 40}
    worlds = [
        run(pool(faults=[{**fault, "target": f"n-{number}"}]), "ours", [6.0 + number / 10 for number in range(12)])
        for number in range(3)
    ]
    fates = [[call.fate for call in world.clients.calls] for world in worlds]
    assert any(Fate.BROKEN in found for found in fates)
    assert all(set(found) <= {Fate.BROKEN, Fate.SERVED} for found in fates)


def test_calls_that_waited_at_a_dead_router_are_repeated_at_another() -> None:
    fault = {"at_s": 1.0, "kind": "router_down", "target": "0", "for_s": 30}
    world = run(pool(faults=[fault]), "ours", [0.5 + number / 100 for number in range(10)])
    assert all(call.fate is Fate.SERVED for call in world.clients.calls)
    assert max(call.tries for call in world.clients.calls) == 2


@pytest.mark.parametrize("replicas", [1, 3])
def test_without_the_store_all_replicas_ask_one_node_for_a_cold_model(replicas: int) -> None:
    fault = {"at_s": 0.0, "kind": "store_down", "target": "store", "for_s": 30}
    routers = {"replicas": replicas, "store_latency_ms": 0.5}
    world = run(pool(faults=[fault], routers=routers), "ours", [1.0 + number for number in range(9)])
    assert len([stay for stay in world.history.stays if stay.load_s < 30]) == 1
    assert all(call.fate is Fate.SERVED for call in world.clients.calls)
    assert world.clients.calls[0].ended_s < 30  # type: ignore[operator]


@pytest.mark.parametrize(("kind", "target"), [("node_down", "n-0"), ("router_down", "0"), ("store_down", "store")])
def test_what_two_faults_strike_at_once_is_well_when_the_later_one_ends(kind: str, target: str) -> None:
    faults = [{"kind": kind, "target": target, "at_s": at_s, "for_s": for_s} for at_s, for_s in ((5, 10), (8, 20))]
    world = World(scenario_of(pool(faults=faults), Path()), "ours")
    is_well = {
        "node_down": lambda: world.cards["n-0"].is_up,
        "router_down": lambda: world.fronts[0].is_up,
        "store_down": lambda: world.is_store_up,
    }[kind]
    seen = {}
    for at_s in (4.0, 6.0, 16.0, 27.0, 29.0):
        world.agenda.at(at_s, lambda at_s=at_s: seen.update({at_s: is_well()}))  # type: ignore[misc]
    while len(seen) < 5:
        assert world.agenda.next()
    assert list(seen.values()) == [True, False, False, False, True]


def test_the_checks_see_a_line_that_looks_at_arrivals_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fair_queue.TeamQueue, "tag", 0.0)
    monkeypatch.setattr(checks, "invariants", lambda book: None)
    with pytest.raises(AssertionError, match=r"more than fair to it"):
        all_checked(20, flood)


def test_the_checks_see_a_call_that_its_own_team_overtakes_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queues, "LOOKAHEAD", 1000)
    with pytest.raises(AssertionError, match="was overtaken 9 times by its own team"):
        all_checked(20, flood)


def test_the_checks_see_a_placer_that_takes_no_memory_from_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "is_worth", lambda line, cost, slots, *, has_copy: not cost.harm)
    with pytest.raises(AssertionError, match="and not loaded"):
        all_checked(20, one_card)


def test_the_checks_see_a_client_that_is_kept_waiting_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clients, "_lose_patience", lambda clients, call: None)
    with pytest.raises(AssertionError, match="is kept beyond its client's patience"):
        all_checked(40)


def test_the_checks_see_a_store_that_lends_one_slot_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (check, copies):
        monkeypatch.setattr(module, "has_room", lambda copy: copy.state == "ready" and copy.leases <= copy.slots)
    with pytest.raises(AssertionError, match="above its slots"):
        all_checked(40)
