"""What the store's core answers: plain values, so that a simulator and a test compare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, NamedTuple, TypeVar

from router.errors import Refusal
from router.fleet.tickets import Lease
from router.policy.limits import TeamTable

T = TypeVar("T")

MAX_WAITING = 256  # per model; Ollama's own OLLAMA_MAX_QUEUE is 512 per server, a line here stands before many


class Caller(NamedTuple):
    """Who sends a command: a replica in one of its sessions."""

    replica: str
    session: int


class Stale(StrEnum):
    """Why a command changed nothing. After either the replica says hello, with all that it holds."""

    REAPED = "reaped"  # or never heard of
    OLD_SESSION = "old_session"


class Gone(StrEnum):
    """A ticket that has left, or a repeated take of an attempt that is over: it gets nothing any more."""

    LEFT = "left"


class Outdated(NamedTuple):
    """A report was ignored: the store knows another start of the node, or was told that it is down."""

    incarnation: int
    is_down: bool


@dataclass(frozen=True, slots=True)
class Full:
    """Every line that the ticket might stand in is full."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A ticket was refused, as it came or while it waited; it stands in no line."""

    ticket: str
    refusal: Refusal


class Answer(NamedTuple, Generic[T]):
    """`run` and `seq` tell a fail-over, `now_s` is store time. Grants and refusals are those of the caller's tickets.

    A named tuple, since one is made per command and costs a third of a frozen dataclass.
    """

    run: str
    seq: int
    now_s: float
    value: T | Stale
    grants: tuple[Lease, ...] = ()
    refusals: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """How many newcomers may wait per model key, and what teams may use. Tickets that come again come above it."""

    max_waiting: int = MAX_WAITING
    by_key: Mapping[str, int] = field(default_factory=dict)
    teams: TeamTable = field(default_factory=TeamTable)

    def of(self, key: str) -> int:
        return self.by_key.get(key, self.max_waiting)
