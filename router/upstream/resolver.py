"""Addresses of nodes, looked up ahead of need: a call that waits for a resolver waits for somebody else's outage."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from router.fleet.node import NodeSpec

# Headless Services change with their pods; half a minute is what kube-dns itself keeps a name.
REFRESH_S = 30.0


class Resolver:
    """Last known address by host name. The prober refreshes, calls only read."""

    def __init__(self) -> None:
        self._addresses: dict[str, str] = {}
        self._looked_up_s: dict[str, float] = {}

    def address(self, node: NodeSpec) -> str:
        """The host itself until it was looked up once."""
        return self._addresses.get(node.host, node.host)

    async def refresh(self, node: NodeSpec, timeout_s: float) -> None:
        """Keeps the old address when the look-up fails: a dead resolver takes no node down."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked_up_s.get(node.host, -REFRESH_S) < REFRESH_S or _is_literal(node.host):
            return
        self._looked_up_s[node.host] = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                found = await loop.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError):
            return
        addresses = [str(entry[4][0]) for entry in found]
        if addresses and self._addresses.get(node.host) not in addresses:
            self._addresses[node.host] = addresses[0]

    def forget(self, host: str) -> None:
        self._addresses.pop(host, None)
        self._looked_up_s.pop(host, None)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
