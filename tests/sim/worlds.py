"""Small scenarios by chance: some models, some nodes, some luck, and arrivals made here instead of read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from router.simulation.world.scenario import Scenario, scenario_of
from router.simulation.world.workload import Request

DURATION_S = 60.0


def small(seed: int) -> tuple[Scenario, list[Request]]:
    """The same for the same seed."""
    rng = Random(f"small {seed}")
    models = [model(name, rng) for name in ("m0", "m1", "m2", "m3")[: rng.randint(1, 4)]]
    value = {
        "name": f"small-{seed}",
        "seed": seed,
        "trace": {"file": "none.csv", "format": "azure", "duration_s": DURATION_S},
        "models": models,
        "nodes": [{"name": "n", "count": rng.randint(1, 3), "vram_gib": rng.choice((8, 16)), "models": "all"}],
        "teams": [{"name": "a", "share": 0.7}, {"name": "b", "share": 0.3, "weight": 2}],
        "routers": {"replicas": rng.randint(1, 3), "store_latency_ms": rng.choice((0, 0.5, 20))},
        "client": {"patience_s": rng.choice((10, 30))},
    }
    value["faults"] = faults(rng, value)
    scenario = scenario_of(value, Path())
    return scenario, requests(scenario, rng, rng.randint(5, 40))


def flood(seed: int) -> tuple[Scenario, list[Request]]:
    """Long lines of several teams that ask for much and for little, at few slots; nobody gives up, nothing dies."""
    rng = Random(f"flood {seed}")
    models = [model(name, rng) for name in ("m0", "m1")[: rng.randint(1, 2)]]
    weights = {name: rng.choice((0.5, 1, 4)) for name in ("flood", "steady", "rare")}
    value = {
        "name": f"flood-{seed}",
        "seed": seed,
        "trace": {"file": "none.csv", "format": "azure", "duration_s": DURATION_S},
        "models": models,
        "nodes": [{"name": "n", "count": rng.randint(1, 2), "vram_gib": 16, "models": "all"}],
        "teams": [{"name": name, "share": 1, "weight": weight} for name, weight in weights.items()],
        "routers": {"replicas": rng.randint(1, 2), "store_latency_ms": 0.5},
        "client": {"patience_s": 3600},
    }
    scenario = scenario_of(value, Path())
    return scenario, requests(scenario, rng, 150, shares=(20, 4, 1))


def one_card(seed: int) -> tuple[Scenario, list[Request]]:
    """Models that take turns in one memory, all asked for in turn by patient clients."""
    rng = Random(f"one card {seed}")
    models = [{**model(f"m{number}", rng), "vram_gib": 9} for number in range(rng.randint(2, 4))]
    value = {
        "name": f"one-card-{seed}",
        "seed": seed,
        "trace": {"file": "none.csv", "format": "azure", "duration_s": DURATION_S},
        "models": models,
        "nodes": [{"name": "n", "vram_gib": 12, "models": "all"}],
        "client": {"patience_s": 3600},
    }
    scenario = scenario_of(value, Path())
    return scenario, requests(scenario, rng, 80)


def uneven(seed: int) -> tuple[Scenario, list[Request]]:
    """Fast nodes and slow ones, with room for some of the models; nobody gives up, nothing dies."""
    rng = Random(f"uneven {seed}")
    slow = {"name": "slow", "count": rng.randint(1, 2), "vram_gib": 12, "speed": rng.choice((0.1, 0.4, 0.8))}
    value = {
        "name": f"uneven-{seed}",
        "seed": seed,
        "trace": {"file": "none.csv", "format": "azure", "duration_s": DURATION_S},
        "models": [model(f"m{number}", rng) for number in range(rng.randint(2, 4))],
        "nodes": [{"name": "fast", "count": rng.randint(1, 2), "vram_gib": rng.choice((12, 24))}, slow],
        "client": {"patience_s": 3600},
    }
    scenario = scenario_of(value, Path())
    return scenario, requests(scenario, rng, 80)


def configured(seed: int) -> tuple[Scenario, list[Request]]:
    """As `small`, with aliases that overflow, bands, declared copies, and memory that nobody declares."""
    rng = Random(f"configured {seed}")
    models = [model(name, rng) for name in ("m0", "m1", "m2")]
    declared = [{"name": "m0", "copies": rng.randint(1, 2), "pin": rng.random() < 0.3}]
    after_s = {"overflow_after_s": rng.choice((0, 2))}
    value = {
        "name": f"configured-{seed}",
        "seed": seed,
        "trace": {"file": "none.csv", "format": "azure", "duration_s": DURATION_S},
        "models": models,
        "aliases": [{"name": "any", "share": 1, "targets": [{"model": "m1"}], "fallbacks": ["m0", "m2"], **after_s}],
        "nodes": [
            {"name": "n", "count": rng.randint(1, 2), "vram_gib": 16, "declares_vram": rng.random() < 0.5},
            {"name": "k", "vram_gib": 8},
        ],
        "teams": [{"name": "a", "share": 1, "priority": "low"}, {"name": "b", "share": 1, "priority": "high"}],
        "placement": {"mode": "managed", "models": declared[: rng.randint(0, 1)]},
        "routers": {"replicas": rng.randint(1, 3), "store_latency_ms": rng.choice((0, 0.5, 20))},
        "client": {"patience_s": rng.choice((10, 30))},
    }
    value["faults"] = faults(rng, value)
    scenario = scenario_of(value, Path())
    (alias,) = scenario.aliases
    asked = requests(scenario, rng, rng.randint(5, 40))
    by_alias = [replace(one, plan=alias.meaning.plans[0], model=scenario.models[1]) for one in asked[::2]]
    return scenario, sorted([*asked[1::2], *by_alias], key=lambda request: request.number)


def model(name: str, rng: Random) -> dict[str, Any]:
    speed = {"decode_tps": rng.choice((20, 100)), "decode_exponent": 0.75}
    kind = rng.choice(("chat", "chat", "embedding"))
    return {
        "name": name,
        "share": rng.choice((0.2, 0.5)),
        "kind": kind,
        "slots": 1 if kind == "embedding" else rng.randint(1, 4),
        "vram_gib": rng.choice((1, 5, 7)),
        "load_s": rng.choice((0.5, 3, 8)),
        "prefill_tps": 2000,
        **(speed if kind == "chat" else {}),
    }


def faults(rng: Random, value: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for _ in range(rng.randint(0, 3)):
        kind = rng.choice(("node_down", "node_slow", "router_down", "store_down"))
        node = f"n-{rng.randrange(value['nodes'][0]['count'])}"
        router = str(rng.randrange(value["routers"]["replicas"]))
        target = {"router_down": router, "store_down": "store"}.get(kind, node)
        span = {"at_s": round(rng.uniform(0, 50), 2), "for_s": round(rng.uniform(1, 25), 2)}
        found.append({"kind": kind, "target": target, **span, **({"factor": 4} if kind == "node_slow" else {})})
    return found


def requests(scenario: Scenario, rng: Random, count: int, *, shares: Sequence[float] | None = None) -> list[Request]:
    """`shares` of the teams; alike, if there are none."""
    times = sorted(rng.uniform(0, DURATION_S) ** 1.5 / DURATION_S**0.5 for _ in range(count))
    made = []
    for number, at_s in enumerate(times):
        chosen, (team,) = rng.choice(scenario.models), rng.choices(scenario.teams, shares)
        blocks = tuple(range(number % 3 * 10, number % 3 * 10 + rng.randint(0, 3)))
        output = 0 if chosen.kind == "embedding" else rng.randint(1, 200)
        made.append(Request(number, at_s, chosen, team, rng.randint(1, 3000), output, blocks))
    return made
