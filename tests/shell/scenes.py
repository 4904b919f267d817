"""Models that do one thing, and hands on a simulated node's clock: a load or a stream ends when the test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from router.simulation.catalog import DiskModel, model_of
from router.simulation.facts import NodeLimits, Want, Work
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wire.names import parse_name
from router.wiring import Router
from tests.shell.house import router_before, until

Scene = tuple[SimulatedPool, Router]

NEVER_TPS = 1e-6  # tokens a second: the next one is due in twelve days
AT_ONCE_TPS = 1e9
AT_ONCE_S = 0.0
NEVER_S = 1e6

QUICK = "quick:1b"  # loads and answers at once
ENDLESS = "endless:1b"  # one token, then nothing until `let_run`
SILENT = "silent:1b"  # no first token until `let_run`
COLD = "cold:1b"  # loads until `let_load_finish`
TWIN = "twin:1b"  # the weights of ENDLESS under another name


def _model(
    name: str, *, load_s: float = AT_ONCE_S, prefill_tps: float = AT_ONCE_TPS, decode_tps: float = AT_ONCE_TPS
) -> DiskModel:
    return model_of(
        name, gib=1.0, load_s=load_s, prefill_tps=prefill_tps, decode_tps=decode_tps, same_weights_as=_WEIGHTS.get(name)
    )


_WEIGHTS = {ENDLESS: "endless", TWIN: "endless"}
MODELS = (
    _model(QUICK),
    _model(ENDLESS, decode_tps=NEVER_TPS),
    _model(TWIN, decode_tps=NEVER_TPS),
    _model(SILENT, prefill_tps=NEVER_TPS),
    _model(COLD, load_s=NEVER_S),
)


def pool_of(
    nodes: int, *, slots: int = 1, keep_alive_s: float = 300.0, models: Sequence[DiskModel] = MODELS
) -> SimulatedPool:
    limits = NodeLimits(max_loaded=len(models), num_parallel=slots, keep_alive_s=keep_alive_s)
    return SimulatedPool(nodes=nodes, models=models, limits=limits)


def slotted(pool: SimulatedPool, slots: int) -> list[dict[str, object]]:
    """The nodes as a configuration that knows their OLLAMA_NUM_PARALLEL."""
    return [{"url": node.url, "name": node.name, "slots": slots} for node in pool.nodes]


def is_loading(node: SimulatedNode) -> bool:
    return node.model.load is not None


def let_load_finish(node: SimulatedNode) -> None:
    load = node.model.load
    assert load is not None, f"{node.name} loads nothing"
    load.done_s = node.engine.now_s()
    node.engine.catch_up()


def let_run(node: SimulatedNode) -> None:
    """Everything that the node has in hand ends now."""
    for copy in node.model.copies.values():
        copy.sync(node.engine.now_s())
        copy.speed = AT_ONCE_TPS / NEVER_TPS
        for running in copy.prefilling.values():
            running.prefilled_s = node.engine.now_s()
    node.engine.catch_up()


def running(pool: SimulatedPool) -> int:
    """Calls in slots, over all nodes."""
    return sum(copy.running for node in pool.nodes for copy in node.model.copies.values())


def no_bugs(pool: SimulatedPool) -> bool:
    return not any(node.server.failures for node in pool.nodes)


def load_into(node: SimulatedNode, name: str) -> None:
    """As somebody else has loaded it, before the router looks."""
    model = node.disk[parse_name(name).key]
    call = node.engine.submit(Work(name, node.weights_of(model), Want.LOAD), lambda effect: None)
    if is_loading(node):
        let_load_finish(node)
    node.engine.leave(call)


def asked(node: SimulatedNode) -> int:
    """Generations asked of it; a load of the router's own has no prompt."""
    return sum(b'"prompt"' in seen.body or b'"messages"' in seen.body for seen in node.journal.calls)


@asynccontextmanager
async def holding(
    nodes: int, *names: str, slots: int = 1, models: Sequence[DiskModel] = MODELS, **settings: Any
) -> AsyncIterator[tuple[SimulatedPool, Router]]:
    """A router that has seen these models (QUICK, if none is named) in the memory of every node."""
    names = names or (QUICK,)
    async with pool_of(nodes, slots=slots, models=models) as pool:
        for node in pool.nodes:
            for name in names:
                load_into(node, name)
        async with router_before(pool.nodes, nodes=slotted(pool, slots), **settings) as router:
            await until(lambda: all(ready_on(router, name) == nodes for name in names))
            yield pool, router


def ready_on(router: Router, name: str) -> int:
    """On how many nodes."""
    return len(router.keeper.snapshot.holding(parse_name(name).key).ready.rows)
