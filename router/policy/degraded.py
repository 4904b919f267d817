"""Without the store each replica decides alone: with its share of every copy, and all name the same node for a load.

At most capacity + what cut-off replicas have running + their shares run on a copy then (ARCHITECTURE.md, The store's
contract).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Set

from router.fleet.snapshot import Row, Snapshot, point_of
from router.policy.filters import usable
from router.policy.schedule import Want, schedule


def share_of(slots: int, replicas: int) -> int:
    """Of a copy's slots, for one of so many replicas; rounded up, or a copy with few slots would serve nobody."""
    return -(-slots // max(1, replicas))


def choose_alone(
    want: Want, snapshot: Snapshot, own: Mapping[tuple[str, str], int], replicas: int, rng: random.Random
) -> Row | None:
    """A copy with room in this replica's share, by the same wishes as with a store. `own` are this replica's leases."""
    free: dict[str, Row] = {}
    for key in want.targets:
        rows = snapshot.holding(key)
        for row in usable((*rows.ready.rows, *rows.last_resort.rows), want.excluded, want.num_ctx):
            if own.get(row.copy, 0) < share_of(row.slots or 1, replicas):
                free.setdefault(row.node, row)
    if not free:
        return None
    wished = next((node for node in schedule(want, snapshot, own, rng).preferred if node in free), None)
    if wished is not None:
        return free[wished]
    return min(free.values(), key=lambda row: (own.get(row.copy, 0) / (row.slots or 1), row.node))


def loading_node(rows: Iterable[Row], excluded: Set[str] = frozenset()) -> Row | None:
    """Where a model that is loaded nowhere is asked for: rendezvous hashing of its weights, so that every replica that
    has tickets for it asks the same node, and Ollama loads once. Another node's coming or going moves no other model.
    """
    able = [row for row in rows if row.is_up and row.name and not row.is_cloud and row.node not in excluded]
    return max(able, key=lambda row: (point_of(f"{row.weights}\n{row.node}"), row.node), default=None)
