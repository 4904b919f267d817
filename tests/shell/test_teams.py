"""Who calls and what they see, from outside: keys, refusals, filtered lists, unloads, and keys that are replaced."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.fleet.node import CopyState
from router.simulation.facts import Event
from router.wire.endpoints import BY_PATH
from tests.shell.clients import Answer, Client, ask, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import ENDLESS, MODELS, QUICK, TWIN, holding, let_run, no_bugs, pool_of, ready_on
from tests.shell.test_reload import Mounted, mounted, reading

__all__ = ["mounted"]

KEY = "1f0e3dad99908345f7439f8ffabdffc4"
OTHER = "8f14e45fceea167a5a36dedd4bea2543"
BEARER = f"Bearer {KEY}"


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def teams(**more: Any) -> dict[str, Any]:
    """research has a key, and product another."""
    return {
        "research": {"keys_sha256": [digest(KEY)], **more},
        "product": {"keys_sha256": [digest(OTHER)]},
    }


CLOSED: Mapping[str, Any] = {"auth": {"required": True}, "teams": teams()}

# What each route's client reads before it says that the key is no good.
BODIES: Mapping[str, dict[str, Any]] = {
    "/api/generate": {"model": QUICK, "prompt": "?"},
    "/api/chat": {"model": QUICK, "messages": [{"role": "user", "content": "?"}]},
    "/v1/chat/completions": {"model": QUICK, "messages": [{"role": "user", "content": "?"}]},
    "/v1/responses": {"model": QUICK, "input": "?"},
    "/v1/messages": {"model": QUICK, "max_tokens": 5, "messages": [{"role": "user", "content": "?"}]},
}


async def fetch(port: int, path: str, *, method: str = "GET", **headers: str) -> Answer:
    async with Client(port) as client:
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        client.send_raw(
            "\r\n".join([f"{method} {path} HTTP/1.1", "Host: r", "Connection: close", *lines, "", ""]).encode()
        )
        return await client.answer()


def told(answer: Answer) -> Any:
    """(type, code) as the route's clients read them; (None, text) on native routes."""
    error = answer.json["error"]
    return (None, error) if isinstance(error, str) else (error["type"], error.get("code"))


# Refused.


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
async def test_a_call_without_a_key_gets_401_in_its_own_dialect(path: str, stream: bool) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **CLOSED) as router:
        for sent in ({}, {"authorization": "Bearer wrong"}, {"x_api_key": OTHER.upper()}):
            answer = await ask(router, path, {**BODIES[path], "stream": stream}, **sent)
            assert (answer.status, answer.refused) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            kind, more = told(answer)
            if path.startswith("/api"):
                assert kind is None
                assert "key" in more
            elif path == "/v1/messages":
                assert (answer.json["type"], kind) == ("error", "authentication_error")
            else:
                assert (kind, more) == ("invalid_request_error", "invalid_api_key")
            assert b"wrong" not in answer.body
            assert OTHER.upper().encode() not in answer.body
        assert not [call for call in pool.nodes[0].journal.calls if b"messages" in call.body or b"?" in call.body]
        page = await scrape(router)
        assert page.value("rejections_total", reason="unauthorized") == 3
        assert_at_rest(router)


async def test_a_call_is_refused_before_its_body_is_read() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **CLOSED) as router, Client(router.port) as client:
        client.send_raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: r\r\nContent-Length: 50000000\r\n\r\n{")
        answer = await client.answer()
        assert answer.status == 401
        assert await client.is_closed()


async def test_a_call_that_comes_back_is_told_so_and_not_that_its_key_is_missing() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **CLOSED) as router:
        answer = await generate(router, QUICK, via="1.1 ollama-router/default")
        assert (answer.status, answer.refused) == (508, "loop")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": BEARER},
        {"authorization": "Basic " + base64.b64encode(f"me:{KEY}".encode()).decode()},
        {"authorization": "Basic " + base64.b64encode(f"{KEY}:".encode()).decode()},
        {"x_api_key": KEY},
        {"api_key": KEY},
    ],
)
async def test_a_key_never_reaches_a_node_a_log_or_a_metric(headers: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    async with pool_of(1) as pool, router_before(pool.nodes, descriptor=descriptor, **CLOSED) as router:
        assert (await generate(router, QUICK, **headers)).status == 200
        assert (await generate(router, f"no-{QUICK}", **headers)).status == 404
        page = await fetch(router.metrics_port, "/metrics")
        config = await fetch(router.admin_port, "/admin/config")
        seen = [pair for call in pool.nodes[0].journal.calls for pair in call.headers]
        assert no_bugs(pool)
    os.close(descriptor)
    lines = path.read_text()
    secrets = {KEY, digest(KEY), *headers.values()}
    for text in (lines, page.body.decode(), config.body.decode(), repr(seen)):
        assert [secret for secret in secrets if secret in text] == []
    calls = [line for line in map(json.loads, lines.splitlines()) if line["event"] == "call"]
    assert [line["team"] for line in calls] == ["research", "research"]


async def test_a_call_of_nobody_has_no_team_in_its_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    async with pool_of(1) as pool, router_before(pool.nodes, descriptor=descriptor, **CLOSED) as router:
        assert (await generate(router, QUICK)).status == 401
    os.close(descriptor)
    (line,) = [line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == "call"]
    assert (line["team"], line["rejection"], line["outcome"]) == (None, "unauthorized", "rejected")


async def test_where_no_key_is_required_a_wrong_one_is_nobodys() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, teams=teams(), metrics={"teams": True}) as router:
        for headers in ({}, {"authorization": "Bearer ollama"}, {"authorization": BEARER}):
            assert (await generate(router, QUICK, **headers)).status == 200
        page = await scrape(router)
        assert page.value("requests_total", team="default") == 2
        assert page.value("requests_total", team="research") == 1
        assert page.labels("tokens_total", "team") == {"default", "research"}


