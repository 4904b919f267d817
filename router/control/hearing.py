"""What other replicas tell of nodes, taken over into this one's picture: one swap for all that came at once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from router.control.findings import About
from router.control.keeper import FleetKeeper
from router.control.prober import Prober
from router.control.shown import SHOWN_MAX
from router.control.telling import Telling
from router.fleet import words
from router.fleet.adoption import reports_between, with_memory, with_named, with_reach
from router.fleet.breaker import Circuit
from router.fleet.cloud import with_cloud
from router.fleet.health import Vitals
from router.fleet.node import Node
from router.fleet.reports import TagEntry
from router.fleet.snapshot import apply_tags
from router.fleet.tickets import Gate
from router.fleet.words import Heard, SharedModel, Word, read_topic
from router.seams import Clock, FleetBoard
from router.wire.names import key_of

OF_NODES = (words.DISK, words.REACH, words.MEMORY)
OF_SLOTS = (words.SLOTS, words.SHOWN, words.QUEUED)
SURVEY_EVERY_S = 3600.0  # the board itself forgets in an hour what nobody tells again


class Hearing:
    """Owns the models that disks are told by. At most SHOWN_MAX: then those are read again that the board still has,
    and a disk with others than these is not taken over."""

    def __init__(self, keeper: FleetKeeper, prober: Prober, board: FleetBoard, telling: Telling, clock: Clock) -> None:
        self._keeper = keeper
        self._prober = prober
        self._board = board
        self._telling = telling
        self._clock = clock
        self._models: dict[str, tuple[SharedModel, TagEntry]] = {}
        self._surveyed_s = float("-inf")

    def __repr__(self) -> str:
        return f"<Hearing {len(self._models)} models>"

    async def hear(self, heard: Heard, mine: Collection[str]) -> None:
        of_nodes: dict[str, dict[str, Word]] = {}
        for word in heard.words:
            kind, name, weights = read_topic(word.topic)
            if kind == words.MODEL:
                self._note_model(name, word.text)
            elif kind == words.NAMED:
                self._note_named(name, weights, word)
                of_nodes.setdefault(name, {})
            elif kind == words.LOAD:
                self._note_load(name, weights, word)
            elif kind in OF_SLOTS:
                self._note_slots(About(kind, name, weights), word)
            elif kind in OF_NODES:
                of_nodes.setdefault(name, {})[kind] = word
        self._adopt(of_nodes, mine, is_whole=heard.is_whole)
        for word in heard.words:
            kind, name, weights = read_topic(word.topic)
            if kind == words.DRAIN:
                await self._note_drain(name, word)
            elif kind == words.CIRCUIT:
                self._note_circuit(name, weights or None, word)

    def _adopt(self, of_nodes: dict[str, dict[str, Word]], mine: Collection[str], *, is_whole: bool) -> None:
        changes: dict[str, tuple[Node, Vitals]] = {}
        nodes = self._keeper.snapshot.nodes
        for name, told in of_nodes.items():
            node = nodes.get(name)
            if node is None:
                continue  # nobody but Redis knows it here
            is_ours = name in mine or name in self._keeper.firsthand.names
            after = self._told_of(node, told, is_ours=is_ours, is_whole=is_whole)
            if after != (node, self._keeper.vitals_of(name)):
                changes[name] = after
            if told:
                self._prober.note_asked(name)
        self._keeper.adopt(changes)
        for name, (node, _) in changes.items():
            told_at_s = max((word.at_s for word in of_nodes[name].values()), default=0.0)
            self._board.note(reports_between(nodes[name], node, told_at_s))

    def _told_of(self, node: Node, told: dict[str, Word], *, is_ours: bool, is_whole: bool) -> tuple[Node, Vitals]:
        """`is_ours`: what we saw ourselves counts, where it is younger."""
        vitals, firsthand = self._keeper.vitals_of(node.name), self._keeper.firsthand
        word = told.get(words.REACH)
        reach = words.read_reach(word.text) if word is not None else None
        if word is not None and reach is not None and not (is_ours and word.at_s < firsthand.reached_s(node.name)):
            if is_whole and not is_ours and reach.incarnation < node.incarnation:
                node = replace(node, incarnation=0)  # ours is of a book of our own, when the store was away
            node, vitals = with_reach(node, vitals, reach)
        word = told.get(words.DISK)
        entries = self._entries(word.text) if word is not None else None
        if entries is not None:
            node = apply_tags(node, entries, self._keeper.shown)
        word = told.get(words.MEMORY)
        memory = words.read_memory(word.text) if word is not None else None
        if word is not None and memory is not None and not (is_ours and word.at_s < firsthand.resident_s(node.name)):
            node = with_memory(node, memory)
        node = with_named(node, firsthand.named_of(node.name))
        return with_cloud(node, self._keeper.cloud_slots), vitals

    def _entries(self, text: str) -> list[TagEntry] | None:
        """None where the disk cannot be read, or has a model that nobody told us of."""
        disk = words.read_disk(text)
        if disk is None:
            return None
        entries = []
        for listed in disk:
            known = self._models.get(listed.model)
            if known is None:
                return None
            model, entry = known
            entries.append(words.entry_at(entry, model, listed.modified_at))
        return entries

    def _note_model(self, name: str, text: str) -> None:
        model = words.read_model(text)
        entry = words.entry_of(model, key_of) if model is not None else None
        if model is None or entry is None or not (name in self._models or self._has_room()):
            return
        self._models[name] = (model, entry)
        if model.shown is not None and model.digest:
            known = self._keeper.shown.get(model.digest)
            self._keeper.saw_show(model.digest, words.both_shown(known, model.shown))

    def _has_room(self) -> bool:
        now_s = self._clock.now_s()
        if len(self._models) >= SHOWN_MAX and now_s - self._surveyed_s >= SURVEY_EVERY_S:
            self._surveyed_s = now_s
            self._models.clear()
            self._board.read_again()
        return len(self._models) < SHOWN_MAX

    def _note_named(self, name: str, weights: str, word: Word) -> None:
        num_ctx = words.read_named(word.text)
        if num_ctx is not None and name in self._keeper.snapshot.nodes:
            self._keeper.firsthand.named_ctx(name, weights, word.at_s, num_ctx)

    def _note_load(self, name: str, by: str, word: Word) -> None:
        if by != self._board.replica and name in self._keeper.snapshot.nodes:
            self._keeper.firsthand.loads.heard(name, by, words.read_load(word.text), word.at_s)

    def _note_slots(self, about: About, word: Word) -> None:
        finding = words.read_finding(word.text)
        if finding is not None and about.node in self._keeper.snapshot.nodes:
            self._keeper.firsthand.findings.note(about, finding)

    async def _note_drain(self, name: str, word: Word) -> None:
        is_drained = words.read_drain(word.text)
        if is_drained is None or name not in self._keeper.snapshot.nodes:
            return
        if self._telling.is_new_drain(name, word.at_s, is_drained=is_drained):
            await (self._keeper.drain(name) if is_drained else self._keeper.resume(name))

    def _note_circuit(self, name: str, weights: str | None, word: Word) -> None:
        told = words.read_circuit(word.text)
        if told is None or name not in self._keeper.snapshot.nodes:
            return
        if not self._keeper.circuits.adopt((name, weights), told, word.at_s):
            return
        if weights is None and self._keeper.vitals_of(name).drains:
            return  # the drain's gate stands before the breaker's
        gate = Gate.CLOSED if told.circuit is Circuit.OPEN else Gate.OPEN
        self._board.note_gate(name, weights, gate, told.until_s)
