"""What a failed attempt means: for the call (ARCHITECTURE.md, invariant 4), and for breakers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

ATTEMPTS = 3
BUDGET_SHARE = 0.2  # of running calls may be retries
BUDGET_MIN = 5  # retries at once are always allowed


class Failure(StrEnum):
    """Before the first byte of an answer that will be passed on."""

    CONNECT_REFUSED = "connect_refused"
    CONNECT_TIMEOUT = "connect_timeout"  # or out of reach in another way
    TLS = "tls"  # its certificate is not to be trusted, or it speaks no TLS
    LOCAL = "local"  # no descriptor, port or memory of ours for a connection: the node was never asked
    RESET = "reset"
    CLOSED = "closed"
    GARBAGE = "garbage"  # something else than HTTP
    RUNNER_DIED = "runner_died"  # or failed to start
    BUSY = "busy"
    MODEL_GONE = "model_gone"  # 404 for a model that the node's tags listed
    INCAPABLE = "incapable"  # the model cannot do what is asked; a failure only where its alias has another
    FIRST_BYTE_TIMEOUT = "first_byte_timeout"


class Blame(StrEnum):
    """Whose breaker counts a failure."""

    NOBODY = "nobody"
    COPY = "copy"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Tries:
    """What the call has behind it, the attempt that just failed included."""

    made: int
    has_met_dead_runner: bool = False  # in an attempt before the one that just failed
    has_other_node: bool = True  # a node that is up, has the model and was not excluded before or by this failure
    has_other_target: bool = False  # the alias has another model that can be had
    attempts: int = ATTEMPTS


@dataclass(frozen=True, slots=True)
class Budget:
    """Over all calls of this replica: `running` are at nodes, `retrying` those of them that are counted retries."""

    running: int = 0
    retrying: int = 0
    share: float = BUDGET_SHARE

    @property
    def may_retry(self) -> bool:
        return self.retrying < max(BUDGET_MIN, self.share * self.running)


NO_LOAD = Budget()


@dataclass(frozen=True, slots=True)
class Retry:
    """Take a slot again. `is_counted` retries live on the budget until they end."""

    excludes_node: bool
    is_counted: bool
    marks_absent: bool = False  # the node lost the model: its copy is gone


@dataclass(frozen=True, slots=True)
class NextTarget:
    """The alias's next model, on whatever node."""

    is_counted: bool


@dataclass(frozen=True, slots=True)
class Pass:
    """The node's own answer is the honest one."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """502 in the route's dialect, 504 after a FIRST_BYTE_TIMEOUT."""


PASS = Pass()
GIVE_UP = GiveUp()


@dataclass(frozen=True, slots=True)
class Rule:
    blame: Blame
    may_retry: bool = True
    is_counted: bool = True
    needs_other_node: bool = True  # without one a BUSY call goes back in line for the same
    is_the_models: bool = False  # every node would say the same of it
    marks_absent: bool = False
    at_the_end: Pass | GiveUp = GIVE_UP


RULES: Mapping[Failure, Rule] = MappingProxyType(
    {
        Failure.CONNECT_REFUSED: Rule(Blame.NODE, is_counted=False),
        Failure.CONNECT_TIMEOUT: Rule(Blame.NODE),
        Failure.TLS: Rule(Blame.NODE),
        Failure.LOCAL: Rule(Blame.NOBODY),
        Failure.RESET: Rule(Blame.COPY),
        Failure.CLOSED: Rule(Blame.COPY),
        Failure.GARBAGE: Rule(Blame.COPY),
        Failure.RUNNER_DIED: Rule(Blame.COPY),
        Failure.BUSY: Rule(Blame.NOBODY, needs_other_node=False, at_the_end=PASS),
        Failure.MODEL_GONE: Rule(Blame.NOBODY, marks_absent=True),
        Failure.INCAPABLE: Rule(Blame.NOBODY, is_counted=False, is_the_models=True, at_the_end=PASS),
        # The deadline covers the wait in line too: it says little about the node, and a retry has no time left.
        Failure.FIRST_BYTE_TIMEOUT: Rule(Blame.NOBODY, may_retry=False),
    }
)

# llm/llama_server.go, server/sched.go; recordings runner-died/api-chat, runner-died/v1-chat.
RUNNER_TEXTS = (
    b"model runner has unexpectedly stopped",
    b"an error was encountered while running the model",
    b"llama-server process has terminated",
    b"llama runner process has terminated",
    b"llama-server reported out-of-memory",
    b"llama-server binary not found",
    b"error starting llama-server",
    b"timed out waiting for llama",
    b"unable to load full model",
    b"out-of-memory",
)

# server/routes.go, server/images.go; recordings refused/*-unsupported, refused/embed-on-chat-model, v0.24/ the same.
_INCAPABLE = re.compile(
    rb"does not support (?:tools|insert|thinking|chat|generate|completion|embeddings?|vision|audio|multimodal)"
)


def classify(status: int, body_head: bytes, *, has_other_target: bool = False) -> Failure | None:
    """Of an answer by HTTP; None passes to the client. Texts are looked for in any dialect's error body."""
    text = body_head.lower()
    if has_other_target and status in (400, 501) and _INCAPABLE.search(text):
        return Failure.INCAPABLE
    if status == 503:
        return Failure.BUSY
    if status == 500 and any(words in text for words in RUNNER_TEXTS):
        return Failure.RUNNER_DIED
    if status == 404 and b"model" in text and b"not found" in text:  # not `404 page not found` of an older version
        return Failure.MODEL_GONE
    return None


def blame_of(failure: Failure | None, *, blames_copy: bool = False) -> Blame:
    """`blames_copy` is a stream that broke half-way. A cancelled call is no failure: it must not come here."""
    if blames_copy:
        return Blame.COPY
    return RULES[failure].blame if failure else Blame.NOBODY


def verdict(failure: Failure, tries: Tries, budget: Budget = NO_LOAD) -> Retry | NextTarget | Pass | GiveUp:
    rule = RULES[failure]
    # A call that met a dead runner may be what killed it: whatever comes of its next attempt, there is no third.
    is_worn_out = tries.made >= tries.attempts or tries.has_met_dead_runner
    if not rule.may_retry or is_worn_out or (rule.is_counted and not budget.may_retry):
        return rule.at_the_end
    if not rule.is_the_models and (tries.has_other_node or not rule.needs_other_node):
        return Retry(tries.has_other_node, rule.is_counted, rule.marks_absent)
    return NextTarget(rule.is_counted) if tries.has_other_target else rule.at_the_end
