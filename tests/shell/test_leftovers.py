"""What is over is gone at once: nothing of a connection or a call waits for the garbage collector, which comes late.

A body of 64 MiB hangs on the frames of its call, and the collector's oldest generation may stay for hours.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from router.admission import SlotHold
from router.seams import Call, Record
from router.server.client import ClientConnection
from router.server.inference import BodyReader
from router.server.reply import ClientReply
from router.server.request import ClientRequest
from router.upstream.connection import NodeConnection
from router.upstream.forward import Passage
from tests.fakes.raw_client import get, post, raw_client
from tests.shell.clients import Client, generate
from tests.shell.house import assert_at_rest, until
from tests.shell.scenes import ENDLESS, QUICK, SILENT, holding

KINDS = (ClientConnection, ClientReply, ClientRequest, BodyReader, Call, Record, SlotHold, Passage, NodeConnection)


@pytest.fixture
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> Counter[str]:
    return Counter(type(each).__name__ for each in gc.get_objects() if type(each) in KINDS)


@pytest.mark.usefixtures("_no_collector")
@pytest.mark.parametrize(
    ("sent", "until_it_says"),
    [
        (b"", b""),
        (b"GET / HT", b""),
        (b"\x16\x03\x01\r\n\r\n", b"400 Bad Request"),
        (get("/api/tags"), b"]}"),
        (post("/api/generate", b'{"model":"quick:1b"}')[:-1], b""),
        (post("/api/generate", b'{"model":"nobody:1b"}'), b"not found"),
        (post("/api/generate", b'{"model":"quick:1b","prompt":"?","stream":false}'), b'"done":true'),
        (post("/api/generate", b'{"model":"endless:1b","prompt":"?"}'), b'"done":false'),
        (post("/api/generate", b'{"model":"silent:1b","prompt":"?"}'), b""),
    ],
    ids=["nothing", "half a head", "no HTTP", "a page", "half a body", "refused", "answered", "streaming", "prefill"],
)
async def test_a_client_that_leaves_leaves_nothing_for_the_collector(sent: bytes, until_it_says: bytes) -> None:
    async with holding(1, QUICK, ENDLESS, SILENT, slots=8) as (_, router):
        for number in range(3):
            before = alive()
            async with Client(router.port) as client:
                client.send_raw(sent)
                await client.first(until_it_says)
                body = sent.partition(b"\r\n\r\n")[2]
                await until(lambda body=body: not body or b"HTTP/1.1" in client.got or bool(router.pipeline.live))
            await until(lambda: not (router.pipeline.live or router.connections.busy or router.listener.connections))
            if number:  # the first has connections made that are kept
                await until(lambda before=before: not alive() - before)
        await until(lambda: not router.pipeline.live)
        assert_at_rest(router)


@pytest.mark.usefixtures("_no_collector")
async def test_a_client_that_leaves_its_line_leaves_nothing_for_the_collector() -> None:
    async with holding(1, ENDLESS, slots=1) as (_, router), AsyncExitStack() as stack:
        first = await stack.enter_async_context(Client(router.port))
        first.send("/api/generate", {"model": ENDLESS, "prompt": "?"})
        await first.first(b'"done":false')
        before = alive()
        async with raw_client(router.port) as second:
            second.send(post("/api/generate", b'{"model":"endless:1b","prompt":"?"}'))
            await until(lambda: "1 waiting" in repr(router.pipeline))
        await until(lambda: not alive() - before)


FILES_OF_NODES = 16  # kept connections to the node, both their ends
OPENED = 500  # 10,000 in two seconds cost 40 MB for as long as they stay; here descriptors are shared with the tests


@pytest.mark.usefixtures("_no_collector")
async def test_hundreds_of_connections_opened_and_left_are_gone_and_were_no_hindrance() -> None:
    async with holding(1, QUICK) as (_, router):
        files, before = open_files(), alive()
        async with AsyncExitStack() as stack:
            for number in range(OPENED):
                client = await stack.enter_async_context(Client(router.port))
                client.send_raw((b"", b"GET / HT", get("/"), post("/api/generate", b"{}")[:-1])[number % 4])
            await until(lambda: router.listener.connections == OPENED)
            assert (await generate(router, QUICK)).status == 200
        await until(lambda: not (router.listener.connections or router.pipeline.live))
        await until(lambda: not alive() - before - Counter({"NodeConnection": 1}))
        await until(lambda: open_files() < files + FILES_OF_NODES)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
