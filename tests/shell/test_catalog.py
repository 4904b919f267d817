"""What the pool has, and Ollama's own pages: answered from what is known, whatever the nodes are doing."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from random import Random
from typing import Any

import pytest

from router.simulation.catalog import model_of
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.telemetry.logs import Logs
from router.wire.endpoints import BY_PATH
from router.wiring import Router, running
from tests.fakes.raw_client import Answer, exchange, get, post, raw_client, recorded_request
from tests.fakes.recordings import recording
from tests.fakes.replay import ReplayNode
from tests.shell.clients import scrape
from tests.shell.house import assert_at_rest, router_before, settings_for, until

PAGES = ("/", "/api/version", "/api/tags", "/api/ps", "/api/status", "/v1/models", "/v1/models/gemma3:270m")
FORBIDDEN = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", "/api/blobs/sha256:00"),
    ("HEAD", "/api/blobs/sha256:00"),
    ("POST", "/api/me"),
    ("POST", "/api/signout"),
    ("DELETE", "/api/user/keys/abc"),
    ("POST", "/api/experimental/web_search"),
    ("POST", "/api/experimental/web_fetch"),
    ("GET", "/api/experimental/model-recommendations"),
    ("PUT", "/api/experimental/whatever-comes-next"),
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
        "catalog/tags",
        "catalog/tags-head",
        "catalog/show",
        "catalog/unknown-path",
        "catalog/unknown-health",
        "catalog/unknown-v1",
        "catalog/wrong-method",
        "catalog/wrong-method-v1",
        "catalog/ps-head",
        "catalog/double-slash",
        "catalog/trailing-slash",
        "catalog/trailing-slash-post",
        "refused/show-no-model",
        "refused/show-unknown",
        "refused/v1-model-escaped",
        "refused/v1-model-unknown",
    ],
)
async def test_a_pool_of_one_answers_as_its_node_did(name: str) -> None:
    """But for the framing of long pages, and what we add."""
    each = recording(name)
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(recorded_request(name))
        answer = await client.answer(to_head=each.request.method == "HEAD")
        assert (answer.status, answer.body) == (each.response.status, each.response.body)
        dropped = (b"date", b"content-length", b"transfer-encoding", b"x-request-id", b"x-ollama-router-refused")
        dropped += (b"x-should-retry",)
        kept, expected = (
            sorted(pair for pair in headers.pairs if pair[0].lower() not in dropped)
            for headers in (answer.headers, each.response.headers)
        )
        assert kept == expected
        assert answer.header("date")


@pytest.mark.parametrize("name", ["openai/v1-models", "openai/v1-model", "openai/v1-model-upper"])
async def test_the_openai_list_is_ollamas_with_more_said_after_it(name: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await exchange(router.port, recorded_request(name))
        assert answer.header("content-type") == "application/json"
        body = re.sub(rb',"name":[^}]*', b"", answer.body)
        assert body == recording(name).response.body


async def test_an_openai_model_says_where_it_is_and_what_it_can() -> None:
    async with ReplayNode("a") as a, ReplayNode("b", models="tools") as b, router_before([a, b]) as router:
        models = {item["id"]: item for item in await listed(router, "/v1/models")}
        assert models["gemma-tools:latest"] == {
            "id": "gemma-tools:latest",
            "object": "model",
            "created": 1795396549,
            "owned_by": "library",
            "name": "gemma-tools:latest",
            "context_length": 32768,
            "capabilities": ["completion", "tools"],
            "nodes": 2,
            "loaded": 1,
        }
        assert models["gemma3:270m"]["nodes"] == 1


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


@pytest.mark.parametrize("path", ["/v2/models", "/api", "/api/", "/metrics", "/livez", "/admin/nodes"])
async def test_whatever_ollama_does_not_have_is_its_404_page(path: str) -> None:
    """Metrics and health have a port of their own: this one may face the world."""
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await ask(router, "GET", path)
        assert (answer.status, answer.body) == (404, b"404 page not found")


@pytest.mark.parametrize(("method", "path"), FORBIDDEN)
async def test_a_verb_that_changes_models_or_accounts_is_refused_with_the_way_to_do_it(method: str, path: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router, raw_client(router.port) as client:
        client.send(post(path, b'{"model":"gemma3:270m"}').replace(b"POST", method.encode(), 1))
        answer = await client.answer(to_head=method == "HEAD")
        assert (answer.status, answer.header("x-ollama-router-refused")) == (403, "forbidden_verb")
        if method != "HEAD":
            text = json.loads(answer.body)["error"]
            assert text.startswith("this router stands before several nodes and ")
            assert re.search(r"run `ollama \w+`|ask a node itself", text)
        assert node.heard == []
        assert (await scrape(router)).value("rejections_total", reason="forbidden_verb") == 1


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        ("/", "HEAD, GET"),
        ("/api/version", "HEAD, GET"),
        ("/api/tags", "HEAD, GET"),
        ("/api/ps", "GET"),
        ("/api/status", "GET"),
        ("/api/show", "POST"),
        ("/v1/models", "GET"),
        ("/v1/models/gemma3:270m", "GET"),
        ("/api/pull", "POST"),
        ("/api/delete", "DELETE"),
        ("/api/blobs/sha256:00", "HEAD, POST"),
        ("/api/me", "POST"),
        ("/api/user/keys/abc", "DELETE"),
    ],
)
async def test_a_method_that_a_path_does_not_have_is_told_those_that_it_has(path: str, allow: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await ask(router, "PATCH", path)
        assert (answer.status, answer.header("allow")) == (405, allow)
        assert answer.body == b"405 method not allowed"


async def test_a_simulated_node_has_the_same_paths_and_methods() -> None:
    """What the router says of a path is what the node behind it would say."""
    asked = [*PAGES, *BY_PATH, *(path for _, path in FORBIDDEN[:-1]), "/api/show", "/api/status", "/v1/models/x", "/x"]
    async with SimulatedPool(nodes=1, version="0.32.0") as pool, router_before(pool.nodes) as router:
        for path in sorted(set(asked) - {"/v1/images/generations"}):
            ours, theirs = [await exchange(port, get(path, method=b"PATCH")) for port in ports(router, pool)]
            assert (ours.status, ours.header("allow")) == (theirs.status, theirs.header("allow")), path


def ports(router: Router, pool: SimulatedPool) -> tuple[int, int]:
    return router.port, pool.nodes[0].server.port


@pytest.mark.parametrize("path", ["/%zz", "/api/tags%"])
async def test_a_path_that_is_none_is_a_bad_request(path: str) -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        answer = await ask(router, "GET", path)
        assert (answer.status, answer.body) == (400, b"400 Bad Request")


async def test_a_path_is_matched_decoded_and_in_absolute_form() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        assert (await ask(router, "GET", "/%61pi/version")).status == 200
        assert (await ask(router, "GET", "http://router:11434/api/version")).status == 200
        assert (await ask(router, "GET", "/v1/models/Gemma3%3A270M")).status == 200


@pytest.mark.parametrize(
    ("enabled", "body"),
    [
        (False, b'{"cloud":{"disabled":true,"source":"config"}}'),
        (True, b'{"cloud":{"disabled":false,"source":"none"}}'),
    ],
)
async def test_the_cloud_is_on_where_the_pool_says_so_whatever_the_nodes_say(enabled: bool, body: bytes) -> None:
    async with ReplayNode("a") as node, router_before([node], cloud={"enabled": enabled}) as router:
        answer = await ask(router, "GET", "/api/status")
        assert answer.body == body
        assert (
            answer.header("content-type") == recording("catalog/status").response.headers.get(b"content-type").decode()
        )


async def test_a_query_string_changes_nothing() -> None:
    async with ReplayNode("a") as node, router_before([node]) as router:
        assert (await ask(router, "GET", "/api/version?x=1")).status == 200


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_client_that_does_not_read_its_pages_holds_no_memory_for_long(leaves: bool) -> None:
    models = [model_of(f"model-{number}:1b", gib=1.0, same_weights_as="all") for number in range(400)]
    client = {"client_stall_s": 10 if leaves else 0.1}
    async with (
        SimulatedPool(nodes=1, models=models) as pool,
        router_before(pool.nodes, client=client) as router,
        raw_client(router.port, receive_buffer=4096) as slow,
    ):
        slow.send(get("/api/tags") * 100)
        await until(lambda: router.buffers.held > 0)
        if leaves:
            slow.leave()
        await until(lambda: router.buffers.held == 0)
        assert_at_rest(router)


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


async def test_a_node_without_a_version_does_not_make_the_pool_old() -> None:
    """Built from source it says 0.0.0, and clients refuse that."""
    async with (
        ReplayNode("a", version="0.0.0") as a,
        ReplayNode("b", version="v0.30.9+local") as b,
        ReplayNode("c", version="unknown") as c,
        router_before([a, b, c]) as router,
    ):
        assert (await ask(router, "GET", "/api/version")).body == b'{"version":"0.30.9"}'


async def test_nodes_of_all_ages_are_one_list() -> None:
    """An old one says neither what its models can nor how long their context is."""
    old, new = (SimulatedNode(name, version=version) for name, version in (("old", "0.24.0"), ("new", "0.33.0")))
    old.disk.pop("gemma-fim:latest")
    new.disk.pop("gpt-4:latest")
    async with started(old, new), router_before([old, new]) as router:
        models = {item["id"]: item for item in await listed(router, "/v1/models")}
        assert len(models) == 6
        assert (models["gpt-4:latest"]["nodes"], models["gemma3:270m"]["nodes"]) == (1, 2)
        assert "capabilities" not in models["gpt-4:latest"]
        assert models["gpt-4:latest"]["context_length"] == 32768, "a probe read it from /api/show"
        assert models["gemma-fim:latest"]["capabilities"] == ["completion", "insert"]
        assert (await ask(router, "GET", "/api/version")).body == b'{"version":"0.24.0"}'


async def test_the_order_does_not_depend_on_who_answered_first() -> None:
    nodes = [SimulatedNode(name) for name in "ab"]
    async with started(*nodes):
        async with router_before(nodes) as router:
            there = [(await ask(router, "GET", path)).body for path in ("/api/tags", "/v1/models")]
        async with router_before(nodes[::-1]) as router:
            assert [(await ask(router, "GET", path)).body for path in ("/api/tags", "/v1/models")] == there


@asynccontextmanager
async def started(*nodes: SimulatedNode) -> AsyncIterator[None]:
    for node in nodes:
        await node.start()
    try:
        yield
    finally:
        for node in nodes:
            await node.stop()


@pytest.mark.parametrize("sent", ["gemma3:270m", "Gemma3:270M", "gpt-4", "gpt-4:latest", "fast", "FAST:Latest"])
async def test_a_model_is_found_by_every_spelling_and_answers_to_the_one_used(sent: str) -> None:
    async with ReplayNode("a") as node, router_before([node], aliases={"fast": "gemma3:270m"}) as router:
        answer = await ask(router, "GET", f"/v1/models/{sent}")
        model = json.loads(answer.body)
        assert (answer.status, model["id"], model["owned_by"]) == (200, sent, "library")
        assert model["name"] == {"f": "fast:latest", "g": "gemma3:270m"}.get(sent[0].lower(), "") or "gpt-4:latest"


async def test_open_webui_can_read_when_a_model_leaves() -> None:
    """It keys on `model` and reads `expires_at` with datetime.fromisoformat; one row a name, however many copies."""
    async with ReplayNode("a") as a, ReplayNode("b") as b, router_before([a, b]) as router:
        await until(lambda: len(list(router.keeper.snapshot.copies())) == 4)
        rows = await listed(router, "/api/ps")
        assert sorted(row["model"] for row in rows) == ["all-minilm:22m", "gemma3:270m"]
        assert all(datetime.fromisoformat(row["expires_at"]).tzinfo is not None for row in rows)


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
