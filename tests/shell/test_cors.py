"""Browsers: which pages may call, what they are told, on every route and in every answer."""

from __future__ import annotations

import pytest

from router.wiring import Router
from tests.fakes.raw_client import Answer, exchange, get, post, recorded_request
from tests.fakes.recordings import recording
from tests.fakes.replay import ReplayNode, kept_alive, said
from tests.shell.clients import scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import ready_on

CHAT = "/v1/chat/completions"
BODY = b'{"model":"gemma3:270m","messages":[{"role":"user","content":"a"}]}'
STREAM = BODY[:-1] + b',"stream":true}'
LOCAL = b"Origin: http://localhost:3000"
EVIL = b"Origin: http://evil.example"
OURS = (b"Date", b"x-request-id", b"x-ollama-router-refused", b"Access-Control-Expose-Headers")


def said_of(answer: Answer, *dropped: bytes) -> list[tuple[bytes, bytes]]:
    return sorted(pair for pair in answer.headers.pairs if pair[0] not in (*OURS, *dropped))


async def refused(router: Router) -> float:
    return (await scrape(router)).value("rejections_total", reason="origin")


@pytest.mark.parametrize("name", ["catalog/cors-get", "catalog/cors-preflight", "catalog/cors-refused"])
async def test_an_origin_is_answered_as_ollama_answers_it(name: str) -> None:
    """But for what we let browsers read and send beyond that."""
    each = recording(name)
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await exchange(router.port, recorded_request(name))
        assert answer.status == each.response.status
        ours = said_of(answer, b"Content-Length", b"Access-Control-Allow-Headers")
        theirs = [
            pair
            for pair in each.response.headers.pairs
            if pair[0] not in (b"Date", b"Content-Length", b"Access-Control-Allow-Headers")
        ]
        assert ours == sorted(theirs)
        assert answer.header("x-request-id")


async def test_an_allowed_page_may_read_every_answer_of_inference() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        await until(lambda: ready_on(router, "gemma3:270m") == 1)
        node.answer(kept_alive("openai/v1-chat"), kept_alive("openai/v1-chat-stream"), (said(400, b'{"error":"no"}'),))
        answers = [
            await exchange(router.port, post(CHAT, body, LOCAL))
            for body in (BODY, STREAM, BODY, b"{", BODY.replace(b"gemma3:270m", b"nope"))
        ]
        assert [answer.status for answer in answers] == [200, 200, 400, 400, 404]
        for answer in answers:
            assert answer.header("access-control-allow-origin") == "http://localhost:3000"
            assert answer.header("vary") == "Origin"
            assert "x-ollama-router-node" in answer.header("access-control-expose-headers")
        assert all(heard.headers.get(b"origin") == b"" for heard in node.heard)


@pytest.mark.parametrize("path", ["/nope", "/api/chat", "/api/tags/", "/api/version", "/v1/models/nope"])
async def test_an_allowed_page_may_read_every_other_answer(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await exchange(router.port, get(path, LOCAL))
        assert answer.header("access-control-allow-origin") == "http://localhost:3000"


@pytest.mark.parametrize("raw", [post(CHAT, BODY, EVIL), post(CHAT, BODY, EVIL, b"Authorization: Bearer x")])
async def test_a_foreign_page_reaches_no_node_and_is_counted(raw: bytes) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await exchange(router.port, raw)
        assert (answer.status, answer.body) == (403, b"")
        assert answer.header("x-ollama-router-refused") == "origin"
        assert not answer.header("access-control-allow-origin")
        assert node.heard == []
        assert await refused(router) == 1


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/api/chat", "/api/tags", "/nope"])
async def test_a_preflight_needs_no_key_and_reaches_no_node(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        lines = (LOCAL, b"Access-Control-Request-Method: POST", b"Access-Control-Request-Headers: x-api-key")
        answer = await exchange(router.port, get(path, *lines, method=b"OPTIONS"))
        assert (answer.status, answer.body) == (204, b"")
        assert "X-Api-Key" in answer.header("access-control-allow-headers").split(",")
        assert node.heard == []


async def test_options_without_an_origin_is_a_method_like_another() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await exchange(router.port, get(CHAT, method=b"OPTIONS"))
        assert (answer.status, answer.header("allow")) == (405, "POST")


async def test_a_page_of_our_own_host_is_at_home() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await exchange(router.port, get("/api/version", b"Origin: https://router"))
        assert answer.status == 200
        assert not answer.header("access-control-allow-origin")


async def test_an_operator_lets_further_pages_in() -> None:
    cors = {"origins": ["https://*.example.com"]}
    async with ReplayNode("a") as node, router_before([node], cors=cors) as router:
        for origin, status in ((b"https://chat.example.com", 200), (b"https://chat.example.org", 403)):
            answer = await exchange(router.port, get("/v1/models", b"Origin: " + origin))
            assert answer.status == status


async def test_what_a_node_says_about_origins_is_not_passed_on() -> None:
    """It was never told one: two such headers, and a browser takes neither."""
    foreign = b"Access-Control-Allow-Origin: *"
    async with ReplayNode("a", (said(200, b"{}", foreign),)) as node, router_before([node]) as router:
        answer = await exchange(router.port, post(CHAT, BODY, LOCAL))
        allowed = [value for name, value in answer.headers.pairs if name.lower() == b"access-control-allow-origin"]
        assert allowed == [b"http://localhost:3000"]
