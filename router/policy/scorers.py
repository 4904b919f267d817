"""What speaks for a row: how busy it would be, and whose conversations it has in its prompt cache."""

from __future__ import annotations

import hashlib
import random
import struct
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from router.fleet.snapshot import Ring, Row

Scored = tuple[float, float, Row]  # lower is better; the second number breaks ties by chance

FULL = 1e9  # added to the load of a copy without a free slot: above any load, so that it comes after all free ones
PROBES = 16  # places of one affinity key on the ring: the fullest of many nodes gets about 1.15 times the mean
LOAD_BOUND = 1.25  # an affine node may have this much more than its share before a call goes elsewhere

_PLACES = struct.Struct(f">{PROBES}Q")
_RING = 1 << 64


def by_load(rows: Sequence[Row], occupancy: Mapping[tuple[str, str], int], rng: random.Random) -> list[Scored]:
    """Load once the call is there, per slot and node weight: of two idle copies the one with more slots is first."""
    leases_of, chance = occupancy.get, rng.random
    scored: list[Scored] = []
    for row in rows:
        leases, slots = leases_of(row.copy, 0), row.slots or 1
        load = (leases + 1) / (slots * row.weight)
        scored.append((load if leases < slots else load + FULL, chance(), row))
    return scored


def affine_rows(ring: Ring, affinity: str) -> Iterator[Row]:
    """The rows of an affinity key, its own first, the next ones for when that has no room; each node once.

    Multi-probe consistent hashing (Appleton and O'Reilly, arXiv 1505.00062): one point per node and many per key. A
    node that goes takes along no other node's keys, one that comes takes keys only for itself, and no table is built.
    """
    if not ring.rows:
        return
    digest = hashlib.blake2b(affinity.encode("utf-8", "replace"), digest_size=64).digest()
    digest += hashlib.blake2b(digest, digest_size=64).digest()
    points, count = ring.points, len(ring.points)
    found: list[tuple[int, int]] = []
    for place in _PLACES.unpack(digest):
        index = bisect_left(points, place) % count
        found.append(((points[index] - place) % _RING, index))
    seen: set[int] = set()
    for _, index in sorted(found):
        if index not in seen:
            seen.add(index)
            yield ring.rows[index]


def has_room(row: Row, occupancy: Mapping[tuple[str, str], int], sample: Sequence[Row]) -> bool:
    """A free slot, and no more than LOAD_BOUND times its share of what the sample would carry with this call."""
    leases = occupancy.get(row.copy, 0)
    if leases >= (row.slots or 1):
        return False
    slots = total = 0
    for other in sample:
        slots += other.slots or 1
        total += occupancy.get(other.copy, 0)
    return leases * slots <= LOAD_BOUND * (total + 1) * (row.slots or 1)