# Open all the same.


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/"), ("HEAD", "/"), ("GET", "/api/version"), ("HEAD", "/api/version")]
)
async def test_what_asks_whether_anybody_is_there_needs_no_key(method: str, path: str) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **CLOSED) as router, Client(router.port) as client:
        client.send_raw(f"{method} {path} HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n".encode())
        assert b" 200 OK" in await client.first()


async def test_a_browsers_preflight_needs_no_key() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **CLOSED) as router:
        answer = await fetch(
            router.port,
            "/v1/chat/completions",
            method="OPTIONS",
            origin="http://localhost:3000",
            access_control_request_method="POST",
            access_control_request_headers="authorization",
        )
        assert answer.status == 204
        refused = await fetch(router.port, "/api/tags", origin="http://localhost:3000")
        assert refused.status == 401
        assert "access-control-allow-origin" in refused.headers, "else the page could not tell its user"


PAGES = ("/api/tags", "/api/ps", "/v1/models", f"/v1/models/{QUICK}", "/api/status")


@pytest.mark.parametrize("path", PAGES)
async def test_every_list_needs_a_key(path: str) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **CLOSED) as router:
        refused = await fetch(router.port, path)
        assert (refused.status, refused.refused) == (401, "unauthorized")
        assert (await fetch(router.port, path, authorization=BEARER)).status == 200
        assert (await scrape(router)).value("rejections_total", reason="unauthorized") == 1


async def test_a_verb_that_nobody_has_tells_a_stranger_nothing() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **CLOSED) as router:
        assert (await ask(router, "/api/pull", {"model": QUICK})).status == 401
        assert (await ask(router, "/api/pull", {"model": QUICK}, authorization=BEARER)).status == 403
        assert (await ask(router, "/api/show", {"model": QUICK})).status == 401


# What a team may see.

SEEN = teams(models=["quick*", "gpt-4"])
ALIASES = {
    "gpt-4": {"targets": [{"model": ENDLESS}], "teams": {"product": {"targets": [{"model": QUICK}]}}},
    "hidden": QUICK,
}


async def names(port: int, path: str, key: str) -> set[str]:
    answer = (await fetch(port, path, x_api_key=key)).json
    return {item.get("name") or item["id"] for item in answer.get("models", answer.get("data")) or ()}


async def test_lists_hold_what_a_team_may_see() -> None:
    async with holding(1, QUICK, ENDLESS, teams=SEEN, aliases=ALIASES) as (_, router):
        for path in ("/api/tags", "/v1/models"):
            assert await names(router.port, path, KEY) == {QUICK, "gpt-4:latest"}
            everything = {model.name for model in MODELS} | {"gpt-4:latest", "hidden:latest"}
            assert await names(router.port, path, OTHER) == everything
            assert await names(router.port, path, "nobody's") == everything
        assert await names(router.port, "/api/ps", KEY) == {QUICK}
        assert await names(router.port, "/api/ps", OTHER) == {QUICK, ENDLESS}


async def test_of_callers_without_a_key_as_much_may_be_said_as_of_a_team() -> None:
    async with holding(1, QUICK, ENDLESS, teams={**teams(), "default": {"models": [QUICK]}}) as (_, router):
        assert await names(router.port, "/api/tags", "nobody's") == {QUICK}
        assert (await generate(router, ENDLESS)).status == 404
        assert len(await names(router.port, "/api/tags", KEY)) == len(MODELS)


