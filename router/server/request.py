"""One client's request as its parser tells it: the head at once, the body as it comes."""

from __future__ import annotations

import asyncio

from router.errors import BadRequest
from router.wire.headers import Pair

FRAMED_WRONGLY = "request body was framed wrongly"


class ClientRequest:
    """Filled by one connection, read by one handler. Header names keep their spelling; look-ups are in lower case."""

    __slots__ = (
        "_failure",
        "_pieces",
        "_values",
        "_waiter",
        "headers",
        "is_complete",
        "is_http10",
        "keeps_alive",
        "method",
        "target",
    )

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.headers: list[Pair] = []
        self.is_http10 = False
        self.keeps_alive = False  # what its client wants; known once it is complete
        self.is_complete = False  # head and body are here
        self._values: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._failure = ""

    def __repr__(self) -> str:
        state = "complete" if self.is_complete else "arriving"
        return f"<ClientRequest {self.method} {self.target[:64]!r} | {state}>"

    def header(self, name: str) -> str:
        """The first of that lower-case name; empty where there is none."""
        return self._values.get(name.encode(), b"").decode("latin-1")

    # the parser's side

    def add(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
        self._values.setdefault(name.lower(), value)

    def feed(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._wake()

    def complete(self, *, keeps_alive: bool) -> None:
        self.is_complete = True
        self.keeps_alive = keeps_alive
        self._wake()

    def fail(self) -> None:
        """No more of its body can be told from what follows it."""
        self._failure = FRAMED_WRONGLY
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # the handler's side

    async def read(self) -> bytes:
        """What has come since the last time, waiting for it where it must; b"" at the end. Raises BadRequest."""
        while not self._pieces and not self.is_complete:
            if self._failure:
                raise BadRequest(self._failure)
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.take()

    def take(self) -> bytes:
        """What is here, without waiting."""
        pieces = self._pieces
        if len(pieces) == 1:
            return pieces.pop()
        data = b"".join(pieces)
        pieces.clear()
        return data
