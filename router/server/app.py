"""Which request goes where. Paths and methods as Ollama has them; what it does not have gets Ollama's own pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from aiohttp import web

from router.errors import ForbiddenVerb
from router.server.catalog import JSON, JSON_UTF8, Catalog
from router.server.client import ClientConnection
from router.server.inference import Inference
from router.wire import dialects, headers
from router.wire.endpoints import BY_PATH, Dialect

# Verbs that change models belong to whoever owns the nodes: one call here would change one node, or all of them.
MANAGING = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete")


class App:
    """The handler of the clients' port."""

    def __init__(self, inference: Inference, catalog: Catalog, fresh_id: Callable[[], str]) -> None:
        self._inference = inference
        self._fresh_id = fresh_id
        self._read_only: Mapping[str, tuple[tuple[str, ...], str, Callable[[], bytes]]] = {
            "/": (("GET", "HEAD"), "text/plain; charset=utf-8", lambda: b"Ollama is running"),
            "/api/version": (("GET", "HEAD"), JSON_UTF8, catalog.version),
            "/api/tags": (("GET", "HEAD"), JSON_UTF8, catalog.tags),
            "/api/ps": (("GET",), JSON_UTF8, catalog.ps),
            "/v1/models": (("GET",), JSON, catalog.models),
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        connection = cast(ClientConnection, request.protocol)
        connection.head_read()
        try:
            return await self._dispatch(request)
        finally:
            connection.release()

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        endpoint = BY_PATH.get(path)
        if endpoint is not None:
            if request.method == "POST":
                return await self._inference.serve(request, endpoint)
            return self._plain(request, dialects.method_not_allowed("POST"))
        page = self._read_only.get(path)
        if page is None:
            return self._unknown(request, path)
        methods, content_type, render = page
        if request.method not in methods:
            return self._plain(request, dialects.method_not_allowed(", ".join(sorted(methods))))
        return self._page(request, content_type, render())

    def _page(self, request: web.BaseRequest, content_type: str, body: bytes) -> web.Response:
        answer = web.Response(body=body, headers={"Content-Type": content_type})
        answer.headers["x-request-id"] = headers.request_id(request.headers.get("x-request-id"), self._fresh_id)
        return answer

    def _unknown(self, request: web.BaseRequest, path: str) -> web.Response:
        if path in MANAGING:
            verb = path.rpartition("/")[2]
            refusal = ForbiddenVerb(f"this router does not {verb} models: do it on the nodes that shall have them")
            request_id = headers.request_id(request.headers.get("x-request-id"), self._fresh_id)
            return self._plain(request, dialects.error_answer(Dialect.OLLAMA, refusal, request_id))
        return self._plain(request, dialects.not_found_page())

    def _plain(self, request: web.BaseRequest, answer: dialects.Answer) -> web.Response:
        response = web.Response(status=answer.status, body=answer.body)
        for name, value in answer.headers:
            response.headers[name.decode("latin-1")] = value.decode("latin-1")
        response.headers.setdefault(
            "x-request-id", headers.request_id(request.headers.get("x-request-id"), self._fresh_id)
        )
        return response
