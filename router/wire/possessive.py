"""Repeats of a group that never give back what they took, also where Python's own are broken.

Before Python 3.11.5 (Debian 12 has 3.11.2) a possessive repeat of a group that can backtrack matches wrongly: cpython
issue 106052. An atomic group around a greedy repeat means the same; it takes more memory for each round.
"""

import sys

_WORKS = sys.version_info >= (3, 11, 5)


def possessive(group: bytes, times: bytes = b"*") -> bytes:
    """A pattern for `group` as often as `times` says: `*`, `?` or `{0,16}`."""
    return rb"(?:%b)%b+" % (group, times) if _WORKS else rb"(?>(?:%b)%b)" % (group, times)