@pytest.mark.parametrize("name", [ENDLESS, "hidden", "hidden:latest"])
async def test_what_a_team_may_not_see_is_as_unknown_as_what_nobody_has(name: str) -> None:
    async with holding(1, QUICK, ENDLESS, teams=SEEN, aliases=ALIASES) as (_, router):
        for path, body in {**BODIES, "/api/show": {}}.items():
            hidden = await ask(router, path, {**body, "model": name}, x_api_key=KEY)
            absent = await ask(router, path, {**body, "model": "absent"}, x_api_key=KEY)
            assert (hidden.status, hidden.refused) == (absent.status, absent.refused) == (404, "model_not_found")
            in_it, of_absent = hidden.json["error"], absent.json["error"]
            as_absent = json.dumps(in_it).replace(name if ":" in name else f"{name}:latest", "X").replace(name, "X")
            assert as_absent == json.dumps(of_absent).replace("absent:latest", "X").replace("absent", "X")
        assert (await fetch(router.port, f"/v1/models/{name}", x_api_key=KEY)).status == 404
        assert (await fetch(router.port, f"/v1/models/{name}", x_api_key=OTHER)).status == 200


async def test_an_alias_that_a_team_may_see_leads_where_it_leads_for_this_team() -> None:
    async with holding(1, QUICK, ENDLESS, teams=SEEN, aliases=ALIASES) as (pool, router):
        body = {"model": "gpt-4", "prompt": "?", "stream": False}
        answer = await ask(router, "/api/generate", body, x_api_key=OTHER)
        assert (answer.status, answer.headers["x-ollama-router-model"]) == (200, QUICK)
        async with Client(router.port) as client:
            client.send("/api/generate", body, x_api_key=KEY)
            await until(lambda: bool(router.store.occupancy))
            let_run(pool.nodes[0])
            answer = await client.answer()
            assert (answer.status, answer.headers["x-ollama-router-model"]) == (200, ENDLESS)
        digests = {}
        for key in (KEY, OTHER):
            listed = (await fetch(router.port, "/api/tags", x_api_key=key)).json["models"]
            digests[key] = {item["name"]: item["digest"] for item in listed}
        assert digests[OTHER]["gpt-4:latest"] == digests[OTHER][QUICK]
        assert digests[KEY]["gpt-4:latest"] == digests[OTHER][ENDLESS]


# Unloads.

UNLOAD = {"model": QUICK, "keep_alive": 0}


async def test_the_unload_of_a_team_that_may_is_obeyed_on_every_node() -> None:
    async with holding(2, QUICK, teams=teams(may_unload=True)) as (pool, router):
        answer = await ask(router, "/api/generate", UNLOAD, x_api_key=KEY)
        assert (answer.status, answer.json["done_reason"]) == (200, "unload")
        await until(lambda: not any(node.model.copies for node in pool.nodes))
        await until(lambda: ready_on(router, QUICK) == 0)
        assert (await generate(router, QUICK)).status == 200, "and it is loaded again by whoever wants it"
        assert no_bugs(pool)
        assert_at_rest(router)


async def test_the_unload_of_another_team_changes_nothing() -> None:
    async with holding(1, QUICK, teams=teams(may_unload=True)) as (pool, router):
        for headers in ({"x_api_key": OTHER}, {}):
            answer = await ask(router, "/api/generate", UNLOAD, **headers)
            assert (answer.status, answer.json["done_reason"]) == (200, "unload")
        assert pool.nodes[0].journal.counts[Event.EXPIRED] == 0
        assert (await scrape(router)).value("guard_total", option="unload", action="ignored") == 2


async def test_a_copy_that_serves_somebody_is_not_unloaded_under_him() -> None:
    async with holding(2, ENDLESS, teams=teams(may_unload=True)) as (pool, router), Client(router.port) as client:
        client.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await client.first(b'"response"')
        ((busy, _),) = router.store.occupancy
        # By another name of the same weights.
        await ask(router, "/api/generate", {"model": TWIN, "keep_alive": 0}, x_api_key=KEY)
        await until(lambda: ready_on(router, ENDLESS) == 1)
        by_node = router.keeper.snapshot.holding(ENDLESS).by_node
        assert [name for name, row in by_node.items() if row.state is CopyState.READY] == [busy]
        assert [node.name for node in pool.nodes if node.model.copies] == [busy]
        for node in pool.nodes:
            let_run(node)
        assert (await client.answer()).is_whole


async def test_where_placement_only_observes_no_unload_is_obeyed() -> None:
    settings: dict[str, Any] = {"teams": teams(may_unload=True), "placement": {"mode": "observe"}}
    async with holding(1, QUICK, **settings) as (pool, router):
        assert (await ask(router, "/api/generate", UNLOAD, x_api_key=KEY)).json["done_reason"] == "unload"
        assert (await generate(router, QUICK)).status == 200
        assert len(pool.nodes[0].model.copies) == 1


