"""Raw clients on sockets of their own: they read as far as they like, half-close, or leave in any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from router.telemetry.families import FAMILIES, PREFIX
from router.telemetry.words import is_told
from router.wiring import Router

WITHIN_S = 20.0  # for what must come at all


@dataclass(frozen=True, slots=True)
class Answer:
    """`is_whole`: its end was told by its framing, not by a close."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    is_whole: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def node(self) -> str:
        return self.headers.get("x-ollama-router-node", "")

    @property
    def refused(self) -> str:
        return self.headers.get("x-ollama-router-refused", "")


class Client:
    """One connection. `async with` ends it however it stands."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.got = b""  # of the answer in hand, head included

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def send(self, path: str, members: Mapping[str, Any], **headers: str) -> None:
        body = json.dumps(members).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: router", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send_raw("\r\n".join([*lines, "", ""]).encode() + body)

    def send_raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def first(self, what: bytes = b"\r\n\r\n") -> bytes:
        """Reads until this has come; what came is kept for `answer`."""
        async with asyncio.timeout(WITHIN_S):
            while what not in self.got:
                data = await self._reader.read(65536)
                assert data, f"closed before {what!r} came: {self.got!r}"
                self.got += data
        return self.got

    async def more(self) -> bytes:
        """Whatever comes next, with all that came before it."""
        async with asyncio.timeout(WITHIN_S):
            data = await self._reader.read(65536)
        assert data, f"closed: {self.got!r}"
        self.got += data
        return self.got

    async def answer(self) -> Answer:
        """The whole of the next answer, to its end or the connection's."""
        async with asyncio.timeout(WITHIN_S):
            while (answer := _parsed(self.got)) is None or not answer.is_whole:
                data = await self._reader.read(65536)
                if not data:
                    assert answer is not None, f"closed without an answer: {self.got!r}"
                    break
                self.got += data
        self.got = b""
        return answer

    async def is_closed(self) -> bool:
        """Waits for the end of the connection, whatever still comes."""
        async with asyncio.timeout(WITHIN_S):
            with suppress(ConnectionError):
                while await self._reader.read(65536):
                    pass
        return True

    def half_close(self) -> None:
        self._writer.write_eof()

    def leave(self) -> None:
        self._writer.transport.abort()


async def ask(router: Router, path: str, members: Mapping[str, Any], **headers: str) -> Answer:
    """One call on one connection."""
    async with Client(router.port) as client:
        client.send(path, members, connection="close", **headers)
        return await client.answer()


async def generate(router: Router, model: str, *, stream: bool = True, prompt: str = "Why?", **headers: str) -> Answer:
    return await ask(router, "/api/generate", {"model": model, "prompt": prompt, "stream": stream}, **headers)


async def converse(router: Router, model: str, conversations: int) -> list[Answer]:
    """One call of each, one after another: by affinity they spread over all nodes."""
    return [await generate(router, model, prompt=f"{number}: why?") for number in range(conversations)]


async def get(port: int, path: str) -> Answer:
    async with Client(port) as client:
        client.send_raw(f"GET {path} HTTP/1.1\r\nHost: router\r\nConnection: close\r\n\r\n".encode())
        return await client.answer()


class Scrape:
    """One page of /metrics, as Prometheus reads it. Labels say nothing but what `telemetry.words` has."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        assert not (strange := sorted(set(self._strange()))), strange

    def _strange(self) -> Iterator[tuple[str, str, str]]:
        for found in self.families.values():
            name = found.name.removeprefix(PREFIX)
            family = name if name in FAMILIES else f"{name}_total"
            for sample in found.samples if family in FAMILIES else ():
                for label, value in sample.labels.items():
                    if not is_told(family, label, value):
                        yield family, label, value

    def value(self, name: str, **labels: str) -> float:
        """The sum over all samples with these labels."""
        full = f"ollama_router_{name}"
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == full and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """The values that a label has, of samples that are not 0."""
        full = f"ollama_router_{name}"
        return {
            sample.labels[label]
            for family in self.families.values()
            for sample in family.samples
            if sample.name == full and sample.value
        }


async def scrape(router: Router) -> Scrape:
    answer = await get(router.metrics_port, "/metrics")
    assert answer.status == 200
    assert answer.is_whole
    return Scrape(answer.body.decode())


def _parsed(data: bytes) -> Answer | None:
    """None until the head is there."""
    head, found, rest = data.partition(b"\r\n\r\n")
    if not found:
        return None
    lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(": ") for line in lines[1:])
    headers = {name.lower(): value for name, _, value in pairs}
    status = int(lines[0].split()[1])
    if "chunked" in headers.get("transfer-encoding", ""):
        body, is_whole = _dechunked(rest)
    else:
        length = int(headers.get("content-length", "-1"))
        body, is_whole = rest, len(rest) == length
    return Answer(status, headers, body, is_whole)


def _dechunked(rest: bytes) -> tuple[bytes, bool]:
    body = b""
    while True:
        size, found, after = rest.partition(b"\r\n")
        if not found or len(after) < int(size, 16) + 2:
            return body, False
        if size == b"0":
            return body, True
        body, rest = body + after[: int(size, 16)], after[int(size, 16) + 2 :]
