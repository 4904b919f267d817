"""A TLS proxy before a node: the test's own certificate on loopback, and the node's bytes as they are."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from router.simulation.node import SimulatedNode

CERTIFICATES = Path(__file__).parents[1] / "certificates"
CA = CERTIFICATES / "ca.pem"


def served(name: str) -> ssl.SSLContext:
    """With one of the certificates of tests/certificates."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / f"{name}.pem", CERTIFICATES / f"{name}.key")
    return context


def trusting_tests() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CA))


@asynccontextmanager
async def tls_before(node: SimulatedNode, certificate: str = "node", host: str = "127.0.0.1") -> AsyncIterator[int]:
    """The proxy's port."""
    tasks: set[asyncio.Task[None]] = set()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", node.server.port)
        ways = [_pass_on(reader, there_writer), _pass_on(there_reader, writer)]
        tasks.update(asyncio.create_task(way) for way in ways)

    server = await asyncio.start_server(relay, host, 0, ssl=served(certificate))
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.transport.abort()
