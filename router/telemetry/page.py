"""The page that Prometheus reads, in slices; in its own text format or, for those who ask for it, in OpenMetrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

# A slice of a scrape: about a millisecond of work, then streams get the loop.
SLICE_BYTES = 64 * 1024
SLICE_PIECES = 250


def is_open(accept: str) -> bool:
    """Whether an Accept header asks for OpenMetrics, the only format with exemplars; Prometheus itself does."""
    return "application/openmetrics-text" in accept


def content_type(*, is_open: bool) -> str:
    return OPENMETRICS if is_open else CONTENT_TYPE_PLAIN_0_0_4


async def slices(pieces: Iterator[str], last: bytes) -> AsyncIterator[bytes]:
    """Between two of them everybody else gets the loop."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size >= SLICE_BYTES or len(held) >= SLICE_PIECES:
            yield "".join(held).encode()
            held, size = [], 0
            await asyncio.sleep(0)
    yield "".join(held).encode() + last


class ProcessPart:
    """prometheus_client's own metrics of the process, the platform and the collector; the last part of the page."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def text(self, *, is_open: bool) -> bytes:
        """With the mark that ends the page, in OpenMetrics."""
        if is_open:
            return bytes(generate_openmetrics(self._registry))  # type: ignore[no-untyped-call]
        return generate_latest(self._registry)
