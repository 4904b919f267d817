"""Headers that a file holds for a node behind an auth proxy: one `Name: value` a line, `#` for comments."""

from __future__ import annotations

import re

from router.wire.headers import HOP_BY_HOP, Pair

# What Ollama's own server takes for a whole head is 1 MiB; a few tokens are a few KB.
CREDENTIALS_BYTES_MAX = 64 * 1024

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 5.6.2
_VALUE = re.compile(rb"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")  # RFC 9110 5.5
# Framing, and what the router says itself: a second one would be read by one side only.
_OURS = HOP_BY_HOP | {b"host", b"content-length", b"content-encoding", b"content-type", b"expect", b"via"}
_OURS |= {b"x-request-id"}


class CredentialsError(ValueError):
    """`line` counts from 1, 0 for the whole file. The text never repeats a value."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(text)
        self.line = line


def parse_credentials(data: bytes) -> tuple[Pair, ...]:
    """In their order. Refuses with CredentialsError what would change the request's framing or its next line."""
    if len(data) > CREDENTIALS_BYTES_MAX:
        raise CredentialsError(0, f"larger than {CREDENTIALS_BYTES_MAX} bytes")
    # Only at line feeds, and one carriage return before them: any other control character is refused below.
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    pairs = [_pair(number, line) for number, line in enumerate(lines, 1) if line.strip() and line[:1] != b"#"]
    if not pairs:
        raise CredentialsError(0, "holds no header")
    seen: set[bytes] = set()
    for name, _ in pairs:
        if name.lower() in seen:
            raise CredentialsError(0, f"has {name.decode()} twice")
        seen.add(name.lower())
    return tuple(pairs)


def _pair(number: int, line: bytes) -> Pair:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _NAME.fullmatch(name):
        raise CredentialsError(number, "should be NAME: VALUE, without space before the name or the colon")
    folded = name.lower()
    if folded in _OURS or folded.startswith((b"proxy-connection", b"x-ollama-router-")):
        raise CredentialsError(number, f"{name.decode()} is the router's own to send")
    if not _VALUE.fullmatch(value):
        raise CredentialsError(number, f"the value of {name.decode()} is empty or has control characters in it")
    return name, value
