"""Keep-alive connections per node. Names are resolved before, by the prober: a dead resolver must not stall calls."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from router.fleet.node import NodeSpec
from router.policy.retry import Failure
from router.upstream.access import NodeAccess, is_local_error, tls_text
from router.upstream.connection import NodeConnection
from router.upstream.moderation import Moderation
from router.wire.headers import Pair

# Ollama never closes idle connections; what we keep is bounded so that a burst leaves no thousand sockets behind.
IDLE_PER_NODE_MAX = 64


class ConnectFailed(Exception):
    """No connection: `failure` says refused, out of reach, not to be trusted, closed at once, or our own lack."""

    def __init__(self, failure: Failure, text: str) -> None:
        super().__init__(text)
        self.failure = failure
        self.text = text


class ConnectionPool:
    """Connections by node name. Owns every connection it made, until `close`. `connect_s` may be set anew."""

    def __init__(
        self,
        *,
        connect_s: float,
        resolve: Callable[[NodeSpec], Sequence[str]],
        access: Callable[[NodeSpec], NodeAccess],
    ) -> None:
        self.connect_s = connect_s
        self._resolve = resolve
        self._access = access
        self._moderation = Moderation()
        self._idle: dict[str, deque[NodeConnection]] = {}
        self._reached: dict[str, str] = {}  # the address that took the last connection, by node
        self._live: dict[NodeConnection, str | None] = {}  # None: its node was dropped
        self._opening: dict[object, str | None] = {}  # by connect in hand; None: its node was dropped meanwhile

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

    def credentials(self, node: NodeSpec) -> Sequence[Pair]:
        return self._access(node).credentials

    async def connect(self, node: NodeSpec) -> NodeConnection:
        """Raises ConnectFailed; cancelled, it leaves nothing behind."""
        try:
            return await self._connect(node)
        except ConnectFailed as failed:
            if failed.failure is not Failure.LOCAL or not self._close_idle():
                raise
        # What idle connections held is free after one turn of the loop.
        await asyncio.sleep(0)
        return await self._connect(node)

    async def _connect(self, node: NodeSpec) -> NodeConnection:
        """Tries the node's addresses in turn, within `connect_s` in all."""
        token = object()
        self._opening[token] = node.name
        try:
            address, connection = await self._open(node)
            name = self._opening[token]
        finally:
            del self._opening[token]
        # Once its node was dropped it serves the call in hand, and nobody else: the name may mean another server now.
        self._live[connection] = name
        if name is not None:
            self._reached[name] = address
        return connection

    async def _open(self, node: NodeSpec) -> tuple[str, NodeConnection]:
        tls = self._access(node).tls
        due_s = asyncio.get_running_loop().time() + self.connect_s
        reached = self._reached.get(node.name)
        addresses = sorted(self._resolve(node), key=lambda address: address != reached)
        failures: list[ConnectFailed] = []
        for number, address in enumerate(addresses):
            # A fair share each: an address that swallows packets leaves time for the next.
            left_s = due_s - asyncio.get_running_loop().time()
            try:
                return address, await self._connect_to(address, node, tls, left_s / (len(addresses) - number))
            except ConnectFailed as failed:
                failures.append(failed)
        raise _summed(failures)

    async def _connect_to(
        self, address: str, node: NodeSpec, tls: ssl.SSLContext | None, within_s: float
    ) -> NodeConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(within_s):
                _, connection = await loop.create_connection(
                    lambda: NodeConnection(self._went_idle, self._lost, self._moderation),
                    address,
                    node.port,
                    ssl=tls,
                    server_hostname=node.host if node.is_tls else None,
                )
        except TimeoutError:
            raise ConnectFailed(Failure.CONNECT_TIMEOUT, f"no connection within {self.connect_s:g} s") from None
        except (ssl.SSLError, ssl.CertificateError) as error:
            raise ConnectFailed(Failure.TLS, tls_text(error)) from error
        except OSError as error:
            raise ConnectFailed(_failure_of(error), error.strerror or str(error)) from error
        if not connection.is_reusable:
            # Lost before we were told of it: `_lost` has been, and must find nothing to forget later.
            connection.close()
            raise ConnectFailed(Failure.CLOSED, "the node closed the connection at once")
        return connection

    def drop_node(self, name: str) -> None:
        """Closes what is idle; busy connections end with their calls and are not kept."""
        self._reached.pop(name, None)
        for connection in self._idle.pop(name, ()):
            connection.close()
        for mine in (self._live, self._opening):
            for key, of in mine.items():
                if of == name:
                    mine[key] = None  # type: ignore[index]

    async def close(self) -> None:
        for connection in list(self._live):
            connection.close()
        self._idle.clear()
        # One turn of the loop lets the transports close before it stops.
        await asyncio.sleep(0)

    def _went_idle(self, connection: NodeConnection) -> None:
        name = self._live.get(connection)
        if name is None:
            connection.close()
            return
        idle = self._idle.setdefault(name, deque())
        if len(idle) >= IDLE_PER_NODE_MAX:
            idle.popleft().close()
        idle.append(connection)

    def _close_idle(self) -> bool:
        """All of them, of every node: each is a descriptor that a call wants now. False where there are none."""
        idle = [connection for waiting in self._idle.values() for connection in waiting]
        for connection in idle:
            connection.close()
        return bool(idle)

    def _lost(self, connection: NodeConnection) -> None:
        name = self._live.pop(connection, None)
        if name is not None and name in self._idle:
            with suppress(ValueError):
                self._idle[name].remove(connection)


def _failure_of(error: OSError) -> Failure:
    if isinstance(error, ConnectionRefusedError):
        return Failure.CONNECT_REFUSED
    return Failure.LOCAL if is_local_error(error) else Failure.CONNECT_TIMEOUT


def _summed(failures: Sequence[ConnectFailed]) -> ConnectFailed:
    """Refused, or our own lack, only where every address says so."""
    kinds = {failed.failure for failed in failures}
    texts = "; ".join(dict.fromkeys(failed.text for failed in failures))
    return ConnectFailed(kinds.pop() if len(kinds) == 1 else Failure.CONNECT_TIMEOUT, texts)
