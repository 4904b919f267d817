"""Ticks for an event loop at spacings that its own timers cannot keep: libuv's know only milliseconds."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from itertools import repeat


class Pacer:
    """Calls `tick(n)` on the loop for n due moments, from `start` until the gaps end or `stop`.

    A thread that sleeps and writes a byte per moment: about 50 us late, and late moments come together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, tick: Callable[[int], None]) -> None:
        self._loop = loop
        self._tick = tick
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, gaps_s: Iterator[float]) -> None:
        self._loop.add_reader(self._ours, self._read)
        self._thread = threading.Thread(target=self._pace, args=(gaps_s,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns at once; the thread ends with its current gap."""
        self._is_stopped.set()
        self._loop.remove_reader(self._ours)
        self._ours.close()

    def _read(self) -> None:
        self._tick(len(self._ours.recv(4096)))

    def _pace(self, gaps_s: Iterator[float]) -> None:
        due_s = time.monotonic()
        with self._theirs:
            for gap_s in gaps_s:
                due_s += gap_s
                wait_s = due_s - time.monotonic()
                if wait_s > 0:
                    time.sleep(wait_s)
                if self._is_stopped.is_set():
                    return
                try:
                    self._theirs.send(b"\0")
                except OSError:
                    return  # stopped between the look and the sending


def every(gap_s: float) -> Iterator[float]:
    return repeat(gap_s)
