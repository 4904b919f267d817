"""What calls have shown of copies' slots, here and at other replicas: of each kind the latest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from router.fleet.words import Finding

FINDINGS_MAX = 12_288  # three for each copy whose slots are learnt; the one that was noted first goes


class About(NamedTuple):
    kind: str  # of its word
    node: str
    weights: str


class Findings:
    def __init__(self) -> None:
        self._latest: dict[About, Finding] = {}

    def __repr__(self) -> str:
        return f"<Findings {len(self._latest)}>"

    @property
    def latest(self) -> Mapping[About, Finding]:
        return self._latest

    def note(self, about: About, finding: Finding) -> None:
        known = self._latest.get(about)
        if known is not None and finding.at_s <= known.at_s:
            return
        if known is None and len(self._latest) >= FINDINGS_MAX:
            del self._latest[next(iter(self._latest))]
        self._latest[about] = finding

    def of(self, about: About, incarnation: int) -> Finding | None:
        """In this start of the node."""
        found = self._latest.get(about)
        return found if found is not None and found.incarnation == incarnation else None

    def copies(self) -> Iterator[tuple[str, str]]:
        yield from ((about.node, about.weights) for about in self._latest)

    def forget(self, node: str) -> None:
        for about in [about for about in self._latest if about.node == node]:
            del self._latest[about]
