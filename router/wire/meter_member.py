"""One member's value replaced in a JSON object that passes in pieces, exactly and without keeping the object.

A structural walk, not a search: the same member name inside tool arguments, schemas or strings is never touched, in
whatever order the object's members come. What is no JSON object passes as it is.
"""

from __future__ import annotations

import re

from router.wire.possessive import possessive

# A literal that is cut by the end of a piece is held back until it is whole: a key, or the value that may be replaced.
# Longer than any model name can be (Ollama's types/model/name.go: host 350, three parts of 80), escaped throughout.
LITERAL_BYTES_MAX = 4096

_WATCHED = re.compile(rb'["{}\[\],:]')  # in the object whose keys are read
_NESTED = re.compile(rb'["{}\[\]]')  # anywhere deeper
_QUOTE = 0x22
_STRING_REST = re.compile(rb'[^"\\]*+' + possessive(rb'\\.[^"\\]*+'), re.DOTALL)


class MemberEditor:
    """Writes `new` where the value of the member at `path` is the literal `old`; any other value stays."""

    __slots__ = (
        "_depth",
        "_held",
        "_in_string",
        "_is_escaped",
        "_is_key",
        "_matched",
        "_matches",
        "_new",
        "_old",
        "_path",
        "is_done",
    )

    def __init__(self, path: tuple[bytes, ...], old: bytes, new: bytes) -> None:
        """`path`: the keys from the outermost object inwards, as literals with their quotes."""
        self._path = path
        self._old = old
        self._new = new
        self._depth = 0  # objects and arrays open
        self._matched = 0  # keys of the path that the walk is inside of
        self._is_key = False  # the next string at the watched depth is a key
        self._matches = False  # the last key at the watched depth is the path's next
        self._in_string = False  # the last piece ended inside a string that is of no interest
        self._is_escaped = False  # and its last byte was a backslash that escapes the next
        self._held = b""
        self.is_done = False

    def feed(self, data: bytes) -> bytes:
        if self.is_done or not data:
            return data
        if self._held:
            data = self._held + data
            self._held = b""
        at = self._skip_string(data, int(self._is_escaped)) if self._in_string else 0
        while not (self.is_done or self._in_string):
            token = (_NESTED if self._depth > self._matched + 1 else _WATCHED).search(data, at)
            if token is None:
                break
            at = token.end()
            if token[0] != b'"':
                self._structure(token[0])
                continue
            start = at - 1
            is_target = self._is_target()
            at = self._string(data, start)
            if at < 0:
                self._held = data[start:]
                return data[:start]
            if is_target and data[start:at] == self._old:
                return b"%b%b%b" % (data[:start], self._new, data[at:])
        return data

    def finish(self) -> bytes:
        """What was held back: the object ended inside a literal."""
        held, self._held = self._held, b""
        return held

    def _structure(self, token: bytes) -> None:
        """The watched depth is one more than the keys matched: the object that holds the path's next key."""
        is_watched = self._depth == self._matched + 1
        if token in b"{[":
            self._open(token, is_watched)
        elif token in b"}]":
            self._depth -= 1
            if is_watched and self._matched:
                self._matched -= 1
                self._matches = False
            # The outermost object's end; below it, no JSON at all.
            self.is_done = self._depth <= 0
        elif is_watched:
            self._is_key = token == b","

    def _open(self, token: bytes, is_watched: bool) -> None:
        if self._depth == 0:
            self.is_done = token == b"["
            self._is_key = True
        elif is_watched and self._matches and token == b"{" and self._matched + 1 < len(self._path):
            self._matched += 1
            self._is_key = True
            self._matches = False
        self._depth += 1

    def _is_target(self) -> bool:
        is_watched = self._depth == self._matched + 1
        return is_watched and not self._is_key and self._matches and self._matched + 1 == len(self._path)

    def _string(self, data: bytes, start: int) -> int:
        """Where the string that opens at `start` ends; -1 when the piece ends first and its text matters."""
        is_key = self._is_key and self._depth == self._matched + 1
        is_target = self._is_target()
        at = self._skip_string(data, start + 1)
        if self._in_string:
            if (is_target or is_key) and at - start <= LITERAL_BYTES_MAX:
                self._in_string = False
                return -1
            self._matches = False  # longer than what is looked for
            self.is_done = self._depth == 0
            return at
        if is_key:
            self._matches = data[start:at] == self._path[self._matched]
        self.is_done = is_target or self._depth == 0
        return at

    def _skip_string(self, data: bytes, at: int) -> int:
        """Behind the closing quote; with `_in_string` set where the piece ends first."""
        close = data.find(b'"', at)
        if close >= 0 and data.find(b"\\", at, close) < 0:
            self._in_string = False
            return close + 1
        match = _STRING_REST.match(data, at)
        end = match.end() if match else at
        self._in_string = close < 0 or end >= len(data) or data[end] != _QUOTE
        # The expression stops before a backslash only where the piece ends behind it.
        self._is_escaped = self._in_string and end < len(data)
        return len(data) if self._in_string else end + 1
