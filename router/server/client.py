"""Clients' connections: an own protocol on llhttp, as strict as RFC 9112 asks of a server that stands before others.

Requests of one connection are served one after another, each by a task of its own. While a call is served nothing more
is parsed and the socket stays readable, so that a client that leaves, half-close included, is seen at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, cast

import httptools

from router.server import bare
from router.server.reply import ClientReply
from router.server.request import ClientRequest

log = logging.getLogger(__name__)

# What a client may send ahead while its call is served: a pipelined request. More than that is not a client of ours.
PIPELINED_BYTES_MAX = 64 * 1024
# Requests that came whole in one read before the first of them was served; nginx's clients send one or two.
PIPELINED_MAX = 64
# Linux: a client that vanished without a FIN is noticed after half a minute of unacknowledged data.
USER_TIMEOUT_MS = 30_000
# An answer that comes before the request's end is read before the reset that the rest would bring (RFC 9112 9.6).
LINGER_S = 2.0


@dataclass(frozen=True, slots=True)
class ClientLimits:
    header_bytes: int
    header_s: float
    keep_alive_s: float
    connections: int
    stall_s: float
    stream_buffer_bytes: int


class Owner(Protocol):
    """Whoever keeps the connections: `clients.ClientServer`."""

    handle: Callable[[ClientRequest, ClientConnection], Awaitable[None]]
    limits: ClientLimits
    loop: asyncio.AbstractEventLoop
    connections: set[ClientConnection]
    is_closing: bool  # no connection waits for another request
    fresh_id: Callable[[], str]
    on_surplus: Callable[[], None]


class _HeadRefused(Exception):
    """Raised within the parser; its argument is the status line's end."""


