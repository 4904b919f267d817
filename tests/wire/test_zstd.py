"""Bodies that came as zstd are decoded within Ollama's own bounds."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import BadRequest, Refusal, TooLarge
from router.wire.zstd import ZSTD_DECODED_BYTES_MAX, ZSTD_WINDOW_BYTES_MAX, decode


def _streamed(data: bytes, level: int = 3) -> bytes:
    """Without the content's size in the header, as a client writes that does not know it."""
    compressor = zstandard.ZstdCompressor(level=level).compressobj()
    return compressor.compress(data) + compressor.flush()


@given(st.binary(max_size=3000), st.binary(max_size=50))
def test_what_was_encoded_comes_back(data: bytes, more: bytes) -> None:
    assert decode(zstandard.compress(data)) == data
    assert decode(_streamed(data) + _streamed(more)) == data + more


@given(st.binary(min_size=1, max_size=3000), st.integers(0, 10_000))
def test_a_frame_cut_short_is_refused(data: bytes, at: int) -> None:
    encoded = _streamed(data)
    with pytest.raises(BadRequest):
        decode(encoded[: 5 + at % (len(encoded) - 5)])


def test_nothing_decodes_to_nothing() -> None:
    assert decode(b"") == b""


@given(st.binary(min_size=1, max_size=60))
@settings(max_examples=50)
def test_garbage_is_a_bad_request(raw: bytes) -> None:
    for body in (raw, b"\x28\xb5\x2f\xfd" + raw):
        try:
            decode(body)
        except Refusal as refusal:
            assert refusal.text in {  # noqa: PT017
                "invalid input: magic number mismatch",
                "unexpected EOF",
                "corrupted input",
                "window size exceeded",
                "http: request body too large",
            }


def test_the_largest_body_passes_and_one_byte_more_does_not() -> None:
    assert len(decode(_streamed(bytes(ZSTD_DECODED_BYTES_MAX)))) == ZSTD_DECODED_BYTES_MAX
    with pytest.raises(TooLarge, match="http: request body too large"):
        decode(_streamed(bytes(ZSTD_DECODED_BYTES_MAX + 1)))


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(TooLarge):
        decode(_streamed(bytes(64 * 1024 * 1024)) * 50)


def test_a_window_beyond_ollamas_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=ZSTD_WINDOW_BYTES_MAX.bit_length())
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    with pytest.raises(BadRequest, match="window size exceeded"):
        decode(compressor.compress(b"abc" * 100) + compressor.flush())
