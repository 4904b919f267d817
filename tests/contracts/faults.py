"""What stands between one replica and its server, and may hold, swallow and cut what passes."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum

from tests.ports import HERE

CHUNK_BYTES = 65536


class Way(Enum):
    OPEN = "open"
    HELD = "held"  # both ways wait: the server looks frozen, and then does what was sent
    DEAF = "deaf"  # commands arrive and their answers are lost


class FaultProxy:
    """Every connection of one replica."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._target = port
        self._way = Way.OPEN
        self._is_open = asyncio.Event()
        self._is_open.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._relays: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._relay, HERE, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def set(self, way: Way) -> None:
        self._way = way
        if way is Way.HELD:
            self._is_open.clear()
        else:
            self._is_open.set()

    def cut(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for relay in tuple(self._relays):
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._relays.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            back, there = await asyncio.open_connection(HERE, self._target)
            self._writers |= {writer, there}
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, there, is_answer=False))
                group.create_task(self._pass(back, writer, is_answer=True))
        except* (OSError, asyncio.CancelledError):
            pass  # cut, or stopped
        finally:
            for end in (writer, there):
                if end is not None:
                    end.transport.abort()
                    self._writers.discard(end)
            self._relays.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._is_open.wait()
            if not (is_answer and self._way is Way.DEAF):
                writer.write(data)
                with suppress(ConnectionError):
                    await writer.drain()
        raise ConnectionResetError("one side is gone, so is the other")
