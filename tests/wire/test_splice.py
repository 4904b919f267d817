"""A splice changes its own range and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.splice import Splice, apply, length


@st.composite
def spliced_bodies(draw: st.DrawFn) -> tuple[bytes, list[Splice]]:
    body = draw(st.binary(max_size=60))
    cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=8)))
    pairs = zip(cuts[::2], cuts[1::2], strict=False)
    return body, [Splice(start, end, draw(st.binary(max_size=5))) for start, end in pairs]


@given(spliced_bodies())
def test_every_byte_outside_the_splices_stays(case: tuple[bytes, list[Splice]]) -> None:
    body, splices = case
    expected = bytearray(body)
    for splice in reversed(splices):
        expected[splice.start : splice.end] = splice.replacement
    pieces = apply(body, splices)
    assert b"".join(pieces) == expected
    assert length(body, splices) == len(expected)
    assert all(pieces)


def test_the_clients_bytes_are_views() -> None:
    body = b'{"model":"gpt-4"}'
    pieces = apply(body, [Splice(9, 16, b'"qwen3:8b"')])
    assert [isinstance(piece, memoryview) and piece.obj is body for piece in pieces] == [True, False, True]


def test_without_splices_the_body_is_one_piece() -> None:
    assert apply(b"abc", []) == [b"abc"]
    assert apply(b"", []) == []


@pytest.mark.parametrize("splices", [[Splice(2, 4, b""), Splice(3, 5, b"")], [Splice(4, 9, b"")], [Splice(3, 2, b"")]])
def test_splices_that_overlap_or_leave_the_body_are_a_bug(splices: list[Splice]) -> None:
    with pytest.raises(AssertionError):
        apply(b"abcde", splices)
