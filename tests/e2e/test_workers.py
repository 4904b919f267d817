"""Workers on one port: one pool to clients, one router to whoever asks, and no process left when the parent is gone."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.e2e.workers_house import ROOT, Workers, admin, descendants, is_running, kill, until, workers_before
from tests.ports import free_port
from tests.shell.clients import Client, get
from tests.shell.scenes import ENDLESS, QUICK, let_run, pool_of, running

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a short name, as a machine's own: a longer one has no room for the path of a Unix socket, and is not taken."""
    with TemporaryDirectory(prefix="workers-") as name:
        yield Path(name)


CALLS = 16  # the kernel spreads connections by a hash: that one of two workers gets none of them happens once in 32,768


async def _is(ask: Callable[[], Awaitable[float]], wanted: float) -> bool:
    return await ask() == wanted


async def call(workers: Workers, model: str = QUICK) -> int:
    async with Client(workers.port) as client:
        client.send("/api/generate", {"model": model, "prompt": "Why?", "stream": False}, connection="close")
        return (await client.answer()).status


async def stream(stack: AsyncExitStack, workers: Workers) -> Client:
    client = await stack.enter_async_context(Client(workers.port))
    client.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"}, connection="close")
    return client


async def test_workers_share_one_slot_and_one_line_and_are_one_router_to_prometheus(folder: Path) -> None:
    async with (
        pool_of(1, slots=2) as pool,
        workers_before(pool.nodes[0], folder) as workers,
        AsyncExitStack() as stack,
    ):
        await workers.until_ready()
        clients = [await stream(stack, workers) for _ in range(CALLS)]
        answers = asyncio.gather(*(client.answer() for client in clients))

        async def waiting() -> float:
            return (await workers.scrape()).value("queue_depth")

        await until(lambda: _is(waiting, CALLS - 1))
        assert (await workers.scrape()).value("requests_in_flight") == 1
        while not answers.done():
            assert running(pool) <= 1, "two workers gave away one slot twice"
            let_run(pool.nodes[0])
            await asyncio.sleep(0)
        assert {answer.status for answer in await answers} == {200}
        parts = [await workers.of_worker(number, "requests_total") for number in (1, 2)]
        assert all(parts), "one worker got no connection"
        assert (await workers.scrape()).value("requests_total") == sum(parts) == CALLS
        assert not workers.torn
        calls = [line for line in workers.lines if line["event"] == "call"]
        assert {line["worker"] for line in calls} == {1, 2}


async def test_a_killed_worker_loses_its_own_streams_only_and_no_count_goes_back(folder: Path) -> None:
    async with pool_of(1, slots=CALLS) as pool:
        nodes = json.dumps([{"url": pool.nodes[0].url, "name": "gpu-1", "slots": CALLS}])
        async with (
            workers_before(pool.nodes[0], folder, OLLAMA_ROUTER_NODES=nodes) as workers,
            AsyncExitStack() as stack,
        ):
            await workers.until_ready()
            assert [await call(workers) for _ in range(CALLS)] == [200] * CALLS
            assert (await workers.scrape()).value("requests_total") == CALLS
            clients = [await stream(stack, workers) for _ in range(CALLS)]
            for client in clients:
                await client.first(b"}\n")
            lost = await workers.of_worker(1, "requests_in_flight")
            assert 0 < lost < CALLS
            kill(workers.pid_of(1))
            await until(lambda: workers.lives_of(1) == 2)
            assert (await workers.scrape()).value("requests_total") == CALLS
            let_run(pool.nodes[0])
            ends = await asyncio.gather(*(_end(client) for client in clients))
            assert ends.count(False) == lost
            await until(lambda: _is(lambda: _total(workers), 2 * CALLS - lost))
            assert await call(workers) == 200
            assert await _total(workers) == 2 * CALLS - lost + 1
            ended = [line["message"] for line in workers.lines if "it starts again" in line.get("message", "")]
            assert len(ended) == 1
            assert ended[0].startswith("worker 1 ended after ")
            assert "killed by signal 9" in ended[0]


async def _total(workers: Workers) -> float:
    return (await workers.scrape()).value("requests_total")


async def _end(client: Client) -> bool:
    """Whether the answer is whole."""
    try:
        return (await client.answer()).is_whole
    except ConnectionError:
        return False


async def test_nothing_is_left_of_a_parent_that_was_killed(folder: Path) -> None:
    async with pool_of(1) as pool, workers_before(pool.nodes[0], folder) as workers:
        await workers.until_ready()
        theirs = descendants(workers.process.pid)
        assert {workers.pid_of(1), workers.pid_of(2), workers.store_pid()} <= set(theirs)
        kill(workers.process.pid)
        await until(lambda: not any(map(is_running, theirs)))
        with pytest.raises(ConnectionError):
            await call(workers)


