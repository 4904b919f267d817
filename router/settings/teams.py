"""What an operator may say about keys and teams."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from pydantic import Field, field_validator, model_validator

from router.fleet.tickets import Priority
from router.policy.access import Access, Team, access_of
from router.policy.globs import globs_of
from router.policy.limits import TeamLimits, TeamTable
from router.settings.nodes import Group

DIGEST = re.compile(r"[0-9A-Fa-f]{64}")  # SHA-256 in hexadecimal digits
TEAM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # a label, a word in logs, and a key in YAML
NO_DIGEST = "should be the SHA-256 of a key, 64 hexadecimal digits as `ollama-router hash-key` prints them"
NO_TEAM_NAME = "a team's name should be 1 to 63 letters, digits, dots, dashes or underscores"

Keys = Mapping[str, tuple[str, ...]]  # digests by team, as a keys file holds them
NO_KEYS: Keys = MappingProxyType({})


# So far apart that nobody means more.
WEIGHT_MIN, WEIGHT_MAX = 0.001, 1000.0


class PriorityName(StrEnum):
    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class AuthSettings(Group):
    """Who may call."""

    required: bool = Field(
        default=False,
        description="true: whoever sends no key of a team gets 401. false, as Ollama itself: calls without a key, or "
        "with one that nobody knows (SDKs insist on some), belong to the team default.",
    )
    keys_file: str | None = Field(
        default=None,
        min_length=1,
        description="YAML file with the SHA-256 of keys by team, team: [sha256, ...], such as a mounted secret; beside "
        "teams.<name>.keys_sha256. Its content is read again when it changes, so that keys are replaced without a "
        "restart.",
    )


class TeamSettings(Group):
    keys_sha256: tuple[str, ...] = Field(
        default=(),
        description="SHA-256 of its keys, 64 hexadecimal digits each. Several, so that an old key works until "
        "everybody has the new one. Each key belongs to one team.",
    )
    models: tuple[str, ...] = Field(
        default=("*",),
        description="Models and aliases that it may use, by name; * stands for any text. What is not matched does not "
        "exist for the team, in calls or in lists. An alias leads where it leads, also to models that are not matched.",
    )
    weight: float = Field(
        default=1.0,
        ge=WEIGHT_MIN,
        le=WEIGHT_MAX,
        description="Its share of tokens beside other teams that wait, within its priority: 2 gets twice what 1 gets.",
    )
    priority: PriorityName = Field(
        default=PriorityName.NORMAL,
        description="low, normal or high: in a line a higher one is served first, though nobody waits for ever.",
    )
    max_concurrent: int | None = Field(
        default=None, ge=1, description="Its calls that run at once, on all nodes together; further ones wait in line."
    )
    max_waiting: int | None = Field(
        default=None, ge=0, description="Its calls that may wait, in all lines together; beyond it they get a 429."
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Beyond it calls get a 429 that says when to come back. What was not used for a minute may be used "
        "at once. A call that the router refuses is not counted.",
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        description="Tokens of prompts and answers together. They are known when an answer has ended: what went over "
        "the limit is waited for before the next call.",
    )
    tokens_per_day: int | None = Field(default=None, ge=1, description="The same over 24 hours, beside the minute.")
    may_unload: bool = Field(
        default=False,
        description="true: its unloads (keep_alive 0 without a prompt) are obeyed for every copy that serves nobody at "
        "that moment. false: they are answered and change nothing, since others share the model.",
    )

    @model_validator(mode="before")
    @classmethod
    def _is_an_object(cls, value: Any) -> Any:
        """Before pydantic's own checks, whose messages repeat what was given: it may be a key."""
        if not isinstance(value, Mapping | cls):
            raise ValueError("should be an object with keys_sha256, models or more")  # noqa: TRY004 - pydantic's kind
        return value

    @field_validator("keys_sha256", mode="before")
    @classmethod
    def _are_digests(cls, value: Any) -> Any:
        """As above."""
        if not isinstance(value, list | tuple) or not all(is_digest(item) for item in value):
            raise ValueError(f"each {NO_DIGEST}")
        return tuple(item.lower() for item in value)

    @field_validator("models")
    @classmethod
    def _can_match(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        globs_of(models)
        return models


def is_digest(value: object) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


def check_names(teams: Mapping[str, Any]) -> None:
    for name in teams:
        if not TEAM_NAME.fullmatch(name):
            raise ValueError(NO_TEAM_NAME)


def access_from(auth: AuthSettings, teams: Mapping[str, TeamSettings], of_file: Keys = NO_KEYS) -> Access:
    """Refuses with TwoTeams."""
    said = {name: Team(name, globs_of(team.models), team.may_unload) for name, team in teams.items()}
    keys = [*((name, team.keys_sha256) for name, team in teams.items()), *of_file.items()]
    return access_of(keys, said, is_required=auth.required)


def team_table(teams: Mapping[str, TeamSettings]) -> TeamTable:
    return TeamTable(MappingProxyType({name: _limits(team) for name, team in teams.items()}))


def _limits(team: TeamSettings) -> TeamLimits:
    return TeamLimits(
        weight=team.weight,
        priority=Priority[team.priority.name],
        max_concurrent=team.max_concurrent,
        max_waiting=team.max_waiting,
        requests_per_minute=team.requests_per_minute,
        tokens_per_minute=team.tokens_per_minute,
        tokens_per_day=team.tokens_per_day,
    )
