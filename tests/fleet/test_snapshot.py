"""The snapshot after any history equals the one built afresh."""

from __future__ import annotations

import json
from dataclasses import replace
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.node import CopyState, Health, Node, NodeSpec
from router.fleet.reports import PsEntry, Shown, TagEntry, parse_ps, parse_tags
from router.fleet.snapshot import Ring, Row, Snapshot, apply_ps, apply_tags, apply_version, point_of, snapshot_of
from router.wire.names import parse_name
from tests.fakes.recordings import recording
from tests.fleet.builders import KEYS, fleet, node, nodes

WEIGHTS = "sha256-a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def key_of(name: str) -> str:
    return parse_name(name).key


def names(ring: Ring) -> set[str]:
    return {row.node for row in ring.rows}


def recorded(ps: str = "ps", *, shown: bool = True) -> Node:
    """A node as the recordings show it, read at the moment of the recording."""
    tags = parse_tags(recording("catalog/tags").response.body, key_of)
    known = {entry.digest: Shown(WEIGHTS, 32768) for entry in tags if entry.family == "gemma3"} if shown else {}
    fresh = replace(apply_tags(Node(NodeSpec("a", "a.example", 11434)), tags, known), health=Health.HEALTHY)
    entries = parse_ps(recording(f"catalog/{ps}").response.body, key_of)
    now_s = 1795396664.0  # 2026-11-23T01:17:44Z
    return apply_ps(fresh, entries, known, node_now_s=now_s, interval_s=2.0, leased=())


def test_weights_are_called_after_the_first_of_their_models_and_by_themselves_where_there_is_none() -> None:
    shared = fleet(node("a", disk="llama3 gemma", weights={"llama3": "w:1", "gemma": "w:1"}))
    assert shared.name_of("a", "w:1") == "gemma"
    assert shared.name_of("a", "sha256-0123456789abcdef0123456789abcdef") == "sha256-0123456789ab"
    assert shared.name_of("elsewhere", "w:1") == "w:1"


def test_a_context_that_a_load_of_ours_named_is_remembered_while_the_copy_still_has_it() -> None:
    entries = parse_ps(recording("catalog/ps").response.body, key_of)
    (seen,) = recorded().copies.values()
    named = replace(recorded(), copies={seen.weights: replace(seen, named_ctx=seen.num_ctx)})
    loaded_anew = replace(recorded(), copies={seen.weights: replace(seen, named_ctx=seen.num_ctx + 1)})
    for before, kept in ((named, seen.num_ctx), (loaded_anew, 0)):
        shown = {seen.digest: Shown(WEIGHTS, 32768)}
        after = apply_ps(before, entries, shown, node_now_s=1795396664.0, interval_s=2.0, leased=())
        assert after.copies[seen.weights].named_ctx == kept


# Histories


def ready_by_hand(snapshot: Snapshot, key: str) -> set[str]:
    """Written without rows: who could serve this model, last resorts included."""
    found = set()
    for one in snapshot.nodes.values():
        weights = one.models[key].weights if key in one.models else None
        for copy in one.copies.values():
            serves = copy.weights == weights if weights else key in copy.keys
            if serves and copy.state is CopyState.READY and one.health in (Health.HEALTHY, Health.DEGRADED):
                found.add(one.name)
    return found


@given(st.lists(nodes() | st.sampled_from("pqrst"), max_size=12))
def test_a_snapshot_equals_one_rebuilt_from_scratch_after_any_history(history: list[Node | str]) -> None:
    snapshot = Snapshot()
    for change in history:
        snapshot = snapshot.without_node(change) if isinstance(change, str) else snapshot.with_node(change)
        assert snapshot == snapshot_of(sorted(snapshot.nodes.values(), key=lambda node: node.name))
        for key in f"{KEYS}e":
            rows = snapshot.holding(key)
            assert names(rows.ready) | names(rows.last_resort) == ready_by_hand(snapshot, key)
            assert not names(rows.ready) & names(rows.last_resort)
            assert rows.has_node_up == any(row.takes_calls for row in rows.by_node.values())
            assert snapshot.is_known(key) == bool(rows.by_node) == (key in snapshot.keys)
        assert snapshot.all_read == all(node.is_read for node in snapshot.nodes.values())


