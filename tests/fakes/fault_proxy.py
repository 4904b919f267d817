"""A TCP proxy that misbehaves on request: for a server that is there and well, and cannot be reached."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import StrEnum
from types import TracebackType

PIECE_BYTES = 65536


class Mood(StrEnum):
    PASS = "pass"
    REFUSE = "refuse"  # nobody listens; what stands is cut
    STALL = "stall"  # takes connections and bytes, and passes nothing on: a network that loses every packet
    DEAF = "deaf"  # what clients send arrives, and the answers are lost
    DELAY = "delay"  # each piece comes `delay_s` later


class FaultProxy:
    """From a port of loopback to another one, while `async with` lasts. A change of mood is for what stands, too."""

    def __init__(self, port: int, to_port: int) -> None:
        self.port = port
        self._to_port = to_port
        self._mood = Mood.PASS
        self._delay_s = 0.0
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<FaultProxy :{self.port} to :{self._to_port} {self._mood} | {len(self._tasks)} connections>"

    async def __aenter__(self) -> FaultProxy:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def set(self, mood: Mood, delay_s: float = 0.0) -> None:
        self._mood, self._delay_s = mood, delay_s
        if mood is Mood.STALL:
            self._flows.clear()
        else:
            self._flows.set()
        if mood is Mood.REFUSE:
            await self.stop()
        elif self._server is None:
            await self.start()

    async def cut(self) -> None:
        """Ends every connection that stands; new ones are taken."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._taken, "127.0.0.1", self.port)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def _taken(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._joined(reader, writer)
        except asyncio.CancelledError:
            pass  # a cut: the streams' own callback would tell of it as of a mistake
        finally:
            self._tasks.discard(task)

    async def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        further = None
        try:
            await self._flows.wait()
            back, further = await asyncio.open_connection("127.0.0.1", self._to_port)
            ways = [
                asyncio.ensure_future(self._pass_on(*way)) for way in ((reader, further, False), (back, writer, True))
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # the server is not there: whoever asked sees its connection end
        finally:
            writer.transport.abort()
            if further is not None:
                further.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_answer: bool) -> None:
        with suppress(OSError):
            while piece := await reader.read(PIECE_BYTES):
                if self._mood is Mood.DELAY:
                    await asyncio.sleep(self._delay_s)
                await self._flows.wait()
                if is_answer and self._mood is Mood.DEAF:
                    continue
                writer.write(piece)
                await writer.drain()
