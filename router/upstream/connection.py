"""One HTTP/1.1 connection to a node. Owns framing and reuse; never decides what to do about a failure.

Everything that happens per piece of an answer happens in `data_received`, without a task switch: the C parser calls
`on_body`, which calls the listener, which writes to the client's transport.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Protocol, cast

import httptools

from router.policy.retry import Failure
from router.upstream.moderation import Moderation
from router.wire import framing

Headers = list[tuple[bytes, bytes]]

# Linux: a node that vanished without a FIN is noticed after half a minute of unacknowledged data.
USER_TIMEOUT_MS = 30_000
# Ollama's own limit for one head is 1 MiB (Go's http.DefaultMaxHeaderBytes); answers of nodes stay far below it.
HEAD_BYTES_MAX = 1 << 20
# How a read begins that is one whole chunk, by its length. Longer reads are rare and go through the parser.
_CHUNK_HEADS = framing.chunk_heads(4096)
# Linux forgets after a pause that acknowledgements shall wait: it is told again for one of so many chunks.
CHUNKS_PER_ACK_DELAY = 32
# Copying so much costs less than a second buffer costs the event loop.
JOINED_BYTES_MAX = 64 * 1024


class Listener(Protocol):
    """Who takes an answer. `ended` or `failed` is called exactly once, last, and never from inside `send`."""

    def head(self, status: int, headers: Headers) -> None: ...

    def piece(self, data: bytes) -> None: ...

    def chunk(self, framed: bytes, start: int) -> None:
        """A piece, and all of one read: `framed[start:-2]`, in the frame that the node put around it."""
        ...

    def flush(self) -> None:
        """All pieces of one read were given."""
        ...

    def ended(self) -> None: ...

    def failed(self, failure: Failure) -> None: ...


class NodeConnection(asyncio.Protocol):
    """Idle, or busy with exactly one request. `is_reusable` is only true while idle and clean."""

    def __init__(
        self,
        on_idle: Callable[[NodeConnection], None],
        on_lost: Callable[[NodeConnection], None],
        moderation: Moderation,
    ) -> None:
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._moderation = moderation
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._listener: Listener | None = None
        self._headers: Headers = []
        self._head_bytes = 0
        self._is_framed = False  # Content-Length or chunked: the end is told, not guessed from a close
        self._has_head = False
        self._has_ended = False
        self._has_bytes = False
        self._is_broken = False
        self._keeps_alive = False
        self._is_paused = False
        # The answer is chunked and the parser waits for a chunk's first byte: one that comes whole needs no parsing.
        self._is_between_chunks = False
        self._chunks = 0  # of the answer in hand, that needed no parsing
        self.answers = 0

    def __repr__(self) -> str:
        state = "closed" if self._transport is None else "busy" if self._listener else "idle"
        return f"<NodeConnection {state} | {self.answers} answers>"

    @property
    def is_reusable(self) -> bool:
        return (
            self._listener is None
            and not self._is_broken
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def has_bytes(self) -> bool:
        """The node has said something to the request in hand: no silent retry any more."""
        return self._has_bytes

    def send(self, parts: Sequence[bytes | memoryview], listener: Listener) -> None:
        assert self.is_reusable, "a busy or broken connection was handed out"
        assert self._transport is not None
        self._listener = listener
        self._headers = []
        self._head_bytes = self._chunks = 0
        self._is_framed = self._has_head = self._has_ended = self._has_bytes = False
        if sum(map(len, parts)) <= JOINED_BYTES_MAX:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)

    def close(self) -> None:
        """Drops the listener, then the connection at once: Ollama stops generating when it closes."""
        self._listener = None
        self._is_broken = True
        if self._transport is not None:
            self._transport.abort()

    def pause_reading(self) -> None:
        self._is_paused = True
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._is_paused = False
        if self._transport is not None:
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
            self._socket = sock

    def data_received(self, data: bytes) -> None:
        if self._listener is None:
            # Bytes nobody asked for: the next answer on this connection could not be trusted.
            self.close()
            return
        if self._is_between_chunks:
            size = len(data)
            head = _CHUNK_HEADS[size] if size < len(_CHUNK_HEADS) else framing.NO_CHUNK
            if data.startswith(head) and data.endswith(b"\r\n"):
                if not self._chunks % CHUNKS_PER_ACK_DELAY:
                    self._delay_acks()
                self._chunks += 1
                self._listener.chunk(data, len(head))
                self._moderation.chunk()
                return
        self._is_between_chunks = False
        self._has_bytes = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if not self._has_ended:
                self._fail(Failure.GARBAGE)
                return
            self._is_broken = True  # the answer is whole; what follows it is not for us
        if self._has_ended:
            self._finish()
        elif not self._has_head:
            self._await_head(len(data))
        elif self._listener is not None:
            # Nothing but a whole chunk head ends so, and that would have been told.
            self._is_between_chunks = self._is_between_chunks and data.endswith(b"\r\n")
            self._listener.flush()

    def _delay_acks(self) -> None:
        """Two chunks get one acknowledgement: not each its own as soon as it is read, a packet that says nothing else.

        Linux leaves this mode when it has waited 40 ms for the second (tcp(7)), so a slow stream is none the worse.
        """
        if self._socket is not None and hasattr(socket, "TCP_QUICKACK"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)

    def _await_head(self, read_bytes: int) -> None:
        """A read ended inside a head. Its fields, one without an end, and interim answers have a limit together."""
        self._head_bytes += read_bytes
        if self._head_bytes > HEAD_BYTES_MAX:
            self._fail(Failure.GARBAGE)

    def eof_received(self) -> None:
        # Returning None closes the transport; connection_lost then says what that meant.
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = self._socket = None
        del self._parser  # it holds us as well: without it nothing is left for the garbage collector, which comes late
        listener, self._listener = self._listener, None
        self._on_lost(self)
        if listener is None:
            return
        if exc is None and self._has_head and not self._is_framed:
            listener.ended()  # a close-delimited body ends so
        else:
            listener.failed(Failure.CLOSED if exc is None else Failure.RESET)

    # httptools

    def on_message_begin(self) -> None:
        if self._has_ended:
            self._is_broken = True  # bytes after the end: a second answer that nobody asked for

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._has_head:
            return  # a trailer: it is passed to nobody, and nobody shall fill memory with it
        self._headers.append((name, value))
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._is_framed = True

    def on_headers_complete(self) -> None:
        if self._has_ended:
            return
        status = self._parser.get_status_code()
        if status < 200:
            self._headers = []  # 100 Continue, 103 Early Hints: whole messages to the parser, nothing to us
            return
        self._has_head = True
        if status in (204, 304):
            self._is_framed = True
        if self._listener is not None:
            self._listener.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        if self._listener is not None and not self._has_ended:
            self._listener.piece(data)

    def on_chunk_header(self) -> None:
        self._is_between_chunks = False

    def on_chunk_complete(self) -> None:
        self._is_between_chunks = self._has_head

    def on_message_complete(self) -> None:
        self._is_between_chunks = False
        if self._has_head:
            self._has_ended = True
            # Only now: once the callback returns, llhttp has forgotten how this message was framed.
            self._keeps_alive = self._parser.should_keep_alive()

    def _finish(self) -> None:
        listener, self._listener = self._listener, None
        transport = self._transport
        self.answers += 1
        # An answer that came before the request was sent whole leaves bytes of it behind in our buffer.
        is_clean = (
            not self._is_broken
            and self._keeps_alive
            and transport is not None
            and transport.get_write_buffer_size() == 0
        )
        if not is_clean:
            self.close()
        if listener is not None:
            listener.ended()
        if is_clean and self.is_reusable:
            if self._is_paused:
                self.resume_reading()  # the last bytes of a fast answer paused us: the next answer must be heard
            self._on_idle(self)

    def _fail(self, failure: Failure) -> None:
        listener = self._listener
        self.close()
        if listener is not None:
            listener.failed(failure)
