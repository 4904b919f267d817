"""What an operator may say about a name that stands for models."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

from pydantic import Field, model_validator

from router.policy.alias import Aliases, Overrides
from router.policy.alias_config import WEIGHT_MAX, Said, aliases_of
from router.settings.nodes import Group
from router.settings.values import SecondsOrZero


class TargetSettings(Group):
    model: str = Field(description="A model of the nodes, or another alias: then the weights are multiplied.")
    weight: float = Field(
        default=1.0,
        gt=0,
        le=WEIGHT_MAX,
        description="Its share of the alias's calls, beside the weights of the other targets; drawn for each call.",
    )


class OverrideSettings(Group):
    """Fixed for every call of the alias, whatever the client says."""

    temperature: float | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Takes the place of the client's temperature, on all routes that have one.",
    )
    num_ctx: int | None = Field(
        default=None,
        ge=1,
        le=2**31 - 1,
        description="Takes the place of the client's num_ctx on native routes, and the model is loaded with it; Ollama "
        "has no such option on /v1.",
    )


class TeamAliasSettings(Group):
    """What is not said here is as for everybody."""

    targets: tuple[TargetSettings, ...] | None = Field(default=None, description="Other targets for this team.")
    fallbacks: tuple[str, ...] | None = Field(default=None, description="Other fallbacks for this team.")
    overrides: OverrideSettings | None = Field(
        default=None, description="Other overrides for this team: all of them, none is taken over."
    )
    overflow_after_s: SecondsOrZero | None = Field(default=None, description="Another such time for this team.")


class AliasSettings(Group):
    """A name alone says the same as {targets: [{model: NAME}]}."""

    targets: tuple[TargetSettings, ...] = Field(
        description="What the name stands for: of several one is drawn for each call, by weight.",
        json_schema_extra={"minItems": 1},
    )
    fallbacks: tuple[str, ...] = Field(
        default=(),
        description="Tried in this order where the drawn target cannot be had: on no node, on no node that is up, "
        "nowhere loaded while placement only observes, or not able to do what is asked.",
    )
    overrides: OverrideSettings = OverrideSettings()
    overflow_after_s: SecondsOrZero | None = Field(
        default=None,
        description="A call that has waited so long in the line of its target also stands in the line of the next one, "
        "a fallback or another target, and after as long again in that of the one after it; whichever has a slot first "
        "serves it. 0: as soon as it has to wait. Without it a call stays in one line.",
    )
    teams: dict[str, TeamAliasSettings] = Field(
        default_factory=dict,
        description="What the name means for a team, by the team's name; calls without a key are the team default.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"targets": [{"model": value}]}
        if not isinstance(value, Mapping | cls):
            raise ValueError("should be a model's name, or an object with targets")  # noqa: TRY004 - pydantic's kind
        return value

    @model_validator(mode="after")
    def _teams_are_named(self) -> Self:
        if any(not team.strip() for team in self.teams):
            raise ValueError("a team's name is empty")
        return self


def name_or_object(schema: dict[str, Any]) -> None:
    schema["additionalProperties"] = {"anyOf": [{"type": "string"}, schema["additionalProperties"]]}


def aliases_from(configured: Mapping[str, AliasSettings]) -> Aliases:
    """Refuses with AliasError."""
    return aliases_of({alias: _said(settings) for alias, settings in configured.items()})


def _said(settings: AliasSettings | TeamAliasSettings) -> Said:
    teams = settings.teams if isinstance(settings, AliasSettings) else {}
    targets, overrides = settings.targets, settings.overrides
    return Said(
        targets=None if targets is None else [(target.model, target.weight) for target in targets],
        fallbacks=settings.fallbacks,
        overrides=None if overrides is None else Overrides(overrides.temperature, overrides.num_ctx),
        overflow_after_s=settings.overflow_after_s,
        teams=MappingProxyType({team: _said(own) for team, own in teams.items()}),
    )
