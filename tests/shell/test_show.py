"""`/api/show`: what probes have learnt answers it; a node is asked only where they have not, and none holds it up."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from router.control.shown import ShownBodies
from router.errors import NoNode, UpstreamFailed
from router.fleet.node import NodeSpec
from router.policy.access import EVERYBODY
from router.policy.alias import Aliases
from router.seams import NodeFailed
from router.server.catalog import Catalog
from router.server.show import NODES_ASKED_MAX, QUESTIONS_MAX, Shows
from router.simulation.catalog import RECORDED_MODELS, DiskModel
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wire.show import SHOW_BODY_BYTES_MAX, ShowBody, ShowWish
from router.wiring import Router
from tests.fakes.raw_client import exchange, post
from tests.fleet.builders import fleet, node
from tests.shell.clients import Answer, ask, scrape
from tests.shell.house import assert_at_rest, router_before, until

NAMES = [model.name for model in RECORDED_MODELS]


@asynccontextmanager
async def pool_and_router(
    nodes: int = 1, *, models: Sequence[DiskModel] = RECORDED_MODELS, **settings: Any
) -> AsyncIterator[tuple[SimulatedPool, Router]]:
    async with SimulatedPool(nodes=nodes, models=models) as pool, router_before(pool.nodes, **settings) as router:
        yield pool, router
        assert_at_rest(router)
        assert not any(node.server.failures for node in pool.nodes)


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a node showed is kept."""
    monkeypatch.setattr("router.control.keeper.SHOW_BYTES_MAX", 0)


def questions(node: SimulatedNode) -> int:
    return len(node.journal.to("/api/show"))


async def show(router: Router, model: str, **more: Any) -> Answer:
    return await ask(router, "/api/show", {"model": model, **more})


# from what is known


async def test_every_name_is_shown_as_its_node_shows_it_and_no_node_is_asked() -> None:
    """Also where several names share a manifest, of which a probe asked about one."""
    async with pool_and_router() as (pool, router):
        node = pool.nodes[0]
        own = {}
        for name in NAMES:
            own[name] = (await exchange(node.server.port, post("/api/show", json.dumps({"model": name}).encode()))).body
        asked = questions(node)
        for name in NAMES:
            answer = await show(router, name)
            assert (answer.status, answer.body) == (200, own[name])
            assert answer.headers["content-type"] == "application/json; charset=utf-8"
        assert questions(node) == asked


@pytest.mark.parametrize("body", [{"name": "gpt-4"}, {"model": "", "name": "GPT-4:Latest"}, {"Model": "library/gpt-4"}])
async def test_a_name_is_found_however_it_is_spelled(body: Mapping[str, str]) -> None:
    async with pool_and_router() as (_, router):
        answer = await ask(router, "/api/show", body)
        assert answer.body == (await show(router, "gpt-4:latest")).body


async def test_an_alias_is_shown_as_a_copy_of_its_target() -> None:
    async with pool_and_router(aliases={"fast": "gemma3:270m"}) as (_, router):
        alias, target = (await show(router, "fast")).json, (await show(router, "gemma3:270m")).json
        assert "# FROM fast:latest\n" in alias["modelfile"]
        assert alias == {**target, "modelfile": target["modelfile"].replace("# FROM gemma3:270m", "# FROM fast:latest")}


async def test_what_is_known_is_shown_whatever_has_become_of_the_nodes() -> None:
    async with pool_and_router(3) as (pool, router):
        await pool.nodes[0].crash()
        for node in pool.nodes[1:]:
            await node.set_fault("hang")
        for name in NAMES:
            assert (await show(router, name)).status == 200


async def test_what_has_no_room_goes_and_the_least_asked_goes_first() -> None:
    bodies = ShownBodies(20)
    for digest in "abc":
        bodies.keep(digest, ShowBody(digest, b"x" * 6))
    assert bodies.get("a") is not None
    bodies.keep("d", ShowBody("d", b"x" * 6))
    assert [bodies.get(digest) is not None for digest in "abcd"] == [True, False, True, True]
    bodies.keep("a", ShowBody("a", b"x" * 21))
    assert bodies.get("a") is None, "larger than all room"
    bodies.keep("", ShowBody("", b"x"))
    assert bodies.get("") is None
    assert repr(bodies) == "<ShownBodies 2 manifests | 12 bytes>"


