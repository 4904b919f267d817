"""A lean Ollama node: recorded shapes, one TCP write per chunk, thousands of streams from one timer.

How many chunks stands in `max_tokens` (`num_predict` on /api/chat), how fast in the prompt ("50/s"): both pass every
proxy. The content of a chunk is the microsecond of its sending, on the monotonic clock that all processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import time
from email.utils import formatdate

import httptools
import uvloop

from bench.measure import raise_open_files
from bench.pacer import Pacer, every

MODEL = "gemma3:270m"
DIGEST = "0804ca337e15873275fc6a868a68d95061ebe0c0c6a30047b3b588c8e3521649"
BLOB = "sha256-a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
STAMP_DIGITS = 15
TICK_S = 0.0002  # 10,000 chunks a second are two a tick
CHUNKS_DEFAULT = 8
RATE_DEFAULT = 1000
BACKLOG = 4096
_RATE = re.compile(r"(\d+)/s")

_DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "gemma3",
    "families": ["gemma3"],
    "parameter_size": "268.10M",
    "quantization_level": "Q4_K_M",
}
_V1_MODELS = {
    "object": "list",
    "data": [{"id": MODEL, "object": "model", "created": 1795396674, "owned_by": "library"}],
}


class Catalog:
    """What a node says of itself: so many models, all in its memory, each of weights of its own. MODEL is the first."""

    def __init__(self, models: int = 1) -> None:
        self._digests = {name_of(number): digest_of(number) for number in range(models)}
        self.pages: dict[str, bytes] = {
            "/": b"Ollama is running",
            "/health": b"{}",  # vllm-router asks for it
            "/api/version": b'{"version":"0.33.0"}',
            "/api/tags": json.dumps({"models": [_tag(*one) for one in self._digests.items()]}).encode(),
            "/api/ps": json.dumps({"models": [_ps(*one) for one in self._digests.items()]}).encode(),
            "/v1/models": json.dumps(_V1_MODELS).encode(),
            "/v1/traces": b"{}",  # as a collector that keeps nothing
        }

    def show(self, body: bytes) -> bytes:
        blob = BLOB if len(self._digests) == 1 else f"sha256-{self._digests[json.loads(body)['model']]}"
        modelfile = f"FROM /usr/share/ollama/.ollama/models/blobs/{blob}\nPARAMETER num_ctx 4096\n"
        return json.dumps(_SHOW | {"modelfile": modelfile}).encode()


def name_of(number: int) -> str:
    return MODEL if number == 0 else f"model-{number}:latest"


def digest_of(number: int) -> str:
    return DIGEST if number == 0 else f"{number:064x}"


def _tag(name: str, digest: str) -> dict[str, object]:
    return {
        "name": name,
        "model": name,
        "modified_at": "2026-11-23T01:15:51.264038989Z",
        "size": 253113589,
        "digest": digest,
        "details": _DETAILS | {"context_length": 32768, "embedding_length": 640},
        "capabilities": ["completion"],
    }


def _ps(name: str, digest: str) -> dict[str, object]:
    return {
        "name": name,
        "model": name,
        "size": 301926972,
        "digest": digest,
        "details": _DETAILS,
        "expires_at": "2318-01-01T00:00:00Z",
        "size_vram": 301926972,
        "context_length": 4096,
    }


_SHOW = {
    "details": _DETAILS,
    "model_info": {"general.architecture": "gemma3", "gemma3.context_length": 32768},
    "capabilities": ["completion"],
}

# Recordings openai/v1-chat, native/chat, openai/v1-chat-stream-usage, native/chat-stream; @ is the stamp's place.
_PLAIN_V1 = (
    b'{"id":"chatcmpl-610","object":"chat.completion","created":1795396672,"model":"gemma3:270m",'
    b'"system_fingerprint":"fp_ollama","choices":[{"index":0,"message":{"role":"assistant",'
    b'"content":"Why is the sky blue? mendatanguser"},"finish_reason":"length"}],'
    b'"usage":{"prompt_tokens":15,"completion_tokens":8,"total_tokens":23}}\n'
)
_PLAIN_NATIVE = (
    b'{"model":"gemma3:270m","created_at":"2026-11-23T01:17:47.522906485Z","message":{"role":"assistant",'
    b'"content":"Why is the sky blue? mendatanguser"},"done":true,"done_reason":"length","total_duration":262062327,'
    b'"load_duration":2150019,"prompt_eval_count":15,"prompt_eval_duration":48205000,"eval_count":8,'
    b'"eval_duration":206893000}'
)
_EVENT = (
    b'data: {"id":"chatcmpl-651","object":"chat.completion.chunk","created":1795396673,"model":"gemma3:270m",'
    b'"system_fingerprint":"fp_ollama","choices":'
)
_CHUNK_V1 = _EVENT + b'[{"index":0,"delta":{"content":"@"},"finish_reason":null}]}\n\n'
_FINISH_V1 = _EVENT + b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
_USAGE_V1 = _EVENT + b'[],"usage":{"prompt_tokens":15,"completion_tokens":%d,"total_tokens":%d}}\n\n'
_DONE = b"data: [DONE]\n\n"
_LINE = b'{"model":"gemma3:270m","created_at":"2026-11-23T01:17:47.645882753Z","message":{"role":"assistant","content":'
_CHUNK_NATIVE = _LINE + b'"@"},"done":false}\n'
_FINISH_NATIVE = _LINE + (
    b'""},"done":true,"done_reason":"length","total_duration":321647330,"load_duration":2165493,'
    b'"prompt_eval_count":15,"prompt_eval_duration":114891000,"eval_count":%d,"eval_duration":198698000}\n'
)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunk_halves(chunk: bytes) -> tuple[bytes, bytes]:
    """The framed chunk before and after its stamp."""
    before, after = framed(chunk.replace(b"@", b"0" * STAMP_DIGITS)).split(b"0" * STAMP_DIGITS)
    return before, after


_V1_HALVES = chunk_halves(_CHUNK_V1)
_NATIVE_HALVES = chunk_halves(_CHUNK_NATIVE)


class Wheel:
    """Fires every stream of one rate once per period, spread evenly over short ticks, as many models would be."""

    def __init__(self, loop: asyncio.AbstractEventLoop, rate: int) -> None:
        self._loop = loop
        self._slots: list[dict[Node, None]] = [{} for _ in range(max(1, round(1 / rate / TICK_S)))]
        self._joined = 0
        self._size = 0
        self._tick = 0
        self._pacer: Pacer | None = None

    def join(self, node: Node) -> dict[Node, None]:
        slot = self._slots[self._joined % len(self._slots)]
        self._joined += 1
        slot[node] = None
        self._size += 1
        if self._pacer is None:
            self._pacer = Pacer(self._loop, self._turn)
            self._pacer.start(every(TICK_S))
        return slot

    def leave(self, node: Node, slot: dict[Node, None]) -> None:
        del slot[node]
        self._size -= 1
        if self._size == 0 and self._pacer is not None:
            self._pacer.stop()
            self._pacer = None

    def _turn(self, ticks: int) -> None:
        # A late wheel catches up, but never more than one turn: it must not flood after a stop.
        for _ in range(min(ticks, len(self._slots))):
            self._tick += 1
            for node in tuple(self._slots[self._tick % len(self._slots)]):
                node.send_chunk()


class Fleet:
    """What all connections share: the wheels, the number of running streams, the head of this second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, catalog: Catalog) -> None:
        self._loop = loop
        self.catalog = catalog
        self._wheels: dict[int, Wheel] = {}
        self._second = 0
        self._date = b""
        self.running = 0

    def wheel(self, rate: int) -> Wheel:
        if rate not in self._wheels:
            self._wheels[rate] = Wheel(self._loop, rate)
        return self._wheels[rate]

    def date(self) -> bytes:
        second = int(time.time())
        if second != self._second:
            self._second, self._date = second, formatdate(second, usegmt=True).encode()
        return self._date


