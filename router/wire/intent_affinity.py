"""What makes two calls likely to share a prompt prefix, as sixteen bytes."""

from __future__ import annotations

import re
from contextlib import suppress
from hashlib import blake2b
from itertools import islice

from router.wire.intent_fields import Fields
from router.wire.intent_members import MalformedError, elements_of

AFFINITY_BYTES = 16
HASHED_BYTES_MAX = 16 * 1024  # of each text: a shared prefix shows early, and a picture need not be read
MESSAGES_READ_MAX = 32  # a conversation without a user message among its first ones is told by those

_ROLE = re.compile(rb'"role"[ \t\r\n]{0,16}:[ \t\r\n]{0,16}"([a-z]{1,16})"')
_LEADING = (b"system", b"developer", b"user")


def affinity_of(fields: Fields, model_key: str) -> bytes:
    """The client's own key, else its user, else the model with its instructions and the first thing said.

    Of raw bytes: one client writes the turns of a conversation alike. A guess, so roles are found by pattern.
    """
    for letter, key in ((b"k", "prompt_cache_key"), (b"u", "user")):
        member = fields.kept.get(key)
        if member is not None and fields.is_filled(key):
            return _digest(letter, fields.body[member.value : min(member.end, member.value + HASHED_BYTES_MAX)])
    texts = [model_key.encode()]
    for key in ("system", "instructions", "prompt", "input", "messages"):
        member = fields.kept.get(key)
        if member is not None:
            texts += _leading(fields, member.value, member.end)
    return _digest(b"t", *texts)


def _leading(fields: Fields, start: int, end: int) -> list[bytes]:
    """The value itself, or of an array all up to the first user message."""
    if fields.body[start : start + 1] != b"[":
        return [fields.body[start : min(end, start + HASHED_BYTES_MAX)]]
    texts: list[bytes] = []
    with suppress(MalformedError):  # inside a body that was not validated; the node will say it
        _gather(fields, start, texts)
    return texts


def _gather(fields: Fields, start: int, texts: list[bytes]) -> None:
    for first, after in islice(elements_of(fields.body, start, fields.skip), MESSAGES_READ_MAX):
        limit = min(after, first + HASHED_BYTES_MAX)
        role = _ROLE.search(fields.body, first, limit)
        if role is None or role[1] in _LEADING:
            texts.append(fields.body[first:limit])
        if role is None or role[1] == b"user":
            return


def _digest(letter: bytes, *texts: bytes) -> bytes:
    """No text holds a NUL: JSON has none outside an escape."""
    return blake2b(b"\0".join((letter, *texts)), digest_size=AFFINITY_BYTES).digest()
