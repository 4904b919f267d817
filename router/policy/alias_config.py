"""From what an operator wrote about names to `Aliases`: chains followed to their ends, mistakes told with their place.

A name that is no alias is a model's: which models there are, only nodes know, and they say it later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from router.errors import BadRequest
from router.policy.alias import AS_SENT, Aliases, Meaning, Overrides, Target, meaning_of
from router.wire.names import parse_name

# Of aliases that lead to aliases. Nobody reads more; a generated configuration gets an error instead of a deep stack.
CHAIN_MAX = 16
# So far apart that nobody means more, and so near that no product of a whole chain is 0 or infinite.
WEIGHT_MIN, WEIGHT_MAX = 1e-6, 1e6

Steps = tuple[str | int, ...]


class AliasError(ValueError):
    """A configured alias that leads nowhere. `steps` is the path of the field, below `aliases`."""

    def __init__(self, steps: Steps, text: str) -> None:
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
        super().__init__(f"aliases{path}: {text}")
        self.steps = steps
        self.text = text


@dataclass(frozen=True, slots=True)
class Said:
    """What is said of an alias, or of its meaning for one team; there None is what the alias says for all."""

    targets: Sequence[tuple[str, float]] | None = None  # names and weights
    fallbacks: Sequence[str] | None = None
    overrides: Overrides | None = None
    overflow_after_s: float | None = None  # None, also for all: what an alias that this one leads to says
    teams: Mapping[str, Said] = field(default_factory=lambda: MappingProxyType({}))


def aliases_of(said: Mapping[str, Said]) -> Aliases:
    """Refuses with AliasError: bad names and weights, two spellings of one alias, ways that come back to themselves."""
    spelled: dict[str, str] = {}
    for alias in said:
        key = _key(alias, (alias,))
        if key in spelled:
            raise AliasError((alias,), f"is the same name as {spelled[key]}")
        spelled[key] = alias
    teams = dict.fromkeys(team for each in said.values() for team in each.teams)
    of_teams = {team: _Reader(said, spelled, team).meanings() for team in teams}
    return Aliases(_Reader(said, spelled).meanings(), MappingProxyType(of_teams))


@dataclass(frozen=True, slots=True)
class _Edge:
    """One name under an alias, and where it stands."""

    key: str
    weight: float
    steps: Steps


@dataclass(frozen=True, slots=True)
class _End:
    """What a name leads to in the end."""

    drawn: tuple[Target, ...]  # shares add up to 1
    fallbacks: tuple[Target, ...] = ()
    height: int = 0  # aliases on the longest way


class _Reader:
    """Resolves all aliases as they are for one team; without one, as they are for everybody else."""

    def __init__(self, said: Mapping[str, Said], spelled: Mapping[str, str], team: str | None = None) -> None:
        self._said = said
        self._spelled = spelled
        self._team = team
        self._ends: dict[str, _End] = {}

    def meanings(self) -> Mapping[str, Meaning]:
        meanings = {}
        for key in self._spelled:
            end = self._end(_Edge(key, 1.0, (self._spelled[key],)), ())
            meanings[key] = meaning_of(key, end.drawn, end.fallbacks)
            self._check_overflow(self._spelled[key], meanings[key])
        return MappingProxyType(meanings)

    def _check_overflow(self, alias: str, meaning: Meaning) -> None:
        """A team may well have one model where others have several: only what is said for all is a mistake."""
        is_said = self._team is None and self._said[alias].overflow_after_s is not None
        if is_said and all(len(plan.targets) == 1 for plan in meaning.plans):
            raise AliasError((alias, "overflow_after_s"), "leads nowhere: name a fallback or another target")

    def _end(self, edge: _Edge, path: tuple[str, ...]) -> _End:
        key = edge.key
        if key not in self._spelled:
            return _End((Target(key),))
        if key in path:
            raise AliasError(edge.steps, f"leads back to itself: {' -> '.join([*path[path.index(key) :], key])}")
        if len(path) >= CHAIN_MAX:
            raise AliasError(edge.steps, f"leads through more than {CHAIN_MAX} aliases")
        if key not in self._ends:
            self._ends[key] = self._read(self._spelled[key], (*path, key))
        return self._ends[key]

    def _read(self, alias: str, path: tuple[str, ...]) -> _End:
        targets, fallbacks, overrides, after_s = self._edges(alias)

        def as_said(target: Target, share: float) -> Target:
            """What this alias leaves open is as the one that it leads through says."""
            waits_s = target.overflow_after_s if after_s is None else after_s
            return Target(target.model, share, overrides.over(target.overrides), waits_s)

        total = math.fsum(edge.weight for edge in targets)
        ends = [self._end(edge, path) for edge in targets]
        instead = [self._end(edge, path) for edge in fallbacks]
        height = 1 + max(end.height for end in (*ends, *instead))
        if height > CHAIN_MAX:
            raise AliasError((alias,), f"leads through more than {CHAIN_MAX} aliases")
        shares: dict[Target, float] = {}
        for edge, end in zip(targets, ends, strict=True):
            for target in end.drawn:
                drawn = as_said(target, 0.0)
                shares[drawn] = shares.get(drawn, 0.0) + edge.weight / total * target.share
        later = [target for end in instead for target in (*end.drawn, *end.fallbacks)]
        later += [target for end in ends for target in end.fallbacks]
        return _End(
            # Added up they may be a rounding more than the whole.
            tuple(replace(target, share=min(share, 1.0)) for target, share in shares.items()),
            tuple(dict.fromkeys(as_said(each, 0.0) for each in later)),
            height,
        )

    def _edges(self, alias: str) -> tuple[list[_Edge], list[_Edge], Overrides, float | None]:
        """Targets, fallbacks, overrides and overflow as this team has them."""
        said = self._said[alias]
        own = said.teams.get(self._team) if self._team is not None else None
        of_team: Steps = (alias, "teams", self._team or "")
        for_all: Steps = (alias,)
        targets, steps = said.targets, for_all
        if own is not None and own.targets is not None:
            targets, steps = own.targets, of_team
        fallbacks, later_steps = said.fallbacks, for_all
        if own is not None and own.fallbacks is not None:
            fallbacks, later_steps = own.fallbacks, of_team
        overrides = said.overrides if own is None or own.overrides is None else own.overrides
        after_s = said.overflow_after_s if own is None or own.overflow_after_s is None else own.overflow_after_s
        return _targets(targets or (), steps), _fallbacks(fallbacks or (), later_steps), overrides or AS_SENT, after_s


def _targets(targets: Sequence[tuple[str, float]], steps: Steps) -> list[_Edge]:
    if not targets:
        raise AliasError((*steps, "targets"), "names no model")
    edges = []
    for index, (name, weight) in enumerate(targets):
        place = (*steps, "targets", index)
        if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
            raise AliasError((*place, "weight"), f"should be from 0.000001 to 1000000, not {weight:g}")
        edges.append(_Edge(_key(name, (*place, "model")), weight, (*place, "model")))
    return edges


def _fallbacks(names: Sequence[str], steps: Steps) -> list[_Edge]:
    places = [(name, (*steps, "fallbacks", index)) for index, name in enumerate(names)]
    return [_Edge(_key(name, place), 0.0, place) for name, place in places]


def _key(name: str, steps: Steps) -> str:
    if not name.strip():
        raise AliasError(steps, "has an empty name")
    try:
        return parse_name(name).key
    except BadRequest as refusal:
        raise AliasError(steps, f"{name!r}: {refusal.text}") from None
