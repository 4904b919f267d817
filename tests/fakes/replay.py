"""A node made of raw bytes: probes are answered, calls get what a test says, byte for byte and cut where it says."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import cast

from tests.fakes.raw_client import body_of, head_of, pieces
from tests.fakes.recordings import FOLDER, Headers, recording

# Later than any test: /api/ps of the recordings says when its models left memory.
_FAR = b'"expires_at":"2318-03-05T01:02:03.123456789Z"'
_EXPIRES = re.compile(rb'"expires_at":"[^"]*"')
_MINILM = b'{"modelfile":"FROM /blobs/sha256-' + b"5" * 64 + b'","model_info":{}}'


class End(Enum):
    """How a node may leave a connection."""

    CLOSE = "close"
    RESET = "reset"


Step = bytes | asyncio.Event | End
Play = tuple[Step, ...]  # bytes are written, an event is waited for


@dataclass(frozen=True, slots=True)
class Heard:
    """A call as it came from the wire. `connection` counts the node's connections that brought calls."""

    first_line: bytes
    headers: Headers
    body: bytes
    connection: int


def recorded(name: str, at: Iterable[int] = ()) -> Play:
    """The recorded answer, after which the server closed."""
    return (*pieces((FOLDER / f"{name}.response").read_bytes(), at), End.CLOSE)


def kept_alive(name: str, at: Iterable[int] = ()) -> Play:
    """The recorded answer as a client gets it that did not ask to close."""
    return pieces((FOLDER / f"{name}.response").read_bytes().replace(b"\r\nConnection: close", b"", 1), at)


def reworded(name: str, edit: Callable[[bytes], bytes], at: Iterable[int] = ()) -> Play:
    """The recorded answer with each of its chunks edited, framed as it was."""
    answer = recording(name).response
    chunks = [edit(chunk) for chunk in answer.chunks]
    lines = [b"HTTP/1.1 %d Status" % answer.status]
    lines += [b"%b: %b" % pair for pair in answer.headers.pairs if pair[0] not in (b"Connection", b"Content-Length")]
    if answer.headers.get(b"transfer-encoding"):
        body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    else:
        body = b"".join(chunks)
        lines.append(b"Content-Length: %d" % len(body))
    return pieces(b"\r\n".join([*lines, b"", body]), at)


