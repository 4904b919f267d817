"""What a team may use, from outside: over HTTP, before nodes; what limits mean in the store is tests/contracts/'s."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from router.fleet.tickets import Priority
from router.settings import Settings
from router.settings.teams import team_table
from tests.shell.clients import Client, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import ENDLESS, QUICK, holding, let_run, pool_of
from tests.shell.test_reload import Mounted, mounted, reading, reloads

__all__ = ["mounted"]

KEY = "eccbc87e4b5ce2fe28308fd9f2a7baf3"


def research(**limits: Any) -> dict[str, Any]:
    return {"research": {"keys_sha256": [sha256(KEY.encode()).hexdigest()], **limits}}


def test_everything_that_is_said_of_a_team_reaches_the_store() -> None:
    said: dict[str, Any] = {
        "weight": 2.0,
        "priority": "high",
        "max_concurrent": 3,
        "max_waiting": 0,
        "requests_per_minute": 5,
        "tokens_per_minute": 6,
        "tokens_per_day": 7,
    }
    limits = team_table(Settings(teams={"a": said}).teams).of("a")  # type: ignore[dict-item]
    assert {name: getattr(limits, name) for name in said} == {**said, "priority": Priority.HIGH}


async def test_a_team_over_its_requests_is_told_when_to_come_back_and_others_are_not_touched() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, teams=research(requests_per_minute=2)) as router:
        for _ in range(2):
            assert (await generate(router, QUICK, x_api_key=KEY)).status == 200
        refused = await generate(router, QUICK, x_api_key=KEY)
        assert (refused.status, refused.refused) == (429, "rate_limited")
        assert 0 < int(refused.headers["retry-after-ms"]) <= 30_000
        assert int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-limit-requests"] == "2"
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.headers["x-ratelimit-reset-requests"] in {"59s", "1m0s"}
        assert "x-ratelimit-limit-tokens" not in refused.headers
        assert (await generate(router, QUICK)).status == 200, "of the team default"
        assert (await scrape(router)).value("rejections_total", reason="rate_limited") == 1
        assert_at_rest(router)


async def test_tokens_that_were_used_are_waited_for() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, teams=research(tokens_per_minute=1)) as router:
        assert (await generate(router, QUICK, x_api_key=KEY)).status == 200
        refused = await generate(router, QUICK, x_api_key=KEY)
        assert (refused.status, refused.refused) == (429, "rate_limited")
        assert refused.headers["x-ratelimit-limit-tokens"] == "1"
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


async def test_a_client_that_leaves_early_has_used_its_prompt() -> None:
    async with holding(1, ENDLESS, teams=research(tokens_per_minute=100)) as (_, router):
        async with Client(router.port) as client:
            body = {"model": ENDLESS, "prompt": "why? " * 100}
            client.send("/api/generate", body, x_api_key=KEY)
            await client.first(b'"response"')
        await until(lambda: not router.pipeline.live)
        assert (await generate(router, ENDLESS, x_api_key=KEY)).status == 429
        assert_at_rest(router)


async def test_a_call_above_the_teams_concurrency_waits_though_a_slot_is_free_and_one_more_is_refused() -> None:
    limits = research(max_concurrent=1, max_waiting=1)
    async with holding(1, ENDLESS, slots=4, teams=limits) as (pool, router):
        async with Client(router.port) as first, Client(router.port) as second:
            for client in (first, second):
                client.send("/api/generate", {"model": ENDLESS, "prompt": "?"}, x_api_key=KEY)
                await until(lambda: bool(router.store.occupancy))
            await until(lambda: len(router.pipeline.live) == 2)
            refused = await generate(router, ENDLESS, x_api_key=KEY)
            assert (refused.status, refused.refused) == (429, "team_queue_full")
            assert "retry-after" in refused.headers
            assert list(router.store.occupancy.values()) == [1], "three slots are free"
            let_run(pool.nodes[0])
            assert (await first.answer()).is_whole
            await until(lambda: list(router.store.occupancy.values()) == [1])
            let_run(pool.nodes[0])
            assert (await second.answer()).status == 200
        assert_at_rest(router)


TOLD = {
    "x-ratelimit-limit-requests": "3",
    "x-ratelimit-limit-tokens": "900",
}
MESSAGES: Any = [{"role": "user", "content": "?"}]


async def test_the_openai_client_reads_on_each_answer_what_its_team_has_left() -> None:
    limits = research(requests_per_minute=3, tokens_per_minute=1_000, tokens_per_day=900)
    async with (
        pool_of(1) as pool,
        router_before(pool.nodes, teams=limits) as router,
        openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{router.port}/v1", api_key=KEY, max_retries=0) as client,
    ):
        create = client.chat.completions.with_raw_response.create
        left = []
        for stream in (False, True, False):
            answer = await create(model=QUICK, messages=MESSAGES, stream=stream)
            assert TOLD.items() <= dict(answer.headers).items()
            left.append(int(answer.headers["x-ratelimit-remaining-requests"]))
            assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
            assert 0 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 900
            parsed = answer.parse()
            if stream:
                assert [chunk async for chunk in parsed]
        assert left == [2, 1, 0]
        with pytest.raises(openai.RateLimitError) as raised:
            await create(model=QUICK, messages=MESSAGES)
        refused = raised.value.response.headers
        assert TOLD.items() <= dict(refused).items()
        assert refused["x-ratelimit-remaining-requests"] == "0"
        assert int(refused["x-ratelimit-remaining-tokens"]) > 0
        assert "anthropic-ratelimit-requests-limit" not in refused


async def test_the_anthropic_client_reads_it_in_its_own_names() -> None:
    async with (
        pool_of(1) as pool,
        router_before(pool.nodes, teams=research(requests_per_minute=1, tokens_per_minute=900)) as router,
        anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{router.port}", api_key=KEY, max_retries=0) as client,
    ):
        create = client.messages.with_raw_response.create
        served = await create(model=QUICK, max_tokens=8, messages=MESSAGES)
        with pytest.raises(anthropic.RateLimitError) as raised:
            await create(model=QUICK, max_tokens=8, messages=MESSAGES)
        for told in (served.headers, raised.value.response.headers):
            assert told["anthropic-ratelimit-requests-limit"] == told["x-ratelimit-limit-requests"] == "1"
            assert told["anthropic-ratelimit-requests-remaining"] == told["x-ratelimit-remaining-requests"] == "0"
            assert told["anthropic-ratelimit-tokens-limit"] == "900"
            assert 0 < int(told["anthropic-ratelimit-tokens-remaining"]) <= 900
            reset = datetime.fromisoformat(told["anthropic-ratelimit-requests-reset"])
            assert 0 < (reset - datetime.now(UTC)).total_seconds() <= 61


async def test_who_has_no_limits_is_told_of_none_and_a_call_that_waited_of_those_it_came_under() -> None:
    limits = research(requests_per_minute=9)
    async with holding(1, ENDLESS, teams=limits) as (pool, router), Client(router.port) as served:
        served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        head = await served.first(b'"done":false')
        assert b"ratelimit" not in head
        async with Client(router.port) as waiting:
            waiting.send("/api/generate", {"model": ENDLESS, "prompt": "?"}, x_api_key=KEY)
            await until(lambda: bool(router.store.book.ledger.waiting))
            served.leave()
            await waiting.first(b'"done":false')
            let_run(pool.nodes[0])
            assert (await waiting.answer()).headers["x-ratelimit-remaining-requests"] == "8"


async def test_a_call_that_the_pool_refused_is_told_of_no_limit_and_counts_in_none() -> None:
    limits = research(requests_per_minute=2)
    async with holding(1, QUICK, teams=limits, aliases={}) as (_, router):
        unknown = await generate(router, "absent:1b", x_api_key=KEY)
        assert (unknown.status, [name for name in unknown.headers if "ratelimit" in name]) == (404, [])
        answer = await generate(router, QUICK, x_api_key=KEY)
        assert answer.headers["x-ratelimit-remaining-requests"] == "1"


async def test_limits_are_in_force_after_a_reload(mounted: Mounted, tmp_path: Path) -> None:
    async with pool_of(1) as pool:
        mounted.say(pool, teams=research())
        async with reading(mounted) as router:
            await until(lambda: router.keeper.snapshot.all_read)
            for _ in range(3):
                assert (await generate(router, QUICK, x_api_key=KEY)).status == 200
            mounted.say(pool, teams=research(requests_per_minute=1))
            await reloads(router, "ok")
            statuses = [(await generate(router, QUICK, x_api_key=KEY)).status for _ in range(2)]
            assert statuses == [200, 429]
