"""Overflow from outside: a call that waits too long for one model is served by the next one of its alias."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from hashlib import sha256
from typing import Any

import pytest

from router.cli_tables import explanation
from router.simulation.catalog import model_of
from router.simulation.pool import SimulatedPool
from router.wiring import Router
from tests.shell.clients import Client, ask, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import (
    COLD,
    ENDLESS,
    NEVER_TPS,
    QUICK,
    SILENT,
    holding,
    is_loading,
    let_load_finish,
    let_run,
    load_into,
    pool_of,
    ready_on,
    slotted,
)
from tests.shell.test_admin import explained
from tests.shell.test_admin import told as told_by_admin
from tests.shell.test_aliases import COMPAT, NATIVE, TOOL, USER, alias_of, bodies, fallbacks, model
from tests.shell.test_reload import Mounted, mounted, reading, reloads

__all__ = ["mounted"]

KEY = "a87ff679a2f3e71d9181a67b7542122c"
SOON_S = 0.05
BIG = "big:70b"  # never done, and can use tools
Scene = tuple[SimulatedPool, Router, list[Client]]


def gpt(*fallbacks: str, after_s: float = SOON_S, **more: Any) -> dict[str, Any]:
    """The alias `gpt`: for the model that is never done, and after a moment for another."""
    named = " ".join(fallbacks or (QUICK,))
    return {"gpt": alias_of(ENDLESS, fallbacks=named, overflow_after_s=after_s, **more)}


@asynccontextmanager
async def busy(*names: str, ready: str = QUICK, **settings: Any) -> AsyncIterator[Scene]:
    """Each of these models (ENDLESS, if none is named) has one slot, taken by a client of its own; `ready` has one."""
    names = names or (ENDLESS,)
    async with AsyncExitStack() as stack:
        pool, router = await stack.enter_async_context(holding(1, *names, *ready.split(), **settings))
        served = [await stack.enter_async_context(Client(router.port)) for _ in names]
        for client, name in zip(served, names, strict=True):
            client.send("/api/generate", {"model": name, "prompt": "?"})
        await until(lambda: sum(router.store.occupancy.values()) == len(names))
        yield pool, router, served


def in_lines(router: Router) -> dict[str, tuple[int, int]]:
    """How many stand in each line, and how many of them in another one first."""
    return {line.model: (line.depth, line.overflowed) for line in router.store.book.ledger.views()}


async def stands(router: Router, lines: dict[str, tuple[int, int]]) -> None:
    await until(lambda: in_lines(router) == lines)


async def at_rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live and not router.connections.busy)
    assert not router.store.book.ledger.tickets
    assert in_lines(router) == {}
    assert_at_rest(router)


# who serves


async def test_a_long_line_for_one_model_is_answered_by_the_next_one_under_the_name_of_the_alias() -> None:
    async with busy(aliases=gpt(after_s=0.2)) as (pool, router, (served,)):
        answers = await asyncio.gather(*(generate(router, "GPT", stream=False) for _ in range(8)))
        assert {(answer.status, answer.json["model"], model(answer)) for answer in answers} == {(200, "GPT", QUICK)}
        assert {answer.headers["x-ollama-router-reason"] for answer in answers} == {"overflow"}
        assert min(int(answer.headers["x-ollama-router-queue-ms"]) for answer in answers) >= 200
        assert all(body["model"] == QUICK for body in bodies(pool.nodes[0])[1:])
        page = await scrape(router)
        assert page.value("alias_overflows_total", alias="gpt:latest", model=QUICK) == 8
        assert page.value("routing_decisions_total", reason="overflow") == 8
        assert page.value("requests_total", model=QUICK, outcome="ok") == 8
        assert page.value("time_to_first_token_seconds_count", model=QUICK, start="cold") == 0
        assert await fallbacks(router) == {}, "nobody was passed over"
        served.leave()
        await at_rest(router)


@pytest.mark.parametrize("path", [*NATIVE, *COMPAT])
@pytest.mark.parametrize("stream", [True, False])
async def test_on_every_route_the_model_with_the_slot_is_asked_and_the_alias_echoed(path: str, stream: bool) -> None:
    async with busy(aliases=gpt()) as (pool, router, _):
        answer = await ask(router, path, {"model": " gpt", **(NATIVE | COMPAT)[path], "stream": stream})
        assert (answer.status, answer.is_whole, model(answer)) == (200, True, QUICK), answer.body
        assert bodies(pool.nodes[0])[-1]["model"] == QUICK
        names = {part.partition(b'"')[0] for part in answer.body.split(b'"model":"')[1:]}
        assert names == {b" gpt"}


@pytest.mark.parametrize(("freed", "serving"), [(0, ENDLESS), (1, SILENT)])
async def test_the_first_slot_in_any_of_its_lines_takes_a_call_out_of_all(freed: int, serving: str) -> None:
    async with busy(ENDLESS, SILENT, aliases=gpt(SILENT)) as (pool, router, served), Client(router.port) as waiting:
        waiting.send("/api/generate", {"model": "gpt", "prompt": "?", "stream": False})
        await stands(router, {ENDLESS: (1, 0), SILENT: (1, 1)})
        served[freed].leave()
        await until(lambda: len(bodies(pool.nodes[0])) == 3)
        await stands(router, {})
        assert bodies(pool.nodes[0])[-1]["model"] == serving
        let_run(pool.nodes[0])
        answer = await waiting.answer()
        assert (answer.status, model(answer), answer.json["model"]) == (200, serving, "gpt")
        served[1 - freed].leave()
        await at_rest(router)
        # Served in its own line is no overflow.
        assert (await scrape(router)).value("alias_overflows_total") == (serving == SILENT)


async def test_each_target_has_its_time_and_what_cannot_be_had_is_passed_over() -> None:
    aliases = gpt("absent:1b", SILENT, QUICK)
    async with busy(ENDLESS, SILENT, aliases=aliases) as (_, router, _):
        answer = await generate(router, "gpt")
        assert (answer.status, model(answer)) == (200, QUICK)
        assert int(answer.headers["x-ollama-router-queue-ms"]) >= 2 * SOON_S * 1000


async def test_without_patience_a_call_takes_whichever_model_has_a_slot() -> None:
    async with busy(aliases=gpt(after_s=0)) as (_, router, (served,)):
        answer = await generate(router, "gpt")
        assert (model(answer), answer.headers["x-ollama-router-reason"]) == (QUICK, "overflow")
        served.leave()
        await at_rest(router)


async def test_an_alias_that_does_not_say_so_waits_in_one_line() -> None:
    aliases = {"gpt": alias_of(ENDLESS, fallbacks=QUICK)}
    async with busy(aliases=aliases, line={"max_wait_s": 0.2}) as (_, router, _):
        answer = await generate(router, "gpt")
        assert (answer.status, answer.refused) == (503, "queue_timeout")


async def test_overrides_are_those_of_the_target_that_serves() -> None:
    aliases = {
        "big": alias_of(ENDLESS, overrides={"temperature": 0.9}),
        "small": alias_of(QUICK, overrides={"temperature": 0.1}),
        "gpt": alias_of("big", fallbacks="small", overflow_after_s=SOON_S),
    }
    async with busy(aliases=aliases) as (pool, router, _):
        assert (await generate(router, "gpt", stream=False)).json["model"] == "gpt"
        assert bodies(pool.nodes[0])[-1]["options"] == {"temperature": 0.1}


async def test_a_teams_calls_overflow_where_the_alias_leads_for_that_team() -> None:
    teams = {"research": {"keys_sha256": [sha256(KEY.encode()).hexdigest()], "models": ["gpt"]}}
    aliases = gpt(teams={"research": {"fallbacks": ["spare:1b"]}})
    models = tuple(model_of(name, gib=1.0, load_s=0, decode_tps=speed) for name, speed in SPEEDS.items())
    async with (
        pool_of(1, models=models) as pool,
        router_before(pool.nodes, nodes=slotted(pool, 1), teams=teams, aliases=aliases) as router,
        Client(router.port) as served,
    ):
        for name in SPEEDS:
            assert name == ENDLESS or (await generate(router, name)).status == 200
        served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await served.first(b'"done":false')
        assert model(await generate(router, "gpt", x_api_key=KEY)) == "spare:1b"
        assert model(await generate(router, "gpt")) == QUICK


SPEEDS = {ENDLESS: NEVER_TPS, QUICK: 1e9, "spare:1b": 1e9}


async def test_a_team_at_its_own_limit_gains_nothing_by_another_line() -> None:
    teams = {"research": {"keys_sha256": [sha256(KEY.encode()).hexdigest()], "max_concurrent": 1}}
    async with holding(1, ENDLESS, QUICK, teams=teams, aliases=gpt(after_s=0)) as (_, router):
        async with Client(router.port) as served, Client(router.port) as waiting:
            served.send("/api/generate", {"model": ENDLESS, "prompt": "?"}, x_api_key=KEY)
            await served.first(b'"done":false')
            waiting.send("/api/generate", {"model": "gpt", "prompt": "?"}, x_api_key=KEY)
            await stands(router, {ENDLESS: (1, 0)})
            assert model(await generate(router, "gpt")) == QUICK, "others overflow meanwhile"
            assert in_lines(router) == {ENDLESS: (1, 0)}
        await at_rest(router)


async def test_how_long_a_call_waits_before_it_overflows_is_read_anew(mounted: Mounted) -> None:
    async with pool_of(1) as pool:
        for name in (ENDLESS, QUICK):
            load_into(pool.nodes[0], name)
        settings: dict[str, Any] = {"nodes": slotted(pool, 1), "line": {"max_wait_s": 0.3}}
        mounted.say(pool, **settings, aliases=gpt(after_s=3600))
        async with reading(mounted) as router, Client(router.port) as served:
            await until(lambda: ready_on(router, QUICK) == 1)
            served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await served.first(b'"done":false')
            assert (await generate(router, "gpt")).refused == "queue_timeout"
            mounted.say(pool, **settings, aliases=gpt())
            await reloads(router, "ok")
            assert model(await generate(router, "gpt")) == QUICK


# what the model in whose line it went cannot do


async def test_what_the_other_model_cannot_do_goes_back_to_the_front_of_its_own_line() -> None:
    models = (
        model_of(BIG, gib=1.0, load_s=0, decode_tps=NEVER_TPS),
        model_of("small:1b", gib=1.0, load_s=0, capabilities=("completion",)),
    )
    aliases = {"gpt": alias_of(BIG, fallbacks="small:1b", overflow_after_s=SOON_S)}
    teams = {"default": {"requests_per_minute": 4}}
    async with pool_of(1, models=models) as pool:
        for one in models:
            load_into(pool.nodes[0], one.name)
        async with (
            router_before(pool.nodes, nodes=slotted(pool, 1), aliases=aliases, teams=teams) as router,
            Client(router.port) as served,
            Client(router.port) as with_tools,
            Client(router.port) as later,
        ):
            await until(lambda: ready_on(router, BIG) == ready_on(router, "small:1b") == 1)
            served.send("/api/generate", {"model": BIG, "prompt": "first"})
            await served.first(b'"done":false')
            with_tools.send("/api/chat", {"model": "gpt", "messages": USER, "tools": [TOOL]})
            later.send("/api/generate", {"model": BIG, "prompt": "later"})
            asked = lambda: [seen["model"] for seen in bodies(pool.nodes[0]) if "messages" in seen]  # noqa: E731
            await until(lambda: asked() == ["small:1b"])
            await stands(router, {BIG: (2, 0)})
            served.leave()
            await until(lambda: asked() == ["small:1b", BIG])
            assert in_lines(router)[BIG] == (1, 0), "it came before the one that came after it"
            let_run(pool.nodes[0])
            answer = await with_tools.answer()
            assert (answer.status, model(answer), answer.headers["x-ollama-router-attempts"]) == (200, BIG, "2")
            assert answer.headers["x-ollama-router-reason"] != "overflow"
            assert await fallbacks(router) == {("gpt:latest", "incapable"): 1}
            page = await scrape(router)
            assert page.value("alias_overflows_total") == 0
            let_run(pool.nodes[0])
            assert (await later.answer()).status == 200
            last = await generate(router, "small:1b")
            assert last.headers["x-ratelimit-remaining-requests"] == "0", "the fourth call, and each was booked once"
        await until(lambda: not router.pipeline.live)


async def test_where_the_other_models_node_dies_the_call_goes_on_to_another_of_its_nodes() -> None:
    async with pool_of(1) as one, pool_of(2) as others:
        for number, node in enumerate(others.nodes):
            node.name = f"other-{number}"
            load_into(node, QUICK)
        load_into(one.nodes[0], ENDLESS)
        nodes = [*slotted(one, 1), *slotted(others, 1)]
        async with (
            router_before([], nodes=nodes, aliases=gpt(), probe={"interval_s": 100}) as router,
            Client(router.port) as served,
        ):
            await until(lambda: ready_on(router, QUICK) == 2)
            await until(lambda: ready_on(router, ENDLESS) == 1)
            served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await served.first(b'"done":false')
            await others.nodes[0].set_fault("refuse")
            answers = [await generate(router, "gpt") for _ in range(8)]
            assert {(answer.status, model(answer), answer.node) for answer in answers} == {(200, QUICK, "other-1")}
            assert {answer.headers["x-ollama-router-reason"] for answer in answers} == {"overflow"}
            assert sorted(answer.headers["x-ollama-router-attempts"] for answer in answers)[-2:] == ["1", "2"]
            page = await scrape(router)
            assert page.value("alias_overflows_total", alias="gpt:latest", model=QUICK) == 8
            assert await fallbacks(router) == {}
            served.leave()
            await at_rest(router)


# loads


async def test_who_waits_for_a_load_goes_to_a_model_that_is_loaded_and_makes_no_second_load() -> None:
    aliases = {"gpt": alias_of(COLD, fallbacks=f"{SILENT} {QUICK}", overflow_after_s=SOON_S)}
    async with holding(1, QUICK, aliases=aliases) as (pool, router):
        answer = await generate(router, "gpt")
        assert (answer.status, model(answer)) == (200, QUICK)
        assert is_loading(pool.nodes[0]), "its own model is loaded for whoever comes next"
        let_load_finish(pool.nodes[0])
        await until(lambda: ready_on(router, COLD) == 1)
        assert pool.loads_started == 2, "QUICK before, and COLD"


async def test_where_there_is_room_a_model_is_loaded_for_those_who_wait_for_a_slot() -> None:
    async with pool_of(1) as pool:
        load_into(pool.nodes[0], ENDLESS)
        nodes = [{**node, "vram_gib": 80} for node in slotted(pool, 1)]
        async with (
            router_before(pool.nodes, nodes=nodes, aliases=gpt()) as router,
            Client(router.port) as served,
        ):
            await until(lambda: ready_on(router, ENDLESS) == 1)
            served.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
            await served.first(b'"done":false')
            answer = await generate(router, "gpt")
            assert (answer.status, model(answer)) == (200, QUICK)
            assert pool.loads_started == 2


# limits, and those who leave


async def test_nobody_is_served_after_the_wait_that_its_line_permits() -> None:
    async with busy(ENDLESS, SILENT, aliases=gpt(SILENT), line={"max_wait_s": 0.3}) as (pool, router, served):
        answers = await asyncio.gather(*(generate(router, "gpt") for _ in range(5)))
        assert {(answer.status, answer.refused) for answer in answers} == {(503, "queue_timeout")}
        assert {answer.json["error"] for answer in answers} == {"no slot for 'gpt' within 0.3 s, please try again"}
        assert len(bodies(pool.nodes[0])) == 2
        for client in served:
            client.leave()
        await at_rest(router)


@pytest.mark.parametrize("stream", [True, False])
async def test_nobody_is_served_after_the_time_that_its_client_set(stream: bool) -> None:
    async with busy(ENDLESS, SILENT, aliases=gpt(SILENT)) as (pool, router, served):
        answer = await generate(router, "gpt", stream=stream, x_request_timeout="0.3")
        assert (answer.status, answer.headers["x-should-retry"]) == (504, "false")
        assert answer.json["error"] == "no slot for 'gpt' within 0.3 s (the limit that the client set)"
        assert len(bodies(pool.nodes[0])) == 2
        for client in served:
            client.leave()
        await at_rest(router)


async def test_the_time_that_a_client_set_goes_on_at_the_model_it_overflowed_to() -> None:
    async with busy(ENDLESS, ready=SILENT, aliases=gpt(SILENT)) as (_, router, (served,)):
        answer = await generate(router, "gpt", x_request_timeout="0.4")
        assert (answer.status, model(answer), answer.headers["x-ollama-router-reason"]) == (504, SILENT, "overflow")
        assert "no answer within 0.4 s (the limit that the client set)" in answer.json["error"]
        served.leave()
        await at_rest(router)


async def test_clients_that_leave_several_lines_leave_nothing_behind() -> None:
    async with busy(ENDLESS, SILENT, aliases=gpt(SILENT)) as (_, router, served), AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(Client(router.port)) for _ in range(6)]
        for client in waiting:
            client.send("/api/generate", {"model": "gpt", "prompt": "?"})
        await stands(router, {ENDLESS: (6, 0), SILENT: (6, 6)})
        page = await scrape(router)
        assert [page.value("queue_depth", model=each) for each in (ENDLESS, SILENT)] == [6, 6]
        told = {line["model"]: line for line in (await told_by_admin(router, "/admin/lines"))["lines"]}
        assert [(told[each]["waiting"], told[each]["overflowed"]) for each in (ENDLESS, SILENT)] == [(6, 0), (6, 6)]
        for client in (*waiting[:3], *served, *waiting[3:]):
            client.leave()
        await at_rest(router)


# what is told


async def test_a_waiting_stream_hears_in_which_lines_it_stands_besides() -> None:
    line = {"comment_after_s": 0.1, "comment_every_s": 0.05}
    async with busy(ENDLESS, SILENT, aliases=gpt(SILENT), line=line) as (_, router, _), Client(router.port) as client:
        client.send("/v1/chat/completions", {"model": "gpt", "messages": USER, "stream": True})
        await client.first(f" also={SILENT}\n\n".encode())
        assert b"reason=slot position=1 of=1 waited_s=0 also=" in client.got


async def test_the_log_says_that_a_call_overflowed() -> None:
    read, write = os.pipe()
    with open(read, "rb") as lines:  # noqa: ASYNC230 - a pipe that is read when all is written
        async with busy(aliases=gpt(), descriptor=write) as (_, router, _):
            await generate(router, "gpt", x_request_id="it")
            await until(lambda: len(router.pipeline.live) == 1)
        os.close(write)
        told = [json.loads(line) for line in lines]
    (line,) = [line for line in told if line.get("request_id") == "it"]
    assert (line["model_requested"], line["model"], line["reason"]) == ("gpt", QUICK, "overflow")
    assert line["queue_ms"] >= SOON_S * 1000


async def test_explain_says_what_a_call_would_wait_for_and_where_it_would_go_then() -> None:
    async with busy(aliases=gpt(after_s=20)) as (_, router, _):
        said = await explained(router, "gpt")
        assert (said["verdict"]["end"], said["overflows"]) == ("waits", [[QUICK, 20.0]])
        *_, last = explanation(dict(said)).splitlines()
        assert last == f"after 20 s in line it stands in that of {QUICK} as well"