# from a node


@pytest.mark.usefixtures("forgetful")
async def test_one_node_is_asked_where_nothing_is_kept() -> None:
    async with pool_and_router(3) as (pool, router):
        asked = sum(map(questions, pool.nodes))
        assert (await show(router, "gemma3:270m")).status == 200
        assert sum(map(questions, pool.nodes)) == asked + 1


@pytest.mark.usefixtures("forgetful")
async def test_a_node_that_hangs_is_given_up_and_another_one_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.show.NODE_S", 0.05)
    async with pool_and_router(2) as (pool, router):
        first, second = pool.nodes
        await first.set_fault("hang", path="/api/show")
        asked = questions(first), questions(second)
        assert (await show(router, "gemma3:270m")).status == 200
        assert (questions(first), questions(second)) == (asked[0] + 1, asked[1] + 1)
        await second.set_fault("hang", path="/api/show")
        answer = await show(router, "gemma3:270m")
        assert (answer.status, answer.refused) == (503, "no_node")
        assert answer.headers["retry-after"] == "2"


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(("fault", "argument"), [("malformed", ""), ("status", 404), ("status", 500)])
async def test_a_node_that_fails_is_not_the_only_one(fault: str, argument: object) -> None:
    async with pool_and_router(2) as (pool, router):
        await pool.nodes[0].set_fault(fault, argument, path="/api/show")
        assert (await show(router, "gemma3:270m")).status == 200


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize(
    ("fault", "argument", "status", "text"),
    [
        ("malformed", "", 503, "no node that has 'gemma3:270m' tells about it now, please try again"),
        ("status", 404, 404, "model 'gemma3:270m' not found"),
        ("status", 500, 502, "no node tells about 'gemma3:270m': llama-server process has terminated: signal: killed"),
    ],
)
async def test_when_no_node_tells_the_client_hears_why(fault: str, argument: object, status: int, text: str) -> None:
    async with pool_and_router(2) as (pool, router):
        for node in pool.nodes:
            await node.set_fault(fault, argument, path="/api/show")
        answer = await show(router, "gemma3:270m")
        assert (answer.status, answer.json) == (status, {"error": text})


@pytest.mark.usefixtures("forgetful")
async def test_a_model_whose_nodes_are_all_down_is_not_denied() -> None:
    async with pool_and_router() as (pool, router):
        await pool.nodes[0].crash()
        await until(lambda: router.keeper.snapshot.nodes["sim-1"].health.value == "down")
        answer = await show(router, "gemma3:270m")
        assert (answer.status, answer.refused) == (503, "no_node")
        assert answer.json == {"error": "no node that has 'gemma3:270m' is up"}


@pytest.mark.parametrize(
    "more", [{"verbose": True}, {"system": "Be brief"}, {"options": {"num_ctx": 4096}, "verbose": True}]
)
async def test_what_makes_another_answer_is_asked_of_a_node_each_time(more: Mapping[str, Any]) -> None:
    async with pool_and_router(aliases={"fast": "gemma3:270m"}) as (pool, router):
        node = pool.nodes[0]
        for count in (1, 2):
            asked = questions(node)
            answer = await show(router, "fast", **more)
            assert (answer.status, questions(node)) == (200, asked + 1), count
            assert json.loads(node.journal.to("/api/show")[-1].body) == {**more, "model": "gemma3:270m"}
            assert "# FROM fast:latest" in answer.json["modelfile"]


# what is refused


