"""Every request that is no inference call: lists, pages, refused verbs, and what Ollama does not have either.

Knows nothing of sockets: whoever reads requests asks `cross` before anything else, calls inference itself, and sends
what `answer` says, less the body where HEAD was asked.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from router.errors import BuffersFull, ForbiddenVerb, Refusal, Rejection, RouterBroken
from router.policy.access import EVERYBODY, NO_TEAM, Access, Team
from router.server.buffers import FULL
from router.server.catalog import CLOUD_OFF, CLOUD_ON, Catalog
from router.server.show import Shows
from router.wire import headers, origins, paths
from router.wire.dialects import Answer, Pair, bad_request_page, error_answer, method_not_allowed, not_found_page
from router.wire.origins import Crossing, Origins
from router.wire.paths import Page, Route
from router.wire.show import read_show

log = logging.getLogger(__name__)

JSON_UTF8 = b"application/json; charset=utf-8"  # native routes
JSON = b"application/json"  # /v1 routes (recording openai/v1-models)

_MANY = "this router stands before several nodes and"
_OWNERS = "these belong to whoever owns the nodes"
# What monitors and clients ask to learn whether anybody is there: it tells nothing of models or teams.
OPEN = frozenset((Page.ROOT, Page.VERSION))

# One call here would change one node, or all of them: neither is what its sender expects of one Ollama.
FORBIDDEN: Mapping[Page, str] = {
    Page.PULL: f"{_MANY} pulls no models: run `ollama pull` on the nodes that shall have it, the router notices",
    Page.PUSH: f"{_MANY} pushes no models: run `ollama push` on a node that has it",
    Page.CREATE: f"{_MANY} creates no models: run `ollama create` on the nodes that shall have it",
    Page.COPY: f"{_MANY} does not copy models: run `ollama cp` on the nodes, or configure an alias",
    Page.DELETE: f"{_MANY} deletes no models: run `ollama rm` on the nodes that shall lose it",
    Page.BLOB: f"{_MANY} takes no blobs: run `ollama create` on the nodes that shall have the model",
    Page.ACCOUNT: f"{_MANY} has no account at ollama.com: {_OWNERS}, run `ollama signin` or `ollama signout` there",
    Page.EXPERIMENTAL: f"{_MANY} asks nothing of ollama.com for anybody: {_OWNERS}, ask a node itself",
}


# Pages without a bound: a pool of a thousand models has lists of half a megabyte. The others take a line.
_LONG = (Page.TAGS, Page.PS, Page.MODELS, Page.SHOW)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request that is no inference call."""

    method: str
    path: str  # as sent, percent-encoded, without its query
    header: Callable[[str], str]  # by lower-case name: the first value, '' where there is none
    headers: Sequence[Pair]  # raw, in order
    read_body: Callable[[], Awaitable[bytes]]  # within limits; raises refusals
    request_id: str
    query: str = ""  # as sent; only redirects carry it on


class Pages:
    """`on_refused` is told of every refusal that is the router's own, and whose request it was, if that is known;
    `is_full`: answers that clients do not take, and bodies, hold as much memory as they may."""

    def __init__(
        self,
        catalog: Catalog,
        shows: Shows,
        *,
        access: Callable[[], Access],
        allowed: Callable[[], Origins],
        has_cloud: Callable[[], bool],
        is_full: Callable[[], bool],
        on_refused: Callable[[Rejection, str], None],
    ) -> None:
        self._shows = shows
        self._access = access
        self._allowed = allowed
        self._is_full = is_full
        self._on_refused = on_refused
        self._model = catalog.model
        self._read_only: Mapping[Page, tuple[bytes, Callable[[Team], bytes]]] = {
            Page.ROOT: (b"text/plain; charset=utf-8", lambda team: b"Ollama is running"),
            Page.VERSION: (JSON_UTF8, lambda team: catalog.version()),
            Page.STATUS: (JSON_UTF8, lambda team: CLOUD_ON if has_cloud() else CLOUD_OFF),
            Page.TAGS: (JSON_UTF8, catalog.tags),
            Page.PS: (JSON_UTF8, catalog.ps),
            Page.MODELS: (JSON, catalog.models),
        }

    def cross(self, method: str, path: str, header: Callable[[str], str]) -> Crossing:
        """What the request's Origin means, inference calls included; `path` as sent. Comes before keys are looked at.

        `answer`, where there is one, is all that the client gets; `headers` belong on whatever it gets instead.
        """
        origin = header("origin")
        if not origin:
            return origins.AT_HOME
        crossing = origins.judge(
            method,
            host=header("host"),
            origin=origin,
            origins=self._allowed(),
            allow=paths.methods_at(paths.decoded(path) or "") if method == "OPTIONS" else (),
            asked_headers=header("access-control-request-headers"),
        )
        if crossing.is_refused:
            self._on_refused(Rejection.ORIGIN, NO_TEAM)
        return crossing

    async def answer(self, ask: Ask) -> Answer:
        """Whole but for framing, date and request id."""
        path = paths.decoded(ask.path)
        if path is None:
            return bad_request_page()
        prefix = ask.header("x-forwarded-prefix")
        moved = paths.moved(ask.method, path, query=ask.query, forwarded_prefix=prefix)
        if moved is not None:
            return moved
        route = paths.route_of(path)
        if route is None:
            return not_found_page()
        if route.methods and ask.method not in route.methods:
            return method_not_allowed(", ".join(route.methods))
        return await self._page_or_refusal(route, ask, path)

    async def _page_or_refusal(self, route: Route, ask: Ask, path: str) -> Answer:
        team = EVERYBODY if route.page in OPEN else None
        try:
            team = team or self._access().identify(ask.headers)
            return await self._page(route, ask, team)
        except Refusal as refusal:
            return self._refused(refusal, path, ask.request_id, NO_TEAM if team is None else team.name)
        except Exception:
            # A supervisor, as the pipeline is for calls: a defect costs one answer, not the connection.
            log.exception("page %s met a defect of the router", route.page)
            broken = RouterBroken("the router failed to make this page: its log says why")
            return self._refused(broken, path, ask.request_id, NO_TEAM if team is None else team.name)

    async def _page(self, route: Route, ask: Ask, team: Team) -> Answer:
        assert route.page is not Page.INFERENCE, "calls do not come here"
        if route.page in FORBIDDEN:
            raise ForbiddenVerb(FORBIDDEN[route.page])
        if route.page in _LONG and self._is_full():
            raise BuffersFull(FULL)
        if route.page is Page.SHOW:
            return _ok(JSON_UTF8, await self._shows.answer(read_show(await ask.read_body()), team))
        if route.page is Page.MODEL:
            return _ok(JSON, self._model(route.parameter, team))
        content_type, render = self._read_only[route.page]
        return _ok(content_type, render(team))

    def _refused(self, refusal: Refusal, path: str, request_id: str, team: str) -> Answer:
        answer = error_answer(paths.dialect_of(path), refusal, request_id)
        if refusal.rejection is None:
            return answer
        self._on_refused(refusal.rejection, team)
        return Answer(answer.status, (*answer.headers, *headers.decision(refused=refusal.rejection)), answer.body)


def _ok(content_type: bytes, body: bytes) -> Answer:
    return Answer(200, ((b"Content-Type", content_type),), body)
