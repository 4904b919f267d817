"""The limit that a store's answer has: time in which this process did not run is no silence of the store."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from router.store.redis.patience import Patience

LIMIT_S = 0.05


def stand_still() -> None:
    """As a loop that is held up, or a process that is paused, for longer than the limit."""
    threading.Event().wait(4 * LIMIT_S)


async def test_what_came_while_the_loop_stood_still_has_come_in_time() -> None:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        async with Patience(LIMIT_S):
            answer = asyncio.ensure_future(loop.sock_recv(ours, 1))
            await asyncio.sleep(0)
            theirs.send(b"!")
            stand_still()
            assert await answer == b"!"


async def test_who_says_nothing_is_late_in_the_end() -> None:
    with pytest.raises(TimeoutError):
        async with Patience(LIMIT_S):
            await asyncio.get_running_loop().create_future()


async def test_a_cancellation_from_outside_stays_one() -> None:
    async def wait() -> None:
        async with Patience(LIMIT_S):
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
