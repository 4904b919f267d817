"""Taking zstd off a request body, with Ollama's limits (middleware/openai.go) and the words of its decoder."""

from __future__ import annotations

import zstandard

from router.errors import BadRequest, TooLarge

ZSTD_DECODED_BYTES_MAX = 20 * 1024 * 1024  # maxDecompressedBodySize
ZSTD_WINDOW_BYTES_MAX = 8 * 1024 * 1024  # WithDecoderMaxMemory
# A block of four bytes may stand for 128 KiB, so one feed brings at most 16 MiB before the limit is looked at.
_FEED_BYTES = 512
_MAGIC = b"\x28\xb5\x2f\xfd"


def decode(body: bytes) -> bytes:
    """Refuses what Ollama's decoder refuses, all of it while reading; frames may follow one another (RFC 8878 3.1).

    Too much output is 413 with Ollama's text, where Ollama itself says 400: the body is not malformed.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    pieces: list[bytes] = []
    size = 0
    frame = decompressor.decompressobj()
    is_between = True
    try:
        for start in range(0, len(body), _FEED_BYTES):
            rest = body[start : start + _FEED_BYTES]
            while rest:
                piece = frame.decompress(rest)
                size += len(piece)
                if size > ZSTD_DECODED_BYTES_MAX:
                    raise TooLarge("http: request body too large")
                pieces.append(piece)
                is_between, rest = frame.eof, frame.unused_data if frame.eof else b""
                if is_between:
                    frame = decompressor.decompressobj()
    except zstandard.ZstdError as error:
        raise BadRequest(_words(body, str(error)), while_reading=True) from None
    if not is_between:
        raise BadRequest("unexpected EOF", while_reading=True)
    return b"".join(pieces)


def _words(body: bytes, error: str) -> str:
    """klauspost/compress names the cause; libzstd's own words would be strange to its users."""
    if not body.startswith(_MAGIC):
        return "invalid input: magic number mismatch"
    return "window size exceeded" if "memory" in error else "corrupted input"
