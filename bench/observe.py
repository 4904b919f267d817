"""`make observe`: a simulated pool under a load as people make it, and a real Prometheus that scrapes it.

The same parts are the end-to-end test of dashboards and alerts (tests/observe/test_observed.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiohttp
import uvloop
import yaml

from bench.rivals import free_port
from router.settings import Settings
from router.simulation.facts import NodeLimits
from router.simulation.pool import SimulatedPool
from router.telemetry.logs import Logs
from router.wiring import Router, running

RULES = Path(__file__).parents[1] / "dashboards" / "rules" / "ollama-router.yaml"
GIB = 1024**3
KEYS = {team: f"key-of-{team}" for team in ("research", "product", "support")}
ALIASES = {
    "gpt-4": "qwen3:8b",
    "gpt-4o": {"targets": [{"model": "gpt-oss:20b"}], "fallbacks": ["gemma3:12b"]},
    "gpt-5": {"targets": [{"model": "not-yet-pulled:70b"}], "fallbacks": ["llama3.2:3b"]},
}
CHAT_MODELS = ("llama3.2:3b", "llama3.2:3b", "qwen3:8b", "gpt-4", "gpt-4o", "gpt-5", "gemma3:12b", "qwen2.5-coder:14b")
WORDS = "why is the sky blue and how does a router choose the node that answers this call"
READY_S_MAX = 30.0
BREAK = '{"fault": "refuse"}'


def settings_of(pool: SimulatedPool, **changes: Any) -> Settings:
    """Teams told apart, an alias with a fallback, and a short line, so that it can be seen full."""
    basis: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "admin": {"listen": "127.0.0.1:0"},
        "nodes": [{"url": node.url, "name": node.name, "slots": 4} for node in pool.nodes],
        "aliases": ALIASES,
        "teams": {team: {"keys_sha256": [sha256(key.encode()).hexdigest()]} for team, key in KEYS.items()},
        "metrics": {"teams": True},
        "shutdown": {"drain_delay_s": 0, "stream_drain_s": 1},
    }
    return Settings(**{**basis, **changes})


@asynccontextmanager
async def observed(
    nodes: int = 3, *, time_scale: float = 1.0, **changes: Any
) -> AsyncIterator[tuple[SimulatedPool, Router]]:
    """Cards of 20 GiB: the models of the demo do not all fit, and take turns."""
    limits = NodeLimits(vram_bytes=20 * GIB, num_parallel=4, keep_alive_s=60.0)
    async with SimulatedPool(nodes=nodes, limits=limits, time_scale=time_scale) as pool:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        logs = Logs(log_format="json", level="info", descriptor=nowhere)
        logs.open()
        try:
            async with running(settings_of(pool, **changes), logs, random.Random(0)) as router:
                yield pool, router
        finally:
            logs.close()
            os.close(nowhere)


class Load:
    """So many people at once: conversations that grow, plain calls, embeddings, lists; some mistype or leave early."""

    def __init__(self, port: int, people: int, *, pause_s: float = 1.0, seed: int = 0) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._people = people
        self._pause_s = pause_s
        self._rng = random.Random(seed)
        self.ended = 0

    def __repr__(self) -> str:
        return f"<Load of {self._people} | {self.ended} calls ended>"

    async def run(self) -> None:
        """Until it is cancelled."""
        timeout, connector = aiohttp.ClientTimeout(total=120), aiohttp.TCPConnector(limit=0)
        session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        async with session, asyncio.TaskGroup() as people:  # so that all have left before the session closes
            for number in range(self._people):
                people.create_task(self._person(session, number))

    async def _person(self, session: aiohttp.ClientSession, number: int) -> None:
        key = list(KEYS.values())[number % len(KEYS)]
        talk = partial(self._ask, session, {"Authorization": f"Bearer {key}"})
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                await self._look_round(session)
                await (self._converse(talk) if self._rng.random() < 0.6 else talk(*self._other_call()))
            await asyncio.sleep(self._rng.expovariate(1 / self._pause_s))

    async def _look_round(self, session: aiohttp.ClientSession) -> None:
        """As clients do before they call: a list of models; a few have the wrong base_url."""
        path = self._rng.choices(("", "/api/tags", "/v1/models", "/models"), (60, 20, 18, 2))[0]
        if path:
            async with session.get(self._url + path) as answer:
                await answer.read()

    async def _converse(self, talk: Callable[..., Awaitable[str]]) -> None:
        model = self._rng.choice(CHAT_MODELS)
        messages: list[dict[str, str]] = []
        for _ in range(self._rng.randint(1, 4)):
            messages.append(_said("user", self._words()))
            body = {"model": model, "messages": messages, "stream": True, "max_tokens": 120}
            answer = await talk("/v1/chat/completions", body, leaves=self._rng.random() < 0.08)
            messages.append(_said("assistant", answer))

    def _other_call(self) -> tuple[str, dict[str, Any]]:
        drawn = self._rng.random()
        if drawn < 0.35:
            options = {"num_ctx": 2048, "num_predict": 80}
            body = {"model": "llama3.2:3b", "messages": [_said("user", self._words())], "options": options}
            return "/api/chat", body
        if drawn < 0.6:
            options = {"num_predict": 60}
            return "/api/generate", {"model": "qwen3:8b", "prompt": self._words(), "stream": False, "options": options}
        if drawn < 0.95:
            return "/v1/embeddings", {"model": "nomic-embed-text", "input": [self._words()] * 4}
        return "/api/chat", {"model": "lama3.2", "messages": [_said("user", "?")]}

    async def _ask(
        self,
        session: aiohttp.ClientSession,
        headers: dict[str, str],
        path: str,
        body: dict[str, Any],
        *,
        leaves: bool = False,
    ) -> str:
        """What was answered. One who leaves does so at the first bytes."""
        async with session.post(self._url + path, json=body, headers=headers) as answer:
            if leaves:
                await answer.content.readany()
                answer.close()
                return ""
            text = (await answer.read()).decode("utf-8", "replace")
        self.ended += 1
        return text[:200]

    def _words(self) -> str:
        return " ".join(self._rng.choices(WORDS.split(), k=self._rng.randint(5, 300)))


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str
    session: aiohttp.ClientSession

    async def query(self, expr: str) -> list[dict[str, Any]]:
        """An instant vector. Raises ValueError with Prometheus' own words."""
        async with self.session.get(f"{self.url}/api/v1/query", params={"query": expr}) as answer:
            told = await answer.json()
        if told["status"] != "success":
            raise ValueError(f"{told['error']}: {expr}")
        found: list[dict[str, Any]] = told["data"]["result"]
        return found

    async def firing(self) -> set[str]:
        async with self.session.get(f"{self.url}/api/v1/alerts") as answer:
            told = await answer.json()
        return {alert["labels"]["alertname"] for alert in told["data"]["alerts"] if alert["state"] == "firing"}


