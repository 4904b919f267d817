"""Connections to a server of the store as an address wants them, and what is said of those that fail."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, RedisError, ResponseError

from router.store.redis.address import Address, Login, Server


def client(address: Address, server: Server, timeout_s: float | None) -> Redis:
    """Of one connection, made when it is first used. Refuses with OSError: the password cannot be read."""
    url = address.url
    return _client(address, server, timeout_s, Login(url.user, address.password_file), url.db)


def sentinel(address: Address, server: Server) -> Redis:
    return _client(address, server, address.timeout_s, address.sentinels, 0)


async def end(client: Redis | None) -> None:
    """What stands in its way, such as a peer that takes nothing, is no concern of ours any more."""
    if client is None:
        return
    closing = asyncio.create_task(_close(client), name="close redis")
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        # Cancelled before its first step it would close nothing, and the event loop waits for ever for what is open.
        await asyncio.wait([closing])
        raise


async def _close(client: Redis) -> None:
    with suppress(RedisError, OSError, TimeoutError):
        await client.aclose()


def told(error: BaseException) -> str:
    """For an operator."""
    if isinstance(error, AskError):
        return "the pool's slot is on its way to another server"
    if isinstance(error, ResponseError):
        return f"refused: {error}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__


def _client(address: Address, server: Server, timeout_s: float | None, login: Login, db: int) -> Redis:
    tls: dict[str, Any] = {}
    if address.url.is_tls:
        tls = {
            "ssl": True,
            "ssl_cert_reqs": "required",
            "ssl_ca_certs": address.ca_file,
            "ssl_certfile": address.cert_file,
            "ssl_keyfile": address.key_file,
            "ssl_password": "",  # without one a key that wants a passphrase would be asked for on the terminal
        }
    return Redis(
        host=server.host,
        port=server.port,
        db=db,
        username=login.user,
        password=login.password(),
        socket_timeout=timeout_s,
        socket_connect_timeout=address.timeout_s,
        retry=Retry(NoBackoff(), 0),
        client_name=f"ollama-router-{address.pool}",
        max_connections=1,
        **tls,
    )
