"""The parts of a parent: cores, the port, the store that it brings, the turn in the log, and a worker that hangs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from router.cli import MISUSED, main
from router.settings import Settings
from router.workers import cores, embedded
from router.workers.embedded import EmbeddedStore, StoreFailed, find_server
from router.workers.life import Task, Worker
from router.workers.port import reserved
from tests.shell.house import until
from tests.shell.scenes import pool_of

WITHIN_S = 60.0


@pytest.mark.parametrize(
    ("limit", "expected"), [("200000 100000\n", 2), ("150000 100000\n", 1), ("50000 100000\n", 1), ("max 100000\n", 8)]
)
def test_auto_is_what_affinity_and_the_containers_limit_leave(
    limit: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    file = tmp_path / "cpu.max"
    file.write_text(limit)
    assert cores.cores(file) == expected
    assert cores.cores(tmp_path / "none") == 8


def test_a_number_of_workers_is_taken_as_it_is() -> None:
    assert cores.worker_count(3) == 3
    assert cores.worker_count("auto") >= 1


@pytest.mark.parametrize("said", [0, 65, -1, True, "many", "1.5", ""])
def test_what_is_no_number_of_workers_is_refused_with_what_would_be(said: object) -> None:
    with pytest.raises(ValueError, match="should be a number from 1 to 64, or auto for one on each core"):
        Settings(workers=said)  # type: ignore[arg-type]


def test_the_environment_and_the_command_line_say_it_as_text() -> None:
    assert (Settings(workers="4").workers, Settings(workers="auto").workers) == (4, "auto")  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_a_reserved_port_is_for_those_who_share_it_and_for_nobody_else(host: str) -> None:
    with reserved(host, 0) as (_, port):
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.create_server(address[:2], family=family, reuse_port=True):
            with pytest.raises(OSError, match="error while attempting to bind"), reserved(host, port):
                pass
            with pytest.raises(OSError, match="in use"):
                socket.create_server(address[:2], family=family)
    with reserved(host, port) as (_, again):
        assert again == port


async def test_the_store_of_our_own_is_behind_its_password_and_ends_with_a_word(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None
    store = EmbeddedStore(binary, tmp_path)
    await store.start()
    host, _, port = store.url.removeprefix("redis://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"PING\r\n")
    assert b"NOAUTH" in await reader.readline()
    writer.write(
        f"AUTH {store.password_file.read_text()}\r\nCONFIG GET maxmemory-policy\r\nCONFIG GET save\r\n".encode()
    )
    assert await reader.readline() == b"+OK\r\n"
    told = b"".join([await reader.readline() for _ in range(10)])
    assert b"noeviction" in told
    writer.close()
    await store.stop()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_a_store_that_does_not_start_says_why(tmp_path: Path) -> None:
    binary = find_server()
    assert binary is not None
    store = EmbeddedStore(binary, tmp_path)
    with (tmp_path / "store.conf").open("a") as file:
        file.write("nonsense yes\n")
    with pytest.raises(StoreFailed, match="nonsense"):
        await store.start()
    await store.stop()


def server_that_says(folder: Path, version: str) -> None:
    script = folder / "redis-server"
    script.write_text(f"#!/bin/sh\necho '{version}'\n")
    script.chmod(0o755)


def test_without_a_server_for_the_store_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)  # as where the extra is not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    server_that_says(tmp_path, "Redis server v=6.2.7 sha=0:0")
    assert main(["serve", "--workers", "3", "--node", "gpu-1"]) == MISUSED
    told = capsys.readouterr().err
    assert "3 workers need a store that they share" in told
    assert "pip install 'ollama-router[workers]'" in told
    assert "--store redis://HOST:PORT" in told
    server_that_says(tmp_path, "Redis server v=7.0.15 sha=0:0")
    assert find_server() == str(tmp_path / "redis-server")


def test_a_number_that_is_none_is_told_with_its_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--workers", "0", "--node", "gpu-1"]) == MISUSED
    assert "workers: should be a number from 1 to 64, or auto" in capsys.readouterr().err


async def test_lines_of_processes_that_take_turns_are_never_torn(tmp_path: Path) -> None:
    program = (
        "import os, sys; from router.telemetry.turn import FileTurn\n"
        "turn = FileTurn(sys.argv[1])\n"
        "for _ in range(20):\n"
        "    with turn:\n"
        "        rest = memoryview((sys.argv[2] * 100_000 + '\\n').encode())\n"
        "        while rest: rest = rest[os.write(1, rest) :]\n"
    )
    reading, writing = os.pipe()
    command = (sys.executable, "-c", program, str(tmp_path / "turn"))
    writers = [await asyncio.create_subprocess_exec(*command, letter, stdout=writing) for letter in "ab"]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = await asyncio.to_thread(pipe.readlines)
    assert [await writer.wait() for writer in writers] == [0, 0]
    assert sorted(lines) == [b"a" * 100_000 + b"\n"] * 20 + [b"b" * 100_000 + b"\n"] * 20


@pytest.mark.timeout(120)
async def test_a_worker_that_hangs_is_ended_and_starts_again(tmp_path: Path) -> None:
    async with pool_of(1) as pool:
        nodes = [{"url": pool.nodes[0].url}]
        with reserved("127.0.0.1", 0) as (host, port):
            task = Task(None, {"nodes": nodes, "workers": 2, "log": {"level": "error"}}, host, port, tmp_path)
            worker = Worker(1, task, tuple, look_s=0.5)
            living = asyncio.create_task(worker.live())
            async with asyncio.timeout(WITHIN_S):
                await worker.has_served.wait()
                worker.send(signal.SIGSTOP)
            await until(lambda: worker.lives == 2 and worker.is_ready, WITHIN_S)
            worker.is_leaving = True
            worker.send(signal.SIGTERM)
            async with asyncio.timeout(WITHIN_S):
                assert await living == 0


def test_the_task_of_a_worker_is_json() -> None:
    told = json.loads(Task("a.yaml", {"log": {}}, "::1", 80, Path("/f")).told(2, {"b", "a"}))
    assert (told["clients"], told["drained"], told["admin"]) == (["::1", 80], ["a", "b"], "/f/admin-2")
