"""Declared copies: they come, they stay, they come back, and then nothing is done any more."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.node import Copy, CopyState, Health, Node
from router.fleet.snapshot import Snapshot, snapshot_of
from router.fleet.tickets import LineView
from router.policy.declared import (
    CROWDED_MAX,
    NOTHING,
    STEADY_S,
    Declaration,
    Lack,
    Memory,
    Standing,
    asked,
    holds_of,
    remember,
)
from router.policy.experience import NOTHING_LEARNT, Experience
from router.policy.placement import Cause, Load, Mode, place
from router.policy.room import Holds, Pool
from router.policy.upkeep import RENEW_AGAIN_S, Moment, keep, unkept
from router.policy.verdicts import lack_text
from tests.fleet.builders import fleet, node

SOON_S = 1e9  # an end of a keep-alive, in Unix time


class World:
    """Nodes that do at once what they are told, with the placer's passes over them; no calls."""

    def __init__(self, declared: Sequence[Declaration], *nodes: Node) -> None:
        self.declared = declared
        self.snapshot = fleet(*nodes)
        self.memory: Memory = NOTHING
        self.now_s = 10_000.0
        self.busy: dict[tuple[str, str], int] = {}
        self.backoff: dict[tuple[str, str], float] = {}
        self.experience: Experience = NOTHING_LEARNT
        self.holds = Holds()
        self.standings: tuple[Standing, ...] = ()
        self.done: list[Load] = []

    def look(self, loaders: dict[str, str] | None = None) -> tuple[Load, ...]:
        """One pass; what it decides is not done yet."""
        self.now_s += 1.0
        self.memory = remember(
            self.memory,
            self.declared,
            self.snapshot,
            loading={},
            leaving=frozenset(),
            loaders=loaders or {},
            displaced={(load.node, weights) for load in self.done[-3:] for weights in load.displaces},
            now_s=self.now_s,
        )
        self.holds = holds_of(self.declared, self.snapshot, loading={}, leaving=frozenset(), memory=self.memory)
        pool = Pool(self.snapshot, self.busy, self.experience, {}, {}, frozenset(), self.now_s, self.holds)
        loads, self.standings = keep(self.declared, Moment(pool, {}, self.backoff, self.memory))
        self.memory = asked(self.memory, loads, self.now_s)
        return loads

    def step(self) -> tuple[Load, ...]:
        loads = self.look()
        for load in loads:
            self.carry_out(load)
        return loads

    def settle(self, passes: int = 40) -> list[Load]:
        """Until there is nothing to do; fails where that never comes."""
        loads: list[Load] = []
        for _ in range(passes):
            decided = self.step()
            if not decided:
                return loads
            loads += decided
        raise AssertionError(f"not at rest after {passes} passes: {decided}")

    def carry_out(self, load: Load) -> None:
        holder = self.snapshot.nodes[load.node]
        copies = {weights: copy for weights, copy in holder.copies.items() if weights not in load.displaces}
        known = copies.get(load.weights)
        size = holder.models[load.key].size_bytes
        fresh = Copy(load.weights, CopyState.READY, holder.keys_of(load.weights), 1, 4096, size, size)
        copies[load.weights] = replace(known or fresh, state=CopyState.READY, expires_at_s=math.inf)
        self.swap(replace(holder, copies=MappingProxyType(copies)))
        self.done.append(load)

    def swap(self, changed: Node) -> None:
        self.snapshot = self.snapshot.with_node(changed)

    def restart(self, name: str) -> None:
        holder = self.snapshot.nodes[name]
        self.swap(replace(holder, incarnation=holder.incarnation + 1, copies=MappingProxyType({})))

    def evict(self, name: str, key: str) -> None:
        holder = self.snapshot.nodes[name]
        copies = {weights: copy for weights, copy in holder.copies.items() if weights != f"w:{key}"}
        self.swap(replace(holder, copies=MappingProxyType(copies)))

    def where(self, key: str) -> set[str]:
        return {row.node for row in self.snapshot.holding(key).ready.rows}


def pin(key: str, copies: int = 1, *nodes: str) -> Declaration:
    return Declaration(key, copies, is_pinned=True, nodes=nodes)