def test_one_node_of_a_thousand_touches_only_the_rows_of_its_models() -> None:
    many = [node(f"n{number}", disk="common", ready=f"m{number % 100}") for number in range(1000)]
    before = snapshot_of(many)
    after = before.with_node(node("n7", disk="common", ready="m8"))
    changed = {key for key in before.keys | after.keys if before.holding(key) is not after.holding(key)}
    assert changed == {"m7", "m8"}
    assert all(before.nodes[name] is after.nodes[name] for name in before.nodes if name != "n7")
    m8 = after.holding("m8")
    assert all(m8.by_node[name] is row for name, row in before.holding("m8").by_node.items())


def test_a_node_that_says_the_same_again_changes_no_rows() -> None:
    before = fleet(node("a", disk="x", ready="x"), node("b", disk="x"))
    assert before.with_node(node("a", disk="x", ready="x")).index is before.index


def test_a_model_that_no_node_has_any_more_is_unknown() -> None:
    snapshot = fleet(node("a", disk="x")).without_node("a")
    assert not snapshot.is_known("x")
    assert snapshot.without_node("a") is snapshot


# What rows say


def test_a_down_node_keeps_its_models_known_and_serves_nobody() -> None:
    snapshot = fleet(node("a", disk="x", ready="x", health=Health.DOWN))
    assert snapshot.is_known("x")
    assert not snapshot.has_node_up("x")
    assert not snapshot.holding("x").ready.rows


def test_spilled_copies_are_last_resorts() -> None:
    snapshot = fleet(node("a", disk="x", spilled="x"), node("c", ready="x"))
    assert names(snapshot.holding("x").last_resort) == {"a"}
    assert names(snapshot.holding("x").ready) == {"c"}


def test_a_draining_node_is_up_and_serves_nobody_new() -> None:
    snapshot = fleet(node("a", disk="x", ready="x", health=Health.DRAINING))
    row = snapshot.holding("x").by_node["a"]
    assert (row.is_up, row.takes_calls, row.is_ready) == (True, False, False)
    assert snapshot.is_known("x")
    assert not snapshot.has_node_up("x")


def test_an_unread_node_leaves_unknown_names_open() -> None:
    snapshot = fleet(node("a", disk="x"), node("b", is_read=False))
    assert not snapshot.all_read
    assert snapshot.with_node(node("b")).all_read
    assert snapshot.without_node("b").all_read


def test_slots_of_a_row_include_the_backlog_of_its_node() -> None:
    assert fleet(node("a", ready="x", slots=2, backlog=3)).holding("x").by_node["a"].slots == 5


def test_the_catalog_iterates_over_disks_and_memories() -> None:
    snapshot = fleet(node("a", disk="x", ready="x"), node("b", disk="x", health=Health.DOWN), node("c", ready="x"))
    assert {holder.name for holder, _ in snapshot.stored("x")} == {"a", "b"}
    assert {(holder.name, copy.keys) for holder, copy in snapshot.copies()} == {("a", ("x",)), ("c", ("x",))}
    assert repr(snapshot) == "<Snapshot 3 nodes | 1 models | 0 unread>"


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3)), unique_by=lambda pair: pair[0]))
def test_a_ring_stays_sorted_even_where_points_collide(members: list[tuple[str, int]]) -> None:
    rows = [Row(name, "w", (name, "w"), CopyState.READY, point) for name, point in members]
    ring = Ring()
    for row in rows:
        ring = ring.having(row)
    assert [(row.point, row.node) for row in ring.rows] == sorted((row.point, row.node) for row in rows)
    assert list(ring.points) == [row.point for row in ring.rows]
    for row in rows[::2]:
        ring = ring.without(row)
    assert set(ring.rows) == set(rows[1::2])


def test_points_are_the_same_in_every_replica() -> None:
    assert point_of("gpu-1") == 9746184836671760580


# Reports


def test_names_of_the_same_weights_share_the_copy_that_ps_shows_under_one_of_them() -> None:
    node = recorded()
    assert node.is_read
    copy = node.copies[WEIGHTS]
    assert copy.keys == ("gemma-fim:latest", "gemma-think:latest", "gemma-tools:latest", "gemma3:270m", "gpt-4:latest")
    snapshot = fleet(node)
    assert snapshot.holding("gpt-4:latest").ready.rows[0].weights == WEIGHTS
    assert snapshot.holding("all-minilm:22m").by_node["a"].state is CopyState.ON_DISK


