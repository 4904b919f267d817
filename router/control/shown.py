"""What nodes answered to `/api/show`, by manifest digest: probes learn it anyway, clients ask all the time."""

from __future__ import annotations

from collections import OrderedDict

from router.fleet.reports import Shown
from router.fleet.snapshot import Snapshot
from router.wire.show import ShowBody

# Digests come from nodes: a catalog of this many different models is larger than any pool's.
SHOWN_MAX = 20_000

# An answer has 10 to 100 KB (its tensors and its licence): all models of a pool, and the least asked one goes first.
SHOW_BYTES_MAX = 32 * 1024 * 1024


class ShownManifests(dict[str, Shown]):
    """What manifests are, by digest, over all nodes. At most SHOWN_MAX: what no node has any more makes room."""

    _swept: Snapshot | None = None  # the last one that was looked through in vain

    def has_room(self, snapshot: Snapshot) -> bool:
        if len(self) >= SHOWN_MAX and snapshot is not self._swept:
            self._sweep(snapshot)
        return len(self) < SHOWN_MAX

    def _sweep(self, snapshot: Snapshot) -> None:
        self._swept = snapshot
        had: set[str] = set()
        for node in snapshot.nodes.values():
            had.update(model.digest for model in node.models.values())
            had.update(copy.digest for copy in node.copies.values())
        for digest in self.keys() - had:
            del self[digest]


class ShownBodies:
    """Bounded by bytes; what was asked for least recently makes room."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bodies: OrderedDict[str, ShowBody] = OrderedDict()
        self._held = 0

    def __repr__(self) -> str:
        return f"<ShownBodies {len(self._bodies)} manifests | {self._held} bytes>"

    def get(self, digest: str) -> ShowBody | None:
        found = self._bodies.get(digest)
        if found is not None:
            self._bodies.move_to_end(digest)
        return found

    def keep(self, digest: str, shown: ShowBody) -> None:
        """An answer that is larger than all room is not kept."""
        self._drop(digest)
        if not digest or len(shown.body) > self._bytes_max:
            return
        self._bodies[digest] = shown
        self._held += len(shown.body)
        while self._held > self._bytes_max:
            self._drop(next(iter(self._bodies)))

    def _drop(self, digest: str) -> None:
        gone = self._bodies.pop(digest, None)
        if gone is not None:
            self._held -= len(gone.body)
