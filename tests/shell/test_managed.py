"""placement.mode managed, from outside: declared copies come, stay, come back, and make way for few."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from router.fleet.node import Health
from router.policy.declared import FOREVER_FROM_S
from router.simulation.facts import GIB, NodeLimits
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wire.names import parse_name
from router.wiring import Router
from tests.shell.clients import Client, ask, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import (
    COLD,
    ENDLESS,
    MODELS,
    QUICK,
    TWIN,
    is_loading,
    let_load_finish,
    load_into,
    no_bugs,
    pool_of,
    ready_on,
)
from tests.shell.test_admin import told
from tests.shell.test_teams import KEY, teams


def managed(*models: dict[str, Any]) -> dict[str, Any]:
    return {"mode": "managed", "models": list(models)}


def one_card(gib: float = 1.6) -> SimulatedPool:
    """A node whose memory holds one of the models, and says so."""
    return SimulatedPool(nodes=1, models=MODELS, limits=NodeLimits(vram_bytes=int(gib * GIB)))


def with_vram(pool: SimulatedPool, gib: float = 1.6) -> list[dict[str, Any]]:
    return [{"url": node.url, "name": node.name, "vram_gib": gib} for node in pool.nodes]


def in_memory(node: SimulatedNode) -> set[str]:
    return {parse_name(copy.name).display for copy in node.model.copies.values()}


def control_calls(pool: SimulatedPool) -> int:
    """Loads, renewals and unloads asked of all nodes."""
    return sum(len(node.journal.to("/api/generate")) for node in pool.nodes)


def stands(router: Router, model: str = QUICK) -> bool:
    key = parse_name(model).key
    return any(one.declaration.key == key and one.lack is None for one in router.placer.declarations.standings)


def is_kept(router: Router, model: str = QUICK) -> bool:
    rows = router.keeper.snapshot.holding(parse_name(model).key).ready.rows
    return bool(rows) and all(FOREVER_FROM_S <= row.expires_at_s < float("inf") for row in rows)


async def passes(router: Router, count: int = 5) -> None:
    """So many looks of the placer, each after a probe of every node."""
    for _ in range(count):
        seen_s = router.placer.experience.at_s
        router.keeper.wake_placer()
        await until(lambda seen_s=seen_s: router.placer.experience.at_s > seen_s)  # type: ignore[misc]


async def test_declared_copies_are_in_memory_before_anybody_calls_and_then_the_nodes_are_left_alone() -> None:
    async with (
        pool_of(3) as pool,
        router_before(pool.nodes, placement=managed({"name": QUICK, "copies": 2})) as router,
    ):
        await until(lambda: stands(router) and is_kept(router))
        assert ready_on(router, QUICK) == 2
        asked = control_calls(pool)
        await passes(router)
        assert (control_calls(pool), pool.loads_started) == (asked, 2)
        page = await scrape(router)
        assert page.value("model_loads_total", model=QUICK, reason="copy", result="ok") == 2
        assert page.value("model_copies", model=QUICK, kind="declared") == 2
        assert page.value("model_copies", model=QUICK, kind="standing") == 2
        assert no_bugs(pool)
        assert_at_rest(router)


async def test_what_was_in_memory_before_is_kept_where_it_is() -> None:
    async with pool_of(2) as pool:
        load_into(pool.nodes[1], QUICK)
        async with router_before(pool.nodes, placement=managed({"name": QUICK})) as router:
            await until(lambda: stands(router) and is_kept(router))
            assert pool.loads_started == 1
            assert (await scrape(router)).value("model_loads_total", reason="renew", result="ok") == 1


async def test_a_node_that_starts_again_gets_its_copies_back_without_a_call() -> None:
    async with (
        pool_of(2) as pool,
        router_before(pool.nodes, placement=managed({"name": QUICK, "copies": 2, "pin": True})) as router,
    ):
        await until(lambda: stands(router))
        node = pool.nodes[0]
        await node.crash()
        await until(lambda: router.keeper.snapshot.nodes[node.name].health is Health.DOWN)
        await until(lambda: not stands(router))
        assert (await told(router, "/admin/models"))["models"] != []
        await node.restart()
        await until(lambda: stands(router) and bool(node.model.copies))
        page = await scrape(router)
        assert page.value("model_loads_total", node=node.name, reason="rewarm", result="ok") == 1


@pytest.mark.parametrize("pin", [True, False])
async def test_neither_an_unload_nor_a_keep_alive_of_a_client_takes_a_declared_copy_out_of_memory(pin: bool) -> None:
    settings: dict[str, Any] = {"teams": teams(may_unload=True), "guard": {"keep_alive": "pass"}}
    placement = managed({"name": QUICK, "pin": pin})
    async with pool_of(1) as pool, router_before(pool.nodes, placement=placement, **settings) as router:
        await until(lambda: stands(router) and is_kept(router))
        unload = await ask(router, "/api/generate", {"model": QUICK, "keep_alive": 0}, x_api_key=KEY)
        assert (unload.status, unload.json["done_reason"]) == (200, "unload")
        answer = await ask(
            router, "/api/generate", {"model": QUICK, "prompt": "?", "keep_alive": 0, "stream": False}, x_api_key=KEY
        )
        assert answer.status == 200
        await passes(router)
        assert is_kept(router)
        assert pool.loads_started == 1
        assert (await scrape(router)).value("guard_total", option="keep_alive", action="cut") == 1


async def test_a_keep_alive_under_another_name_of_the_same_weights_is_left_out_too() -> None:
    async with (
        pool_of(1) as pool,
        router_before(pool.nodes, placement=managed({"name": ENDLESS}), guard={"keep_alive": "pass"}) as router,
    ):
        await until(lambda: stands(router, ENDLESS))
        async with Client(router.port) as client:
            client.send("/api/generate", {"model": TWIN, "prompt": "?", "keep_alive": 0})
            await client.first(b'"response"')
        bodies = [json.loads(seen.body) for seen in pool.nodes[0].journal.to("/api/generate")]
        assert [body.get("keep_alive") for body in bodies if "prompt" in body] == [None]


async def test_a_pin_takes_the_memory_of_an_idle_model_which_is_unloaded_for_it() -> None:
    async with one_card() as pool:
        load_into(pool.nodes[0], QUICK)
        placement = managed({"name": ENDLESS, "pin": True})
        async with router_before(pool.nodes, nodes=with_vram(pool), placement=placement) as router:
            await until(lambda: stands(router, ENDLESS))
            assert in_memory(pool.nodes[0]) == {ENDLESS}
            bodies = [json.loads(seen.body) for seen in pool.nodes[0].journal.to("/api/generate")]
            assert [(body["model"], body["keep_alive"]) for body in bodies] == [(QUICK, 0), (ENDLESS, -1)]


async def test_calls_for_another_model_never_displace_a_pin_and_are_told_why_they_wait() -> None:
    placement = managed({"name": ENDLESS, "pin": True})
    line = {"max_wait_s": 1.0}
    async with (
        one_card() as pool,
        router_before(pool.nodes, nodes=with_vram(pool), placement=placement, line=line) as router,
    ):
        await until(lambda: stands(router, ENDLESS))
        call = asyncio.create_task(generate(router, QUICK))
        await until(lambda: router.pipeline.live != set())
        await passes(router)
        explained = await told(router, f"/admin/explain?model={QUICK}")
        assert explained["candidates"][0]["why"] == ["on disk; pinned copies fill the memory that it would need"]
        assert ((await call).status, (await call).refused) == (503, "queue_timeout")
        assert in_memory(pool.nodes[0]) == {ENDLESS}
        assert pool.loads_started == 1


async def test_calls_go_before_a_minimum_that_is_not_pinned_and_it_comes_back_when_nobody_needs_its_memory() -> None:
    placement = managed({"name": ENDLESS})
    async with one_card() as pool, router_before(pool.nodes, nodes=with_vram(pool), placement=placement) as router:
        await until(lambda: stands(router, ENDLESS))
        assert (await generate(router, QUICK)).status == 200
        assert in_memory(pool.nodes[0]) == {QUICK}
        await until(lambda: [str(one.lack) for one in router.placer.declarations.standings] == ["in_use"])
        (told_of,) = [one for one in (await told(router, "/admin/models"))["models"] if one["model"] == ENDLESS]
        assert told_of["declared"]["lack"] == "in_use"
        assert pool.nodes[0].journal.loads_started == 2


async def test_views_say_what_is_declared_what_stands_and_why_it_does_not() -> None:
    placement = managed({"name": QUICK, "pin": True, "nodes": ["sim-2"]}, {"name": "absent:1b", "copies": 2})
    async with pool_of(2) as pool, router_before(pool.nodes, placement=placement) as router:
        await until(lambda: stands(router) and len(router.placer.declarations.standings) == 2)
        models = {one["model"]: one["declared"] for one in (await told(router, "/admin/models"))["models"]}
        assert models[QUICK] == {
            "copies": 1,
            "is_pinned": True,
            "preferred": ["sim-2"],
            "standing": ["sim-2"],
            "loading": [],
            "lack": None,
            "text": "",
        }
        assert models["absent:1b"]["lack"] == "not_on_disk"
        assert models["absent:1b"]["text"].startswith("0 of 2 declared copies of absent:1b stand")
        assert models[COLD] is None
        nodes = {one["name"]: one["copies"] for one in (await told(router, "/admin/nodes"))["nodes"]}
        assert [(copy["is_declared"], copy["is_pinned"]) for copy in nodes["sim-2"]] == [(True, True)]
        explained = await told(router, f"/admin/explain?model={QUICK}")
        assert "pinned here" in explained["candidates"][0]["why"]
        absent = await told(router, "/admin/explain?model=absent:1b")
        assert absent["notes"] == [models["absent:1b"]["text"]]
        page = await scrape(router)
        assert page.value("model_copies", model="absent:1b", kind="standing") == 0


async def test_a_mode_that_keeps_nothing_touches_no_node_and_says_so() -> None:
    for mode in ("observe", "on_demand"):
        placement = {**managed({"name": QUICK}), "mode": mode}
        async with pool_of(1) as pool, router_before(pool.nodes, placement=placement) as router:
            await passes(router)
            assert control_calls(pool) == 0
            (declared,) = [
                one["declared"] for one in (await told(router, "/admin/models"))["models"] if one["declared"]
            ]
            assert declared["lack"] == "not_managed"


async def test_a_declared_load_that_runs_is_waited_for_and_a_failed_one_is_not_repeated_at_once() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, placement=managed({"name": COLD})) as router:
        node = pool.nodes[0]
        await until(lambda: is_loading(node))
        call = asyncio.create_task(generate(router, COLD, stream=False))
        await until(lambda: router.pipeline.live != set())
        await passes(router)
        assert pool.loads_started == 1
        let_load_finish(node)
        assert (await call).status == 200
        await until(lambda: stands(router, COLD))


async def test_a_load_that_the_node_refuses_backs_off_and_says_so() -> None:
    async with pool_of(1) as pool:
        await pool.nodes[0].set_fault("status", 500, path="/api/generate")
        async with router_before(pool.nodes, placement=managed({"name": QUICK})) as router:
            await until(lambda: any(one.lack == "backoff" for one in router.placer.declarations.standings))
            asked = control_calls(pool)
            await passes(router)
            assert control_calls(pool) == asked
