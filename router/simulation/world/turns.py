"""No starvation, by looking after every event: what went before whom, counted from leases, against stated bounds.

In a line that moves (`policy.fair_queue`):

- of a team's own calls at most LOOKAHEAD younger ones go before a call;
- while a team waits, each other team gets no more tokens by weight than the team itself was charged, and what the team
  owed when it came (at most DEBT_MAX_TOKENS), and one call, and LOOKAHEAD_TOKENS.

In a line that does not move, since its model is loaded nowhere (`policy.placement`), the oldest waits no longer than
`turns_s`. What an outage of the store, of a node or of a router does to turns is not measured: all counts begin anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from router.fleet.node import CopyState
from router.policy.experience import NOTHING_LEARNT
from router.policy.fair_queue import LOOKAHEAD, LOOKAHEAD_TOKENS
from router.policy.shares import BANDS, DEBT_MAX_TOKENS, Standing
from router.policy.worth import BACKLOGGED
from router.simulation.facts import GIB
from router.simulation.world.scenario import Scenario
from router.simulation.world.workload import Request
from router.store.book import Book
from router.store.lines import Entry

TURNS = 2.0  # of every model before the oldest in a line has what it waits for
ROUNDING = 1e-3  # of tokens, over a run of some million


class Crowd(NamedTuple):
    """A team in one band of one line: who waits in turn, and for the same slots as the others there."""

    key: str
    band: int
    team: str


@dataclass(slots=True)
class Wait:
    """Of a crowd, without a break. All amounts are tokens over weight."""

    tag: float  # when it began
    front: float  # no team that came since starts before it
    tags: Mapping[str, float]  # of the teams that were there
    served: Mapping[Crowd, float]
    refunded: Mapping[Crowd, float]

    def owes(self, team: str) -> float:
        return self.tag - min(self.front, self.tags.get(team, self.front))


class Turns:
    """Counts grants, event by event. Owns nothing of the Book."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._known: set[str] = set()  # leases
        self._waits: dict[Crowd, Wait] = {}
        self._served: dict[Crowd, float] = {}
        self._refunded: dict[Crowd, float] = {}
        self._tags: dict[Crowd, tuple[Standing, float]] = {}
        self._overtaken: dict[str, int] = {}  # by ticket, by calls of its own team

    def look(self) -> None:
        made = self._made()
        crowds = self._crowds()
        self._settle(made)
        for entry in made:
            if not entry.is_due:
                self._count(entry, crowds)
        self._waits = {crowd: wait for crowd, wait in self._waits.items() if crowd in crowds}
        for crowd in crowds:
            if crowd not in self._waits:
                self._waits[crowd] = self._begin(crowd)

    def begin_anew(self) -> None:
        """Leases were made by other rules than turns."""
        self._settle(self._made())
        self._waits.clear()
        self._overtaken.clear()

    def _made(self) -> list[Entry]:
        """Since the last event."""
        leases = self._book.ledger.leases
        made = [entry for lease_id, entry in leases.items() if lease_id not in self._known]
        self._known = set(leases)
        return made

    def _crowds(self) -> dict[Crowd, list[Entry]]:
        ledger = self._book.ledger
        crowds: dict[Crowd, list[Entry]] = {}
        for entry in ledger.waiting.values():
            is_apart = entry.is_due or entry.ticket.excluded or entry.team.account.is_held
            if not is_apart and entry.replica not in ledger.unheard:
                for key in entry.keys:
                    crowds.setdefault(Crowd(key, entry.band, entry.team.account.name), []).append(entry)
        self._overtaken = {id_: count for id_, count in self._overtaken.items() if id_ in ledger.tickets}
        return crowds

    def _settle(self, made: Iterable[Entry]) -> None:
        """What teams were charged or refunded in this event beyond the calls that began in it, as each line sees it."""
        made = list(made)
        for crowd, standing in self._standings():
            known, tag = self._tags.get(crowd, (standing, standing.tag))
            if known is standing:
                payers = (standing, standing.account)
                began = sum(_cost(entry) for entry in made if entry.payer in payers)
                refunded = max(0.0, tag + began - standing.tag)
                self._refunded[crowd] = self._refunded.get(crowd, 0.0) + refunded
            self._tags[crowd] = (standing, standing.tag)

    def _standings(self) -> Iterator[tuple[Crowd, Standing]]:
        queues = self._book.ledger.queues
        for key in queues.lines:
            for band in range(BANDS):
                for name, standing in queues.shares.front(key, band).standings.items():
                    yield Crowd(key, band, name), standing

    def _count(self, entry: Entry, crowds: Mapping[Crowd, Sequence[Entry]]) -> None:
        lease, account = entry.lease, entry.team.account
        assert lease is not None
        own = Crowd(lease.model, entry.band, account.name)
        self._served[own] = self._served.get(own, 0.0) + _cost(entry)
        for older in crowds.get(own, ()):
            if older.arrival < entry.arrival:
                count = self._overtaken[older.ticket.id] = self._overtaken.get(older.ticket.id, 0) + 1
                assert count <= LOOKAHEAD, f"{older.ticket.id} was overtaken {count} times by its own team"
        for crowd, wait in self._waits.items():
            if crowd in crowds and crowd[:2] == own[:2] and crowd.team != own.team:
                self._compare(crowd, wait, own, _cost(entry))

    def _compare(self, crowd: Crowd, wait: Wait, other: Crowd, last: float) -> None:
        """`last`: the call that `other` has just been given."""
        got = self._served[other] - wait.served.get(other, 0.0)
        back = self._refunded.get(other, 0.0) - wait.refunded.get(other, 0.0)
        own = self._book.ledger.queues.shares.front(crowd.key, crowd.band).standings[crowd.team].tag - wait.tag
        bound = own + wait.owes(other.team) + last + LOOKAHEAD_TOKENS
        assert got - back <= bound + ROUNDING, (
            f"{crowd.team} waits for {crowd.key} while {other.team} got {got:.0f} tokens by weight there, "
            f"of which {bound:.0f} are more than fair to it"
        )

    def _begin(self, crowd: Crowd) -> Wait:
        shares = self._book.ledger.queues.shares
        front = shares.front(crowd.key, crowd.band)
        tags = {name: standing.tag for name, standing in front.standings.items() if standing.waiting}
        debt = tags[crowd.team] - front.time
        assert debt <= DEBT_MAX_TOKENS + ROUNDING, f"{crowd.team} owes {debt:.0f} tokens when it comes to {crowd.key}"
        return Wait(tags[crowd.team], front.time, tags, dict(self._served), dict(self._refunded))


