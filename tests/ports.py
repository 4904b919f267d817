"""Ports for servers that must know theirs before they start."""

import socket
from random import SystemRandom

HERE = "127.0.0.1"
BELOW_EPHEMERAL = range(20_000, 32_000)  # Linux gives outgoing connections 32768 and up: none takes it meanwhile


def free_port() -> int:
    """Free at the moment, and wanted by nothing but another call of this."""
    ports = SystemRandom()
    while True:
        port = ports.choice(BELOW_EPHEMERAL)
        try:
            socket.create_server((HERE, port)).close()
        except OSError:
            continue
        return port
