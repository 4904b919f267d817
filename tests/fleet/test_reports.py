"""What nodes report is read whole, and garbage is one kind of error."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.reports import (
    ITEMS_MAX,
    MalformedReport,
    parse_ps,
    parse_show,
    parse_tags,
    parse_time_s,
    parse_version,
)
from router.wire.names import parse_name
from tests.fakes.recordings import recording


def key_of(name: str) -> str:
    return parse_name(name).key


def models(*items: object) -> bytes:
    return json.dumps({"models": items}).encode()


def test_recorded_tags_are_read() -> None:
    entries = parse_tags(recording("catalog/tags").response.body, key_of)
    assert [entry.key for entry in entries][:2] == ["all-minilm:22m", "gpt-4:latest"]
    gpt = entries[1]
    assert gpt.digest == "0804ca337e15873275fc6a868a68d95061ebe0c0c6a30047b3b588c8e3521649"
    assert (gpt.size_bytes, gpt.family, gpt.context_max) == (253113589, "gemma3", 32768)
    assert gpt.capabilities == {"completion"}
    assert not gpt.is_cloud


def test_a_recorded_listing_comes_back_as_the_node_wrote_it() -> None:
    for name, parse in (("catalog/tags", parse_tags), ("catalog/ps-two", parse_ps), ("v0.24/tags", parse_tags)):
        body = recording(name).response.body
        listings = [entry.listing for entry in parse(body, key_of)]
        assert b'{"models":[' + ",".join(listings).encode() + b"]}" == body


def test_an_old_version_tells_no_capabilities_and_no_context() -> None:
    entry = parse_tags(recording("v0.24/tags").response.body, key_of)[0]
    assert (entry.capabilities, entry.context_max) == (frozenset(), 0)


def test_recorded_ps_tells_memory_context_and_expiry() -> None:
    first, second = parse_ps(recording("catalog/ps-two").response.body, key_of)
    assert (first.key, first.num_ctx, first.size_bytes, first.vram_bytes) == ("gemma3:270m", 2048, 301926972, 0)
    assert first.expires_at_s == pytest.approx(datetime.fromisoformat("2026-11-23T01:22:52.715060Z").timestamp())
    assert second.num_ctx == 512


def test_a_pinned_copy_expires_centuries_from_now() -> None:
    entry = parse_ps(recording("catalog/ps-pinned").response.body, key_of)[0]
    assert entry.expires_at_s > 11e9


def test_an_empty_list_may_be_null() -> None:
    assert parse_ps(recording("catalog/ps-empty").response.body, key_of) == ()
    assert parse_tags(b'{"models":null}', key_of) == ()


def test_recorded_show_names_the_weights_and_the_training_context() -> None:
    shown = parse_show(recording("catalog/show").response.body)
    assert shown.weights == "sha256-a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
    assert shown.context_max == 32768


def test_projectors_and_quotes_of_other_modelfiles_are_not_the_weights() -> None:
    blob = "/models/blobs/sha256-"
    modelfile = (
        f"# FROM {blob}{'0' * 64}\nFROM {blob}{'a' * 64}\nFROM {blob}{'b' * 64}\nLICENSE x\nFROM {blob}{'c' * 64}\n"
    )
    assert parse_show(json.dumps({"modelfile": modelfile}).encode()).weights == f"sha256-{'a' * 64}"


@pytest.mark.parametrize(
    "line", ['FROM "C:\\Users\\a b\\blobs\\sha256-{}"\r', "FROM /x/blobs/sha256:{}", "FROM /x y/sha256-{}"]
)
def test_paths_of_blobs_are_known_on_every_system(line: str) -> None:
    body = json.dumps({"modelfile": line.format("d" * 64) + "\nTEMPLATE x"}).encode()
    assert parse_show(body).weights == f"sha256-{'d' * 64}"


def test_a_model_without_a_blob_has_no_weights() -> None:
    assert parse_show(b'{"modelfile":"FROM gemma3:270m\\n"}').weights == ""


def test_version_is_read_or_refused() -> None:
    assert parse_version(recording("catalog/version").response.body) == "0.0.0"
    with pytest.raises(MalformedReport, match="no version"):
        parse_version(b'{"version":7}')


def test_one_bad_item_does_not_cost_the_others() -> None:
    good = {"name": "good", "digest": "d"}
    bad = [
        7,
        None,
        {},
        {"name": "../../x"},
        {"name": ""},
        {"name": " "},
        {"name": 5},
        {"name": "x", "size": float("inf")},
    ]
    body = models(*bad, good).replace(b"Infinity", b"1e999")
    assert [entry.key for entry in parse_tags(body, key_of)] == ["good:latest"]
    assert [entry.key for entry in parse_ps(body, key_of)] == ["good:latest"]


def test_wrongly_typed_members_read_as_absent() -> None:
    item = {"name": "m", "digest": 1, "size": -5, "details": [], "capabilities": "all", "expires_at": "soon"}
    entry, seen = parse_tags(models(item), key_of)[0], parse_ps(models(item), key_of)[0]
    assert (entry.digest, entry.size_bytes, entry.family, entry.capabilities) == ("", 0, "", frozenset())
    assert seen.expires_at_s == float("inf")


@pytest.mark.parametrize(
    "item",
    [{"name": "m:cloud"}, {"name": "m:20b-cloud"}, {"name": "M:20B-CLOUD"}, {"name": "m", "remote_host": "https://x"}],
)
def test_cloud_stubs_are_known(item: dict[str, str]) -> None:
    assert parse_tags(models(item), key_of)[0].is_cloud


def test_a_name_with_cloud_in_it_is_no_stub() -> None:
    assert not parse_tags(models({"name": "my-cloud-model"}), key_of)[0].is_cloud


def test_the_first_of_two_items_with_one_key_counts() -> None:
    entries = parse_tags(models({"name": "m", "digest": "1"}, {"name": "M:LATEST", "digest": "2"}), key_of)
    assert [entry.digest for entry in entries] == ["1"]


def test_a_list_without_end_is_cut() -> None:
    body = models(*({"name": f"m{number}"} for number in range(ITEMS_MAX + 5)))
    assert len(parse_tags(body, key_of)) == ITEMS_MAX


def test_listings_are_escaped_as_go_escapes() -> None:
    listing = parse_tags(b'{"models":[{"name":"m","x":"<&>\\u2028\\ud800\xc3\xa4"}]}', key_of)[0].listing
    assert listing == '{"name":"m","x":"\\u003c\\u0026\\u003e\\u2028\ufffdä"}'


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"7", b"{}", b'{"models":{}}', b"[" * 100_000, b'{"models":[NaN]}', b"\xff"]
)
def test_what_is_no_report_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedReport):
        parse_tags(body, key_of)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["models", "name", "model", "details", "modelfile", "model_info", "size"]), inner
        )
    ),
    max_leaves=20,
)


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises_anything_else(body: bytes) -> None:
    for parse in (parse_version, parse_show, lambda b: parse_tags(b, key_of), lambda b: parse_ps(b, key_of)):
        with suppress(MalformedReport):
            parse(body)


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(9000, 1, 1)),
    st.integers(-23 * 60, 23 * 60),
    st.integers(0, 999_999_999),
)
def test_times_are_read_with_any_offset(moment: datetime, offset_min: int, nanos: int) -> None:
    moment = moment.replace(microsecond=0, tzinfo=timezone(timedelta(minutes=offset_min)))
    text = moment.isoformat().replace("+", f".{nanos:09}+", 1)
    if offset_min < 0:
        head, _, offset = moment.isoformat().rpartition("-")
        text = f"{head}.{nanos:09}-{offset}"
    assert parse_time_s(text) == pytest.approx(moment.timestamp() + nanos / 1e9, abs=1e-4)


@pytest.mark.parametrize("text", ["", "0", "2026-13-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01 00:00:00Z"])
def test_other_times_are_unknown(text: str) -> None:
    assert parse_time_s(text) is None
