"""What the pool has, and Ollama's own pages: answered from what is known, whatever the nodes are doing."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from router.telemetry.logs import Logs
from router.wire.endpoints import BY_PATH
from router.wiring import Router, running
from tests.fakes.raw_client import Answer, exchange, get, post, raw_client, recorded_request
from tests.fakes.recordings import recording
from tests.fakes.replay import ReplayNode
from tests.shell.house import router_before, settings_for, until

PAGES = ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models")
MANAGING = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
]


@asynccontextmanager
async def router_not_yet_read(nodes: Sequence[ReplayNode], **changes: Any) -> AsyncIterator[Router]:
    """As `router_before`, but for the wait: some of these nodes will never be read."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    logs = Logs(log_format="json", level="info", descriptor=nowhere)
    logs.open()
    try:
        async with running(settings_for(nodes, **changes), logs, Random(0)) as router:
            yield router
    finally:
        logs.close()
        os.close(nowhere)


async def ask(router: Router, method: str, path: str, *lines: bytes) -> Answer:
    async with raw_client(router.port) as client:
        client.send(get(path, *lines, method=method.encode()))
        return await client.answer(to_head=method == "HEAD")


async def listed(router: Router, path: str) -> list[Any]:
    page = json.loads((await ask(router, "GET", path)).body)
    return page["models"] if path.startswith("/api") else page["data"] or []


# as one Ollama would


@pytest.mark.parametrize(
    "name",
    [
        "catalog/root",
        "catalog/root-head",
        "catalog/version",
        "catalog/tags-head",
        "catalog/unknown-path",
        "catalog/unknown-health",
        "catalog/unknown-v1",
        "catalog/wrong-method",
        "catalog/wrong-method-v1",
        "catalog/ps-head",
        "openai/v1-models",
    ],
)
async def test_a_pool_of_one_answers_as_its_node_did(name: str) -> None:
    """But for the framing of long pages, and what we add."""
    each = recording(name)
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(recorded_request(name))
        answer = await client.answer(to_head=each.request.method == "HEAD")
        assert (answer.status, answer.body) == (each.response.status, each.response.body)
        dropped = (b"date", b"content-length", b"transfer-encoding", b"x-request-id")
        kept, expected = (
            sorted(pair for pair in headers.pairs if pair[0].lower() not in dropped)
            for headers in (answer.headers, each.response.headers)
        )
        assert kept == expected
        assert answer.header("date")


async def test_models_on_disk_are_listed_newest_first_and_word_for_word() -> None:
    """Those of one second come in any order from Ollama (recordings catalog/tags and openai/v1-models differ)."""
    async with ReplayNode("a") as node, router_before([node]) as router:
        body = (await ask(router, "GET", "/api/tags")).body
        was = recording("catalog/tags").response.body
        assert sorted(items_of(body)) == sorted(items_of(was))
        seconds = [item["modified_at"][:19] for item in json.loads(body)["models"]]
        assert seconds == sorted(seconds, reverse=True)


def items_of(body: bytes) -> list[bytes]:
    return body.removeprefix(b'{"models":[{"name"').removesuffix(b"]}").split(b',{"name"')


async def test_models_in_memory_are_listed_with_what_the_node_says_of_them() -> None:
    async with ReplayNode("a", num_ctx=2048) as node, router_before([node]) as router:
        shown = await listed(router, "/api/ps")
        was = json.loads(recording("catalog/ps-two").response.body)["models"]
        for item in (*shown, *was):
            del item["expires_at"]
        assert sorted(shown, key=str) == sorted(was, key=str)


async def test_head_promises_the_length_that_get_has_and_the_connection_goes_on() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        for path in ("/", "/api/version", "/api/tags"):
            client.send(get(path, method=b"HEAD") + get(path))
            promised = await client.answer(to_head=True)
            page = await client.answer()
            assert int(promised.header("content-length")) == len(page.body) > 0


