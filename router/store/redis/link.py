"""A connection to Redis or Valkey: batches of steps in one round trip, and the replica's stream on one of its own.

Whatever fails here is `StoreLost`, with words for the operator; a connection that failed or timed out is never used
again, so that no answer can be taken for another's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import MovedError, ReadOnlyError, RedisError, ResponseError

from router.fleet.tickets import BEAT_S, Lease
from router.store.answers import Answer, Caller, Refused
from router.store.redis import codec, script
from router.store.redis.address import Address, Kind, Server
from router.store.redis.client import client, end, told
from router.store.redis.patience import Patience
from router.store.redis.primary import NoPrimary, find

log = logging.getLogger(__name__)

BLOCK_S = 1.0  # of a read that waits for the replica's stream: as long as a beat, which would bring the same
READ_MAX = 256  # news in one read
UNKNOWN, KNOWN = "Function not found", "already exists"  # what servers answer to FCALL, and to FUNCTION LOAD


class StoreLost(Exception):
    """Redis did not do what it was asked: nobody knows whether it will yet."""


class StoreMoved(StoreLost):
    """Nothing was done: another server has the pool's keys now."""


class Link:
    """Two connections of one replica. `run` is for one task at a time, `news` for another."""

    def __init__(self, address: Address, replica: str) -> None:
        self.address = address
        self.prefix = script.prefix(address.pool)
        self.run_id = ""  # of the server that answers: another one may have lost writes
        self.evicts = False  # its policy may throw away what every replica relies on
        self._server: Server | None = None
        self._stream = f"{self.prefix}stream:{replica}"
        self._writer: Redis | None = None
        self._reader: Redis | None = None
        self._last_id = "0-0"

    def __repr__(self) -> str:
        return f"<Link to {self.where} run {self.run_id[:8]}>"

    @property
    def where(self) -> str:
        """The URL, and the server where it does not name it."""
        url = self.address.url
        return url.text if self._server is None or self._server in url.servers else f"{url.text} at {self._server}"

    @property
    def is_watched(self) -> bool:
        """Sentinels may give up a server that does not know."""
        return self.address.url.kind is Kind.SENTINEL

    async def connect(self) -> None:
        """Anew, in any case, and to whichever server has the pool's keys. Refuses with StoreLost."""
        await self.close()
        self._last_id = "0-0"
        try:
            async with Patience(2 * self.address.timeout_s):
                self._server = await find(self.address, self.prefix)
                self._writer = self._client()
                facts = await self._writer.info()
            if facts.get("role", "master") != "master":
                raise NoPrimary(f"{self._server} is a replica: its primary has what routers share")
        except (RedisError, OSError, TimeoutError) as error:
            raise StoreLost(told(error)) from error
        self.run_id = str(facts.get("run_id", ""))
        self.evicts = facts.get("maxmemory_policy", "noeviction") != "noeviction"

    async def has_moved(self) -> bool:
        """Whether another server has the pool's keys now, as far as anybody says."""
        try:
            async with Patience(2 * self.address.timeout_s):
                return await find(self.address, self.prefix) != self._server
        except (RedisError, OSError, TimeoutError):
            return False

    async def run(self, caller: Caller, commands: Sequence[codec.Command]) -> list[Answer[Any]]:
        """All of them in one run of the steps, in order. Refuses with StoreLost: any part of it may be done."""
        speaker = {"replica": caller.replica, "session": caller.session, "run": self.run_id, "settle": BEAT_S}
        args: tuple[str | int, ...] = (1, self.prefix, json.dumps(speaker), *(command.text for command in commands))
        try:
            async with Patience(self.address.timeout_s):
                texts = await self._call(*args)
        except (MovedError, ReadOnlyError) as error:
            raise StoreMoved(told(error)) from error
        except (RedisError, OSError, TimeoutError) as error:
            # What was sent may be executed after all: no later answer may be taken for this one.
            await end(self._writer)
            raise StoreLost(told(error)) from error
        return [codec.answer(command, text) for command, text in zip(commands, texts, strict=True)]

    async def _call(self, *args: str | int) -> Any:
        """Brings the library where the server has none: a new one, or one that came back empty."""
        try:
            return await self._send("FCALL", script.name(), *args)
        except ResponseError as error:
            if UNKNOWN not in str(error):
                raise
        try:
            await self._send("FUNCTION", "LOAD", script.library())
        except ResponseError as error:
            if KNOWN not in str(error):  # another router was faster
                raise
        return await self._send("FCALL", script.name(), *args)

    async def _send(self, *command: str | int) -> Any:
        if self._writer is None:  # whoever said hello was cancelled meanwhile: this router leaves
            raise StoreLost("not connected")
        return await self._writer.execute_command(*command)  # type: ignore[no-untyped-call]

    async def news(self) -> list[Lease | Refused]:
        """What others' steps brought this replica since the last time; waits for it BLOCK_S at most."""
        block_ms = int(BLOCK_S * 1000)
        reader = self._reader
        try:
            if reader is None:
                reader = self._reader = self._client(self.address.timeout_s + BLOCK_S)
            found = await reader.xread({self._stream: self._last_id}, count=READ_MAX, block=block_ms)
        except (RedisError, OSError, TimeoutError) as error:
            if reader is not self._reader:
                return []  # it was closed here
            self._reader = None
            raise StoreLost(told(error)) from error
        finally:
            if reader is not self._reader:
                await end(reader)  # closed before, maybe while it still connected: nobody else would close it again
        if reader is not self._reader:
            return []  # of a server that was left meanwhile: hello has told the same
        entries = [entry for entries in _entries(found) for entry in entries]
        if entries:
            self._last_id = entries[-1][0]
        return [codec.news(json.loads(fields[b"news"])) for _, fields in entries]

    async def close(self) -> None:
        writer, reader = self._writer, self._reader
        self._writer = self._reader = None
        try:
            await end(writer)
        finally:
            await end(reader)

    def _client(self, timeout_s: float | None = None) -> Redis:
        """`timeout_s` for each answer; None where whoever asks has a limit of its own."""
        assert self._server is not None, "nothing is asked before hello"
        return client(self.address, self._server, timeout_s)


def _entries(found: Any) -> list[Any]:
    """Of each stream that was read: a list of pairs in RESP 2, a mapping of lists in RESP 3."""
    if isinstance(found, dict):
        return [entry for entries in found.values() for entry in entries]
    return [entries for _, entries in found or ()]
