"""A client that leaves takes nothing with it: not the slot, not the load, not the node's good name."""

from __future__ import annotations

import asyncio
import os
from random import Random

import pytest

from router.simulation.http import Reply
from router.wiring import Router
from tests.shell.clients import Client, ask, generate, scrape
from tests.shell.house import assert_at_rest, router_before, until
from tests.shell.scenes import (
    COLD,
    ENDLESS,
    QUICK,
    SILENT,
    is_loading,
    let_load_finish,
    no_bugs,
    pool_of,
    running,
    slotted,
)

DEATHS = 200
WAVE = 25
ROUTES = ("/api/generate", "/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses")
LEAVE = pytest.mark.parametrize("leave", [Client.leave, Client.half_close], ids=["reset", "half_close"])


def prompt_for(model: str, *, stream: bool = True) -> dict[str, object]:
    return {"model": model, "prompt": "Why?", "stream": stream}


async def rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live and not router.connections.busy)
    assert_at_rest(router)
    assert repr(router.pipeline) == "<Pipeline 0 live | 0 waiting>"
    ledger = router.store.book.ledger
    assert (ledger.tickets, ledger.waiting, ledger.leases, ledger.unclaimed) == ({}, {}, {}, {})


async def left(router: Router, phase: str) -> float:
    return (await scrape(router)).value("client_disconnects_total", phase=phase)


@LEAVE
async def test_leaving_in_line_gives_up_the_place_and_asks_no_node(leave) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router, Client(router.port) as client:
        client.send("/api/generate", prompt_for(COLD))
        await until(lambda: is_loading(pool.nodes[0]))
        leave(client)
        await rest(router)
        assert await left(router, "waiting") == 1
        assert is_loading(pool.nodes[0]), "the load is the router's own"
        let_load_finish(pool.nodes[0])
        await until(lambda: pool.nodes[0].journal.loads_finished == 1)
        assert pool.nodes[0].journal.loads_aborted == 0
        assert [seen.body for seen in pool.nodes[0].journal.calls if b'"prompt"' in seen.body] == []


@LEAVE
@pytest.mark.parametrize(
    ("model", "stream", "phase"), [(SILENT, True, "prefill"), (ENDLESS, True, "streaming"), (ENDLESS, False, "prefill")]
)
async def test_leaving_at_the_node_closes_its_connection_and_frees_the_slot(leave, model, stream, phase) -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router, Client(router.port) as client:
        client.send("/api/generate", prompt_for(model, stream=stream))
        await until(lambda: running(pool) == 1)
        if phase == "streaming":
            await client.first(b'"done":false')
        leave(client)
        # The node would have gone on for days.
        await until(lambda: running(pool) == 0)
        await rest(router)
        assert [seen.ending for seen in pool.nodes[0].journal.to("/api/generate")] == ["done", "gone"]
        page = await scrape(router)
        assert page.value("client_disconnects_total", phase=phase) == 1
        assert page.value("requests_total", outcome="cancelled") == 1
        assert router.keeper.circuits.not_closed() == {}, "no blame on the node"
        assert (await generate(router, QUICK)).status == 200
        assert no_bugs(pool)


async def test_the_slot_of_a_client_that_left_goes_to_the_next_in_line() -> None:
    async with (
        pool_of(1) as pool,
        router_before(pool.nodes) as router,
        Client(router.port) as first,
        Client(router.port) as second,
    ):
        first.send("/api/generate", prompt_for(ENDLESS))
        await first.first(b'"done":false')
        second.send("/api/generate", prompt_for(ENDLESS))
        await until(lambda: len(router.pipeline.live) == 2)
        assert second.got == b""
        first.leave()
        await second.first(b'"done":false')
        second.leave()
        await rest(router)


async def test_many_failures_by_clients_open_no_breaker() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        for _ in range(12):
            async with Client(router.port) as client:
                client.send("/api/generate", prompt_for(ENDLESS))
                await client.first(b'"done":false')
        await rest(router)
        assert router.keeper.circuits.not_closed() == {}
        assert (await scrape(router)).value("circuit_state_changes_total") == 0


