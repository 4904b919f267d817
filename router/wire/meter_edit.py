"""What a streamed event becomes on its way to the client: its model member as the client named it, unasked usage gone.

Each shape has its own editor, chosen once per answer. Invariant 5 of ARCHITECTURE.md lists all edits.
"""

from __future__ import annotations

from collections.abc import Callable

from router.wire.endpoints import Shape
from router.wire.meter_events import NAMED, USAGE
from router.wire.meter_member import MemberEditor

# An event and its marks to the event for the client, or None where it vanishes.
Edit = Callable[[bytes, int], bytes | None]

MODEL = b'"model"'
_CONTAINERS = {Shape.RESPONSES: b'"response"', Shape.MESSAGES: b'"message"'}

# What the node adds to every event of /v1/completions that is asked for usage, but for the last.
_USAGE_MEMBER = b',"usage":{'


def event_editor(shape: Shape, *, sent: bytes, echo: bytes | None, hides_usage: bool) -> Edit | None:
    """None where every event passes as it is. `shape` streams; the names are JSON literals as Go writes them."""
    if echo == sent:
        echo = None
    if shape is Shape.OPENAI_CHAT and (echo or hides_usage):
        return _chat_editor(sent, echo, hides_usage=hides_usage)
    if shape is Shape.OPENAI_COMPLETION and (echo or hides_usage):
        return _completion_editor(sent, echo, hides_usage=hides_usage)
    if echo is None:
        return None
    if shape in _CONTAINERS:
        return _named_editor((_CONTAINERS[shape], MODEL), sent, echo)
    return _native_editor(sent, echo)


def _usage_remover(event: bytes, marks: int) -> bytes | None:
    return None if marks & USAGE else event


def _chat_editor(sent: bytes, echo: bytes | None, *, hides_usage: bool) -> Edit:
    if echo is None:
        return _usage_remover
    old, new = _members(sent, echo)

    def edit(event: bytes, marks: int) -> bytes | None:
        if hides_usage and marks & USAGE:
            return None
        # Exact: events of this route hold no client's raw JSON, and inside a string the quotes would be escaped.
        return event.replace(old, new, 1)

    return edit


def _completion_editor(sent: bytes, echo: bytes | None, *, hides_usage: bool) -> Edit:
    old, new = _members(sent, echo)

    def edit(event: bytes, marks: int) -> bytes | None:
        if hides_usage:
            if marks & USAGE:
                return None
            if event.endswith(b"}}"):
                at = event.rfind(_USAGE_MEMBER)
                if at >= 0:
                    event = event[:at] + b"}"
        return event.replace(old, new, 1)

    return edit


def _native_editor(sent: bytes, echo: bytes) -> Edit:
    start, new_start = b'{"model":%b,' % sent, b'{"model":%b,' % echo
    length = len(start)

    def edit(line: bytes, marks: int) -> bytes | None:
        if line.startswith(start):
            return new_start + line[length:]
        return _edited(line, (MODEL,), sent, echo)

    return edit


def _named_editor(path: tuple[bytes, ...], sent: bytes, echo: bytes) -> Edit:
    def edit(event: bytes, marks: int) -> bytes | None:
        return _edited(event, path, sent, echo) if marks & NAMED else event

    return edit


def _members(sent: bytes, echo: bytes | None) -> tuple[bytes, bytes]:
    return b'"model":%b' % sent, b'"model":%b' % (sent if echo is None else echo)


def _edited(event: bytes, path: tuple[bytes, ...], sent: bytes, echo: bytes) -> bytes:
    editor = MemberEditor(path, sent, echo)
    return editor.feed(event) + editor.finish()
