"""A simulated node in a process of its own, which knows how many generations it ran at once of each copy.

node.py NAME: tells its ports as a line of JSON, the node's own and that of its witness. Who says LOOK there gets one
line: what runs, the most that ran at once, loads, and defects; COUNT_ANEW counts the most from here on. The node takes
more calls at once than routers are told of: only what they share keeps them within it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Iterable

import uvloop

from router.simulation.catalog import model_of
from router.simulation.facts import Began, Effect, NodeLimits
from router.simulation.journal import Journal
from router.simulation.node import SimulatedNode

BUSY = "busy:1b"  # more clients than slots
CALM = "calm:1b"  # a few clients, and always a free slot
COLD = "cold:1b"  # in no memory at first
LOAD_S = 2.0
TOKENS_PER_S = 20.0
AT_ONCE = 64
# A node may see the next call before it sees that its router closed the connection of another one, which runs for that
# moment. Looked at twice, so that what has come meanwhile is read.
MOMENT_S, LOOKS = 0.03, 2
LOOK, COUNT_ANEW = b"look\n", b"count anew\n"

MODELS = tuple(
    model_of(name, gib=1.0, load_s=load_s, prefill_tps=1e6, decode_tps=TOKENS_PER_S)
    for name, load_s in ((BUSY, 0.1), (CALM, 0.1), (COLD, LOAD_S))
)


def node_of(name: str) -> SimulatedNode:
    limits = NodeLimits(num_parallel=AT_ONCE, max_loaded=len(MODELS), keep_alive_s=3600.0)
    return SimulatedNode(name, models=MODELS, limits=limits)


class Peaks(Journal):
    """`lasting` has the most that ran at once for more than a moment, by weights blob; `max_running` the most."""

    def __init__(self, node: SimulatedNode) -> None:
        super().__init__()
        self.lasting: Counter[str] = Counter()
        self._node = node

    def note(self, effects: Iterable[Effect], blob_of: dict[int, str]) -> None:
        effects = list(effects)
        super().note(effects, blob_of)
        for effect in effects:
            if isinstance(effect, Began):
                self._look(blob_of.get(effect.call, ""), effect.running, LOOKS)

    def _look(self, blob: str, running: int, looks: int) -> None:
        if running <= self.lasting[blob]:
            return
        if looks:
            copy = self._node.model.copies.get(blob)
            running = min(running, copy.running if copy is not None else 0)
            asyncio.get_running_loop().call_later(MOMENT_S, self._look, blob, running, looks - 1)
        else:
            self.lasting[blob] = running


class Witness:
    def __init__(self, node: SimulatedNode) -> None:
        self._node = node
        self._peaks = Peaks(node)
        node.journal = node.engine._journal = self._peaks

    def __repr__(self) -> str:
        return f"<Witness of {self._node!r}>"

    async def tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        node, journal = self._node, self._peaks
        asked = await reader.readline()
        node.engine.catch_up()
        names = {copy.weights.blob: copy.name for copy in node.model.copies.values()}
        told = {
            "running": {copy.name: copy.running for copy in node.model.copies.values()},
            "peaks": {names[blob]: peak for blob, peak in journal.lasting.items() if blob in names},
            "momentary": max(journal.max_running.values(), default=0),
            "loads": {str(event): sum(one.event is event and one.name == COLD for one in journal.events)
                      for event in journal.counts},
            "failures": [repr(failure) for failure in node.server.failures],
        }  # fmt: skip
        if asked == COUNT_ANEW:
            journal.max_running.clear()
            journal.lasting.clear()
        writer.write(json.dumps(told).encode() + b"\n")
        await writer.drain()
        writer.close()


async def main(name: str) -> None:
    node = node_of(name)
    await node.start()
    server = await asyncio.start_server(Witness(node).tell, "127.0.0.1", 0)
    print(json.dumps({"url": node.url, "witness": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
