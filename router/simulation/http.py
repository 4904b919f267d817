"""HTTP/1 as Go's net/http speaks it, byte for byte: what a simulated node listens with. Knows no route.

Not aiohttp.web: that one adds a Server header, orders headers its own way, answers no Expect, limits bodies and headers
otherwise than Go, and cannot send garbage on request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

import httptools

HEADER_BYTES_MAX = 1_048_576  # Go's default; more is answered 431
BODY_BYTES_MAX = 268_435_456  # Ollama has no limit; a test that needs more is a mistake
WHOLE_BYTES_MAX = 2048  # Go's buffer: what fits is sent with a Content-Length
PIPELINED_MAX = 32

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_PLAIN_TEXT = b"Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {499: "status code 499"}
_BODILESS = frozenset({204, 304})

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str  # as sent
    headers: tuple[Pair, ...]  # names in lower case
    body: bytes
    is_http10: bool = False
    keeps_alive: bool = True

    @property
    def path(self) -> str:
        """Still escaped; a node decodes it segment by segment."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def decoded_path(self) -> str:
        return unquote(self.path)

    def header(self, name: str) -> str:
        """The first value of that name, or empty."""
        return next((value for key, value in self.headers if key == name), "")


Handler = Callable[[Request, "Reply"], Awaitable[None]]


