"""What an operator may say about the store that replicas share."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from router.settings.nodes import Group
from router.settings.values import Seconds

MEMORY = "memory://"
_SHARED = ("redis", "rediss")
_LATER = ("redis+sentinel", "redis+cluster")


class StoreSettings(Group):
    """Where slots and lines are kept: in this process, or in a Redis or Valkey that all routers of the pool share."""

    url: str = Field(
        default=MEMORY,
        description="`memory://` for one router alone; `redis://user@host:6379/0`, or `rediss://` with TLS, for many. "
        "Redis 7 or Valkey, with maxmemory-policy noeviction. The password stands in store.password_file.",
    )
    timeout_s: Seconds = Field(
        default=0.25,
        description="Without an answer for so long Redis is taken for gone, and this router decides alone with its "
        "share of every copy until it is back.",
    )
    password_file: str | None = Field(
        default=None, min_length=1, description="A file that holds the password of Redis."
    )
    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the authorities that a rediss:// server's certificate is checked against, instead "
        "of the system's.",
    )

    @field_validator("url")
    @classmethod
    def _is_a_store(cls, url: str) -> str:
        """Never repeats what was given: a password may stand in it."""
        parts = urlsplit(url)
        if url == MEMORY:
            return url
        if parts.scheme in _LATER:
            raise ValueError("Sentinel and Cluster are not supported yet: give the redis:// URL of one server")
        if parts.scheme not in _SHARED or not parts.hostname:
            raise ValueError("should be memory://, or a URL such as redis://redis.internal:6379")
        if parts.password is not None:
            raise ValueError(
                "holds a password, which logs and process lists would show: put it into store.password_file"
            )
        if not (parts.path.strip("/") or "0").isdigit():
            raise ValueError("the path should be the number of a database, such as redis://redis.internal:6379/0")
        try:
            _ = parts.port
        except ValueError:
            raise ValueError("the port should be a number, such as redis://redis.internal:6379") from None
        return url

    @property
    def is_shared(self) -> bool:
        return self.url != MEMORY