def test_until_weights_are_shown_names_of_one_manifest_share_and_afterwards_all_do() -> None:
    early = recorded(shown=False)
    assert [copy.keys for copy in early.copies.values()] == [("gemma3:270m", "gpt-4:latest")]
    tags = parse_tags(recording("catalog/tags").response.body, key_of)
    known = {entry.digest: Shown(WEIGHTS, 32768) for entry in tags if entry.family == "gemma3"}
    assert apply_tags(early, tags, known).copies == recorded().copies


def entry(key: str, digest: str, **more: object) -> TagEntry:
    usual = TagEntry(key, key, digest, 1, "", "", frozenset(), 0, False, "{}")
    return replace(usual, **more)  # type: ignore[arg-type]


def seen(key: str, digest: str, expires_at_s: float = float("inf")) -> PsEntry:
    return PsEntry(key, key, digest, 1, 1, 4096, expires_at_s, "{}")


def read(
    tags: list[TagEntry], ps: list[PsEntry], *, now_s: float = 0.0, leased: tuple[str, ...] = (), slots: int = 4
) -> Node:
    spec = NodeSpec("a", "a.example", 1, slots=slots, model_slots=MappingProxyType({"named": 3}))
    fresh = apply_tags(Node(spec, health=Health.HEALTHY), tags, {})
    return apply_ps(fresh, ps, {}, node_now_s=now_s, interval_s=2.0, leased=leased)


def test_a_model_in_memory_and_in_no_list_counts_as_present() -> None:
    assert fleet(read([], [seen("x", "d")])).holding("x").ready.rows


def test_a_name_that_got_new_weights_is_not_served_by_the_old_copy() -> None:
    node = read([entry("x", "new")], [seen("x", "old")])
    assert node.copies["old"].keys == ()
    assert fleet(node).holding("x").by_node["a"].state is CopyState.ON_DISK


def test_a_report_without_digests_goes_by_names() -> None:
    assert fleet(read([entry("x", "")], [seen("x", "")])).holding("x").ready.rows


def test_an_idle_copy_about_to_expire_is_not_ready_but_still_in_memory() -> None:
    for left_s, is_ready in ((3.9, False), (4.1, True), (-60.0, False)):
        row = fleet(read([entry("x", "d")], [seen("x", "d", 100 + left_s)], now_s=100)).holding("x").by_node["a"]
        assert (row.is_ready, row.is_resident) == (is_ready, True)


def test_a_copy_that_works_does_not_expire() -> None:
    node = read([entry("x", "d")], [seen("x", "d", 0.0)], now_s=100, leased=("d",))
    assert node.copies["d"].state is CopyState.READY


def test_slots_are_ollamas_where_it_takes_one_call_whatever_is_declared() -> None:
    embedding = entry("e", "1", capabilities=frozenset({"embedding"}))
    single = entry("q", "2", family="qwen3vl")
    named = entry("named", "3", capabilities=frozenset({"embedding"}))
    node = read(
        [embedding, single, named, entry("x", "4")],
        [seen(key, digest) for key, digest in zip(["e", "q", "named", "x"], "1234", strict=True)],
    )
    assert [node.copies[digest].slots for digest in "1234"] == [1, 1, 3, 4]


def test_cloud_stubs_are_known_and_never_ready() -> None:
    snapshot = fleet(read([entry("m:cloud", "d", is_cloud=True)], []))
    assert snapshot.holding("m:cloud").by_node["a"].is_cloud
    assert not snapshot.holding("m:cloud").ready.rows


def test_a_version_is_noted() -> None:
    node = apply_version(recorded(), "0.33.0")
    assert node.version == "0.33.0"
    assert apply_version(node, "0.33.0") is node


def test_listings_pass_through_unchanged() -> None:
    node = recorded("ps-two")
    assert json.loads(node.models["gpt-4:latest"].listing)["name"] == "gpt-4:latest"
    assert json.loads(node.copies[WEIGHTS].listing)["context_length"] == 2048


def test_a_disk_that_is_as_it_was_is_the_same_object() -> None:
    body = b'{"models":[{"name":"m:1b","model":"m:1b","digest":"d","size":1,"modified_at":"2026-01-01T00:00:00Z"}]}'
    entries = parse_tags(body, key_of)
    first = apply_tags(node("a"), entries, {})
    assert apply_tags(first, parse_tags(body, key_of), {}).models is first.models
    assert apply_tags(first, entries, {"d": Shown("w")}).models is not first.models
