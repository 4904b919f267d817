"""What a scenario says in the words of the router's own settings: aliases, and which copies are declared."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from router.errors import BadRequest
from router.policy.alias import Meaning
from router.policy.alias_config import AliasError, Said, aliases_of
from router.policy.declared import Declaration
from router.policy.placement import Mode
from router.simulation.world.fields import Fields, ScenarioError
from router.wire.names import parse_name

MODES = (Mode.ON_DEMAND, Mode.MANAGED)  # who only observes loads nothing, and nobody else does here


@dataclass(frozen=True, slots=True)
class Alias:
    """`share` is how many of the requests ask for it, beside the models' own."""

    name: str
    share: float
    meaning: Meaning


@dataclass(frozen=True, slots=True)
class Placement:
    mode: Mode = Mode.ON_DEMAND
    declared: tuple[Declaration, ...] = ()

    @property
    def has_pins(self) -> bool:
        return any(declaration.is_pinned for declaration in self.declared)


AS_WAITED_FOR = Placement()


def aliases_in(entries: Iterator[Fields], models: Collection[str]) -> tuple[Alias, ...]:
    """`models` are keys."""
    said: dict[str, Said] = {}
    shares: dict[str, float] = {}
    for entry in entries:
        with entry as fields:
            name = fields.text("name")
            if key_of(name, f"{fields.path}.name") in models:
                raise ScenarioError(f"{fields.path}.name: {name!r} is a model's name too")
            if name in said:
                raise ScenarioError(f"aliases: {name!r} is there twice")
            shares[name] = fields.number("share", above=0.0)
            said[name] = _said(fields)
    try:
        aliases = aliases_of(said)
    except AliasError as error:
        raise ScenarioError(str(error)) from None
    for alias, key in aliases.missing(models):
        raise ScenarioError(f"aliases: {alias!r} leads to {key!r}, which is none of the models above")
    return tuple(Alias(name, share, aliases.meanings[parse_name(name).key]) for name, share in shares.items())


def _said(fields: Fields) -> Said:
    targets = []
    for part in fields.parts("targets", least=1):
        with part as target:
            targets.append((target.text("model"), target.number("weight", 1.0, above=0.0)))
    fallbacks = fields.names("fallbacks", ())
    return Said(
        targets=targets,
        fallbacks=(fallbacks,) if isinstance(fallbacks, str) else fallbacks,
        overflow_after_s=fields.number("overflow_after_s") if fields.has("overflow_after_s") else None,
    )


def placement_in(part: Fields, models: Collection[str], nodes: Collection[str]) -> Placement:
    """`models` are keys, `nodes` names."""
    with part as fields:
        mode = Mode(fields.choice("mode", MODES)) if fields.has("mode") else Mode.ON_DEMAND
        declared = tuple(_declaration(entry, models, nodes) for entry in fields.parts("models"))
        keys = [declaration.key for declaration in declared]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ScenarioError(f"{fields.path}.models: {twice!r} is there twice")
        if declared and mode is not Mode.MANAGED:
            raise ScenarioError(f"{fields.path}.models: nothing comes of them but with mode: managed")
        return Placement(mode, declared)


def _declaration(part: Fields, models: Collection[str], nodes: Collection[str]) -> Declaration:
    with part as fields:
        name = fields.text("name")
        key = key_of(name, f"{fields.path}.name")
        if key not in models:
            raise ScenarioError(f"{fields.path}.name: {name!r} is none of the models above")
        wanted = fields.names("nodes", ())
        names = (wanted,) if isinstance(wanted, str) else wanted
        for node in names:
            if node not in nodes:
                raise ScenarioError(f"{fields.path}.nodes: {node!r} is none of the nodes above")
        return Declaration(key, fields.count("copies", 1), fields.flag("pin", default=False), names)


def key_of(name: str, path: str) -> str:
    try:
        return parse_name(name).key
    except BadRequest as refusal:
        raise ScenarioError(f"{path}: {refusal.text}") from None
