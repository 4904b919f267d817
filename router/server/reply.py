"""The client's side of a call: heads and frames straight to its transport, its pace told to who fills it."""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from functools import lru_cache

from router.seams import Flow
from router.server.buffers import Buffers
from router.wire import framing

# A client that took less than this within `client_stall_s` has stopped reading; a slow one takes more.
STALL_BYTES = 1024
NO_BODY = (204, 304)  # RFC 9110: their end is the head's, and a chunk after it would be read as the next answer
# While the bytes of all calls together are over their limit, a stream looks this often whether it may go on.
THROTTLE_S = 0.05


class ClientReply:
    """One answer on one connection. Writes never wait; `Flow` hears when the client falls behind."""

    __slots__ = (
        "_accepted_at_pause",
        "_buffered",
        "_buffers",
        "_extra",
        "_flow",
        "_has_body",
        "_is_behind",
        "_is_chunked",
        "_is_cut",
        "_is_http10",
        "_is_leaving",
        "_keeps_alive",
        "_left",
        "_loop",
        "_pending",
        "_stall_s",
        "_stall_timer",
        "_throttle_timer",
        "_transport",
        "_written",
        "has_ended",
        "status",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        extra: Sequence[tuple[bytes, bytes]] = (),
        is_http10: bool,
        stall_s: float,
        buffers: Buffers,
        is_leaving: Callable[[], bool],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = transport
        self._extra = extra  # headers of the answer, whatever it is
        self._is_http10 = is_http10
        self._keeps_alive = False
        self._stall_s = stall_s
        self._buffers = buffers
        self._is_leaving = is_leaving
        self._flow: Flow | None = None
        self._pending: list[bytes] = []
        self._has_body = True
        self._is_behind = False  # the transport holds more than it may for one stream
        self._is_chunked = False
        self._is_cut = False
        self._left: int | None = None  # bytes of the promised length still owed
        self._written = 0
        self._buffered = 0
        self._accepted_at_pause = 0
        self._stall_timer: asyncio.TimerHandle | None = None
        self._throttle_timer: asyncio.TimerHandle | None = None
        self.status = 0
        self.has_ended = False

    @property
    def has_started(self) -> bool:
        return self.status != 0

    @property
    def has_unsent(self) -> bool:
        transport = self._transport
        return transport is not None and not transport.is_closing() and transport.get_write_buffer_size() > 0

    @property
    def keeps_alive(self) -> bool:
        """The connection may take another request: the answer is whole and its end was told."""
        return self._keeps_alive and self.has_ended

    def keep_alive(self, wanted: bool) -> None:
        """The request is whole: the connection may be used again, if its client wants that."""
        self._keeps_alive = wanted

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> None:
        assert not self.has_started, "an answer has one head"
        self.status = status
        self._has_body = status >= 200 and status not in NO_BODY
        self._left = length if self._has_body else None
        self._is_chunked = length is None and self._has_body and not self._is_http10
        if self._is_leaving() or (length is None and self._has_body and self._is_http10):
            self._keeps_alive = False  # this process ends soon; or only the close tells the body's end
        lines = [*headers, *self._extra]
        if not any(name.lower() == b"date" for name, _ in lines):
            lines.append((b"Date", _date(int(time.time()))))
        if length is not None and self._has_body:
            lines.append((b"Content-Length", b"%d" % length))
        elif self._is_chunked:
            lines.append((b"Transfer-Encoding", b"chunked"))
        if not self._keeps_alive:
            lines.append((b"Connection", b"close"))
        elif self._is_http10:
            lines.append((b"Connection", b"keep-alive"))
        self._pending.append(framing.response_head(status, lines))

    def write(self, data: bytes) -> None:
        if self._is_chunked:
            self._pending.append(framing.chunk(data))
        elif self._has_body:
            if self._left is not None:
                self._left -= len(data)
            self._pending.append(data)

    def write_unless_head(self, data: bytes, *, is_head: bool) -> None:
        """The answer to HEAD promises the length of a body that does not come (RFC 9110 section 9.3.2)."""
        if is_head:
            self._left = None
        else:
            self.write(data)

    def pass_chunk(self, framed: bytes, data: bytes) -> None:
        """What `write` and `flush` do, on one frame: this is once per chunk of a stream."""
        transport = self._transport
        if self._pending or not self._is_chunked or transport is None or transport.is_closing():
            self.write(data)
            self.flush()
            return
        transport.write(framed)
        self._written += len(framed)
        if transport.get_write_buffer_size() != self._buffered:
            self._note_buffered(transport)

    def flush(self) -> None:
        """What was written goes out in one piece: head and body, or the events of one read, cost one system call."""
        pending, transport = self._pending, self._transport
        if not pending:
            return
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        if transport is None or transport.is_closing():
            return
        transport.write(data)
        self._written += len(data)
        if transport.get_write_buffer_size() != self._buffered:
            self._note_buffered(transport)

    def _note_buffered(self, transport: asyncio.Transport) -> None:
        self._count(transport.get_write_buffer_size())
        if self._buffers.is_full:
            self._throttle()

    def end(self) -> None:
        if self.has_ended:
            return
        if self._left:
            self.cut()  # less came than was promised: only a broken connection says so
            return
        self.has_ended = True
        if self._is_chunked:
            self._pending.append(framing.LAST_CHUNK)
        self.flush()

    def cut(self) -> None:
        """The answer stays unfinished: what is written still goes out, and its end is a broken connection.

        That closes with the call, not before: a connection that is lost cancels its call, as if its client had left.
        """
        self._keeps_alive = False
        self._is_cut = True
        self.flush()

    async def taken(self) -> None:
        """Returns when the client has taken what was written, or its connection has ended: by its side or, when it

        takes next to nothing for `client_stall_s`, by ours. Until then the bytes count as held.
        """
        accepted, since_s = self._accepted(), self._loop.time()
        while self.has_unsent:
            await asyncio.sleep(THROTTLE_S)
            self._account()
            now_s = self._loop.time()
            if self._accepted() - accepted >= STALL_BYTES:
                accepted, since_s = self._accepted(), now_s
            elif now_s - since_s >= self._stall_s and self._transport is not None:
                self._transport.abort()
                return

    def flow_to(self, flow: Flow | None) -> None:
        self._flow = flow
        if flow is None:
            self._forget_stall()
        elif self._is_behind:
            self._hold_flow()  # with what was written before there was an answer to hold

    # the connection's calls

    def pause(self) -> None:
        self._is_behind = True
        self._hold_flow()

    def resume(self) -> None:
        self._is_behind = False
        if self._throttle_timer is None:
            self._let_flow()

    def _hold_flow(self) -> None:
        if self._flow is not None and self._stall_timer is None:
            self._accepted_at_pause = self._accepted()
            self._flow.pause()
            self._stall_timer = self._loop.call_later(self._stall_s, self._check_stall)

    def _let_flow(self) -> None:
        self._forget_stall()
        if self._flow is not None:
            self._flow.resume()

    def _throttle(self) -> None:
        """All calls together hold too much: this one, which has bytes waiting, takes no more for a moment."""
        if self._flow is not None and self._throttle_timer is None:
            self._hold_flow()
            self._throttle_timer = self._loop.call_later(THROTTLE_S, self._unthrottle)

    def _unthrottle(self) -> None:
        self._throttle_timer = None
        self._account()
        if self._flow is None:
            return
        if self._buffers.is_full and self._buffered:
            self._throttle_timer = self._loop.call_later(THROTTLE_S, self._unthrottle)
        elif not self._is_behind:
            self._let_flow()

    def lost(self) -> None:
        self._transport = None
        self._keeps_alive = False
        self._settle()

    def close(self) -> None:
        """The call is over, however it went: what was counted as buffered no longer is."""
        self.flow_to(None)
        self._settle()
        if self._is_cut and self._transport is not None:
            self._transport.close()

    def _accepted(self) -> int:
        """What the client's machine has acknowledged; the kernel's own buffer may stand still while it reads."""
        if self._transport is None:
            return self._written
        return self._written - self._transport.get_write_buffer_size() - _unacknowledged(self._transport)

    def _check_stall(self) -> None:
        accepted = self._accepted()
        if accepted - self._accepted_at_pause >= STALL_BYTES:
            self._accepted_at_pause = accepted
            self._stall_timer = self._loop.call_later(self._stall_s, self._check_stall)
            return
        self._stall_timer = None
        flow = self._flow
        if self._transport is not None:
            self._transport.abort()  # closing would wait for ever for the bytes it does not take
        if flow is not None:
            flow.stalled()

    def _forget_stall(self) -> None:
        for timer in (self._stall_timer, self._throttle_timer):
            if timer is not None:
                timer.cancel()
        self._stall_timer = self._throttle_timer = None

    def _account(self) -> None:
        self._count(self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def _count(self, buffered: int) -> None:
        self._buffers.change(buffered - self._buffered)
        self._buffered = buffered

    def _settle(self) -> None:
        if self._buffered:
            self._buffers.change(-self._buffered)
            self._buffered = 0


@lru_cache(maxsize=1)
def _date(wall_s: int) -> bytes:
    return formatdate(wall_s, usegmt=True).encode()


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Bytes in the kernel's send queue (tcp(7), SIOCOUTQ). Linux takes more only when a third of it is free, which can
    be a megabyte: a slow client would seem to have stopped. 0 where that cannot be asked."""
    sock = transport.get_extra_info("socket")
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, AttributeError):
        return 0
