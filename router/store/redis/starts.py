"""Starts of nodes, as this replica names them and as the store does."""

from __future__ import annotations


class Starts:
    """Bounded by the fleet: one pair for each node that another replica saw come or go."""

    def __init__(self) -> None:
        self._numbers: dict[str, tuple[int, int]] = {}  # by node: ours, and the store's

    def __repr__(self) -> str:
        return f"<Starts {len(self._numbers)} named otherwise>"

    def number(self, node: str, incarnation: int) -> int:
        """The store's."""
        ours, theirs = self._numbers.get(node, (incarnation, incarnation))
        return theirs if ours == incarnation else incarnation

    def named(self, node: str, number: int, latest: int) -> None:
        """What we name `number`, or what that stands for by now, is the latest start."""
        self._numbers[node] = (self._numbers.get(node, (number, number))[0], latest)

    def forget(self, node: str) -> None:
        self._numbers.pop(node, None)