def expiring_later(holder: Node) -> Node:
    """As somebody else has loaded what is there: for a while."""
    copies = {weights: replace(copy, expires_at_s=SOON_S) for weights, copy in holder.copies.items()}
    return replace(holder, copies=MappingProxyType(copies))


def test_declared_copies_are_loaded_for_ever_with_nobody_in_line_and_then_nothing_is_done() -> None:
    world = World([Declaration("x", 2)], node("a", disk="x"), node("b", disk="x"), node("c", disk="x"))
    loads = world.settle()
    assert [(load.keep_alive_s, load.cause, load.num_ctx) for load in loads] == [(math.inf, Cause.COPY, 0)] * 2
    assert len(world.where("x")) == 2
    (standing,) = world.standings
    assert (standing.lack, standing.nodes) == (None, tuple(sorted(world.where("x"))))
    world.now_s += 10_000
    assert world.settle() == []


def test_preferred_nodes_come_first_in_their_order_and_others_only_where_these_cannot() -> None:
    members = [node(name, disk="x") for name in "abcd"]
    world = World([Declaration("x", 2, nodes=("d", "b"))], *members)
    world.settle()
    assert world.where("x") == {"b", "d"}
    down = [replace(one, health=Health.DOWN) if one.name == "d" else one for one in members]
    world = World([Declaration("x", 1, nodes=("d", "b"))], *down)
    world.settle()
    assert world.where("x") == {"b"}


def test_what_is_there_already_counts_and_is_kept_for_ever_as_it_is() -> None:
    world = World([Declaration("x")], expiring_later(node("a", disk="x", ready="x", num_ctx=8192)), node("b", disk="x"))
    (renewal,) = world.settle()
    assert renewal == Load("a", "X", "x", "w:x", 8192, math.inf, is_renewal=True)
    assert world.settle() == []


def test_a_copy_that_serves_calls_is_renewed_when_they_are_over() -> None:
    """Its node tells the end that it had before until a call has ended: it would be renewed with every pass."""
    world = World([Declaration("x")], expiring_later(node("a", disk="x", ready="x")))
    world.busy = {("a", "w:x"): 1}
    assert world.look() == ()
    world.busy = {}
    assert len(world.look()) == 1
    assert world.look() == (), "asked, though its node does not tell it yet"
    world.now_s += RENEW_AGAIN_S
    assert len(world.look()) == 1


def test_a_node_that_begins_anew_gets_back_what_it_had() -> None:
    world = World([Declaration("x", 2)], *(node(name, disk="x y") for name in "abc"))
    world.settle()
    lost = min(world.where("x"))
    world.restart(lost)
    (load,) = world.settle()
    assert (load.node, load.cause) == (lost, Cause.REWARM)


def test_while_a_node_is_down_another_has_its_copy_and_none_too_many_comes_when_it_is_back() -> None:
    world = World([pin("x")], node("a", disk="x"), node("b", disk="x"))
    world.settle()
    (home,) = world.where("x")
    holder = world.snapshot.nodes[home]
    world.swap(replace(holder, health=Health.DOWN, copies=MappingProxyType({})))
    (load,) = world.settle()
    assert (load.node != home, load.cause) == (True, Cause.PIN)
    world.swap(replace(holder, incarnation=1, copies=MappingProxyType({})))
    assert world.settle() == []


def test_a_draining_node_has_no_declared_copy() -> None:
    draining = node("a", disk="x", ready="x", health=Health.DRAINING)
    world = World([Declaration("x")], draining)
    assert world.settle() == []
    assert world.standings[0].lack is Lack.DRAINING
    world.swap(node("b", disk="x"))
    assert [load.node for load in world.settle()] == ["b"]


def test_a_pin_takes_the_memory_of_what_is_not_pinned_and_a_minimum_only_what_nobody_uses() -> None:
    used = node("a", disk="x y", ready="y", vram_bytes=1500)
    warm = replace(NOTHING_LEARNT, heat=MappingProxyType({"w:y": 1.0}))
    for declaration, displaced in ((Declaration("x"), []), (pin("x"), [("w:y",)])):
        world = World([declaration], used)
        world.experience = warm
        assert [load.displaces for load in world.settle()] == displaced
    world = World([Declaration("x")], used)
    world.experience = warm
    assert world.settle() == []
    assert world.standings[0].lack is Lack.IN_USE
    world.experience = NOTHING_LEARNT
    assert [load.displaces for load in world.settle()] == [("w:y",)]


