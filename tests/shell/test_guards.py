"""Options of one client do not reload or unload what others share."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.tickets import Lease
from router.settings import node_specs
from router.simulation.facts import Event
from router.simulation.pool import SimulatedPool
from router.upstream.access import AccessBook
from router.upstream.errand import KEEP_ALIVE_MIN_S, Guards, splices_of
from router.upstream.node_api import HttpNodeApi
from router.wire.endpoints import BY_PATH
from router.wire.intent import Intent, read_intent
from router.wire.splice import apply
from router.wiring import SystemClock
from tests.fakes.recordings import recording
from tests.shell.clients import ask
from tests.shell.house import router_before, settings_for, until
from tests.shell.scenes import COLD, QUICK, holding, is_loading, let_load_finish, pool_of

GENERATE = BY_PATH["/api/generate"]
DEFAULT_CTX = 4096
MAX_S = 1800.0


def lease(num_ctx: int) -> Lease:
    return Lease("1", "1", 1, QUICK, "a", "w", num_ctx)


def sent(body: bytes, *, loaded_ctx: int = 0, copy_ctx: int = DEFAULT_CTX, max_s: float = MAX_S) -> Intent:
    """What the node reads of this body."""
    intent = read_intent(GENERATE, body, content_type="", content_encoding="")
    splices = splices_of(GENERATE, intent, lease(copy_ctx), Guards(False, max_s, loaded_ctx), is_alias=False)
    spliced = b"".join(apply(intent.body, splices))
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
