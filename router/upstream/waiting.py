"""A call without a first byte, as its client sees it: silence, or a stream that is opened early for comments.

A 200 that has gone cannot be taken back: it comes late, after `comment_after_s`, and only where the route has a syntax
for comments. Who waits says when: `admission` in line, `forward` at the node. Nothing here has a timer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from time import monotonic

from router.seams import Reply
from router.wire.headers import of_stream

Pair = tuple[bytes, bytes]

EVENT_STREAM = b"text/event-stream"


class WaitingStream:
    """Belongs to one call, from its arrival to the first byte that is passed on or to the refusal that ends it."""

    __slots__ = ("_arrived_s", "_every_s", "_reply", "_request_id", "due_s", "is_open")

    def __init__(self, reply: Reply, request_id: str, arrived_s: float) -> None:
        self._reply = reply
        self._request_id = request_id
        self._arrived_s = arrived_s
        self._every_s = 0.0
        self.due_s = math.inf  # loop time of the next comment; never for calls that wait in silence
        self.is_open = False  # the 200 and comments have gone, and nothing of a node

    def __repr__(self) -> str:
        return f"<WaitingStream {'open' if self.is_open else 'silent'} for {self.waited_s:.1f} s>"

    @property
    def waited_s(self) -> float:
        return monotonic() - self._arrived_s

    def comment_from(self, due_s: float, every_s: float) -> None:
        self.due_s = due_s
        self._every_s = every_s

    def say(self, comment: bytes, decision: Sequence[Pair] = ()) -> None:
        """`decision`: headers known by now, for a stream that opens with this comment."""
        reply = self._reply
        if not self.is_open:
            self.is_open = True
            pairs = decision or ((b"x-request-id", self._request_id.encode()),)
            reply.start(200, ((b"Content-Type", EVENT_STREAM), *of_stream(), *pairs), None)
        elif reply.has_unsent:
            comment = b""  # a client that reads nothing is not buried in comments
        if comment:
            reply.write(comment)
            reply.flush()
        self.due_s = monotonic() + self._every_s

    def hand_over(self) -> bool:
        """The node's answer begins, or nothing more is said. True where its head has gone already."""
        was_open, self.is_open = self.is_open, False
        self.due_s = math.inf
        return was_open

    def end(self, event: bytes) -> None:
        """The last event of an open stream, which tells why nothing came. No terminator: the answer is not whole."""
        self.hand_over()
        self._reply.write(event)
        self._reply.end()
