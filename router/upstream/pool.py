"""Keep-alive connections per node. Names are resolved before, by the prober: a dead resolver must not stall calls."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from router.fleet.node import NodeSpec
from router.policy.retry import Failure
from router.upstream.connection import NodeConnection

# Ollama never closes idle connections; what we keep is bounded so that a burst leaves no thousand sockets behind.
IDLE_PER_NODE_MAX = 64


class ConnectFailed(Exception):
    """No connection: `failure` says refused or timed out."""

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure
        self.text = text


class ConnectionPool:
    """Connections by node name. Owns every connection it made, until `close`."""

    def __init__(self, *, connect_s: float, resolve: Callable[[NodeSpec], str]) -> None:
        self._connect_s = connect_s
        self._resolve = resolve
        self._idle: dict[str, deque[NodeConnection]] = {}
        self._live: dict[NodeConnection, str] = {}

    def __repr__(self) -> str:
        idle = sum(map(len, self._idle.values()))
        return f"<ConnectionPool {len(self._live) - idle} busy | {idle} idle | {len(self._idle)} nodes>"

    @property
    def busy(self) -> int:
        return len(self._live) - sum(map(len, self._idle.values()))

    def idle(self, node: NodeSpec) -> NodeConnection | None:
        """The connection used last: it is the least likely to have been closed by the other side."""
        waiting = self._idle.get(node.name)
        while waiting:
            connection = waiting.pop()
            if connection.is_reusable:
                return connection
        return None

    async def connect(self, node: NodeSpec, tls: ssl.SSLContext | None = None) -> NodeConnection:
        """Raises ConnectFailed. A cancelled connect leaves nothing behind."""
        loop = asyncio.get_running_loop()
        context = tls if tls is not None else True if node.is_tls else None
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_connection(
                    lambda: NodeConnection(self._went_idle, self._lost),
                    self._resolve(node),
                    node.port,
                    ssl=context,
                    server_hostname=node.host if node.is_tls else None,
                )
        except TimeoutError:
            raise ConnectFailed(Failure.CONNECT_TIMEOUT, f"no connection within {self._connect_s:g} s") from None
        except OSError as error:
            raise ConnectFailed(Failure.CONNECT_REFUSED, error.strerror or str(error)) from error
        self._live[connection] = node.name
        return connection

    def drop_node(self, name: str) -> None:
        """Closes what is idle; busy connections end with their calls and are not kept."""
        for connection in self._idle.pop(name, ()):
            connection.close()

    async def close(self) -> None:
        for connection in list(self._live):
            connection.close()
        self._idle.clear()
        # One turn of the loop lets the transports close before it stops.
        await asyncio.sleep(0)

    def _went_idle(self, connection: NodeConnection) -> None:
        name = self._live.get(connection)
        if name is None:
            return
        idle = self._idle.setdefault(name, deque())
        if len(idle) >= IDLE_PER_NODE_MAX:
            idle.popleft().close()
        idle.append(connection)

    def _lost(self, connection: NodeConnection) -> None:
        name = self._live.pop(connection, None)
        if name is not None and name in self._idle:
            with suppress(ValueError):
                self._idle[name].remove(connection)
