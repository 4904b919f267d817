"""A scenario file -> facts. Its form is described in bench/scenarios/README.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import yaml

from router.fleet.tickets import Priority
from router.simulation.world.configured import AS_WAITED_FOR, Alias, Placement, aliases_in, key_of, placement_in
from router.simulation.world.fields import Fields, ScenarioError

NODES_MAX = 10_000  # of one entry: more is a slip of the finger
PRIORITIES = tuple(priority.name.lower() for priority in Priority)
NAMED_MAX = 8  # of what would have been right, in an error


class TraceFormat(StrEnum):
    AZURE = "azure"
    MOONCAKE = "mooncake"


class Kind(StrEnum):
    CHAT = "chat"
    EMBEDDING = "embedding"


class FaultKind(StrEnum):
    NODE_DOWN = "node_down"
    NODE_SLOW = "node_slow"
    ROUTER_DOWN = "router_down"
    STORE_DOWN = "store_down"


@dataclass(frozen=True, slots=True)
class TraceFile:
    """`start_s` is where in the trace to begin; virtual time runs `rate_scale` times as fast as the trace's."""

    file: Path
    format: TraceFormat
    start_s: float
    duration_s: float
    rate_scale: float


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    key: str
    share: float
    kind: Kind
    slots: int
    vram_gib: float
    load_s: float
    prefill_tps: float
    decode_tps: float
    decode_exponent: float


@dataclass(frozen=True, slots=True)
class NodeFacts:
    name: str
    vram_gib: float
    speed: float
    max_loaded: int
    models: frozenset[str]  # keys of what lies on its disk
    declares_vram: bool = True  # to the router, as `nodes[].vram_gib`


@dataclass(frozen=True, slots=True)
class Team:
    name: str
    share: float
    weight: float
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True, slots=True)
class Fault:
    at_s: float
    kind: FaultKind
    target: str
    for_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    seed: int
    trace: TraceFile
    models: tuple[Model, ...]
    nodes: tuple[NodeFacts, ...]
    teams: tuple[Team, ...]
    replicas: int
    store_latency_s: float  # of a round trip
    patience_s: float
    faults: tuple[Fault, ...] = ()
    aliases: tuple[Alias, ...] = ()
    placement: Placement = AS_WAITED_FOR


Named = TypeVar("Named", Model, NodeFacts, Team)


def read_scenario(path: Path) -> Scenario:
    """Raises ScenarioError, or OSError where there is no such file."""
    text = path.read_text(encoding="utf-8")
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"is no YAML: {' '.join(str(error).split())}") from None
    return scenario_of(loaded, path.parent)


def scenario_of(value: object, folder: Path) -> Scenario:
    with Fields(value) as fields:
        share_above = None if fields.has("aliases") else 0.0
        models = _distinct("models", [_model(part, share_above) for part in fields.parts("models", least=1)])
        _are_different(models)
        keys = {model.key for model in models}
        aliases = aliases_in(fields.parts("aliases"), keys)
        _are_asked_for(models, aliases)
        nodes = [node for part in fields.parts("nodes", least=1) for node in _nodes(part, models)]
        with fields.part("routers") as routers, fields.part("client") as client:
            scenario = Scenario(
                name=fields.text("name"),
                seed=fields.count("seed", 0, least=0),
                trace=_trace(fields.part("trace"), folder),
                models=tuple(models),
                nodes=tuple(_distinct("nodes", nodes)),
                teams=tuple(_distinct("teams", [_team(part) for part in fields.parts("teams")])) or (ALONE,),
                replicas=routers.count("replicas", 1),
                store_latency_s=routers.number("store_latency_ms", 0.0) / 1000.0,
                patience_s=client.number("patience_s", 60.0, above=0.0),
                aliases=aliases,
                placement=placement_in(fields.part("placement"), keys, {node.name for node in nodes}),
            )
        faults = tuple(_fault(part, scenario) for part in fields.parts("faults"))
    return replace(scenario, faults=faults)


ALONE = Team("default", 1.0, 1.0)


def _trace(fields: Fields, folder: Path) -> TraceFile:
    with fields:
        return TraceFile(
            file=folder / fields.text("file"),
            format=TraceFormat(fields.choice("format", tuple(TraceFormat))),
            start_s=fields.number("start_s", 0.0),
            duration_s=fields.number("duration_s", above=0.0),
            rate_scale=fields.number("rate_scale", 1.0, above=0.0),
        )


