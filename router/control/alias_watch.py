"""Tells the operator about aliases that name models which no node has: a typing error, or a model yet to be pulled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from router.fleet.snapshot import Snapshot
from router.policy.alias import Aliases

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0  # nobody waits for it, and an unchanged fleet costs nothing

Pairs = tuple[tuple[str, str], ...]


class AliasWatch:
    """One line for each change, and none before every node has been read: until then a model may yet turn up."""

    def __init__(self) -> None:
        self._told: Pairs = ()
        self._snapshot: Snapshot | None = None
        self._aliases: Aliases | None = None

    def look(self, snapshot: Snapshot, aliases: Aliases) -> None:
        is_new = snapshot is not self._snapshot or aliases is not self._aliases
        if not snapshot.all_read or not is_new:
            return
        self._snapshot, self._aliases = snapshot, aliases
        missing = aliases.missing(snapshot.keys)
        if missing == self._told:
            return
        self._told = missing
        if missing:
            pairs = ", ".join(f"{alias} -> {model}" for alias, model in missing)
            log.warning("aliases name models that no node has: %s", pairs)
        else:
            log.info("every model that an alias names is on a node")


async def watch_aliases(snapshot: Callable[[], Snapshot], aliases: Callable[[], Aliases]) -> None:
    watch = AliasWatch()
    while True:
        watch.look(snapshot(), aliases())
        await asyncio.sleep(LOOK_EVERY_S)
