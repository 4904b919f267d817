"""Raw requests of clients that are no Python package, in the order in which they come, on one connection each."""

from __future__ import annotations

import json
from typing import Any

from router.wiring import Router
from tests.fakes.raw_client import Answer, get, post, raw_client


async def asked(router: Router, method: str, path: str, body: object = None, *lines: str) -> Answer:
    """`lines` are headers as the client writes them."""
    heads = [line.encode("latin-1") for line in lines]
    if body is None:
        raw = get(path, *heads, method=method.encode())
    else:
        raw = post(path, json.dumps(body).encode(), *heads).replace(b"POST", method.encode(), 1)
    async with raw_client(router.port) as client:
        client.send(raw)
        return await client.answer(to_head=method == "HEAD")


async def read(router: Router, method: str, path: str, body: object = None, *lines: str) -> Any:
    """The JSON of a good answer. Clients on aiohttp and axios read JSON only under its own content type."""
    answer = await asked(router, method, path, body, *lines)
    assert (answer.status, answer.is_whole) == (200, True), answer.body
    assert answer.header("Content-Type").startswith("application/json")
    return json.loads(answer.body)


async def ndjson(router: Router, path: str, body: object, *lines: str) -> list[Any]:
    """Every line of a stream; a blank one breaks the clients that parse each line."""
    answer = await asked(router, "POST", path, body, *lines)
    assert (answer.status, answer.is_whole) == (200, True), answer.body
    assert answer.header("Content-Type") == "application/x-ndjson"
    assert answer.body.endswith(b"\n")
    return [json.loads(line) for line in answer.body.removesuffix(b"\n").split(b"\n")]


async def sse(router: Router, path: str, body: object, *lines: str) -> list[Any]:
    """The events of a stream before `[DONE]`."""
    answer = await asked(router, "POST", path, body, *lines)
    assert (answer.status, answer.is_whole) == (200, True), answer.body
    assert answer.header("Content-Type") == "text/event-stream"
    *events, done, rest = answer.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return [json.loads(event.removeprefix(b"data: ")) for event in events]
