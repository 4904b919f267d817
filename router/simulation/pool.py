"""Several simulated nodes at once, for `ollama-router demo` and for tests."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType

from router.simulation.catalog import DEMO_MODELS, DiskModel
from router.simulation.facts import NodeLimits
from router.simulation.journal import Journal
from router.simulation.node import SimulatedNode


class SimulatedPool:
    """`async with SimulatedPool(nodes=3) as pool:` starts them on free ports of loopback and stops them at the end."""

    def __init__(
        self,
        nodes: int = 3,
        *,
        models: Iterable[DiskModel] = DEMO_MODELS,
        limits: NodeLimits | None = None,
        version: str = "0.33.0",
        time_scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        catalog = tuple(models)
        self.nodes = [
            SimulatedNode(
                f"sim-{number + 1}",
                models=catalog,
                limits=limits,
                version=version,
                time_scale=time_scale,
                seed=seed + number,
            )
            for number in range(nodes)
        ]

    def __repr__(self) -> str:
        return f"<SimulatedPool {len(self.nodes)} nodes | {', '.join(self.urls)}>"

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    @property
    def journals(self) -> list[Journal]:
        return [node.journal for node in self.nodes]

    @property
    def loads_started(self) -> int:
        return sum(journal.loads_started for journal in self.journals)

    def named(self, name: str) -> SimulatedNode:
        return next(node for node in self.nodes if node.name == name)

    async def __aenter__(self) -> SimulatedPool:
        for node in self.nodes:
            await node.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes:
            await node.stop()
