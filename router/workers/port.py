"""The port that all workers listen on, held by their parent: nobody else takes it between two of their lives."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def reserved(host: str, port: int) -> Iterator[tuple[str, int]]:
    """Host and port, a free one for 0. Refuses with OSError where anybody listens there, other workers included.

    What is bound and does not listen gets no connection: the kernel spreads them over the workers.
    """
    with ExitStack() as stack:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(found):
            one = stack.enter_context(socket.socket(family, kind, protocol))
            port = _bind(one, (address[0], port, *address[2:]))
        yield host, port


def _bind(one: socket.socket, address: tuple[str | int, ...]) -> int:
    # Over what a closed connection leaves behind for a minute, but beside no listener.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio listens
    try:
        one.bind(address)
    except OSError as error:
        text = f"error while attempting to bind on address {address[:2]}: {(error.strerror or str(error)).lower()}"
        raise OSError(error.errno, text) from None
    # From here on workers of ours may listen, and a second parent may not: it asks for the port alone, as we did.
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return int(one.getsockname()[1])
