"""The store that settings name."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING

from router.reload import Prepared
from router.seams import Clock
from router.store.memory import MemoryStore

if TYPE_CHECKING:
    from router.store.either import PoolStore


def make_store(
    stack: AsyncExitStack,
    prepared: Prepared,
    clock: Clock,
    rng: Random,
    observe: Callable[[str, float | None, str], None],
) -> PoolStore:
    """`observe`: of each round trip to a shared store its operation, its seconds, and why it failed."""
    store: PoolStore
    if prepared.store is None:
        store = MemoryStore(clock, rng, prepared.line_limits)
    else:
        # The client brings half of what a router without it takes to start, and OpenTelemetry where that is installed.
        from router.store.redis.link import Link  # noqa: PLC0415
        from router.store.redis.store import RedisStore  # noqa: PLC0415

        replica = _name_of_this_process()
        store = RedisStore(Link(prepared.store, replica), replica, clock, rng, prepared.line_limits, observe)
        store.expect(prepared.settings.store.replicas)
    stack.push_async_callback(store.close)
    return store


def _name_of_this_process() -> str:
    """For whoever looks at the keys; a start that follows is another replica."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
