"""HTTP as clients and nodes speak it on bad days. Each of these was a trap that a parser or a proxy walked into."""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from types import SimpleNamespace

import pytest

from router.wire.endpoints import BY_PATH, Dialect
from tests.fakes.raw_client import RawClient, exchange, get, post, raw_client
from tests.fakes.recordings import recording
from tests.fakes.replay import End, Play, ReplayNode, kept_alive, said
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.replay_house import ended_as

CHAT = "/v1/chat/completions"
BODY = b'{"model":"gemma3:270m","messages":[{"role":"user","content":"a"}]}'
STREAM = BODY[:-1] + b',"stream":true}'
RECORDED_CHAT = recording("openai/v1-chat").response.body
RECORDED_STREAM = recording("openai/v1-chat-stream").response.body

# Between two nodes that are equally good the router may ask either first: the plays are shared, so both cases are one.
GARBAGE: list[Play] = [
    (b"SSH-2.0-OpenSSH_9.6\r\n\r\n",),
    (b"\x15\x03\x01\x00\x02\x02\x50",),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",),
    (b"HTTP/1.1 banana\r\n\r\n",),
    (b"HTTP/1.1 200 OK\r\nX: " + b"a" * (2 << 20) + b"\r\n\r\n",),
]
SILENT: list[Play] = [(End.CLOSE,), (End.RESET,), (b"HTTP/1.1 200 OK\r\nContent-", End.CLOSE)]


def of_length(size: int) -> bytes:
    frame = BODY.replace(b'"a"', b'""')
    return frame.replace(b'""', b'"%b"' % (b"a" * (size - len(frame))))


# clients that speak HTTP/1.0, as nginx's proxy_pass does


@pytest.mark.parametrize("name", ["openai/v1-chat-stream", "native/generate-stream", "anthropic/v1-messages-stream"])
async def test_a_stream_to_an_http10_client_ends_with_the_connection(name: str) -> None:
    each = recording(name)
    async with (
        ReplayNode("a", kept_alive(name)) as node,
        router_before([node]) as router,
        raw_client(router.port) as old,
    ):
        old.send(post(each.path, each.request.body, b"Connection: keep-alive", version=b"1.0"))
        _, headers = await old.head()
        assert (headers.get(b"transfer-encoding"), headers.get(b"content-length")) == (b"", b"")
        assert headers.get(b"connection") == b"close"
        assert await old.rest() == each.response.body


async def test_a_plain_answer_to_an_http10_client_keeps_its_connection_when_asked() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node]) as router,
        raw_client(router.port) as old,
    ):
        for _ in range(2):
            old.send(post(CHAT, BODY, b"Connection: keep-alive", version=b"1.0"))
            answer = await old.answer()
            assert (answer.body, answer.header("connection")) == (RECORDED_CHAT, "keep-alive")
        old.send(post(CHAT, BODY, version=b"1.0"))
        assert (await old.answer()).header("connection") == "close"
        assert await old.rest() == b""


async def test_an_aliased_plain_answer_to_an_http10_client_is_whole() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node], aliases={"gpt-4o": "gemma3:270m"}) as router,
    ):
        answer = await exchange(router.port, post(CHAT, BODY.replace(b"gemma3:270m", b"gpt-4o"), version=b"1.0"))
        assert answer.body == RECORDED_CHAT.replace(b"gemma3:270m", b"gpt-4o")


# one request after another


async def test_a_pipelined_request_waits_and_is_answered_in_its_turn() -> None:
    gate = asyncio.Event()
    begin, rest = kept_alive("openai/v1-chat-stream", [700])
    async with (
        ReplayNode("a", (begin, gate, rest), kept_alive("openai/v1-chat")) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, STREAM) + get("/api/version") + post(CHAT, BODY))
        await until(lambda: len(node.heard) == 1)
        assert router.pipeline.live
        gate.set()
        assert (await client.answer()).body == RECORDED_STREAM
        assert (await client.answer()).body == recording("catalog/version").response.body
        assert (await client.answer()).body == RECORDED_CHAT
        assert len(node.heard) == 2
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)