async def test_a_parent_that_is_told_to_leave_ends_well_when_the_last_stream_has(folder: Path) -> None:
    async with pool_of(1) as pool, workers_before(pool.nodes[0], folder) as workers, AsyncExitStack() as stack:
        await workers.until_ready()
        client = await stream(stack, workers)
        await client.first(b"}\n")
        theirs = descendants(workers.process.pid)
        workers.process.send_signal(signal.SIGTERM)
        # As a service manager that signals every process of a group: what is told twice is done once.
        for number in (1, 2):
            os.kill(workers.pid_of(number), signal.SIGTERM)
        os.kill(workers.store_pid(), signal.SIGTERM)
        await until(lambda: _is(lambda: _status(workers, "/readyz"), 503))
        assert await _status(workers, "/livez") == 200
        assert is_running(workers.store_pid())
        let_run(pool.nodes[0])
        answer = await client.answer()
        assert (answer.status, answer.is_whole) == (200, True)
        assert await workers.process.wait() == 0
        assert not any(map(is_running, theirs))
        assert os.listdir(folder) == []


async def _status(workers: Workers, path: str) -> int:
    return (await get(workers.metrics_port, path)).status


async def test_a_drain_that_the_parent_was_told_is_kept_by_all_workers_and_by_those_that_start_later(
    folder: Path,
) -> None:
    async with pool_of(1) as pool, workers_before(pool.nodes[0], folder) as workers:
        await workers.until_ready()
        answer = await admin(workers, "/admin/nodes/gpu-1/drain")
        assert (answer.status, answer.json["is_drained"]) == (200, True)
        assert await drained(workers) == [True, True]
        kill(workers.pid_of(2))
        await until(lambda: workers.lives_of(2) == 2)
        assert await drained(workers) == [True, True]
        assert {await call(workers) for _ in range(CALLS)} == {503}
        assert (await admin(workers, "/admin/nodes/gpu-1/resume")).json["is_drained"] is False
        assert await drained(workers) == [False, False]
        assert {await call(workers) for _ in range(CALLS)} == {200}
        refused = await admin(workers, "/admin/nodes/gpu-9/drain")
        assert (refused.status, "did you mean gpu-1?" in refused.json["error"]) == (404, True)


async def drained(workers: Workers) -> list[bool]:
    found = []
    for number in (1, 2):
        said = await workers.ask_worker("admin", number, "/admin/nodes")
        assert said is not None
        found += [node["is_drained"] for node in json.loads(said.body)["nodes"]]
    return found


async def test_a_store_that_dies_comes_back_empty_and_calls_go_on(folder: Path) -> None:
    async with pool_of(1) as pool, workers_before(pool.nodes[0], folder) as workers:
        await workers.until_ready()
        assert await call(workers) == 200
        before = workers.store_pid()
        kill(before)
        await until(lambda: set(workers.store_pids()) - {before} != set())

        async def is_shared() -> bool:
            return (await workers.scrape()).value("redis_up") == 1.0

        await until(is_shared)
        assert {await call(workers) for _ in range(CALLS)} == {200}
        workers.process.send_signal(signal.SIGHUP)

        async def reloads() -> float:
            return (await workers.scrape()).value("config_reloads_total", result="ok")

        await until(lambda: _is(reloads, 2))


async def test_a_port_that_is_taken_ends_the_parent_before_any_worker_starts(folder: Path) -> None:
    async with pool_of(1) as pool, workers_before(pool.nodes[0], folder) as first:
        await first.until_ready()
        command = (sys.executable, "-m", "router", "serve", "--workers", "2", "--node", pool.nodes[0].url)
        process = await asyncio.create_subprocess_exec(
            *(*command, "--listen", f"127.0.0.1:{first.port}", "--metrics-listen", f"127.0.0.1:{free_port()}"),
            cwd=ROOT,
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        _, told = await process.communicate()
        assert process.returncode == 1
        assert f"error while attempting to bind on address ('127.0.0.1', {first.port})" in told.decode()


async def test_a_worker_that_never_starts_ends_the_parent(folder: Path) -> None:
    """It is killed while it looks at a node that never answers."""
    held: list[asyncio.StreamWriter] = []

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    silent = await asyncio.start_server(never, "127.0.0.1", 0)
    nodes = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    async with pool_of(1) as pool, workers_before(pool.nodes[0], folder, OLLAMA_ROUTER_NODES=nodes) as workers:
        await until(lambda: bool(held))
        assert await _status(workers, "/readyz") == 503
        (worker,) = [pid for pid in descendants(workers.process.pid) if pid != workers.store_pid()]
        kill(worker)
        assert await workers.process.wait() == 1
        assert "worker 1 does not start: killed by signal 9" in workers.lines[-1]["message"]
    silent.close()
    for writer in held:
        writer.close()
