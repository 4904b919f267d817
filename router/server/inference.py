"""From a client's request to a call, and back to aiohttp. Bodies are read here, within their limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from aiohttp import HttpVersion10, HttpVersion11, web

from router.errors import BadRequest, BuffersFull, TooLarge
from router.pipeline import Pipeline
from router.seams import Call, Clock
from router.server.buffers import Buffers
from router.server.client import ClientConnection
from router.server.reply import ClientReply, answered
from router.wire import headers
from router.wire.endpoints import Endpoint

_FULL = "the router holds as many bytes as it may, please try again"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    body_bytes: int
    body_s: float


class BodyReader:
    """Reads one request's body and counts it as held until it is released."""

    __slots__ = ("_buffers", "_held", "_limits", "_request")

    def __init__(self, request: web.BaseRequest, limits: BodyLimits, buffers: Buffers) -> None:
        self._request = request
        self._limits = limits
        self._buffers = buffers
        self._held = 0

    async def read(self) -> bytes:
        """Raises TooLarge, BuffersFull, or BadRequest for a body that never came whole."""
        declared = self._request.content_length
        limit = self._limits.body_bytes
        if declared is not None and declared > limit:
            raise TooLarge(f"request body of {declared} bytes is larger than the limit of {limit} bytes")
        if self._buffers.is_full:
            raise BuffersFull(_FULL)
        if self._request.headers.get("Expect", "").lower() == "100-continue" and self._request.version >= HttpVersion11:
            transport = self._request.transport
            if transport is not None:
                transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces = await self._pieces(limit)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def release(self) -> None:
        held, self._held = self._held, 0
        self._buffers.change(-held)

    async def _pieces(self, limit: int) -> list[bytes]:
        content = self._request.content
        pieces: list[bytes] = []
        try:
            if content.is_eof():
                return self._whole(content.read_nowait(), limit)
            async with asyncio.timeout(self._limits.body_s):
                while True:
                    piece = await content.readany()
                    if not piece:
                        return pieces
                    self._held += len(piece)
                    self._buffers.change(len(piece))
                    if self._held > limit:
                        raise TooLarge(f"request body is larger than the limit of {limit} bytes")
                    if self._buffers.is_full:
                        raise BuffersFull(_FULL)
                    pieces.append(piece)
        except TimeoutError:
            raise BadRequest(f"request body was not complete within {self._limits.body_s:g} s") from None
        except (web.RequestPayloadError, web.PayloadAccessError, ValueError) as error:
            raise BadRequest("request body was framed wrongly") from error

    def _whole(self, data: bytes, limit: int) -> list[bytes]:
        """The usual body came with its head."""
        if len(data) > limit:
            raise TooLarge(f"request body is larger than the limit of {limit} bytes")
        self._held = len(data)
        self._buffers.change(len(data))
        if self._buffers.is_full:
            raise BuffersFull(_FULL)
        return [data]


class Inference:
    """Serves one request of an inference route."""

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
    ) -> None:
        self._pipeline = pipeline
        self._clock = clock
        self._buffers = buffers
        self._limits = limits
        self._stall_s = stall_s
        self._fresh_id = fresh_id
        self._is_leaving = is_leaving

    async def serve(self, request: web.BaseRequest, endpoint: Endpoint) -> web.StreamResponse:
        connection = cast(ClientConnection, request.protocol)
        body = BodyReader(request, self._limits, self._buffers)
        reply = self.reply_to(request)

        async def read_body() -> bytes:
            data = await body.read()
            # Only now: an answer to a body that is still on its way must close the connection.
            reply.keep_alive(request.keep_alive)
            connection.hold(reply)
            return data

        call = self._call(request, endpoint, read_body, body.release)
        try:
            await self._pipeline.serve(call, reply)
            await reply.taken()
        finally:
            reply.close()
            body.release()
        return answered(reply)

    def reply_to(self, request: web.BaseRequest) -> ClientReply:
        transport = request.transport
        assert transport is not None, "a request came on a connection that is gone"
        return ClientReply(
            transport,
            is_http10=request.version <= HttpVersion10,
            stall_s=self._stall_s,
            buffers=self._buffers,
            is_leaving=self._is_leaving,
        )

    def _call(
        self,
        request: web.BaseRequest,
        endpoint: Endpoint,
        read_body: Callable[[], Awaitable[bytes]],
        release_body: Callable[[], None],
    ) -> Call:
        found = request.headers
        ticket_id = self._fresh_id()
        return Call(
            endpoint=endpoint,
            request_id=headers.request_id(found.get("x-request-id"), lambda: ticket_id),
            ticket_id=ticket_id,
            headers=request.raw_headers,
            content_type=found.get("Content-Type", ""),
            content_encoding=found.get("Content-Encoding", ""),
            affinity=found.get("x-ollama-router-affinity", ""),
            arrived_s=self._clock.now_s(),
            arrived_wall_s=self._clock.wall_s(),
            read_body=read_body,
            release_body=release_body,
        )
