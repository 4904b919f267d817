"""Whatever stands in a real server ends by itself, once no router is there."""

from __future__ import annotations

import pytest

from router.errors import LoadFailed
from router.fleet.words import Word
from router.policy.limits import TeamLimits
from router.store.redis import codec
from tests.contracts.conftest import MakePool
from tests.contracts.redis_harness import RedisHarness
from tests.contracts.store_driver import Pool, call

DAY_S = 86_400  # the longest limit of a team
KEPT_S = 93_600


@pytest.fixture
def used(make_pool: MakePool) -> Pool:
    """Something of every kind was kept, and nothing yet in the first second: keys come when they are needed."""
    pool = make_pool(teams={"t": TeamLimits(tokens_per_day=1_000)})
    if not isinstance(pool.harness, RedisHarness):
        pytest.skip("memory ends with its process")
    pool.wait(1, beating="ab")
    pool.incarnate("a", "n1")
    pool.ready("a", "n1")
    pool.harness.store.many(pool.callers["a"], [codec.board(0, [Word("t", 1.0, "hot")])], pool.clock_s)
    pool.take("a", call("1", team="t"))
    for who in "ab":
        pool.take(who, call(f"waits {who}"))
    pool.refuse("a", "m", LoadFailed("no room"))
    pool.take("b", call("2"))
    pool.leave("a", "left")
    return pool


def kept_s(pool: Pool) -> dict[str, int]:
    assert isinstance(pool.harness, RedisHarness)
    client = pool.harness.store.client
    return {key.decode(): client.ttl(key) for key in client.keys("ollama-router:*")}


def test_every_key_ends_after_the_last_beat(used: Pool) -> None:
    used.wait(1, beating="a")
    ends = kept_s(used)
    assert [key for key, seconds in ends.items() if not 0 < seconds <= KEPT_S] == []
    assert {
        name for name in ("meta", "teams", "tickets", "board") if ends[f"ollama-router:{{test}}:1:{name}"] > DAY_S
    } == {
        *("meta", "teams", "tickets", "board"),
    }


def test_every_key_ends_after_the_last_router_has_left_in_order(used: Pool) -> None:
    for who in "ab":
        used.bye(who)
    assert [key for key, seconds in kept_s(used).items() if not 0 < seconds <= KEPT_S] == []
