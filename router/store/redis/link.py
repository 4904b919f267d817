"""A connection to Redis or Valkey: batches of steps in one round trip, and the replica's stream on one of its own.

Whatever fails here is `StoreLost`, with words for the operator; a connection that failed or timed out is never used
again, so that no answer can be taken for another's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from router.fleet.tickets import BEAT_S, Lease
from router.store.answers import Answer, Caller, Refused
from router.store.redis import codec, script
from router.store.redis.address import Address
from router.store.redis.patience import Patience

log = logging.getLogger(__name__)

PORT = 6379
BLOCK_S = 1.0  # of a read that waits for the replica's stream: as long as a beat, which would bring the same
READ_MAX = 256  # news in one read


class StoreLost(Exception):
    """Redis did not do what it was asked: nobody knows whether it will yet."""


class Link:
    """Two connections of one replica. `run` is for one task at a time, `news` for another."""

    def __init__(self, address: Address, replica: str) -> None:
        self.address = address
        self.prefix = script.prefix(address.pool)
        self.run_id = ""  # of the server that answers: another one may have lost writes
        self.evicts = False  # its policy may throw away what every replica relies on
        self._stream = f"{self.prefix}stream:{replica}"
        self._writer = _client(address)
        self._reader = _client(address, address.timeout_s + BLOCK_S)
        self._last_id = "0-0"

    def __repr__(self) -> str:
        return f"<Link to {self.address.url} run {self.run_id[:8]}>"

    async def connect(self) -> None:
        """Anew, in any case. Refuses with StoreLost."""
        await _end(self._writer)
        self._writer = _client(self.address)
        self._last_id = "0-0"
        try:
            async with Patience(2 * self.address.timeout_s):
                facts = await self._writer.info()
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreLost(_told(error)) from error
        self.run_id = str(facts.get("run_id", ""))
        self.evicts = facts.get("maxmemory_policy", "noeviction") != "noeviction"

    async def run(self, caller: Caller, commands: Sequence[codec.Command]) -> list[Answer[Any]]:
        """All of them in one run of the script, in order. Refuses with StoreLost: any part of it may be done."""
        speaker = {"replica": caller.replica, "session": caller.session, "run": self.run_id, "settle": BEAT_S}
        args: tuple[str | int, ...] = (1, self.prefix, json.dumps(speaker), *(command.text for command in commands))
        try:
            async with Patience(self.address.timeout_s):
                try:
                    texts = await self._send("EVALSHA", script.digest(), *args)
                except NoScriptError:
                    texts = await self._send("EVAL", script.source(), *args)
        except (RedisError, OSError, TimeoutError) as error:
            # What was sent may be executed after all: no later answer may be taken for this one.
            await _end(self._writer)
            raise StoreLost(_told(error)) from error
        return [codec.answer(command, text) for command, text in zip(commands, texts, strict=True)]

    async def _send(self, *command: str | int) -> Any:
        return await self._writer.execute_command(*command)  # type: ignore[no-untyped-call]

    async def news(self) -> list[Lease | Refused]:
        """What others' steps brought this replica since the last time; waits for it BLOCK_S at most."""
        block_ms = int(BLOCK_S * 1000)
        try:
            found = await self._reader.xread({self._stream: self._last_id}, count=READ_MAX, block=block_ms)
        except (RedisError, OSError, TimeoutError) as error:
            await _end(self._reader)
            self._reader = _client(self.address, self.address.timeout_s + BLOCK_S)
            raise StoreLost(_told(error)) from error
        entries = [entry for entries in _entries(found) for entry in entries]
        if entries:
            self._last_id = entries[-1][0]
        return [codec.news(json.loads(fields[b"news"])) for _, fields in entries]

    async def close(self) -> None:
        await _end(self._writer)
        await _end(self._reader)


async def _end(client: Redis) -> None:
    """What stands in its way, such as a peer that takes nothing, is no concern of ours any more."""
    with suppress(RedisError, OSError, TimeoutError):
        await client.aclose()


def _entries(found: Any) -> list[Any]:
    """Of each stream that was read: a list of pairs in RESP 2, a mapping of lists in RESP 3."""
    if isinstance(found, dict):
        return [entry for entries in found.values() for entry in entries]
    return [entries for _, entries in found or ()]


def _client(address: Address, timeout_s: float | None = None) -> Redis:
    """`timeout_s` for each answer; None where whoever asks has a limit of its own."""
    parts = urlsplit(address.url)
    tls: dict[str, Any] = {}
    if parts.scheme == "rediss":
        tls = {"ssl": True, "ssl_ca_certs": address.ca_file, "ssl_cert_reqs": "required"}
    return Redis(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or PORT,
        db=int(parts.path.strip("/") or 0),
        username=unquote(parts.username) if parts.username else None,
        password=address.password,
        socket_timeout=timeout_s,
        socket_connect_timeout=address.timeout_s,
        retry=Retry(NoBackoff(), 0),
        client_name=f"ollama-router-{address.pool}",
        max_connections=1,
        **tls,
    )


def _told(error: Exception) -> str:
    if isinstance(error, ResponseError):
        return f"refused: {error}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
