"""What the parent of several workers serves for all of them: metrics, health and the admin API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import unquote

from aiohttp import web

from router.server.admin import BODY_BYTES_MAX, dump, json_answer, read_nothing
from router.server.admin_door import AdminRefusal
from router.server.probes import readiness
from router.telemetry import page

ORDERS = ("drain", "resume")
# What belongs to the connection that it came on (RFC 9110, 7.6.1); bodies are none of the admin API's questions.
_OF_CONNECTION = {
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class Answered(Protocol):
    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    @property
    def body(self) -> bytes: ...


class Workers(Protocol):
    """Those for whom the parent speaks."""

    async def checks(self) -> Mapping[str, bool]:
        """Which of them are ready, by name."""
        ...

    @property
    def are_open(self) -> bool:
        """All have been ready since the start, and nobody has told them to leave."""
        ...

    async def metrics(self, *, is_open: bool) -> str | None:
        """Of all of them as one page; None when nobody answers."""
        ...

    async def ask_one(self, target: str, headers: Mapping[str, str], method: str) -> Answered | None: ...

    async def tell_all(self, order: str, node: str, target: str, headers: Mapping[str, str]) -> Answered | None:
        """Also those that start later. What one of them answers who obeyed, or else who refused."""
        ...


def health(workers: Workers) -> web.Application:
    """Metrics and probes. Liveness is the parent's own: workers that die are its work, not its death."""

    async def live(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        """At the start when all are, then while one is: the kernel sends clients only to those that listen."""
        checks = await workers.checks()
        results = {"serving": workers.are_open, **checks}
        return readiness(request, results, is_ready=workers.are_open and any(checks.values()))

    async def metrics(request: web.Request) -> web.Response:
        is_open = page.is_open(request.headers.get("Accept", ""))
        text = await workers.metrics(is_open=is_open)
        if text is None:
            return web.Response(status=503, text="no worker answers\n")
        return web.Response(body=text.encode(), headers={"Content-Type": page.content_type(is_open=is_open)})

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/livez", live)
    app.router.add_get("/healthz", live)
    app.router.add_get("/readyz", ready)
    return app


def admin(workers: Workers) -> web.Application:
    """Questions go to one worker, orders to all. Who may ask is decided where it is answered (`admin_door.Door`)."""

    async def handle(request: web.Request) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_CONNECTION}
        try:
            await read_nothing(request)
        except AdminRefusal as refusal:
            return json_answer(refusal.status, dump({"error": refusal.text}), refusal.headers)
        match [unquote(step) for step in request.raw_path.partition("?")[0].split("/")[1:]]:
            case ["admin", "nodes", name, order] if order in ORDERS and request.method == "POST":
                said = await workers.tell_all(order, name, request.raw_path, headers)
            case _:
                said = await workers.ask_one(request.raw_path, headers, request.method)
        if said is None:
            return json_answer(503, dump({"error": "no worker answers: ask again in a second"}))
        kept = {name: value for name, value in said.headers.items() if name in ("Allow", "WWW-Authenticate")}
        return json_answer(said.status, said.body, kept)

    app = web.Application(client_max_size=BODY_BYTES_MAX)
    app.router.add_route("*", "/{path:.*}", handle)
    return app