@asynccontextmanager
async def prometheus(
    targets: Sequence[int], *, scrape_s: float, rules: Path = RULES, port: int = 0
) -> AsyncIterator[Prometheus]:
    """Debian's, on loopback, with a data directory of its own. Raises FileNotFoundError where there is none."""
    binary = shutil.which("prometheus")
    if binary is None:
        raise FileNotFoundError("no prometheus on PATH (Debian: apt-get install prometheus)")
    port = port or free_port()
    with tempfile.TemporaryDirectory(prefix="observe-") as name:
        every = f"{scrape_s:g}s"
        hosts = [f"127.0.0.1:{target}" for target in targets]
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "ollama-router", "static_configs": [{"targets": hosts}]}],
        }
        Path(name, "prometheus.yml").write_text(yaml.safe_dump(config))  # noqa: ASYNC240 - nothing runs yet
        process = await asyncio.create_subprocess_exec(
            binary,
            f"--config.file={name}/prometheus.yml",
            f"--storage.tsdb.path={name}/data",
            f"--web.listen-address=127.0.0.1:{port}",
            "--enable-feature=exemplar-storage",
            "--log.level=error",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with aiohttp.ClientSession() as session:
                found = Prometheus(f"http://127.0.0.1:{port}", session)
                await _ready(found, process)
                yield found
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _ready(found: Prometheus, process: asyncio.subprocess.Process) -> None:
    async with asyncio.timeout(READY_S_MAX):
        while True:
            if process.returncode is not None:
                raise RuntimeError(f"prometheus ended with {process.returncode}")
            with contextlib.suppress(aiohttp.ClientError):
                async with found.session.get(f"{found.url}/-/ready") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)


async def watch(nodes: int, people: int, port: int) -> None:
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    async with observed(nodes) as (pool, router), prometheus([router.metrics_port], scrape_s=2, port=port) as found:
        load = asyncio.create_task(Load(router.port, people).run())
        print(f"router      http://127.0.0.1:{router.port}")
        print(f"metrics     http://127.0.0.1:{router.metrics_port}/metrics")
        print(f"Prometheus  {found.url}   rules: /rules   alerts: /alerts")
        print("Grafana     add that Prometheus as a data source, and import dashboards/*.json")
        for node in pool.nodes:
            print(f"{node.name}       {node.url}   to break it: POST /simulate/faults with {BREAK}")
        print("Ctrl-C ends it", flush=True)
        await told.wait()
        load.cancel()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.observe", description=__doc__)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--people", type=int, default=40, help="who talk at the same time, default 40")
    parser.add_argument("--port", type=int, default=9090, help="of Prometheus, default 9090")
    asked = parser.parse_args()
    try:
        uvloop.run(watch(asked.nodes, asked.people, asked.port))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
