"""What the ollama command line sends (cmd/cmd.go, api/client.go), replayed request by request: it finds one Ollama."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.simulation.node import SimulatedNode
from router.wiring import Router
from tests.fakes.raw_client import Answer, exchange, get, raw_client
from tests.shell.house import assert_at_rest, router_before, until

MODEL, ALIAS = "gemma3:270m", "fast"
AGENT = b"User-Agent: ollama/0.33.0 (amd64 linux) Go/go1.26.0"


@pytest.fixture(params=["0.24.0", "0.33.0"])
async def router(request: pytest.FixtureRequest) -> AsyncIterator[Router]:
    nodes = [SimulatedNode(name, version=request.param, time_scale=0.001) for name in ("a", "b")]
    for node in nodes:
        await node.start()
    async with router_before(nodes, aliases={ALIAS: MODEL}) as opened:
        yield opened
        assert_at_rest(opened)
    for node in nodes:
        await node.stop()


async def send(router: Router, method: str, path: str, members: dict[str, Any] | None = None) -> Answer:
    """As Go's client sends it: a JSON body where there is one, an Accept for streams."""
    body = b"" if members is None else json.dumps(members, separators=(",", ":")).encode()
    lines = [AGENT, b"Content-Type: application/json", b"Accept: application/x-ndjson", b"Accept-Encoding: gzip"]
    lines += [b"Content-Length: %d" % len(body)] if body else []
    async with raw_client(router.port) as client:
        client.send(get(path, *lines, method=method.encode()) + body)
        return await client.answer(to_head=method == "HEAD")


async def heartbeat(router: Router) -> None:
    """checkServerHeartbeat, before each command."""
    assert (await send(router, "HEAD", "/")).status == 200


def asked_about(name: str) -> dict[str, Any]:
    """api.ShowRequest: nothing in it is omitted when empty."""
    return {"model": "", "system": "", "template": "", "verbose": False, "options": None, "name": name}


def loading(name: str, **more: Any) -> dict[str, Any]:
    """api.GenerateRequest of loadOrUnloadModel."""
    empty = {"prompt": "", "suffix": "", "system": "", "template": ""}
    return {"model": name, **empty, **more, "options": {}}


async def listed(router: Router, path: str) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads((await send(router, "GET", path)).body)["models"]
    return models


@pytest.mark.parametrize("name", [MODEL, ALIAS])
async def test_ollama_run_loads_and_talks(router: Router, name: str) -> None:
    await heartbeat(router)
    info = json.loads((await send(router, "POST", "/api/show", asked_about(name))).body)
    assert info["details"]["families"] == ["gemma3"]
    assert not info.get("remote_host")
    loaded = json.loads((await send(router, "POST", "/api/generate", loading(name))).body)
    assert (loaded["model"], loaded["done"], loaded["done_reason"]) == (name, True, "load")
    chat = {"model": name, "messages": [{"role": "user", "content": "hi"}], "format": "", "options": {}}
    answer = await send(router, "POST", "/api/chat", chat)
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert {line["model"] for line in lines} == {name}


async def test_ollama_run_of_an_unknown_model_tells_why_it_cannot_be_pulled(router: Router) -> None:
    """RunHandler pulls what show answers 404 to, and prints the error of that."""
    assert (await send(router, "POST", "/api/show", asked_about("nope"))).status == 404
    pull = {"model": "", "username": "", "password": "", "name": "nope"}
    answer = await send(router, "POST", "/api/pull", pull)
    assert answer.status == 403
    assert "run `ollama pull` on the nodes" in json.loads(answer.body)["error"]


async def test_ollama_ps_shows_what_is_loaded(router: Router) -> None:
    await heartbeat(router)
    await send(router, "POST", "/api/generate", loading(MODEL))
    copies = [copy for _, copy in router.keeper.snapshot.copies()]
    assert copies, "known at once; how it is listed is the next probe's"
    await until(lambda: any(copy.listing != "{}" for _, copy in router.keeper.snapshot.copies()))
    (row,) = await listed(router, "/api/ps")
    # ListRunningHandler slices the digest and divides by the sizes.
    assert (row["name"], len(row["digest"][:12])) == (MODEL, 12)
    assert row["size"] > 0
    assert row["size_vram"] >= 0
    assert row["expires_at"]


async def test_ollama_stop_is_answered_and_not_obeyed(router: Router) -> None:
    """What others share is not unloaded by one of them."""
    await send(router, "POST", "/api/generate", loading(MODEL))
    await heartbeat(router)
    assert (await send(router, "POST", "/api/show", {**asked_about(""), "model": MODEL})).status == 200
    stopped = json.loads((await send(router, "POST", "/api/generate", loading(MODEL, keep_alive="0s"))).body)
    assert (stopped["done"], stopped["done_reason"]) == (True, "unload")
    unknown = await send(router, "POST", "/api/generate", loading("nope", keep_alive="0s"))
    assert (unknown.status, "not found" in json.loads(unknown.body)["error"]) == (404, True)


@pytest.mark.parametrize("name", [MODEL, ALIAS])
async def test_ollama_show_prints_what_the_model_is(router: Router, name: str) -> None:
    await heartbeat(router)
    info = json.loads((await send(router, "POST", "/api/show", asked_about(name))).body)
    family = info["model_info"]["general.architecture"]
    assert info["model_info"][f"{family}.context_length"] > 0
    assert info["capabilities"] == ["completion"]
    assert info["parameters"].startswith("num_ctx")
    verbose = await send(router, "POST", "/api/show", {**asked_about(name), "verbose": True})
    assert json.loads(verbose.body)["model_info"]["general.architecture"] == family


async def test_ollama_list_shows_every_model_and_alias(router: Router) -> None:
    await heartbeat(router)
    rows = await listed(router, "/api/tags")
    assert {MODEL, f"{ALIAS}:latest"} <= {row["name"] for row in rows}
    assert all(len(row["digest"]) == 64 and row["size"] and row["modified_at"] for row in rows)


async def test_ollama_create_and_signin_stop_at_their_first_request(router: Router) -> None:
    digest = "sha256:" + "0" * 64
    assert (await send(router, "HEAD", f"/api/blobs/{digest}")).status == 403
    for path in ("/api/create", "/api/me", "/api/signout", "/api/copy", "/api/push"):
        assert (await send(router, "POST", path, {"model": MODEL})).status == 403
    assert (await send(router, "DELETE", "/api/delete", {"name": MODEL})).status == 403


async def test_ollama_asks_for_a_version_that_is_a_number(router: Router) -> None:
    version = json.loads((await exchange(router.port, get("/api/version", AGENT))).body)["version"]
    assert [int(part) for part in version.split(".")] >= [0, 6, 4]
