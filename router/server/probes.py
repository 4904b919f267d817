"""What probes and Prometheus read, on a port of its own: nothing here changes anything, or waits for a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from aiohttp import web

from router.telemetry import page
from router.telemetry.metrics import Metrics


class Probes:
    """`checks` are named facts that must hold for readiness; liveness depends on nothing but this loop turning."""

    def __init__(self, metrics: Metrics, checks: Mapping[str, Callable[[], bool]]) -> None:
        self._metrics = metrics
        self._checks = checks

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self.serve_metrics)
        app.router.add_get("/livez", self.live)
        app.router.add_get("/healthz", self.live)
        app.router.add_get("/readyz", self.ready)
        return app

    async def live(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(self, request: web.Request) -> web.Response:
        """Nodes that are down make nobody unready: a clean 503 from here is worth more than a refused connection."""
        results = {name: check() for name, check in self._checks.items()}
        return readiness(request, results, is_ready=all(results.values()))

    async def serve_metrics(self, request: web.Request) -> web.StreamResponse:
        is_open = page.is_open(request.headers.get("Accept", ""))
        response = web.StreamResponse(headers={"Content-Type": page.content_type(is_open=is_open)})
        await response.prepare(request)
        async for piece in self._metrics.render(is_open=is_open):
            await response.write(piece)
        await response.write_eof()
        return response


def readiness(request: web.Request, results: Mapping[str, bool], *, is_ready: bool) -> web.Response:
    """`?verbose` lists the checks as the Kubernetes API server does."""
    lines = [f"[{'+' if holds else '-'}]{name} {'ok' if holds else 'failed'}" for name, holds in results.items()]
    summary = "ok" if is_ready else "not ready"
    text = "\n".join([*lines, summary]) if "verbose" in request.query or not is_ready else summary
    return web.Response(status=200 if is_ready else 503, text=text + "\n")
