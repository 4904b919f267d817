"""What a probe's silence means, and that no node's silence costs anybody else anything."""

from __future__ import annotations

import asyncio

import pytest

from router.fleet.node import Health
from router.wire.names import parse_name
from router.wiring import Router
from tests.shell.clients import converse, generate, get, scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import QUICK, holding, pool_of, ready_on

IMPATIENT = {"interval_s": 0.1, "timeout_s": 0.2}
KEY = parse_name(QUICK).key


def health(router: Router, name: str = "sim-1") -> Health:
    return router.keeper.snapshot.nodes[name].health


async def test_a_hanging_ps_is_no_death() -> None:
    async with holding(1, probe=IMPATIENT) as (pool, router):
        node = pool.nodes[0]
        node.faults.set("hang", path="/api/ps")
        asked = len(node.journal.to("/api/version"))
        await until(lambda: len(node.journal.to("/api/version")) >= asked + 4)
        assert health(router) is Health.HEALTHY
        assert ready_on(router, QUICK) == 1, "what was seen last still counts"
        assert (await generate(router, QUICK)).status == 200
        page = await scrape(router)
        assert page.labels("node_probe_failures_total", "reason") == {"ps_no_answer"}


async def test_a_slow_ps_is_waited_for() -> None:
    async with pool_of(1) as pool:
        pool.nodes[0].faults.set("stall_ps", "0.15")
        async with router_before(pool.nodes, probe={"interval_s": 0.1}) as router:
            assert (await generate(router, QUICK)).status == 200
            await until(lambda: ready_on(router, QUICK) == 1)


async def test_a_hanging_version_is_a_death_after_three_probes_and_no_sooner() -> None:
    async with holding(1, probe=IMPATIENT) as (pool, router):
        pool.nodes[0].faults.set("hang", path="/api/version")
        await until(lambda: health(router) is Health.DEGRADED)
        assert (await generate(router, QUICK)).status == 200, "still served"
        await until(lambda: health(router) is Health.DOWN)
        assert (await generate(router, QUICK)).status == 503
        page = await scrape(router)
        assert page.value("node_probe_failures_total", reason="no_answer") == 3
        assert page.value("node_up", node="sim-1") == 0
        assert page.value("node_state", node="sim-1", state="down") == 1


async def test_two_good_probes_bring_a_node_back() -> None:
    async with holding(1, probe=IMPATIENT) as (pool, router):
        node = pool.nodes[0]
        node.faults.set("hang", path="/api/version")
        await until(lambda: health(router) is Health.DOWN)
        await node.clear_faults()
        asked = len(node.journal.to("/api/version"))
        await until(lambda: health(router) is Health.HEALTHY)
        assert len(node.journal.to("/api/version")) >= asked + 2
        await until(lambda: ready_on(router, QUICK) == 1)
        assert (await generate(router, QUICK)).headers["x-ollama-router-reason"] == "loaded"


@pytest.mark.parametrize("fault", ["malformed", "status=500", "status=404"])
async def test_what_is_no_version_is_no_life(fault: str) -> None:
    name, _, argument = fault.partition("=")
    async with holding(1, probe=IMPATIENT) as (pool, router):
        pool.nodes[0].faults.set(name, argument, path="/api/version")
        await until(lambda: health(router) is Health.DOWN)


@pytest.mark.parametrize("path", ["/api/tags", "/api/show"])
async def test_a_node_whose_lists_cannot_be_read_is_alive(path: str) -> None:
    async with pool_of(2) as pool:
        failing = pool.nodes[0]
        failing.faults.set("status", 500, times=2, path=path)
        async with router_before(pool.nodes) as router:
            assert (await generate(router, QUICK)).status == 200
            await until(lambda: router.keeper.snapshot.all_read)
            assert health(router) is Health.HEALTHY


async def test_a_dead_or_slow_node_slows_nobody_elses_probe_or_call() -> None:
    """One that hangs in every probe, one that refuses, one that is well: with a single probe at a time even."""
    async with pool_of(3) as pool:
        hanging, refusing, well = pool.nodes
        hanging.faults.set("hang", path="/api/tags")
        await refusing.set_fault("refuse")
        settings = {"nodes": [{"url": node.url, "name": node.name} for node in pool.nodes]}
        async with router_before([], probe={"interval_s": 0.1, "timeout_s": 60}, **settings) as router:
            await until(lambda: "sim-3" not in router.keeper.snapshot.unread)
            asked = len(well.journal.to("/api/version"))
            answers = await converse(router, QUICK, 8)
            assert {(answer.status, answer.node) for answer in answers} == {(200, "sim-3")}
            await until(lambda: len(well.journal.to("/api/version")) >= asked + 3)
            assert len(hanging.journal.to("/api/tags")) == 1, "its own probe still waits"
            await until(lambda: router.keeper.snapshot.nodes["sim-2"].health is Health.DOWN)
            for path in ("/v1/models", "/api/tags", "/api/ps"):
                answer = await get(router.port, path)
                assert (answer.status, KEY.encode() in answer.body) == (200, True), path


async def test_a_hanging_version_holds_no_turn_of_another_probe() -> None:
    async with holding(2, probe={"interval_s": 0.1, "timeout_s": 0.3, "concurrency": 1}) as (pool, router):
        pool.nodes[0].faults.set("hang", path="/api/version")
        await until(lambda: health(router) is Health.DOWN)
        assert health(router, "sim-2") is Health.HEALTHY
        assert (await generate(router, QUICK)).node == "sim-2"


async def test_a_restart_between_two_probes_shows_as_an_empty_memory() -> None:
    async with holding(1) as (pool, router):
        node = pool.nodes[0]
        await node.crash()
        await node.restart()
        await until(lambda: ready_on(router, QUICK) == 0)
        answer = await generate(router, QUICK)
        assert (answer.status, answer.headers["x-ollama-router-reason"]) == (200, "cold_load")


async def test_weights_are_asked_for_once_for_all_nodes() -> None:
    async with pool_of(3) as pool, router_before(pool.nodes) as router:
        shows = sum(len(node.journal.to("/api/show")) for node in pool.nodes)
        digests = {model.digest for model in pool.nodes[0].disk.values()}
        # Nodes that are read in the same moment may each be asked; later probes ask nobody.
        assert len(digests) <= shows <= 3 * len(pool.nodes[0].disk)
        probes = len(pool.nodes[0].journal.to("/api/tags"))
        await until(lambda: len(pool.nodes[0].journal.to("/api/tags")) >= probes + 3)
        assert sum(len(node.journal.to("/api/show")) for node in pool.nodes) == shows
        assert router.keeper.snapshot.all_read


async def test_a_router_that_ends_leaves_no_probe_behind() -> None:
    async with pool_of(1) as pool:
        pool.nodes[0].faults.set("hang", path="/api/version")
        settings = {"nodes": [{"url": pool.nodes[0].url, "name": "sim-1"}]}
        before = len(asyncio.all_tasks())
        async with router_before([], probe={"timeout_s": 60}, **settings):
            await until(lambda: bool(pool.nodes[0].journal.calls))
        await until(lambda: len(asyncio.all_tasks()) == before)
