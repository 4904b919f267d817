"""Too few file descriptors: the limit is a clean 503, and no node is blamed for what this host lacks."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace

import pytest

from router.fleet.breaker import Circuit
from router.fleet.health import DOWN_AFTER
from router.fleet.node import Health, NodeSpec
from router.seams import NodeFailed
from router.server.descriptors import (
    FILES_BESIDE,
    FILES_PER_CONNECTION,
    FILES_PER_NODE,
    connections_within,
)
from router.upstream.access import AccessBook
from router.upstream.node_api import HttpNodeApi
from router.wiring import SystemClock
from tests.ports import free_port
from tests.shell.clients import Client, generate, scrape
from tests.shell.house import assert_at_rest, until
from tests.shell.scenes import QUICK, holding, pool_of
from tests.shell.test_pool import HERE, no_descriptors, pool_for
from tests.shell.test_shutdown import process


class Limits:
    """Stands for the kernel's answers."""

    def __init__(self, soft: int, hard: int) -> None:
        self.now = (soft, hard)

    def getrlimit(self, what: int) -> tuple[int, int]:
        assert what == resource.RLIMIT_NOFILE
        return self.now

    def setrlimit(self, what: int, limits: tuple[int, int]) -> None:
        assert what == resource.RLIMIT_NOFILE
        assert limits[1] == self.now[1], "the hard limit is the administrator's"
        self.now = limits


NEEDED = FILES_PER_CONNECTION * 1000 + FILES_BESIDE + FILES_PER_NODE * 3
UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "fitting", "after"),
    [
        (1024, UNLIMITED, 1000, NEEDED),
        (1024, NEEDED, 1000, NEEDED),
        (1024, 10**6, 1000, NEEDED),
        (10**6, 10**6, 1000, 10**6),
        (UNLIMITED, UNLIMITED, 1000, UNLIMITED),
        (256, NEEDED - 2, 999, NEEDED - 2),
        (256, FILES_BESIDE + FILES_PER_NODE * 3 + 20, 10, FILES_BESIDE + FILES_PER_NODE * 3 + 20),
        (64, 64, 1, 64),
    ],
)
def test_as_many_connections_as_descriptors_permit(
    soft: int, hard: int, fitting: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    assert connections_within(1000, nodes=3)[0] == fitting
    assert limits.now == (after, hard)


async def test_a_process_with_few_descriptors_refuses_the_connection_too_many_and_says_both_numbers_once() -> None:
    files = FILES_BESIDE + FILES_PER_NODE + FILES_PER_CONNECTION * 10
    async with pool_of(1) as pool:
        serve = ("serve", "--node", pool.nodes[0].url)
        drain = {"OLLAMA_ROUTER_SHUTDOWN__DRAIN_DELAY_S": "0"}
        async with process(*serve, files=files, **drain) as (child, ports), AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(Client(ports["listen"])) for _ in range(10)]
            for client in clients:
                client.send("/api/generate", {"model": QUICK, "prompt": "?"})
            assert {(await client.answer()).status for client in clients} == {200}
            for _ in range(3):
                async with Client(ports["listen"]) as surplus:
                    answer = await surplus.answer()
                    assert (answer.status, answer.refused, "retry-after" in answer.headers) == (
                        503,
                        "connections",
                        True,
                    )
            child.send_signal(signal.SIGTERM)
            stdout, _ = await child.communicate()
        told = [json.loads(line).get("message", "") for line in stdout.splitlines()]
        assert [line for line in told if "client.connections" in line] == [
            f"client.connections is 10 instead of 20000: this process may open {files} files, and a call takes two"
        ]


async def test_a_call_that_no_node_could_be_asked_for_want_of_our_own_may_come_again() -> None:
    async with holding(2) as (pool, router), Client(router.port) as client:
        with no_descriptors():
            client.send("/v1/chat/completions", {"model": QUICK, "messages": [{"role": "user", "content": "?"}]})
            answer = await client.answer()
        assert (answer.status, answer.refused) == (503, "no_node")
        assert answer.json["error"]["code"] == "no_node"
        assert int(answer.headers["retry-after"]) >= 1
        assert "x-should-retry" not in answer.headers
        assert (await generate(router, QUICK)).status == 200
        page = await scrape(router)
        assert page.value("upstream_requests_total", outcome="local") == 2
        assert page.value("node_up") == 2
        assert Circuit.OPEN not in router.keeper.circuits.not_closed().values()
        assert sum(len(node.journal.to("/v1/chat/completions")) for node in pool.nodes) == 0
        assert_at_rest(router)


async def test_idle_connections_are_closed_for_a_call_that_needs_their_descriptor() -> None:
    # Nobody accepts, which would take a descriptor of this process as well: the backlog connects.
    with socket.create_server((HERE, 0)) as server:
        async with pool_for(server.getsockname()[1], (HERE,)) as node:
            kept = await node.pool.connect(replace(node.spec, name="kept"))
            node.pool._went_idle(kept)
            with every_descriptor_taken():
                connection = await node.pool.connect(node.spec)
            assert connection.is_reusable
            assert not kept.is_reusable
            assert node.pool.busy == 1


@contextmanager
def every_descriptor_taken() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_control_call_says_whose_lack_it_was() -> None:
    spec = NodeSpec("a", HERE, free_port())
    async with HttpNodeApi(SystemClock(), connect_s=5.0, timeout_s=5.0, access=AccessBook().of) as api:
        with no_descriptors(), pytest.raises(NodeFailed) as caught:
            await api.version(spec)
        assert (caught.value.reason, caught.value.is_local) == ("local", True)
        with pytest.raises(NodeFailed) as caught:
            await api.version(spec)
        assert (caught.value.reason, caught.value.is_local) == ("refused", False)


async def test_probes_that_could_not_be_sent_take_no_node_down(caplog: pytest.LogCaptureFixture) -> None:
    async with holding(1, probe={"interval_s": 0.02}) as (pool, router):
        node = pool.nodes[0]
        await node.crash()  # its connections are gone: every probe needs a new one
        await node.restart()
        failures = router.metrics._probe_failures.values
        with no_descriptors():
            await until(lambda: failures.get(("sim-1", "local"), 0) > DOWN_AFTER)
            assert router.keeper.snapshot.nodes["sim-1"].health in (Health.HEALTHY, Health.DEGRADED)
        assert (await generate(router, QUICK)).status == 200
        told = [
            record for record in caplog.records if "probe of sim-1 failed: Too many open files" in record.getMessage()
        ]
        assert len(told) == 1
