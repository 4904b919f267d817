"""Heads and chunks as HTTP/1.1 wants them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.framing import LAST_CHUNK, chunk, request_head, response_head
from tests.fakes.recordings import recording


def unchunked(raw: bytes) -> bytes:
    body = b""
    while True:
        size, _, raw = raw.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert raw == b"\r\n"
            return body
        body += raw[:length]
        assert raw[length : length + 2] == b"\r\n"
        raw = raw[length + 2 :]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=5))
def test_chunks_carry_the_bytes_they_were_made_of(pieces: list[bytes]) -> None:
    assert unchunked(b"".join(chunk(piece) for piece in pieces) + LAST_CHUNK) == b"".join(pieces)


def test_chunks_are_framed_as_the_node_frames_them() -> None:
    pieces = recording("native/chat-stream").response.chunks
    raw = b"".join(chunk(piece) for piece in pieces) + LAST_CHUNK
    assert raw.startswith(b"82\r\n")
    assert unchunked(raw) == b"".join(pieces)


def test_an_empty_chunk_is_a_bug_because_it_would_end_the_body() -> None:
    with pytest.raises(AssertionError):
        chunk(b"")


def test_a_request_head_is_what_the_recorder_sent() -> None:
    head = request_head("POST", "/api/chat", [(b"Host", b"ollama:11434"), (b"Content-Length", b"2")])
    assert head == b"POST /api/chat HTTP/1.1\r\nHost: ollama:11434\r\nContent-Length: 2\r\n\r\n"


def test_a_response_head_speaks_the_clients_version() -> None:
    assert response_head(200, []) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert response_head(503, [(b"A", b"b")], version="1.0") == b"HTTP/1.0 503 Service Unavailable\r\nA: b\r\n\r\n"


def test_an_unknown_status_has_an_empty_reason_but_keeps_its_space() -> None:
    assert response_head(499, []) == b"HTTP/1.1 499 \r\n\r\n"


@pytest.mark.parametrize("bad", [b"a\r\nb", b"a\nb", b"a\rb", b"a\0b", b"\r\n", b"\n\r"])
def test_bytes_that_would_split_a_head_are_a_bug(bad: bytes) -> None:
    for header in ((bad, b"value"), (b"name", bad)):
        with pytest.raises(AssertionError):
            request_head("GET", "/", [header])
        with pytest.raises(AssertionError):
            response_head(200, [header])
    with pytest.raises(AssertionError):
        request_head("GET", "/" + bad.decode(), [])


def test_a_space_in_a_target_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        request_head("GET", "/ HTTP/1.1", [])
