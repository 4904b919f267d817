"""A simulated Ollama in a pod: it listens like Ollama, and its slots are those of OLLAMA_NUM_PARALLEL.

With ENDS_ITS_CALLS it ends what it has before it leaves, as with a preStop hook; without it cuts all, as Ollama does.
"""

import asyncio
import os
import signal

import uvloop

from router.simulation.catalog import DEMO_MODELS
from router.simulation.facts import NodeLimits
from router.simulation.node import SimulatedNode

# Loads and answers in a tenth of the time: a stream of 200 tokens is one of a few seconds.
SCALE = 0.2
# The router has to hear first that this pod terminates.
LEAVING_S = 5.0


async def main() -> None:
    limits = NodeLimits(num_parallel=int(os.environ.get("OLLAMA_NUM_PARALLEL", "1")))
    node = SimulatedNode(os.environ["HOSTNAME"], models=DEMO_MODELS, limits=limits, time_scale=SCALE)
    await node.start("0.0.0.0", 11434)
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    await told.wait()
    if "ENDS_ITS_CALLS" in os.environ:
        await ended(node)
    await node.stop()


async def ended(node: SimulatedNode) -> None:
    await asyncio.sleep(LEAVING_S)
    while any(copy.running or copy.prefilling for copy in node.model.copies.values()):  # noqa: ASYNC110
        await asyncio.sleep(0.1)


uvloop.run(main())