async def test_more_than_a_pipelined_request_ahead_closes_the_connection() -> None:
    never = asyncio.Event()
    async with (
        ReplayNode("a", (never,)) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, BODY))
        await until(lambda: len(node.heard) == 1)
        client.send(post(CHAT, of_length(65 * 1024)))
        assert await client.rest() == b""
        await until(lambda: not router.pipeline.live and not node.open_callers)
        assert_at_rest(router)


async def test_a_connection_lives_on_after_a_refusal_of_a_whole_request() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node]) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, b"[]"))
        assert (await client.answer()).status == 400
        client.send(post(CHAT, BODY))
        assert (await client.answer()).body == RECORDED_CHAT


async def test_an_idle_connection_is_closed_after_its_time() -> None:
    """One that never said anything too: it would count against `client.connections` for ever."""
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node], client={"keep_alive_s": 0.05}) as router,
        raw_client(router.port) as mute,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, BODY))
        assert (await client.answer()).body == RECORDED_CHAT
        assert await client.rest() == b""
        assert await mute.rest() == b""


# what nodes send


async def test_an_interim_answer_of_the_node_is_not_its_answer() -> None:
    plain = kept_alive("openai/v1-chat")
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    async with ReplayNode("a", (interim, *plain)) as node, router_before([node]) as router:
        for _ in range(2):
            answer = await exchange(router.port, post(CHAT, BODY))
            assert (answer.status, answer.body, answer.header("link")) == (200, RECORDED_CHAT, "")
        assert [heard.connection for heard in node.heard] == [0, 0]


async def test_an_answer_that_ends_with_its_connection_is_whole_and_not_reused() -> None:
    untold = (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n", RECORDED_CHAT, End.CLOSE)
    async with ReplayNode("a", untold) as node, router_before([node]) as router:
        for _ in range(2):
            answer = await exchange(router.port, post(CHAT, BODY))
            assert (answer.body, answer.is_whole) == (RECORDED_CHAT, True)
        assert [heard.connection for heard in node.heard] == [0, 1]


FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


@pytest.mark.parametrize("extra", [(b"\r\n",), (b"x",), (FORGED,), (FORGED[:20],)])
@pytest.mark.parametrize("is_apart", [False, True])
async def test_bytes_after_an_answer_never_become_the_next_one(extra: Play, is_apart: bool) -> None:
    (plain,) = kept_alive("openai/v1-chat")
    slipping: Play = (plain, *extra) if is_apart else (b"".join((plain, *extra)),)
    async with ReplayNode("a", slipping, (plain,)) as node, router_before([node]) as router:
        for _ in range(3):
            answer = await exchange(router.port, post(CHAT, BODY))
            assert (answer.status, answer.body) == (200, RECORDED_CHAT)
        assert node.heard[1].connection == node.heard[2].connection


async def test_an_answer_before_the_end_of_the_request_costs_the_connection() -> None:
    """What of the request is still in our buffer would be read as the next one."""
    big = of_length(24 << 20)
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node]) as router:
        node.answers_early = True
        assert (await exchange(router.port, post(CHAT, big))).body == RECORDED_CHAT
        node.answers_early = False
        assert (await exchange(router.port, post(CHAT, BODY))).body == RECORDED_CHAT
        assert [heard.connection for heard in node.heard] == [0, 1]


@pytest.mark.parametrize("end", list(End))
async def test_a_kept_connection_that_the_node_had_closed_is_no_failure(end: End) -> None:
    plain = kept_alive("openai/v1-chat")
    async with ReplayNode("a", plain, (end,), plain) as node, router_before([node], retry={"attempts": 1}) as router:
        for _ in range(2):
            answer = await exchange(router.port, post(CHAT, BODY))
            assert (answer.body, answer.header("x-ollama-router-attempts")) == (RECORDED_CHAT, "1")
        assert [heard.connection for heard in node.heard] == [0, 0, 1]
        assert node.heard[1].body == node.heard[2].body


