"""Several sources at once: each followed by its own task, their nodes merged into one pool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

from router.discovery.crew import Crew
from router.discovery.merge import NODES_MAX, merged
from router.fleet.node import NodeSpec
from router.seams import Discovery

log = logging.getLogger(__name__)

STATIC = "static"
# So long a source may take for its first word, where others have named nodes: a router with half of its nodes is
# better than none. Without any node there is nothing to serve with, and it stays unready.
FIRST_WORD_S = 30.0


class JoinedDiscovery:
    """The list of the configuration comes first in every question of what a node is.

    `make` builds a source, by its name, from what the configuration says of it; a reload hands in other sayings.
    One watcher.
    """

    source = "joined"

    def __init__(
        self,
        listed: tuple[NodeSpec, ...],
        wanted: Mapping[str, object],
        make: Callable[[str, object], Discovery],
        *,
        first_word_s: float,
    ) -> None:
        self._make = make
        self._first_word_s = first_word_s
        self._listed = listed
        self._wanted = dict(wanted)
        self._running: dict[str, tuple[object, Discovery]] = {}
        self._found: dict[str, tuple[NodeSpec, ...]] = {}
        self._crew = Crew()
        self._waits_no_longer = False
        self._is_full = False

    def __repr__(self) -> str:
        return f"<JoinedDiscovery {self.counts}>"

    @property
    def nodes(self) -> tuple[NodeSpec, ...]:
        # In the order of the wanted, not of their answers: every replica has to give a node the same name.
        return merged((self._listed, *(self._found[one] for one in self._wanted if one in self._found)))

    @property
    def counts(self) -> dict[str, int]:
        """Nodes by source, before they are merged."""
        found = {source: len(self._found.get(source, ())) for source in self._wanted}
        return {STATIC: len(self._listed), **found}

    @property
    def troubles(self) -> dict[str, str]:
        """By source, why what it named may be out of date; '' while it answers."""
        return {source: discovery.trouble for source, (_, discovery) in self._running.items()}

    @property
    def synced_at_s(self) -> float | None:
        """By the source that is the furthest behind."""
        return min(self.synced.values(), default=None)

    @property
    def synced(self) -> dict[str, float]:
        """Unix times by source; those that have said nothing yet are left out."""
        found = {source: discovery.synced_at_s for source, (_, discovery) in self._running.items()}
        return {source: at_s for source, at_s in found.items() if at_s is not None}

    @property
    def trouble(self) -> str:
        return "; ".join(trouble for trouble in self.troubles.values() if trouble)

    def replace(self, listed: tuple[NodeSpec, ...], wanted: Mapping[str, object]) -> None:
        """What a source that is asked differently named stays until it has answered."""
        self._listed, self._wanted = listed, dict(wanted)
        for source in self._found.keys() - wanted.keys():
            del self._found[source]
        self._crew.tell()

    async def watch(self) -> AsyncGenerator[tuple[NodeSpec, ...], None]:
        patience = asyncio.get_running_loop().call_later(self._first_word_s, self._give_up_waiting)
        try:
            self._follow_wanted()
            last: tuple[NodeSpec, ...] | None = None
            while True:
                if self._may_speak():
                    nodes = self.nodes
                    if nodes != last:
                        last = nodes
                        self._note_size(nodes)
                        yield nodes
                await self._crew.news()
                self._follow_wanted()
        finally:
            patience.cancel()
            await self._crew.close()

    def _may_speak(self) -> bool:
        if self._found.keys() >= self._wanted.keys():
            self._waits_no_longer = True
            return True
        return self._waits_no_longer and bool(self.nodes)

    def _give_up_waiting(self) -> None:
        silent = ", ".join(sorted(self._wanted.keys() - self._found.keys()))
        if silent:
            log.warning("discovery: no word from %s yet: %s", silent, self.trouble or "it was asked")
        self._waits_no_longer = True
        self._crew.tell()

    def _note_size(self, nodes: tuple[NodeSpec, ...]) -> None:
        is_full = len(nodes) >= NODES_MAX
        if is_full and not self._is_full:
            log.error("discovery: more than %d nodes are named, and the others are left out", NODES_MAX)
        self._is_full = is_full

    def _follow_wanted(self) -> None:
        for source in [name for name, (saying, _) in self._running.items() if self._wanted.get(name) != saying]:
            del self._running[source]
            self._crew.stop(source)
        for source, saying in self._wanted.items():
            if source not in self._running:
                discovery = self._make(source, saying)
                self._running[source] = (saying, discovery)
                self._crew.start(source, self._follow(source, discovery), f"discovery by {source}")

    async def _follow(self, source: str, discovery: Discovery) -> None:
        # Closed in this task, or its own tasks would outlive it until somebody collects the garbage.
        async with aclosing(discovery.watch()) as sets:
            async for nodes in sets:
                self._found[source] = nodes
                self._crew.tell()
