"""The store that settings name."""

from __future__ import annotations

import os
import secrets
import socket
from contextlib import AsyncExitStack
from random import Random

from router.reload import Prepared
from router.seams import Clock
from router.store.either import PoolStore
from router.store.memory import MemoryStore
from router.store.redis.link import Link
from router.store.redis.store import RedisStore


def make_store(stack: AsyncExitStack, prepared: Prepared, clock: Clock, rng: Random) -> PoolStore:
    store: PoolStore
    if prepared.store is None:
        store = MemoryStore(clock, rng, prepared.line_limits)
    else:
        replica = _name_of_this_process()
        store = RedisStore(Link(prepared.store, replica), replica, clock, rng, prepared.line_limits)
    stack.push_async_callback(store.close)
    return store


def _name_of_this_process() -> str:
    """For whoever looks at the keys; a start that follows is another replica."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
