"""One attempt: a request to a node and its answer to the client, piece by piece, with no task switch in between.

A 200 is passed on from its first byte; any other answer is held (at most `HELD_BYTES_MAX`) until it is known whether
another node should be asked instead. What to do about a failure is `policy.retry`'s business, not ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from router.errors import Outcome, Refusal, UpstreamFailed, UpstreamTruncated
from router.policy.retry import Failure, classify
from router.seams import Reply
from router.upstream.attempt import HELD_BYTES_MAX, TEXT_BYTES_MAX, Attempt, framing_of, outcome_of
from router.upstream.connection import Headers, NodeConnection
from router.upstream.errand import Errand
from router.upstream.pool import ConnectFailed, ConnectionPool
from router.upstream.waiting import EVENT_STREAM, WaitingStream
from router.wire import comments, dialects, framing, headers
from router.wire.meter import Meter


class Passage:
    """The listener of one answer. Every callback is synchronous; `over` is set when nothing more will come."""

    __slots__ = (
        "_awaits_token",
        "_connection",
        "_errand",
        "_held",
        "_held_bytes",
        "_is_over",
        "_loop",
        "_meter",
        "_node_headers",
        "_pass_chunk",
        "_piece_s",
        "_reply",
        "_streams",
        "_timer",
        "_waiting",
        "_write",
        "attempt",
        "flush",
        "over",
    )

    def __init__(
        self, errand: Errand, reply: Reply, waiting: WaitingStream, connection: NodeConnection, attempt: Attempt
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._errand = errand
        self._reply = reply
        self._waiting = waiting
        self.flush = reply.flush  # called for every read: one frame less
        self._write = reply.write
        self._pass_chunk = reply.pass_chunk
        self._meter: Meter | None = None  # the attempt's, at hand
        self._awaits_token = True
        self._connection = connection
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._node_headers: Headers = []
        self._streams = False
        self._is_over = False
        self._piece_s: float | None = None  # None before the head and while the client's slowness holds us
        self.attempt = attempt
        self.over: asyncio.Future[None] = self._loop.create_future()
        # One timer for comments, for the first byte, and for the silences of a stream.
        self._timer = self._loop.call_at(min(errand.first_byte.at_s, waiting.due_s), self._watch)

    # the node's side

    def head(self, status: int, node_headers: Headers) -> None:
        attempt = self.attempt
        attempt.status = status
        attempt.first_byte_s = self._piece_s = monotonic()
        self._node_headers = node_headers
        if status == 200:
            self._pass_on()

    def piece(self, data: bytes) -> None:
        self._piece_s = now = monotonic()
        meter = self._meter
        if meter is None:
            self._hold(data)
            return
        shown = meter.feed(data)
        if shown:
            self._write(shown)
        if self._awaits_token and meter.has_content:
            self._awaits_token = False
            self.attempt.first_token_s = now

    def chunk(self, framed: bytes, start: int) -> None:
        """`piece` and `flush` in one, for the usual read: what is not edited keeps the node's own frame."""
        self._piece_s = now = monotonic()
        data = framed[start:-2]
        meter = self._meter
        if meter is None:
            self._hold(data)
            return
        shown = meter.feed(data)
        if shown:
            self._pass_chunk(framed if shown is data else framing.chunk(shown), shown)
        if self._awaits_token and meter.has_content:
            self._awaits_token = False
            self.attempt.first_token_s = now

    def ended(self) -> None:
        attempt = self.attempt
        if attempt.meter is None:
            self._settle()
        meter = attempt.meter
        if meter is not None:
            rest = meter.finish()
            if rest:
                self._reply.write(rest)
            if self._streams and (meter.node_error is not None or not meter.is_complete):
                self._truncate(meter.node_error or "the node ended its answer early")
            else:
                self._reply.end()
        self._finish()

    def failed(self, failure: Failure) -> None:
        if self.attempt.meter is None:
            self.attempt.failure = failure
            self.attempt.text = f"{failure} before an answer"
        else:
            self._truncate(f"the connection to the node was lost ({failure})")
        self._finish()

    # the client's side

    def pause(self) -> None:
        self._piece_s = None  # silence is ours now, not the node's
        self.attempt.was_slowed = True
        self._connection.pause_reading()

    def resume(self) -> None:
        self._piece_s = monotonic()
        self._connection.resume_reading()

    def stalled(self) -> None:
        self.attempt.outcome = Outcome.STALLED
        self._connection.close()
        self._reply.cut()
        self._finish()

    # ours

    def abort(self, refusal: Refusal) -> None:
        """Cuts the attempt from our side: told to the client in its dialect if the answer has begun."""
        if self._is_over:
            return  # its end is on the way to whoever awaits it, and the connection may serve another call by now
        self._connection.close()
        self.attempt.outcome = refusal.outcome
        self.attempt.refusal = refusal
        if self.attempt.meter is not None:
            self._tell(refusal)
        self._finish()

    def close(self) -> None:
        """The client has gone, or the call ends for another reason: nothing more is read or written."""
        # Not `over.done()`: a cancelled task has cancelled the future that it awaited.
        if not self._is_over:
            self._connection.close()
            self._finish()

    def _pass_on(self) -> None:
        errand, attempt = self._errand, self.attempt
        content_type, length = framing_of(self._node_headers)
        if self._waiting.is_open and not content_type.startswith(EVENT_STREAM):
            self._break_off(UpstreamFailed(f"the node answered {content_type.decode('latin-1')} instead of a stream"))
            return
        self._streams = content_type.startswith((EVENT_STREAM, b"application/x-ndjson"))
        is_ok = attempt.status == 200
        attempt.meter = self._meter = Meter(
            errand.endpoint,
            streams=self._streams,
            echo=errand.echo if is_ok else None,
            sent=errand.sent_literal,
            hides_usage=errand.hides_usage and is_ok,
        )
        if self._streams or (errand.echo is not None and is_ok):
            length = None  # events may go and an error may come; the name written instead may be longer
        self._timer.cancel()
        self._timer = self._loop.call_later(errand.idle_s, self._watch)
        self._reply.flow_to(self)
        if self._waiting.hand_over():
            self._reply.write(comments.decision(errand.decision))
        else:
            of_stream = headers.of_stream(self._node_headers) if self._streams else ()
            extra = (*errand.decision, *of_stream)
            self._reply.start(attempt.status, headers.for_client(self._node_headers, extra), length)
        for data in self._held:
            shown = attempt.meter.feed(data)
            if shown:
                self._reply.write(shown)
        self._held.clear()

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HELD_BYTES_MAX:
            self._pass_error()

    def _settle(self) -> None:
        """A whole answer that is no 200: for another node to better, or the client's to read."""
        attempt = self.attempt
        body = b"".join(self._held)
        attempt.failure = classify(attempt.status, body, has_other_target=self._errand.has_other_target)
        attempt.text = body[:TEXT_BYTES_MAX].decode("utf-8", "replace")
        if attempt.failure is None:
            self._pass_error()

    def _pass_error(self) -> None:
        """The node's own answer, which is no 200: as it is, or as the end of a stream that was opened early."""
        attempt = self.attempt
        attempt.outcome = outcome_of(attempt.status)
        if self._waiting.is_open:
            self._break_off(dialects.of_node(attempt.status, b"".join(self._held), attempt.outcome))
        else:
            self._pass_on()

    def _break_off(self, refusal: Refusal) -> None:
        """Nothing of this answer can be passed on: whoever tells refusals tells this one, as an event."""
        self._connection.close()
        self.attempt.outcome = refusal.outcome
        self.attempt.refusal = refusal
        self._finish()

    def _truncate(self, text: str) -> None:
        self.attempt.outcome = Outcome.UPSTREAM_TRUNCATED
        self.attempt.text = text
        self._tell(UpstreamTruncated(text))

    def _tell(self, refusal: Refusal) -> None:
        """An error event where the answer is a stream at an event's end; otherwise a broken answer says it."""
        meter = self.attempt.meter
        assert meter is not None
        if not (self._streams and meter.at_boundary):
            self._reply.cut()
            return
        if meter.node_error is None or self._errand.endpoint.is_compat:
            # A native node has said it itself, in a last line of its own (recording runner-died/api-chat-stream).
            self._reply.write(
                dialects.error_event(
                    self._errand.endpoint,
                    refusal,
                    sequence_number=meter.sequence_number,
                    request_id=self._errand.request_id,
                )
            )
        self._reply.end()

    def _watch(self) -> None:
        """One timer for both silences: before the first byte, and within a stream."""
        now = monotonic()
        if self.attempt.meter is None:  # nothing was passed on: an error that is told for ever is no answer either
            self._watch_first_byte(now)
            return
        due_s = (self._piece_s or now) + self._errand.idle_s
        if due_s > now:
            self._timer = self._loop.call_at(due_s, self._watch)
            return
        self._connection.close()
        self._truncate(f"the node was silent for {self._errand.idle_s:g} s")
        self._finish()

    def _watch_first_byte(self, now: float) -> None:
        errand, waiting = self._errand, self._waiting
        if now < errand.first_byte.at_s:
            if now >= waiting.due_s:
                waiting.say(comments.at_node(errand.node.name, waited_s=waiting.waited_s), errand.decision)
            self._timer = self._loop.call_at(min(errand.first_byte.at_s, waiting.due_s), self._watch)
            return
        self._connection.close()
        self.attempt.failure = Failure.FIRST_BYTE_TIMEOUT
        self.attempt.outcome = Outcome.TIMEOUT
        self.attempt.text = f"no answer within {errand.first_byte} from node {errand.node.name}"
        self._finish()

    def _finish(self) -> None:
        self._is_over = True
        self._timer.cancel()
        self._reply.flow_to(None)
        self.attempt.ended_s = monotonic()
        if not self.over.done():
            self.over.set_result(None)


async def forward(
    pool: ConnectionPool,
    errand: Errand,
    reply: Reply,
    waiting: WaitingStream,
    on_passage: Callable[[Passage | None], None],
) -> Attempt:
    """Never raises but CancelledError: then the connection is closed before anybody gives the slot back."""
    attempt = Attempt(errand.node.name, started_s=monotonic(), beside=errand.beside)
    connection = pool.idle(errand.node)
    is_fresh = connection is None
    while True:
        if connection is None:
            try:
                connection = await pool.connect(errand.node)
            except ConnectFailed as error:
                attempt.failure, attempt.text, attempt.ended_s = error.failure, error.text, monotonic()
                return attempt
        passage = Passage(errand, reply, waiting, connection, attempt)
        on_passage(passage)
        try:
            connection.send(errand.parts, passage)
            await passage.over
        finally:
            on_passage(None)
            passage.close()
        if is_fresh or connection.has_bytes or attempt.failure not in (Failure.CLOSED, Failure.RESET):
            return attempt
        # A kept connection that the node had closed meanwhile: nothing was asked yet, so ask again on a new one.
        attempt = Attempt(errand.node.name, started_s=attempt.started_s, beside=errand.beside)
        connection, is_fresh = None, True
