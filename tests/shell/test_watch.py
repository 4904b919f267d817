"""Thrash, spills and skews from outside: in the log, in metrics, in the admin API and in explanations."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from router.simulation.facts import GIB, NodeLimits
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.shell.clients import ask, scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import ENDLESS, MODELS, QUICK, load_into, pool_of, ready_on
from tests.shell.test_admin import told
from tests.shell.test_teams import KEY, teams


async def look(router: Router) -> None:
    await router.reloader._parts.watch.look()


async def swap(router: Router, node: SimulatedNode, name: str) -> None:
    """Somebody else has it loaded; the router sees it."""
    load_into(node, name)
    await until(lambda: ready_on(router, name) == 1)
    await look(router)


async def test_models_that_evict_one_another_are_told_with_how_often(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        SimulatedPool(nodes=1, models=MODELS, limits=NodeLimits(max_loaded=1)) as pool,
        router_before(pool.nodes) as router,
    ):
        for name in (QUICK, ENDLESS, QUICK, ENDLESS):
            await swap(router, pool.nodes[0], name)
        text = f"{ENDLESS} and {QUICK} evict one another: 3 times in 10 minutes"
        (node,) = (await told(router, "/admin/nodes"))["nodes"]
        assert node["thrash"] == [{"models": [ENDLESS, QUICK], "evictions": 3, "text": text}]
        explained = await told(router, f"/admin/explain?model={QUICK}")
        assert f"here {text}" in explained["candidates"][0]["why"]
        page = await scrape(router)
        assert page.value("thrash_pairs", node="sim-1") == 1
        assert page.value("model_evictions_total", node="sim-1", model=QUICK, cause="ollama") == 2
        lines = [record.message for record in caplog.records if "evict one another" in record.message]
        assert lines == [f"{text.replace('3 times', 'twice')} on sim-1"], "told when it began, once"


async def test_an_unload_that_a_team_asked_for_is_ours() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, teams=teams(may_unload=True)) as router:
        await swap(router, pool.nodes[0], QUICK)
        await ask(router, "/api/generate", {"model": QUICK, "keep_alive": 0}, x_api_key=KEY)
        await until(lambda: ready_on(router, QUICK) == 0)
        await look(router)
        assert (await scrape(router)).value("model_evictions_total", model=QUICK, cause="ours") == 1


async def test_a_name_with_several_digests_is_told_until_it_has_one(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router.control.watch")
    async with pool_of(3) as pool:
        old = pool.nodes[2].disk[QUICK]
        pool.nodes[2].disk[QUICK] = replace(old, digest="0123456789ab" + old.digest[12:])
        async with router_before(pool.nodes) as router:
            await look(router)
            models = {one["model"]: one["skew"] for one in (await told(router, "/admin/models"))["models"]}
            digests = [key for key, skew in models.items() if skew is not None]
            assert digests == [QUICK]
            assert sorted(map(tuple, models[QUICK]["digests"].values())) == [("sim-1", "sim-2"), ("sim-3",)]
            explained = await told(router, f"/admin/explain?model={QUICK}")
            assert explained["notes"] == [models[QUICK]["text"]]
            assert models[QUICK]["text"].endswith("; 0123456789ab on sim-3")
            assert (await scrape(router)).value("model_digest_skew", model=QUICK) == 2
            pool.nodes[2].disk[QUICK] = old
            await until(lambda: len({model.digest for _, model in router.keeper.snapshot.stored(QUICK)}) == 1)
            await look(router)
            assert caplog.records[-1].message == f"{QUICK} is the same on all its nodes again"


async def test_a_copy_that_does_not_fit_is_told_as_partly_in_cpu_memory(caplog: pytest.LogCaptureFixture) -> None:
    limits = NodeLimits(vram_bytes=GIB // 2)
    async with SimulatedPool(nodes=1, models=MODELS, limits=limits) as pool, router_before(pool.nodes) as router:
        node = router.keeper.snapshot.nodes["sim-1"]
        await swap(router, pool.nodes[0], QUICK)
        node = router.keeper.snapshot.nodes["sim-1"]
        (copy,) = node.copies.values()
        router.keeper._swap(replace(node, copies={copy.weights: replace(copy, size_bytes=4 * GIB, vram_bytes=3 * GIB)}))
        await look(router)
        assert f"{QUICK} on sim-1 is partly in CPU memory: {GIB} of {4 * GIB} bytes" in caplog.text
        explained = await told(router, f"/admin/explain?model={QUICK}")
        assert any("25% of it: a last resort" in why for why in explained["candidates"][0]["why"])
