"""The clients' door: when it opens, and what is said as it does."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from dataclasses import replace

from router import meaning
from router.errors import Rejection
from router.lifecycle import Loops
from router.policy.access import NO_TEAM
from router.reload import Parts
from router.server.app import App
from router.server.descriptors import connections_within
from router.server.listen import Berth, ClientListener, Doors, listen_clients
from router.settings import Settings, host_port, is_loopback

log = logging.getLogger("router")


async def look_first(worker: Berth, parts: Parts, loops: Loops) -> None:
    """Before the kernel sends it clients: those whom this worker could not serve yet, another one can."""
    await loops.first_of(parts.prober.has_looked)
    for name in worker.drained:
        await parts.keeper.drain(name)


async def open_to_clients(
    stack: AsyncExitStack, app: App, settings: Settings, doors: Doors, parts: Parts, *, nodes: int
) -> ClientListener:
    """`nodes` as many as may be: each takes descriptors, and what is left is for clients."""
    limits = meaning.client_limits(settings)
    fitting, files = connections_within(limits.connections, nodes)
    if fitting < limits.connections:
        text = "client.connections is %d instead of %d: this process may open %d files, and a call takes two"
        log.warning(text, fitting, limits.connections, files)
        limits = replace(limits, connections=fitting)
    listener = await listen_clients(
        app,
        doors,
        limits,
        on_surplus=lambda: parts.metrics.refused(Rejection.CONNECTIONS, NO_TEAM),
        tls=parts.tls.context if parts.tls is not None else None,
    )
    stack.push_async_callback(listener.shutdown)
    stack.push_async_callback(listener.close)
    _warn_if_open(settings)
    return listener


def _warn_if_open(settings: Settings) -> None:
    """Open as Ollama is; but Ollama listens on loopback, and a pool of machines is worth more to a stranger."""
    if not settings.auth.required and not is_loopback(host_port(settings.listen)[0]):
        log.warning(
            "open to everybody who reaches %s: auth.required is false. Give teams keys and set it (docs/teams.md), or "
            "listen on loopback behind something that asks",
            settings.listen,
        )
