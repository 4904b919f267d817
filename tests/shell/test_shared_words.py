"""What replicas tell one another is remembered within bounds, and what nobody tells any more makes room."""

from __future__ import annotations

from typing import Any, cast

import pytest

from router.control.hearing import SURVEY_EVERY_S, Hearing
from router.control.prober import Prober
from router.control.sharing import Turns
from router.control.telling import Telling
from router.fleet import words
from router.fleet.node import Health, Node, NodeSpec
from router.fleet.reports import Shown
from router.fleet.snapshot import apply_tags
from router.fleet.words import Heard, Word, read_topic, topic
from router.seams import FleetBoard
from tests.shell.test_keeper import House, key_of, run, tags


class Board:
    """Counts how often all of it is wanted."""

    replica = "me"

    def __init__(self) -> None:
        self.surveys = 0

    def read_again(self) -> None:
        self.surveys += 1

    def number_of(self, node: str, incarnation: int) -> int:
        return incarnation

    def note(self, reports: Any) -> None:
        pass


class Asked:
    def note_asked(self, name: str) -> None:
        pass


class Ear:
    """One replica that hears of node a from others, or probes it itself."""

    def __init__(self, nodes: str = "a") -> None:
        self.house = House(nodes)
        self.board = Board()
        board = cast(FleetBoard, self.board)
        self.telling = Telling(self.house.keeper, board, self.house.store, self.house.clock)
        self.hearing = Hearing(self.house.keeper, cast(Prober, Asked()), board, self.telling, self.house.clock)

    def hear(self, *names: str) -> bool:
        """Whether the disk with these models was taken over."""
        node = apply_tags(Node(NodeSpec("a", "a", 11434)), tags(*names), {})
        told = [words.listed_of(model, None) for model in node.models.values()]
        said = [Word(topic(words.MODEL, listed.model), 1.0, text) for listed, text in told]
        said.append(Word(topic(words.DISK, "a"), 1.0, words.disk_text([listed for listed, _ in told])))
        run(self.hearing.hear(Heard(tuple(said), ("me", "other")), ()))
        return {*self.house.keeper.snapshot.nodes["a"].models} == {key_of(name) for name in names}

    def told_of(self, *names: str) -> set[str]:
        """Nodes that it has words on, knowing these and probing them."""
        self.telling.look(set(names), set(names))
        return {
            node for kind, node, _ in (read_topic(word.topic) for word in self.telling.take()) if kind != words.MODEL
        }


def test_models_that_nobody_tells_any_more_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.control.hearing.SHOWN_MAX", 2)
    ear = Ear()
    assert ear.hear("old:1", "older:1")
    assert ear.board.surveys == 0
    assert ear.hear("new:1"), "the two before are gone from its memory, and all that the board has is read again"
    assert ear.board.surveys == 1


def test_a_board_with_more_models_than_are_remembered_is_not_read_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.control.hearing.SHOWN_MAX", 2)
    ear = Ear()
    assert not ear.hear("a:1", "b:1", "c:1")
    assert not ear.hear("a:1", "b:1", "c:1", "d:1")
    assert ear.board.surveys == 1
    ear.house.clock.time_s += SURVEY_EVERY_S
    assert ear.hear("e:1")
    assert ear.board.surveys == 2


def test_manifests_that_no_node_has_any_more_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.control.shown.SHOWN_MAX", 2)
    house = House("ab")
    keeper = house.keeper
    listed = {"a": "kept:1", "b": "gone:1"}
    for name, model in listed.items():
        run(keeper.saw_tags(name, tags(model)))
        assert keeper.lacks(f"d-{model}")
        keeper.saw_show(f"d-{model}", Shown(model))
    assert not keeper.lacks("d-new:1"), "full, and somebody has each: its digest stands in for its weights"
    run(keeper.saw_tags("b", tags("new:1")))
    assert keeper.lacks("d-new:1")
    assert set(keeper.shown) == {"d-kept:1"}


def test_a_node_that_left_and_is_back_is_told_anew() -> None:
    ear = Ear("ab")
    assert ear.told_of("a", "b") == {"a", "b"}
    assert ear.told_of("a", "b") == set(), "all know it"
    assert ear.told_of("b") == set()
    assert ear.told_of("a", "b") == {"a"}


def test_whose_turn_it_is_at_nodes_that_left_is_forgotten() -> None:
    turns = Turns("me")
    for name in ("a", "b"):
        turns.settle(name, Health.HEALTHY, 0, 0.0)
    assert turns.leave({"b"}) == {"a"}
    assert set(turns.claims) == turns.mine == {"b"}
    assert turns.settle("a", Health.HEALTHY, 0, 0.0) is not None, "claimed anew"
