"""The proxy that anybody writes in an afternoon: aiohttp on both sides, `iter_any`, uvloop. No features at all."""

from __future__ import annotations

import argparse

import aiohttp
import uvloop
from aiohttp import web

from bench.measure import raise_open_files

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "upgrade", "host", "content-length"})
BACKLOG = 4096


class Proxy:
    def __init__(self, node: str) -> None:
        self._node = node
        self._session: aiohttp.ClientSession | None = None

    async def open(self, app: web.Application) -> None:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)

    async def close(self, app: web.Application) -> None:
        assert self._session is not None
        await self._session.close()

    async def forward(self, request: web.Request) -> web.StreamResponse:
        assert self._session is not None
        headers = [(key, value) for key, value in request.headers.items() if key.lower() not in HOP_BY_HOP]
        body = await request.read()
        async with self._session.request(
            request.method, self._node + request.path_qs, headers=headers, data=body
        ) as got:
            answer = web.StreamResponse(status=got.status, headers={"Content-Type": got.headers["Content-Type"]})
            answer.content_length = got.content_length
            await answer.prepare(request)
            async for data in got.content.iter_any():
                await answer.write(data)
            await answer.write_eof()
            return answer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.aiohttp_proxy", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--node", required=True, help="URL of the node")
    asked = parser.parse_args()
    raise_open_files()
    proxy = Proxy(asked.node)
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.on_startup.append(proxy.open)
    app.on_cleanup.append(proxy.close)
    app.router.add_route("*", "/{path:.*}", proxy.forward)
    uvloop.install()
    web.run_app(app, host="127.0.0.1", port=asked.port, access_log=None, print=lambda _: None, backlog=BACKLOG)


if __name__ == "__main__":
    main()
