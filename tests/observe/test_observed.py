"""A real Prometheus before a pool under load with faults: every panel shows something, and the right alerts fire."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from pathlib import Path

import pytest
import yaml

from bench.observe import RULES, Load, Prometheus, observed, prometheus
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.observe.promtool import tool
from tests.observe.test_dashboards import BOARDS, expressions, filled
from tests.shell.clients import ask

# Loads and tokens are faster than in life, so that a minute of the test holds what dashboards show of an hour.
FAST = 0.05
CROWDED = "whisper-sim"  # nobody else asks for it
CROWD = 16  # two copies of four slots, four in line, and four more
WITHIN_S = 120.0  # of a machine that has other things to do, too
SHORT_LINE = {"models": {CROWDED: {"max_waiting": 4}}}
EXPECTED = {
    "OllamaRouterCircuitOpen",
    "OllamaRouterConfigReloadFailed",
    "OllamaRouterErrorBudgetBurn",
    "OllamaRouterNodeDown",
    "OllamaRouterQueueSaturated",
    "OllamaRouterUpstreamErrorsHigh",
}
NEVER = {
    "OllamaRouterDegradedMode",
    "OllamaRouterDown",
    "OllamaRouterNoLeader",
    "OllamaRouterNoNodes",
    "OllamaRouterNodeVersionSkew",
    "OllamaRouterNodesDownMany",
    "OllamaRouterReplicasDisagree",
    "OllamaRouterSlotsOversubscribed",
    "OllamaRouterWatchdogAbsent",
}


def impatient(folder: Path, expected: Container[str]) -> Path:
    """The rules, but for how long something must hold: nobody waits five minutes for a test.

    What must not fire holds longer: a busy machine may miss a scrape.
    """
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            if "for" in rule:
                rule["for"] = "1s" if rule["alert"] in expected else "20s"
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump(rules))
    return path


async def insist(router: Router) -> None:
    """One of a crowd that no node answers: whoever is refused comes again."""
    while True:
        with suppress(TimeoutError):
            await ask(router, "/v1/completions", {"model": CROWDED, "prompt": "?"})
        await asyncio.sleep(0.5)


async def break_things(pool: SimulatedPool, router: Router) -> None:
    """A node goes, the others are silent for a crowd, fail and cut some calls, and a configuration was wrong."""
    first, second, gone = pool.nodes
    for node in (first, second):
        await node.set_fault("hang", path="/v1/completions")
        await node.set_fault("cut", "5", times=100, path="/api/chat")
    await second.set_fault("status", "500", times=60, path="/v1/chat/completions")
    await gone.set_fault("refuse")
    router.metrics.config_reloaded(is_ok=False)


async def missing(found: Prometheus) -> list[str]:
    """Panels' queries that show nothing now."""
    asked = [(name, expr) for name, board in BOARDS.items() for expr in dict.fromkeys(expressions(board))]
    return [f"{name}: {expr}" for name, expr in asked if not await found.query(filled(expr))]


async def has_begun(found: Prometheus) -> bool:
    return len(await found.query("count by (model) (ollama_router_node_decode_seconds_total)")) >= 4


async def by_and_by(holds: Callable[[], Awaitable[bool]], what: Callable[[], object]) -> None:
    """Prometheus tells no one when it has scraped: it is asked again."""
    try:
        async with asyncio.timeout(WITHIN_S):
            while not await holds():  # noqa: ASYNC110
                await asyncio.sleep(0.5)
    except TimeoutError:
        pytest.fail(f"not within {WITHIN_S:g} s: {what()}")


@pytest.mark.timeout(400)
async def test_every_panel_shows_something_and_the_right_alerts_fire(tmp_path: Path) -> None:
    tool("prometheus")
    fired: set[str] = set()
    empty: list[str] = []

    async with (
        observed(3, time_scale=FAST, line=SHORT_LINE, probe={"interval_s": 0.5}) as (pool, router),
        prometheus([router.metrics_port], scrape_s=1, rules=impatient(tmp_path, EXPECTED)) as found,
    ):
        load = asyncio.create_task(Load(router.port, 20, pause_s=0.3).run())

        async def all_fired() -> bool:
            fired.update(await found.firing())
            return fired >= EXPECTED

        async def all_shown() -> bool:
            empty[:] = await missing(found)
            return not empty

        await by_and_by(lambda: has_begun(found), lambda: "calls of four models")
        await break_things(pool, router)
        crowd = [asyncio.create_task(insist(router)) for _ in range(CROWD)]
        await by_and_by(all_fired, lambda: EXPECTED - fired)
        await by_and_by(all_shown, lambda: empty)
        for task in (load, *crowd):
            task.cancel()
        await asyncio.gather(load, *crowd, return_exceptions=True)
    assert fired & NEVER == set()
