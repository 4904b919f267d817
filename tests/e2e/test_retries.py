"""Official clients that are sent away come back by themselves, when they were told to and not before.

Each may repeat once only. Left to itself it would come back within half a second: too early for the second or more
that it is told. What it was answered, and when it came back, stands in a journal that its transport keeps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from hashlib import sha256
from typing import Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest

from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.e2e.house import MESSAGES, base
from tests.shell.clients import generate, scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import ENDLESS, QUICK, holding, let_run, pool_of
from tests.shell.test_loads import rest

KEY = "c81e728d9d4c2f636f067f89cc14862c"


TIMER_MS = 5  # uvloop's timers count whole milliseconds, from the beginning of the turn that sets them


class Journal:
    """Of one client: status, refusal and advised wait of each answer, and the time from one to the next question."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.pauses_s: list[float] = []
        self._answered_s = 0.0

    async def asks(self, request: Any) -> None:
        if self.answers:
            self.pauses_s.append(asyncio.get_running_loop().time() - self._answered_s)

    async def hears(self, answer: Any) -> None:
        self.answers.append(answer)
        self._answered_s = asyncio.get_running_loop().time()

    @property
    def statuses(self) -> list[int]:
        return [answer.status_code for answer in self.answers]

    @property
    def refusals(self) -> list[str]:
        return [answer.headers["x-ollama-router-refused"] for answer in self.answers if answer.status_code >= 400]

    def kept_to_the_advice(self) -> bool:
        advised_ms = [int(answer.headers.get("retry-after-ms", "0")) for answer in self.answers[:-1]]
        pauses_ms = [pause_s * 1000 + TIMER_MS for pause_s in self.pauses_s]
        return all(pause_ms >= ms for pause_ms, ms in zip(pauses_ms, advised_ms, strict=True))

    @property
    def hooks(self) -> Any:
        return {"request": [self.asks], "response": [self.hears]}


Chat = Callable[..., Awaitable[None]]
Client = Callable[[Router, Journal], AbstractAsyncContextManager[Chat]]


@asynccontextmanager
async def by_openai(router: Router, journal: Journal) -> AsyncIterator[Chat]:
    http = httpx.AsyncClient(event_hooks=journal.hooks)
    url = f"{base(router)}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=1, http_client=http) as client:

        async def chat(model: str, *, stream: bool) -> None:
            answer = await client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=4, stream=stream)
            if stream:
                assert [chunk async for chunk in answer]

        yield chat


@asynccontextmanager
async def by_anthropic(router: Router, journal: Journal) -> AsyncIterator[Chat]:
    http = httpx2.AsyncClient(event_hooks=journal.hooks)
    async with anthropic.AsyncAnthropic(base_url=base(router), api_key=KEY, max_retries=1, http_client=http) as client:

        async def chat(model: str, *, stream: bool) -> None:
            answer = await client.messages.create(model=model, messages=MESSAGES, max_tokens=4, stream=stream)
            if stream:
                assert [event async for event in answer]

        yield chat


clients = pytest.mark.parametrize("client", [by_openai, by_anthropic])
streaming = pytest.mark.parametrize("stream", [False, True])


def research(**limits: Any) -> dict[str, Any]:
    return {"research": {"keys_sha256": [sha256(KEY.encode()).hexdigest()], **limits}}


@clients
@streaming
async def test_a_client_over_its_teams_limit_comes_back_when_its_wait_is_over(client: Client, stream: bool) -> None:
    limits = research(requests_per_minute=30)
    journal = Journal()
    async with (
        pool_of(1) as pool,
        router_before(pool.nodes, teams=limits) as router,
        client(router, journal) as chat,
    ):
        await chat(QUICK, stream=stream)
        while (await generate(router, QUICK, x_api_key=KEY)).status == 200:
            pass
        await chat(QUICK, stream=stream)
        assert (journal.statuses, journal.refusals) == ([200, 429, 200], ["rate_limited"])
        assert journal.kept_to_the_advice()
        await rest(router)


def waiting(router: Router) -> int:
    return len(router.store.book.ledger.waiting)


@clients
@streaming
async def test_a_client_that_a_full_line_sent_away_comes_back_when_its_wait_is_over(
    client: Client, stream: bool
) -> None:
    journal = Journal()
    async with (
        holding(1, ENDLESS, line={"max_waiting_per_model": 1}, teams=research()) as (pool, router),
        client(router, journal) as chat,
    ):
        others = [asyncio.create_task(generate(router, ENDLESS)) for _ in range(2)]
        await until(lambda: bool(router.store.occupancy) and waiting(router) == 1)
        await served_after(pool, journal, chat(ENDLESS, stream=stream))
        assert (journal.statuses, journal.refusals) == ([503, 200], ["queue_full"])
        assert journal.kept_to_the_advice()
        assert {(await other).status for other in others} == {200}
        await rest(router)


@clients
async def test_a_client_whose_team_has_too_many_waiting_comes_back_when_its_wait_is_over(client: Client) -> None:
    limits = research(max_concurrent=1, max_waiting=0)
    journal = Journal()
    async with (
        holding(1, ENDLESS, slots=4, teams=limits) as (pool, router),
        client(router, journal) as chat,
    ):
        other = asyncio.create_task(generate(router, ENDLESS, x_api_key=KEY))
        await until(lambda: bool(router.store.occupancy))
        await served_after(pool, journal, chat(ENDLESS, stream=False))
        assert (journal.statuses, journal.refusals) == ([429, 200], ["team_queue_full"])
        assert journal.kept_to_the_advice()
        assert (await other).status == 200
        await rest(router)


async def served_after(pool: SimulatedPool, journal: Journal, call: Coroutine[Any, Any, None]) -> None:
    """The node begins to end what it has in hand once the client has been sent away."""
    task = asyncio.create_task(call)
    await until(lambda: bool(journal.answers))

    def is_served() -> bool:
        let_run(pool.nodes[0])
        return task.done()

    await until(is_served)
    await task


async def test_ollamas_own_client_repeats_nothing_and_says_what_to_do() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, teams=research(requests_per_minute=1)) as router:
        client = ollama.AsyncClient(host=base(router), headers={"Authorization": f"Bearer {KEY}"})
        async with client._client:
            assert (await client.chat(QUICK, MESSAGES)).done
            with pytest.raises(ollama.ResponseError) as refused:
                await client.chat(QUICK, MESSAGES)
        assert refused.value.status_code == 429
        assert "research" in refused.value.error or "requests" in refused.value.error
        assert (await scrape(router)).value("rejections_total", reason="rate_limited") == 1
        await rest(router)
