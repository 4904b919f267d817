"""What this replica has to tell the others of nodes: what changed, as far as they do not know it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from router.control.findings import About
from router.control.keeper import FleetKeeper
from router.control.shown import SHOWN_MAX
from router.fleet import words
from router.fleet.node import DiskModel, Node
from router.fleet.snapshot import point_of
from router.fleet.words import Finding, Reach, Word, read_topic, topic
from router.policy.probing import is_worth_telling
from router.seams import Clock, FleetBoard, Store

TELL_BYTES = 262_144  # in one exchange: some milliseconds of the server's time
RENEW_S = 1200.0  # the board forgets in an hour what nobody tells again


@dataclass(slots=True)
class Looked:
    """A node when it was last looked at: what is the same object since then need not be put into words again."""

    renewed_s: float
    reach: Reach | None = None
    models: Mapping[str, DiskModel] | None = None
    memory: Node | None = None
    number: int = -1
    memory_s: float = field(default=float("-inf"))


class Telling:
    """Owns the words on their way, and a digest of each that the board has. Bounded by the fleet: a word a topic, and
    none on nodes that are not known here. Digests of models go, all of them, when they are too many."""

    def __init__(self, keeper: FleetKeeper, board: FleetBoard, store: Store, clock: Clock) -> None:
        self._keeper = keeper
        self._board = board
        self._store = store
        self._clock = clock
        self._outbox: dict[str, Word] = {}
        self._known: dict[str, dict[str, int]] = {}  # hashes of texts, by node ("" for models) and topic
        self._looked: dict[str, Looked] = {}
        self._found: dict[About, Finding] = {}  # as they were when they were last looked at
        self._drains: dict[str, tuple[float, bool]] = {}  # by node: when it was said, and whether it drains

    def __repr__(self) -> str:
        return f"<Telling {len(self._outbox)} words | {len(self._known)} nodes known>"

    def look(self, names: Collection[str], mine: Collection[str]) -> None:
        """At the nodes that this replica probes, and those of which it learnt something otherwise."""
        firsthand = self._keeper.firsthand.names
        for name in (*mine, *firsthand.difference(mine)):
            node = self._keeper.snapshot.nodes.get(name)
            if node is not None and name in names:
                self._look_at(node)
        firsthand.clear()
        for name in self._looked.keys() - mine:
            del self._looked[name]
        for name in self._known.keys() - names - {""}:
            del self._known[name]
        if len(self._known.get("", ())) > SHOWN_MAX:
            del self._known[""]
        for name in names:
            self._look_at_drain(name)
        for name, of_node in self._keeper.firsthand.named.items():
            for weights, (at_s, num_ctx) in of_node.items():
                self._say(Word(topic(words.NAMED, name, weights), at_s, words.named_text(num_ctx)))
        self._tell_findings()
        for name, (at_s, load) in self._keeper.firsthand.loads.ours.items():
            self._say(Word(topic(words.LOAD, name, self._board.replica), at_s, words.load_text(load)))
        for (name, of_copy), (at_s, turned) in self._keeper.circuits.turned.items():
            self._say(Word(topic(words.CIRCUIT, name, of_copy or ""), at_s, words.circuit_text(turned)))

    def _tell_findings(self) -> None:
        latest = self._keeper.firsthand.findings.latest
        for about, found in latest.items():
            if self._found.get(about) is not found:
                numbered = found._replace(incarnation=self._board.number_of(about.node, found.incarnation))
                self._say(Word(topic(*about), found.at_s, words.finding_text(numbered)))
        self._found = dict(latest)

    def tell(self, word: Word) -> None:
        self._outbox[word.topic] = word
        self._know(word)

    def take(self) -> Sequence[Word]:
        """The oldest first, as many as one exchange may carry."""
        taken: list[Word] = []
        held = 0
        for word in self._outbox.values():
            held += len(word.text)
            if taken and held > TELL_BYTES:
                break
            taken.append(word)
        for word in taken:
            del self._outbox[word.topic]
        return taken

    def heard(self, told: Iterable[Word]) -> None:
        for word in told:
            self._know(word)

    def forget(self) -> None:
        """Whoever reads the board may know nothing of what was told: all of it is told again."""
        self._outbox.clear()
        self._known.clear()
        self._looked.clear()
        self._found.clear()

    def is_new_drain(self, name: str, at_s: float, *, is_drained: bool) -> bool:
        """Whether what another replica was told is younger than what this one knows. From here on it knows it."""
        if at_s < self._drains.get(name, (0.0, False))[0]:
            return False
        self._drains[name] = (at_s, is_drained)
        return self._keeper.vitals_of(name).is_drained != is_drained

    def _say(self, word: Word) -> None:
        if self._known.get(_node_of(word.topic), {}).get(word.topic) != hash(word.text):
            self.tell(word)

    def _know(self, word: Word) -> None:
        self._known.setdefault(_node_of(word.topic), {})[word.topic] = hash(word.text)

    def _look_at_drain(self, name: str) -> None:
        is_drained = self._keeper.vitals_of(name).is_drained
        if is_drained != self._drains.get(name, (0.0, False))[1]:
            self._drains[name] = (self._store.now_s(), is_drained)
        if name in self._drains:
            at_s, is_drained = self._drains[name]
            self._say(Word(topic(words.DRAIN, name), at_s, words.drain_text(is_drained=is_drained)))

    def _look_at(self, node: Node) -> None:
        now_s = self._clock.now_s()
        looked = self._looked.get(node.name)
        if looked is None:
            # As if told some time ago, so that nodes are not told again all at once.
            looked = self._looked[node.name] = Looked(now_s - point_of(node.name) % int(RENEW_S))
        elif now_s - looked.renewed_s >= RENEW_S:
            looked = self._looked[node.name] = Looked(now_s)
            self._doubt(node)
        number = self._board.number_of(node.name, node.incarnation)
        self._tell_disk(node, looked)
        self._tell_reach(node, looked, number)
        self._tell_memory(node, looked, number, now_s)
        looked.number = number

    def _doubt(self, node: Node) -> None:
        of_node = self._known.get(node.name, {})
        for kind in (words.DISK, words.REACH, words.MEMORY, words.CLAIM, words.DRAIN):
            of_node.pop(topic(kind, node.name), None)
        for weights in node.learnt:
            of_node.pop(topic(words.SLOTS, node.name, weights), None)
            self._found.pop(About(words.SLOTS, node.name, weights), None)
        for model in node.models.values():
            listed, _ = words.listed_of(model, self._keeper.shown.get(model.digest))
            self._known.get("", {}).pop(topic(words.MODEL, listed.model), None)

    def _tell_disk(self, node: Node, looked: Looked) -> None:
        if node.models is looked.models or not node.is_read:
            return
        looked.models = node.models
        listed = []
        now_s = self._store.now_s()
        for model in node.models.values():
            one, text = words.listed_of(model, self._keeper.shown.get(model.digest))
            listed.append(one)
            self._say(Word(topic(words.MODEL, one.model), now_s, text))
        self._say(Word(topic(words.DISK, node.name), now_s, words.disk_text(listed)))

    def _tell_reach(self, node: Node, looked: Looked, number: int) -> None:
        vitals = self._keeper.vitals_of(node.name)
        reach = Reach(vitals.reach, vitals.fails, number, node.version)
        if reach != looked.reach:
            looked.reach = reach
            at_s = self._keeper.firsthand.reached_s(node.name) or self._store.now_s()
            self._say(Word(topic(words.REACH, node.name), at_s, words.reach_text(reach)))

    def _tell_memory(self, node: Node, looked: Looked, number: int, now_s: float) -> None:
        told = looked.memory
        if told is not None and told.copies is node.copies and told.learnt is node.learnt and number == looked.number:
            return
        if number == looked.number and not is_worth_telling(told, node, now_s - looked.memory_s):
            return
        looked.memory, looked.memory_s = node, now_s
        at_s = self._keeper.firsthand.resident_s(node.name) or self._store.now_s()
        text = words.memory_text(words.memory_of(node, number))
        self._say(Word(topic(words.MEMORY, node.name), at_s, text))


def _node_of(about: str) -> str:
    kind, name, _ = read_topic(about)
    return "" if kind == words.MODEL else name
