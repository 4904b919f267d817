"""What scenarios say in the words of the settings: aliases, bands, declared copies, memory that is not declared."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from router.fleet.tickets import Priority
from router.policy.declared import Declaration
from router.policy.placement import Mode
from router.simulation.world.call import Call, Fate
from router.simulation.world.checks import Checker
from router.simulation.world.fields import ScenarioError
from router.simulation.world.results import results_of
from router.simulation.world.scenario import Scenario, scenario_of
from router.simulation.world.workload import Request, requests_of
from router.simulation.world.world import World
from tests.sim.test_scenario import GOOD, changed
from tests.sim.test_worlds import pool

ALIAS = {"name": "any", "share": 1, "targets": [{"model": "m"}], "fallbacks": ["e"], "overflow_after_s": 5}
CHAT = {"share": 1, "kind": "chat", "slots": 1, "vram_gib": 4, "load_s": 3, "prefill_tps": 1000, "decode_tps": 10}


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("aliases", [{**ALIAS, "teams": {}}], "aliases[0].teams: unknown key"),
        ("aliases", [{**ALIAS, "share": 0}], "aliases[0].share: should be above 0"),
        ("aliases", [{**ALIAS, "targets": []}], "aliases[0].targets: should have at least 1 item"),
        ("aliases", [{**ALIAS, "name": "M:latest"}], "aliases[0].name: 'M:latest' is a model's name too"),
        ("aliases", [{**ALIAS, "name": "a b"}], "aliases[0].name: "),
        ("aliases", [ALIAS, ALIAS], "aliases: 'any' is there twice"),
        ("aliases", [{**ALIAS, "fallbacks": ["x"]}], "aliases: 'any:latest' leads to 'x:latest', which is none of"),
        ("aliases", [{**ALIAS, "fallbacks": []}], "aliases.any.overflow_after_s: leads nowhere"),
        (
            "teams",
            [{"name": "t", "share": 1, "priority": "urgent"}],
            "teams[0].priority: should be one of low, normal, high",
        ),
        ("nodes.0.declares_vram", "no", "nodes[0].declares_vram: should be true or false, not 'no'"),
        ("placement", {"mode": "observe"}, "placement.mode: should be one of on_demand, managed"),
        ("placement", {"models": [{"name": "m"}]}, "placement.models: nothing comes of them but with mode: managed"),
        ("placement", {"mode": "managed", "models": [{"name": "x"}]}, "placement.models[0].name: 'x' is none of"),
        (
            "placement",
            {"mode": "managed", "models": [{"name": "m", "pin": 1}]},
            "placement.models[0].pin: should be true",
        ),
        (
            "placement",
            {"mode": "managed", "models": [{"name": "m", "nodes": ["a"]}]},
            "placement.models[0].nodes: 'a' is none of the nodes above",
        ),
        (
            "placement",
            {"mode": "managed", "models": [{"name": "m"}, {"name": "M:latest"}]},
            "placement.models: 'm:latest' is there twice",
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_path(path: str, value: object, told: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        scenario_of(changed(path, value), Path())
    assert str(caught.value).startswith(told)


def test_a_model_without_a_share_of_its_own_needs_an_alias_that_leads_to_it() -> None:
    value = changed("models.1.share", 0)
    assert scenario_of({**value, "aliases": [ALIAS]}, Path()).models[1].share == 0
    elsewhere = {**ALIAS, "fallbacks": [], "overflow_after_s": 0, "targets": [{"model": "m"}]}
    del elsewhere["overflow_after_s"]
    with pytest.raises(ScenarioError, match=r"models: 'e' has no share, and no alias leads to it"):
        scenario_of({**value, "aliases": [elsewhere]}, Path())


def test_what_is_not_said_is_as_it_was() -> None:
    scenario = scenario_of(GOOD, Path())
    assert (scenario.aliases, scenario.placement.mode, scenario.placement.declared) == ((), Mode.ON_DEMAND, ())
    assert all(node.declares_vram for node in scenario.nodes)
    assert [team.priority for team in scenario.teams] == [Priority.NORMAL]


def test_declared_copies_are_read_as_settings_say_them() -> None:
    models = [{"name": "m", "copies": 2, "pin": True, "nodes": ["a-1", "b"]}, {"name": "e"}]
    placement = scenario_of({**GOOD, "placement": {"mode": "managed", "models": models}}, Path()).placement
    assert placement.declared == (Declaration("m:latest", 2, True, ("a-1", "b")), Declaration("e:latest"))
    assert placement.has_pins


def test_requests_for_an_alias_are_drawn_by_its_share_and_its_targets_by_weight(tmp_path: Path) -> None:
    lines = "".join(f"2023-11-16 18:15:{second % 60:02}.0000000,9,7\n" for second in range(2000))
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + lines)
    targets = [{"model": "m", "weight": 3}, {"model": "e", "weight": 1}]
    alias = {"name": "any", "share": 4, "targets": targets}
    asked = requests_of(scenario_of({**GOOD, "aliases": [alias]}, tmp_path))
    drawn = Counter((request.plan is not None, request.model.name) for request in asked)
    shares = {name: count / len(asked) for name, count in drawn.items()}
    wanted = {(False, "m"): 3 / 8, (False, "e"): 1 / 8, (True, "m"): 3 / 8, (True, "e"): 1 / 8}
    assert shares == pytest.approx(wanted, abs=0.05)


def ran(scenario: Scenario, asked: list[Request], policy: str = "ours") -> World:
    world = World(scenario, policy)
    checker = Checker(world)
    world.run(sorted(asked, key=lambda request: request.at_s), after_each=checker.look)
    checker.look_at_the_end()
    return world


def two_models(**more: Any) -> Scenario:
    models = [{**CHAT, "name": name, "decode_exponent": 1} for name in ("large", "small")]
    return scenario_of(pool(models=models, nodes=[{"name": "n", "vram_gib": 24}], **more), Path())


def served_by(calls: list[Call]) -> list[str]:
    return [call.key.removesuffix(":latest") for call in calls]


@pytest.mark.parametrize(("policy", "second"), [("ours", "small"), ("floor", "small"), ("least_connections", "large")])
def test_who_waits_too_long_for_an_aliass_model_is_served_by_the_next_under_our_policy_only(
    policy: str, second: str
) -> None:
    alias = {"name": "any", "share": 1, "targets": [{"model": "large"}], "fallbacks": ["small"], "overflow_after_s": 5}
    scenario = two_models(aliases=[alias])
    plan, team = scenario.aliases[0].meaning.plans[0], scenario.teams[0]
    large, small = scenario.models
    warm = [Request(number, 0.0, model, team, 10, 1, ()) for number, model in enumerate((large, small))]
    asked = [Request(2 + number, 20.0 + number, large, team, 10, 300, (), plan) for number in range(2)]
    world = ran(scenario, [*warm, *asked], policy)
    calls = world.clients.calls[2:]
    assert [call.fate for call in calls] == [Fate.SERVED, Fate.SERVED]
    assert served_by(calls) == ["large", second]
    assert calls[1].began_s == pytest.approx(26.0 if second == "small" else 50.0, abs=1.0)
    assert results_of(world)["overflowed"] == (second == "small")


def test_an_alias_leads_past_a_model_whose_nodes_are_down() -> None:
    alias = {"name": "any", "share": 1, "targets": [{"model": "large"}], "fallbacks": ["small"]}
    fault = {"at_s": 1, "kind": "node_down", "target": "n", "for_s": 50}
    nodes = [{"name": "n", "vram_gib": 24, "models": ["large"]}, {"name": "k", "vram_gib": 24, "models": ["small"]}]
    scenario = scenario_of(
        pool(
            models=[{**CHAT, "name": name, "decode_exponent": 1} for name in ("large", "small")],
            nodes=nodes,
            aliases=[alias],
            faults=[fault],
        ),
        Path(),
    )
    plan = scenario.aliases[0].meaning.plans[0]
    world = ran(scenario, [Request(0, 20.0, scenario.models[0], scenario.teams[0], 10, 9, (), plan)])
    assert [(call.fate, call.node) for call in world.clients.calls] == [(Fate.SERVED, "k")]


def test_a_higher_band_is_served_before_those_who_came_earlier() -> None:
    teams = [{"name": "later", "share": 1, "priority": "low"}, {"name": "first", "share": 1, "priority": "high"}]
    scenario = two_models(teams=teams, client={"patience_s": 600})
    later, first = scenario.teams
    model = scenario.models[0]
    low = [Request(number, number / 10, model, later, 10, 40, ()) for number in range(4)]
    high = [Request(10 + number, 1.0 + number / 10, model, first, 10, 40, ()) for number in range(2)]
    calls = ran(scenario, [*low, *high]).clients.calls
    began = sorted(calls, key=lambda call: call.began_s or 0.0)
    assert [call.request.team.name for call in began][:2] == ["first", "first"]


def test_declared_copies_are_there_before_anybody_calls_and_a_pin_keeps_its_memory() -> None:
    models = [{"name": "small", "copies": 1, "pin": True}]
    scenario = scenario_of(
        pool(
            models=[{**CHAT, "name": name, "vram_gib": 8, "decode_exponent": 1} for name in ("large", "small")],
            nodes=[{"name": "n", "vram_gib": 12}],
            placement={"mode": "managed", "models": models},
            client={"patience_s": 50},
        ),
        Path(),
    )
    large, small = scenario.models
    asked = [
        Request(0, 10.0, small, scenario.teams[0], 1000, 9, ()),
        Request(1, 11.0, large, scenario.teams[0], 9, 9, ()),
    ]
    world = ran(scenario, asked)
    served, refused = world.clients.calls
    assert served.first_token_s == pytest.approx(11.0, abs=0.01), "loaded before it came"
    assert refused.fate is Fate.GAVE_UP, "only the pin's memory would do for it"
    assert [stay.model for stay in world.history.stays] == ["small:latest"]
    assert world.history.evictions == 0


def test_a_declared_minimum_comes_back_after_its_node() -> None:
    fault = {"at_s": 20, "kind": "node_down", "target": "n-0", "for_s": 10}
    placement = {"mode": "managed", "models": [{"name": "m", "copies": 3}]}
    scenario = scenario_of(pool(placement=placement, faults=[fault]), Path())
    asked = [Request(0, 59.0, scenario.models[0], scenario.teams[0], 9, 9, ())]
    stays = ran(scenario, asked).history.stays
    assert sorted(stay.node for stay in stays if stay.ready_s is not None and stay.ready_s < 10) == [
        "n-0",
        "n-1",
        "n-2",
    ]
    assert [stay.node for stay in stays if stay.load_s > 20] == ["n-0"]


def test_memory_that_is_not_declared_is_not_known_to_the_router() -> None:
    nodes = [{"name": "n", "vram_gib": 24, "declares_vram": False}, {"name": "k", "vram_gib": 24}]
    world = World(scenario_of({**GOOD, "nodes": nodes}, Path()), "ours")
    assert [card.spec.vram_bytes for card in world.cards.values()] == [None, 24 * 2**30]
    assert {card.model.limits.vram_bytes for card in world.cards.values()} == {24 * 2**30}
