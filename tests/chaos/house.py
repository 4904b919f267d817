"""Three routers, four nodes and a Valkey, each a process; each router reaches the Valkey by a proxy of its own.

What happens is kept as a history, which a failing test shows.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.store.redis import script
from tests.chaos.load import TEAMS
from tests.chaos.node import BUSY, CALM, COUNT_ANEW, LOOK
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.redis_groups import Watched
from tests.fakes.redis_server import Server
from tests.ports import free_port
from tests.shell.clients import Scrape, get

ROOT = Path(__file__).parents[2]
ROUTERS, NODES, SLOTS = 3, 4, 4
WITHIN_S = 30.0

AWAY, BACK = "redis is away", "redis answers"
REAPED = "redis has not heard this router for too long"
SHARED = "routers share redis"
FEWER = f"{ROUTERS - 1} {SHARED}, {ROUTERS} before"

# What stands in Redis for calls: all of it is 0 when none is left.
STANDING = """
local found = {}
for _, name in ipairs({ 'tickets', 'occupancy' }) do
  found[name] = redis.call('HLEN', KEYS[1] .. name)
end
for _, name in ipairs({ 'held', 'waiting', 'unclaimed', 'queue' }) do
  found[name] = redis.call('ZCARD', KEYS[1] .. name)
end
local counted = { nodes = { 'leases' }, copies = { 'leases' }, teams = { 'running', 'waiting' }, lines = { 'depth' } }
for name, fields in pairs(counted) do
  for _, raw in ipairs(redis.call('HVALS', KEYS[1] .. name)) do
    for _, field in ipairs(fields) do
      local what = name .. '.' .. field
      found[what] = (found[what] or 0) + cmsgpack.unpack(raw)[field]
    end
  end
end
return cjson.encode(found)
"""


@dataclass(slots=True)
class RouterProcess:
    """`killed_s`: when, by the monotonic clock. The balancer sends nobody to one that is not in rotation."""

    name: str
    port: int
    metrics_port: int
    process: asyncio.subprocess.Process
    log: Path
    proxy: FaultProxy
    is_in_rotation: bool = True
    killed_s: float | None = None

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.killed_s = time.monotonic()
        self.process.kill()

    async def scrape(self) -> Scrape:
        page = await get(self.metrics_port, "/metrics")
        return Scrape(page.body.decode())

    async def is_degraded(self) -> bool:
        return (await self.scrape()).value("degraded_mode") == 1

    def lines(self) -> list[dict[str, Any]]:
        """But for those of calls."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] != "call"]

    def count(self, words: str) -> int:
        return sum(words in str(line.get("message")) for line in self.lines())

    def last(self, words: str) -> str:
        """Of the lines with these words."""
        return [str(line["message"]) for line in self.lines() if words in str(line.get("message"))][-1]

    def complaints(self) -> list[str]:
        """Lines that no fault of Redis excuses, and whatever is no line of the log at all."""
        text = self.log.read_text().splitlines()
        strange = [line for line in text if not line.startswith("{")]
        bad = [line for line in self.lines() if line["level"] not in ("info", "warning") or "exception" in line]
        return strange + [json.dumps(line) for line in bad]


@dataclass(slots=True)
class NodeProcess:
    name: str
    url: str
    witness_port: int
    process: asyncio.subprocess.Process

    async def witness(self, asked: bytes = LOOK) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.witness_port)
        try:
            writer.write(asked)
            told: dict[str, Any] = json.loads(await reader.readline())
            return told
        finally:
            writer.close()


@dataclass(slots=True)
class House:
    seed: int
    store: Server | Watched
    nodes: list[NodeProcess]
    routers: list[RouterProcess]
    began_s: float = field(default_factory=time.monotonic)
    history: list[str] = field(default_factory=list)

    def say(self, what: str) -> None:
        self.history.append(f"{time.monotonic() - self.began_s:7.2f} s  {what}")

    @property
    def server(self) -> Server:
        """That has what routers share now."""
        return self.store.primary if isinstance(self.store, Watched) else self.store

    @property
    def living(self) -> list[RouterProcess]:
        return [router for router in self.routers if router.killed_s is None]

    def standing(self) -> dict[str, int]:
        """What the Valkey keeps for calls, as far as it is not 0."""
        with self.server.client() as client:
            found: dict[str, int] = json.loads(str(client.eval(STANDING, 1, script.prefix("default")), "utf-8"))  # type: ignore[arg-type]
        return {name: count for name, count in found.items() if count}

    def leader(self) -> RouterProcess:
        """By the process id that stands in its name."""
        with self.server.client() as client:
            raw = client.get(script.prefix("default") + "meta")
            name = client.eval("return cmsgpack.unpack(ARGV[1]).leader", 0, raw)  # type: ignore[arg-type]
        pid = int(bytes(name).split(b"-")[-2])  # type: ignore[arg-type]
        return next(router for router in self.routers if router.process.pid == pid)

    def replicas(self) -> set[int]:
        """Process ids of those whom the Valkey has heard and not reaped."""
        with self.server.client() as client:
            names: Any = client.hkeys(script.prefix("default") + "replicas")
        return {int(bytes(name).split(b"-")[-2]) for name in names}

    def holds_for(self, router: RouterProcess) -> int:
        """Leases and tickets that the Valkey keeps for it."""
        with self.server.client() as client:
            members: Any = client.zrange(script.prefix("default") + "held", 0, -1)
        return sum(int(member.partition(b"\0")[0].split(b"-")[-2]) == router.process.pid for member in members)

    async def peaks(self, when: str) -> dict[tuple[str, str], int]:
        """The most that ran at once of each copy since this was asked last, as the nodes saw it."""
        told = [(node.name, await node.witness(COUNT_ANEW)) for node in self.nodes]
        lasting, momentary = (max(most(one) for _, one in told) for most in (_most, lambda one: one["momentary"]))
        self.say(f"at most {lasting} calls at once on a copy {when} ({momentary} for a moment)")
        return {(name, model): peak for name, one in told for model, peak in one["peaks"].items()}

    async def loads(self, event: str) -> int:
        """Of the cold model, over all nodes."""
        told = [await node.witness() for node in self.nodes]
        return sum(one["loads"].get(event, 0) for one in told)

    async def gauges(self) -> dict[str, float]:
        """What must be 0 at rest, over all routers that live, as far as it is not."""
        found = {}
        for router in self.living:
            page = await router.scrape()
            for name in ("requests_in_flight", "queue_depth", "node_slots_used", "degraded_mode"):
                if value := page.value(name):
                    found[f"{router.name} {name}"] = value
        return found


