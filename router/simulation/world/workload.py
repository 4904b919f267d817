"""A trace -> requests: arrivals and sizes from the file, models and teams by share from the scenario's seed."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TypeVar

from router.policy.alias import RoutePlan, Target
from router.simulation.world.configured import Alias
from router.simulation.world.fields import ScenarioError
from router.simulation.world.scenario import Kind, Model, Scenario, Team, TraceFile, TraceFormat

T = TypeVar("T")

BLOCK_TOKENS = 512  # of a prompt stand behind each id in `hash_ids` (Mooncake, FAST 2025)
# What a conversation is known by: the router hashes the instructions and the first thing said (wire.intent_affinity).
AFFINITY_BLOCKS = 2


@dataclass(frozen=True, slots=True)
class Arrival:
    """One line of a trace, its time in seconds since the first line. `blocks` are empty where nothing is shared."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What one client asks, before anybody has seen it. `model` is the target that was drawn where it names an alias;
    `plan` is empty where it names the model."""

    number: int
    at_s: float
    model: Model
    team: Team
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    plan: RoutePlan | None = None

    @property
    def targets(self) -> tuple[Target, ...]:
        return (Target(self.model.key),) if self.plan is None else self.plan.targets

    @property
    def affinity(self) -> str:
        """Who says nothing in common with anybody is a conversation of its own."""
        said = ",".join(map(str, self.blocks[:AFFINITY_BLOCKS])) if self.blocks else f"alone-{self.number}"
        return f"{self.model.key}:{said}"


def requests_of(scenario: Scenario) -> list[Request]:
    """In order of time, within the scenario's duration."""
    rng = Random(f"requests {scenario.seed}")
    named: tuple[Model | Alias, ...] = (*scenario.models, *scenario.aliases)
    name_of = _drawing(rng, named, [name.share for name in named])
    plan_rng, by_key = Random(f"aliases {scenario.seed}"), {model.key: model for model in scenario.models}
    team_of = _drawing(rng, scenario.teams, [team.share for team in scenario.teams])
    requests: list[Request] = []
    for arrival in _window(scenario.trace):
        name, team = next(name_of), next(team_of)
        model, plan = _asked(name, by_key, plan_rng)
        output_tokens = 0 if model.kind is Kind.EMBEDDING else max(1, arrival.output_tokens)
        prompt_tokens = max(1, arrival.prompt_tokens)
        request = Request(len(requests), arrival.at_s, model, team, prompt_tokens, output_tokens, arrival.blocks, plan)
        requests.append(request)
    return requests


def _drawing(rng: Random, items: tuple[T, ...], shares: list[float]) -> Iterator[T]:
    bounds = list(accumulate(shares))
    while True:
        yield rng.choices(items, cum_weights=bounds)[0]


def _asked(name: Model | Alias, models: Mapping[str, Model], rng: Random) -> tuple[Model, RoutePlan | None]:
    """The same target under every policy."""
    if isinstance(name, Model):
        return name, None
    plan = name.meaning.plan(rng)
    return models[plan.first.model], plan


def _window(trace: TraceFile) -> Iterator[Arrival]:
    """Arrivals in virtual time: the trace's time is stretched, so that its bursts and lulls keep their shape."""
    for arrival in sorted(read_trace(trace.file, trace.format), key=lambda arrival: arrival.at_s):
        at_s = (arrival.at_s - trace.start_s) / trace.rate_scale
        if 0.0 <= at_s < trace.duration_s:
            yield Arrival(at_s, arrival.prompt_tokens, arrival.output_tokens, arrival.blocks)


def read_trace(path: Path, form: TraceFormat) -> Iterator[Arrival]:
    """Also compressed: `file.csv` is looked for as `file.csv.gz` where it is not there."""
    try:
        yield from (_azure if form is TraceFormat.AZURE else _mooncake)(_open(path))
    except (KeyError, TypeError, ValueError) as error:
        raise ScenarioError(f"{path}: is no {form} trace: {error!r}") from None


def _open(path: Path) -> io.TextIOBase:
    packed = path if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    if packed.exists() and (path.suffix == ".gz" or not path.exists()):
        return io.TextIOWrapper(gzip.open(packed), encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def _azure(lines: io.TextIOBase) -> Iterator[Arrival]:
    with lines:
        began: datetime | None = None
        for row in csv.DictReader(lines):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])  # the seventh digit of the second is beyond Python's
            began = began or at
            yield Arrival((at - began).total_seconds(), int(row["ContextTokens"]), int(row["GeneratedTokens"]))


def _mooncake(lines: io.TextIOBase) -> Iterator[Arrival]:
    with lines:
        began_ms: float | None = None
        for line in lines:
            row = json.loads(line)
            at_ms = float(row["timestamp"])
            began_ms = at_ms if began_ms is None else began_ms
            blocks = tuple(int(block) for block in row["hash_ids"])
            yield Arrival((at_ms - began_ms) / 1000.0, int(row["input_length"]), int(row["output_length"]), blocks)
