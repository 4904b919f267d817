"""A replica without its store: a Book of its own, in which it has its share of every copy, until the store is back.

What it was told of nodes it has told the store before; here it keeps it, for this Book, and for a store that forgot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from router.fleet.tickets import CopyReport, Gate, Lease, Ticket
from router.policy.degraded import share_of
from router.store.answers import Answer, Caller, Limits
from router.store.book import Book

FIRST_LEASE = 10**12  # so that no lease made alone has the id of one that the store made, unseen, for the same ticket

Step = Callable[[Book, Caller, float], Answer[Any]]


@dataclass(slots=True)
class Told:
    """What this replica said of nodes last, for a Redis that is back and has forgotten, or missed, what was said.

    Bounded by its fleet: a node that is dropped keeps its start only.
    """

    # By (node, weights). Not of a probe where a load of ours has ended there: a store that missed the end takes no
    # probe's word for it.
    reports: dict[tuple[str, str], CopyReport] = field(default_factory=dict)
    gates: dict[tuple[str, str | None], tuple[Gate, float]] = field(default_factory=dict)  # those not open, and news
    drops: dict[str, int] = field(default_factory=dict)  # by node: its start, until Redis has heard that it is over

    def saw(self, report: CopyReport) -> None:
        place = (report.node, report.weights)
        known = self.reports.get(place)
        self.reports[place] = report if known is None or known.is_probe else replace(report, is_probe=False)

    def knows_gate(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        """What another replica told the store itself."""
        self.gates.pop((node, weights), None)
        if gate is not Gate.OPEN:
            self.gates[node, weights] = (gate, until_s)

    def began(self, node: str, weights: str) -> None:
        """A load, or a copy's going."""
        known = self.reports.get((node, weights))
        if known is not None:
            self.reports[node, weights] = replace(known, is_probe=True)

    def shut(self, node: str, weights: str | None, gate: Gate, until_s: float) -> None:
        self.gates[node, weights] = (gate, until_s)

    def heard_open(self, node: str, weights: str | None) -> None:
        if self.gates.get((node, weights), (Gate.CLOSED,))[0] is Gate.OPEN:
            del self.gates[node, weights]

    def dropped(self, node: str, incarnation: int) -> None:
        self.drops[node] = incarnation
        self.reports = {place: report for place, report in self.reports.items() if place[0] != node}

    def heard_drop(self, node: str, incarnation: int) -> None:
        if self.drops.get(node) == incarnation:
            del self.drops[node]


class Alone:
    """`replicas`: how many shared the store when it was last heard."""

    def __init__(self, rng: Random, limits: Limits, replica: str, replicas: int, now_s: float) -> None:
        self.replicas = replicas
        self.book = Book(rng, limits, settle_s=0.0, leases_made=FIRST_LEASE)
        self._caller = Caller(replica, 0)
        self._greetings = 0
        self._hello((), (), now_s)

    def __repr__(self) -> str:
        return f"<Alone with 1/{self.replicas} | {self.book!r}>"

    def begin(self, told: Told, leases: Iterable[Lease], tickets: Iterable[Ticket], now_s: float) -> list[Answer[Any]]:
        """Takes over what the replica holds and knows; the answers bring grants."""
        book, caller = self.book, self._caller
        for report in told.reports.values():
            book.set_copy(caller, self.share(report), now_s)
        for (node, weights), (gate, until_s) in told.gates.items():
            book.gate(caller, node, weights, gate, now_s, until_s=until_s)
        return [self._hello(tuple(leases), tuple(tickets), now_s)]

    def share(self, report: CopyReport) -> CopyReport:
        return replace(report, slots=share_of(report.slots, self.replicas))

    def do(self, step: Step, now_s: float) -> Answer[Any]:
        return step(self.book, self._caller, now_s)

    def _hello(self, leases: tuple[Lease, ...], tickets: tuple[Ticket, ...], now_s: float) -> Answer[int]:
        self._greetings += 1
        last_seq, greeting = self.book.seq - 1, self._greetings
        answer = self.book.hello(self._caller.replica, last_seq, leases, tickets, now_s, greeting=greeting)
        assert isinstance(answer.value, int)
        self._caller = Caller(self._caller.replica, answer.value)
        return answer
