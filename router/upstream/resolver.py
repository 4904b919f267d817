"""Addresses of nodes, looked up ahead of need: a call that waits for a resolver waits for somebody else's outage."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from router.fleet.node import NodeSpec

# Headless Services change with their pods; half a minute is what kube-dns itself keeps a name.
REFRESH_S = 30.0
# More than a node's interfaces; a name that stands for a whole fleet must not stretch one connect over all of it.
ADDRESSES_MAX = 8


class Resolver:
    """Last known addresses by host name. The prober refreshes, calls only read."""

    def __init__(self) -> None:
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._looked_up_s: dict[str, float] = {}

    def addresses(self, node: NodeSpec) -> tuple[str, ...]:
        """In the order to try them; the host itself until it was looked up once."""
        return self._addresses.get(node.host, (node.host,))

    async def refresh(self, node: NodeSpec, timeout_s: float) -> None:
        """Keeps the old addresses when the look-up fails: a dead resolver takes no node down."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._looked_up_s.get(node.host, -REFRESH_S) < REFRESH_S or _is_literal(node.host):
            return
        self._looked_up_s[node.host] = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                found = await loop.getaddrinfo(node.host, node.port, type=socket.SOCK_STREAM)
        except (OSError, TimeoutError):
            return
        # All of them: a name may lead to ::1 first while the node listens on 127.0.0.1 only.
        addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))[:ADDRESSES_MAX]
        if addresses:
            self._addresses[node.host] = addresses


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
