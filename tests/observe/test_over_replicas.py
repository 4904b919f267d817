"""What several replicas tell becomes one number: parts are added, and a fact that all of them tell counts once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from bench.observe import prometheus
from router.telemetry.families import FAMILIES, GAUGE
from router.telemetry.together import RULES, Rule
from tests.observe.promtool import tool
from tests.observe.test_dashboards import BOARDS, expressions, filled, known, rule_expressions
from tests.observe.test_observed import by_and_by, impatient
from tests.shell.clients import Client
from tests.shell.house import until
from tests.shell.scenes import ENDLESS, MODELS
from tests.shell.test_shared_store import all_back, open_stream, routers

RUNBOOKS = Path(__file__).parents[2] / "docs" / "runbooks"
IN_BOOKS = [
    asked.strip()
    for path in sorted(RUNBOOKS.glob("*.md"))
    for block in re.findall(r"```promql\n(.*?)```", path.read_text(), re.DOTALL)
    for asked in block.split("\n\n")
]
ASKED = dict.fromkeys([
    *(filled(expr) for board in BOARDS.values() for expr in expressions(board)), *rule_expressions(), *IN_BOOKS
])  # fmt: skip
# These are of replicas themselves: which one leads is the same by sum and by max, and how many there are is a count.
OF_REPLICAS = {"leader", "build_info"}


def joined(expr: Any, op: str = "") -> Iterator[tuple[str, str]]:
    """Each family that is asked for, with what first joins its series over replicas; empty where each stays itself."""
    if isinstance(expr, promql_parser.AggregateExpr):
        by = expr.modifier.labels if expr.modifier is not None else []
        yield from joined(expr.expr, "" if "instance" in by else str(expr.op).lower())
    elif isinstance(expr, promql_parser.VectorSelector):
        yield known(expr.name or ""), op
    else:
        for name in ("lhs", "rhs", "expr", "vector_selector"):
            if (part := getattr(expr, name, None)) is not None:
                yield from joined(part, op)
        for part in getattr(expr, "args", ()):
            yield from joined(part, op)


def is_added(name: str) -> bool:
    family = FAMILIES[name]
    return RULES.get(name) is Rule.SUM if family.kind == GAUGE else family.scope == "L"


@pytest.mark.parametrize("expr", ASKED)
def test_parts_are_added_and_facts_that_all_replicas_tell_are_not(expr: str) -> None:
    told = [(name, op) for name, op in joined(promql_parser.parse(expr)) if name and op and name not in OF_REPLICAS]
    assert [(name, op) for name, op in told if is_added(name) and op != "sum"] == []
    assert [(name, op) for name, op in told if not is_added(name) and op not in {"max", "min"}] == []


def test_a_gauge_of_scope_s_is_added_nowhere_not_even_over_workers() -> None:
    assert [name for name, family in FAMILIES.items() if family.scope == "S" and RULES.get(name) is Rule.SUM] == []


def of_panel(title: str, number: int = 0) -> str:
    found = next(panel for panel in BOARDS["ollama-router-overview"]["panels"] if panel["title"] == title)
    return filled(found["targets"][number]["expr"])


@pytest.mark.timeout(120)
async def test_what_two_routers_before_one_redis_and_one_node_tell_is_counted_once_each() -> None:
    """A slot that is taken, three calls in line at both of them; every panel's number is the pool's."""
    tool("prometheus")
    asked = {
        of_panel("In line"): 3.0,
        of_panel("How full lines are"): 3 / 10,
        of_panel("At nodes"): 1.0,
        of_panel("Slots"): 1.0,
        of_panel("Slots", 1): 1.0,
        of_panel("Slots taken"): 1.0,
        of_panel("Nodes"): 1.0,
        of_panel("Nodes up"): 1.0,
        of_panel("Models"): float(len(MODELS)),
        of_panel("Replicas"): 2.0,
        of_panel("Nodes by source"): 1.0,
    }
    async with routers(2, line={"max_waiting_per_model": 10}) as (_, _, (here, there)), AsyncExitStack() as stack:
        ports = (here.port, here.port, there.port, here.port)
        clients = [await stack.enter_async_context(Client(port)) for port in ports]
        await open_stream(clients[0])
        for client in clients[1:]:
            client.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
        await until(lambda: [sum(router.store.waiting().values()) for router in (here, there)] == [2, 1])
        assert sum(line.depth for line in await there.store.lines()) == 3, "the line is one"
        found = await stack.enter_async_context(prometheus([here.metrics_port, there.metrics_port], scrape_s=1))

        async def values(expr: str) -> set[float]:
            return {value for each in await found.query(expr) if (value := float(each["value"][1]))}

        while await values("count(ollama_router_build_info)") != {2.0}:  # noqa: ASYNC110
            await asyncio.sleep(0.2)  # Prometheus tells no one when it has scraped
        assert {expr: await values(expr) for expr in asked} == {expr: {value} for expr, value in asked.items()}
        for client in clients:
            client.leave()


@pytest.mark.timeout(300)
async def test_while_redis_is_gone_the_dashboard_and_the_alerts_say_so_and_then_that_it_is_back(tmp_path: Path) -> None:
    tool("prometheus")
    expected = {"OllamaRouterDegradedMode", "OllamaRouterRedisDown"}
    rules = impatient(tmp_path, expected)
    store, failures, fires = of_panel("Shared store", 2), of_panel("Shared store's failures"), of_panel("Firing")
    async with routers(2) as (server, _, made), AsyncExitStack() as stack:
        ports = [router.metrics_port for router in made]
        found = await stack.enter_async_context(prometheus(ports, scrape_s=1, rules=rules))

        async def is_told(expr: str, value: float) -> bool:
            return value in {float(each["value"][1]) for each in await found.query(expr)}

        async def is_well() -> bool:
            return await is_told(store, 0.0) and not await found.firing() & expected

        async def is_alone() -> bool:
            fired = await found.firing() >= expected and len(await found.query(fires)) >= len(expected)
            return fired and await is_told(store, 1.0) and bool(await found.query(f"{failures} > 0"))

        await by_and_by(is_well, lambda: "two routers that Redis answers")
        server.kill()
        await by_and_by(is_alone, lambda: f"{expected}, and in the panels")
        server.start()
        await all_back(made)
        await by_and_by(is_well, lambda: "Redis answers again")
