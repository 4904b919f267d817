"""What a placer has learnt of its pool: how large models are in memory, how long they load, how much is asked of them.

A value; each fold answers the next one. Whoever leads begins anew: everything here comes back within a minute or two.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple, TypeVar

from router.fleet.node import CopyState, Health
from router.fleet.snapshot import Snapshot
from router.fleet.tickets import LineView

Copy = tuple[str, str]  # (node, weights)
Number = TypeVar("Number", int, float)

HEAT_S = 60.0  # over which demand is averaged: a few conversations' turns, and several loads
LOOK_S = 1.0  # that one look stands for at most: looks are a second apart where anything happens
HEAT_MIN = 1e-3  # of a slot; below it nobody has asked for ten minutes
RESIDENT = 1.25  # of its file's size is what a model takes with its context; only until it was seen in a memory
LOAD_S = 10.0  # of a model that was never seen loading and has no size
LOAD_S_MIN = 2.0  # a runner starts first
LOAD_BYTES_PER_S = 1e9  # from a warm disk; only until a load was seen
LEARNT_MAX = (
    4096  # weights whose size and load time are remembered: more than a pool serves; what was learnt first goes
)
LOAD_WEIGHT = 0.5  # of the newest load in the average: disks warm up and cool down


class Utilization(NamedTuple):
    """How much of its slots a model had use for: `share` from 0 to 1, the mean since it was asked for first, later over
    HEAT_S. `weight` is how much of HEAT_S that is, from 0 to 1."""

    share: float
    weight: float

    def then(self, share: float, kept: float) -> Utilization:
        """With one look more; `kept` < 1 is what the past counts beside it."""
        weight = self.weight * kept + 1.0 - kept
        return Utilization((self.share * self.weight * kept + share * (1.0 - kept)) / weight, weight)


@dataclass(frozen=True, slots=True)
class Experience:
    """By weights, but for `ready_since` and `vram_bytes`. `heat` is how many slots a model would have kept busy of
    late, `utilization` how much of those that it had, and `waited_s` for how long calls have waited for them, all added
    up, since a copy came. `vram_bytes` is by node: so much did not fit. `is_short`: what was asked for of late is in no
    memory."""

    heat: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    resident_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    load_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    ready_since: Mapping[Copy, float] = field(default_factory=lambda: MappingProxyType({}))
    vram_bytes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    utilization: Mapping[str, Utilization] = field(default_factory=lambda: MappingProxyType({}))
    waited_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    is_short: bool = False
    at_s: float = -math.inf  # of the last look

    def heat_of(self, weights: str) -> float:
        return self.heat.get(weights, 0.0)

    def utilization_of(self, weights: str) -> float:
        """Whole where nobody has looked yet."""
        known = self.utilization.get(weights)
        return 1.0 if known is None else known.share

    def bytes_of(self, weights: str, disk_bytes: int) -> int:
        """What it takes in a memory; 0 where nothing is known of it."""
        return self.resident_bytes.get(weights, 0) or round(disk_bytes * RESIDENT)

    def load_s_of(self, weights: str, size_bytes: int | None = None) -> float:
        """`size_bytes` is what it takes, where the caller knows more than was seen."""
        if size_bytes is None:
            size_bytes = self.resident_bytes.get(weights, 0)
        known = self.load_s.get(weights)
        if known is not None:
            return known
        return max(LOAD_S_MIN, size_bytes / LOAD_BYTES_PER_S) if size_bytes else LOAD_S


NEVER_USED = Utilization(0.0, 0.0)
NOTHING_LEARNT = Experience()


def looked(
    old: Experience, lines: Iterable[LineView], snapshot: Snapshot, occupancy: Mapping[Copy, int], now_s: float
) -> Experience:
    """After one look at the pool; `now_s` must not go back."""
    waiting = in_line(lines, snapshot)
    asked = with_leases(waiting, occupancy)
    kept = math.exp(-max(0.0, now_s - old.at_s) / HEAT_S)
    heat = {
        weights: old.heat_of(weights) * kept + asked.get(weights, 0.0) * (1.0 - kept)
        for weights in {**old.heat, **asked}
    }
    heat = {weights: value for weights, value in heat.items() if value >= HEAT_MIN}
    sizes, since, slots = dict(old.resident_bytes), {}, dict.fromkeys(asked, 0)
    coming: set[str] = set()
    # Who is down may come back with more memory, or without whoever shared it; who left is nobody's business any more.
    held = {name: 0 for name in old.vram_bytes if name in snapshot.nodes and snapshot.nodes[name].health != Health.DOWN}
    for node, copy in snapshot.copies():
        if node.name in held:
            held[node.name] += copy.vram_bytes
        sizes[copy.weights] = max(copy.vram_bytes, copy.size_bytes) or sizes.get(copy.weights, 0)
        if copy.state is CopyState.READY:
            place = (node.name, copy.weights)
            since[place] = old.ready_since.get(place, now_s)
            slots[copy.weights] = slots.get(copy.weights, 0) + copy.slots
        elif copy.state is CopyState.LOADING:
            coming.add(copy.weights)
    serving = {weights for weights, count in slots.items() if count}
    return Experience(
        heat=MappingProxyType(heat),
        resident_bytes=_bounded(sizes),
        load_s=old.load_s,
        ready_since=MappingProxyType(since),
        vram_bytes=MappingProxyType(
            {node: old.vram_bytes[node] for node, size in held.items() if size < old.vram_bytes[node]}
        ),
        utilization=MappingProxyType(_utilization(old, asked, slots, now_s)),
        waited_s=MappingProxyType(_waited_s(old, waiting, serving - coming, now_s)),
        is_short=not serving.issuperset(heat),
        at_s=now_s,
    )


def did_not_fit(old: Experience, node: str, size_bytes: int | None) -> Experience:
    """A node that evicted something for a load has less memory than all that would have taken. None tells nothing."""
    if size_bytes is None:
        return old
    known = old.vram_bytes.get(node, size_bytes)
    return replace(old, vram_bytes=MappingProxyType({**old.vram_bytes, node: min(known, size_bytes)}))


def _utilization(
    old: Experience, asked: Mapping[str, float], slots: Mapping[str, int], now_s: float
) -> dict[str, Utilization]:
    kept = math.exp(-min(now_s - old.at_s, LOOK_S) / HEAT_S)
    if kept == 1.0:
        return dict(old.utilization)
    found = {
        weights: old.utilization.get(weights, NEVER_USED).then(_share(asked, slots, weights), kept)
        for weights in {**old.utilization, **asked}
    }
    return {weights: value for weights, value in found.items() if weights in asked or value.share >= HEAT_MIN}


def _waited_s(old: Experience, waiting: Mapping[str, float], serving: Set[str], now_s: float) -> dict[str, float]:
    """Over HEAT_S, as all that is of late. Who waits for a copy that comes has no use for one more."""
    kept = math.exp(-min(now_s - old.at_s, LOOK_S) / HEAT_S)
    found = {
        weights: old.waited_s.get(weights, 0.0) * kept + waiting.get(weights, 0.0) * HEAT_S * (1.0 - kept)
        for weights in serving
    }
    return {weights: value for weights, value in found.items() if value >= HEAT_MIN}


def _share(asked: Mapping[str, float], slots: Mapping[str, int], weights: str) -> float:
    return min(1.0, asked.get(weights, 0.0) / max(1, slots.get(weights, 0)))


def loaded(old: Experience, weights: str, took_s: float, *, waited: bool = False) -> Experience:
    """`waited`: for what had to go first. Then it took no longer than that, and perhaps less."""
    if waited and took_s >= old.load_s_of(weights):
        return old
    known = old.load_s.get(weights, took_s)
    mean_s = known + (took_s - known) * LOAD_WEIGHT
    return replace(old, load_s=_bounded({**old.load_s, weights: mean_s}))


def _bounded(learnt: dict[str, Number]) -> Mapping[str, Number]:
    for weights in tuple(learnt)[: max(0, len(learnt) - LEARNT_MAX)]:
        del learnt[weights]
    return MappingProxyType(learnt)


def in_line(lines: Iterable[LineView], snapshot: Snapshot) -> dict[str, float]:
    """Slots that are waited for, by weights; of a call in several lines, in its first."""
    waiting: dict[str, float] = {}
    for line in lines:
        stored = {row.weights for row in snapshot.holding(line.model).by_node.values()}
        for weights in stored:  # several where a name stands for different weights on different nodes
            waiting[weights] = waiting.get(weights, 0.0) + line.own / len(stored)
    return waiting


def with_leases(waiting: Mapping[str, float], occupancy: Mapping[Copy, int]) -> dict[str, float]:
    """Slots that are wanted now, by weights: by who has one and by who waits for one."""
    asked = dict(waiting)
    for (_, weights), leases in occupancy.items():
        asked[weights] = asked.get(weights, 0.0) + leases
    return asked
