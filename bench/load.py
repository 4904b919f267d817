"""The load generator: raw protocols on uvloop, so that the core it shares with the stub is enough."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, repeat
from typing import TypeVar

import httptools

from bench.pacer import Pacer
from bench.stub import MODEL, STAMP_DIGITS

CONNECTIONS = 32  # of the closed loop
IDLE_CONNECTIONS = 64  # of the open loop; a request that finds none idle waits, and its waiting counts
OPENED_AT_ONCE = 50  # below every contender's listen backlog
FIRST_CHUNK_S_MAX = 20.0
SETTLE_S_MAX = 20.0
_MARK = b'"content":"'
_LAST_CHUNK = b"\r\n0\r\n\r\n"

CpuClock = Callable[[], int]
Ports = Sequence[int]
C = TypeVar("C", bound=asyncio.Protocol)


@dataclass(slots=True)
class Run:
    """One measured window. Delays are microseconds; `cpu_ns` is what the contender used in the window."""

    count: int = 0
    errors: int = 0
    seconds: float = 0.0
    cpu_ns: int = 0
    delays_us: list[float] = field(default_factory=list)
    is_counting: bool = False
    is_over: bool = False
    error: str = ""

    @property
    def cpu_us_each(self) -> float:
        return self.cpu_ns / 1000 / self.count if self.count else float("nan")

    def fail(self, text: str) -> None:
        if not self.is_over:
            self.errors += 1
            self.error = self.error or text

    async def window(self, seconds: float, cpu: CpuClock) -> None:
        began_ns, cpu_before = time.monotonic_ns(), cpu()
        self.is_counting = True
        await asyncio.sleep(seconds)
        self.is_counting = False
        self.cpu_ns = cpu() - cpu_before
        self.seconds = (time.monotonic_ns() - began_ns) / 1e9


def plain_request(model: str = MODEL) -> bytes:
    body = (
        b'{"model":"%b","messages":[{"role":"user","content":"Why is the sky blue?"}],'
        b'"max_tokens":8,"seed":7,"temperature":0}' % model.encode()
    )
    return _request(body)


def stream_request(chunks: int, rate: int, model: str = MODEL) -> bytes:
    body = (
        b'{"model":"%b","messages":[{"role":"user","content":"Why is the sky blue? %d/s"}],'
        b'"max_tokens":%d,"seed":7,"temperature":0,"stream":true}' % (model.encode(), rate, chunks)
    )
    return _request(body)


def _request(body: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Accept: */*\r\nUser-Agent: bench\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


class PlainClient(asyncio.Protocol):
    """A keep-alive connection; tells `done` of every whole answer, with the nanosecond at which it was sent."""

    def __init__(self, run: Run, request: bytes, done: Callable[[PlainClient, int], None]) -> None:
        self._run = run
        self._request = request
        self._done = done
        self._parser = httptools.HttpResponseParser(self)
        self._sent_ns = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._run.fail(f"connection lost: {exc}")

    def send(self, since_ns: int | None = None) -> None:
        if self.transport is not None:
            self._sent_ns = time.monotonic_ns() if since_ns is None else since_ns
            self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != 200:
            self._run.fail(f"status {status}")
        self._done(self, self._sent_ns)


async def plain(ports: Ports, seconds: float, warm_s: float, cpu: CpuClock, *, connections: int = CONNECTIONS) -> Run:
    """Closed loop: every connection sends the next request when its answer has ended."""
    run = Run()

    def done(client: PlainClient, sent_ns: int) -> None:
        if run.is_counting:
            run.count += 1
        if not run.is_over:
            client.send()

    clients = await _connect(ports, [PlainClient(run, plain_request(), done) for _ in range(connections)])
    for client in clients:
        client.send()
    await asyncio.sleep(warm_s)
    await run.window(seconds, cpu)
    _close(run, clients)
    return run


async def paced(ports: Ports, rate: float, seconds: float, warm_s: float, cpu: CpuClock, seed: int) -> Run:
    """Open loop: Poisson arrivals, whatever the answers do. A delay counts from the sending."""
    run = Run()
    idle: list[PlainClient] = []
    waiting: deque[int] = deque()

    def done(client: PlainClient, sent_ns: int) -> None:
        if run.is_counting:
            run.count += 1
            run.delays_us.append((time.monotonic_ns() - sent_ns) / 1000)
        if waiting:
            client.send(waiting.popleft())
        else:
            idle.append(client)

    clients = await _connect(ports, [PlainClient(run, plain_request(), done) for _ in range(IDLE_CONNECTIONS)])
    idle.extend(clients)
    rng = random.Random(seed)

    def arrive(number: int) -> None:
        for _ in range(number):
            if idle:
                idle.pop().send()
            else:
                waiting.append(time.monotonic_ns())

    pacer = Pacer(asyncio.get_running_loop(), arrive)
    pacer.start(rng.expovariate(rate) for _ in repeat(None))
    await asyncio.sleep(warm_s)
    await run.window(seconds, cpu)
    pacer.stop()
    _close(run, clients)
    return run


class StreamClient(asyncio.Protocol):
    """Counts chunks by the stamps in them; parses nothing else."""

    def __init__(self, run: Run, started: Callable[[], None]) -> None:
        self._run = run
        self._started: Callable[[], None] | None = started
        self._tail = b""
        self._is_answered = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._run.fail(f"stream lost: {exc}")

    def data_received(self, data: bytes) -> None:
        now_us = time.monotonic_ns() // 1000
        run = self._run
        if not self._is_answered:
            self._is_answered = True
            if not data.startswith(b"HTTP/1.1 200"):
                run.fail(data[:60].decode("latin-1"))
        if self._tail:
            data, self._tail = self._tail + data, b""
        at = data.find(_MARK)
        while at >= 0:
            start = at + len(_MARK)
            stamp = data[start : start + STAMP_DIGITS]
            if len(stamp) < STAMP_DIGITS:
                self._tail = data[at:]
                return
            if run.is_counting:
                run.count += 1
                run.delays_us.append(now_us - int(stamp))
            if self._started is not None:
                self._started()
                self._started = None
            at = data.find(_MARK, start)
        if not data.endswith(b"\n"):
            self._tail = data[1 - len(_MARK) :]


class EndlessClient(StreamClient):
    """Sends its request again when the answer has ended."""

    def __init__(self, run: Run, request: bytes) -> None:
        super().__init__(run, lambda: None)
        self._request = request

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if data.endswith(_LAST_CHUNK) and not self._run.is_over and self.transport is not None:
            self.transport.write(self._request)


async def short_streams(
    ports: Ports, number: int, rate: int, chunks: int, seconds: float, warm_s: float, cpu: CpuClock
) -> Run:
    """`number` streams at once, one after another on each connection: what their starts and ends cost is in it."""
    run = Run()
    request = stream_request(chunks, rate)
    clients = await _connect(ports, [EndlessClient(run, request) for _ in range(number)])
    for client in clients:
        assert client.transport is not None
        client.transport.write(request)
        await asyncio.sleep(chunks / rate / number)  # so that they do not all end at once
    await asyncio.sleep(warm_s)
    await run.window(seconds, cpu)
    _close(run, clients)
    return run


async def streams(
    ports: Ports, number: int, rate: int, seconds: float, warm_s: float, cpu: CpuClock, model: str = MODEL
) -> Run:
    """`number` streams at once, `rate` chunks a second each, that outlast the window: starts and ends stay outside."""
    run = Run()
    all_started = asyncio.Event()
    started = 0

    def one_started() -> None:
        nonlocal started
        started += 1
        if started == number:
            all_started.set()

    chunks = int(rate * (seconds + warm_s + FIRST_CHUNK_S_MAX) * 2)
    request = stream_request(chunks, rate, model)
    clients: list[StreamClient] = []
    for begin in range(0, number, OPENED_AT_ONCE):
        batch = [StreamClient(run, one_started) for _ in range(min(OPENED_AT_ONCE, number - begin))]
        for client in await _connect(ports, batch):
            assert client.transport is not None
            client.transport.write(request)
            clients.append(client)
    try:
        async with asyncio.timeout(FIRST_CHUNK_S_MAX):
            await all_started.wait()
    except TimeoutError:
        run.fail(f"only {started} of {number} streams began")
    await asyncio.sleep(warm_s)
    await run.window(seconds, cpu)
    _close(run, clients)
    return run


async def _connect(ports: Ports, clients: list[C]) -> list[C]:
    """By turns, where a contender is several replicas."""
    loop = asyncio.get_running_loop()
    # Not a bare lambda: it would see only the last client.
    opening = (
        loop.create_connection(partial(_same, client), "127.0.0.1", port)
        for client, port in zip(clients, cycle(ports), strict=False)
    )
    await asyncio.gather(*opening)
    return clients


def _same(client: C) -> C:
    return client


def _close(run: Run, clients: Sequence[PlainClient | StreamClient]) -> None:
    run.is_over = True
    for client in clients:
        if client.transport is not None:
            client.transport.abort()


async def exchange(port: int, request: bytes) -> bytes:
    """One request on its own connection, up to the end of its message; raises OSError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        return await _message(reader)
    finally:
        writer.close()


async def _message(reader: asyncio.StreamReader) -> bytes:
    """Head and body, framing taken off."""
    ended = False
    parts: list[bytes] = []

    class Sink:
        def on_body(self, data: bytes) -> None:
            parts.append(data)

        def on_message_complete(self) -> None:
            nonlocal ended
            ended = True

    parser = httptools.HttpResponseParser(Sink())
    head = await reader.readuntil(b"\r\n\r\n")
    parser.feed_data(head)
    while not ended:
        data = await reader.read(65536)
        if not data:
            break
        parser.feed_data(data)
    return head + b"".join(parts)


async def settle(stub_port: int) -> bool:
    """Waits until the node runs no stream any more; False when it still does after SETTLE_S_MAX."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + SETTLE_S_MAX
    while loop.time() < end_s:
        answer = await exchange(stub_port, b"GET /bench/running HTTP/1.1\r\nHost: localhost\r\n\r\n")
        if answer.endswith(b"\r\n\r\n0"):
            return True
        await asyncio.sleep(0.05)
    return False
