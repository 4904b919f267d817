"""What stays of nodes that left: a lease may still run there, and a node that returns is another start."""

from __future__ import annotations

from dataclasses import dataclass

from router.fleet.node import NodeSpec

LEFT_MAX = 10_000  # a lease is at most minutes older than its node's leaving


@dataclass(frozen=True, slots=True)
class Left:
    spec: NodeSpec
    returns: int


class LeftNodes:
    """Bounded: of too many the one that left first is forgotten."""

    def __init__(self) -> None:
        self._left: dict[str, Left] = {}  # the one that left last, last

    def note(self, name: str, spec: NodeSpec, returns: int) -> None:
        self._left.pop(name, None)
        self._left[name] = Left(spec, returns)
        if len(self._left) > LEFT_MAX:
            del self._left[next(iter(self._left))]

    def spec_of(self, name: str) -> NodeSpec:
        return self._left[name].spec

    def starts_of(self, name: str) -> int:
        """Counted on, or the store would take a return for the start that it knew and ignore what is seen of it."""
        return self._left[name].returns + 1 if name in self._left else 0