def _cost(entry: Entry) -> float:
    return entry.cost / entry.team.account.weight


def turns_s(scenario: Scenario, requests: Iterable[Request]) -> float:
    """By when the placer has come to the oldest in any line, if nothing dies: each model has had TURNS turns.

    A turn pays for the loads there and back, BACKLOGGED times for every slot that calls miss meanwhile, and ends with
    the longest call that began in it. Loads take as long as the placer thinks before it has seen one, or as they do.
    """
    longest_s = dict.fromkeys((model.key for model in scenario.models), 0.0)
    speed = min(node.speed for node in scenario.nodes)
    by_key = {model.key: model for model in scenario.models}
    asked = ((request, by_key[target.model]) for request in requests for target in request.targets)
    for request, model in asked:
        decode_tps = model.decode_tps * model.slots ** (model.decode_exponent - 1.0)
        call_s = request.prompt_tokens / model.prefill_tps + request.output_tokens / decode_tps
        longest_s[model.key] = max(longest_s[model.key], call_s / speed)
    guess_s = [NOTHING_LEARNT.load_s_of("", round(model.vram_gib * GIB)) for model in scenario.models]
    load_s = max(*guess_s, *(model.load_s for model in scenario.models))
    turns_s = (2.0 * load_s * (1 + BACKLOGGED * model.slots) + longest_s[model.key] for model in scenario.models)
    return TURNS * sum(turns_s)


class ColdLines:
    """The oldest in a line whose model is ready nowhere, and how long that has been so."""

    def __init__(self, book: Book, bound_s: float) -> None:
        self._book = book
        self._bound_s = bound_s
        self._since_s: dict[str, float] = {}
        self.longest_s = 0.0

    def look(self, now_s: float) -> None:
        ledger = self._book.ledger
        oldest_s: dict[str, float] = {}
        for entry in ledger.waiting.values():
            for key in entry.keys[:1]:  # for those who overflowed to a line nothing is displaced
                oldest_s[key] = min(entry.arrived_s, oldest_s.get(key, entry.arrived_s))
        cold = [key for key in oldest_s if not self._is_ready(key)]
        self._since_s = {key: self._since_s.get(key, now_s) for key in cold}
        for key, since_s in self._since_s.items():
            waits_s = now_s - max(since_s, oldest_s[key])
            self.longest_s = max(self.longest_s, waits_s)
            assert waits_s <= self._bound_s, (
                f"{key} was waited for {waits_s:.1f} s and not loaded; the bound is {self._bound_s:.1f} s"
            )

    def begin_anew(self) -> None:
        self._since_s.clear()

    def _is_ready(self, key: str) -> bool:
        serving = self._book.ledger.copies.serving.get(key)
        return serving is not None and any(copy.state is CopyState.READY for copy in serving.nodes.values())
