"""Whose turn it is to write where several processes write to one descriptor: no line is torn by another."""

from __future__ import annotations

import fcntl
import os
from types import TracebackType


class FileTurn:
    """Held by one process at a time; one that dies has ended its turn. For one thread of each."""

    def __init__(self, path: str) -> None:
        # Opened by each process for itself: an inherited descriptor would be the same turn.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __enter__(self) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
