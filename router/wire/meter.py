"""One answer's body on its way from the node to the client: what it tells is read, what must differ is edited.

Fed synchronously with decoded body bytes, cut anywhere. Owns nothing but the event that is not whole yet; never parses
JSON, never raises on what a node sends, and passes what it does not understand.
"""

from __future__ import annotations

from collections.abc import Iterator

from router.wire.endpoints import Endpoint, Shape
from router.wire.meter_edit import MODEL, Edit, event_editor
from router.wire.meter_events import (
    CLASSIFY,
    CONTENT,
    COUNTS,
    END,
    FAILED,
    NAMED,
    NEVER,
    USUAL,
    Classify,
    counts,
    failure_text,
)
from router.wire.meter_member import MemberEditor
from router.wire.meter_plain import PlainBody

# The line limit of Ollama's own clients (api/client.go, maxBufferSize): no reader of the node's can take more.
EVENT_BYTES_MAX = 8 * 1024 * 1024

_NATIVE = (Shape.CHAT, Shape.GENERATE)
_SEQUENCE_NUMBER = b'"sequence_number":'
_DIGITS_MAX = 18


class Meter:
    """Facts are readable at any time; those of a plain answer come with `finish`."""

    __slots__ = (
        "_classify",
        "_edit",
        "_edits_once",
        "_empty",
        "_empty",
        "_end",
        "_has_begun",
        "_last",
        "_member",
        "_partial",
        "_passes_usual",
        "_plain",
        "_usual",
        "content_events",
        "eval_s",
        "has_content",
        "input_tokens",
        "is_complete",
        "load_s",
        "node_error",
        "output_tokens",
    )

    def __init__(
        self, endpoint: Endpoint, *, streams: bool, echo: bytes | None, sent: bytes, hides_usage: bool
    ) -> None:
        """`streams`: the answer is SSE or NDJSON. `echo`: what to write where the answer's own model member is `sent`,

        both as JSON literals; None where the client's name was sent as it came. `hides_usage`: the router asked for
        usage, the client did not.
        """
        shape = endpoint.shape
        self.has_content = False  # a role alone is no content; of a plain answer, its first byte
        self.content_events = 0  # estimates the output tokens of a stream that never tells
        self.input_tokens: int | None = None
        self.output_tokens: int | None = None
        self.load_s: float | None = None  # native only: waiting for the node's scheduler, and the load
        self.eval_s: float | None = None  # native only
        self.is_complete = False  # the terminator came; a plain answer ended and is an object
        self.node_error: str | None = None
        self._classify: Classify | None = CLASSIFY.get(shape) if streams else None
        self._edit: Edit | None = None
        self._member: MemberEditor | None = None
        self._plain: PlainBody | None = None
        self._end = b"\n" if shape in _NATIVE else b"\n\n"
        self._edits_once = shape is Shape.MESSAGES
        self._usual, self._empty = USUAL.get(shape, NEVER) if streams else NEVER
        self._passes_usual = echo is None or echo == sent
        self._partial = bytearray()
        self._last = b""
        self._has_begun = False
        if self._classify is not None:
            self._edit = event_editor(shape, sent=sent, echo=echo, hides_usage=hides_usage)
        elif shape is not Shape.UNCOUNTED and not streams:
            self._plain = PlainBody()
            self._member = None if echo is None or echo == sent else MemberEditor((MODEL,), sent, echo)

    def feed(self, data: bytes) -> bytes:
        """What the client gets for it: `data` itself unless something is edited; b"" while an event is held back."""
        if self._classify is None:
            return self._feed_plain(data)
        edit, end = self._edit, self._end
        if (
            data.endswith(self._usual)
            and not data.endswith(self._empty)
            and data.find(b"\n") == len(data) - len(end)
            and not self._partial
        ):
            self.content_events += 1
            self.has_content = True
            self._last = data
            return data if self._passes_usual or edit is None else edit(data, CONTENT) or b""
        if not self._partial and 0 <= data.find(end) == len(data) - len(end):
            # One whole event, and most of them pass as they are.
            event = data[: -len(end)]
            marks = self._mark(event)
            self._last = data
            if edit is None:
                return data
            edited = edit(event, marks)
            return data if edited is event else b"" if edited is None else edited + end
        block = self._whole_events(data) if self._partial or not data.endswith(end) else data
        if edit is not None:
            return self._feed_edited(edit, block)
        if block:
            self._read(block)
        return data

    def finish(self) -> bytes:
        """The clean end of the message, once: what was held back. A broken message is not finished."""
        if self._classify is None:
            return self._finish_plain()
        rest = bytes(self._partial)
        edit, self._edit = self._edit, None
        if not rest:
            return b""
        # An event without its newlines is an event for all clients that read to the end.
        event = rest.rstrip(b"\n")
        marks = self._mark(event)
        if edit is None:
            return b""
        edited = edit(event, marks)
        return b"" if edited is None else edited + rest[len(event) :]

    @property
    def at_boundary(self) -> bool:
        """Whether the client stands between two events, so that one of ours may follow."""
        if self._classify is None:
            return not self._has_begun
        return self._edit is not None or not self._partial

    @property
    def sequence_number(self) -> int:
        """The next one of a /v1/responses stream; 0 before its first event."""
        at = self._last.rfind(_SEQUENCE_NUMBER)
        if at < 0:
            return 0
        at += len(_SEQUENCE_NUMBER)
        digits = self._last[at : at + _DIGITS_MAX].split(b",", 1)[0].rstrip(b"}\n")
        return int(digits) + 1 if digits.isdigit() else 0

    def _whole_events(self, data: bytes) -> bytes:
        """Everything up to the last event's end; the rest stays for the next piece."""
        partial = self._partial
        search_from = max(0, len(partial) - 1)
        partial += data
        cut = partial.rfind(self._end, search_from)
        if cut < 0:
            if len(partial) > EVENT_BYTES_MAX:
                self._give_up_event()
            return b""
        cut += len(self._end)
        block = bytes(partial[:cut])
        del partial[:cut]
        return block

    def _give_up_event(self) -> None:
        """No reader of the node's could take it: it passes unread, and nothing after it is edited."""
        if self._edit is None:
            del self._partial[:-1]
        self._edit = None

    def _read(self, block: bytes) -> None:
        for event in block.split(self._end):
            if event:
                self._mark(event)
        self._last = block

    def _feed_edited(self, edit: Edit, block: bytes) -> bytes:
        out = b""
        if block:
            self._last = block
            out = self._end.join(self._edited(edit, block.split(self._end)))
        if self._edit is None:
            # The last edit is done, or an event is too long to hold back: from here on pieces pass as they come.
            out += self._partial
        return out

    def _edited(self, edit: Edit, events: list[bytes]) -> Iterator[bytes]:
        for event in events:
            edited = edit(event, self._mark(event)) if event else event
            if edited is not None:
                yield edited

    def _mark(self, event: bytes) -> int:
        assert self._classify is not None, "a plain answer has no events"
        marks = self._classify(event)
        if marks:
            self._note(marks, event)
        return marks

    def _note(self, marks: int, event: bytes) -> None:
        if marks & CONTENT:
            self.content_events += 1
            self.has_content = True
        if marks & COUNTS:
            self._count(counts(event))
        if marks & END:
            self.is_complete = True
        if marks & FAILED and self.node_error is None:
            self.node_error = failure_text(event)
        if marks & NAMED and self._edits_once:
            self._edit = None

    def _count(self, found: dict[str, int]) -> None:
        self.input_tokens = found.get("input")
        self.output_tokens = found.get("output")
        if "load_ns" in found:
            self.load_s = found["load_ns"] / 1e9
        if "eval_ns" in found:
            self.eval_s = found["eval_ns"] / 1e9

    def _feed_plain(self, data: bytes) -> bytes:
        if data:
            self._has_begun = self.has_content = True
        if self._plain is not None:
            self._plain.feed(data)
        return data if self._member is None else self._member.feed(data)

    def _finish_plain(self) -> bytes:
        if self._plain is None:
            self.is_complete = True
            return b""
        self._count(self._plain.counts())
        self.is_complete = self._plain.is_whole()
        self.node_error = self._plain.failure()
        return b"" if self._member is None else self._member.finish()
