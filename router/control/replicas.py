"""The replica's heartbeat. A beat proves that this process lives, and reaps those that do not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from router.fleet.tickets import BEAT_S
from router.seams import Store

log = logging.getLogger(__name__)

# The loop is asked this often how late it is; the answer is `event_loop_lag_seconds`.
LAG_EVERY_S = 0.25


async def beat_for_ever(store: Store) -> None:
    while True:
        try:
            await store.beat()
        except Exception:
            # A supervisor: a beat that failed is told by the store's own metrics, and the next one comes in a second.
            log.exception("beat failed")
        await asyncio.sleep(BEAT_S)


async def watch_lag(observe: Callable[[float], None]) -> None:
    """How much later than asked a timer fires: work that held the loop delayed every stream by as much."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        observe(max(0.0, loop.time() - due_s))