def test_minimum_copies_do_not_take_one_anothers_memory_and_one_that_finds_none_says_so() -> None:
    world = World([Declaration("x"), Declaration("y")], node("a", disk="x y", vram_bytes=1500))
    assert len(world.settle()) == 1
    assert sorted(str(standing.lack) for standing in world.standings) == ["None", "no_room"]


def test_a_pin_takes_the_memory_of_a_minimum_but_of_other_models_first() -> None:
    world = World([Declaration("x"), pin("y")], node("a", disk="x y z", ready="x z", vram_bytes=3000))
    world.settle()
    assert (world.where("x"), world.where("y"), world.where("z")) == ({"a"}, {"a"}, set())


def line(model: str, depth: int = 50, wait_s: float = 1e6) -> LineView:
    return LineView(model, depth, wait_s, 0, None, 256, 0.0)


def placed(world: World, *lines: LineView) -> list[Load]:
    actions = place(
        lines, world.snapshot, loading={}, backoff={}, now_s=world.now_s, mode=Mode.MANAGED, holds=world.holds
    )
    return [action for action in actions if isinstance(action, Load)]


def test_no_line_however_long_takes_the_memory_of_a_pin() -> None:
    world = World([pin("x")], node("a", disk="x y", ready="x", vram_bytes=1500))
    world.settle()
    assert placed(world, line("y")) == []
    world.declared = [Declaration("x")]
    world.settle()
    assert [load.displaces for load in placed(world, line("y"))] == [("w:x",)]


def test_a_line_takes_what_is_not_declared_before_what_is() -> None:
    world = World([Declaration("x")], node("a", disk="x y z", ready="x y", vram_bytes=3000))
    world.settle()
    assert [load.displaces for load in placed(world, line("z"))] == [("w:y",)]


def test_what_ollama_takes_from_a_pin_for_a_load_of_ours_is_not_loaded_beside_it_again() -> None:
    """No memory is declared, so only Ollama knows what fits."""
    world = World([pin("x")], node("a", disk="x y", ready="x"))
    world.settle()
    assert len(placed(world, line("y"))) == 1
    world.evict("a", "x")
    world.look(loaders={"a": "w:y"})
    world.settle()
    assert world.where("x") == {"a"}
    assert placed(world, line("y")) == []
    world.restart("a")
    world.settle()
    assert len(placed(world, line("y"))) == 1, "the node may have another card"


def test_what_others_take_out_of_memory_is_loaded_again_at_once_and_then_less_and_less_often() -> None:
    world = World([Declaration("x")], node("a", disk="x"))
    world.settle()
    pauses = []
    for _ in range(8):
        world.evict("a", "x")
        began_s = world.now_s
        while not world.step():
            assert world.standings[0].lack is Lack.LOST
        pauses.append(world.now_s - began_s)
        world.step()
    assert pauses[0] == 1.0
    assert pauses == sorted(pauses)
    assert 300 <= pauses[-1] < 310
    world.now_s += STEADY_S
    world.evict("a", "x")
    assert len(world.step()) == 1, "it had stood for long"


def test_a_failed_load_is_not_repeated_at_once() -> None:
    world = World([Declaration("x")], node("a", disk="x"))
    world.backoff = {("a", "w:x"): world.now_s + 60}
    assert world.settle() == []
    assert world.standings[0].lack is Lack.BACKOFF


def test_a_model_on_too_few_nodes_is_said_and_never_pulled() -> None:
    world = World([Declaration("x", 3), Declaration("nowhere")], node("a", disk="x"), node("b"))
    world.settle()
    assert [(standing.lack, len(standing.nodes)) for standing in world.standings] == [
        (Lack.NOT_ON_DISK, 0),
        (Lack.NOT_ON_DISK, 1),
    ]
    assert lack_text(world.standings[1]).startswith("1 of 3 declared copies of x stand: no further node has it")


