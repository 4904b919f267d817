"""File descriptors: as many as the kernel lets us have, and how many connections fit into them."""

from __future__ import annotations

import resource

# Log, listeners, timers, the sockets of /metrics, and what libraries open for a moment.
FILES_BESIDE = 128
# Its probe and a load; a node's calls are counted with their clients.
FILES_PER_NODE = 2
# What discovery may bring, for want of a number at the start: more than most pools have.
NODES_DISCOVERED = 64
# A client's connection, and the one to the node that serves its call.
FILES_PER_CONNECTION = 2


def connections_within(wanted: int, nodes: int) -> tuple[int, int]:
    """How many client connections can be served, `wanted` at most, and the descriptors there are.

    Raises this process's own limit as far as it may. Below `wanted` the connection limit answers with 503, where
    otherwise `accept` would fail, and connections to nodes with it.
    """
    beside = FILES_BESIDE + FILES_PER_NODE * nodes
    needed = FILES_PER_CONNECTION * wanted + beside
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < needed and soft != resource.RLIM_INFINITY:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return wanted, needed
    return max(1, min(wanted, (soft - beside) // FILES_PER_CONNECTION)), soft
