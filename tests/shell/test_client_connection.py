"""What a server that stands before others must get right about one connection: framing, order, its end."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.fakes.raw_client import exchange, get, post, raw_client
from tests.fakes.recordings import recording
from tests.fakes.replay import ReplayNode, kept_alive
from tests.shell.house import assert_at_rest, router_before, until

CHAT = "/v1/chat/completions"
BODY = b'{"model":"gemma3:270m","messages":[{"role":"user","content":"a"}]}'
ANSWER = recording("openai/v1-chat").response.body
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def chunked(*lines: bytes) -> bytes:
    return post(CHAT, b"", *lines).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")


JAVA = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk")


@pytest.mark.parametrize("request_", [post(CHAT, BODY, *JAVA), chunked(*JAVA) + CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("cuts", [(), (90, 200), range(0, 400, 7)], ids=["whole", "thrice", "shreds"])
async def test_a_request_for_an_upgrade_is_served_as_if_it_had_not_asked(request_: bytes, cuts: range) -> None:
    """Java's HTTP client asks for h2c with every first request; its body must not be read as the next request."""
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        for _ in range(2):
            await client.send_cut(request_, cuts)
            assert (await client.answer()).body == ANSWER
        assert [heard.body for heard in node.heard] == [BODY, BODY]
        assert not {b"upgrade", b"http2-settings"} & {name.lower() for name, _ in node.heard[0].headers.pairs}


SMUGGLED = b"POST /api/delete HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
        (HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HEAD + b"X: a\r\n folded\r\n\r\n", 400),
        (HEAD + b"X : a\r\n\r\n", 400),
        (HEAD.replace(b"\r\n", b"\n") + b"Content-Length: 2\n\n{}", 400),
        (HEAD + b"Content-Length: +2\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 2, 2\r\n\r\n{}", 400),
        (HEAD + b"Content-Length: 99999999999999999999\r\n\r\n{}", 400),
        (HEAD + b"X: a\x00b\r\n\r\n", 400),
        (HEAD + b"Host: b\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\n\r\n", 400),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: a/b@c\r\n\r\n", 400),
        (HEAD + b"Expect: 200-ok\r\n\r\n", 417),
        (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    ],
)
async def test_a_head_that_two_servers_could_read_differently_ends_the_connection(request_: bytes, status: int) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(request_ + SMUGGLED)
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (status, "close")
        assert b"HTTP/1.1" not in answer.body, "nothing behind it is answered"
        assert (node.heard, router.pipeline.live) == ([], set())


@pytest.mark.parametrize(
    "body",
    [
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\nabc\n0\n\n",
        b'3;a="x\r\ny"\r\nabc\r\n0\r\n\r\n',
        b"3\r\nabcX\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\nabc",
    ],
)
async def test_a_chunk_that_two_servers_could_read_differently_ends_the_connection(body: bytes) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(chunked() + body + SMUGGLED)
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (400, "close")
        assert json.loads(answer.body)["error"]["message"] == "request body was framed wrongly"
        assert await client.rest() == b""
        assert node.heard == []


async def test_chunk_extensions_and_trailers_are_read_past() -> None:
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node]) as router:
        framed = CHUNKED.replace(b"\r\n", b";name=value\r\n", 1).replace(b"0\r\n\r\n", b"0\r\nX-Key: secret\r\n\r\n")
        assert (await exchange(router.port, chunked() + framed)).body == ANSWER
        assert node.heard[0].body == BODY
        assert node.heard[0].headers.get(b"x-key") == b""


async def test_an_absolute_target_is_read_as_its_path() -> None:
    """As a client sends it that takes the router for its proxy."""
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node]) as router:
        request = post(CHAT, BODY).replace(b"POST /", b"POST http://router.example/", 1)
        assert (await exchange(router.port, request)).body == ANSWER
        page = await exchange(router.port, get("/").replace(b"GET /", b"GET http://router.example", 1))
        assert page.body == b"Ollama is running"


async def test_requests_that_came_in_one_read_are_answered_in_their_order() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(b"".join([get("/"), chunked(), CHUNKED, get("/api/version"), post(CHAT, BODY), get("/")]))
        bodies = [(await client.answer()).body for _ in range(5)]
        assert bodies == [bodies[0], ANSWER, recording("catalog/version").response.body, ANSWER, bodies[0]]


async def test_more_requests_ahead_than_anybody_pipelines_are_refused_after_those_that_came_before() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(get("/") * 100)
        said = await client.rest()
        assert said.count(b"HTTP/1.1 200 OK") == 64
        assert said.count(b"HTTP/1.1 400 Bad Request") == 1


async def test_what_follows_a_request_and_is_none_is_said_after_its_answer() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, BODY) + b"\x00\x01\x02")
        assert (await client.answer()).body == ANSWER
        assert (await client.head())[0] == b"HTTP/1.1 400 Bad Request"


async def test_a_refusal_reaches_a_client_that_is_still_sending() -> None:
    """Closed at once, the rest of the body would be answered by a reset, which throws the answer away."""
    async with (
        ReplayNode("a") as node,
        router_before([node], limits={"body_bytes": 2048}) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, b"").replace(b"Length: 0", b"Length: 9000000"))
        for _ in range(9):
            client.send(b"a" * 1_000_000)
            await asyncio.sleep(0)
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (413, "close")
        client.leave()
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)


async def test_a_name_without_an_end_is_no_head() -> None:
    async with (
        ReplayNode("a") as node,
        router_before([node], client={"header_bytes": 8192}) as router,
        raw_client(router.port) as client,
    ):
        client.send(b"GET / HTTP/1.1\r\n")
        for _ in range(40):
            client.send(b"a" * 512)
            await asyncio.sleep(0)
        assert (await client.head())[0] == b"HTTP/1.1 431 Request Header Fields Too Large"


async def test_a_listener_that_closes_ends_idle_connections_and_answers_what_has_begun_to_come() -> None:
    async with (
        ReplayNode("a") as node,
        router_before([node]) as router,
        raw_client(router.port) as idle,
        raw_client(router.port) as begun,
    ):
        for client in (idle, begun):
            client.send(get("/"))
            await client.answer()
        begun.send(get("/")[:10])
        async with raw_client(router.port) as later:  # served after what `begun` has sent before it
            later.send(get("/"))
            await later.answer()
            await router.listener.close()
            assert await idle.rest() == b""
            begun.send(get("/")[10:])
            assert (await begun.answer()).status == 200
