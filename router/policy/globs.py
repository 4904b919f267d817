"""Which names a team may use: patterns over model keys and alias keys, in time that is linear in both."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from router.errors import BadRequest
from router.wire.names import DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG, parse_name

STAR = "*"  # any text, also none, also with `/` and `:` in it
_POSSIBLE = re.compile(r"[a-z0-9_.:/*-]+")


class GlobError(ValueError):
    """A pattern that no name could match."""


@dataclass(frozen=True, slots=True)
class Globs:
    """Made by `globs_of`. Equal ones see the same lists."""

    patterns: tuple[str, ...] = (STAR,)

    @property
    def match_all(self) -> bool:
        return STAR in self.patterns

    def match(self, key: str) -> bool:
        """`key` as `ModelName.key` is: lower case, with its tag."""
        return self.match_all or any(_matches(pattern, key) for pattern in self.patterns)


EVERYTHING = Globs()


def globs_of(texts: Iterable[str]) -> Globs:
    """Refuses with GlobError. Written otherwise, meant the same: case, order, repetition and `:latest`."""
    return Globs(tuple(sorted({_normalised(text) for text in texts})))


def _normalised(text: str) -> str:
    """A name as Ollama reads it. A pattern without a tag means `:latest`, unless its last star takes tags as well."""
    pattern = text.strip().lower()
    if STAR not in pattern:
        try:
            return parse_name(pattern).key if pattern else _nothing()
        except BadRequest as refusal:
            raise GlobError(f"{text!r}: {refusal.text}") from None
    if not _POSSIBLE.fullmatch(pattern):
        raise GlobError(f"{text!r}: only * stands for other text, and no model's name has such characters in it")
    if pattern.startswith((f"{DEFAULT_HOST}/", f"{DEFAULT_NAMESPACE}/")):
        raise GlobError(f"{text!r}: models of Ollama's own library are named without it, such as llama3*")
    pattern = re.sub(r"\*+", STAR, pattern)
    has_tag = pattern.rfind(":") > pattern.rfind("/")
    return pattern if has_tag or pattern.endswith(STAR) else f"{pattern}:{DEFAULT_TAG}"


def _nothing() -> str:
    raise GlobError("a model's name is empty")


def _matches(pattern: str, key: str) -> bool:
    first, *middle = pattern.split(STAR)
    if not middle:
        return key == pattern
    *middle, last = middle
    if len(key) < len(first) + len(last) or not key.startswith(first) or not key.endswith(last):
        return False
    at, end = len(first), len(key) - len(last)
    for part in middle:
        # The earliest place leaves most for the others: no backtracking.
        found = key.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
