"""Clients' connections, on aiohttp's parser, with its traps closed.

While a call is served nothing more is parsed and the socket stays readable, so that a client that leaves is seen at
once: aiohttp stops reading when 32 requests are pipelined or an unread body fills its buffer, and then never sees EOF.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import LineTooLong
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from router.server.reply import ClientReply

log = logging.getLogger(__name__)

# What a client may send ahead while its call is served: a pipelined request. More than that is not a client of ours.
PIPELINED_BYTES_MAX = 64 * 1024
# Linux: a client that vanished without a FIN is noticed after half a minute of unacknowledged data.
USER_TIMEOUT_MS = 30_000
# Of a head; of a chunked body too.
HEAD_ENDS = (b"\r\n\r\n", b"\n\n")


@dataclass(frozen=True, slots=True)
class ClientLimits:
    header_bytes: int
    header_s: float
    keep_alive_s: float
    connections: int
    stall_s: float
    stream_buffer_bytes: int


class ClientConnection(RequestHandler):
    """One client's connection; serves one call at a time."""

    def __init__(self, manager: ClientServer, **options: Any) -> None:
        super().__init__(manager, **options)
        self._limits = manager.limits
        self._server = manager
        self._is_serving = False
        self._awaits_head = True
        self._is_mute = True  # nothing has come of the head that is awaited
        self._is_misframed = False
        self._last_read = b""  # what the parser was given last
        self._ahead: list[bytes] = []
        self._ahead_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self.reply: ClientReply | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        client = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= self._limits.connections:
            self._server.on_surplus()
            client.write(surplus_answer(self._server.fresh_id()))
            client.close()
            return
        super().connection_made(client)
        self._expect_head()
        client.set_write_buffer_limits(high=self._limits.stream_buffer_bytes)
        sock = client.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)

    def connection_lost(self, exc: BaseException | None) -> None:
        reply, self.reply = self.reply, None
        if reply is not None:
            reply.lost()
        self.head_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_misframed:
            return  # what follows a body that is none is nothing
        if not self._is_serving or not data:
            if data:
                self._last_read = data
                self._is_mute = self._is_mute and not self._awaits_head
            super().data_received(data)
            if not self._awaits_head:
                self._fail_misframed()
            elif data and not self._messages:
                self._expect_head()  # nearly every head comes whole, and needs no timer
            return
        self._ahead.append(data)
        self._ahead_bytes += len(data)
        if self._ahead_bytes > PIPELINED_BYTES_MAX:
            self.force_close()

    def close(self) -> None:
        """aiohttp only forgets a connection that waits for its next request, which then would never be answered."""
        super().close()
        if self._awaits_head and self._is_mute and self.transport is not None:
            self.transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp would log a traceback of its parser for whatever a scanner sends to the port. Go answers so too

        (net/http/server.go, conn.serve), in plain text and without a date.
        """
        if status != 400 or self.transport is None:
            return super().handle_error(request, status, exc, message)
        is_too_long = isinstance(exc, LineTooLong)
        request_id = self._server.fresh_id()
        log.debug("no HTTP from %s: %s (%s)", request.remote, type(exc).__name__, request_id)
        self.transport.write(bare_answer(HEAD_TOO_LONG if is_too_long else BAD_REQUEST, request_id))
        return Refused()

    def head_read(self) -> None:
        """A request's head is whole: it was not sent a byte at a time to hold the connection."""
        self._awaits_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._fail_misframed()

    def _expect_head(self) -> None:
        if self._head_timer is None and self.transport is not None:
            self._head_timer = self._loop.call_later(self._limits.header_s, self.force_close)

    def _fail_misframed(self) -> None:
        """aiohttp's parser tells of a wrongly framed body as of a next request: its reader would never know."""
        request = self._current_request
        if request is None or request.content.is_eof() or not self._messages:
            return
        if isinstance(self._messages[-1][0], RawRequestMessage):
            return
        self._messages.pop()
        self._is_misframed = True
        request.content.set_exception(web.RequestPayloadError("framed wrongly"))
        request.content.feed_eof()  # or aiohttp would wait for its end before it closes

    def hold(self, reply: ClientReply) -> None:
        """The body in hand is read: from here to `release` only EOF matters."""
        self._is_serving = True
        self.reply = reply
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def release(self, content: StreamReader) -> None:
        """The request is answered; `content` is its body."""
        self._is_serving = False
        self._awaits_head = True
        self._is_mute = not self._ends_in_next_head(content)
        if not self._messages:
            self._last_read = b""
        self.reply = None
        if self.transport is None:
            return
        ahead, self._ahead, self._ahead_bytes = self._ahead, [], 0
        if ahead:
            self.data_received(b"".join(ahead))
        elif not self._is_mute:
            self._expect_head()

    def _ends_in_next_head(self, content: StreamReader) -> bool:
        """Whether more came in one read with the end of this request: the parser has it, and does not say so."""
        size, read = content.total_bytes, self._last_read
        if size >= len(read):
            return False  # its body came in several reads: then nothing tells
        return not (read[: len(read) - size].endswith(HEAD_ENDS) or read.endswith(HEAD_ENDS))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.reply is not None:
            self.reply.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reply is not None:
            self.reply.resume()


class ClientServer(web.Server):
    """Makes our connections, and switches handler cancellation on: without it a client that leaves is never seen."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        limits: ClientLimits,
        on_surplus: Callable[[], None],
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.limits = limits
        self.on_surplus = on_surplus
        # Ids of what has no call: this start's own prefix, and a count.
        prefix, count = secrets.token_hex(6), itertools.count(1)
        self.fresh_id: Callable[[], str] = lambda: f"{prefix}-{next(count):x}"

    def __call__(self) -> ClientConnection:
        return ClientConnection(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self.limits.keep_alive_s,
            max_line_size=self.limits.header_bytes,
            max_field_size=self.limits.header_bytes,
            access_log=None,
            auto_decompress=False,
        )


class Refused(web.StreamResponse):
    """Tells aiohttp that all was said, and that the connection closes."""

    def __init__(self) -> None:
        super().__init__()
        self._keep_alive = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing to prepare: the answer is on the wire."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing to write: the answer is on the wire."""


BAD_REQUEST = b"400 Bad Request"
HEAD_TOO_LONG = b"431 Request Header Fields Too Large"


def bare_answer(reason: bytes, request_id: str) -> bytes:
    lines = (
        b"HTTP/1.1 %b" % reason,
        b"Content-Type: text/plain; charset=utf-8",
        b"Connection: close",
        b"x-request-id: %b" % request_id.encode(),
        b"",
        reason,
    )
    return b"\r\n".join(lines)


SURPLUS_BODY = b'{"error":"too many connections to this router, please try again"}'


def surplus_answer(request_id: str) -> bytes:
    lines = (
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: application/json; charset=utf-8",
        b"Content-Length: %d" % len(SURPLUS_BODY),
        b"Retry-After: 1",
        b"Connection: close",
        b"x-ollama-router-refused: connections",
        b"x-request-id: %b" % request_id.encode(),
        b"",
        SURPLUS_BODY,
    )
    return b"\r\n".join(lines)