@pytest.mark.parametrize(
    ("model", "status", "text", "reason"),
    [
        ("nope", 404, "model 'nope:latest' not found", "model_not_found"),
        ("a b", 400, "invalid model name", "invalid"),
        (
            "deep:cloud",
            403,
            "cloud models are switched off here: they spend the account of the node's owner",
            "cloud",
        ),
    ],
)
async def test_a_refusal_has_ollamas_words_and_is_counted(model: str, status: int, text: str, reason: str) -> None:
    stub = replace(RECORDED_MODELS[0], name="deep:cloud", digest="c" * 64, is_cloud=True)
    async with pool_and_router(models=(*RECORDED_MODELS, stub)) as (_, router):
        answer = await show(router, model)
        assert (answer.status, answer.json, answer.refused) == (status, {"error": text}, reason)
        assert (await scrape(router)).value("rejections_total", reason=reason) == 1


async def test_a_cloud_model_is_told_of_where_the_cloud_is_on() -> None:
    stub = replace(RECORDED_MODELS[0], name="deep:cloud", digest="c" * 64, is_cloud=True)
    async with pool_and_router(models=(*RECORDED_MODELS, stub), cloud={"enabled": True}) as (_, router):
        answer = await show(router, "deep:cloud")
        assert (answer.status, answer.refused) == (200, "")


async def test_a_question_that_is_too_large_is_refused() -> None:
    async with pool_and_router() as (_, router):
        answer = await show(router, "gemma3:270m", system="x" * SHOW_BODY_BYTES_MAX)
        assert (answer.status, answer.refused) == (413, "too_large")


# many at once


class Gate:
    """A node that tells when it is told to."""

    def __init__(self, body: bytes = b'{"modelfile":""}') -> None:
        self.opened = asyncio.Event()
        self.body = body
        self.asked = 0

    async def show(self, node: NodeSpec, model: str, more: Mapping[str, object]) -> bytes:
        self.asked += 1
        await self.opened.wait()
        return self.body


def shows_of(api: Gate, nodes: int = 1, bytes_max: int = 1024) -> Shows:
    snapshot = fleet(*(node(f"n{number}", disk="m:1b") for number in range(nodes)))
    catalog = Catalog(lambda: snapshot, Aliases)
    return Shows(api, ShownBodies(bytes_max), catalog, lambda: snapshot, lambda: False)


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_many_who_want_to_know_at_once_are_one_question_and_the_first_may_leave() -> None:
    api = Gate()
    shows = shows_of(api)
    asking = [asyncio.create_task(shows.answer(ShowWish("m:1b", {}), EVERYBODY)) for _ in range(20)]
    await turns()
    asking[0].cancel()
    await turns()
    assert api.asked == 1
    api.opened.set()
    assert await asyncio.gather(*asking[1:]) == [api.body] * 19
    assert await shows.answer(ShowWish("m:1b", {}), EVERYBODY) == api.body
    assert api.asked == 1, "it was kept"


async def test_questions_beyond_their_number_wait_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.show.QUESTION_S", 0.05)
    api = Gate()
    shows = shows_of(api)
    verbose = ShowWish("m:1b", {"verbose": True})
    asking = [asyncio.create_task(shows.answer(verbose, EVERYBODY)) for _ in range(QUESTIONS_MAX + 1)]
    await turns()
    assert api.asked == QUESTIONS_MAX
    results = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(result) for result in results} == {NoNode}


async def test_no_more_than_a_few_nodes_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.show.NODE_S", 0.01)
    api = Gate()
    with pytest.raises(NoNode):
        await shows_of(api, nodes=NODES_ASKED_MAX + 2).answer(ShowWish("m:1b", {}), EVERYBODY)
    assert api.asked == NODES_ASKED_MAX


async def test_an_answer_that_is_no_object_is_none() -> None:
    api = Gate(b"<html>")
    api.opened.set()
    with pytest.raises(UpstreamFailed, match="no JSON object"):
        await shows_of(api).answer(ShowWish("m:1b", {}), EVERYBODY)


async def test_questions_end_with_the_process() -> None:
    shows = shows_of(Gate())
    asking = asyncio.create_task(shows.answer(ShowWish("m:1b", {}), EVERYBODY))
    await turns()
    await shows.close()
    with suppress(asyncio.CancelledError, NodeFailed):
        await asking
    assert asking.done()
