"""What teams and models owe one another, over HTTP, as the nodes' own journals tell it: they count, no clock does."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from router.simulation.catalog import model_of
from router.simulation.facts import GIB, NodeLimits
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.shell.clients import Client, generate
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import COLD, ENDLESS, asked, holding, is_loading, let_load_finish, let_run, no_bugs, pool_of

STEADY = "steady"
FLOOD = 90  # calls of each team that floods, all at once
CALLS = 20  # of the steady team, one after another


def teams(*names: str) -> dict[str, Any]:
    """The name of a team is its key."""
    return {name: {"keys_sha256": [sha256(name.encode()).hexdigest()]} for name in names}


async def send(stack: AsyncExitStack, router: Router, team: str, model: str, count: int = 1) -> list[Client]:
    clients = [await stack.enter_async_context(Client(router.port)) for _ in range(count)]
    for number, client in enumerate(clients):
        # All of one size: a turn is a call then.
        call = {"model": model, "prompt": f"{team} asks {number}", "options": {"num_predict": 16}}
        client.send("/api/generate", call, x_api_key=team)
    return clients


def askers(node: SimulatedNode) -> list[str]:
    """The teams whose calls came to this node, in their order."""
    bodies = [seen.body for seen in node.journal.calls if b" asks " in seen.body]
    return [body.partition(b" asks ")[0].rpartition(b'"')[2].decode() for body in bodies]


def waiting(router: Router, team: str) -> int:
    return sum(entry.ticket.team == team for entry in router.store.book.ledger.waiting.values())


def pairs(items: Sequence[str]) -> list[set[str]]:
    return [set(items[index : index + 2]) for index in range(0, len(items), 2)]


def p95(values: Sequence[int]) -> int:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


async def turns_waited(router: Router, node: SimulatedNode) -> int:
    """By one call of the steady team: how many calls of others came to the node while it stood in line."""
    before = asked(node)
    async with AsyncExitStack() as stack:
        (client,) = await send(stack, router, STEADY, ENDLESS)
        await until(lambda: waiting(router, STEADY) == 1 or STEADY in askers(node)[before:])
        answer = asyncio.create_task(client.answer())
        await run_until(node, answer.done)
        assert answer.result().status == 200
    return askers(node)[before:].index(STEADY)


async def run_until(node: SimulatedNode, holds: Callable[[], bool]) -> None:
    """The node ends what it has in hand, again and again; what comes meanwhile runs until the next time."""

    def runs() -> bool:
        let_run(node)
        for copy in node.model.copies.values():
            copy.sync(node.engine.now_s())
            copy.speed = 1.0
        return holds()

    await until(runs)


async def rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live and not router.connections.busy)
    assert_at_rest(router)


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("floods", [1, 3])
async def test_a_flood_moves_the_p95_of_another_team_by_one_turn_of_each_flooding_team(floods: int, slots: int) -> None:
    """And by one for each further slot: what runs there is charged in full only when it ends."""
    flooding = [f"flood-{number}" for number in range(floods)]
    line = {"max_waiting_per_model": floods * FLOOD}
    async with holding(1, ENDLESS, slots=slots, teams=teams(STEADY, *flooding), line=line) as (pool, router):
        node = pool.nodes[0]
        assert {await turns_waited(router, node) for _ in range(3)} == {0}
        async with AsyncExitStack() as stack:
            for team in flooding:
                await send(stack, router, team, ENDLESS, FLOOD)
            await until(lambda: len(router.store.book.ledger.waiting) == floods * FLOOD - slots)
            turns = [await turns_waited(router, node) for _ in range(CALLS)]
            assert all(waiting(router, team) for team in flooding), "the flood lasts longer than what is measured"
        assert p95(turns) <= floods + slots - 1, turns
        await rest(router)


async def test_fifty_cold_calls_of_two_teams_are_one_load_and_then_turns_though_the_first_ten_leave() -> None:
    names = ("early", "late")
    async with pool_of(3) as pool, router_before(pool.nodes, teams=teams(*names)) as router, AsyncExitStack() as stack:
        early, late = [await send(stack, router, name, COLD, 25) for name in names]
        await until(lambda: len(router.store.book.ledger.waiting) == 50 and any(map(is_loading, pool.nodes)))
        for client in early[:10]:
            client.leave()
        await until(lambda: (waiting(router, "early"), waiting(router, "late")) == (15, 25))
        node = next(filter(is_loading, pool.nodes))
        let_load_finish(node)
        answers = await asyncio.gather(*(client.answer() for client in (*early[10:], *late)))
        assert {(answer.status, answer.node) for answer in answers} == {(200, node.name)}
        assert (pool.loads_started, node.journal.loads_finished, node.journal.loads_aborted) == (1, 1, 0)
        # Nobody owes anything: they take turns until one team has nobody left.
        assert pairs(askers(node)[:30]) == [set(names)] * 15
        await rest(router)


A, B, C = "a:1b", "b:1b", "c:1b"
ROUNDS = 2
WORKERS = 8


@asynccontextmanager
async def one_card() -> AsyncIterator[tuple[SimulatedNode, Router]]:
    """Room for one of three models, which load in 30 ms and answer in two."""
    models = [model_of(name, gib=1.0, load_s=3.0, prefill_tps=4000.0, decode_tps=80.0) for name in (A, B, C)]
    limits = NodeLimits(vram_bytes=2 * GIB, num_parallel=2)
    async with SimulatedPool(nodes=1, models=models, limits=limits, time_scale=0.01) as pool:
        node = pool.nodes[0]
        declared = [{"url": node.url, "name": node.name, "slots": 2, "vram_gib": 2}]
        async with router_before(pool.nodes, nodes=declared) as router:
            yield node, router
            await rest(router)
            assert no_bugs(pool)


async def test_interleaved_calls_for_three_models_on_one_card_cost_loads_by_the_batch_and_not_by_the_call() -> None:
    """All workers ask for A, then B, then C, and so on: as many at once as there are workers are a batch."""

    async def work(router: Router, number: int) -> None:
        for turn in range(ROUNDS):
            for name in (A, B, C):
                answer = await generate(router, name, stream=False, prompt=f"{number} asks {turn}")
                assert answer.status == 200

    async with one_card() as (node, router):
        await asyncio.gather(*(work(router, number) for number in range(WORKERS)))
        batches, calls = 3 * ROUNDS, 3 * ROUNDS * WORKERS
        assert asked(node) == calls
        assert batches <= node.journal.loads_started <= 2 * batches, f"{calls} calls"
