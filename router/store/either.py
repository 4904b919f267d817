"""The stores that a router may have: its own, or one that it shares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from router.store.memory import MemoryStore
    from router.store.redis.store import RedisStore

    PoolStore = MemoryStore | RedisStore
