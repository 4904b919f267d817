"""What others do: choose a node at once and let Ollama queue, load and evict.

Each is given what costs it nothing here: all of its replicas share one count of open calls, it knows at once which
nodes are up, sends only to nodes that have the model on disk, and repeats elsewhere what a node never began to answer.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from router.policy.retry import ATTEMPTS, Failure
from router.simulation.world.agenda import Agenda
from router.simulation.world.call import Call, Fate, Passage
from router.simulation.world.card import Card
from router.simulation.world.front import Desk

POLL_S = 2.0  # residency is as old as a poll of /api/ps, as often as our own probes
RING_POINTS = 100  # of each node
LOAD_FACTOR = 1.25  # KubeAI's default meanLoadFactor is 125 %
HOP_S = 0.001  # until a refused connection is told


@dataclass(slots=True)
class Sight:
    """What all replicas of a rival see of the pool."""

    rng: Random
    connections: dict[str, int] = field(default_factory=dict)  # open calls by node
    resident: dict[str, frozenset[str]] = field(default_factory=dict)  # model keys by node, at the last poll
    turn: int = 0

    def busy(self, card: Card) -> tuple[int, float]:
        return self.connections.get(card.name, 0), self.rng.random()


Choose = Callable[[Call, Sequence[Card], Sight], Card]


def at_random(call: Call, cards: Sequence[Card], sight: Sight) -> Card:
    return cards[int(sight.rng.random() * len(cards))]


def round_robin(call: Call, cards: Sequence[Card], sight: Sight) -> Card:
    sight.turn += 1
    return cards[sight.turn % len(cards)]


def least_connections(call: Call, cards: Sequence[Card], sight: Sight) -> Card:
    """What Olla does."""
    return min(cards, key=sight.busy)


def residency_first(call: Call, cards: Sequence[Card], sight: Sight) -> Card:
    key = call.request.model.key
    loaded = [card for card in cards if key in sight.resident.get(card.name, ())]
    return min(loaded or cards, key=sight.busy)


def prefix_hash(call: Call, cards: Sequence[Card], sight: Sight) -> Card:
    """Consistent hashing with bounded loads over the prompt's beginning: what KubeAI does."""
    ring = sorted((_point(f"{card.name}\n{number}"), card.name) for card in cards for number in range(RING_POINTS))
    by_name = {card.name: card for card in cards}
    total = sum(sight.connections.get(card.name, 0) for card in cards) + 1
    bound = LOAD_FACTOR * total / len(cards)
    start = bisect_left(ring, (_point(call.request.affinity), ""))
    for step in range(len(ring)):
        name = ring[(start + step) % len(ring)][1]
        if sight.connections.get(name, 0) <= bound:
            return by_name[name]
    return min(cards, key=sight.busy)


POLICIES: Mapping[str, Choose] = {
    "random": at_random,
    "round_robin": round_robin,
    "least_connections": least_connections,
    "residency_first": residency_first,
    "prefix_hash": prefix_hash,
}


def _point(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Rival:
    """One replica of it. Fills `Front`."""

    def __init__(
        self, choose: Choose, sight: Sight, agenda: Agenda, desk: Desk, cards: Mapping[str, Card], *, polls: bool
    ) -> None:
        self.is_up = True
        self._choose = choose
        self._sight = sight
        self._agenda = agenda
        self._desk = desk
        self._cards = cards
        self._passages: dict[int, Passage] = {}
        self._tried: dict[int, set[str]] = {}
        if polls:
            self._poll()

    def __repr__(self) -> str:
        return f"<Rival {self._choose.__name__} | {len(self._passages)} calls>"

    def take(self, call: Call) -> None:
        self._tried[call.request.number] = set()
        self._send(call)

    def leave(self, call: Call) -> None:
        passage = self._passages.pop(call.request.number, None)
        if passage is not None:
            self._sight.connections[passage.card.name] -= 1
            passage.cut()

    def go_down(self) -> None:
        self.is_up = False
        for passage in tuple(self._passages.values()):
            call = passage.call
            self.leave(call)
            if call.is_streaming:
                self._desk.ended(call, Fate.BROKEN)
            else:
                self._desk.sent_back(call)

    def come_up(self) -> None:
        self.is_up = True

    def store_lost(self) -> None:
        """It has none."""

    def store_back(self) -> None:
        """It has none."""

    def _send(self, call: Call) -> None:
        number = call.request.number
        if call.fate is not None or call.front is not self:
            return
        key = call.request.model.key
        cards = [
            card
            for card in self._cards.values()
            if card.is_up and key in card.models and card.name not in self._tried[number]
        ]
        if not cards or len(self._tried[number]) >= ATTEMPTS:
            self._desk.ended(call, Fate.REFUSED)
            return
        card = self._choose(call, cards, self._sight)
        self._sight.connections[card.name] = self._sight.connections.get(card.name, 0) + 1
        self._tried[number].add(card.name)
        passage = Passage(call, key, card, self._desk.began, self._ended)
        self._passages[number] = passage
        passage.start()

    def _ended(self, passage: Passage, failure: Failure | None) -> None:
        call = passage.call
        self._sight.connections[passage.card.name] -= 1
        del self._passages[call.request.number]
        if failure is None:
            self._desk.ended(call, Fate.BROKEN if passage.is_broken else Fate.SERVED)
        elif failure is Failure.BUSY:
            self._desk.ended(call, Fate.REFUSED)
        else:
            self._agenda.after(HOP_S, lambda: self._send(call))

    def _poll(self) -> None:
        for card in self._cards.values():
            loaded = frozenset(copy.name for copy in card.model.copies.values())
            self._sight.resident[card.name] = loaded if card.is_up else frozenset()
        self._agenda.after(POLL_S, self._poll)
