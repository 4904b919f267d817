"""Where the shared store is. Apart from the connection: whoever reads settings needs no client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """Where the store is. `user` is that of an ACL."""

    url: str  # redis:// or rediss://, without a password
    pool: str
    timeout_s: float = 0.25
    password: str | None = None
    ca_file: str | None = None

    def __repr__(self) -> str:
        return f"<Address {self.url}>"