async def test_a_connection_that_closes_while_it_is_idle_is_not_handed_out() -> None:
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node]) as router:
        assert (await exchange(router.port, post(CHAT, BODY))).body == RECORDED_CHAT
        node.drop_callers()
        await until(lambda: not node.open_callers)
        assert (await exchange(router.port, post(CHAT, BODY))).body == RECORDED_CHAT
        assert [heard.connection for heard in node.heard] == [0, 1]


@pytest.mark.parametrize("bad", [*GARBAGE, *SILENT], ids=lambda play: str(play)[:40])
async def test_what_is_no_answer_is_asked_of_another_node(bad: Play) -> None:
    plays: deque[Play] = deque([bad, kept_alive("openai/v1-chat")])
    async with ReplayNode("a") as a, ReplayNode("b") as b, router_before([a, b]) as router:
        a.plays = b.plays = plays
        answer = await exchange(router.port, post(CHAT, BODY))
        assert (answer.status, answer.body) == (200, RECORDED_CHAT)
        assert answer.header("x-ollama-router-attempts") == "2"
        assert (len(a.heard), len(b.heard)) == (1, 1)


@pytest.mark.parametrize("bad", [*GARBAGE, *SILENT], ids=lambda play: str(play)[:40])
async def test_what_is_no_answer_of_the_only_node_is_a_502(bad: Play) -> None:
    async with ReplayNode("a", bad) as node, router_before([node]) as router:
        answer = await exchange(router.port, post(CHAT, BODY))
        assert (answer.status, answer.header("x-should-retry")) == (502, "false")
        assert json.loads(answer.body)["error"]["code"] == "upstream_error"
        assert await ended_as(router) == {("upstream_error", 502): 1}


@pytest.mark.parametrize("end", list(End))
async def test_a_plain_answer_that_breaks_off_is_not_made_to_look_whole(end: End) -> None:
    (plain,) = kept_alive("openai/v1-chat")
    async with ReplayNode("a", (plain[:-100], end)) as node, router_before([node]) as router:
        answer = await exchange(router.port, post(CHAT, BODY))
        assert (answer.status, answer.body, answer.is_whole) == (200, RECORDED_CHAT[:-100], False)
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("upstream_truncated", 200): 1}
        assert_at_rest(router)


@pytest.mark.parametrize("cut_at", [3, 40, 700])
async def test_a_stream_that_breaks_inside_an_event_breaks_for_the_client_too(cut_at: int) -> None:
    """An error event after half an event would be read as part of it."""
    body = RECORDED_STREAM[:cut_at]
    raw = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"%x\r\n%b\r\n" % (len(body), body)
    async with ReplayNode("a", (raw, End.RESET)) as node, router_before([node]) as router:
        answer = await exchange(
            router.port, post(CHAT, STREAM.replace(b"true", b'true,"stream_options":{"include_usage":true}'))
        )
        assert RECORDED_STREAM.startswith(answer.body)
        assert not answer.is_whole
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("upstream_truncated", 200): 1}


# headers, both ways


async def test_a_node_gets_its_own_host_and_none_of_the_clients_secrets() -> None:
    lines = (
        b"Authorization: Bearer sk-secret",
        b"X-Api-Key: sk-secret",
        b"Api-Key: sk-secret",
        b"Proxy-Authorization: Basic secret",
        b"Cookie: session=secret",
        b"Origin: https://secret.example",
        b"Referer: https://secret.example/",
        b"X-Ollama-Router-Node: secret",
        b"X-Ollama-Router-Affinity: secret",
        b"Connection: keep-alive, X-Mine",
        b"X-Mine: secret",
        b"TE: trailers",
        b"Upgrade: h2c",
        b"Accept-Encoding: gzip",
        b"User-Agent: curl/8",
        b"X-Kept: as It is",
        b"x-kept: twice",
        b"Via: 1.1 some-proxy",
        b"X-Request-Id: call-7",
    )
    cors = {"origins": ["https://secret.example"]}
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node], cors=cors) as router:
        answer = await exchange(router.port, post(CHAT, BODY, *lines))
        assert answer.header("x-request-id") == "call-7"
        heard = node.heard[0].headers.pairs
        assert b"secret" not in b"".join(value for _, value in heard)
        assert heard == (
            (b"Host", node.authority),
            (b"User-Agent", b"curl/8"),
            (b"X-Kept", b"as It is"),
            (b"x-kept", b"twice"),
            (b"Via", b"1.1 some-proxy"),
            (b"x-request-id", b"call-7"),
            (b"Via", b"1.1 ollama-router/default"),
            (b"Content-Length", b"%d" % len(BODY)),
        )


