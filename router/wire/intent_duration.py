"""`keep_alive` as Ollama decodes it: seconds as a number, or a Go duration string (api/types.go, Duration)."""

from __future__ import annotations

import math
import re

from router.errors import TEXT_CHARS_MAX
from router.wire.gojson import unquote

FOREVER_S = math.inf
_NS = 1_000_000_000
_NS_MAX = 2**63  # time.Duration is a signed 64 bit count of nanoseconds
_DIGITS_MAX = 19

# time/format.go, unitMap; both spellings of micro
_UNIT_NS = {
    "ns": 1, "us": 1_000, "\xb5s": 1_000, "\u03bcs": 1_000,
    "ms": 1_000_000, "s": _NS, "m": 60 * _NS, "h": 3600 * _NS,
}  # fmt: skip
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?([^0-9.]*)")
_GO_TYPES = {b"t": "bool", b"f": "bool", b"[": "[]interface {}", b"{": "map[string]interface {}"}


class DurationError(ValueError):
    """Ollama's text: recording `refused/keep-alive`."""


def keep_alive_s(raw: bytes) -> float:
    """Seconds of a well-formed JSON value that is not null; negative means for ever."""
    first = raw[:1]
    if first in _GO_TYPES:
        raise DurationError(f"Unsupported type: '{_GO_TYPES[first]}'")
    if first == b'"':
        ns = _duration_ns(unquote(raw))
    else:
        seconds = float(raw)
        if math.isinf(seconds):
            raise DurationError(f"json: cannot unmarshal number {raw.decode()} into Go value of type float64")
        ns = int(max(-1.0, min(seconds * _NS, float(_NS_MAX)))) if seconds >= 0 else -1
    return FOREVER_S if ns < 0 or ns >= _NS_MAX else ns / _NS


def _duration_ns(text: str) -> int:
    """time.ParseDuration; a sum of terms, each with a unit."""
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0
    total, index = 0, 0
    while index < len(rest) or not rest:
        term = _TERM.match(rest, index)
        if term is None or not (term[1] or term[2]):
            raise DurationError(f"time: invalid duration {_quote(text)}")
        total += _term_ns(term, text)
        index = term.end()
        if total > _NS_MAX:
            raise DurationError(f"time: invalid duration {_quote(text)}")
    if total == _NS_MAX and text[0] != "-":
        raise DurationError(f"time: invalid duration {_quote(text)}")
    return -total if text[0] == "-" else total


def _term_ns(term: re.Match[str], text: str) -> int:
    whole, fraction, unit = term.groups()
    digits = whole.lstrip("0") or "0"
    if len(digits) > _DIGITS_MAX or int(digits) > _NS_MAX:
        raise DurationError(f"time: invalid duration {_quote(text)}")
    if not unit:
        raise DurationError(f"time: missing unit in duration {_quote(text)}")
    unit_ns = _UNIT_NS.get(unit)
    if unit_ns is None:
        raise DurationError(f"time: unknown unit {_quote(unit)} in duration {_quote(text)}")
    return int(digits) * unit_ns + int(float(f"0.{fraction or 0}") * unit_ns)


def _quote(text: str) -> str:
    """time/format.go, quote: bytes outside printable ASCII in hexadecimal."""
    chars = (
        f"\\{char}" if char in '"\\' else char if " " <= char < "\x80" else _hex(char) for char in text[:TEXT_CHARS_MAX]
    )
    return f'"{"".join(chars)}"'


def _hex(char: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in char.encode())
