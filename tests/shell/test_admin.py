"""The admin API over real sockets: what operators see, what drains do, and who does not get in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from router.fleet.node import Health
from router.server.admin import BODY_BYTES_MAX
from router.settings import ConfigError
from router.wiring import Router
from tests.shell.clients import Answer, Client, generate, scrape
from tests.shell.house import LOOPBACK, assert_at_rest, router_before, until
from tests.shell.scenes import (
    COLD,
    ENDLESS,
    QUICK,
    TWIN,
    holding,
    is_loading,
    let_load_finish,
    let_run,
    load_into,
    pool_of,
    ready_on,
    running,
    slotted,
)

TOKEN = "0123456789abcdef-first"
OTHER = "0123456789abcdef-second"


async def ask(router: Router, path: str, *, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
    """As `ollama-router` itself asks, unless headers say otherwise; an empty one is not sent."""
    usual = {"Host": "127.0.0.1:9465", "Connection": "close", "Content_Type": "application/json"}
    lines = [f"{method} {path} HTTP/1.1", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in (usual | headers).items() if value]
    async with Client(router.admin_port) as client:
        client.send_raw("\r\n".join([*lines, "", ""]).encode() + body)
        return await client.answer()


async def told(router: Router, path: str, *, method: str = "GET") -> Any:
    answer = await ask(router, path, method=method)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json"), answer
    return answer.json


async def error_of(router: Router, status: int, path: str, **more: Any) -> str:
    answer = await ask(router, path, **more)
    assert (answer.status, list(answer.json)) == (status, ["error"])
    return answer.json["error"]


async def explained(router: Router, model: str, **more: str) -> Mapping[str, Any]:
    query = "&".join(f"{name}={value}" for name, value in {"model": model, **more}.items())
    return await told(router, f"/admin/explain?{query}")


# What is seen


async def test_a_team_is_explained_what_its_own_calls_would_meet() -> None:
    said = {"product": {"models": [QUICK, "gpt-4"]}}
    aliases = {"gpt-4": {"targets": [{"model": ENDLESS}], "teams": {"product": {"targets": [{"model": QUICK}]}}}}
    async with holding(1, QUICK, ENDLESS, teams=said, aliases=aliases) as (_, router):
        assert (await explained(router, "gpt-4"))["targets"] == [ENDLESS]
        assert (await explained(router, "gpt-4", team="product"))["targets"] == [QUICK]
        explain = "/admin/explain"
        assert "may not see" in await error_of(router, 404, f"{explain}?model={ENDLESS}&team=product")
        assert "did you mean product?" in await error_of(router, 400, f"{explain}?model=m&team=produkt")


async def test_nodes_are_shown_with_what_runs_there() -> None:
    async with holding(2, QUICK, ENDLESS, slots=2) as (pool, router), Client(router.port) as client:
        client.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
        await client.first(b'"done":false')
        nodes = (await told(router, "/admin/nodes"))["nodes"]
        assert [node["name"] for node in nodes] == ["sim-1", "sim-2"]
        assert sorted(node["used"] for node in nodes) == [0, 1]
        busy = next(node for node in nodes if node["used"])
        assert (busy["state"], busy["slots"], busy["is_idle"], busy["on_disk"]) == ("healthy", 4, False, 5)
        copies = {tuple(copy["models"]): copy for copy in busy["copies"]}
        shared = copies[ENDLESS, TWIN]
        assert (shared["state"], shared["slots"], shared["used"], shared["circuit"]) == ("ready", 2, 1, "closed")
        assert await told(router, f"/admin/nodes/{busy['name']}") == {**busy, "only_here": []}
        let_run(pool.named(busy["name"]))
        await client.answer()


async def test_models_are_shown_with_their_aliases_and_lines() -> None:
    async with holding(1, ENDLESS, aliases={"gpt-4": ENDLESS, "ghost": "nowhere"}) as (pool, router):
        async with Client(router.port) as first, Client(router.port) as second:
            first.send("/api/generate", {"model": "gpt-4", "prompt": "Why?"})
            await first.first(b'"done":false')
            second.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
            await until(lambda: len(router.pipeline.live) == 2)
            models = {model["model"]: model for model in (await told(router, "/admin/models"))["models"]}
            (line,) = (await told(router, "/admin/lines"))["lines"]
            let_run(pool.nodes[0])
            await first.answer()
        endless = models[ENDLESS]
        assert (endless["aliases"], endless["nodes"], endless["loaded"]) == (["gpt-4:latest"], 1, 1)
        assert (endless["slots"], endless["used"], endless["waiting"]) == (1, 1, 1)
        assert (models["nowhere:latest"]["nodes"], models["nowhere:latest"]["aliases"]) == (0, ["ghost:latest"])
        assert (line["model"], line["waiting"], line["max_waiting"]) == (ENDLESS, 1, 256)


async def test_the_settings_in_force_are_shown_without_secrets(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    async with pool_of(1) as pool, router_before(pool.nodes, admin={"listen": LOOPBACK, "token_file": str(file)}) as r:
        answer = await ask(r, "/admin/config", Authorization=f"Bearer {TOKEN}")
        assert answer.json["nodes"][0]["name"] == "sim-1"
        assert answer.json["admin"]["token_file"] == str(file)
        assert TOKEN.encode() not in answer.body


# Drains


async def test_a_draining_node_ends_what_it_has_and_gets_nothing_new_until_it_resumes() -> None:
    async with holding(2, ENDLESS, slots=1) as (pool, router):
        async with Client(router.port) as first, Client(router.port) as second:
            first.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
            await first.first(b'"done":false')
            (busy,) = [node for node in pool.nodes if any(copy.running for copy in node.model.copies.values())]
            (other,) = [node for node in pool.nodes if node is not busy]
            shown = await told(router, f"/admin/nodes/{busy.name}/drain", method="POST")
            assert (shown["state"], shown["is_drained"], shown["used"], shown["is_idle"]) == (
                "draining",
                True,
                1,
                False,
            )
            assert await told(router, f"/admin/nodes/{busy.name}/drain", method="POST") == shown, "twice is once"
            assert (await scrape(router)).value("node_state", node=busy.name, state="draining") == 1
            second.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
            assert f"x-ollama-router-node: {other.name}".encode() in await second.first()
            let_run(busy)
            assert (await first.answer()).status == 200
            await until(lambda: not router.store.occupancy.get((busy.name, busy.weights_of(busy.disk[ENDLESS]))))
            assert (await told(router, f"/admin/nodes/{busy.name}"))["is_idle"]
            let_run(other)
            await second.answer()
        assert {(await generate(router, QUICK)).node for _ in range(4)} == {other.name}
        assert (await told(router, f"/admin/nodes/{busy.name}/resume", method="POST"))["state"] == "healthy"
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)


async def test_who_waits_for_a_draining_node_goes_elsewhere() -> None:
    async with pool_of(2) as pool:
        load_into(pool.nodes[0], ENDLESS)
        async with router_before(pool.nodes, nodes=slotted(pool, 1)) as router:
            await until(lambda: ready_on(router, ENDLESS) == 1)
            async with Client(router.port) as first, Client(router.port) as second:
                first.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
                await first.first(b'"done":false')
                second.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
                await until(lambda: len(router.pipeline.live) == 2)
                await told(router, "/admin/nodes/sim-1/drain", method="POST")
                assert b"x-ollama-router-node: sim-2" in await second.first()
                assert running(pool) == 2, "and what ran on the draining node runs on"
                for node in pool.nodes:
                    let_run(node)
                await first.answer()


async def test_without_another_node_calls_are_refused_and_the_drain_says_so_before() -> None:
    async with holding(1, QUICK) as (_, router):
        shown = await told(router, "/admin/nodes/sim-1/drain", method="POST")
        assert QUICK in shown["only_here"]
        refused = await generate(router, QUICK)
        assert (refused.status, refused.refused) == (503, "no_node")
        assert "down or draining" in refused.json["error"]
        assert (await explained(router, QUICK))["verdict"]["reason"] == "no_node"
        await told(router, "/admin/nodes/sim-1/resume", method="POST")
        assert (await generate(router, QUICK)).status == 200


async def test_a_drain_outlives_the_nodes_restart() -> None:
    async with holding(2, QUICK) as (pool, router):
        await told(router, "/admin/nodes/sim-1/drain", method="POST")
        node = pool.named("sim-1")
        await node.stop()
        await until(lambda: router.keeper.snapshot.nodes["sim-1"].health is Health.DOWN)
        shown = await told(router, "/admin/nodes/sim-1")
        assert (shown["state"], shown["is_drained"], shown["is_idle"]) == ("down", True, True)
        await node.start()
        await until(lambda: router.keeper.snapshot.nodes["sim-1"].health is Health.DRAINING)
        assert {(await generate(router, QUICK)).node for _ in range(4)} == {"sim-2"}


async def test_a_load_that_runs_on_a_draining_node_keeps_it_from_being_idle() -> None:
    async with holding(1) as (pool, router), Client(router.port) as client:
        client.send("/api/generate", {"model": COLD, "prompt": "Why?"})
        await until(lambda: is_loading(pool.nodes[0]))
        shown = await told(router, "/admin/nodes/sim-1/drain", method="POST")
        assert (shown["loading"], shown["used"], shown["is_idle"]) == (COLD, 0, False)
        await client.first(b"503")
        let_load_finish(pool.nodes[0])
        await until(lambda: not router.placer.loading)
        assert (await told(router, "/admin/nodes/sim-1"))["is_idle"]


# Explanations: what is said is what happens


async def test_what_is_explained_is_what_a_call_then_gets() -> None:
    async with holding(3, QUICK, ENDLESS, slots=1, aliases={"gpt-4": QUICK}) as (_, router):
        for talk in ("one", "two", "three"):
            said = await explained(router, "gpt-4", affinity=talk)
            got = await generate(router, "gpt-4", x_ollama_router_affinity=talk)
            assert (said["verdict"]["node"], said["verdict"]["reason"]) == (
                got.node,
                got.headers["x-ollama-router-reason"],
            )
            assert said["targets"] == [QUICK]
        await told(router, "/admin/nodes/sim-1/drain", method="POST")
        said = await explained(router, QUICK)
        barred = {one["node"]: (one["bar"], one["why"]) for one in said["candidates"] if one["bar"]}
        assert barred == {"sim-1": ("draining", ["the node is draining"])}


@pytest.mark.parametrize(
    ("model", "settings", "more", "status"),
    [
        ("nowhere", {}, {}, 404),
        (QUICK, {}, {"num_ctx": "8000"}, 400),
        (COLD, {"placement": {"mode": "observe"}}, {}, 503),
        ("x:cloud", {}, {}, 404),
    ],
)
async def test_refusals_are_foretold(model: str, settings: dict[str, Any], more: dict[str, str], status: int) -> None:
    async with holding(1, QUICK, **settings) as (_, router):
        said = (await explained(router, model, **more))["verdict"]
        options = {"options": {"num_ctx": int(more["num_ctx"])}} if more else {}
        async with Client(router.port) as client:
            client.send("/api/generate", {"model": model, "prompt": "Why?", **options}, connection="close")
            got = await client.answer()
        assert (said["end"], got.status) == ("refused", status)
        assert said["reason"] == got.refused


async def test_a_full_node_a_full_line_and_a_load_are_foretold() -> None:
    async with holding(1, ENDLESS, line={"max_waiting_per_model": 1}) as (pool, router):
        cold = (await explained(router, COLD))["verdict"]
        assert (cold["end"], cold["node"], cold["reason"]) == ("waits", "sim-1", "cold_load")
        async with Client(router.port) as first, Client(router.port) as second:
            first.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
            await first.first(b'"done":false')
            said = await explained(router, ENDLESS)
            assert said["verdict"]["end"] == "waits"
            assert said["candidates"][0]["why"] == ["1 of 1 slots taken"]
            second.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
            await until(lambda: len(router.pipeline.live) == 2)
            assert (await explained(router, ENDLESS))["verdict"]["reason"] == "queue_full"
            assert (await generate(router, ENDLESS)).refused == "queue_full"
            let_run(pool.nodes[0])
            await first.answer()


async def test_questions_that_make_no_sense_are_answered_with_what_to_ask() -> None:
    async with holding(1) as (_, router):
        explain = "/admin/explain"
        assert "?model=NAME" in await error_of(router, 400, explain)
        assert "invalid model name" in await error_of(router, 400, f"{explain}?model=a/b/c/d/e")
        assert "number of tokens" in await error_of(router, 400, f"{explain}?model=m&num_ctx=many")
        assert "no team 'x'" in await error_of(router, 400, f"{explain}?model=m&team=x")
        assert "'colour'" in await error_of(router, 400, f"{explain}?model=m&colour=red")
        assert "did you mean sim-1?" in await error_of(router, 404, "/admin/nodes/sim1")
        assert "lists them" in await error_of(router, 404, "/admin/nodes/%2e%2e/drain", method="POST")
        assert "/admin/nodes" in await error_of(router, 404, "/metrics")
        assert "takes GET" in await error_of(router, 405, "/admin/nodes", method="POST")
        assert "takes POST" in await error_of(router, 405, "/admin/nodes/sim-1/drain")


async def test_a_node_may_have_any_name() -> None:
    async with pool_of(1) as pool:
        nodes = [{"url": pool.nodes[0].url, "name": "rack/1%2f?x"}]
        async with router_before(pool.nodes, nodes=nodes) as router:
            shown = await told(router, "/admin/nodes/rack%2F1%252f%3Fx/drain", method="POST")
            assert (shown["name"], shown["is_drained"]) == ("rack/1%2f?x", True)


# Who gets in


@pytest.mark.parametrize("host", ["localhost:9465", "127.0.0.1", "[::1]:9465", "LOCALHOST"])
async def test_without_a_token_it_is_asked_by_a_loopback_name(host: str) -> None:
    async with holding(1) as (_, router):
        assert (await ask(router, "/admin/nodes", Host=host)).status == 200


@pytest.mark.parametrize("host", ["evil.example:9465", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost.evil"])
async def test_a_name_that_was_made_to_lead_here_is_refused(host: str) -> None:
    async with holding(1) as (_, router):
        answer = await ask(router, "/admin/nodes", Host=host)
        assert answer.status in (400, 403)
        assert b"sim-1" not in answer.body


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:9465"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": "application/x-www-form-urlencoded"},
        {"Content_Type": ""},
    ],
)
async def test_no_web_page_can_drain_a_node(headers: dict[str, str]) -> None:
    async with holding(1) as (_, router):
        answer = await ask(router, "/admin/nodes/sim-1/drain", method="POST", **headers)
        assert answer.status in (403, 415)
        assert "access-control-allow-origin" not in answer.headers
        assert router.keeper.drained() == frozenset()


async def test_where_a_token_is_set_everybody_needs_it_and_a_new_one_counts_at_once(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    admin = {"listen": LOOPBACK, "token_file": str(file)}
    async with pool_of(1) as pool, router_before(pool.nodes, admin=admin) as router:

        async def status(authorization: str) -> int:
            return (await ask(router, "/admin/nodes", Host="router.example", Authorization=authorization)).status

        assert await status(f"Bearer {TOKEN}") == 200
        for wrong in ("", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x", "Bearer ", f"Bearer {OTHER}", "Bearer \xff"):
            assert await status(wrong) == 401, wrong
        refused = await ask(router, "/admin/nodes")
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert "token_file" in refused.json["error"]
        replaced = tmp_path / "new"
        replaced.write_text(OTHER)
        replaced.rename(file)
        assert [await status(f"Bearer {token}") for token in (TOKEN, OTHER)] == [401, 200]
        file.write_text("short")
        assert await status("Bearer short") == 503
        file.unlink()
        assert await status(f"Bearer {OTHER}") == 503, "without a token nobody passes"


@pytest.mark.parametrize("held", [None, "", "short", "two words of it, far too many"])
async def test_a_token_file_that_holds_none_ends_the_start(held: str | None, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if held is not None:
        file.write_text(held)
    with pytest.raises(ConfigError, match=r"admin\.token_file"):
        async with router_before([], admin={"listen": LOOPBACK, "token_file": str(file)}):
            pass


async def test_a_body_that_is_too_large_is_not_read_to_its_end() -> None:
    async with holding(1) as (_, router):
        at_most = await ask(router, "/admin/nodes/sim-1/resume", method="POST", body=b"x" * BODY_BYTES_MAX)
        assert at_most.status == 200
        more = await ask(router, "/admin/nodes/sim-1/resume", method="POST", body=b"x" * (BODY_BYTES_MAX + 1))
        assert (more.status, "send no body" in json.loads(more.body)["error"]) == (413, True)


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.admin.BODY_S", 0.01)
    async with holding(1) as (_, router), Client(router.admin_port) as client:
        client.send_raw(
            b"POST /admin/nodes/sim-1/resume HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5\r\n\r\n{"
        )
        assert (await client.answer()).status == 408