async def test_a_client_gets_the_nodes_headers_but_those_of_its_connection() -> None:
    lines = (
        b"Connection: keep-alive, X-Private",
        b"X-Private: 1",
        b"Keep-Alive: timeout=5",
        b"Trailer: X-Sum",
        b"Set-Cookie: a=1",
        b"Set-Cookie: b=2",
        b"X-Node: Kept",
        b"X-Request-Id: the node's",
        b"x-ollama-router-node: a router behind",
    )
    async with ReplayNode("a", (said(200, b"{}", *lines),)) as node, router_before([node]) as router:
        answer = await exchange(router.port, post(CHAT, BODY))
        names = [name.lower() for name, _ in answer.headers.pairs]
        kept = [pair for pair in answer.headers.pairs if pair[0] in (b"Set-Cookie", b"X-Node")]
        assert kept == [(b"Set-Cookie", b"a=1"), (b"Set-Cookie", b"b=2"), (b"X-Node", b"Kept")]
        assert not {b"x-private", b"keep-alive", b"trailer", b"connection"} & set(names)
        assert answer.header("x-ollama-router-node") == "a"
        assert names.count(b"x-request-id") == names.count(b"x-ollama-router-node") == 1


@pytest.mark.parametrize("bad", [b"", b"a b", b"a" * 129, b"caf\xe9", b"<script>"])
async def test_an_id_that_would_harm_a_log_is_replaced(bad: bytes) -> None:
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node]) as router:
        answer = await exchange(router.port, post(CHAT, BODY, b"X-Request-Id: " + bad))
        assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", answer.header("x-request-id"))
        assert node.heard[0].headers.get(b"x-request-id").decode() == answer.header("x-request-id")


@pytest.mark.parametrize("path", BY_PATH)
async def test_a_call_that_comes_round_again_is_refused(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node], pool="blue") as router:
        answer = await exchange(router.port, post(path, BODY, b"Via: 1.0 nginx, 1.1 ollama-router/blue"))
        assert (answer.status, answer.header("x-ollama-router-refused")) == (508, "loop")
        assert answer.header("x-should-retry") == "false"
        assert error_text(path, answer.body).startswith("this call has passed the pool 'blue' before")
        assert node.heard == []


async def test_a_router_before_another_pool_is_no_loop_and_one_before_its_own_is() -> None:
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node], pool="inner") as inner:
        as_node = SimpleNamespace(name="inner", url=f"http://127.0.0.1:{inner.port}")
        for pool, status in (("outer", 200), ("inner", 508)):
            async with router_before([as_node], pool=pool) as outer:
                assert (await exchange(outer.port, post(CHAT, BODY))).status == status


# limits


def error_text(path: str, body: bytes) -> str:
    """Of an error in the dialect of that route, and of no other."""
    error = json.loads(body)
    dialect = BY_PATH[path].dialect
    if dialect is Dialect.OLLAMA:
        assert list(error) == ["error"]
        return error["error"]
    if dialect is Dialect.OPENAI:
        assert (list(error), list(error["error"])) == (["error"], ["message", "type", "param", "code"])
    else:
        assert (list(error), error["type"]) == (["type", "error", "request_id"], "error")
    return error["error"]["message"]


@pytest.mark.parametrize("path", BY_PATH)
async def test_a_body_that_is_declared_too_large_is_refused_before_it_is_sent(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node], limits={"body_bytes": 2048}) as router:
        async with raw_client(router.port) as client:
            client.send(post(path, b"", b"Expect: 100-continue").replace(b"Length: 0", b"Length: 2049"))
            answer = await client.answer()
            assert (answer.status, answer.header("x-ollama-router-refused")) == (413, "too_large")
            assert (answer.header("connection"), answer.header("x-should-retry")) == ("close", "false")
            assert "2049" in error_text(path, answer.body)
        assert node.heard == []


