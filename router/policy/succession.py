"""What loads that other replicas ordered mean to whoever places now: a load goes on while the connection that asked for
it stands, whoever leads.

A replica that lives has its loads, also when it leads no more. Of one that is gone nobody knows: if it was killed, its
node has given its load up; if it was paused, or cut off from the store, the load goes on. Either way the same node is
asked for the same model again: Ollama answers both at the end of one load, or begins anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from router.fleet.snapshot import Snapshot
from router.fleet.tickets import LOAD_S_MAX
from router.policy.placement import Load


class Begun(NamedTuple):
    """A load of another replica. `since_s` is store time: when it began, or displaced last."""

    load: Load
    by: str
    since_s: float


@dataclass(frozen=True, slots=True)
class Estate:
    """By node. `running`: of replicas that live. `orphaned`: of others, where no other load runs."""

    running: Mapping[str, Begun] = field(default_factory=lambda: MappingProxyType({}))
    orphaned: Mapping[str, Begun] = field(default_factory=lambda: MappingProxyType({}))


def is_over(begun: Begun, now_s: float) -> bool:
    """Whatever was told, or was not: Ollama gives a load up, and the store does."""
    return now_s - begun.since_s >= LOAD_S_MAX


def estate_of(told: Iterable[Begun], live: Set[str], now_s: float, *, own: Collection[str] = ()) -> Estate:
    """`live`: replicas that the store hears; nobody where this one does not hear the store. `own`: nodes that load for
    this replica, and are its own business."""
    running: dict[str, Begun] = {}
    orphaned: dict[str, Begun] = {}
    for begun in sorted(told, key=lambda one: (one.since_s, one.by)):  # the latest counts
        if begun.load.node not in own and not is_over(begun, now_s):
            (running if begun.by in live else orphaned)[begun.load.node] = begun
    orphaned = {node: begun for node, begun in orphaned.items() if node not in running}
    return Estate(MappingProxyType(running), MappingProxyType(orphaned))


def taken_over(load: Load, estate: Estate, snapshot: Snapshot, excluded: Set[str] = frozenset()) -> Load:
    """This load, on the node where one of the same weights may still run, and by the words of that one: with another
    context Ollama would load once more. `excluded`: nodes that nobody who waits for it may use."""
    if load.is_renewal:
        return load
    for node, begun in estate.orphaned.items():
        row = snapshot.holding(load.key).by_node.get(node)
        if begun.load.weights != load.weights or row is None or node in excluded:
            continue
        if row.weights == load.weights and row.takes_calls and row.name and not row.is_ready:
            asked = [seconds for seconds in (load.keep_alive_s, begun.load.keep_alive_s) if seconds is not None]
            return replace(
                load,
                node=node,
                model=row.name,
                num_ctx=0 if load.is_default else max(load.num_ctx, begun.load.num_ctx),
                keep_alive_s=max(asked, default=None),
                displaces=begun.load.displaces,
            )
    return load
