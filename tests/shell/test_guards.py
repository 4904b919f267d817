"""Options of one client do not reload or unload what others share."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.reports import parse_tags
from router.fleet.tickets import Lease
from router.policy.alias import AS_SENT, Overrides
from router.policy.guard import KEEP_ALIVE_MIN_S, Guards
from router.policy.splices import changes_of
from router.settings import node_specs
from router.simulation.catalog import model_of
from router.simulation.facts import Event
from router.simulation.pool import SimulatedPool
from router.upstream.access import AccessBook
from router.upstream.node_api import HttpNodeApi
from router.wire.endpoints import BY_PATH
from router.wire.intent import Intent, read_intent
from router.wire.names import key_of
from router.wire.splice import apply
from router.wiring import Router, SystemClock
from tests.fakes.recordings import recording
from tests.fakes.replay import ReplayNode, said
from tests.policy.test_placement import line, placed
from tests.shell.clients import ask, get, scrape
from tests.shell.house import router_before, settings_for, until
from tests.shell.scenes import COLD, QUICK, asked, holding, is_loading, let_load_finish, pool_of

CLOUD = "gpt-oss:120b-cloud"
CLOUD_TAGS = b'{"models":[{"name":"gpt-oss:120b-cloud","digest":"c0","remote_host":"https://ollama.com:443"}]}'
GENERATE = BY_PATH["/api/generate"]
DEFAULT_CTX = 4096
MAX_S = 1800.0


def lease(num_ctx: int) -> Lease:
    return Lease("1", "1", 1, QUICK, "a", "w", num_ctx)


def sent(
    body: bytes,
    *,
    loaded_ctx: int = 0,
    copy_ctx: int = DEFAULT_CTX,
    max_s: float = MAX_S,
    overrides: Overrides = AS_SENT,
) -> Intent:
    """What the node reads of this body."""
    guards = Guards(keep_alive_max_s=max_s)
    intent = read_intent(GENERATE, body, content_type="", content_encoding="")
    changes = changes_of(
        GENERATE, intent, lease(copy_ctx), guards, is_alias=False, overrides=overrides, loaded_ctx=loaded_ctx
    )
    spliced = b"".join(apply(intent.body, changes.splices))
    json.loads(spliced)
    return read_intent(GENERATE, spliced, content_type="", content_encoding="")


options = st.dictionaries(st.sampled_from(["num_ctx", "seed", "num_predict"]), st.integers(1, DEFAULT_CTX), max_size=3)
members = st.lists(
    st.one_of(
        st.tuples(st.just("options"), options),
        st.tuples(st.just("keep_alive"), st.sampled_from([0, "0s", "1ms", 0.00001, "59s", "5m", -1, 7200, "3h"])),
        st.tuples(st.sampled_from(["prompt", "system"]), st.text(max_size=5)),
    ),
    max_size=5,
)


def body_of(pairs: list[tuple[str, object]]) -> bytes:
    written = [f"{json.dumps(key)}:{json.dumps(value)}" for key, value in [("model", QUICK), *pairs]]
    return ("{" + ",".join(written) + "}").encode()


@given(members)
def test_no_smaller_context_reaches_a_copy_with_its_default_one(pairs: list[tuple[str, object]]) -> None:
    assert sent(body_of(pairs)).num_ctx in (None, DEFAULT_CTX)


@given(members)
def test_a_copy_loaded_with_a_context_of_its_own_is_always_asked_with_that_one(pairs: list[tuple[str, object]]) -> None:
    assert sent(body_of(pairs), loaded_ctx=16384, copy_ctx=16384).num_ctx == 16384


@given(members)
def test_keep_alive_neither_unloads_nor_pins_beyond_the_limit(pairs: list[tuple[str, object]]) -> None:
    keep_alive_s = sent(body_of(pairs)).keep_alive_s
    assert keep_alive_s is None or KEEP_ALIVE_MIN_S <= keep_alive_s <= MAX_S


def test_a_limit_below_a_second_does_not_turn_into_an_unload() -> None:
    assert sent(body_of([("keep_alive", "5m")]), max_s=0.5).keep_alive_s == 1.0


def test_an_operators_limit_below_the_floor_still_counts() -> None:
    assert sent(body_of([("keep_alive", "30s")]), max_s=10.0).keep_alive_s == 10.0
    assert sent(body_of([("keep_alive", "10s")]), max_s=10.0).keep_alive_s == 10.0
    assert sent(body_of([("keep_alive", "9s")]), max_s=10.0).keep_alive_s is None


@pytest.mark.parametrize(
    ("asked_s", "written"), [(0.00001, b'"1s"'), (90.5, b'"91s"'), (3.6e6, b'"3600000s"'), (float("inf"), b"-1")]
)
async def test_a_load_writes_keep_alive_in_words_that_ollama_reads(asked_s: float, written: bytes) -> None:
    async with (
        pool_of(1) as pool,
        HttpNodeApi(SystemClock(), connect_s=5.0, timeout_s=5.0, access=AccessBook().of) as api,
    ):
        (spec,) = node_specs(settings_for(pool.nodes))
        await api.load(spec, QUICK, 0, asked_s)
        assert b'"keep_alive": ' + written in pool.nodes[0].journal.calls[-1].body


async def test_native_calls_with_and_without_a_context_share_one_load() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        for options in ({"num_ctx": 16384}, {}, {"num_ctx": 8192}, {"num_ctx": 16384}, {"temperature": 0.5}):
            answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?", "options": options})
            assert answer.status == 200
        assert loads(pool) == 1


async def test_a_larger_context_than_the_loaded_one_is_refused_with_a_word_on_what_to_do() -> None:
    async with holding(1, QUICK) as (pool, router):
        answer = await ask(
            router, "/api/generate", {"model": QUICK, "prompt": "Why?", "options": {"num_ctx": 2 * DEFAULT_CTX}}
        )
        assert (answer.status, answer.refused) == (400, "num_ctx")
        assert f"ask for at most {DEFAULT_CTX}" in answer.json["error"]
        assert loads(pool) == 1


async def test_keep_alive_zero_unloads_nothing_under_the_others() -> None:
    async with holding(1, QUICK) as (pool, router):
        for _ in range(2):
            answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?", "keep_alive": 0})
            assert answer.status == 200
        assert loads(pool) == 1


async def test_keep_alive_of_a_moment_unloads_nothing_under_the_others() -> None:
    async with holding(1, QUICK) as (pool, router):
        answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?", "keep_alive": "1ms"})
        assert answer.status == 200
        assert (await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?"})).status == 200
        assert pool.nodes[0].journal.counts[Event.EXPIRED] == 0
        assert loads(pool) == 1


@pytest.mark.parametrize("keep_alive", [0.00001, "10us", "1000h"])
async def test_no_keep_alive_of_one_client_fails_the_load_for_the_line(keep_alive: object) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, guard={"keep_alive_max": "1000h"}) as router:
        answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?", "keep_alive": keep_alive})
        assert answer.status == 200
        assert loads(pool) == 1


async def test_an_unload_is_answered_as_ollama_does_and_neither_obeyed_nor_turned_into_a_load() -> None:
    async with holding(1, QUICK) as (pool, router):
        for path, members, recorded in (
            ("/api/generate", {}, "native/unload"),
            ("/api/chat", {"messages": []}, "native/load-chat"),
            ("/api/embed", {}, "native/embed-load"),
        ):
            answer = await ask(router, path, {"model": QUICK, "keep_alive": 0, **members})
            like = json.loads(recording(recorded).response.body)
            assert (answer.status, list(answer.json)) == (200, list(like))
            assert answer.json.get("done_reason", "unload") == "unload"
        assert pool.nodes[0].journal.counts[Event.EXPIRED] == 0
        await ask(router, "/api/generate", {"model": COLD, "keep_alive": 0})
        assert loads(pool) == 1


# the other modes, and what is counted


async def counted(router: Router) -> dict[tuple[str, str], float]:
    page = await scrape(router)
    samples = page.families["ollama_router_guard"].samples
    return {(each.labels["option"], each.labels["action"]): each.value for each in samples}


@pytest.mark.parametrize(
    ("guard", "members", "refused"),
    [
        ({"num_ctx": "reject"}, {"options": {"num_ctx": 2048}}, "num_ctx"),
        ({"num_ctx": "reject"}, {"options": {"num_ctx": 0}}, "num_ctx"),
        ({"num_ctx": "reject"}, {"options": {"num_ctx": 8192}}, "num_ctx"),
        ({"num_ctx": "protect"}, {"options": {"num_ctx": 8192}}, "num_ctx"),
        ({"num_ctx": "reject"}, {"options": {"num_batch": 8, "use_mmap": True}}, "options"),
        ({"num_ctx": "reject"}, {"shift": False}, "options"),
        ({"keep_alive": "reject"}, {"keep_alive": "5m"}, "keep_alive"),
        ({"keep_alive": "reject"}, {"keep_alive": 0}, "keep_alive"),
    ],
)
async def test_what_is_refused_is_a_400_that_says_what_to_leave_out(
    guard: dict[str, str], members: dict[str, object], refused: str
) -> None:
    async with holding(1, QUICK, guard=guard) as (pool, router):
        answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?", **members})
        assert answer.status == 400
        assert answer.refused == ("invalid" if refused == "keep_alive" else "num_ctx")
        assert "leave" in answer.json["error"]
        assert await counted(router) == {(refused, "refused"): 1}
        assert asked(pool.nodes[0]) == 0


@pytest.mark.parametrize(
    "members",
    [
        {"options": {"num_ctx": DEFAULT_CTX}},
        {"options": {"num_gpu": -1, "use_mmap": None}},
        {"options": {"temperature": 0.5}},
        {"shift": True},
        {"keep_alive": None},
    ],
)
async def test_what_changes_nothing_is_not_refused(members: dict[str, object]) -> None:
    async with holding(1, QUICK, guard={"num_ctx": "reject", "keep_alive": "reject"}) as (_, router):
        answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?", **members})
        assert answer.status == 200
        assert await counted(router) == {}


async def test_what_passes_is_what_was_sent() -> None:
    members = {"options": {"num_batch": 8, "num_ctx": 2048}, "shift": False, "keep_alive": "24h"}
    async with holding(1, QUICK, guard={"num_ctx": "pass", "keep_alive": "pass"}) as (pool, router):
        call = {"model": QUICK, "prompt": "Why?", **members}
        assert (await ask(router, "/api/generate", call)).status == 200
        (seen,) = [seen.body for seen in pool.nodes[0].journal.calls if b'"prompt"' in seen.body]
        assert json.loads(seen) == call
        assert await counted(router) == {
            ("num_ctx", "passed"): 1,
            ("options", "passed"): 1,
            ("keep_alive", "passed"): 1,
        }


async def test_what_a_guard_does_is_counted_once_for_each_call() -> None:
    async with holding(1, QUICK) as (pool, router):
        for members in (
            {"options": {"num_batch": 8, "num_gpu": 1}, "keep_alive": "24h"},
            {"options": {"num_ctx": 2048}, "keep_alive": 1},
            {"options": {"num_ctx": DEFAULT_CTX}, "keep_alive": "10m"},
        ):
            answer = await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?", **members})
            assert answer.status == 200
        assert (await ask(router, "/api/generate", {"model": QUICK, "keep_alive": 0})).status == 200
        assert await counted(router) == {
            ("options", "cut"): 1,
            ("keep_alive", "clamped"): 1,
            ("num_ctx", "cut"): 1,
            ("keep_alive", "cut"): 1,
            ("unload", "ignored"): 1,
        }
        assert loads(pool) == 1


reloading = st.dictionaries(
    st.sampled_from(["num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict", "num_ctx"]),
    st.integers(-1, 9),
)


@given(st.lists(st.tuples(st.sampled_from(["options", "Options", "shift"]), reloading | st.just(False)), max_size=4))
def test_no_option_that_reloads_reaches_a_node_however_often_it_is_said(pairs: list[tuple[str, object]]) -> None:
    kept = [(key, value) for key, value in pairs if (key == "shift") == (value is False)]
    assert sent(body_of(kept)).reload_names == ()


@given(members, st.none() | st.just(0.25), st.none() | st.sampled_from([DEFAULT_CTX, 2048]))
def test_an_override_is_what_the_node_reads_whatever_the_client_said(
    pairs: list[tuple[str, object]], temperature: float | None, num_ctx: int | None
) -> None:
    read = sent(body_of(pairs), overrides=Overrides(temperature, num_ctx), copy_ctx=0)
    said = [json.loads(read.body[span.start : span.end]) for span in read.num_ctx_values]
    assert num_ctx is None or (read.num_ctx == num_ctx and said[-1] == num_ctx)
    assert temperature is None or b'"temperature":0.25' in read.body


# cloud stubs


def cloud_pool() -> SimulatedPool:
    return pool_of(1, models=(replace(model_of(CLOUD, gib=0.1, load_s=0), is_cloud=True),))


async def test_cloud_models_are_refused_unless_switched_on() -> None:
    async with cloud_pool() as pool, router_before(pool.nodes) as router:
        answer = await ask(router, "/api/generate", {"model": CLOUD, "prompt": "Why?"})
        assert (answer.status, answer.refused) == (403, "cloud")


async def test_cloud_models_are_always_ready_within_their_slots_and_never_loaded() -> None:
    async with (
        ReplayNode("a", (said(200, b'{"done":true}'),)) as node,
        router_before([node], cloud={"enabled": True, "slots": 3}, probe={"interval_s": 100}) as router,
    ):
        listing = (await get(router.port, "/api/ps")).body
        tags = parse_tags(CLOUD_TAGS, key_of)
        await router.keeper.saw_tags("a", tags)
        (row,) = router.keeper.snapshot.holding(CLOUD).ready.rows
        assert (row.slots, row.vram_bytes, row.is_cloud) == (3, 0, True)
        assert placed(router.keeper.snapshot, line(CLOUD)) == ()
        answer = await ask(router, "/api/generate", {"model": CLOUD, "prompt": "Why?", "stream": False})
        assert (answer.status, answer.node) == (200, "a")
        assert (await get(router.port, "/api/ps")).body == listing
        await router.keeper.saw_tags("a", ())
        assert not router.keeper.snapshot.is_known(CLOUD)


def loads(pool: SimulatedPool) -> int:
    return pool.loads_started


async def test_a_route_that_cannot_name_a_context_waits_for_a_load_of_ours_and_reloads_nothing_itself() -> None:
    """A copy loaded with a named context reloads for whoever names none, and dies with the client that made it load."""
    chat = {"model": QUICK, "messages": [{"role": "user", "content": "Why?"}]}
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        native = {"model": QUICK, "prompt": "Why?", "options": {"num_ctx": 16384}}
        assert (await ask(router, "/api/generate", native)).status == 200
        assert (await ask(router, "/v1/chat/completions", chat)).status == 200
        own = [
            seen for seen in pool.nodes[0].journal.calls if seen.path == "/api/generate" and b"prompt" not in seen.body
        ]
        assert (len(own), loads(pool)) == (2, 2), "each load was asked for by the router"
        answer = await ask(router, "/api/generate", native)
        assert (answer.status, answer.refused) == (400, "num_ctx"), "it would reload what the others share"
        assert (await ask(router, "/v1/chat/completions", chat)).status == 200
        assert loads(pool) == 2


async def test_a_cold_model_that_both_kinds_wait_for_is_loaded_once_with_the_nodes_own_context() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        calls = [
            ask(router, "/api/generate", {"model": COLD, "prompt": "Why?", "options": {"num_ctx": 2048}}),
            ask(router, "/v1/chat/completions", {"model": COLD, "messages": [{"role": "user", "content": "Why?"}]}),
        ]
        served = asyncio.gather(*calls)
        await until(lambda: is_loading(pool.nodes[0]) and len(router.pipeline.live) == 2)
        let_load_finish(pool.nodes[0])
        await until(lambda: served.done() or is_loading(pool.nodes[0]))
        if not served.done():  # the native call came first, and its load began before the other stood in line
            let_load_finish(pool.nodes[0])
        assert [answer.status for answer in await served] == [200, 200]
