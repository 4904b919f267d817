"""One connection to a node, fed by hand: however reads fall, the same answer comes out."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.policy.retry import Failure
from router.upstream.connection import CHUNKS_PER_ACK_DELAY, NodeConnection
from router.upstream.moderation import Moderation
from router.wire.framing import LAST_CHUNK, chunk

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Heard:
    """A listener that keeps what it hears; `chunks` counts the reads that needed no parser."""

    def __init__(self) -> None:
        self.body = b""
        self.chunks = 0
        self.end = ""

    def head(self, status: int, headers: object) -> None: ...

    def piece(self, data: bytes) -> None:
        self.body += data

    def chunk(self, framed: bytes, start: int) -> None:
        assert framed == chunk(framed[start:-2])
        self.body += framed[start:-2]
        self.chunks += 1

    def flush(self) -> None: ...

    def ended(self) -> None:
        self.end = "ended"

    def failed(self, failure: Failure) -> None:
        self.end = failure


class Options:
    """As much of a socket as a connection asks for; `acks` is what was said about acknowledgements."""

    family = socket.AF_INET

    def __init__(self) -> None:
        self.acks: list[int] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        if (level, option) == (socket.IPPROTO_TCP, socket.TCP_QUICKACK):
            self.acks.append(value)


class Wire:
    """As much of a transport as a connection asks for."""

    def __init__(self, sock: Options | None = None) -> None:
        self._sock = sock

    def get_extra_info(self, name: str) -> Options | None:
        return self._sock

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None: ...


def heard(reads: Sequence[bytes], sock: Options | None = None) -> Heard:
    listener = Heard()
    connection = NodeConnection(lambda _: None, lambda _: None, Moderation(soon=lambda end_turn: None))
    connection.connection_made(Wire(sock))  # type: ignore[arg-type]
    connection.send((b"GET / HTTP/1.1\r\n\r\n",), listener)
    for read in reads:
        if not listener.end:
            connection.data_received(read)
    return listener


def cut(raw: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    ends = [end for end in accumulate(sizes) if end < len(raw)]
    return (raw[start:end] for start, end in pairwise([0, *ends, len(raw)]))


# Bodies that look like frames of their own, so that a read taken at the wrong place would be believed.
data = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.sampled_from([b"\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"a\r\n", b"\n", b"x" * 5000, chunk(b"y" * 300)]),
)


@given(st.lists(data, min_size=1, max_size=6), st.lists(st.integers(1, 60), max_size=40))
def test_an_answer_is_the_same_however_its_reads_fall(pieces: list[bytes], sizes: list[int]) -> None:
    raw = HEAD + b"".join(map(chunk, pieces)) + LAST_CHUNK
    found = heard(list(cut(raw, sizes)))
    assert (found.body, found.end) == (b"".join(pieces), "ended")


@given(st.lists(data, min_size=2, max_size=6))
def test_a_read_that_is_one_chunk_needs_no_parser(pieces: list[bytes]) -> None:
    found = heard([HEAD, *map(chunk, pieces), LAST_CHUNK])
    assert (found.body, found.end) == (b"".join(pieces), "ended")
    # The first one tells the parser's state; one longer than a usual read goes through it as well.
    after_a_parsed_one = [piece for piece in pieces[1:] if len(piece) < 4000]
    assert found.chunks == len(after_a_parsed_one)


@given(st.lists(data, min_size=1, max_size=3), st.integers(1, 400))
def test_a_read_inside_a_chunk_is_never_taken_for_one(before: list[bytes], size: int) -> None:
    """Its second part is byte for byte a chunk."""
    trap = chunk(b"z" * size)
    outer = chunk(b"head" + trap)
    at = outer.index(trap)
    found = heard([HEAD, *map(chunk, before), outer[:at], trap, outer[at + len(trap) :], LAST_CHUNK])
    assert (found.body, found.end) == (b"".join(before) + b"head" + trap, "ended")


@given(
    st.sampled_from([b"5;x\r\nhello\r\n", b"05\r\nhello\r\n", b"4\r\nhello\r\n", b"5\r\nhelloX\r\n", b"5\nhello\r\n"])
)
def test_what_go_would_not_write_is_left_to_the_parser(odd: bytes) -> None:
    found = heard([HEAD, chunk(b"first"), odd])
    assert found.chunks == 0
    assert (found.body, found.end) in (
        (b"firsthello", ""),  # an extension and a leading zero are HTTP
        (b"firsthell", Failure.GARBAGE),
        (b"firsthello", Failure.GARBAGE),
        (b"first", Failure.GARBAGE),
    )


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="Linux only")
@pytest.mark.parametrize(
    ("chunks", "times"), [(0, 0), (1, 1), (CHUNKS_PER_ACK_DELAY, 1), (CHUNKS_PER_ACK_DELAY + 1, 2)]
)
def test_a_stream_keeps_asking_that_acknowledgements_wait(chunks: int, times: int) -> None:
    sock = Options()
    found = heard([HEAD, chunk(b"first"), *[chunk(b"next")] * chunks], sock)
    assert found.chunks == chunks
    assert sock.acks == [0] * times
