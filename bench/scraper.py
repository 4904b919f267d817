"""Asks for a page of metrics once a second, as Prometheus does, in a process of its own; says what it got.

Reads and does not parse: it shares its core with the load generator, whose delays it must not lengthen.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from types import FrameType

EVERY_S = 1.0
READ_BYTES = 256 * 1024
_REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: text/plain\r\nConnection: close\r\n\r\n"


def page(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(_REQUEST)
        parts = []
        while data := connection.recv(READ_BYTES):
            parts.append(data)
    return b"".join(parts)


def series(text: bytes) -> int:
    """Samples in a whole answer: a line of each, with a space before its number, which frames of chunks have not."""
    lines = text.partition(b"\r\n\r\n")[2].splitlines()
    return sum(b" " in line and not line.startswith(b"#") for line in lines)


def main() -> None:
    """A line a page: seconds, then bytes; at the end how many series the last one had."""
    parser = argparse.ArgumentParser(prog="python -m bench.scraper", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port = parser.parse_args().port
    signal.signal(signal.SIGTERM, _end)
    os.nice(10)
    text = b""
    try:
        while True:
            began_s = time.monotonic()
            text = page(port)
            took_s = time.monotonic() - began_s
            print(took_s, len(text), flush=True)
            time.sleep(max(0.0, EVERY_S - took_s))
    except KeyboardInterrupt:
        print(series(text), flush=True)


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
