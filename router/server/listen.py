"""Opens and closes the listening sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from router.server.app import App
from router.server.client import ClientLimits
from router.server.clients import ClientServer

# Connections that the kernel keeps until we accept them: a burst of clients is not refused.
BACKLOG = 1024


class ClientListener:
    """The clients' port. `close` stops listening; `shutdown` ends the connections that are left."""

    def __init__(self, server: asyncio.Server, manager: ClientServer) -> None:
        self._server = server
        self._manager = manager

    @property
    def port(self) -> int:
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        self._server.close()
        # Idle connections close at once, busy ones after the call in hand.
        self._manager.close_idle()

    async def shutdown(self) -> None:
        await self._manager.shutdown()


async def listen_clients(  # noqa: PLR0917 - joined in wiring and nowhere else
    app: App,
    host: str,
    port: int,
    limits: ClientLimits,
    on_surplus: Callable[[], None],
    tls: ssl.SSLContext | None = None,
) -> ClientListener:
    manager = ClientServer(app.handle, limits=limits, on_surplus=on_surplus)
    # A handshake is what a head is: nothing is served before it, so it gets the same time.
    handshake_s = limits.header_s if tls is not None else None
    server = await asyncio.get_running_loop().create_server(
        manager, host, port, backlog=BACKLOG, ssl=tls, ssl_handshake_timeout=handshake_s
    )
    return ClientListener(server, manager)


async def listen_pages(pages: web.Application, host: str, port: int) -> tuple[int, Callable[[], Awaitable[None]]]:
    """For probes and for the admin API. The port, and what closes it."""
    runner = web.AppRunner(pages, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, host, port)
    await site.start()
    return int(runner.addresses[0][1]), runner.cleanup
