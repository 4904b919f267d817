"""Raw bytes to a simulated node and back, and what of an answer must equal a recording."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass

from tests.fakes.recordings import FOLDER

# Members that hold text, time, chance or a count of another model's tokens; all others must be equal.
_VARIABLE = """
id content response text thinking reasoning delta created created_at completed_at expires_at modified_at token logprob
bytes embedding embeddings item_id call_id request_id prompt_eval_count eval_count prompt_tokens completion_tokens
total_tokens input_tokens output_tokens context sequence_number total_duration load_duration prompt_eval_duration
eval_duration
"""
VARIABLE = frozenset(_VARIABLE.split())
_LAYER = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is compared: heads in order, and the shapes of all chunks, runs of equal ones taken together."""

    heads: tuple[tuple[str, ...], ...]
    chunks: tuple[object, ...]
    newline: bool


async def exchange(port: int, request: bytes) -> bytes:
    """Sends a request that ends with `Connection: close` and reads until the node closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def request_of(name: str) -> bytes:
    return (FOLDER / f"{name}.request").read_bytes()


def response_of(name: str) -> bytes:
    return (FOLDER / f"{name}.response").read_bytes()


def facts(raw: bytes) -> Facts:
    heads, rest = [], raw
    while True:
        head, _, rest = rest.partition(b"\r\n\r\n")
        heads.append(_head(head))
        if not head.startswith(b"HTTP/1.1 100"):
            break
    is_chunked = "Transfer-Encoding: chunked" in heads[-1]
    pieces = _dechunk(rest) if is_chunked else [rest] if rest else []
    shapes: list[object] = []
    for piece in pieces:
        shape = tuple(_event(event) for event in re.split(rb"(?<=\n\n)|(?<=}\n)(?=[{])", piece) if event)
        if not shapes or shapes[-1] != shape:
            shapes.append(shape)
    return Facts(tuple(heads), tuple(shapes), rest.endswith(b"\n") and not is_chunked)


def _head(head: bytes) -> tuple[str, ...]:
    lines = head.decode("latin-1").split("\r\n")
    return tuple(re.sub(r"^(Date|Content-Length): .*", r"\1", line) for line in lines)


def _dechunk(rest: bytes) -> list[bytes]:
    pieces = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if not size:
            return [*pieces, b"cut"]
        if int(size, 16) == 0:
            assert rest == b"\r\n"
            return pieces
        pieces.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]


def _event(event: bytes) -> object:
    head, marker, data = event.rpartition(b"data: ")
    ending = b"\n" * (len(data) - len(data.rstrip(b"\n")))
    try:
        return head + marker, shape_of(json.loads(data)), ending
    except ValueError:
        return event


def shape_of(value: object, key: str = "") -> object:
    if isinstance(value, dict) and key == "model_info":
        return tuple((name, type(member).__name__) for name, member in value.items())
    if isinstance(value, dict):
        return tuple((name, shape_of(member, name)) for name, member in value.items())
    if isinstance(value, list):
        rows: list[object] = []
        for item in value:
            shape = shape_of(item, key)
            if shape not in rows:
                rows.append(shape)
        return rows
    if key in VARIABLE and value is not None and value != "":
        return "number" if isinstance(value, int | float) else type(value).__name__
    return _LAYER.sub("sha256:...", value) if isinstance(value, str) and key == "status" else value
