"""Answers that are lost on their way from a real server: what they told is told again."""

from __future__ import annotations

from router.errors import LoadFailed
from tests.contracts.live_stores import MODEL, Replica, address_of, all_back, replicas, running
from tests.fakes import redis_server
from tests.fakes.fault_proxy import FaultProxy, Mood
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.house import until


async def test_a_refusal_that_was_lost_with_the_answer_of_a_beat_reaches_its_call() -> None:
    server = Server(redis_server.valkey_binary(), free_port()).start()
    try:
        async with FaultProxy(free_port(), server.port) as proxy, replicas(server.url, "a") as (there,):
            here = Replica("b", address_of(f"redis://127.0.0.1:{proxy.port}", timeout_s=0.5))
            await here.store.open(here.granted, here.refuse)
            async with running(here, "store writer"):
                await here.take("t")
                await proxy.set(Mood.DEAF)
                assert await there.store.refuse(MODEL, LoadFailed("no room")) == 1
                await here.store.beat()
                assert here.store.is_alone
                assert "t" in here.waiting
                await proxy.set(Mood.PASS)
                await all_back([here])
                await until(lambda: "t" in here.refused)
                assert here.refused["t"].text == "no room"
            await here.store.close()
    finally:
        server.stop()
