"""What one event of a streamed answer tells, found by its bytes: pure functions from an event to a set of marks.

An event is an NDJSON line or an SSE block without the newlines that end it. Go writes each route's members in a fixed
order and escapes quotes inside strings, so the bytes `"delta":{` can only be that member; where a client's own JSON may
stand raw in an event (native tool arguments, /v1/responses schemas) the notes below say why the match is still exact.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from router.wire.endpoints import Shape
from router.wire.gojson import unquote
from router.wire.possessive import possessive

# Marks, added up. Plain ints: an enum's `|` and `&` cost more than all else that happens to an event.
CONTENT = 1  # text, reasoning or a tool call: what ends the time to first token
COUNTS = 2  # carries the answer's true usage
USAGE = 4  # nothing but usage: vanishes when the client did not ask
END = 8  # the terminator
FAILED = 16  # the node says, or betrays, that its runner failed
NAMED = 32  # carries the model member inside `response` or `message`

Classify = Callable[[bytes], int]

# /v1/chat/completions and /v1/completions turn a native error line into an event with an empty model and no text
# (recordings `runner-died/v1-chat-stream`, `runner-died/v1-completions-stream`).
_NO_MODEL = b'"model":""'
UNSAID_FAILURE = "an error was encountered while running the model"

_DONE = b"data: [DONE]"
_NO_CHOICES = b'"choices":[]'
_COMPAT_ERROR = b'data: {"error":'

_RUNNING = b'},"finish_reason":null}]}'
_RUNNING_EMPTY = (
    b'"content":""},"finish_reason":null}]}',
    b'"delta":{"role":"assistant"},"finish_reason":null}]}',
    b'"delta":{},"finish_reason":null}]}',
)
# The role alone, or an empty text: `openai/v1-chat-stream` ends with {}, `v0.24/v1-chat-stream` with role and "".
_EMPTY_DELTA = re.compile(rb'"delta":\{(?:"role":"assistant")?,?(?:"content":"")?\}')
_DELTA = b'"delta":{'


def openai_chat(event: bytes) -> int:
    if event.endswith(_RUNNING) and not event.endswith(_RUNNING_EMPTY):
        return CONTENT
    if event == _DONE:
        return END
    at = event.find(_DELTA)
    if at >= 0:
        if not _EMPTY_DELTA.match(event, at):
            return CONTENT
        return FAILED if _NO_MODEL in event else 0
    if _NO_CHOICES in event:
        return USAGE | COUNTS
    return FAILED if event.startswith(_COMPAT_ERROR) else 0


_CHOICES = b'"choices":['
_CHOICES_LENGTH = len(_CHOICES)
_TEXT = b'{"text":"'
_TEXT_LENGTH = len(_TEXT)


def openai_completion(event: bytes) -> int:
    """Every event may carry a usage of zeros; the one without choices counts (`openai/v1-completions-stream-usage`)."""
    at = event.find(_CHOICES)
    if at < 0:
        if event == _DONE:
            return END
        return FAILED if event.startswith(_COMPAT_ERROR) else 0
    at += _CHOICES_LENGTH
    if event.startswith(_TEXT, at):
        if not event.startswith(b'"', at + _TEXT_LENGTH):
            return CONTENT
        return FAILED if _NO_MODEL in event else 0
    return USAGE | COUNTS if event.startswith(b"]", at) else 0


_NATIVE_RUNNING = b'"done":false}'
_CHAT_EMPTY = b'"content":""},"done":false}'
_GENERATE_EMPTY = b'"response":"","done":false}'
_NATIVE_DONE = b'"done":'
_NATIVE_ERROR = b'{"error":'


def native_chat(line: bytes) -> int:
    """`done` follows the message, so its last occurrence is never one inside tool arguments."""
    if line.endswith(_NATIVE_RUNNING):
        return 0 if line.endswith(_CHAT_EMPTY) else CONTENT
    return _native_rest(line, line.rfind(_NATIVE_DONE), b'"content":""},')


def native_generate(line: bytes) -> int:
    """`done` follows two strings, so its first occurrence is the member."""
    if line.endswith(_NATIVE_RUNNING):
        return 0 if line.endswith(_GENERATE_EMPTY) else CONTENT
    return _native_rest(line, line.find(_NATIVE_DONE), b'"response":"",')


def _native_rest(line: bytes, done_at: int, empty: bytes) -> int:
    if done_at < 0:
        return FAILED if line.startswith(_NATIVE_ERROR) else 0
    marks = 0 if line.endswith(empty, 0, done_at) else CONTENT
    if line.startswith(b"true", done_at + len(_NATIVE_DONE)):
        marks |= END | COUNTS
    return marks


_MESSAGES = {
    b"event: content_block_delta": CONTENT,
    b"event: message_start": NAMED,  # its usage is an estimate: `anthropic/v1-messages-stream`
    b"event: message_delta": COUNTS,
    b"event: message_stop": END,
    b"event: error": FAILED,
}

_RESPONSES = {
    b"event: response.created": NAMED,
    b"event: response.queued": NAMED,
    b"event: response.in_progress": NAMED,
    b"event: response.completed": NAMED | COUNTS | END,
    b"event: response.incomplete": NAMED | COUNTS | END,
    b"event: response.failed": NAMED | FAILED,
    b"event: error": FAILED,
}


def messages(event: bytes) -> int:
    return _MESSAGES.get(event[: event.find(b"\n")], 0)


def responses(event: bytes) -> int:
    name = event[: event.find(b"\n")]
    return CONTENT if name.endswith(b".delta") else _RESPONSES.get(name, 0)


# The usual piece of a stream is one event that ends so and not so: it has content and nothing else.
USUAL: dict[Shape, tuple[bytes, tuple[bytes, ...]]] = {
    Shape.OPENAI_CHAT: (_RUNNING + b"\n\n", tuple(empty + b"\n\n" for empty in _RUNNING_EMPTY)),
    Shape.CHAT: (_NATIVE_RUNNING + b"\n", (_CHAT_EMPTY + b"\n",)),
    Shape.GENERATE: (_NATIVE_RUNNING + b"\n", (_GENERATE_EMPTY + b"\n",)),
}
NEVER = (b"\0", ())

CLASSIFY: dict[Shape, Classify] = {
    Shape.OPENAI_CHAT: openai_chat,
    Shape.OPENAI_COMPLETION: openai_completion,
    Shape.CHAT: native_chat,
    Shape.GENERATE: native_generate,
    Shape.MESSAGES: messages,
    Shape.RESPONSES: responses,
}


# At most 18 digits: what is longer is no count, and int() of it would be work.
_COUNT = re.compile(
    rb'"(prompt_eval_count|prompt_tokens|input_tokens|eval_count|completion_tokens|output_tokens'
    rb'|load_duration|eval_duration)":(\d{1,18})[,}]'
)
_COUNT_NAMES = {
    b"prompt_eval_count": "input",
    b"prompt_tokens": "input",
    b"input_tokens": "input",
    b"eval_count": "output",
    b"completion_tokens": "output",
    b"output_tokens": "output",
    b"load_duration": "load_ns",
    b"eval_duration": "eval_ns",
}

# Longer than any match of _COUNT: data cut in two with this overlap hides no count.
COUNT_BYTES_MAX = 64


def counts(data: bytes | bytearray) -> dict[str, int]:
    """The last mention of each of `input`, `output` (tokens), `load_ns`, `eval_ns`.

    The last, because usage follows whatever holds a client's raw JSON: native metrics the message, compat usage the
    output, tools and text format (in /v1/responses events, whose keys are sorted, too).
    """
    return {_COUNT_NAMES[match[1]]: int(match[2]) for match in _COUNT.finditer(data)}


_LITERAL = rb'("' + possessive(rb'[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})') + rb'")'
_ERROR_TEXT = re.compile(rb'\{"error":' + _LITERAL)
_ERROR_MESSAGE = re.compile(rb'"message":' + _LITERAL)


def failure_text(event: bytes | bytearray) -> str:
    """The node's own words in any dialect; `UNSAID_FAILURE` where an event only betrays that it failed."""
    match = _ERROR_TEXT.search(event) or (_ERROR_MESSAGE.search(event) if b'"error"' in event else None)
    return unquote(match[1]) if match else UNSAID_FAILURE
