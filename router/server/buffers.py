"""Bytes held for all calls together: bodies on their way in, answers on their way out."""

from __future__ import annotations

FULL = "the router holds as many bytes as it may, please try again"


class Buffers:
    """Counts against `limits.buffered_bytes`. Above it new bodies and lists are refused; each stream has its own limit.

    Owned by the server; every `hold` has its `release` on the same screen.
    """

    __slots__ = ("held", "limit", "peak")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.peak = 0

    def __repr__(self) -> str:
        return f"<Buffers {self.held} of {self.limit} bytes>"

    @property
    def is_full(self) -> bool:
        return self.held > self.limit

    def change(self, delta: int) -> None:
        self.held += delta
        self.peak = max(self.peak, self.held)
        assert self.held >= 0, "more bytes were let go than were held"