@pytest.mark.parametrize("path", BY_PATH)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "HEAD"])
async def test_an_inference_route_takes_posts_only(path: str, method: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await ask(router, method, path)
        assert (answer.status, answer.header("allow")) == (405, "POST")
        assert answer.body == (b"" if method == "HEAD" else b"405 method not allowed")


@pytest.mark.parametrize("path", ["/v2/models", "/api", "/api/", "/metrics", "/livez", "/admin/nodes", "/%2e%2e/"])
async def test_whatever_ollama_does_not_have_is_its_404_page(path: str) -> None:
    """Metrics and health have a port of their own: this one may face the world."""
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await ask(router, "GET", path)
        assert (answer.status, answer.body) == (404, b"404 page not found")


@pytest.mark.parametrize(("method", "path"), MANAGING)
async def test_a_verb_that_changes_models_is_refused_with_the_way_to_do_it(method: str, path: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        raw = post(path, b'{"model":"gemma3:270m"}').replace(b"POST", method.encode(), 1)
        answer = await exchange(router.port, raw)
        assert (answer.status, answer.header("x-ollama-router-refused")) == (403, "forbidden_verb")
        assert "do it on the nodes" in json.loads(answer.body)["error"]
        assert node.heard == []


async def test_a_query_string_changes_nothing() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        assert (await ask(router, "GET", "/api/version?x=1")).status == 200


async def test_the_clients_id_comes_back_on_pages_too() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        for path in (*PAGES, "/nope"):
            assert (await ask(router, "GET", path, b"X-Request-Id: me-1")).header("x-request-id") == "me-1"


# as one, of many


async def test_the_version_is_the_lowest_by_number() -> None:
    """So that no client relies on what one of the nodes lacks."""
    async with (
        ReplayNode("a", version="0.30.10") as a,
        ReplayNode("b", version="0.9.6-rc1") as b,
        ReplayNode("c", version="0.30.9") as c,
        router_before([a, b, c]) as router,
    ):
        assert (await ask(router, "GET", "/api/version")).body == b'{"version":"0.9.6"}'


async def test_each_model_is_listed_once_whoever_has_it() -> None:
    async with (
        ReplayNode("a", models="gemma") as a,
        ReplayNode("b", models="gemma3") as b,
        ReplayNode("c", models="minilm") as c,
        router_before([a, b, c]) as router,
    ):
        names = sorted(item["name"] for item in await listed(router, "/api/tags"))
        assert names == [
            "all-minilm:22m",
            "gemma-fim:latest",
            "gemma-think:latest",
            "gemma-tools:latest",
            "gemma3:270m",
        ]
        assert sorted(item["id"] for item in await listed(router, "/v1/models")) == names
        assert sorted(item["name"] for item in await listed(router, "/api/ps")) == ["all-minilm:22m", "gemma3:270m"]


async def test_an_alias_is_listed_as_a_copy_of_its_target() -> None:
    aliases = {"gpt-4o": "gemma3:270m", "absent": "not-here"}
    async with ReplayNode("a") as node, router_before([node], aliases=aliases) as router:
        tags = {item["name"]: item for item in await listed(router, "/api/tags")}
        alias, target = tags["gpt-4o:latest"], tags["gemma3:270m"]
        assert alias == {**target, "name": "gpt-4o:latest", "model": "gpt-4o:latest"}
        assert "absent:latest" not in tags
        assert "gpt-4o:latest" in [item["id"] for item in await listed(router, "/v1/models")]


async def test_an_empty_pool_lists_nothing_in_ollamas_way() -> None:
    async with router_before([]) as router:
        assert (await ask(router, "GET", "/api/tags")).body == b'{"models":[]}'
        assert (await ask(router, "GET", "/api/ps")).body == b'{"models":[]}'
        assert (await ask(router, "GET", "/v1/models")).body == b'{"object":"list","data":null}\n'
        assert (await ask(router, "GET", "/api/version")).body == b'{"version":"0.0.0"}'


# whatever the nodes do


async def test_no_page_asks_a_node() -> None:
    async with ReplayNode("a") as node, router_before([node], probe={"interval_s": 3600}) as router:
        await until(lambda: "gemma3:270m" in [row["name"] for row in json.loads(_ps(router))["models"]])
        probed = node.probed
        for path in PAGES * 3:
            assert (await ask(router, "GET", path)).status == 200
        assert node.probed == probed
        assert node.heard == []


def _ps(router: Router) -> str:
    resident = [copy.listing for node in router.keeper.snapshot.nodes.values() for copy in node.copies.values()]
    return '{"models":[' + ",".join(resident) + "]}"


async def test_pages_are_answered_from_what_is_known_while_nodes_are_dead_or_hang() -> None:
    async with ReplayNode("live") as live, ReplayNode("hangs") as hangs, ReplayNode("dead") as dead:
        hangs.is_hanging = True
        await dead.stop()
        async with router_not_yet_read([live, hangs, dead]) as router:
            await until(lambda: router.keeper.snapshot.is_known("gemma3:270m"))
            for path in PAGES:
                assert (await ask(router, "GET", path)).status == 200
            assert len(await listed(router, "/api/tags")) == 6


async def test_an_unknown_name_is_not_denied_before_every_node_was_read() -> None:
    """One of them may have it: 404 would make clients forget it."""
    async with ReplayNode("live") as live, ReplayNode("hangs") as hangs:
        hangs.is_hanging = True
        async with router_not_yet_read([live, hangs]) as router:
            await until(lambda: router.keeper.snapshot.is_known("gemma3:270m"))
            unknown = post("/api/chat", b'{"model":"nope","messages":[{}]}')
            answer = await exchange(router.port, unknown)
            assert (answer.status, answer.header("x-ollama-router-refused")) == (503, "no_node")
            assert answer.header("retry-after")


async def test_a_model_stays_listed_when_its_node_goes_down_but_not_in_memory() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        await node.stop()
        await until(lambda: router.keeper.snapshot.nodes["a"].health.value == "down")
        assert "gemma3:270m" in [item["name"] for item in await listed(router, "/api/tags")]
        assert await listed(router, "/api/ps") == []
        answer = await exchange(router.port, post("/api/chat", b'{"model":"gemma3:270m","messages":[{}]}'))
        assert (answer.status, answer.header("x-ollama-router-refused")) == (503, "no_node")


async def test_many_ask_at_once_while_a_call_hangs() -> None:
    never = asyncio.Event()
    async with ReplayNode("a", (never,)) as node, router_before([node]) as router, raw_client(router.port) as waiting:
        waiting.send(post("/api/chat", b'{"model":"gemma3:270m","messages":[{}]}'))
        await until(lambda: bool(node.heard))
        answers = await asyncio.gather(*(ask(router, "GET", path) for path in PAGES * 20))
        assert {answer.status for answer in answers} == {200}
