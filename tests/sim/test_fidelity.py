"""Every recording, replayed against a simulated node: status line, headers in order, framing, shape of every event."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from router.simulation.catalog import RECORDED_MODELS, RECORDED_MODELS_V24, model_of
from router.simulation.facts import FOREVER_S, NodeLimits, Want, Work
from router.simulation.faults import Fault
from router.simulation.generation import Waiter
from router.simulation.node import SimulatedNode
from tests.fakes.recordings import FOLDER
from tests.sim.raw import exchange, facts, request_of, response_of

NAMES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.request"))

# A recording that cannot be replayed, and why.
NOT_REPLAYED: dict[str, str] = {}

GEMMA, MINILM = "gemma3:270m", "all-minilm:22m"
SLOW = replace(model_of("blocker", gib=1), weights=replace(model_of("blocker", gib=1).weights, load_s=1e9))


@asynccontextmanager
async def node_for(name: str) -> AsyncIterator[SimulatedNode]:
    """A node in the state that the recording was made in."""
    is_old, is_busy = name.startswith("v0.24/"), name.startswith("busy/")
    models = RECORDED_MODELS_V24 if is_old else RECORDED_MODELS
    node = SimulatedNode(
        models=(*models, replace(models[-1], name="tmp-copy:latest")) if name == "catalog/delete" else models,
        limits=NodeLimits(num_parallel=2, max_queue=1 if is_busy else 512),
        version="0.24.0" if is_old else "0.0.0",
        time_scale=1e-6,
        checks_host=name.endswith("loopback"),
    )
    await node.start()
    try:
        await _prepare(node, name)
        yield node
        assert node.server.failures == []
    finally:
        await node.stop()


async def _prepare(node: SimulatedNode, name: str) -> None:
    if name.endswith("-ps") or "/ps-two" in name:
        await load(node, MINILM)
        await load(node, GEMMA, num_ctx=1_000_000 if "num-ctx-larger" in name else None)
    elif name in ("catalog/ps", "catalog/ps-5m", "catalog/ps-pinned"):
        await load(node, GEMMA, keep_alive_s=FOREVER_S if "pinned" in name else 300.0)
    elif name.startswith("busy/"):
        for _ in range(2):  # one being loaded, one in a queue of one
            node.engine.submit(Work("blocker", SLOW.weights), lambda _: None)
    elif name.startswith("runner-died/"):
        node.faults.set(Fault.RUNNER_DIED, 1 if "responses" in name else 5)


async def load(
    node: SimulatedNode, name: str, *, num_ctx: int | None = None, keep_alive_s: float | None = None
) -> None:
    model = node.disk[name]
    work = Work(name, node.weights_of(model), Want.LOAD, num_ctx=num_ctx, keep_alive_s=keep_alive_s)
    await node.run(work, Waiter())
    await asyncio.sleep(0)


@pytest.mark.parametrize("name", NAMES)
async def test_the_node_answers_as_the_real_server_did(name: str) -> None:
    if name in NOT_REPLAYED:
        pytest.skip(NOT_REPLAYED[name])
    async with node_for(name) as node:
        answer = await exchange(node.server.port, request_of(name))
    expected, got = facts(response_of(name)), facts(answer)
    assert got.heads == expected.heads
    assert got.chunks == expected.chunks
    assert got.newline == expected.newline


def test_every_recording_is_replayed() -> None:
    assert len(NAMES) > 180
    assert len(NOT_REPLAYED) == 0
