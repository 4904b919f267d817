"""The parent of several workers: it reserves their port, brings their store, and speaks for all of them.

No client's byte passes through it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import uvloop

from router.exits import FAILED, MISUSED, OK
from router.reload import Preparer
from router.server import joint
from router.server.admin_door import TokenFile, TokenUnreadable
from router.server.listen import listen_pages
from router.settings import ConfigError, Origin, Settings, host_port
from router.telemetry.logs import Logs
from router.telemetry.turn import FileTurn
from router.workers.crew import Crew
from router.workers.embedded import NONE_FOUND, EmbeddedStore, find_server
from router.workers.life import NeverServed, Task
from router.workers.port import reserved

log = logging.getLogger("router")

NOT_HERE = """\
workers: more than one needs Linux, whose kernel spreads connections over all that listen on a port. Here run \
one router, or several on ports of their own before one Redis"""
TEMP_BYTES_MAX = 64


def serve(origin: Origin, count: int) -> int:
    """Runs until SIGTERM or SIGINT, then all leave well. The exit code. Refuses with ConfigError and OSError."""
    if sys.platform != "linux":
        raise ConfigError([NOT_HERE])
    return uvloop.run(_serve(origin, count))


async def _serve(origin: Origin, count: int) -> int:
    told, told_again = asyncio.Event(), asyncio.Event()

    def leave() -> None:
        (told_again if told.is_set() else told).set()

    async with _house(origin, count) as crew:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, crew.reload)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, leave)
        try:
            if await _unless(told, crew.start()):
                log.info("%d workers serve", count)
                await crew.serve_until(told)
        except NeverServed as error:
            log.error("%s", error)  # noqa: TRY400 - the worker has said why
            return MISUSED if error.code == MISUSED else FAILED
        log.info("leaving: %d workers end what they have in hand", count)
        has_left_well = await _unless(told_again, crew.leave())
        log.info("left well" if has_left_well else "left: not every worker ended well")
    return OK if has_left_well else FAILED


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, bool]) -> bool:
    """What comes of the work; False where the event comes before its end."""
    task, waits = asyncio.create_task(work), asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, waits), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else False
    finally:
        task.cancel()
        waits.cancel()


@asynccontextmanager
async def _house(origin: Origin, count: int) -> AsyncIterator[Crew]:
    """All that the parent has for its workers; nothing of it is left afterwards. Refuses with ConfigError, OSError."""
    loaded = origin.read()
    Preparer().prepare(loaded)  # what is wrong in files is told once, by whoever can tell it first
    settings = loaded.settings
    binary = _server_for(settings, count)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(_private_folder()))
        _take_the_log(stack, settings, folder)
        clients = stack.enter_context(reserved(*host_port(settings.listen)))
        overrides = dict(origin.overrides)
        if binary is not None:
            store = await _open_store(stack, binary, folder)
            overrides["store"] = {"url": store.url, "password_file": str(store.password_file)}
        # A worker that starts while the store is away shares with the others all the same.
        overrides["store"] = {**overrides.get("store", {}), "replicas": max(count, settings.store.replicas)}
        task = Task(origin.config, overrides, *clients, folder)
        crew = Crew(count, task, _credentials(settings))
        for pages, address in (
            (joint.health(crew), settings.metrics_listen),
            (joint.admin(crew), settings.admin.listen),
        ):
            _, close = await listen_pages(pages, host_port(address))
            stack.push_async_callback(close)
        _start(stack, "orders", crew.tell_those_who_missed_it())
        stack.push_async_callback(crew.close)
        log.info(
            "%d workers for %s, metrics and health on %s, admin on %s, store: %s",
            *(count, settings.listen, settings.metrics_listen, settings.admin.listen),
            f"{binary} of our own" if binary is not None else settings.store.url,
        )
        yield crew


def _server_for(settings: Settings, count: int) -> str | None:
    """None where the settings name a store that workers can share. Refuses with ConfigError."""
    if settings.store.is_shared:
        return None
    binary = find_server()
    if binary is None:
        raise ConfigError([NONE_FOUND.format(count=count)])
    return binary


def _private_folder() -> TemporaryDirectory[str]:
    """Of mode 0700. A path of a Unix socket has 107 bytes at most."""
    home = gettempdir()
    folder = home if len(os.fsencode(home)) <= TEMP_BYTES_MAX else "/tmp"  # noqa: S108 - a folder of our own in it
    return TemporaryDirectory(prefix="ollama-router-", dir=folder, ignore_cleanup_errors=True)


def _take_the_log(stack: AsyncExitStack, settings: Settings, folder: Path) -> None:
    logs = Logs(log_format=settings.log.format, level=settings.log.level, turn=FileTurn(str(folder / "log")))
    logs.open()
    stack.callback(logs.close)
    logs.take_over()


async def _open_store(stack: AsyncExitStack, binary: str, folder: Path) -> EmbeddedStore:
    store = EmbeddedStore(binary, folder)
    stack.push_async_callback(store.stop)
    await store.start()
    _start(stack, "store", store.keep())
    return store


def _start(stack: AsyncExitStack, name: str, work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work, name=name)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


def _credentials(settings: Settings) -> Callable[[], Mapping[str, str]]:
    """What the parent's own orders carry to a worker's door."""
    if settings.admin.token_file is None:
        return dict
    token_file = TokenFile(settings.admin.token_file)

    def credentials() -> Mapping[str, str]:
        try:
            return {"Authorization": f"Bearer {token_file.token().decode()}"}
        except TokenUnreadable:
            return {}

    return credentials
