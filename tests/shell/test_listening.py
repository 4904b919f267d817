"""Where a router is reached: `*` is every address of its machine, of both families."""

from __future__ import annotations

import asyncio
import socket

import pytest

from router.workers.port import reserved
from tests.ports import free_port
from tests.shell.house import router_before


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


async def status_line(host: str, port: int, path: str) -> bytes:
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"GET %b HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n" % path.encode())
    line = await reader.readline()
    writer.close()
    return line.rstrip()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
async def test_a_router_that_listens_everywhere_answers_clients_and_probes_of_both_families(host: str) -> None:
    clients, metrics = free_port(), free_port()
    async with router_before([], listen=f"*:{clients}", metrics_listen=f"*:{metrics}"):
        assert await status_line(host, clients, "/") == b"HTTP/1.1 200 OK"
        assert await status_line(host, metrics, "/livez") == b"HTTP/1.1 200 OK"


@needs_ipv6
def test_workers_hold_a_port_of_both_families_against_others() -> None:
    with reserved("", 0) as (_, port):
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket.socket(family) as other, pytest.raises(OSError, match="in use"):
                other.bind((host, port))