class ClientConnection(asyncio.Protocol):
    """Owns framing, order and time limits of one connection; what an answer says is its handler's business."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = owner.loop
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[ClientRequest] = deque()  # whose heads are whole; the first is being served
        self._arriving: ClientRequest | None = None  # the one that the parser is in
        self._has_head = False  # of the arriving one
        self._head_bytes = 0  # of its fields that came whole
        self._partial_bytes = -1  # read since the first read that ended inside a head; -1 outside
        self._frames_anew = False  # the parser was given a head of ours, to frame a body that httptools would skip
        self._ahead: list[bytes] = []
        self._ahead_bytes = 0
        self._broken = b""  # what follows is no HTTP: this status is said once all that was asked before is answered
        self._is_over = False  # nothing more is read or served
        self.task: asyncio.Task[None] | None = None
        self._due_s = 0.0  # loop time at which a connection without a request in hand ends
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.reply: ClientReply | None = None

    def __repr__(self) -> str:
        state = "closed" if self.transport is None else "serving" if self.task else "idle"
        return f"<ClientConnection {state} | {len(self._requests)} requests>"

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        client = cast(asyncio.Transport, transport)
        owner = self._owner
        if len(owner.connections) >= owner.limits.connections:
            owner.on_surplus()
            self._is_over = True
            client.write(bare.surplus(owner.fresh_id()))
            client.close()
            return
        self.transport = client
        owner.connections.add(self)
        self._end_in(owner.limits.header_s)
        client.set_write_buffer_limits(high=owner.limits.stream_buffer_bytes)
        sock = client.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)

    def data_received(self, data: bytes) -> None:
        if self._is_over or self._broken:
            return
        if self._requests and self._requests[0].is_complete:
            self._ahead.append(data)
            self._ahead_bytes += len(data)
            if self._ahead_bytes > PIPELINED_BYTES_MAX:
                self.abort()
            return
        self._parse(data)

    def eof_received(self) -> None:
        """A client that half-closes has gone: whoever waits for an answer keeps its side open."""
        # Returning None closes the transport; connection_lost then ends the call.

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_over = True
        self.transport = None
        self._owner.connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self.reply is not None:
            self.reply.lost()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        if self.reply is not None:
            self.reply.pause()

    def resume_writing(self) -> None:
        if self.reply is not None:
            self.reply.resume()

    # httptools

    def on_message_begin(self) -> None:
        if self._frames_anew:
            return
        if len(self._requests) >= PIPELINED_MAX:
            raise _HeadRefused(bare.BAD_REQUEST)
        self._arriving = ClientRequest()
        self._has_head = False
        self._head_bytes = 0

    def on_url(self, piece: bytes) -> None:
        if not self._frames_anew and self._arriving is not None:
            self._arriving.target += piece
            self._count_head(len(piece))

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head or self._arriving is None:
            return  # a trailer of a chunked body: nobody reads it, and nobody else shall
        self._arriving.add(name, value.rstrip(b" \t"))
        self._count_head(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        request = self._arriving
        if self._frames_anew or request is None:
            return
        request.method = self._parser.get_method().decode()
        version = self._parser.get_http_version()
        request.is_http10 = version == "1.0"
        refused = bare.refusal_of(request, version)
        if refused:
            raise _HeadRefused(refused)
        self._has_head = True
        self._partial_bytes = -1
        self._requests.append(request)
        self._begin()

    def on_body(self, piece: bytes) -> None:
        if self._arriving is not None:
            self._arriving.feed(piece)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return  # to httptools every request for an upgrade ends with its head
        request, self._arriving = self._arriving, None
        self._frames_anew = False
        if request is not None:
            request.complete(keeps_alive=self._parser.should_keep_alive())

    # parsing

    def _parse(self, data: bytes) -> None:
        try:
            self._feed(data)
        except (httptools.HttpParserError, _HeadRefused) as error:
            self._break(error)
        else:
            if self._arriving is not None and not self._has_head:
                self._await_head(len(data))

    def _feed(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._ignore_upgrade()
            else:
                return

    def _ignore_upgrade(self) -> None:
        """The request is served as if it had not asked (RFC 9110 7.8); Java's HTTP client asks for h2c by default.

        httptools skips the body of such a request and would read it as the next one: another parser goes on from here.
        """
        assert self._arriving is not None, "an upgrade without a request"
        self._frames_anew = True
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(bare.framing_of(self._arriving))

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self._owner.limits.header_bytes:
            raise _HeadRefused(bare.HEAD_TOO_LONG)

    def _await_head(self, read_bytes: int) -> None:
        """A read ended inside a head: what is left may take its time, and a field without an end its size."""
        if self._partial_bytes < 0:
            self._partial_bytes = 0
            if not self.task:
                self._end_in(self._owner.limits.header_s)
            return
        self._partial_bytes += read_bytes
        if self._partial_bytes > self._owner.limits.header_bytes:
            self._break(_HeadRefused(bare.HEAD_TOO_LONG))

    def _break(self, error: Exception) -> None:
        reason = error.args[0] if isinstance(error, _HeadRefused) else _reason_of(error)
        log.debug("no HTTP from a client: %s", error)
        self._broken = reason
        arriving, self._arriving = self._arriving, None
        if arriving is not None and self._has_head:
            arriving.fail()  # whoever reads its body says so, in the dialect of its route
        elif not self._requests:
            self._say_broken()

    def _say_broken(self) -> None:
        if self.transport is not None:
            self.transport.write(bare.answer(self._broken, self._owner.fresh_id()))
            self._finish()

    # serving

    def _begin(self) -> None:
        if self.task is None:
            self.task = self._loop.create_task(self._serve(self._requests[0]))

    async def _serve(self, request: ClientRequest) -> None:
        try:
            await self._owner.handle(request, self)
        finally:
            self._served(request)

    def _served(self, request: ClientRequest) -> None:
        reply, self.reply = self.reply, None
        self.task = None
        self._requests.popleft()
        if self._is_over or self.transport is None:
            return
        if reply is None or not (reply.keeps_alive and request.is_complete):
            self._finish()
        elif self._requests:
            self._begin()
            self._parse_ahead()
        elif self._broken:
            self._say_broken()
        elif self._owner.is_closing and not self._ahead and self._partial_bytes < 0:
            self._finish()  # its answer had begun, and promised more, before the listener closed
        else:
            self._end_in(self._limit_of_silence())
            self._parse_ahead()

    def _limit_of_silence(self) -> float:
        limits = self._owner.limits
        return limits.keep_alive_s if self._partial_bytes < 0 else limits.header_s

    def _parse_ahead(self) -> None:
        """What came while a call was served: it may be several requests, or a part of one."""
        if self._ahead and not (self._requests and self._requests[0].is_complete):
            data = b"".join(self._ahead)
            self._ahead.clear()
            self._ahead_bytes = 0
            self._parse(data)

    def send(self, data: bytes) -> None:
        """Before the answer: an interim one."""
        if self.transport is not None:
            self.transport.write(data)

    # its end

    def close_if_idle(self) -> None:
        """Of a listener that closes: a request that has begun to come is still answered."""
        if self.task is None and self._partial_bytes < 0 and self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        self._is_over = True
        if self.transport is not None:
            self.transport.abort()

    def _finish(self) -> None:
        """All is said. A client that still sends is read for a while, so that the answer reaches it before a reset."""
        self._is_over = True
        transport = self.transport
        if transport is None:
            return
        if (self._arriving is None and not self._broken) or not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
        self._end_in(LINGER_S)

    def _end_in(self, seconds: float) -> None:
        """One timer a connection: it looks again where its time was put off."""
        self._due_s = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._due_s:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(self._due_s, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.task is not None:
            return  # a call has limits of its own; its end sets the next one
        if self._loop.time() < self._due_s:
            self._timer = self._loop.call_at(self._due_s, self._look)
        else:
            self.abort()


def _reason_of(error: Exception) -> bytes:
    """A refusal that was raised in the parser comes back as the parser's own error."""
    cause = error.__context__
    return cause.args[0] if isinstance(cause, _HeadRefused) else bare.BAD_REQUEST
