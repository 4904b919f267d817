"""Names that stand for other names. Resolved once, when the configuration is read; a call only looks up and draws."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from random import Random
from types import MappingProxyType

DEFAULT_TEAM = "default"  # whose call it is that names no team


@dataclass(frozen=True, slots=True)
class Overrides:
    """What a call asks for whatever its client sent; None leaves it to the client."""

    temperature: float | None = None
    num_ctx: int | None = None

    def over(self, other: Overrides) -> Overrides:
        return Overrides(
            other.temperature if self.temperature is None else self.temperature,
            other.num_ctx if self.num_ctx is None else self.num_ctx,
        )


AS_SENT = Overrides()


@dataclass(frozen=True, slots=True)
class Target:
    """A model by its key. `share` is how many of the alias's calls are drawn for it, 0 to 1; 0 for a fallback.

    `overflow_after_s`: in line for it, after which a call also stands in the line of the plan's next; None is never.
    """

    model: str
    share: float = 1.0
    overrides: Overrides = AS_SENT
    overflow_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """Where a name leads: the target that was drawn, then those to be tried instead. A plain name leads to itself."""

    targets: tuple[Target, ...]
    alias: str = ""  # its key

    @property
    def first(self) -> Target:
        return self.targets[0]

    def without(self, passed: int) -> RoutePlan:
        """Less the first ones, as many as were passed over."""
        return RoutePlan(self.targets[passed:], self.alias) if passed else self

    def led_by(self, model: str) -> RoutePlan:
        """With this one of its targets first: the others may still be tried after it."""
        if self.first.model == model:
            return self
        leader = next(target for target in self.targets if target.model == model)
        return RoutePlan((leader, *(target for target in self.targets if target is not leader)), self.alias)


@dataclass(frozen=True, slots=True)
class Meaning:
    """Of one alias for one team: a plan for each target that may be drawn, and where the draw falls on it."""

    edges: tuple[float, ...]  # shares added up; the last is 1, give or take a rounding
    plans: tuple[RoutePlan, ...]

    def plan(self, rng: Random) -> RoutePlan:
        if len(self.plans) == 1:
            return self.plans[0]
        return self.plans[min(bisect_right(self.edges, rng.random()), len(self.plans) - 1)]


Meanings = Mapping[str, Meaning]  # by key of an alias
_NOTHING: Meanings = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Aliases:
    """Made by `policy.alias_config.aliases_of`. A frozen value: another configuration is another one, swapped whole."""

    meanings: Meanings = field(default_factory=lambda: _NOTHING)
    of_teams: Mapping[str, Meanings] = field(default_factory=lambda: MappingProxyType({}))  # those with a say

    @property
    def names(self) -> Collection[str]:
        """Keys of the aliases themselves."""
        return self.meanings.keys()

    def plan(self, key: str, team: str, rng: Random) -> RoutePlan:
        """`key` is what the client named; drawn anew for every call."""
        meaning = self._of(team).get(key)
        return RoutePlan((Target(key),)) if meaning is None else meaning.plan(rng)

    def targets(self, alias: str, team: str = DEFAULT_TEAM) -> tuple[Target, ...]:
        """All that the alias may lead to: the drawn ones by falling share, then its fallbacks in order."""
        plans = self._of(team)[alias].plans
        drawn = sorted((plan.first for plan in plans), key=lambda target: -target.share)
        return (*drawn, *(target for target in plans[0].targets if not target.share))

    def candidates(self, alias: str, team: str = DEFAULT_TEAM) -> tuple[str, ...]:
        """Model keys of `targets`, each once: the first that can be served is what the alias is listed as."""
        return tuple(dict.fromkeys(target.model for target in self.targets(alias, team)))

    def overflows(self, alias: str, team: str = DEFAULT_TEAM) -> tuple[tuple[str, float], ...]:
        """Of calls for its heaviest target: the models in whose lines they stand besides, after so many seconds."""
        plan = max(self._of(team)[alias].plans, key=lambda plan: plan.first.share)
        steps, waited_s = [], 0.0
        for target, following in pairwise(plan.targets):
            if target.overflow_after_s is None:
                break
            waited_s += target.overflow_after_s
            steps.append((following.model, waited_s))
        return tuple(steps)

    def missing(self, is_known: Collection[str]) -> tuple[tuple[str, str], ...]:
        """(alias, model key) for each target or fallback, of any team, that is not among these keys; sorted."""
        pairs = {
            (alias, key)
            for team in (DEFAULT_TEAM, *self.of_teams)
            for alias in self._of(team)
            for key in self.candidates(alias, team)
            if key not in is_known
        }
        return tuple(sorted(pairs))

    @property
    def models(self) -> frozenset[str]:
        """Keys of all models that an alias may lead to, for whatever team."""
        return frozenset(key for _, key in self.missing(()))

    def _of(self, team: str) -> Meanings:
        return self.of_teams.get(team, self.meanings)


def meaning_of(alias: str, drawn: Sequence[Target], fallbacks: Sequence[Target]) -> Meaning:
    """After the drawn target come the fallbacks, then the other targets by falling share: better another than none."""
    others = sorted(drawn, key=lambda target: -target.share)
    plans = (RoutePlan(_distinct((first, *fallbacks, *others)), alias) for first in drawn)
    return Meaning(tuple(accumulate(target.share for target in drawn)), tuple(plans))


def _distinct(targets: Sequence[Target]) -> tuple[Target, ...]:
    """Each model once: what it has refused under one set of overrides it will not do under another."""
    by_model: dict[str, Target] = {}
    for target in targets:
        by_model.setdefault(target.model, target)
    return tuple(by_model.values())
