"""`ollama-router serve --workers N` as an operator runs it: parent, workers and store are real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.simulation.node import SimulatedNode
from router.workers.ask import Question, Said, ask
from tests.ports import free_port
from tests.shell.clients import Answer, Client, Scrape, get

ROOT = Path(__file__).parents[2]
WITHIN_S = 60.0  # for what must come at all, on a machine that does other things as well


@dataclass(slots=True)
class Workers:
    """`port` is where calls go. `lines` is what they have logged so far, all of them."""

    folder: Path
    process: asyncio.subprocess.Process
    port: int
    metrics_port: int
    admin_port: int
    lines: list[dict[str, Any]] = field(default_factory=list)
    torn: list[bytes] = field(default_factory=list)  # what is no line of ours

    async def until_ready(self) -> None:
        """And have said so: lines come a moment after what they tell."""
        await until(lambda: self._answers("/readyz"))
        await until(lambda: any(line.get("message") == "2 workers serve" for line in self.lines))

    async def _answers(self, path: str) -> bool:
        try:
            return (await get(self.metrics_port, path)).status == 200
        except (ConnectionError, AssertionError):
            return False

    async def scrape(self) -> Scrape:
        return Scrape((await get(self.metrics_port, "/metrics")).body.decode())

    async def ask_worker(self, what: str, number: int, path: str) -> Said | None:
        """As its parent does, by the socket in the private folder."""
        (socket,) = self.folder.glob(f"ollama-router-*/{what}-{number}")
        return await ask(str(socket), Question("GET", path), WITHIN_S)

    async def of_worker(self, number: int, metric: str) -> float:
        page = await self.ask_worker("metrics", number, "/metrics")
        assert page is not None, f"worker {number} does not answer"
        return Scrape(page.body.decode()).value(metric)

    def pid_of(self, number: int) -> int:
        """As the parent told it last."""
        told = f"worker {number} serves, process "
        found = [line["message"] for line in self.lines if line.get("message", "").startswith(told)]
        return int(found[-1].removeprefix(told))

    def lives_of(self, number: int) -> int:
        return sum(line.get("message", "").startswith(f"worker {number} serves") for line in self.lines)

    def store_pid(self) -> int:
        (found,) = self.store_pids()
        return found

    def store_pids(self) -> list[int]:
        return [pid for pid in descendants(self.process.pid) if "valkey" in _command(pid)]


@asynccontextmanager
async def workers_before(node: SimulatedNode, folder: Path, *more: str, **environ: str) -> AsyncIterator[Workers]:
    """Two workers before one node of which they use one slot. Not yet ready; nothing of them is left afterwards."""
    ports = [free_port() for _ in range(3)]
    addresses = zip(("--listen", "--metrics-listen", "--admin-listen"), ports, strict=True)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "router", "serve", "--workers", "2", *more),
        *(word for option, port in addresses for word in (option, f"127.0.0.1:{port}")),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env={
            **os.environ,
            "TMPDIR": str(folder),
            "OLLAMA_ROUTER_STORE__TIMEOUT_S": "5",
            "OLLAMA_ROUTER_SHUTDOWN__DRAIN_DELAY_S": "0",
            "OLLAMA_ROUTER_NODES": json.dumps([{"url": node.url, "name": "gpu-1", "slots": 1}]),
            **environ,
        },
    )
    workers = Workers(folder, process, *ports)
    reading = asyncio.create_task(_read(workers))
    try:
        yield workers
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def _read(workers: Workers) -> None:
    assert workers.process.stdout is not None
    async for line in workers.process.stdout:
        try:
            workers.lines.append(json.loads(line))
        except ValueError:
            workers.torn.append(line)


async def until(holds: Callable[[], bool] | Callable[[], Coroutine[Any, Any, bool]]) -> None:
    """Looks again and again; fails when it does not come."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.02)


async def admin(workers: Workers, path: str) -> Answer:
    """An order."""
    async with Client(workers.admin_port) as client:
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"
        client.send_raw(head.encode())
        return await client.answer()


def descendants(pid: int) -> list[int]:
    """Its processes, and theirs."""
    try:
        told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        return []
    children = [int(word) for word in told.split()]
    return [*children, *(below for child in children for below in descendants(child))]


def is_running(pid: int) -> bool:
    """Not when it is dead and only nobody has asked for its exit code yet."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except FileNotFoundError:
        return ""


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
