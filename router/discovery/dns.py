"""Headless Services by their names: every address is a node. Needs no rights; knows neither zones nor who leaves."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from router.discovery.backoff import pause_s
from router.fleet.node import NodeSpec

log = logging.getLogger(__name__)

Address = tuple[str, int]
LookUp = Callable[[str, int], Awaitable[tuple[str, ...]]]

# What kube-dns lets a headless name live; a pod that comes is served within two probes of that.
LOOK_S = 5.0
LOOK_UP_S = 4.0
# A resolver that starts knows no names for a moment: so many looks in a row, before a name that had addresses has none.
GONE_LOOKS = 3
ADDRESSES_MAX = 1_000  # of one name; more do not fit into a DNS answer


class DnsDiscovery:
    """`on_error` hears of each failure's reason. A name that cannot be looked up keeps its addresses."""

    source = "dns"

    def __init__(
        self,
        hosts: tuple[Address, ...],
        *,
        on_error: Callable[[str], None],
        rng: random.Random,
        look_up: LookUp | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._hosts = hosts
        self._on_error = on_error
        self._rng = rng
        self._look_up = look_up or resolved
        self._pause = pause
        self._wall = wall
        self.synced_at_s: float | None = None  # when every name was looked up
        self._addresses: dict[Address, tuple[str, ...]] = {}
        self._fails: dict[Address, int] = {}
        self._gone: dict[Address, int] = {}
        self._troubles: dict[Address, str] = {}

    def __repr__(self) -> str:
        return f"<DnsDiscovery {self._addresses}>"

    @property
    def trouble(self) -> str:
        return "; ".join(self._troubles.values())

    async def watch(self) -> AsyncGenerator[tuple[NodeSpec, ...], None]:
        last: tuple[NodeSpec, ...] | None = None
        while True:
            await asyncio.gather(*(self._look(host) for host in self._hosts))
            if not self._fails:
                self.synced_at_s = self._wall()
            nodes = self._nodes()
            if nodes != last and len(self._addresses) == len(self._hosts):
                last = nodes
                yield nodes
            worst = max(self._fails.values(), default=0)
            await self._pause(max(LOOK_S, pause_s(worst, self._rng)) if worst else LOOK_S)

    async def _look(self, host: Address) -> None:
        try:
            async with asyncio.timeout(LOOK_UP_S):
                found = await self._look_up(*host)
        except (OSError, TimeoutError) as error:
            self._failed(host, error)
            return
        self._fails.pop(host, None)
        if self._troubles.pop(host, None) is not None:
            log.info("discovery: %s can be looked up again", host[0])
        if found or self._has_gone(host):
            self._addresses[host] = found[:ADDRESSES_MAX]
            self._gone.pop(host, None)

    def _has_gone(self, host: Address) -> bool:
        """A name without addresses is a Service without pods, if it stays so."""
        self._gone[host] = self._gone.get(host, 0) + 1
        return not self._addresses.get(host) or self._gone[host] >= GONE_LOOKS

    def _failed(self, host: Address, error: Exception) -> None:
        self._fails[host] = self._fails.get(host, 0) + 1
        self._on_error("dns")
        text = f"{host[0]} cannot be looked up: {error or 'no answer'}"
        if host not in self._troubles:
            log.warning("discovery: %s; the nodes that are known stay", text)
        self._troubles[host] = text

    def _nodes(self) -> tuple[NodeSpec, ...]:
        """Named by address: a name of its own no pod has here."""
        found = {(address, port) for (_, port), addresses in self._addresses.items() for address in addresses}
        nodes = (NodeSpec(name="", host=address, port=port) for address, port in found)
        return tuple(sorted((node.named(node.authority) for node in nodes), key=lambda node: node.name))


async def resolved(host: str, port: int) -> tuple[str, ...]:
    """Sorted addresses; none for a name that does not exist, or has none. Raises OSError where nobody could say."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            return ()
        raise
    return tuple(sorted({str(entry[4][0]) for entry in found}))