def _most(told: dict[str, Any]) -> int:
    return max(told["peaks"].values(), default=0)


async def until(holds: Callable[[], Any], within_s: float = WITHIN_S, every_s: float = 0.05) -> float:
    """Seconds until it held; an answer that is awaitable is awaited."""
    began_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while True:
            answer = holds()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return time.monotonic() - began_s
            await asyncio.sleep(every_s)


async def answers(port: int, path: str) -> bool:
    try:
        return (await get(port, path)).status == 200
    except (OSError, AssertionError):
        return False


async def are_back(house: House) -> bool:
    """Every router that lives has Redis, and knows itself no more alone."""
    pages = [await router.scrape() for router in house.living]
    return all(page.value("degraded_mode") == 0 and page.value("redis_up") == 1 for page in pages)


@asynccontextmanager
async def node_process(name: str) -> AsyncIterator[NodeProcess]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.node", name), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        told = json.loads(await process.stdout.readline())
        yield NodeProcess(name, told["url"], told["witness"], process)
    finally:
        await _end(process)


@asynccontextmanager
async def router_process(
    name: str, nodes: list[NodeProcess], store: Server | Watched, folder: Path, more: Mapping[str, str]
) -> AsyncIterator[RouterProcess]:
    """Under sentinels it asks them where its store is, and no proxy stands between."""
    port, metrics_port, proxy_port = free_port(), free_port(), free_port()
    url, store_port = (store.url, 0) if isinstance(store, Watched) else (f"redis://127.0.0.1:{proxy_port}", store.port)
    log = folder / f"{name}.log"
    command = [*(sys.executable, "-m", "router", "serve", "--store", url, "--listen", f"127.0.0.1:{port}")]
    command += ["--metrics-listen", f"127.0.0.1:{metrics_port}", "--admin-listen", f"127.0.0.1:{free_port()}"]
    environment = {
        "OLLAMA_ROUTER_NODES": json.dumps([{"url": node.url, "name": node.name, "slots": SLOTS} for node in nodes]),
        "OLLAMA_ROUTER_TEAMS": json.dumps(TEAMS),
        "OLLAMA_ROUTER_AUTH__REQUIRED": "true",
        "OLLAMA_ROUTER_PLACEMENT": json.dumps({"mode": "managed", "models": _declared()}),
        "OLLAMA_ROUTER_SHUTDOWN__DRAIN_DELAY_S": "0",
        **more,
    }
    async with FaultProxy(proxy_port, store_port) as proxy:
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                *command, cwd=ROOT, env={**os.environ, **environment}, stdout=out, stderr=asyncio.subprocess.STDOUT
            )
        try:
            yield RouterProcess(name, port, metrics_port, process, log, proxy)
        finally:
            await _end(process)


def _declared() -> list[dict[str, object]]:
    return [{"name": model, "copies": NODES} for model in (BUSY, CALM)]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def house(seed: int, folder: Path, store: Server | Watched, *, timeout_s: float) -> AsyncIterator[House]:
    """Opens when both warm models are in the memory of every node and every router knows it."""
    async with AsyncExitStack() as stack:
        stack.callback(store.stop)
        await asyncio.to_thread(store.start)
        nodes = [await stack.enter_async_context(node_process(f"node-{number}")) for number in range(NODES)]
        more = {"OLLAMA_ROUTER_STORE__TIMEOUT_S": str(timeout_s)}
        routers = [
            await stack.enter_async_context(router_process(name, nodes, store, folder, more))
            for name in ("router-a", "router-b", "router-c")[:ROUTERS]
        ]
        made = House(seed, store, nodes, routers)
        try:
            for router in routers:
                await until(lambda router=router: answers(router.metrics_port, "/readyz"))  # type: ignore[misc]
            await until(lambda: _all_warm(made))
            made.say("every router is ready and knows every copy")
            yield made
        except BaseException:
            print(f"seed {seed}", *made.history, sep="\n")
            for router in routers:
                print(f"--- {router.name}", *(json.dumps(line) for line in router.lines()[-40:]), sep="\n")
            raise


async def _all_warm(made: House) -> bool:
    pages = [await router.scrape() for router in made.routers]
    return all(
        page.value("model_nodes", model=model, state="loaded") == NODES for page in pages for model in (BUSY, CALM)
    )