async def test_an_unload_that_a_node_does_not_hear_leaves_the_copy_to_the_next_probe() -> None:
    async with holding(1, QUICK, teams=teams(may_unload=True)) as (pool, router):
        before = router.keeper.snapshot
        await pool.nodes[0].stop()
        await ask(router, "/api/generate", UNLOAD, x_api_key=KEY)
        await until(lambda: router.keeper.snapshot is not before)
        await pool.nodes[0].start()
        await until(lambda: router.keeper.snapshot.has_node_up(QUICK))
        assert (await generate(router, QUICK)).status == 200


# Rotation.


async def test_keys_are_replaced_under_load_without_a_failed_call(mounted: Mounted, tmp_path: Path) -> None:
    keys_file = tmp_path / "keys.yaml"
    keys_file.write_text(yaml.safe_dump({"research": [digest(KEY)]}))
    async with pool_of(1, slots=4) as pool:
        mounted.say(pool, auth={"required": True, "keys_file": str(keys_file)})
        async with reading(mounted) as router:
            await until(lambda: router.keeper.snapshot.all_read)
            statuses: list[int] = []
            key, is_over = KEY, asyncio.Event()

            async def calls() -> None:
                while not is_over.is_set():
                    statuses.append((await generate(router, QUICK, x_api_key=key)).status)

            async def is_known(sent: str, status: int) -> None:
                while (await fetch(router.port, "/api/tags", x_api_key=sent)).status != status:
                    pass

            running = [asyncio.create_task(calls()) for _ in range(3)]
            async with asyncio.timeout(30):
                keys_file.write_text(yaml.safe_dump({"research": [digest(KEY), digest(OTHER)]}))
                await is_known(OTHER, 200)
                key = OTHER
                count = len(statuses)
                await until(lambda: len(statuses) > count + 6)  # those that went out with the old key are back
                keys_file.write_text(yaml.safe_dump({"research": [digest(OTHER)]}))
                await is_known(KEY, 401)
                count = len(statuses)
                await until(lambda: len(statuses) > count + 6)
            is_over.set()
            await asyncio.gather(*running)
            assert set(statuses) == {200}


async def test_other_keys_are_said_to_be_others_and_nothing_more(
    mounted: Mounted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys_file = tmp_path / "keys.yaml"
    keys_file.write_text("")
    mounted.say(auth={"required": True, "keys_file": str(keys_file)})
    async with reading(mounted) as router:
        assert (await fetch(router.port, "/api/tags", x_api_key=KEY)).status == 401, "nobody has a key yet"
        keys_file.write_text(yaml.safe_dump({"research": [digest(KEY)]}))
        with caplog.at_level(logging.INFO):
            await router.reloader.reload()
        assert "configuration reloaded: keys of teams" in [record.getMessage() for record in caplog.records]
        assert (await fetch(router.port, "/api/tags", x_api_key=KEY)).status == 200


async def test_a_bad_keys_file_leaves_the_keys_as_they_were_and_is_told_without_them(
    mounted: Mounted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys_file = tmp_path / "keys.yaml"
    keys_file.write_text(yaml.safe_dump({"research": [digest(KEY)]}))
    async with pool_of(1) as pool:
        mounted.say(
            pool,
            auth={"required": True, "keys_file": str(keys_file)},
            teams={"product": {"keys_sha256": [digest(OTHER)]}},
        )
        async with reading(mounted) as router:
            for bad in (
                f"research: [{KEY}]",
                f"research: {digest(KEY)}",
                f"research: [*{KEY}]",
                f"{{{KEY}",
                f"product: [{digest(KEY)}]\nproduct: []",
                f"research: [{digest(OTHER)}]",
                f"[{digest(KEY)}]",
            ):
                keys_file.write_text(bad)
                caplog.clear()
                await router.reloader.reload()
                said = [record.getMessage() for record in caplog.records if "not reloaded" in record.getMessage()]
                assert len(said) == 1, bad
                assert "keys_file" in said[0]
                assert not [secret for secret in (KEY, OTHER, digest(KEY), digest(OTHER)) if secret in said[0]]
                assert (await fetch(router.port, "/api/tags", x_api_key=KEY)).status == 200


# What is said at the start.


@pytest.mark.parametrize(
    ("settings", "is_warned"),
    [
        ({"listen": "0.0.0.0:0"}, True),
        ({"listen": "0.0.0.0:0", "teams": teams()}, True),
        ({"listen": "0.0.0.0:0", **CLOSED}, False),
        ({}, False),
    ],
)
async def test_an_open_router_that_others_reach_is_warned_of_once(
    settings: dict[str, Any], is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes, **settings) as router:
        await router.reloader.reload()
        warned = [record for record in caplog.records if "auth.required" in record.getMessage()]
        assert len(warned) == is_warned
        assert all(record.levelno == logging.WARNING for record in warned)


def test_every_dialect_is_asked_here() -> None:
    assert {BY_PATH[path].dialect for path in BODIES} == {endpoint.dialect for endpoint in BY_PATH.values()}
