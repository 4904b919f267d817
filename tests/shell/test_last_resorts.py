"""What nobody foresaw: a defect of the router's own ends a call as visibly as any other failure."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from router.upstream.forward import forward
from router.wire.endpoints import BY_PATH, Dialect
from tests.fakes.raw_client import exchange, post, raw_client
from tests.fakes.replay import ReplayNode, kept_alive
from tests.shell.clients import ask
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.replay_house import ended_as
from tests.shell.scenes import COLD, is_loading, let_load_finish, pool_of

BODY = b'{"model":"gemma3:270m","max_tokens":8,"messages":[{"role":"user","content":"a"}]}'
CHAT = "/v1/chat/completions"


def fail(*args: object, **named: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("path", ["/api/chat", CHAT, "/v1/messages"])
async def test_a_defect_before_the_answer_is_a_500_in_the_routes_dialect(
    path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node]) as router:
        monkeypatch.setattr("router.pipeline.errand_for", fail)
        with caplog.at_level(logging.ERROR):
            answer = await exchange(router.port, post(path, BODY, b"X-Request-Id: call-7"))
        assert (answer.status, answer.header("x-request-id"), answer.is_whole) == (500, "call-7", True)
        assert answer.header("x-should-retry") == "false"
        assert answer.header("x-ollama-router-node") == "a"
        error = json.loads(answer.body)["error"]
        assert "the router failed" in (error if BY_PATH[path].dialect is Dialect.OLLAMA else error["message"])
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("upstream_error", 500): 1}
        assert [record.exc_info is not None for record in caplog.records if "call-7" in record.message] == [True]
        assert_at_rest(router)
        monkeypatch.undo()
        assert (await exchange(router.port, post(path, BODY))).status == 200


async def test_a_defect_within_the_answer_cuts_it_and_writes_no_second_head(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kept_alive("openai/v1-chat")[0]
    begin, rest, gate = plain[:-50], plain[-50:], asyncio.Event()
    async with (
        ReplayNode("a", (begin, gate, rest)) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        monkeypatch.setattr("router.pipeline.forward", failing_later)
        client.send(post(CHAT, BODY))
        assert (await client.head())[0].startswith(b"HTTP/1.1 200")
        gate.set()
        assert b"HTTP/1.1" not in await client.rest()
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("upstream_error", 200): 1}
        assert_at_rest(router)


async def failing_later(*args: Any) -> None:
    await forward(*args)
    raise ZeroDivisionError


async def test_who_waits_for_more_context_than_a_load_brought_is_told_at_once() -> None:
    """It would have waited for `max_wait_s`, where the same call a moment later is refused."""

    def call(num_ctx: int) -> dict[str, object]:
        return {"model": COLD, "prompt": "?", "stream": False, "options": {"num_ctx": num_ctx}}

    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        (node,) = pool.nodes
        first = asyncio.create_task(ask(router, "/api/generate", call(8192)))
        await until(lambda: is_loading(node))
        second = asyncio.create_task(ask(router, "/api/generate", call(32768)))
        await until(lambda: len(router.store.book.ledger.waiting) == 2)
        let_load_finish(node)
        assert (await first).status == 200
        answer = await second
        assert (answer.status, answer.refused) == (400, "num_ctx")
        assert answer.json["error"].startswith("num_ctx 32768 is more than the context of 8192 tokens")
        assert int(answer.headers["x-ollama-router-queue-ms"]) >= 0
        again = await ask(router, "/api/generate", call(32768))
        assert (again.status, again.body) == (answer.status, answer.body)
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)