def test_two_names_of_the_same_weights_are_one_copy() -> None:
    same = {"x": "w", "y": "w"}
    world = World([Declaration("x"), Declaration("y")], node("a", disk="x y", weights=same))
    assert len(world.settle()) == 1
    assert [standing.lack for standing in world.standings] == [None, None]


def test_nothing_is_kept_where_nothing_is_managed_and_that_is_said() -> None:
    snapshot = fleet(node("a", disk="x y", ready="x"))
    stands, short = unkept([Declaration("y"), Declaration("x")], snapshot)
    assert (stands.lack, short.lack) == (None, Lack.NOT_MANAGED)


def test_what_pins_were_lost_to_is_remembered_within_bounds() -> None:
    keys = [f"m{number}" for number in range(3)]
    world = World([pin("x")], node("a", disk="x " + " ".join(keys), ready="x"))
    old = frozenset(("a", 0, f"w{number:05}") for number in range(CROWDED_MAX + 5))
    world.memory = Memory(crowded=old)
    world.look()
    assert len(world.memory.crowded) == CROWDED_MAX


@pytest.mark.parametrize("lack", Lack)
def test_every_lack_has_its_words(lack: Lack) -> None:
    assert "declared copies of x stand: " in lack_text(Standing(Declaration("x"), (), lack=lack))


MODELS = "vwxyz"


@st.composite
def worlds(draw: st.DrawFn) -> World:
    some = st.sets(st.sampled_from(MODELS))
    members = []
    for name in draw(st.sets(st.sampled_from("abcd"), min_size=1)):
        disk = draw(some)
        ready = sorted(disk & draw(some))[: draw(st.integers(0, 3))]
        vram = draw(st.sampled_from([None, 1250, 2500, 4000]))
        health = draw(st.sampled_from([Health.HEALTHY] * 4 + [Health.DOWN, Health.DRAINING]))
        there = "" if health is Health.DOWN else " ".join(ready[: 3 if vram is None else vram // 1250])
        built = node(name, disk=" ".join(sorted(disk)), ready=there, vram_bytes=vram, health=health)
        members.append(expiring_later(built) if draw(st.booleans()) else built)
    declared = [
        Declaration(key, draw(st.integers(1, 3)), draw(st.booleans()), tuple(draw(st.lists(st.sampled_from("abcd")))))
        for key in draw(some)
    ]
    return World(declared, *members)


def counts(snapshot: Snapshot) -> dict[str, int]:
    return {key: len(snapshot.holding(key).ready.rows) for key in MODELS}


@given(worlds(), st.sampled_from("abcd"))
def test_it_comes_to_rest_loads_no_more_than_declared_and_never_displaces_a_pin(world: World, restarted: str) -> None:
    most = {one.key: one.copies for one in world.declared}
    for _ in range(2):
        for _ in range(60):
            before = counts(world.snapshot)
            loads = world.look()
            assert len({load.node for load in loads}) == len(loads), "one load a node"
            for load in loads:
                assert not {(load.node, weights) for weights in load.displaces} & world.holds.pinned
                world.carry_out(load)
            for key, count in counts(world.snapshot).items():
                assert count <= max(before[key], most.get(key, 0)), f"{key} is loaded more often than declared"
            if not loads:
                break
        assert not loads, "it never comes to rest"
        for standing in world.standings:
            assert (standing.lack is None) == (len(standing.nodes) >= standing.declaration.copies)
        if restarted in world.snapshot.nodes:
            world.restart(restarted)


@given(worlds(), st.lists(st.sampled_from(MODELS), unique=True))
def test_no_load_for_a_line_displaces_a_pin(world: World, waiting: list[str]) -> None:
    world.settle(60)
    for load in placed(world, *(line(key) for key in waiting)):
        assert not {(load.node, weights) for weights in load.displaces} & world.holds.pinned


def test_the_same_copies_count_whatever_the_order_of_nodes() -> None:
    members = [node(name, disk="x", ready="x") for name in "abcdef"]
    one = holds_of([pin("x", 2)], snapshot_of(members), loading={}, leaving=frozenset())
    other = holds_of([pin("x", 2)], snapshot_of(reversed(members)), loading={}, leaving=frozenset())
    assert one == other
    assert len(one.pinned) == 2