@pytest.mark.parametrize("path", BY_PATH)
async def test_a_chunked_body_is_refused_when_it_has_grown_too_large(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node], limits={"body_bytes": 2048}) as router:
        async with raw_client(router.port) as client:
            client.send(post(path, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            client.send(b"801\r\n" + b"a" * 0x801 + b"\r\n")
            answer = await client.answer()
            assert (answer.status, answer.header("connection")) == (413, "close")
            assert "2048" in error_text(path, answer.body)
        assert node.heard == []
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)


async def test_a_body_as_large_as_the_limit_passes() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node], limits={"body_bytes": 2048}) as router,
    ):
        assert (await exchange(router.port, post(CHAT, of_length(2048)))).status == 200


@pytest.mark.parametrize("path", BY_PATH)
async def test_a_body_that_does_not_come_is_given_up(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node], client={"body_s": 0.05}) as router:
        async with raw_client(router.port) as client:
            client.send(post(path, BODY)[:-1])
            answer = await client.answer()
            assert (answer.status, answer.header("connection")) == (400, "close")
            assert error_text(path, answer.body) == "request body was not complete within 0.05 s"
        assert node.heard == []


async def test_a_head_that_comes_a_byte_at_a_time_closes_the_connection() -> None:
    async with (
        ReplayNode("a") as node,
        router_before([node], client={"header_s": 0.05}) as router,
        raw_client(router.port) as client,
    ):
        await client.send_cut(post(CHAT, BODY)[:60], range(60))
        assert await client.rest() == b""


async def test_the_time_for_a_head_counts_anew_for_each_request() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node], client={"header_s": 0.2}) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, BODY))
        assert (await client.answer()).status == 200
        client.send(post(CHAT, BODY)[:60])
        assert await client.rest() == b""


async def test_a_connection_that_never_says_anything_is_closed_when_a_head_is_due() -> None:
    limits = {"header_s": 0.05}
    async with ReplayNode("a") as node, router_before([node], client=limits) as router, raw_client(router.port) as mute:
        assert await mute.rest() == b""


@pytest.mark.parametrize(
    "first", [get("/"), post("/api/chat", b"[]"), get("/") + get("/"), get("/") + post("/api/chat", b"[]")]
)
async def test_half_a_head_behind_a_served_request_does_not_hold_the_connection(first: bytes) -> None:
    limits = {"header_s": 0.05}
    async with (
        ReplayNode("a") as node,
        router_before([node], client=limits) as router,
        raw_client(router.port) as client,
    ):
        client.send(first + b"GET / HT")
        assert (await client.rest()).count(b"HTTP/1.1 ") == first.count(b"HTTP/1.1")


async def test_half_a_head_that_came_while_a_call_was_served_does_not_hold_the_connection() -> None:
    gate = asyncio.Event()
    async with (
        ReplayNode("a", (gate, *kept_alive("openai/v1-chat"))) as node,
        router_before([node], client={"header_s": 0.05}) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, BODY))
        await until(lambda: len(node.heard) == 1)
        client.send(b"GET / HT")
        gate.set()
        assert (await client.answer()).body == RECORDED_CHAT
        assert await client.rest() == b""


@pytest.mark.parametrize(
    "request_",
    [
        post(CHAT, BODY),
        get("/api/version"),
        post(CHAT, b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    ],
)
async def test_a_kept_connection_may_be_silent_for_longer_than_a_head_may_take(request_: bytes) -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node], client={"header_s": 0.05}) as router,
        raw_client(router.port) as client,
        raw_client(router.port) as mute,
    ):
        client.send(request_)
        assert (await client.answer()).status == 200
        assert await mute.rest() == b"", "opened at the same time, and its time is over"
        async with raw_client(router.port) as later:
            assert await later.rest() == b""
        client.send(request_)
        assert (await client.answer()).status == 200


