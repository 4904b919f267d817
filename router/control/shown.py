"""What nodes answered to `/api/show`, by manifest digest: probes learn it anyway, clients ask all the time."""

from __future__ import annotations

from collections import OrderedDict

from router.wire.show import ShowBody

# An answer has 10 to 100 KB (its tensors and its licence): all models of a pool, and the least asked one goes first.
SHOW_BYTES_MAX = 32 * 1024 * 1024


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
