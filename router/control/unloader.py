"""Unloads that teams ask for: every idle copy of the weights leaves memory, and nobody waits for it.

The request path only says what is wanted. A copy that serves somebody stays, and so does everything where placement
only observes, and what is declared: it would be loaded again at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Set
from typing import Protocol

from router.control.keeper import FleetKeeper
from router.fleet.node import NodeSpec
from router.fleet.snapshot import Row
from router.policy.placement import Mode
from router.seams import NodeFailed, Store

log = logging.getLogger(__name__)

WANTED_MAX = 1000  # models that await their turn: more than nodes ever hold in memory


class UnloadApi(Protocol):
    """The part of `NodeApi` that is asked here."""

    async def unload(self, node: NodeSpec, model: str) -> None: ...


class Unloader:
    """Owns what is wanted out of memory: keys of models, in the order in which they were named."""

    def __init__(
        self,
        api: UnloadApi,
        keeper: FleetKeeper,
        store: Store,
        mode: Callable[[], Mode],
        *,
        declared: Callable[[], Set[tuple[str, str]]] = frozenset,
        on_unload: Callable[[str, str], None] = lambda node, weights: None,
    ) -> None:
        """`declared` copies, by (node, weights), stay. `on_unload` hears of every node and weights that are asked."""
        self._api = api
        self._keeper = keeper
        self._store = store
        self._mode = mode
        self._declared = declared
        self._on_unload = on_unload
        self._wanted: dict[str, None] = {}
        self._is_wanted = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Unloader {len(self._wanted)} wanted>"

    def want(self, key: str) -> None:
        if self._mode() is not Mode.OBSERVE and len(self._wanted) < WANTED_MAX:
            self._wanted[key] = None
            self._is_wanted.set()

    async def run(self) -> None:
        """All that was named meanwhile at once: a node that is slow to answer holds up one round at most."""
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            wanted, self._wanted = self._wanted, {}
            rows = {row.copy: row for key in wanted for row in self._keeper.snapshot.holding(key).by_node.values()}
            resident = (row for row in rows.values() if row.is_resident and row.name and not row.is_cloud)
            await asyncio.gather(*map(self._unload, resident))

    async def _unload(self, row: Row) -> None:
        # Whoever leads: this is no order of the placer's, but it has to be of its time.
        epoch = (await self._store.lead()).epoch
        # No await between looking and beginning: a call could take a slot of the copy, and lose the model under it.
        if row.copy in self._declared() or self._store.occupancy.get(row.copy):
            return
        if not await self._store.begin(*row.copy, loading=False, epoch=epoch):
            return
        self._on_unload(*row.copy)
        try:
            await self._api.unload(self._keeper.spec_of(row.node), row.name)
        except NodeFailed as failed:
            log.warning("unloading %s on %s failed: %s", row.name, row.node, failed.text)
        else:
            log.info("unloaded %s on %s, as a team asked", row.name, row.node)
        # After a failure as well: the next probe says what is there, and nobody is sent to what may be gone.
        await self._keeper.not_loaded(row.node, row.weights)
