"""1,000 nodes and 100 models in virtual time, and what one decision costs there: `make sim-large`.

The figures are of this machine; the bars are those of the design for one decision. Nothing here fails on a missed bar.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from router.fleet.snapshot import Snapshot
from router.fleet.tickets import LineView
from router.policy.placement import Mode, place
from router.policy.schedule import Want, schedule
from router.simulation.world.results import results_of
from router.simulation.world.scenario import Scenario, scenario_of
from router.simulation.world.workload import Request
from router.simulation.world.world import World

NODES, MODELS, REPLICAS = 1000, 100, 2
CALLS_PER_S = 100.0
ROUNDS = 2000
BARS_US = ((20, 100.0, 30.0), (NODES, 600.0, 200.0))  # copies of the model, first bar, then


def scenario(duration_s: float) -> Scenario:
    models = [
        {
            "name": f"model-{number}",
            "share": 1.0 / (number + 1),
            "kind": "chat",
            "slots": 4,
            "vram_gib": 3 + number % 5,
            "load_s": 4 + number % 5,
            "prefill_tps": 4000,
            "decode_tps": 80,
            "decode_exponent": 0.75,
        }
        for number in range(MODELS)
    ]
    value: dict[str, Any] = {
        "name": "large",
        "seed": 1,
        "trace": {"file": "made-here", "format": "azure", "duration_s": duration_s},
        "models": models,
        "nodes": [{"name": "gpu", "count": NODES, "vram_gib": 24}],
        "routers": {"replicas": REPLICAS, "store_latency_ms": 0.5},
    }
    return scenario_of(value, Path())


def requests(large: Scenario) -> list[Request]:
    rng = Random(1)
    shares = [model.share for model in large.models]
    made: list[Request] = []
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(CALLS_PER_S)) < large.trace.duration_s:
        model = rng.choices(large.models, shares)[0]
        made.append(Request(len(made), at_s, model, large.teams[0], rng.randint(50, 4000), rng.randint(10, 400), ()))
    return made


def cost_us(do: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median of five batches, per call."""
    batches = []
    for _ in range(5):
        began_s = time.perf_counter()
        for _ in range(rounds // 5):
            do()
        batches.append((time.perf_counter() - began_s) / (rounds // 5) * 1e6)
    return median(batches)


def held_by(world: World, copies: int) -> tuple[Snapshot, str]:
    """The pool's snapshot with one model in the memory of so many nodes."""
    fleet = World(_with_copies(world.scenario, copies), "floor").replicas[0].keeper.snapshot
    return fleet, world.scenario.models[0].key


def _with_copies(large: Scenario, copies: int) -> Scenario:
    first = large.models[0].key
    rest = frozenset(model.key for model in large.models[1:3])
    nodes = [
        replace(node, models=frozenset({first}) if number < copies else rest) for number, node in enumerate(large.nodes)
    ]
    return replace(large, nodes=tuple(nodes))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.large", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of virtual time (10)")
    options = parser.parse_args()
    large = scenario(options.seconds)
    asked = requests(large)
    began_s = time.process_time()
    world = World(large, "ours")
    world.run(asked)
    took_s = time.process_time() - began_s
    results = results_of(world)
    print(f"{NODES} nodes, {MODELS} models, {len(asked)} calls in {options.seconds:g} s: {took_s:.0f} s of CPU")
    print(
        f"served {results['served']}, gave up {results['gave_up']}, "
        f"ttft p50 {results['ttft_s']['p50']:.2f} p95 {results['ttft_s']['p95']:.2f}, loads {results['loads']}\n"
    )
    print("| one decision | us | first bar | then |\n|---|---:|---:|---:|")
    rng = Random(2)
    for copies, first, then in BARS_US:
        snapshot, key = held_by(world, copies)
        occupancy: dict[tuple[str, str], int] = {}
        for affinity, name in (("", "least busy"), ("conversation", "affinity")):
            us = cost_us(partial(schedule, Want((key,), affinity), snapshot, occupancy, rng))
            print(
                f"| schedule, {copies} of {NODES} nodes hold the model, {name} | {us:.0f} | {first:.0f} | {then:.0f} |"
            )
    keeper = world.replicas[0].keeper
    lines = [LineView(model.key, 3, 5.0, 0, None, 256, 1.0) for model in large.models]
    us = cost_us(
        partial(
            place,
            lines,
            keeper.snapshot,
            loading={},
            backoff={},
            now_s=0.0,
            mode=Mode.ON_DEMAND,
        ),
        rounds=10,
    )
    print(f"| place, {MODELS} lines at once (one pass a second) | {us:.0f} | - | - |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
