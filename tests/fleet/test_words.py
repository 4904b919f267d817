"""What replicas tell one another comes out as it went in, and what is not of this format says nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet import words
from router.fleet.breaker import Circuit
from router.fleet.node import Copy, CopyState, Health, Node, NodeSpec
from router.fleet.reports import Shown, TagEntry, parse_tags
from router.fleet.snapshot import apply_tags
from router.fleet.words import Claim, Memory, Reach, SharedCircuit, SharedLoad, SharedModel
from router.wire.names import key_of, parse_name

KEY = parse_name("m:1").key
TEXTS = st.text(max_size=8)
STAMPS = st.one_of(st.just("2026-01-01T00:00:00.123456789+01:00"), st.text(max_size=12))


def tags(*items: dict[str, object]) -> tuple[TagEntry, ...]:
    return parse_tags(json.dumps({"models": items}).encode(), key_of)


def node_with(*items: dict[str, object], shown: dict[str, Shown] | None = None) -> Node:
    return apply_tags(Node(NodeSpec("a", "a", 11434)), tags(*items), shown or {})


@given(by=TEXTS, tried=st.lists(TEXTS, max_size=3))
def test_a_claim_comes_out_as_it_went_in(by: str, tried: list[str]) -> None:
    claim = Claim(by, tuple(tried))
    assert words.read_claim(words.claim_text(claim)) == claim


@given(reach=st.sampled_from(Health), fails=st.integers(0, 9), incarnation=st.integers(0, 9), version=TEXTS)
def test_reach_comes_out_as_it_went_in(reach: Health, fails: int, incarnation: int, version: str) -> None:
    told = Reach(reach, fails, incarnation, version)
    assert words.read_reach(words.reach_text(told)) == told


@given(
    state=st.sampled_from(CopyState),
    keys=st.lists(TEXTS, max_size=2),
    sizes=st.tuples(*(st.integers(0, 2**60) for _ in range(3))),
    expires_at_s=st.one_of(st.just(float("inf")), st.floats(0, 1e12)),
    listing=st.one_of(TEXTS, st.just("x" * 3000)),
)
def test_memory_comes_out_as_it_went_in(
    state: CopyState, keys: list[str], sizes: tuple[int, int, int], expires_at_s: float, listing: str
) -> None:
    copy = Copy("w", state, tuple(keys), 2, *sizes, expires_at_s, listing, "digest", 4096)
    told = Memory(3, {"w": copy}, {"w": 4})
    assert words.read_memory(words.memory_text(told)) == told


@given(
    names=st.tuples(TEXTS, TEXTS, TEXTS),
    keep_alive_s=st.sampled_from([None, -1.0, 60.0]),
    is_default=st.booleans(),
    displaces=st.lists(TEXTS, max_size=2),
)
def test_a_load_comes_out_as_it_went_in(
    names: tuple[str, str, str], keep_alive_s: float | None, is_default: bool, displaces: list[str]
) -> None:
    load = SharedLoad(*names, 4096, keep_alive_s, is_default, tuple(displaces), "line", 12.5)
    assert words.read_load(words.load_text(load)) == load
    assert words.read_load(words.load_text(None)) is None


def test_cloud_stubs_are_no_part_of_what_is_told_of_memory() -> None:
    node = node_with({"name": "m:1", "digest": "d", "remote_host": "https://elsewhere"})
    node = replace(node, copies={"d": Copy("d", CopyState.READY, (KEY,), 8)}, learnt={"d": 2})
    assert words.memory_of(node, 5) == Memory(5, {}, {"d": 2})


@given(
    stamp=STAMPS,
    more=st.dictionaries(TEXTS, st.one_of(TEXTS, st.integers(), st.none(), st.dictionaries(TEXTS, TEXTS)), max_size=3),
    shown=st.one_of(st.none(), st.builds(Shown, st.just("sha256-w"), st.integers(0, 9))),
)
def test_a_disk_is_told_model_by_model_and_is_the_same_to_whoever_hears_it(
    stamp: str, more: dict[str, object], shown: Shown | None
) -> None:
    more = {"name": "m:1", "digest": "d", "modified_at": stamp, "size": 7, "details": {"family": "llama"}, **more}
    more["name"] = "m:1"
    node = node_with(more)
    listed, text = words.listed_of(node.models[KEY], shown)
    disk = words.read_disk(words.disk_text([listed]))
    model = words.read_model(text)
    assert disk == (listed,)
    assert model is not None
    assert model.shown == shown
    entry = words.entry_of(model, key_of)
    assert entry is not None
    assert (words.entry_at(entry, model, listed.modified_at),) == tags(more)


def test_nodes_that_hold_the_same_model_since_another_day_tell_it_once() -> None:
    told = {
        words.listed_of(node_with({"name": "m:1", "digest": "d", "modified_at": day}).models[KEY], None)
        for day in ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
    }
    assert len({text for _, text in told}) == 1
    assert len({listed.model for listed, _ in told}) == 1


def test_a_disk_with_two_hundred_models_takes_less_than_eight_thousand_bytes() -> None:
    items = [
        {"name": f"m:{i}", "digest": f"{i:064x}", "modified_at": f"2026-01-01T00:00:00.{i * 4_999_999:09}+01:00"}
        for i in range(200)
    ]
    node = node_with(*items)
    text = words.disk_text(words.listed_of(model, None)[0] for model in node.models.values())
    assert len(text) < 8000


@pytest.mark.parametrize("is_drained", [True, False])
def test_a_drain_comes_out_as_it_went_in(is_drained: bool) -> None:
    assert words.read_drain(words.drain_text(is_drained=is_drained)) is is_drained


def test_a_circuit_comes_out_as_it_went_in() -> None:
    told = SharedCircuit(Circuit.OPEN, 1_700_000_000.123456, 3)
    assert words.read_circuit(words.circuit_text(told)) == told


@given(st.one_of(TEXTS, st.binary(max_size=20).map(lambda raw: "z" + raw.hex()), st.just("[1]"), st.just("z[1]")))
def test_what_cannot_be_read_says_nothing(text: str) -> None:
    for read in (words.read_reach, words.read_memory, words.read_disk, words.read_circuit, words.read_model):
        assert read(text) is None


def test_a_format_of_another_version_says_nothing() -> None:
    assert words.read_claim(json.dumps([words.FORMAT + 1, "a", []])) is None


def test_a_model_whose_listing_is_none_is_no_model() -> None:
    assert words.entry_of(SharedModel("nonsense", "d", None), key_of) is None
    assert words.entry_of(SharedModel("{}", "d", None), key_of) is None


def test_topics_name_their_kind_and_what_they_are_about() -> None:
    assert words.read_topic(words.topic(words.CIRCUIT, "a", "w")) == (words.CIRCUIT, "a", "w")
    assert words.read_topic(words.topic(words.REACH, "a")) == (words.REACH, "a", "")


def test_of_two_training_contexts_the_smaller_one_is_true_and_an_unknown_one_says_nothing() -> None:
    assert words.both_shown(None, Shown("w", 8)) == Shown("w", 8)
    assert words.both_shown(Shown("w", 4), Shown("w", 8)) == Shown("w", 4)
    assert words.both_shown(Shown("", 0), Shown("w", 8)) == Shown("w", 8)


def test_a_named_context_comes_out_as_it_went_in() -> None:
    assert words.read_named(words.named_text(16384)) == 16384


def test_what_calls_showed_of_slots_comes_out_as_it_went_in_and_nothing_else_is_taken_for_it() -> None:
    finding = words.Finding(1234.5, 7, 3)
    assert words.read_finding(words.finding_text(finding)) == finding
    assert words.read_finding(words.named_text(3)) is words.read_finding('[1,"x",7,3]') is None