def close_delimited(name: str, at: Iterable[int] = ()) -> Play:
    """The recorded body with nothing but the close to tell its end."""
    answer = recording(name).response
    kind = answer.headers.get(b"content-type")
    return (*pieces(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n\r\n%b" % (kind, answer.body), at), End.CLOSE)


def said(status: int, body: bytes, *lines: bytes, kind: bytes = b"application/json") -> bytes:
    """A whole plain answer."""
    head = b"".join(b"%b\r\n" % line for line in lines)
    return b"HTTP/1.1 %d Status\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (
        status, kind, head, len(body), body,
    )  # fmt: skip


class ReplayNode:
    """Has all models of the recordings, on disk and in memory. Calls get the `plays` in order; the last one repeats."""

    def __init__(
        self, name: str = "replay", *plays: Play, num_ctx: int = 32768, version: str = "0.0.0", models: str = ""
    ) -> None:
        """`models`: part of the names of those that it has; all by default."""
        self.name = name
        self.plays: deque[Play] = deque(plays)
        self.heard: list[Heard] = []
        self.answers_early = False  # a call is answered at its head, whatever of its body is still to come
        self.is_hanging = False  # connections are taken, and nothing is ever said
        self.callers: list[_Connection] = []
        self.probed = 0
        self._probes = _probes(num_ctx, version, models)
        self._server: asyncio.Server | None = None
        self._open: set[_Connection] = set()
        self._port = 0

    def __repr__(self) -> str:
        return f"<ReplayNode {self.name} | {len(self.heard)} calls | {len(self.callers)} connections>"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def authority(self) -> bytes:
        return b"127.0.0.1:%d" % self._port

    @property
    def unsent(self) -> int:
        """Bytes that the router has not taken yet, as far as this process holds them."""
        return sum(connection.unsent for connection in self._open)

    @property
    def open_callers(self) -> int:
        return sum(connection in self._open for connection in self.callers)

    def answer(self, *plays: Play) -> None:
        """To the calls that come from now on; what was heard before is forgotten."""
        self.plays = deque(plays)
        self.heard.clear()
        self.callers.clear()

    def drop_callers(self) -> None:
        for connection in self.callers:
            connection.leave(End.CLOSE)

    async def __aenter__(self) -> ReplayNode:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Also connections end; a later `async with` opens the same port again."""
        assert self._server is not None
        self._server.close()
        for connection in list(self._open):
            connection.leave(End.RESET)
        await asyncio.sleep(0)

    def connected(self, connection: _Connection) -> None:
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        self._open.discard(connection)

    def asked(self, connection: _Connection, first_line: bytes, headers: Headers, body: bytes) -> Play:
        """What is answered to one request: a probe's page, or the next play."""
        method, path, _ = first_line.split(b" ")
        self.probed += method == b"GET" or path == b"/api/show"
        if path == b"/api/show":
            return (said(200, _MINILM if b"all-minilm" in body else self._probes[path]),)
        if method == b"GET":
            return (said(200, self._probes[path]),)
        if connection not in self.callers:
            self.callers.append(connection)
        self.heard.append(Heard(first_line, headers, body, self.callers.index(connection)))
        return self.plays.popleft() if len(self.plays) > 1 else self.plays[0]


class _Connection(asyncio.Protocol):
    """One connection; answers one request after another."""

    def __init__(self, node: ReplayNode) -> None:
        self._node = node
        self._transport: asyncio.Transport | None = None
        self._got = b""
        self._playing: asyncio.Task[None] | None = None

    @property
    def unsent(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._node.connected(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._node.lost(self)
        if self._playing is not None:
            self._playing.cancel()

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._playing is None and not self._node.is_hanging:
            self._next()

    def leave(self, end: End) -> None:
        if self._transport is not None:
            if end is End.RESET:
                self._transport.abort()
            else:
                self._transport.close()

    def _next(self) -> None:
        """The next whole request of what came; of an early answer its head is enough."""
        end = self._got.find(b"\r\n\r\n")
        if end < 0:
            return
        first_line, headers = head_of(self._got[: end + 4])
        whole = body_of(headers, self._got[end + 4 :])
        if whole is None and not self._node.answers_early:
            return
        body, self._got = whole if whole is not None else (self._got[end + 4 :], b"")
        if whole is None and self._transport is not None:
            self._transport.pause_reading()  # so that the rest is still unsent when the answer comes
        play = self._node.asked(self, first_line, headers, body)
        self._playing = asyncio.create_task(self._play(play))

    async def _play(self, play: Sequence[Step]) -> None:
        for step in play:
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif isinstance(step, End):
                self.leave(step)
                return
            elif self._transport is not None:
                self._transport.write(step)
                # The loop sends what was written at the end of its turn: two turns keep two writes apart.
                await asyncio.sleep(0)
                await asyncio.sleep(0)
        self._playing = None
        self._next()


def _probes(num_ctx: int, version: str, models: str) -> Mapping[bytes, bytes]:
    resident = _EXPIRES.sub(_FAR, recording("catalog/ps-two").response.body)
    resident = resident.replace(b'"context_length":2048', b'"context_length":%d' % num_ctx)
    return {
        b"/api/version": b'{"version":"%b"}' % version.encode(),
        b"/api/tags": _only(recording("catalog/tags").response.body, models),
        b"/api/ps": _only(resident, models),
        b"/api/show": recording("catalog/show").response.body,
    }


def _only(listing: bytes, models: str) -> bytes:
    kept = [item for item in json.loads(listing)["models"] if models in item["name"]]
    return json.dumps({"models": kept}, separators=(",", ":")).encode() if models else listing
