"""Go's JSON as Ollama speaks it: how encoding/json matches keys, decodes and writes strings, and words its errors.

`intent` finds spans, these functions read or write one string each; only `go_json` builds a document, one of ours.
"""

from __future__ import annotations

import json
import re

from router.wire.gojson_scanner import syntax_error

__all__ = ["fold", "go_json", "go_quote", "go_string", "syntax_error", "text_of", "unquote"]

_ESCAPE = re.compile(
    r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))", re.DOTALL
)
_SHORT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPED_BYTES = {0xDC00 + byte: 0xFFFD for byte in range(0x80, 0x100)}

# encoding/json encode.go, appendString with escapeHTML; tables.go, htmlSafeSet.
_UNSAFE = re.compile('[\x00-\x1f"\\\\<>&\u2028\u2029\ud800-\udfff]')
_WRITTEN = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}

# These stand in JSON text only inside strings.
_HTML = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})

# strconv/quote.go, appendEscapedRune
_QUOTED = {
    '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
}  # fmt: skip


def fold(key: str) -> str:
    """Equal for a key and an ASCII field name exactly when encoding/json would match them (fold.go).

    The long s and the Kelvin sign are the only runes outside ASCII whose fold orbit reaches into it.
    """
    lowered = key.lower()
    return lowered if lowered.isascii() else lowered.replace("\u017f", "s")


def text_of(raw: bytes) -> str:
    """UTF-8 by Go's rule: every byte that is not part of a valid sequence becomes one U+FFFD."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode(errors="surrogateescape").translate(_ESCAPED_BYTES)


def unquote(literal: bytes) -> str:
    """The value of a JSON string literal, quotes included (decode.go, unquoteBytes); a lone surrogate is U+FFFD.

    Never raises: a malformed escape, which no scanned body holds, stands for its own character.
    """
    text = text_of(literal[1:-1])
    return _ESCAPE.sub(_unescape, text) if "\\" in text else text


def _unescape(match: re.Match[str]) -> str:
    high, low, code, short = match.groups()
    if high:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    if code:
        rune = int(code, 16)
        return "\ufffd" if 0xD800 <= rune <= 0xDFFF else chr(rune)
    return _SHORT.get(short, short)


def go_string(text: str) -> bytes:
    """A JSON string literal as Go's encoder writes it, HTML escaping on, as in every answer of Ollama."""
    return f'"{_UNSAFE.sub(_escape, text)}"'.encode()


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if "\ud800" <= char <= "\udfff":
        return "\\ufffd"
    return _WRITTEN.get(char) or f"\\u{ord(char):04x}"


def go_json(value: object) -> bytes:
    """A document as Go's encoder writes it: no spaces, HTML escaping on. Keys stay in their order."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate(_HTML).encode("utf-8", "replace")


def go_quote(text: str) -> str:
    """`%q` of fmt, as in Ollama's `model "x" not found, try pulling it first`."""
    return f'"{"".join(map(_quoted, text))}"'


def _quoted(char: str) -> str:
    if char in _QUOTED:
        return _QUOTED[char]
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
