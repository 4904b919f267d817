"""What an operator may say about the store that replicas share."""

from __future__ import annotations

from pydantic import Field, field_validator

from router.settings.nodes import Group
from router.settings.values import Seconds
from router.store.redis.address import parse_url

MEMORY = "memory://"


REPLICAS_MAX = 1000  # ten times the routers that one Redis carries (docs/scale.md)


class StoreSettings(Group):
    """Where slots and lines are kept: in this process, or in a Redis or Valkey that all routers of the pool share."""

    url: str = Field(
        default=MEMORY,
        description="`memory://` for one router alone; for many `redis://user@host:6379/0`, "
        "`redis+sentinel://user@sentinel-1:26379,sentinel-2:26379/SERVICE/0` or "
        "`redis+cluster://user@host-1:6379,host-2:6379`, with `rediss` for TLS. Redis 7 or Valkey, with "
        "maxmemory-policy noeviction. The password stands in store.password_file.",
    )
    timeout_s: Seconds = Field(
        default=0.25,
        description="Without an answer for so long Redis is taken for gone, and this router decides alone with its "
        "share of every copy until it is back.",
    )
    replicas: int = Field(
        default=1,
        ge=1,
        le=REPLICAS_MAX,
        description="How many routers share the pool, until Redis has told. A router that starts while Redis is away "
        "takes one part in so many of every copy's slots, rounded up. With too few, nodes get more calls than they "
        "have slots meanwhile; with too many, slots are left unused. `serve --workers` counts its own.",
    )
    password_file: str | None = Field(
        default=None,
        min_length=1,
        description="A file that holds the password of Redis. Read again at each connecting.",
    )
    sentinel_user: str | None = Field(
        default=None, min_length=1, description="The ACL user at the sentinels; without one it is their default user."
    )
    sentinel_password_file: str | None = Field(
        default=None,
        min_length=1,
        description="A file that holds the password of the sentinels. Without one they are asked without a password: "
        "that of Redis is not theirs. Read again at each connecting.",
    )
    ca_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the authorities that a rediss server's certificate is checked against, and that of "
        "sentinels, instead of the system's. Read again at each connecting.",
    )
    cert_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the certificate that this router shows a rediss server that asks for one. Read "
        "again at each connecting.",
    )
    key_file: str | None = Field(
        default=None,
        min_length=1,
        description="PEM file with the key of store.cert_file, without a passphrase. None where it stands "
        "in that file.",
    )

    @field_validator("url")
    @classmethod
    def _is_a_store(cls, url: str) -> str:
        if url != MEMORY:
            parse_url(url)
        return url

    @property
    def is_shared(self) -> bool:
        return self.url != MEMORY
