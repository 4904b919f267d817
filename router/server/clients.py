"""All clients' connections of this process: they are counted, closed and ended here."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable

from router.server.client import ClientConnection, ClientLimits
from router.server.request import ClientRequest


class ClientServer:
    """Makes connections and knows those that are open, up to `limits.connections`."""

    def __init__(
        self,
        handle: Callable[[ClientRequest, ClientConnection], Awaitable[None]],
        *,
        limits: ClientLimits,
        on_surplus: Callable[[], None],
    ) -> None:
        self.handle = handle
        self.limits = limits
        self.on_surplus = on_surplus
        self.loop = asyncio.get_running_loop()
        self.connections: set[ClientConnection] = set()
        self.is_closing = False
        # Ids of what has no call: this start's own prefix, and a count.
        prefix, count = secrets.token_hex(6), itertools.count(1)
        self.fresh_id: Callable[[], str] = lambda: f"{prefix}-{next(count):x}"

    def __call__(self) -> ClientConnection:
        return ClientConnection(self)

    def __repr__(self) -> str:
        return f"<ClientServer {len(self.connections)} of {self.limits.connections} connections>"

    def close_idle(self) -> None:
        """Idle connections close now, the others when the call in hand has ended."""
        self.is_closing = True
        for connection in list(self.connections):
            connection.close_if_idle()

    async def shutdown(self) -> None:
        """Ends what is left, calls included, and returns when their tasks have ended."""
        tasks = [connection.task for connection in self.connections if connection.task is not None]
        for connection in list(self.connections):
            connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
