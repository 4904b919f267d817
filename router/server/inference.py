"""From a client's request to a call, and its answer. Bodies are read here, within their limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from router.errors import BadRequest, BuffersFull, TooLarge
from router.pipeline import Pipeline
from router.seams import Call, Clock
from router.server.buffers import FULL, Buffers
from router.server.client import ClientConnection
from router.server.reply import ClientReply
from router.server.request import ClientRequest
from router.wire import headers
from router.wire.endpoints import Endpoint
from router.wire.trace import Trace

# Of people, and of the official SDKs in all languages; all of them in seconds.
TIMEOUT_HEADERS = ("x-request-timeout", "x-stainless-read-timeout", "x-stainless-timeout")

BeginTrace = Callable[[str, Sequence[headers.Pair]], Trace]


@dataclass(frozen=True, slots=True)
class BodyLimits:
    body_bytes: int
    body_s: float


class BodyReader:
    """Reads one request's body and counts it as held until it is released."""

    __slots__ = ("_buffers", "_held", "_limits", "_request", "_send")

    def __init__(
        self, request: ClientRequest, send: Callable[[bytes], None], limits: BodyLimits, buffers: Buffers
    ) -> None:
        self._request = request
        self._send = send
        self._limits = limits
        self._buffers = buffers
        self._held = 0

    async def read(self) -> bytes:
        """Raises TooLarge, BuffersFull, or BadRequest for a body that never came whole."""
        request = self._request
        if request.is_complete:
            data = request.take()  # the usual body came with its head
            self._hold(len(data))
            return data
        declared = int(request.header("content-length") or 0)
        if declared > self._limits.body_bytes:
            raise TooLarge(
                f"request body of {declared} bytes is larger than the limit of {self._limits.body_bytes} bytes"
            )
        if self._buffers.is_full:
            raise BuffersFull(FULL)
        if request.header("expect") and not request.is_http10:
            self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
        try:
            async with asyncio.timeout(self._limits.body_s):
                return b"".join(await self._pieces())
        except TimeoutError:
            raise BadRequest(f"request body was not complete within {self._limits.body_s:g} s") from None

    def release(self) -> None:
        self._request.discard()
        held, self._held = self._held, 0
        self._buffers.change(-held)

    async def _pieces(self) -> list[bytes]:
        pieces: list[bytes] = []
        while piece := await self._request.read():
            self._hold(len(piece))
            pieces.append(piece)
        return pieces

    def _hold(self, size: int) -> None:
        self._held += size
        self._buffers.change(size)
        if self._held > self._limits.body_bytes:
            raise TooLarge(f"request body is larger than the limit of {self._limits.body_bytes} bytes")
        if self._buffers.is_full:
            raise BuffersFull(FULL)


class Inference:
    """Serves one request of an inference route.

    `limits` and `stall_s` may be set anew; a call in hand keeps its own.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        clock: Clock,
        buffers: Buffers,
        limits: BodyLimits,
        stall_s: float,
        fresh_id: Callable[[], str],
        is_leaving: Callable[[], bool],
        begin_trace: BeginTrace | None = None,
    ) -> None:
        """`begin_trace` is None where tracing is off."""
        self._pipeline = pipeline
        self._clock = clock
        self._buffers = buffers
        self.limits = limits
        self.stall_s = stall_s
        self._fresh_id = fresh_id
        self._is_leaving = is_leaving
        self._begin_trace = begin_trace

    async def serve(
        self,
        request: ClientRequest,
        connection: ClientConnection,
        endpoint: Endpoint,
        extra: Sequence[headers.Pair],
    ) -> None:
        reply = self.reply_on(connection, request, extra)
        body = self.body_of(request, connection)

        async def read_body() -> bytes:
            data = await body.read()
            # Only now: an answer to a body that is still on its way must close the connection.
            reply.keep_alive(request.keeps_alive)
            return data

        call = self._call(request, endpoint, read_body, body.release)
        try:
            await self._pipeline.serve(call, reply)
            await reply.taken()
        finally:
            reply.close()
            body.release()

    def body_of(self, request: ClientRequest, connection: ClientConnection) -> BodyReader:
        return BodyReader(request, connection.send, self.limits, self._buffers)

    def reply_on(
        self, connection: ClientConnection, request: ClientRequest, extra: Sequence[headers.Pair]
    ) -> ClientReply:
        """`extra`: headers that its answer carries, whatever it is."""
        transport = connection.transport
        assert transport is not None, "a request is served on a connection that is gone"
        connection.reply = reply = ClientReply(
            transport,
            extra=extra,
            is_http10=request.is_http10,
            stall_s=self.stall_s,
            buffers=self._buffers,
            is_leaving=self._is_leaving,
        )
        return reply

    def _call(
        self,
        request: ClientRequest,
        endpoint: Endpoint,
        read_body: Callable[[], Awaitable[bytes]],
        release_body: Callable[[], None],
    ) -> Call:
        ticket_id = self._fresh_id()
        return Call(
            endpoint=endpoint,
            request_id=headers.request_id(request.header("x-request-id"), lambda: ticket_id),
            ticket_id=ticket_id,
            headers=request.headers,
            content_type=request.header("content-type"),
            content_encoding=request.header("content-encoding"),
            affinity=request.header("x-ollama-router-affinity"),
            timeout_s=headers.client_timeout_s(*map(request.header, TIMEOUT_HEADERS)),
            arrived_s=self._clock.now_s(),
            arrived_wall_s=self._clock.wall_s(),
            read_body=read_body,
            release_body=release_body,
            trace=None if self._begin_trace is None else self._begin_trace(endpoint.path, request.headers),
        )
