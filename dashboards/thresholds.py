"""Every number that decides whether somebody is woken, in one place."""

from __future__ import annotations

from dataclasses import dataclass

# Runbooks are found under this address. The chart puts `metrics.prometheusRule.runbookUrlBase` in its place.
RUNBOOKS = "https://github.com/ollama-router/ollama-router/blob/main/docs/runbooks"

# How the scrape's job is called: the chart names it after its release.
JOB = ".*ollama-router.*"

# Objectives over SLO_DAYS, as shares of calls.
SLO_DAYS = 30
AVAILABILITY = 0.995
TTFT = 0.95
TTFT_S = 2.5  # a bound of time_to_first_token_seconds

# Below so many calls a second no budget is said to burn: one failed call of ten is no outage.
CALLS_PER_S_MIN = 0.02


@dataclass(frozen=True, slots=True)
class Burn:
    """A pair of windows of kubernetes-mixin: the long one says that it matters, the short one that it goes on."""

    long: str
    short: str
    factor: float
    holds: str  # `for`
    severity: str


BURNS = (
    Burn("1h", "5m", 14.4, "2m", "critical"),
    Burn("6h", "30m", 6.0, "15m", "critical"),
    Burn("1d", "2h", 3.0, "1h", "warning"),
    Burn("3d", "6h", 1.0, "3h", "warning"),
)
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")

NODES_DOWN_SHARE = 0.5
QUEUE_SHARE = 0.8  # of queue_limit
QUEUE_TIMEOUT_SHARE = 0.01  # of all calls
SLOTS_SHARE = 0.95
TTFT_P95_S = 5.0
COLD_SHARE = 0.2
FAILED_LOADS_SHARE = 0.5
THRASH_PAIRS = 0
UPSTREAM_ERROR_SHARE = 0.05
UPSTREAM_ERRORS_PER_S_MIN = 0.05  # three a minute
DISCOVERY_AGE_S = 120  # a watch hears a bookmark each minute, and begins anew after four
LOOP_LAG_P99_S = 0.1
REDIS_P99_S = 0.05