@pytest.mark.parametrize("path", ["/api/chat", CHAT, "/v1/messages"])
async def test_a_body_that_is_framed_wrongly_is_refused_at_once(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(
            post(path, b"", b"X-Request-Id: call-7").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        )
        client.send(b"5\r\nhello\r\n")
        await until(lambda: bool(router.buffers.held))
        client.send(b"ZZ\r\nfoo")
        answer = await client.answer()
        assert (answer.status, answer.header("connection")) == (400, "close")
        assert error_text(path, answer.body) == "request body was framed wrongly"
        assert (answer.header("x-request-id"), answer.header("x-ollama-router-refused")) == ("call-7", "invalid")
        assert await client.rest() == b""
        await until(lambda: not router.pipeline.live)
        assert await ended_as(router) == {("rejected", 400): 1}
        assert_at_rest(router)
        assert node.heard == []


async def test_what_is_refused_before_it_is_a_call_has_an_id_too() -> None:
    async with ReplayNode("a") as node, router_before([node], client={"connections": 1}) as router:
        async with raw_client(router.port) as first:
            surplus = await exchange(router.port, get("/"))
            first.send(b"GET / HTTP/9.9\r\n\r\n")
            garbage = await first.answer()
        assert (surplus.status, garbage.status) == (503, 400)
        ids = {answer.header("x-request-id") for answer in (surplus, garbage)}
        assert len(ids) == 2
        assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", found) for found in ids)


async def test_a_head_larger_than_usual_passes_and_a_huge_one_is_refused() -> None:
    """Ollama takes 1 MiB of headers, where many servers stop at 8 KiB."""
    async with ReplayNode("a", kept_alive("openai/v1-chat")) as node, router_before([node]) as router:
        assert (await exchange(router.port, post(CHAT, BODY, b"X: " + b"a" * 500_000))).status == 200
        assert len(node.heard[0].headers.get(b"x")) == 500_000
        async with raw_client(router.port) as client:
            client.send(post(CHAT, BODY, b"X: " + b"a" * (2 << 20)))
            assert (await client.head())[0] == b"HTTP/1.1 431 Request Header Fields Too Large"


@pytest.mark.parametrize("path", ["/api/chat", CHAT, "/v1/messages"])
async def test_bodies_that_do_not_fit_into_memory_together_are_refused(path: str) -> None:
    gate = asyncio.Event()
    limits = {"buffered_bytes": 3000}
    async with (
        ReplayNode("a", (gate, *kept_alive("openai/v1-chat"))) as node,
        router_before([node], limits=limits) as router,
    ):
        async with raw_client(router.port) as first:
            first.send(post(CHAT, of_length(2500)))
            await until(lambda: len(node.heard) == 1)
            async with raw_client(router.port) as second:
                second.send(post(path, of_length(1000)))
                answer = await second.answer()
                assert (answer.status, answer.header("x-ollama-router-refused")) == (503, "buffers_full")
                assert answer.header("retry-after") == "1"
                error_text(path, answer.body)
            gate.set()
            assert (await first.answer()).body == RECORDED_CHAT
        assert (await exchange(router.port, post(CHAT, of_length(1000)))).status == 200
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)


async def test_one_connection_too_many_gets_a_503_and_those_before_it_go_on() -> None:
    async with (
        ReplayNode("a", kept_alive("openai/v1-chat")) as node,
        router_before([node], client={"connections": 2}) as router,
        raw_client(router.port) as first,
    ):
        async with raw_client(router.port) as second:
            for client in (first, second):
                client.send(post(CHAT, BODY))
                assert (await client.answer()).status == 200
            async with raw_client(router.port) as third:
                answer = await third.answer()
                assert (answer.status, answer.header("retry-after")) == (503, "1")
                assert answer.header("x-ollama-router-refused") == "connections"
                assert list(json.loads(answer.body)) == ["error"]
                assert await third.rest() == b""
            first.send(post(CHAT, BODY))
            assert (await first.answer()).status == 200
        page = b"".join([piece async for piece in router.metrics.render()])
        assert re.search(rb'rejections_total\{.*reason="connections"\} 1', page)
        await accepted_again(router.port)


async def accepted_again(port: int) -> None:
    """The place of a client that left is free as soon as the router has seen it leave."""
    async with asyncio.timeout(10):
        while (await exchange(port, post(CHAT, BODY))).status != 200:
            pass


