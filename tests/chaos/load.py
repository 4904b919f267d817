"""Teams that ask all the time, by whichever router is in rotation, and know what became of each call.

A call that got no status line is asked again elsewhere, as SDKs do. What else goes wrong is `lost`, and so is a stream
that breaks, unless its router was killed under it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any, Protocol

from tests.chaos.node import BUSY, CALM
from tests.shell.clients import _parsed

PATIENCE_S = 90.0  # longer than any fault: what hangs for so long hangs for ever
BUSY_CLIENTS, CALM_CLIENTS, LEAVING_CLIENTS = 9, 2, 1  # of each team
TOKENS = (4, 8, 16, 40)
# Who gives up while it waits. Streams only: they have a first byte as soon as a node works for them, and a node may see
# the next call before it sees that one has left.
LEAVES_AFTER_S = (0.02, 0.6)
KEYS = {team: f"key-of-{team}-0123456789" for team in ("red", "green", "blue")}
TEAMS: dict[str, Any] = {
    "red": {"weight": 2},
    "green": {},
    "blue": {"max_concurrent": 5},
}
for team, more in TEAMS.items():
    more["keys_sha256"] = [sha256(KEYS[team].encode()).hexdigest()]

Say = Callable[[str], None]


class Target(Protocol):
    """A router, as its clients see it. `killed_s`: when, by the monotonic clock."""

    name: str
    port: int
    is_in_rotation: bool
    killed_s: float | None


@dataclass(slots=True)
class Try:
    """One exchange. `has_begun`: a status line came."""

    router: str
    status: int = 0
    has_begun: bool = False
    is_whole: bool = False
    first_s: float = 0.0
    body: bytes = b""
    error: str = ""


@dataclass(slots=True)
class Done:
    """A call that ended. Times are monotonic; `first_s` is from its beginning to the first byte that it got."""

    team: str
    model: str
    began_s: float
    ended_s: float
    first_s: float
    router: str
    is_stream: bool


@dataclass(slots=True)
class Told:
    done: list[Done] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)  # streams of a killed router
    counts: Counter[str] = field(default_factory=Counter)


class Load:
    """`async with`: begins, and at the end waits for the calls that run."""

    def __init__(self, routers: Sequence[Target], seed: int, say: Say) -> None:
        self._routers = routers
        self._seed = seed
        self._say = say
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []
        self.told = Told()

    def __repr__(self) -> str:
        return f"<Load {dict(self.told.counts)} | {len(self.told.lost)} lost | {len(self.told.broken)} broken>"

    def begin(self) -> None:
        for team in KEYS:
            for number in range(BUSY_CLIENTS):
                self._start(self._ask_on, team, BUSY, number)
            # Those of a team at its own limit wait for it, whatever is free.
            for number in range(0 if "max_concurrent" in TEAMS[team] else CALM_CLIENTS):
                self._start(self._ask_on, team, CALM, number)
            for number in range(LEAVING_CLIENTS):
                self._start(self._leave_on, team, BUSY, number)

    async def end(self) -> None:
        self._is_over = True
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*self._tasks)

    async def abandon(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def ask(self, team: str, model: str, rng: Random, router: Target | None = None) -> None:
        """One call, asked again while nobody took it."""
        began_s = time.monotonic()
        path, body, is_stream = _call_of(model, rng)
        while True:
            target = router if router is not None and router.killed_s is None else self._any(rng)
            tried = await _exchange(target, path, body, KEYS[team], None)
            if tried.status == 200 and tried.is_whole and b'"error"' not in tried.body:
                break
            what = f"{team} {model} {path} stream={is_stream} by {tried.router}: {tried}"
            # A router that is killed ends its streams, and calls that it had taken: asked again, they are served.
            if target.killed_s is not None:
                self.told.broken.append(what)
                self.told.counts["broken" if tried.has_begun else "repeated"] += 1
                router = None
            elif not tried.has_begun and tried.error:
                self._lose(what)
                await asyncio.sleep(0.05)
            else:
                self._lose(what)
                return
            if time.monotonic() - began_s > PATIENCE_S:
                self._lose(f"given up: {what}")
                return
        ended_s = time.monotonic()
        self.told.done.append(Done(team, model, began_s, ended_s, tried.first_s, target.name, is_stream))
        self.told.counts[model] += 1

    def _start(self, what: Callable[[str, str, Random], Any], team: str, model: str, number: int) -> None:
        rng = Random(f"{self._seed} {what.__name__} {team} {model} {number}")
        self._tasks.append(asyncio.create_task(what(team, model, rng)))

    async def _ask_on(self, team: str, model: str, rng: Random) -> None:
        while not self._is_over:
            await self.ask(team, model, rng)
            await asyncio.sleep(rng.uniform(0.0, 0.1))

    async def _leave_on(self, team: str, model: str, rng: Random) -> None:
        while not self._is_over:
            path, body, _ = _call_of(model, rng, streams=1.0)
            tried = await _exchange(self._any(rng), path, body, KEYS[team], rng.uniform(*LEAVES_AFTER_S))
            self.told.counts["left" if tried.error else "served before it left"] += 1
            await asyncio.sleep(rng.uniform(0.0, 0.2))

    def _any(self, rng: Random) -> Target:
        return rng.choice([router for router in self._routers if router.is_in_rotation])

    def _lose(self, what: str) -> None:
        self.told.lost.append(what)
        self._say(f"LOST {what}")


def _call_of(model: str, rng: Random, streams: float = 0.6) -> tuple[str, bytes, bool]:
    """`streams`: which part of them."""
    tokens, is_stream = rng.choice(TOKENS), rng.random() < streams
    if rng.random() < 0.5:
        messages = [{"role": "user", "content": f"{rng.random()}: why is the sky blue?"}]
        said: dict[str, Any] = {"messages": messages, "max_tokens": tokens}
        path = "/v1/chat/completions"
    else:
        said = {"prompt": f"{rng.random()}: why is the sky blue?", "options": {"num_predict": tokens}}
        path = "/api/generate"
    return path, json.dumps({"model": model, "stream": is_stream, **said}).encode(), is_stream


async def _exchange(target: Target, path: str, body: bytes, key: str, leaves_after_s: float | None) -> Try:
    """`leaves_after_s`: without a first byte until then it goes."""
    tried, began_s = Try(target.name), time.monotonic()
    writer = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
            head = f"POST {path} HTTP/1.1\r\nHost: router\r\nConnection: close\r\nAuthorization: Bearer {key}\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            async with asyncio.timeout(leaves_after_s):
                got = bytearray(await reader.read(65536))
            tried.first_s = time.monotonic() - began_s
            with suppress(ConnectionError):
                while piece := await reader.read(65536):
                    got += piece
            answer = _parsed(bytes(got))
            if answer is not None:
                tried.has_begun, tried.status, tried.is_whole = True, answer.status, answer.is_whole
                tried.body = answer.body[-300:]
            else:
                tried.error = "no answer"
    except (OSError, TimeoutError) as error:
        tried.error = type(error).__name__
    finally:
        if writer is not None:
            writer.transport.abort()
    return tried
