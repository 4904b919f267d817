"""A client of raw bytes: what it sends is exactly what a test says, and so is what it reads."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise

from tests.fakes.recordings import FOLDER, Headers

# Of an answer's head; whatever is longer is no answer of ours.
_READ_LIMIT = 1 << 20
# A dialogue that is stuck fails where it is stuck.
DIALOGUE_S_MAX = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """`is_whole`: its framing told the end. A close-delimited body never is."""

    first_line: bytes
    headers: Headers
    body: bytes
    is_whole: bool

    @property
    def status(self) -> int:
        return int(self.first_line.split(b" ")[1])

    def header(self, name: str) -> str:
        return self.headers.get(name.encode()).decode("latin-1")


def head_of(raw: bytes) -> tuple[bytes, Headers]:
    first_line, *lines = raw.removesuffix(b"\r\n\r\n").split(b"\r\n")
    pairs = [line.partition(b": ") for line in lines]
    return first_line, Headers(tuple((name, value) for name, _, value in pairs))


def body_of(headers: Headers, rest: bytes) -> tuple[bytes, bytes] | None:
    """A message's body and what follows it; None while it is not whole."""
    if headers.get(b"transfer-encoding").lower() != b"chunked":
        length = int(headers.get(b"content-length") or b"0")
        return None if len(rest) < length else (rest[:length], rest[length:])
    body, at = bytearray(), 0
    while True:
        end = rest.find(b"\r\n", at)
        if end < 0:
            return None
        length = int(rest[at:end].partition(b";")[0], 16)
        at = end + 2 + length
        if len(rest) < at + 2:
            return None
        body += rest[end + 2 : at]
        assert rest[at : at + 2] == b"\r\n", "a chunk that ends elsewhere"
        at += 2
        if not length:
            return bytes(body), rest[at:]


def pieces(raw: bytes, at: Iterable[int]) -> tuple[bytes, ...]:
    bounds = sorted({0, len(raw), *(position % (len(raw) + 1) for position in at)})
    return tuple(raw[start:end] for start, end in pairwise(bounds))


class RawClient:
    """One connection. Answers are read in order; nothing is read before it is asked for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def unsent(self) -> int:
        return self._writer.transport.get_write_buffer_size()

    def send(self, raw: bytes) -> None:
        self._writer.write(raw)

    async def send_cut(self, raw: bytes, at: Iterable[int]) -> None:
        """In several writes, a turn of the loop apart; positions are taken modulo its length."""
        for piece in pieces(raw, at):
            self._writer.write(piece)
            await asyncio.sleep(0)

    def send_eof(self) -> None:
        self._writer.write_eof()

    def leave(self) -> None:
        self._writer.transport.abort()

    async def head(self) -> tuple[bytes, Headers]:
        return head_of(await self._reader.readuntil(b"\r\n\r\n"))

    async def answer(self, *, to_head: bool = False) -> Answer:
        """The next answer, to its end by its framing, or the connection's."""
        first_line, headers = await self.head()
        if to_head or first_line.split(b" ")[1] in (b"100", b"204"):
            return Answer(first_line, headers, b"", is_whole=True)
        if headers.get(b"transfer-encoding") == b"chunked":
            return await self._chunked(first_line, headers)
        length = headers.get(b"content-length")
        if not length:
            return Answer(first_line, headers, await self._reader.read(), is_whole=False)
        try:
            return Answer(first_line, headers, await self._reader.readexactly(int(length)), is_whole=True)
        except asyncio.IncompleteReadError as error:
            return Answer(first_line, headers, error.partial, is_whole=False)

    async def _chunked(self, first_line: bytes, headers: Headers) -> Answer:
        body = bytearray()
        try:
            while length := int(await self._reader.readuntil(b"\r\n"), 16):
                body += await self._reader.readexactly(length)
                assert await self._reader.readexactly(2) == b"\r\n"
            assert await self._reader.readexactly(2) == b"\r\n"
        except asyncio.IncompleteReadError:
            return Answer(first_line, headers, bytes(body), is_whole=False)
        return Answer(first_line, headers, bytes(body), is_whole=True)

    async def some(self, size: int) -> bytes:
        return await self._reader.readexactly(size)

    async def chunked_body(self, begun: bytes = b"") -> bytes:
        """A body whose head is read, and of which `begun` is read as well, frames and all."""
        raw = bytearray(begun)
        while not raw.endswith(b"\r\n0\r\n\r\n"):
            piece = await self._reader.read(1 << 16)
            assert piece, "the connection closed before the last chunk"
            raw += piece
        whole = body_of(Headers(((b"Transfer-Encoding", b"chunked"),)), bytes(raw))
        assert whole is not None
        assert not whole[1]
        return whole[0]

    async def rest(self) -> bytes:
        """Everything up to the connection's end, however it ends."""
        got = b""
        try:
            while piece := await self._reader.read(1 << 16):
                got += piece
        except ConnectionResetError:
            pass
        return got


@asynccontextmanager
async def raw_client(port: int, *, receive_buffer: int = 0) -> AsyncIterator[RawClient]:
    """`receive_buffer`: bytes that the kernel takes for a client that does not read."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    limit = receive_buffer or _READ_LIMIT
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    try:
        async with asyncio.timeout(DIALOGUE_S_MAX):
            yield RawClient(reader, writer)
    finally:
        writer.transport.abort()


async def exchange(port: int, raw: bytes) -> Answer:
    """One request on a connection of its own."""
    async with raw_client(port) as client:
        client.send(raw)
        return await client.answer()


def post(path: str, body: bytes, *lines: bytes, version: bytes = b"1.1") -> bytes:
    head = b"".join(b"%b\r\n" % line for line in lines)
    return b"POST %b HTTP/%b\r\nHost: router\r\n%bContent-Length: %d\r\n\r\n%b" % (
        path.encode(), version, head, len(body), body,
    )  # fmt: skip


def get(path: str, *lines: bytes, method: bytes = b"GET", version: bytes = b"1.1") -> bytes:
    head = b"".join(b"%b\r\n" % line for line in lines)
    return b"%b %b HTTP/%b\r\nHost: router\r\n%b\r\n" % (method, path.encode(), version, head)


def recorded_request(name: str) -> bytes:
    return (FOLDER / f"{name}.request").read_bytes()
