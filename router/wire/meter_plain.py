"""What a whole JSON answer tells once it has passed; no more of it is kept than may hold its counts."""

from __future__ import annotations

from router.wire.meter_events import COUNT_BYTES_MAX, counts, failure_text

# Counts stand at the end of an answer, behind its text; of an embedding's megabytes only this much is remembered.
PLAIN_SCAN_BYTES = 64 * 1024

_ERRORS = (b'{"error":', b'{"type":"error"')
_HEAD_BYTES = 16  # the longer of _ERRORS, and a newline
_SPACE = b" \t\r\n"


class PlainBody:
    """Fed with every piece of the body; what it knows is true after the last."""

    __slots__ = ("_counts", "_head", "_tail")

    def __init__(self) -> None:
        self._head = b""
        self._tail = bytearray()
        self._counts: dict[str, int] = {}

    def feed(self, data: bytes) -> None:
        if len(self._head) < _HEAD_BYTES:
            self._head += data[:_HEAD_BYTES]
        tail = self._tail
        tail += data
        if len(tail) > 2 * PLAIN_SCAN_BYTES:
            # A native answer with logprobs has its counts in the middle (recording `native/generate-logprobs`).
            cut = len(tail) - PLAIN_SCAN_BYTES
            self._counts |= counts(tail[: cut + COUNT_BYTES_MAX])
            del tail[:cut]

    def is_whole(self) -> bool:
        return self._head.lstrip(_SPACE).startswith(b"{") and self._tail.rstrip(_SPACE).endswith(b"}")

    def counts(self) -> dict[str, int]:
        return self._counts | counts(self._tail)

    def failure(self) -> str | None:
        return failure_text(self._tail) if self._head.startswith(_ERRORS) else None