# clients that read slowly, or not at all


EVENT = recording("openai/v1-chat-stream").response.chunks[1]


def bulk(mebibytes: int) -> tuple[bytes, bytes]:
    """A stream that the node has ready at once: its bytes on the wire, and its body."""
    block = EVENT * ((64 << 10) // len(EVENT))
    blocks = [block] * (mebibytes * 16)
    end = b"data: [DONE]\n\n"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*blocks, end))
    return head + framed + b"0\r\n\r\n", b"".join((*blocks, end))


# The kernel's share on loopback: what both sockets of one connection hold at most (net.ipv4.tcp_rmem, tcp_wmem).
MEBIBYTES = 24
SMALL = {"stream_buffer_bytes": 65536}
# What one turn of the loop reads from a node before a pause takes hold, twice: piece and frame.
READ_AHEAD = 1 << 20


async def test_a_slow_reader_pauses_its_node_and_gets_everything() -> None:
    raw, body = bulk(MEBIBYTES)
    async with (
        ReplayNode("a", (raw,)) as node,
        router_before([node], limits=SMALL) as router,
        raw_client(router.port, receive_buffer=4096) as client,
    ):
        client.send(post(CHAT, STREAM))
        await client.head()
        await until(lambda: router.buffers.held > SMALL["stream_buffer_bytes"])
        assert node.unsent > 0
        assert router.buffers.peak < SMALL["stream_buffer_bytes"] + READ_AHEAD
        assert await client.chunked_body() == body
        assert router.buffers.peak < SMALL["stream_buffer_bytes"] + READ_AHEAD
        await until(lambda: not router.pipeline.live and not router.buffers.held)
        assert await ended_as(router) == {("ok", 200): 1}
        assert_at_rest(router)


async def test_a_client_that_stopped_reading_is_cut_and_its_slot_is_free() -> None:
    raw, _ = bulk(MEBIBYTES)
    async with (
        ReplayNode("a", (raw,)) as node,
        router_before([node], limits=SMALL, client={"client_stall_s": 0.1}) as router,
        raw_client(router.port, receive_buffer=4096) as client,
    ):
        client.send(post(CHAT, STREAM))
        await until(lambda: bool(router.pipeline.live))
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)
        await until(lambda: not node.open_callers)
        assert await ended_as(router) == {("stalled", 200): 1}
        assert not (await client.rest()).endswith(b"0\r\n\r\n")


async def test_a_client_that_reads_slowly_is_not_taken_for_one_that_stopped() -> None:
    """It has read fast before, so the kernel holds megabytes for it and takes nothing new for long."""
    raw, body = bulk(40)
    stall_s = 1.0
    async with (
        ReplayNode("a", (raw,)) as node,
        router_before([node], limits=SMALL, client={"client_stall_s": stall_s}) as router,
        raw_client(router.port) as client,
    ):
        client.send(post(CHAT, STREAM))
        await client.head()
        got = await client.some(12 << 20)
        await until(lambda: router.buffers.held > SMALL["stream_buffer_bytes"])
        got += await read_slowly(client, 600_000, for_s=2.2 * stall_s)
        assert router.pipeline.live
        assert await client.chunked_body(got) == body


async def read_slowly(client: RawClient, bytes_per_s: int, for_s: float) -> bytes:
    loop = asyncio.get_running_loop()
    began_s, got, steps_per_s = loop.time(), b"", 25
    for step in range(int(for_s * steps_per_s)):
        await until(lambda step=step: loop.time() >= began_s + step / steps_per_s)
        got += await client.some(bytes_per_s // steps_per_s)
    return got


# clients that speak no HTTP


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: a\r\n\r\n",
        b"\x00" * 5000,
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"POST /api/chat HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n",
    ],
)
async def test_garbage_is_refused_as_go_refuses_it(garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(garbage)
        client.send_eof()
        answer = await client.rest()
        assert not answer or answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert b"aiohttp" not in answer
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)
    assert [record.message for record in caplog.records if record.exc_info] == []
