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
from tests.shell.scenes import COLD, ENDLESS, QUICK, SILENT, is_loading, let_load_finish, no_bugs, pool_of, running

DEATHS = 200
LEAVE = pytest.mark.parametrize("leave", [Client.leave, Client.half_close], ids=["reset", "half_close"])


def prompt_for(model: str, *, stream: bool = True) -> dict[str, object]:
    return {"model": model, "prompt": "Why?", "stream": stream}


async def rest(router: Router) -> None:
    await until(lambda: not router.pipeline.live)
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
        assert router.keeper.circuits() == {}, "no blame on the node"
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
        assert router.keeper.circuits() == {}
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
    """Clients die in every phase, in any order, while others are served; the seed is in the failure's text."""
    seed = int(os.environ.get("DEATHS_SEED", "0")) or Random().randrange(1, 1 << 32)
    rng = Random(seed)
    async with pool_of(3) as pool, router_before(pool.nodes, seed=seed) as router:
        try:
            async with asyncio.timeout(40):
                async with asyncio.TaskGroup() as group:
                    for _ in range(DEATHS):
                        group.create_task(_die(router, rng))
                answer = await generate(router, QUICK)
                assert answer.status == 200
                for node in pool.nodes:
                    if is_loading(node):
                        let_load_finish(node)
                await rest(router)
                page = await scrape(router)
                for gauge in ("requests_in_flight", "queue_depth", "node_slots_used"):
                    assert page.value(gauge) == 0, gauge
                assert running(pool) == 0
                assert router.keeper.circuits() == {}
                total = page.value("requests_total")
                assert total == page.value("requests_total", outcome="ok") + page.value(
                    "requests_total", outcome="cancelled"
                )
                assert no_bugs(pool)
        except BaseException as error:
            error.add_note(f"DEATHS_SEED={seed}")
            raise


ROUTES = ("/api/generate", "/api/chat", "/v1/chat/completions", "/v1/messages", "/v1/responses")


async def _die(router: Router, rng: Random) -> None:
    """One client: sends some or all of a request and leaves after some event, or is served."""
    model = rng.choice([QUICK, QUICK, ENDLESS, SILENT, COLD])
    path = rng.choice(ROUTES)
    turns = rng.randrange(30)
    call = {
        **prompt_for(model, stream=rng.random() < 0.7),
        "messages": [{"role": "user", "content": "?"}],
        "input": "?",
        "max_tokens": 8,
    }
    leave = rng.choice([Client.leave, Client.half_close])
    waits_for_bytes = model is QUICK and rng.random() < 0.5
    async with Client(router.port) as client:
        client.send(path, call)
        if waits_for_bytes:
            await client.first()
        for _ in range(turns):
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
