"""Options of one client do not reload or unload what others share."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from router.fleet.tickets import Lease
from router.simulation.facts import Event
from router.simulation.pool import SimulatedPool
from router.upstream.errand import Guards, splices_of
from router.wire.endpoints import BY_PATH
from router.wire.intent import Intent, read_intent
from router.wire.splice import apply
from tests.fakes.recordings import recording
from tests.shell.clients import ask
from tests.shell.house import router_before
from tests.shell.scenes import COLD, QUICK, holding, pool_of

GENERATE = BY_PATH["/api/generate"]
DEFAULT_CTX = 4096
MAX_S = 1800.0


def lease(num_ctx: int) -> Lease:
    return Lease("1", "1", 1, QUICK, "a", "w", num_ctx)


def sent(body: bytes, *, loaded_ctx: int = 0, copy_ctx: int = DEFAULT_CTX) -> Intent:
    """What the node reads of this body."""
    intent = read_intent(GENERATE, body, content_type="", content_encoding="")
    splices = splices_of(GENERATE, intent, lease(copy_ctx), Guards(False, MAX_S, loaded_ctx), is_alias=False)
    spliced = b"".join(apply(intent.body, splices))
    json.loads(spliced)
    return read_intent(GENERATE, spliced, content_type="", content_encoding="")


options = st.dictionaries(st.sampled_from(["num_ctx", "seed", "num_predict"]), st.integers(1, DEFAULT_CTX), max_size=3)
members = st.lists(
    st.one_of(
        st.tuples(st.just("options"), options),
        st.tuples(st.just("keep_alive"), st.sampled_from([0, "0s", "5m", -1, 7200, "3h"])),
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
    assert keep_alive_s is None or 0 < keep_alive_s <= MAX_S


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
