"""Ollama's pods behind Services, followed by EndpointSlices; what pods say of themselves, where that may be read."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TypeVar

from router.discovery.api_server import ApiServer, own_namespace
from router.discovery.crew import Crew
from router.discovery.reflector import ApiFailed, Kind, Part, Pause, Reflector
from router.discovery.slices import SERVICE_NAME, Object, Pod, Slice, Wanted, nodes_of, read_pod, read_slice
from router.fleet.node import NodeSpec

log = logging.getLogger(__name__)

T = TypeVar("T")

# Complaints that were told; whoever mends one and errs again is told again.
TOLD_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Selection:
    """`namespaces` empty: the router's own; `*`: all."""

    namespaces: tuple[str, ...]
    label_selector: str
    service_names: tuple[str, ...]
    port_name: str
    port: int

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.port_name, self.port, is_qualified=len(self.namespaces) > 1 or "*" in self.namespaces)

    def parts(self, kind: Kind, own: str) -> tuple[Part, ...]:
        """Pods are read by no selector: that of a Service need not be one of its pods."""
        selector = self.label_selector
        if self.service_names:
            selector = f"{SERVICE_NAME} in ({','.join(self.service_names)})"
        namespaces = ("",) if "*" in self.namespaces else self.namespaces or (own,)
        return tuple(Part(kind, namespace, selector if kind is Kind.SLICES else "") for namespace in namespaces)


class KubernetesDiscovery:
    """`on_error` hears of each failure's reason. One watcher."""

    source = "kubernetes"

    def __init__(
        self,
        api: ApiServer,
        selection: Selection,
        *,
        on_error: Callable[[str], None],
        rng: random.Random,
        pause: Pause = asyncio.sleep,
        namespace: Callable[[], str] = own_namespace,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._selection = selection
        self._on_error = on_error
        self._rng = rng
        self._pause = pause
        self._namespace = namespace
        self._wall = wall
        self._crew = Crew()
        self._slices: list[Reflector[Slice]] = []
        self._pods: list[Reflector[Pod]] = []
        self._troubles: dict[Part, str] = {}
        self._told: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<KubernetesDiscovery {self._slices}>"

    @property
    def trouble(self) -> str:
        return "; ".join(sorted(self._troubles.values()))

    @property
    def synced_at_s(self) -> float | None:
        """Of the slices that are the furthest behind: they say who is a node. Bookmarks count, and come each minute."""
        found = [slices.synced_at_s for slices in self._slices]
        known = [at_s for at_s in found if at_s is not None]
        return min(known, default=None) if len(known) == len(found) else None

    async def watch(self) -> AsyncGenerator[tuple[NodeSpec, ...], None]:
        self._start()
        try:
            last: tuple[NodeSpec, ...] | None = None
            while True:
                await self._crew.news()
                nodes = self._nodes() if self._has_listed() else last
                if nodes is not None and nodes != last:
                    last = nodes
                    yield nodes
        finally:
            await self._crew.close()
            await self._api.close()

    def _start(self) -> None:
        selection, own = self._selection, self._namespace()
        wanted = selection.wanted
        for part in selection.parts(Kind.SLICES, own):
            self._slices.append(self._reflector(part, lambda item: read_slice(item, wanted), is_optional=False))
        for part in selection.parts(Kind.PODS, own):
            self._pods.append(self._reflector(part, read_pod, is_optional=True))
        for slices in self._slices:
            self._crew.start(slices, slices.run(), repr(slices))
        for pods in self._pods:
            self._crew.start(pods, pods.run(), repr(pods))

    def _reflector(self, part: Part, read: Callable[[Object], T], *, is_optional: bool) -> Reflector[T]:
        return Reflector(
            self._api,
            part,
            read,
            rng=self._rng,
            pause=self._pause,
            on_change=self._crew.tell,
            on_trouble=self._note,
            is_optional=is_optional,
            wall=self._wall,
        )

    def _has_listed(self) -> bool:
        """Pods too: a node that comes with one slot and gets four a moment later was another node for that moment."""
        listed = (*(one.has_listed for one in self._slices), *(one.has_listed for one in self._pods))
        return all(has_listed.is_set() for has_listed in listed)

    def _nodes(self) -> tuple[NodeSpec, ...]:
        slices = [one for reflector in self._slices for one in reflector.objects.values()]
        pods = {pod.uid: pod for reflector in self._pods for pod in reflector.objects.values()}
        nodes = nodes_of(slices, pods, self._selection.wanted)
        served = {node.uid for node in nodes}
        problems = [problem for one in slices for problem in one.problems]
        problems += [problem for pod in pods.values() if pod.uid in served for problem in pod.problems]
        self._complain(frozenset(problems[:TOLD_MAX]))
        return nodes

    def _complain(self, problems: frozenset[str]) -> None:
        for problem in sorted(problems - self._told):
            log.warning("discovery: %s", problem)
        self._told = problems

    def _note(self, part: Part, failed: ApiFailed | None) -> None:
        if failed is None:
            if self._troubles.pop(part, None) is not None:
                log.info("discovery: %s can be read again", part)
            return
        self._on_error(failed.reason)
        text = f"{part} cannot be read: {failed}"
        if self._troubles.get(part) != text:
            log.warning("discovery: %s; the nodes that are known stay", text)
        self._troubles[part] = text
