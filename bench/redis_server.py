"""A Redis or Valkey of the bench's own, without persistence, and what it says of itself."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from bench.measure import cpu_ns
from router.workers.embedded import find_server

START_S_MAX = 10.0
# What clients send: one round trip each. INFO counts the commands within a script too, which are none of these.
SENT = ("eval", "evalsha", "fcall", "xread", "info", "script|load", "function|load")


def binary() -> str | None:
    """The one that is named, else the one that workers of this machine would share."""
    return os.environ.get("BENCH_REDIS") or find_server()


def command(program: str, port: int, directory: Path) -> list[str]:
    places = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory)]
    return [*places, "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]


@dataclass(frozen=True, slots=True)
class Reading:
    """Since the server's start."""

    at_s: float
    cpu_ns: int
    trips: int
    scripts: int  # runs of the script: a batch of steps each


@dataclass(frozen=True, slots=True)
class Spent:
    """Between two readings."""

    seconds: float
    cpu_us: float
    trips: int
    scripts: int


class RedisServer:
    """A running server. Looking at it costs one round trip, which is not counted."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pids = (pid,)
        self._client = redis.Redis(port=port, socket_timeout=START_S_MAX)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        try:
            return bool(self._client.ping())
        except redis.exceptions.RedisError:
            return False

    def read(self) -> Reading:
        trips, scripts = sent(self._client.info("commandstats"))
        return Reading(time.monotonic(), cpu_ns(self.pids), trips, scripts)

    def memory_bytes(self) -> int:
        return int(self._client.info("memory")["used_memory"])

    def close(self) -> None:
        self._client.close()


def sent(stats: dict[str, dict[str, float]]) -> tuple[int, int]:
    """Round trips and runs of the script, of INFO's commandstats."""
    calls = {name.removeprefix("cmdstat_"): int(facts["calls"]) for name, facts in stats.items()}
    scripts = sum(calls.get(name, 0) for name in ("eval", "evalsha", "fcall"))
    return sum(calls.get(name, 0) for name in SENT) - calls.get("info", 0), scripts


def spent(before: Reading, after: Reading) -> Spent:
    return Spent(
        after.at_s - before.at_s,
        (after.cpu_ns - before.cpu_ns) / 1000,
        after.trips - before.trips,
        after.scripts - before.scripts,
    )