class Node(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._wheel: Wheel | None = None
        self._slot: dict[Node, None] = {}
        self._before = self._after = b""
        self._left = self._sent = 0
        self._asks_usage = self._is_native = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._transport = None

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            if self._transport is not None:
                self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        url, body = self._url, b"".join(self._body)
        self._url = b""
        self._body.clear()
        path = url.decode().partition("?")[0]
        if path == "/v1/chat/completions":
            self._chat(body, is_native=False)
        elif path == "/api/chat":
            self._chat(body, is_native=True)
        elif path == "/bench/running":
            self._answer(200, b"%d" % self._fleet.running)
        elif path == "/api/show":
            self._answer(200, self._fleet.catalog.show(body))
        else:
            known = self._fleet.catalog.pages.get(path)
            self._answer(404 if known is None else 200, known or b"404 page not found")

    def _answer(self, status: int, body: bytes) -> None:
        assert self._transport is not None
        head = b"HTTP/1.1 %d %b\r\nContent-Type: application/json\r\nDate: %b\r\nContent-Length: %d\r\n\r\n"
        words = b"OK" if status == 200 else b"Not Found"
        self._transport.write(head % (status, words, self._fleet.date(), len(body)) + body)

    def _chat(self, body: bytes, *, is_native: bool) -> None:
        streams = b'"stream":false' not in body if is_native else b'"stream":true' in body
        if not streams:
            self._answer(200, _PLAIN_NATIVE if is_native else _PLAIN_V1)
            return
        wanted = json.loads(body)
        prompt = wanted["messages"][-1]["content"]
        rate = _RATE.search(prompt if isinstance(prompt, str) else json.dumps(prompt))
        options = wanted.get("options") or {}
        self._left = wanted.get("max_tokens") or options.get("num_predict") or CHUNKS_DEFAULT
        self._asks_usage = bool((wanted.get("stream_options") or {}).get("include_usage"))
        self._is_native = is_native
        self._start(min(RATE_DEFAULT, int(rate[1])) if rate else RATE_DEFAULT)

    def _start(self, rate: int) -> None:
        assert self._transport is not None
        kind = b"application/x-ndjson" if self._is_native else b"text/event-stream"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nDate: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._transport.write(head % (kind, self._fleet.date()))
        self._before, self._after = _NATIVE_HALVES if self._is_native else _V1_HALVES
        self._sent = 0
        self._wheel = self._fleet.wheel(rate)
        self._slot = self._wheel.join(self)
        self._fleet.running += 1

    def send_chunk(self) -> None:
        assert self._transport is not None
        self._transport.write(b"%b%015d%b" % (self._before, time.monotonic_ns() // 1000, self._after))
        self._sent += 1
        self._left -= 1
        if self._left <= 0:
            self._finish()

    def _finish(self) -> None:
        assert self._transport is not None
        if self._is_native:
            end = framed(_FINISH_NATIVE % self._sent)
        else:
            # Finish, usage and terminator share an HTTP chunk: recording openai/v1-chat-stream-usage.
            usage = _USAGE_V1 % (self._sent, 15 + self._sent) if self._asks_usage else b""
            end = framed(_FINISH_V1 + usage + _DONE)
        self._transport.write(end + b"0\r\n\r\n")
        self._stop()

    def _stop(self) -> None:
        if self._wheel is not None:
            self._wheel.leave(self, self._slot)
            self._wheel = None
            self._fleet.running -= 1


async def serve(port: int, addresses: int, models: int) -> None:
    """At 127.0.0.1 and so many in all."""
    loop = asyncio.get_running_loop()
    fleet = Fleet(loop, Catalog(models))
    hosts = [f"127.0.0.{number}" for number in range(1, addresses + 1)]
    server = await loop.create_server(lambda: Node(fleet), hosts, port, backlog=BACKLOG)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.stub", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--addresses", type=int, default=1)
    parser.add_argument("--models", type=int, default=1)
    asked = parser.parse_args()
    raise_open_files()
    gc.freeze()
    gc.disable()  # a run is short, and a collection would show as delay
    uvloop.run(serve(asked.port, asked.addresses, asked.models))


if __name__ == "__main__":
    main()
