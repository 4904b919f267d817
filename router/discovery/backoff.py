"""How long to wait before something that failed is tried again."""

from __future__ import annotations

import random

FIRST_S = 0.5
# An API server that was away gets all its watchers back within half a minute, spread over half of it.
MAX_S = 30.0
DOUBLINGS_MAX = 16


def pause_s(fails: int, rng: random.Random) -> float:
    """After so many failures in a row: doubled each time, up to MAX_S, and between half and all of it."""
    return min(MAX_S, FIRST_S * 2.0 ** min(fails - 1, DOUBLINGS_MAX)) * rng.uniform(0.5, 1.0)
