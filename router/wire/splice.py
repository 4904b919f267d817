"""The one way to change a body: named byte ranges replaced, everything else the client's own bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Splice:
    """`replacement` instead of the half-open byte range; an empty range inserts, an empty replacement cuts."""

    start: int
    end: int
    replacement: bytes


def apply(body: bytes, splices: Sequence[Splice]) -> list[bytes | memoryview]:
    """The spliced body as pieces to be written one after another; the client's bytes are views, never copies.

    `splices` are sorted and do not overlap; two insertions at one place keep their order.
    """
    view = memoryview(body)
    pieces: list[bytes | memoryview] = []
    done = 0
    for splice in splices:
        assert done <= splice.start <= splice.end <= len(body), "splices are sorted and do not overlap"
        if splice.start > done:
            pieces.append(view[done : splice.start])
        if splice.replacement:
            pieces.append(splice.replacement)
        done = splice.end
    if done < len(body):
        pieces.append(view[done:])
    return pieces


def length(body: bytes, splices: Sequence[Splice]) -> int:
    """Bytes of the spliced body: its Content-Length."""
    return len(body) + sum(len(splice.replacement) - (splice.end - splice.start) for splice in splices)
