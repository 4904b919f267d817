"""What it takes to be let in by a node, beside its address: trust in its certificate, and credentials.

Made ahead of need, when configuration or a file that it names has changed: building a TLS context reads files and takes
tens of milliseconds.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field

from router.fleet.node import NodeSpec
from router.wire.headers import Pair

# What this host lacks, not the node: descriptors, memory, ports or an address of its own. No node is to blame.
LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOMEM, errno.ENOBUFS})
_LOCAL_LOOKUPS = frozenset({socket.EAI_SYSTEM, socket.EAI_MEMORY})


@dataclass(frozen=True, slots=True)
class NodeAccess:
    """`tls` is None for a node without TLS. Credentials are in no repr: these end in logs."""

    tls: ssl.SSLContext | None = None
    credentials: tuple[Pair, ...] = field(default=(), repr=False)


PLAIN = NodeAccess()


class AccessBook:
    """By node and URL: a name that moves to another URL never takes its new credentials to the old one.

    Entries of the set before stay until the next one, for calls that are on their way to a node that just left.
    """

    def __init__(self) -> None:
        self._current: Mapping[tuple[str, str], NodeAccess] = {}
        self._before: Mapping[tuple[str, str], NodeAccess] = {}
        self._default: ssl.SSLContext | None = None
        self._is_plain = True  # nobody needs anything: asked for every call, and most pools are so

    def __repr__(self) -> str:
        return f"<AccessBook {len(self._current)} nodes>"

    def of(self, node: NodeSpec) -> NodeAccess:
        if self._is_plain and not node.is_tls:
            return PLAIN
        key = (node.name, node.url)
        found = self._current.get(key) or self._before.get(key)
        if found is not None:
            return found
        return NodeAccess(self._system_trust()) if node.is_tls else PLAIN

    def replace(self, entries: Mapping[tuple[str, str], NodeAccess]) -> None:
        if entries != self._current:
            self._before, self._current = self._current, entries
            self._is_plain = all(access == PLAIN for access in (*self._before.values(), *entries.values()))

    def _system_trust(self) -> ssl.SSLContext:
        if self._default is None:
            self._default = trusting("")
        return self._default


def trusting(ca_pem: str) -> ssl.SSLContext:
    """A client's context that checks chain and host name; by the system's authorities without `ca_pem`.

    Raises ssl.SSLError where the text holds no certificate.
    """
    context = ssl.create_default_context(cadata=ca_pem or None)
    context.set_alpn_protocols(["http/1.1"])
    return context


def is_local_error(error: OSError) -> bool:
    if isinstance(error, socket.gaierror):
        return error.errno in _LOCAL_LOOKUPS
    return error.errno in LOCAL_ERRORS and not isinstance(error, ssl.SSLError)


def tls_text(error: ssl.SSLError | ssl.CertificateError) -> str:
    """What is wrong with the node's TLS, without OpenSSL's file and line."""
    told = getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
    return f"TLS: {told}"
