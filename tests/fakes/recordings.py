"""What a real Ollama was asked and answered (tests/recordings), taken apart as far as a test may want it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "recordings"


@dataclass(frozen=True, slots=True)
class Headers:
    pairs: tuple[tuple[bytes, bytes], ...]

    def get(self, name: bytes) -> bytes:
        """The first value of that name, or empty."""
        return next((value for key, value in self.pairs if key.lower() == name.lower()), b"")


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Response:
    """`chunks`: the pieces in which the server sent the body; one where it was not chunked."""

    status: int
    headers: Headers
    body: bytes
    chunks: tuple[bytes, ...]

    @property
    def streams(self) -> bool:
        return self.headers.get(b"content-type").startswith((b"text/event-stream", b"application/x-ndjson"))


@dataclass(frozen=True, slots=True)
class Recording:
    name: str
    request: Request
    response: Response

    @property
    def path(self) -> str:
        return self.request.target.partition("?")[0]


@cache
def recording(name: str) -> Recording:
    """`name` is `GROUP/NAME`, as everywhere in comments."""
    request = _request((FOLDER / f"{name}.request").read_bytes())
    return Recording(name, request, _response((FOLDER / f"{name}.response").read_bytes()))


def recordings(*groups: str) -> list[Recording]:
    """All of these groups, in order of name; of all groups where none is named."""
    folders = [FOLDER / group for group in groups] or [path for path in FOLDER.iterdir() if path.is_dir()]
    files = sorted(file for folder in folders for file in folder.glob("*.response"))
    return [recording(f"{file.parent.name}/{file.stem}") for file in files]


def _head(raw: bytes) -> tuple[str, Headers, bytes]:
    head, _, rest = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    pairs = [(name, value.strip()) for name, _, value in (line.partition(b":") for line in lines)]
    return first.decode("latin-1"), Headers(tuple(pairs)), rest


def _request(raw: bytes) -> Request:
    first, headers, rest = _head(raw)
    method, target, _ = first.split(" ")
    return Request(method, target, headers, b"".join(_chunks(headers, rest)))


def _response(raw: bytes) -> Response:
    first, headers, rest = _head(raw)
    while first.split(" ")[1] == "100":
        first, headers, rest = _head(rest)
    chunks = _chunks(headers, rest)
    return Response(int(first.split(" ")[1]), headers, b"".join(chunks), chunks)


def _chunks(headers: Headers, rest: bytes) -> tuple[bytes, ...]:
    if headers.get(b"transfer-encoding").lower() != b"chunked":
        return (rest,) if rest else ()
    chunks: list[bytes] = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length:
            chunks.append(rest[:length])
        rest = rest[length + 2 :]
    return tuple(chunks)
