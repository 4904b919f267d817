"""The store that settings name."""

from __future__ import annotations

import os
import secrets
import socket
from random import Random

from router.reload import Prepared
from router.seams import Clock
from router.store.either import PoolStore
from router.store.memory import MemoryStore
from router.store.redis.link import Link
from router.store.redis.store import RedisStore


def make_store(prepared: Prepared, clock: Clock, rng: Random) -> PoolStore:
    if prepared.store is None:
        return MemoryStore(clock, rng, prepared.line_limits)
    replica = _name_of_this_process()
    return RedisStore(Link(prepared.store, replica), replica, clock, rng, prepared.line_limits)


def _name_of_this_process() -> str:
    """For whoever looks at the keys; a start that follows is another replica."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
