"""Routers of an earlier version and of this one share a pool: a rolling update, or a roll-back."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from router.errors import LoadFailed
from router.fleet.tickets import BEAT_S, SILENT_BEATS
from router.store.answers import Answer, Caller, Limits, Stale
from router.store.redis import codec, script
from tests.contracts.redis_harness import POOL, RedisBook, RedisHarness
from tests.contracts.store_driver import HARNESSES, Pool, call
from tests.contracts.test_store_histories import Histories
from tests.fakes import redis_server

EARLIER = gzip.decompress((Path(__file__).parent / "earlier" / "steps.lua.gz").read_bytes()).decode()
NAME = f"ollama_router_{sha256(EARLIER.encode()).hexdigest()[:12]}"
OLDER = "c"  # the replica that has not been updated yet


class MixedBook(RedisBook):
    """Whose steps are of the version that the caller has."""

    def many(self, caller: Caller, commands: Sequence[codec.Command], now_s: float) -> list[Answer[Any]]:
        self.function = NAME if caller.replica == OLDER else script.name()
        return super().many(caller, commands, now_s)


class MixedHarness(RedisHarness):
    def __init__(self, client: redis.Redis, limits: Limits, settle_s: float) -> None:
        super().__init__(client, limits, settle_s)
        library = f"#!lua name={NAME}\n{EARLIER}\nredis.register_function('{NAME}', Book.run)\n"
        client.execute_command("FUNCTION", "LOAD", "REPLACE", library)
        self.store = MixedBook(client, POOL, limits, settle_s)


def _mixed(limits: Limits, settle_s: float) -> MixedHarness:
    return MixedHarness(redis_server.shared(redis_server.valkey_binary()).client(), limits, settle_s)


@pytest.fixture
def pool() -> Pool:
    made = Pool(_mixed(Limits(), BEAT_S))
    for who in f"ab{OLDER}":
        made.hello(who)
    made.wait(BEAT_S)
    return made


def test_an_earlier_router_hears_of_refusals_as_it_did(pool: Pool) -> None:
    pool.take(OLDER, call("1"))
    pool.refuse("a", "m", LoadFailed("no room"))
    pool.beat(OLDER)
    assert [told.ticket for told in pool.answer.refusals] == ["1"]
    pool.beat(OLDER)
    assert pool.answer.refusals == ()


def test_what_an_earlier_router_refuses_is_told_to_one_of_this_version(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.refuse(OLDER, "m", LoadFailed("no room"))
    pool.beat("a")
    assert [told.ticket for told in pool.answer.refusals] == ["1"]


def test_an_earlier_router_does_not_forget_which_hello_was_the_latest(pool: Pool) -> None:
    pool.ready("a", "n1")
    late = pool.last_hello["a"]
    pool.hello("a")
    pool.take("a", call("1"))
    pool.beat(OLDER)
    pool.take(OLDER, call("2"))
    assert pool.late_hello("a", late) is Stale.OLD_SESSION
    assert pool.leases_on("n1") == 1


def test_either_reaps_the_other(pool: Pool) -> None:
    pool.take("a", call("1"))
    pool.take("b", call("2"))
    pool.wait(SILENT_BEATS, beating=OLDER)
    assert pool.lines(OLDER) == {}
    pool.take(OLDER, call("3"))
    pool.hello("a")
    pool.wait(SILENT_BEATS, beating="a")
    assert pool.lines("a") == {}


class MixedHistories(Histories):
    """What this version has more is asked of those who have it."""

    harness = "mixed"

    def late_hello(self, who: str) -> None:
        if who != OLDER:
            super().late_hello(who)

    def refusals_are_told(self, who: str) -> None:
        """By steps of an earlier version once, and to those who beat; nobody of this version misses one of its own."""
        told = {refused.ticket for refused in self.pool.answer.refusals}
        for ticket_id in told:
            self.standing[who].pop(ticket_id, None)


def test_random_histories_of_both_versions_agree_with_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HARNESSES, "mixed", _mixed)
    run_state_machine_as_test(
        MixedHistories,
        settings=settings(
            max_examples=10,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            report_multiple_bugs=False,
        ),
    )
