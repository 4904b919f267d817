"""Names that stand for other names. Resolved once, when the configuration is read; a call only looks up."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from router.errors import BadRequest
from router.wire.names import parse_name


class AliasError(ValueError):
    """A configured alias that leads nowhere; `alias` is the key as configured, for the path of the field."""

    def __init__(self, alias: str, text: str) -> None:
        super().__init__(f"aliases.{alias}: {text}")
        self.alias = alias


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """Where a name leads: model keys, best first. A name that is no alias leads to itself."""

    targets: tuple[str, ...]
    is_alias: bool = False


@dataclass(frozen=True, slots=True)
class Aliases:
    """Made by `aliases_of`."""

    targets: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # key of an alias -> model key

    @property
    def names(self) -> Collection[str]:
        """Keys of the aliases themselves."""
        return self.targets.keys()

    def plan(self, key: str) -> RoutePlan:
        target = self.targets.get(key)
        return RoutePlan((key,)) if target is None else RoutePlan((target,), is_alias=True)


def aliases_of(configured: Mapping[str, str]) -> Aliases:
    """Refuses with AliasError: bad names, two spellings of one alias, and ways that come back to themselves."""
    steps: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for alias, target in configured.items():
        key = _key(alias, alias)
        if key in spelled:
            raise AliasError(alias, f"is the same name as {spelled[key]}")
        spelled[key] = alias
        steps[key] = _key(alias, target)
    return Aliases(MappingProxyType({key: _end(key, steps, spelled) for key in steps}))


def _key(alias: str, name: str) -> str:
    if not name.strip():
        raise AliasError(alias, "has an empty name")
    try:
        return parse_name(name).key
    except BadRequest as refusal:
        raise AliasError(alias, f"{name!r}: {refusal.text}") from None


def _end(key: str, steps: Mapping[str, str], spelled: Mapping[str, str]) -> str:
    """Where the way that begins here ends; it is as long as there are aliases at most."""
    path = [key]
    while path[-1] in steps:
        following = steps[path[-1]]
        if following in path:
            raise AliasError(spelled[key], f"leads back to itself: {' -> '.join([*path, following])}")
        path.append(following)
    return path[-1]
