"""What a team has left, as the clients of each dialect read it."""

from __future__ import annotations

import pytest

from router.errors import Allowance, Allowances
from router.wire.allowances import go_duration, rate_limits
from router.wire.endpoints import Dialect

WALL_S = 1_800_000_000.25  # 2027-01-15T08:00:00.25Z
BOTH = Allowances(Allowance(600, 12, 0.1), Allowance(200_000, 0, 360.0))


def told(dialect: Dialect, left: Allowances) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in rate_limits(dialect, left, WALL_S)}


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (0.0, "0s"),
        (-1.0, "0s"),
        (0.0001, "1ms"),
        (0.0195, "20ms"),
        (1.0, "1s"),
        (1.2, "2s"),
        (59.9999, "1m0s"),
        (360.0, "6m0s"),
        (86_400.0, "24h0m0s"),
        (3_725.0, "1h2m5s"),
    ],
)
def test_a_reset_is_a_duration_as_go_writes_it(seconds: float, written: str) -> None:
    assert go_duration(seconds) == written


@pytest.mark.parametrize("dialect", Dialect)
def test_every_route_tells_it_in_the_names_of_openai(dialect: Dialect) -> None:
    found = told(dialect, BOTH)
    assert [found[f"x-ratelimit-{what}-requests"] for what in ("limit", "remaining", "reset")] == ["600", "12", "100ms"]
    assert [found[f"x-ratelimit-{what}-tokens"] for what in ("limit", "remaining", "reset")] == ["200000", "0", "6m0s"]


def test_anthropics_route_tells_it_in_its_own_names_besides() -> None:
    found = told(Dialect.ANTHROPIC, BOTH)
    assert {name: value for name, value in found.items() if name.startswith("anthropic-")} == {
        "anthropic-ratelimit-requests-limit": "600",
        "anthropic-ratelimit-requests-remaining": "12",
        "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:01Z",
        "anthropic-ratelimit-tokens-limit": "200000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "2027-01-15T08:06:01Z",
    }
    assert not [name for name in told(Dialect.OPENAI, BOTH) if name.startswith("anthropic-")]


@pytest.mark.parametrize("dialect", Dialect)
def test_a_limit_that_a_team_does_not_have_is_not_told(dialect: Dialect) -> None:
    assert not [name for name in told(dialect, Allowances(BOTH.requests, None)) if "tokens" in name]
    assert not told(dialect, Allowances(None, None))