class Reply:
    """The answer to one request. Exactly one of `send`, `start` ... `finish`, `garble` or `cut`."""

    def __init__(self, transport: asyncio.Transport, request: Request) -> None:
        self._transport = transport
        self._request = request
        self._is_chunked = False
        self.is_started = False
        self.is_over = False
        self.closes = not request.keeps_alive
        self.status = 0
        self.extra: tuple[Pair, ...] = ()  # headers of every answer, whatever its route says

    def send(self, status: int, headers: Iterable[Pair], body: bytes = b"", *, is_flushed: bool = False) -> None:
        """A whole answer. `is_flushed`: the handler wrote it piecemeal, so that even a short one is chunked."""
        is_short = len(body) <= WHOLE_BYTES_MAX and not is_flushed
        is_head = self._request.method == "HEAD"
        framing: Pair | None = None
        if status not in _BODILESS and is_short:
            framing = ("Content-Length", str(len(body)))
        elif status not in _BODILESS and not is_head:
            framing = self._chunking()
        head = self._head(status, headers, framing)
        if is_head or status in _BODILESS:
            body = b""
        self._write(head + (body if is_short or not body else self._chunk(body)))
        self._end()

    def start(self, status: int, headers: Iterable[Pair]) -> None:
        self._write(self._head(status, headers, self._chunking()))

    def flush(self, data: bytes) -> None:
        """One HTTP chunk, on the wire at once."""
        if data:
            self._write(self._chunk(data))

    def finish(self) -> None:
        self._end()

    def garble(self, data: bytes) -> None:
        """Bytes that are no HTTP, and the end of the connection."""
        self._write(data)
        self.cut()

    def cut(self) -> None:
        """The connection breaks, in the middle of whatever was going on; what was written before still arrives."""
        self.is_started = self.is_over = self.closes = True
        self._transport.close()

    def _write(self, data: bytes) -> None:
        # The client may have left within this turn of the loop, before the handler is cancelled; uvloop would raise.
        if not self._transport.is_closing():
            self._transport.write(data)

    def _chunking(self) -> Pair | None:
        if self._request.is_http10:
            self.closes = True
            return None
        self._is_chunked = True
        return ("Transfer-Encoding", "chunked")

    def _chunk(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data

    def _end(self) -> None:
        self.is_over = True
        if self._is_chunked:
            self._write(b"0\r\n\r\n")
        if self.closes:
            self._transport.close()

    def _head(self, status: int, headers: Iterable[Pair], framing: Pair | None) -> bytes:
        """Go's order: the handler's headers by name, Date, Content-Length, Connection, Transfer-Encoding."""
        self.is_started, self.status = True, status
        rows = sorted((*self.extra, *headers), key=lambda pair: pair[0])
        if self.closes:
            rows = [row for row in rows if row[0] != "Connection"]
        rows.append(("Date", formatdate(usegmt=True)))
        closing = [("Connection", "close")] if self.closes else []
        tail = [framing] if framing else []
        rows += closing + tail if framing and framing[0] == "Transfer-Encoding" else tail + closing
        version = "1.0" if self._request.is_http10 else "1.1"
        lines = [f"HTTP/{version} {status} {_PHRASES.get(status, '')}", *(f"{name}: {value}" for name, value in rows)]
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One client connection. When it closes, half-closes included, the handler is cancelled at once, as Go does."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._waiting: deque[Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._head_bytes = 0
        self._reset()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.lost(self)
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        return False  # closes the transport, which cancels the handler

    @property
    def is_idle(self) -> bool:
        return self._task is None

    def data_received(self, data: bytes) -> None:
        if not self._headers_done:
            self._head_bytes += len(data)
            if self._head_bytes > HEADER_BYTES_MAX + len(data):
                self._refuse(431)
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # Ollama upgrades nothing: the request is answered as if it had not asked
        except httptools.HttpParserError:
            self._refuse(400)

    # Callbacks of httptools.

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._headers_done = True
        if any(name == "expect" and value.lower() == "100-continue" for name, value in self._headers):
            self.transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > BODY_BYTES_MAX:
            self.transport.abort()

    def on_message_complete(self) -> None:
        request = Request(
            method=self._parser.get_method().decode("latin-1"),
            target=self._target.decode("latin-1"),
            headers=tuple(self._headers),
            body=bytes(self._body),
            is_http10=self._parser.get_http_version() == "1.0",
            keeps_alive=self._parser.should_keep_alive(),
        )
        self._reset()
        self._waiting.append(request)
        if len(self._waiting) > PIPELINED_MAX:
            self.transport.abort()
        elif self._task is None:
            self._next()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[Pair] = []
        self._body = bytearray()
        self._headers_done = False
        self._head_bytes = 0

    def _next(self) -> None:
        if self._waiting and not self.transport.is_closing():
            reply = Reply(self.transport, self._waiting[0])
            self._task = asyncio.get_running_loop().create_task(self._serve(self._waiting.popleft(), reply))
            self._task.add_done_callback(self._served)

    async def _serve(self, request: Request, reply: Reply) -> None:
        await self._server.handler(request, reply)

    def _served(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        failure = task.exception()
        if failure is not None:
            self._server.failures.append(failure)
            self.transport.abort()
            return
        self._next()

    def _refuse(self, status: int) -> None:
        phrase = _PHRASES[status].encode()
        self.transport.write(b"HTTP/1.1 %d %b\r\n%b%d %b" % (status, phrase, _PLAIN_TEXT, status, phrase))
        self.transport.close()


class Server:
    """A listener that can refuse: `close` stops listening and drops idle connections, `reopen` takes the same port."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.connections: set[Connection] = set()
        self.failures: list[BaseException] = []  # bugs of a handler; a test asserts that there are none
        self.port = 0
        self._host = ""
        self._listener: asyncio.Server | None = None
        self._lost = asyncio.Event()

    async def open(self, host: str, port: int = 0) -> None:
        loop = asyncio.get_running_loop()
        self._host = host
        self._listener = await loop.create_server(lambda: Connection(self), host, port or self.port, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def reopen(self) -> None:
        if self._listener is None:
            await self.open(self._host, self.port)

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for connection in list(self.connections):
            if connection.is_idle:
                connection.transport.abort()

    def lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._lost.set()

    async def abort(self) -> None:
        """As a killed process: listener and all connections at once."""
        self.close()
        for connection in list(self.connections):
            connection.transport.abort()
        while self.connections:
            self._lost.clear()
            await self._lost.wait()
