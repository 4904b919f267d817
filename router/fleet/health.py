"""A node's health as a table: what a probe or traffic showed x state -> state. One `Vitals` per node and replica."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType

from router.fleet.node import Health, NodeSpec

DOWN_AFTER = 3  # failed probes in a row: one lost packet is no outage, 6 s of silence are
BACK_AFTER = 2  # good probes in a row: a server that starts may answer once and die
SLOW_AFTER = 15  # failed probes in a row (30 s at the usual interval): a restart is over by then
SLOW_STEP = 5  # then the interval doubles after each so many more
PROBE_INTERVAL_S_MAX = 30.0  # a node that was switched on again is served within a minute
JITTER = 0.1  # of the interval to either side, so that replicas and nodes do not beat in step


class Event(StrEnum):
    PROBE_OK = "probe_ok"
    PROBE_FAILED = "probe_failed"
    CONNECT_REFUSED = "connect_refused"  # by traffic
    ANSWERED = "answered"  # traffic
    DRAINED = "drained"
    RESUMED = "resumed"


# (state, event): the next state, and the one instead when this event makes BACK_AFTER or DOWN_AFTER in a row.
# Draining lies across these states: see `Vitals.health`.
TRANSITIONS: Mapping[tuple[Health, Event], tuple[Health, Health]] = MappingProxyType(
    {
        (Health.UNREAD, Event.PROBE_OK): (Health.HEALTHY, Health.HEALTHY),
        (Health.UNREAD, Event.PROBE_FAILED): (Health.UNREAD, Health.DOWN),
        (Health.UNREAD, Event.CONNECT_REFUSED): (Health.DOWN, Health.DOWN),
        (Health.UNREAD, Event.ANSWERED): (Health.UNREAD, Health.UNREAD),  # its models were never read
        (Health.HEALTHY, Event.PROBE_OK): (Health.HEALTHY, Health.HEALTHY),
        (Health.HEALTHY, Event.PROBE_FAILED): (Health.DEGRADED, Health.DOWN),
        (Health.HEALTHY, Event.CONNECT_REFUSED): (Health.DOWN, Health.DOWN),
        (Health.HEALTHY, Event.ANSWERED): (Health.HEALTHY, Health.HEALTHY),
        (Health.DEGRADED, Event.PROBE_OK): (Health.DEGRADED, Health.HEALTHY),
        (Health.DEGRADED, Event.PROBE_FAILED): (Health.DEGRADED, Health.DOWN),
        (Health.DEGRADED, Event.CONNECT_REFUSED): (Health.DOWN, Health.DOWN),
        (Health.DEGRADED, Event.ANSWERED): (Health.HEALTHY, Health.HEALTHY),
        (Health.DOWN, Event.PROBE_OK): (Health.DOWN, Health.HEALTHY),
        (Health.DOWN, Event.PROBE_FAILED): (Health.DOWN, Health.DOWN),
        (Health.DOWN, Event.CONNECT_REFUSED): (Health.DOWN, Health.DOWN),
        (Health.DOWN, Event.ANSWERED): (Health.DOWN, Health.DOWN),  # a stream from before; only probes bring it back
    }
)


@dataclass(frozen=True, slots=True)
class Vitals:
    """`returns` counts how often the node came back from DOWN: another number is another incarnation of it."""

    reach: Health = Health.UNREAD  # never DRAINING
    fails: int = 0  # probes and refused connections in a row
    oks: int = 0  # probes in a row
    returns: int = 0
    is_drained: bool = False

    @property
    def health(self) -> Health:
        """A drained node that is down shows as down, and drains again when it comes back."""
        return Health.DRAINING if self.is_drained and self.reach in _REACHABLE else self.reach


_REACHABLE = frozenset({Health.HEALTHY, Health.DEGRADED})


def step(vitals: Vitals, event: Event) -> Vitals:
    if event in (Event.DRAINED, Event.RESUMED):
        return replace(vitals, is_drained=event is Event.DRAINED)
    fails, oks = _counted(vitals, event)
    usual, enough = TRANSITIONS[vitals.reach, event]
    is_enough = oks >= BACK_AFTER if event is Event.PROBE_OK else fails >= DOWN_AFTER
    reach = enough if is_enough else usual
    came_back = vitals.reach is Health.DOWN and reach is Health.HEALTHY
    return replace(vitals, reach=reach, fails=fails, oks=oks, returns=vitals.returns + came_back)


def _counted(vitals: Vitals, event: Event) -> tuple[int, int]:
    """Fails and oks in a row after the event. Traffic that is answered breaks a row of fails and counts as no probe."""
    if event is Event.PROBE_OK:
        return 0, vitals.oks + 1
    if event is Event.ANSWERED:
        return 0, vitals.oks
    return vitals.fails + 1, 0


def next_probe_in_s(health: Health, fails: int, interval_s: float, rng: random.Random) -> float:
    """Seconds until the next probe; more the longer a node has been down, at most PROBE_INTERVAL_S_MAX."""
    wait_s = interval_s
    if health in (Health.DOWN, Health.UNREAD) and fails > SLOW_AFTER:
        doublings = min((fails - SLOW_AFTER - 1) // SLOW_STEP + 1, 16)  # 2 ** 16 intervals are above any cap
        wait_s = min(interval_s * 2**doublings, max(PROBE_INTERVAL_S_MAX, interval_s))
    jittered_s = wait_s * rng.uniform(1 - JITTER, 1 + JITTER)
    return min(jittered_s, max(PROBE_INTERVAL_S_MAX, interval_s))


def start_of(spec: NodeSpec, vitals: Vitals) -> str:
    """Names one start of the node: another pod, or back after it was down."""
    return f"{spec.uid}/{vitals.returns}"
