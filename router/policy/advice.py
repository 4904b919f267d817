"""When somebody who is sent away from a line should come back: honest, and not all at once."""

from __future__ import annotations

from random import Random

DRAIN_UNKNOWN_PER_S = 1.0  # a line that has not moved yet: usually a load is under way, and then it moves at once
RETRY_AFTER_S_MIN = 1.0
RETRY_AFTER_S_MAX = 60.0  # longer than that nobody's Retry-After is honoured by the official SDKs
RETRY_JITTER = 0.2


def come_back_s(grants: int, per_s: float | None, rng: Random) -> float:
    """Seconds until so many grants will have been made. Spread also at the upper end: many are told that."""
    wait_s = min(RETRY_AFTER_S_MAX / (1 + RETRY_JITTER), grants / (per_s or DRAIN_UNKNOWN_PER_S))
    return max(RETRY_AFTER_S_MIN, wait_s * rng.uniform(1 - RETRY_JITTER, 1 + RETRY_JITTER))
