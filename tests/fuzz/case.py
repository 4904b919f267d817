"""One connection's worth of bytes, and what its sender may expect of a server that keeps RFC 9112 and our documents."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise


class Expect(StrEnum):
    GOOD = "good"  # a 2xx: unusual, but right
    ANSWER = "answer"  # HTTP as it should be: an answer, its errors in the dialect of the route
    REFUSE = "refuse"  # no HTTP: a 4xx, 501 or 505 or no word at all, and the end of the connection
    LAST = "last"  # may be answered, but nothing after it: the connection ends
    ANY = "any"  # the server may do with it what it likes, in its own words, but not hang or break


class End(StrEnum):
    STAY = "stay"  # waits for the answer, then half-closes
    HALF_CLOSE = "half_close"  # says at once that nothing more comes
    LEAVE = "leave"  # is gone when the last byte is written


@dataclass(frozen=True, slots=True)
class Case:
    """`kind` names what was done to a good request, and is what a failure is counted by. `requests`: answers that may

    come at most; more of them were smuggled.
    """

    kind: str
    raw: bytes
    expect: Expect = Expect.ANY
    end: End = End.STAY
    requests: int = 1
    cuts: tuple[int, ...] = ()
    path: str = ""  # where it says how errors look
    is_head: bool = False

    @property
    def pieces(self) -> list[bytes]:
        """As they are written, a turn of the loop apart. Positions are taken modulo the length."""
        size = len(self.raw)
        bounds = sorted({0, size, *(cut % (size + 1) for cut in self.cuts)})
        return [self.raw[start:end] for start, end in pairwise(bounds)]

    def __repr__(self) -> str:
        shown = self.raw if len(self.raw) <= 2000 else self.raw[:1000] + b" ... " + self.raw[-500:]
        told = f"expects {self.expect} | {self.end} | cuts {self.cuts} | {len(self.raw)} bytes"
        return f"<Case {self.kind} | {told} {shown!r}>"
