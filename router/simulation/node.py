"""One simulated Ollama node that speaks HTTP on loopback: state, routing, CORS, faults."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from router.errors import Refusal
from router.simulation import manage
from router.simulation.admin import faults_route
from router.simulation.answers import JSON_UTF8
from router.simulation.ask import NodeRefusal
from router.simulation.catalog import DEMO_MODELS, RECORDED_MODELS, DiskModel
from router.simulation.engine import Engine
from router.simulation.facts import Busy, Effect, NodeLimits, Weights, Work
from router.simulation.faults import HEADER, Fault, Faults, Order, UnknownFault
from router.simulation.generation import Waiter, busy
from router.simulation.http import Reply, Request, Server
from router.simulation.inference import infer
from router.simulation.journal import BODY_BYTES_KEPT, Journal, Seen
from router.simulation.model import NodeModel
from router.simulation.origins import allowed_headers, check_host, is_allowed, preflight_headers
from router.simulation.version import parse_version
from router.wire.dialects import Answer, bad_request_page, error_answer, method_not_allowed, not_found_page
from router.wire.endpoints import BY_PATH, Endpoint
from router.wire.gojson import go_json
from router.wire.intent import unknown_model
from router.wire.names import ModelName, parse_name
from router.wire.origins import is_same
from router.wire.paths import decoded, dialect_of, moved

BLOBS_MAX = 1024

_FIXED: Mapping[str, Mapping[str, manage.Route]] = {
    "/": {"HEAD": manage.root, "GET": manage.root},
    "/api/version": {"HEAD": manage.version, "GET": manage.version},
    "/api/status": {"GET": manage.status},
    "/api/tags": {"HEAD": manage.tags, "GET": manage.tags},
    "/api/ps": {"GET": manage.ps},
    "/api/show": {"POST": manage.show},
    "/api/pull": {"POST": manage.pull},
    "/api/push": {"POST": manage.push},
    "/api/create": {"POST": manage.create},
    "/api/copy": {"POST": manage.copy},
    "/api/delete": {"DELETE": manage.delete},
    "/api/me": {"POST": manage.signed_out},
    "/api/signout": {"POST": manage.signed_out},
    "/api/experimental/web_search": {"POST": manage.signed_out},
    "/api/experimental/web_fetch": {"POST": manage.signed_out},
    "/api/experimental/model-recommendations": {"GET": manage.recommendations},
    "/v1/models": {"GET": manage.openai_models},
    "/simulate/faults": {"GET": faults_route, "POST": faults_route, "DELETE": faults_route},
}
_WITH_PARAMETER: tuple[tuple[re.Pattern[str], Mapping[str, manage.Route]], ...] = (
    (re.compile(r"/v1/models/[^/]+"), {"GET": manage.openai_model_one}),
    (re.compile(r"/api/blobs/[^/]+"), {"HEAD": manage.blob_head, "POST": manage.blob_post}),
    (re.compile(r"/api/user/keys/[^/]+"), {"DELETE": manage.signed_out}),
)

Routed = manage.Route | Endpoint


class SimulatedNode:
    """A faithful Ollama for tests, demo and benchmarks.

    `time_scale` 0.01 makes loads, prefill and decoding a hundred times as fast; keep-alive stays in real seconds.
    `checks_host` True: as when Ollama itself listens on loopback, any Host that is not local is refused.
    """

    def __init__(
        self,
        name: str = "node",
        *,
        models: Iterable[DiskModel] = RECORDED_MODELS,
        limits: NodeLimits | None = None,
        version: str = "0.33.0",
        time_scale: float = 1.0,
        seed: int = 0,
        checks_host: bool = False,
    ) -> None:
        self.name = name
        self.version = parse_version(version)
        self.faults = Faults()
        self.journal = Journal()
        self.model = NodeModel(limits or NodeLimits())
        self.engine = Engine(self.model, self.journal)
        self.disk = {parse_name(model.name).key: model for model in models}
        self.registry = {parse_name(model.name).key: model for model in (*DEMO_MODELS, *RECORDED_MODELS)}
        self.blobs: dict[str, int] = {}
        self.ids = random.Random(seed)
        self.server = Server(self._handle)
        self._time_scale = time_scale
        self._checks_host = checks_host

    def __repr__(self) -> str:
        return f"<SimulatedNode {self.name} :{self.server.port} {self.model!r} {self.journal!r}>"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        await self.server.open(host, port)

    async def stop(self) -> None:
        await self.server.abort()
        self.engine.kill_all()
        await asyncio.sleep(0)  # cancelled handlers run to their end

    async def crash(self) -> None:
        """The process dies: connections, copies and prompt caches with it; what lies on disk stays."""
        await self.stop()

    async def restart(self) -> None:
        await self.server.reopen()

    async def set_fault(
        self, fault: Fault | str, argument: object = "", *, times: int | None = None, path: str = ""
    ) -> None:
        """As `faults.set`, and what the node itself must do for it at once."""
        self.faults.set(fault, argument, times=times, path=path)
        await self.obey_faults()

    async def clear_faults(self, fault: Fault | str | None = None) -> None:
        self.faults.clear(fault)
        await self.obey_faults()

    async def obey_faults(self) -> None:
        if self.faults.of_node(Fault.REFUSE) is not None:
            self.server.close()
        else:
            await self.server.reopen()
        slow = self.faults.of_node(Fault.SLOW)
        self.engine.set_speed(max(slow.number, 1e-6) if slow is not None else 1.0)

    # What the routes ask of their node.

    def wall_ns(self) -> int:
        return time.time_ns()

    def newest_first(self) -> list[DiskModel]:
        return sorted(self.disk.values(), key=lambda model: model.modified_ns, reverse=True)

    def find(self, endpoint: Endpoint, name: ModelName, sent: str) -> DiskModel:
        model = self.disk.get(name.key)
        if model is None:
            raise unknown_model(endpoint, sent)
        return model

    def listed_as(self, name: str, blob: str) -> DiskModel:
        """The model under whose name a copy was loaded; it may have been deleted since."""
        model = self.disk.get(parse_name(name).key) or self.registry.get(parse_name(name).key)
        return model or next(model for model in self.disk.values() if model.weights.blob == blob)

    def put(self, model: DiskModel) -> None:
        self.disk[parse_name(model.name).key] = model

    def put_blob(self, digest: str, size: int) -> None:
        if len(self.blobs) >= BLOBS_MAX:
            raise NodeRefusal(500, "no space left on device")
        self.blobs[digest] = size

    def weights_of(self, model: DiskModel) -> Weights:
        weights, scale = model.weights, self._time_scale
        if scale == 1.0:
            return weights
        tps, prefill = weights.decode_tps / scale, weights.prefill_tps / scale
        return replace(weights, load_s=weights.load_s * scale, decode_tps=tps, prefill_tps=prefill)

    async def run(self, work: Work, waiter: Waiter) -> Effect:
        """What ended the work. However this ends, the slot is free or the load aborted when it returns."""
        call = self.engine.submit(work, waiter)
        try:
            effect = await waiter.done
        finally:
            self.engine.leave(call)
        if isinstance(effect, Busy):
            raise busy()
        return effect

    # Routing.

    async def _handle(self, request: Request, reply: Reply) -> None:
        now_s = asyncio.get_running_loop().time()
        body = request.body[:BODY_BYTES_KEPT]
        seen = Seen(len(self.journal.calls), request.method, request.target, request.headers, body, now_s)
        self.journal.calls.append(seen)
        try:
            await self._answer(request, reply)
        except asyncio.CancelledError:
            seen.ending = "broken" if reply.is_over else "gone"
            raise
        seen.status, seen.ending = reply.status, "done" if reply.status else "broken"

    async def _answer(self, request: Request, reply: Reply) -> None:
        path = decoded(request.path)
        if path is None:
            _send(reply, bad_request_page())
            return
        prefix = request.header("x-forwarded-prefix")
        page = moved(request.method, path, query=request.query, forwarded_prefix=prefix, methods=self._routes)
        if page is not None:
            _send(reply, page)
            return
        routes = self._routes(path)
        origin = request.header("origin")
        if origin and not is_allowed(origin, request.header("host")):
            reply.send(403, [])
            return
        if request.method == "OPTIONS" and not is_same(origin, request.header("host")) and origin:
            reply.send(204, preflight_headers(origin, ", ".join(routes)))
            return
        if self._checks_host and not check_host(request.header("host")):
            reply.send(403, [])
            return
        await self._dispatch(path, routes, request, reply)

    async def _dispatch(self, path: str, routes: Mapping[str, Routed], request: Request, reply: Reply) -> None:
        dialect = dialect_of(path)
        route = routes.get(request.method)
        if route is None:
            _send(reply, method_not_allowed(", ".join(routes)) if routes else not_found_page())
            return
        reply.extra = allowed_headers(request.header("origin"), request.header("host"))
        try:
            faults = self.faults.due(path, request.header(HEADER))
            if await _broken(faults, reply, self.name):
                return
            if isinstance(route, Endpoint):
                await infer(self, route, request, reply, faults)
            else:
                await route(self, request, reply, faults)
        except UnknownFault as unknown:
            reply.send(400, [("Content-Type", JSON_UTF8)], go_json({"error": str(unknown)}))
        except Refusal as refusal:
            answer = error_answer(dialect, refusal, f"{self.ids.getrandbits(96):024x}")
            reply.send(answer.status, [("Content-Type", answer.headers[0][1].decode())], answer.body)

    def _routes(self, path: str) -> Mapping[str, Routed]:
        if not self.version.has_route(path):
            return {}
        endpoint = BY_PATH.get(path)
        if endpoint is not None:
            return {"POST": endpoint}
        fixed = _FIXED.get(path)
        if fixed is not None:
            return fixed
        return next((routes for pattern, routes in _WITH_PARAMETER if pattern.fullmatch(path)), {})


def _send(reply: Reply, page: Answer) -> None:
    reply.send(page.status, [(name.decode(), value.decode()) for name, value in page.headers], page.body)


async def _broken(faults: Mapping[Fault, Order], reply: Reply, name: str) -> bool:
    """The faults that come before any route; whether one of them answered."""
    if Fault.MALFORMED in faults:
        reply.garble(b"\x00\xffnot HTTP\r\n\r\n" + name.encode())
    elif Fault.REFUSE in faults:
        reply.cut()
    elif order := faults.get(Fault.HANG):
        if not order.argument:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(order.number)
    elif order := faults.get(Fault.STATUS):
        status = int(order.number)
        raise NodeRefusal(status, STATUS_TEXTS.get(status, "simulated"))
    return reply.is_over


STATUS_TEXTS = {
    404: "model 'simulated' not found",
    499: "request canceled",
    500: "llama-server process has terminated: signal: killed",
    503: "server busy, please try again.  maximum pending requests exceeded",
}
