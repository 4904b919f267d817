"""How long a call may take: the operator's limits, and the client's own where that is shorter. Times are loop times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from router.errors import QueueTimeout, Refusal, UpstreamTimeout
from router.fleet.tickets import Place
from router.policy.advice import come_back_s

# An answer at the very end of the client's patience would meet nobody: it comes so much before, as a share and at most.
MARGIN_SHARE = 0.05
MARGIN_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds: after arrival, `plain_s` at the node, `max_wait_s` in line, comments once the call is read."""

    first_byte_s: float
    plain_s: float
    idle_s: float
    max_wait_s: float
    max_wait_of: Mapping[str, float] = field(default_factory=dict)  # by model key, where it differs
    comment_after_s: float = 0.0  # 0: no comments
    comment_every_s: float = 12.0


class Due(NamedTuple):
    """When an answer must have begun, by which limit."""

    at_s: float
    limit_s: float
    whose: str

    def __str__(self) -> str:
        return f"{self.limit_s:g} s ({self.whose})"


class LineTerm(NamedTuple):
    """Until when a call may stand in line. `due` is None where the line's own limit ends first."""

    until_s: float
    max_wait_s: float
    due: Due | None

    def refusal(self, model: str, place: Place | None, rng: Random) -> Refusal:
        """Told to somebody who stands at this place: coming back, it would stand behind all who wait now."""
        if self.due is not None:
            return UpstreamTimeout(f"no slot for '{model}' within {self.due}")
        text = f"no slot for '{model}' within {self.max_wait_s:g} s, please try again"
        if place is None or not place.estimate_s:
            return QueueTimeout(text, retry_after_s=come_back_s(place.depth if place else 1, None, rng))
        return QueueTimeout(text, retry_after_s=come_back_s(place.depth, place.position / place.estimate_s, rng))


def in_line(  # noqa: PLR0917 - facts of one call
    limits: Deadlines, model: str, arrived_s: float, client_s: float | None, queued_s: float, now_s: float
) -> LineTerm:
    """`queued_s`: what the call has spent in line before. A plain call may wait as long as a stream."""
    due = first_byte(limits, arrived_s, client_s)
    max_wait_s = limits.max_wait_of.get(model, limits.max_wait_s)
    until_s = now_s + max_wait_s - queued_s
    return LineTerm(until_s, max_wait_s, None) if until_s < due.at_s else LineTerm(due.at_s, max_wait_s, due)


def at_node(limits: Deadlines, arrived_s: float, client_s: float | None, now_s: float, *, streams: bool) -> Due:
    """A plain answer's first byte is the end of its generation: there only `plain_s` and the client bound it."""
    if streams:
        return first_byte(limits, arrived_s, client_s)
    ours = Due(now_s + limits.plain_s, limits.plain_s, "timeouts.plain_s of this router")
    return _sooner(ours, arrived_s, client_s)


def first_byte(limits: Deadlines, arrived_s: float, client_s: float | None) -> Due:
    ours = Due(arrived_s + limits.first_byte_s, limits.first_byte_s, "timeouts.first_byte_s of this router")
    return _sooner(ours, arrived_s, client_s)


def _sooner(ours: Due, arrived_s: float, client_s: float | None) -> Due:
    if client_s is None:
        return ours
    at_s = arrived_s + client_s - min(MARGIN_S_MAX, MARGIN_SHARE * client_s)
    return Due(at_s, client_s, "the limit that the client set") if at_s < ours.at_s else ours
