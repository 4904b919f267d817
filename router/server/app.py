"""Which request goes where. Paths and methods as Ollama has them; what it does not have gets Ollama's own pages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from router.errors import ForbiddenVerb
from router.server.catalog import JSON, JSON_UTF8, Catalog
from router.server.client import ClientConnection
from router.server.inference import Inference
from router.server.request import ClientRequest
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

    async def handle(self, request: ClientRequest, connection: ClientConnection) -> None:
        path = request.path
        endpoint = BY_PATH.get(path)
        if endpoint is not None and request.method == "POST":
            await self._inference.serve(request, connection, endpoint)
        else:
            self._send(request, connection, self._answer(request, path, endpoint is not None))

    def _answer(self, request: ClientRequest, path: str, is_inference: bool) -> dialects.Answer:
        if is_inference:
            return dialects.method_not_allowed("POST")
        page = self._read_only.get(path)
        if page is None:
            return self._refused(path) if path in MANAGING else dialects.not_found_page()
        methods, content_type, render = page
        if request.method not in methods:
            return dialects.method_not_allowed(", ".join(methods))
        return dialects.Answer(200, ((b"Content-Type", content_type.encode()),), render())

    def _refused(self, path: str) -> dialects.Answer:
        verb = path.rpartition("/")[2]
        refusal = ForbiddenVerb(f"this router does not {verb} models: do it on the nodes that shall have them")
        refused = headers.decision(refused=refusal.rejection)
        answer = dialects.error_answer(Dialect.OLLAMA, refusal, "")
        return dialects.Answer(answer.status, (*answer.headers, *refused), answer.body)

    def _send(self, request: ClientRequest, connection: ClientConnection, answer: dialects.Answer) -> None:
        """Whole at once. A body that is still on its way, to a route that wants none, ends the connection."""
        reply = self._inference.reply_on(connection, request)
        reply.keep_alive(request.is_complete and request.keeps_alive)
        request_id = headers.request_id(request.header(b"x-request-id"), self._fresh_id)
        reply.start(answer.status, [*answer.headers, (b"x-request-id", request_id.encode())], len(answer.body))
        reply.write_unless_head(answer.body, is_head=request.method == "HEAD")
        reply.end()
        reply.close()