def _model(fields: Fields, share_above: float | None) -> Model:
    with fields:
        kind = Kind(fields.choice("kind", tuple(Kind)))
        is_chat = kind is Kind.CHAT
        name = fields.text("name")
        return Model(
            name=name,
            key=key_of(name, f"{fields.path}.name"),
            share=fields.number("share", above=share_above),
            kind=kind,
            slots=fields.count("slots", 1),
            vram_gib=fields.number("vram_gib", above=0.0),
            load_s=fields.number("load_s"),
            prefill_tps=fields.number("prefill_tps", above=0.0),
            decode_tps=fields.number("decode_tps", above=0.0) if is_chat or fields.has("decode_tps") else 1.0,
            decode_exponent=fields.number("decode_exponent", 1.0),
        )


def _nodes(fields: Fields, models: Sequence[Model]) -> list[NodeFacts]:
    """`count` of them are called `name-0`, `name-1` and so on; without it there is one, called `name`."""
    with fields:
        base, count = fields.text("name"), fields.count("count", 1)
        if count > NODES_MAX:
            raise ScenarioError(f"{fields.path}.count: should be at most {NODES_MAX}")
        names = [f"{base}-{number}" for number in range(count)] if fields.has("count") else [base]
        stored = _stored(fields, models)
        vram_gib, speed = fields.number("vram_gib", above=0.0), fields.number("speed", 1.0, above=0.0)
        max_loaded = fields.count("max_loaded", 3)
        declares_vram = fields.flag("declares_vram", default=True)
        return [NodeFacts(name, vram_gib, speed, max_loaded, stored, declares_vram) for name in names]


def _stored(fields: Fields, models: Sequence[Model]) -> frozenset[str]:
    wanted = fields.names("models", "all")
    if wanted == "all":
        return frozenset(model.key for model in models)
    by_name = {model.name: model.key for model in models}
    names = (wanted,) if isinstance(wanted, str) else wanted
    for name in names:
        if name not in by_name:
            raise ScenarioError(f"{fields.path}.models: {name!r} is none of the models above")
    return frozenset(by_name[name] for name in names)


def _team(fields: Fields) -> Team:
    with fields:
        priority = fields.choice("priority", PRIORITIES) if fields.has("priority") else Priority.NORMAL.name
        return Team(
            fields.text("name"),
            fields.number("share", above=0.0),
            fields.number("weight", 1.0, above=0.0),
            Priority[priority.upper()],
        )


def _fault(fields: Fields, scenario: Scenario) -> Fault:
    with fields:
        kind = FaultKind(fields.choice("kind", tuple(FaultKind)))
        factor = fields.number("factor", above=0.0) if kind is FaultKind.NODE_SLOW else fields.number("factor", 1.0)
        known = _targets(kind, scenario)
        target = known[0] if kind is FaultKind.STORE_DOWN and not fields.has("target") else fields.label("target")
        fault = Fault(fields.number("at_s"), kind, target, fields.number("for_s", above=0.0), factor)
        if fault.target not in known:
            more = ", ..." if len(known) > NAMED_MAX else ""
            told = ", ".join(known[:NAMED_MAX])
            raise ScenarioError(f"{fields.path}.target: {fault.target!r} is none of {told}{more}")
        return fault


def _targets(kind: FaultKind, scenario: Scenario) -> tuple[str, ...]:
    if kind is FaultKind.STORE_DOWN:
        return ("store",)
    if kind is FaultKind.ROUTER_DOWN:
        return tuple(str(number) for number in range(scenario.replicas))
    return tuple(node.name for node in scenario.nodes)


def _are_asked_for(models: Sequence[Model], aliases: Sequence[Alias]) -> None:
    """A share of 0 says that only aliases lead to it."""
    led_to = {target.model for alias in aliases for plan in alias.meaning.plans for target in plan.targets}
    idle = next((model for model in models if not model.share and model.key not in led_to), None)
    if idle is not None:
        raise ScenarioError(f"models: {idle.name!r} has no share, and no alias leads to it")


def _are_different(models: Sequence[Model]) -> None:
    """To Ollama too: `m` is `m:latest`."""
    by_key: dict[str, Model] = {}
    for model in models:
        other = by_key.setdefault(model.key, model)
        if other is not model:
            raise ScenarioError(f"models: {other.name!r} and {model.name!r} are one model to Ollama")


def _distinct(path: str, items: list[Named]) -> list[Named]:
    names = [item.name for item in items]
    twice = next((name for name in names if names.count(name) > 1), None) if len(names) < NODES_MAX else None
    if twice is not None:
        raise ScenarioError(f"{path}: {twice!r} is there twice")
    return items