async def test_a_client_that_closes_after_done_had_all_it_came_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDKs close at `[DONE]`, which may be before the node has ended the answer."""
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        await generate(router, QUICK)
        monkeypatch.setattr(Reply, "finish", lambda reply: None)
        async with Client(router.port) as client:
            client.send("/v1/chat/completions", {**prompt_for(QUICK), "messages": [{"role": "user", "content": "?"}]})
            await client.first(b"data: [DONE]\n\n")
        await rest(router)
        page = await scrape(router)
        assert page.value("requests_total", outcome="ok") == 2
        assert page.value("requests_total", outcome="cancelled") == 0
        assert page.value("client_disconnects_total") == 0


async def test_a_client_that_leaves_while_its_body_arrives_is_forgotten() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router, Client(router.port) as client:
        client.send_raw(b"POST /api/generate HTTP/1.1\r\nHost: r\r\nContent-Length: 100\r\n\r\n{")
        await until(lambda: len(router.pipeline.live) == 1)
        client.leave()
        await rest(router)


async def test_a_pipelined_request_behind_a_client_that_left_is_never_sent() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router, Client(router.port) as client:
        client.send("/api/generate", prompt_for(ENDLESS))
        client.send("/api/generate", prompt_for(QUICK))
        await client.first(b'"done":false')
        client.leave()
        await rest(router)
        sent = [seen.body for seen in pool.nodes[0].journal.to("/api/generate") if b'"prompt"' in seen.body]
        assert [QUICK.encode() in body for body in sent] == [False]


async def test_after_two_hundred_deaths_nothing_is_held() -> None:
    """Clients die in every phase, in any order, while others are served."""
    seed = int(os.environ.get("DEATHS_SEED", "0")) or Random().randrange(1, 1 << 32)
    rng = Random(seed)
    try:
        async with pool_of(3, slots=2) as pool, router_before(pool.nodes, nodes=slotted(pool, 2), seed=seed) as router:
            for model in (ENDLESS, SILENT):
                async with Client(router.port) as client:
                    client.send("/api/generate", prompt_for(model))
                    await until(lambda: running(pool) == 1)
                await until(lambda: running(pool) == 0)
            for _ in range(DEATHS // WAVE):
                await _wave(router, rng)
            for node in filter(is_loading, pool.nodes):
                let_load_finish(node)
            await rest(router)
            await until(lambda: running(pool) == 0)
            page = await scrape(router)
            assert page.labels("client_disconnects_total", "phase") == {"waiting", "prefill", "streaming"}
            assert page.labels("requests_total", "outcome") <= {"ok", "cancelled"}
            for gauge in ("requests_in_flight", "queue_depth", "node_slots_used"):
                assert page.value(gauge) == 0, gauge
            assert router.keeper.circuits.not_closed() == {}
            assert (await generate(router, QUICK)).status == 200
            assert no_bugs(pool)
    except BaseException as error:
        error.add_note(f"repeat it with DEATHS_SEED={seed}")
        raise


async def _wave(router: Router, rng: Random) -> None:
    """Some leave at once, the rest one after another when everybody is where they will stay."""
    is_settled = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(WAVE):
            group.create_task(_die(router, rng, is_settled))
        await until(lambda: bool(router.store.book.ledger.waiting) and bool(router.store.occupancy))
        is_settled.set()
    await until(lambda: not router.pipeline.live)


async def _die(router: Router, rng: Random, is_settled: asyncio.Event) -> None:
    model = rng.choice([QUICK, ENDLESS, SILENT, COLD])
    call = {
        **prompt_for(model, stream=rng.random() < 0.7),
        "messages": [{"role": "user", "content": "?"}],
        "input": "?",
        "max_tokens": 8,
    }
    leave = rng.choice([Client.leave, Client.half_close])
    async with Client(router.port) as client:
        client.send(rng.choice(ROUTES), call)
        if rng.random() < 0.7:
            await is_settled.wait()
        for _ in range(rng.randrange(50)):
            await asyncio.sleep(0)
        leave(client)
        if leave is Client.half_close:
            await client.is_closed()


async def test_an_answer_after_the_deaths_is_as_before() -> None:
    async with pool_of(1) as pool, router_before(pool.nodes) as router:
        before = await ask(router, "/api/generate", prompt_for(QUICK, stream=False))
        for _ in range(5):
            async with Client(router.port) as client:
                client.send("/api/generate", prompt_for(QUICK))
        await rest(router)
        after = await ask(router, "/api/generate", prompt_for(QUICK, stream=False))
        assert (before.status, before.json["response"]) == (after.status, after.json["response"])
