"""Opens and closes the listening sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from router.server.app import App
from router.server.client_limits import ClientLimits
from router.server.clients import ClientServer

# (host, port), or the path of a Unix socket.
Spot = tuple[str, int] | str

# Connections that the kernel keeps until we accept them: a burst of clients is not refused.
BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a router is reached. `is_shared`: other workers of this machine listen on the clients' port as well."""

    clients: tuple[str, int]
    metrics: Spot
    admin: Spot
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Berth:
    """What a worker is told by its parent: where it is reached, and which nodes were drained before it started."""

    doors: Doors
    drained: tuple[str, ...] = ()


class ClientListener:
    """The clients' port. `close` stops listening; `shutdown` ends the connections that are left."""

    def __init__(self, server: asyncio.Server, manager: ClientServer) -> None:
        self._server = server
        self._manager = manager

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        return len(self._manager.connections)

    async def close(self) -> None:
        self._server.close()
        # Idle connections close at once, busy ones after the call in hand.
        self._manager.close_idle()

    async def shutdown(self) -> None:
        await self._manager.shutdown()


async def listen_clients(
    app: App,
    doors: Doors,
    limits: ClientLimits,
    on_surplus: Callable[[], None],
    tls: ssl.SSLContext | None = None,
) -> ClientListener:
    manager = ClientServer(app.handle, limits=limits, on_surplus=on_surplus)
    # A handshake is what a head is: nothing is served before it, so it gets the same time.
    handshake_s = limits.header_s if tls is not None else None
    host, port = doors.clients
    server = await asyncio.get_running_loop().create_server(
        *(manager, host, port),
        backlog=BACKLOG,
        ssl=tls,
        ssl_handshake_timeout=handshake_s,
        reuse_port=doors.is_shared or None,
    )
    return ClientListener(server, manager)


async def listen_pages(pages: web.Application, spot: Spot) -> tuple[int, Callable[[], Awaitable[None]]]:
    """For probes and for the admin API. The port, 0 for a Unix socket, and what closes it."""
    runner = web.AppRunner(pages, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    if isinstance(spot, str):
        await web.UnixSite(runner, spot).start()
        return 0, runner.cleanup
    await web.TCPSite(runner, *spot).start()
    return int(runner.addresses[0][1]), runner.cleanup
