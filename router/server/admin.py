"""What operators ask of a running router, and what they tell it: /admin/..., JSON, on a listener of its own.

Nothing here waits for a node.
"""

from __future__ import annotations

import asyncio
import difflib
import json
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol
from urllib.parse import unquote

from aiohttp import web

from router.errors import BadRequest
from router.fleet.breaker import Circuit
from router.fleet.node import Presence
from router.fleet.snapshot import Snapshot
from router.fleet.tickets import LineView
from router.policy.alias import DEFAULT_TEAM
from router.policy.candidates import Circumstances
from router.policy.declared import Standing
from router.policy.experience import Experience
from router.policy.explain import Question, explain
from router.policy.placement import LoadFailure, Mode
from router.policy.room import Holds
from router.policy.troubles import Troubles
from router.server import admin_views as views
from router.server.admin_door import AdminRefusal, Door
from router.upstream.rules import CallRules
from router.wire.names import parse_name

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 64 * 1024  # nothing that is asked here has a body worth mentioning
BODY_S = 10.0
NAME_CHARS_MAX = 253  # of a node's name: what is longer is compared and repeated as far as that
PATHS = ("/admin/nodes", "/admin/models", "/admin/lines", "/admin/explain?model=NAME", "/admin/config")
ASKED = ("model", "affinity", "num_ctx", "team")
NUM_CTX_MAX = 2**31 - 1  # Ollama reads a C int

LEAVES = """\
{name} drains by the word of Kubernetes: its pod terminates, or is annotated. If so: \
kubectl annotate pod {name} ollama-router.io/drain-"""

# What makes an answer from facts that stand still, in a thread: a thousand nodes must not stop a stream.
Page = Callable[[], object]


class Kept(Protocol):
    """What came of the declared copies."""

    @property
    def holds(self) -> Holds: ...

    @property
    def standings(self) -> Sequence[Standing]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminSources:
    """Where a page looks, and what `drain` and `resume` do. `queue_limit` is by model key."""

    snapshot: Callable[[], Snapshot]
    occupancy: Callable[[], Mapping[tuple[str, str], int]]
    lines: Callable[[], Awaitable[Sequence[LineView]]]
    queue_limit: Callable[[str], int]
    circuits: Callable[[], Mapping[tuple[str, str | None], Circuit]]
    loading: Callable[[], Mapping[str, str]]
    failures: Callable[[], Mapping[tuple[str, str], LoadFailure]]
    drained: Callable[[], Collection[str]]
    drain: Callable[[str], Awaitable[None]]
    resume: Callable[[str], Awaitable[None]]
    rules: Callable[[], CallRules]
    settings: Callable[[], Mapping[str, Any]]  # without secrets
    now_s: Callable[[], float]  # the clock of `failures`
    mode: Callable[[], Mode]
    experience: Callable[[], Experience]
    leaving: Callable[[], Set[tuple[str, str]]]
    since_s: Callable[[], Mapping[str, float]]  # of loads that run, on the clock of now_s
    declarations: Callable[[], Kept]
    troubles: Callable[[], Troubles]


class Admin:
    """The handler of the admin port."""

    def __init__(self, sources: AdminSources, door: Door, on_answer: Callable[[int, float], None]) -> None:
        """`on_answer` hears of each answer's status, and how long it took."""
        self._sources = sources
        self._door = door
        self._on_answer = on_answer
        self._pages: Mapping[str, Callable[[web.Request], Awaitable[Page]]] = {
            "nodes": self._nodes,
            "models": self._models,
            "lines": self._lines,
            "explain": self._explain,
            "config": self._config,
        }
        self._orders = {"drain": sources.drain, "resume": sources.resume}

    def application(self) -> web.Application:
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def handle(self, request: web.Request) -> web.Response:
        began_s = self._sources.now_s()
        answer = await self._answer(request)
        self._on_answer(answer.status, self._sources.now_s() - began_s)
        return answer

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            self._door.check(request.method, request.headers)
            page = await self._dispatch(request)
        except AdminRefusal as refusal:
            return json_answer(refusal.status, dump({"error": refusal.text}), refusal.headers)
        return json_answer(200, await asyncio.to_thread(lambda: dump(page())))

    async def _dispatch(self, request: web.Request) -> Page:
        # The path as it came: a node's name may hold an escaped slash.
        steps = [unquote(step) for step in request.raw_path.partition("?")[0].split("/")[1:]]
        match steps:
            case ["admin", page] if page in self._pages:
                _check_method(request, "GET")
                return await self._pages[page](request)
            case ["admin", "nodes", name]:
                _check_method(request, "GET")
                return await self._node(name)
            case ["admin", "nodes", name, order] if order in self._orders:
                _check_method(request, "POST")
                return await self._obey(order, name, request)
        raise AdminRefusal(404, f"there is nothing at {request.path}: ask {', '.join(PATHS)}")

    async def _nodes(self, request: web.Request) -> Page:
        at, drained = await self._circumstances(), self._sources.drained()
        return lambda: {"nodes": views.nodes_view(at, drained)}

    async def _node(self, name: str) -> Page:
        at, drained = await self._circumstances(), self._sources.drained()
        return partial(views.node_view, _known(name, at.snapshot), at, drained)

    async def _models(self, request: web.Request) -> Page:
        at, aliases = await self._circumstances(), self._sources.rules().aliases
        return lambda: {"models": views.models_view(at, aliases)}

    async def _lines(self, request: web.Request) -> Page:
        lines = await self._sources.lines()
        return lambda: {"lines": views.lines_view(lines)}

    async def _config(self, request: web.Request) -> Page:
        return self._sources.settings

    async def _explain(self, request: web.Request) -> Page:
        question = self._question(request.query)
        at = await self._circumstances(question.targets)
        # A generator of its own: a question must not change what calls draw.
        return lambda: views.explanation_view(explain(question, at, random.Random()))

    async def _obey(self, order: str, name: str, request: web.Request) -> Page:
        await read_nothing(request)
        node = self._sources.snapshot().nodes[_known(name, self._sources.snapshot())]
        if order == "resume" and node.spec.presence is Presence.LEAVING:
            raise AdminRefusal(409, LEAVES.format(name=name))
        await self._orders[order](name)
        log.info("%s %s: told by the admin API", order, name)
        return await self._node(name)

    def _question(self, query: Mapping[str, str]) -> Question:
        unknown = [name for name in query if name not in ASKED]
        if unknown:
            raise AdminRefusal(400, f"{unknown[0]!r} is nothing to explain by: give {', '.join(ASKED)}")
        rules, team = self._sources.rules(), query.get("team", DEFAULT_TEAM)
        access, aliases = rules.access, rules.aliases
        if team not in access.names:
            near = difflib.get_close_matches(team[:NAME_CHARS_MAX], access.names, n=1)
            hint = f"did you mean {near[0]}?" if near else "calls without a key are those of 'default'"
            raise AdminRefusal(400, f"there is no team {team[:NAME_CHARS_MAX]!r}; {hint}")
        model = query.get("model", "")
        try:
            name = parse_name(model) if model.strip() else None
        except BadRequest as refusal:
            raise AdminRefusal(400, f"{model!r}: {refusal.text}") from None
        if name is None:
            raise AdminRefusal(400, "say which model: /admin/explain?model=NAME")
        num_ctx = 0 if rules.guards.keeps_context else _num_ctx(query.get("num_ctx", "0"))
        if not access.team(team).models.match(name.key):
            raise AdminRefusal(
                404, f"team {team} may not see {name.display}: to its calls it is unknown (teams.{team}.models)"
            )
        is_alias = name.key in aliases.names
        targets = aliases.candidates(name.key, team) if is_alias else (name.key,)
        overflows = aliases.overflows(name.key, team) if is_alias else ()
        return Question(model, targets, query.get("affinity", ""), num_ctx, overflows)

    async def _circumstances(self, targets: Sequence[str] = ()) -> Circumstances:
        """Copied where it changes under a reader's eyes."""
        sources, kept = self._sources, self._sources.declarations()
        waiting = {line.model: line for line in await sources.lines()}
        empty = {key: LineView(key, 0, 0.0, 0, None, sources.queue_limit(key), 0.0) for key in targets}
        return Circumstances(
            snapshot=sources.snapshot(),
            occupancy=dict(sources.occupancy()),
            lines=empty | waiting,
            circuits=sources.circuits(),
            loading=dict(sources.loading()),
            failures=dict(sources.failures()),
            mode=sources.mode(),
            now_s=sources.now_s(),
            has_cloud=sources.rules().reach.has_cloud,
            experience=sources.experience(),
            leaving=sources.leaving(),
            since_s=sources.since_s(),
            holds=kept.holds,
            standings=kept.standings,
            troubles=sources.troubles(),
        )


def _known(name: str, snapshot: Snapshot) -> str:
    if name in snapshot.nodes:
        return name
    near = difflib.get_close_matches(name[:NAME_CHARS_MAX], snapshot.nodes, n=1)
    hint = f"did you mean {near[0]}?" if near else "`ollama-router nodes` lists them"
    raise AdminRefusal(404, f"there is no node {name[:NAME_CHARS_MAX]!r}; {hint}")


def _check_method(request: web.Request, method: str) -> None:
    if request.method != method:
        raise AdminRefusal(405, f"{request.path} takes {method}", Allow=method)


async def read_nothing(request: web.Request) -> None:
    """Orders have no body; one that comes is taken off the connection, within bounds."""
    try:
        async with asyncio.timeout(BODY_S):
            await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise AdminRefusal(413, f"{BODY_BYTES_MAX} bytes are too many: send no body", Connection="close") from None
    except TimeoutError:
        raise AdminRefusal(408, f"the body did not come within {BODY_S:g} s", Connection="close") from None


def _num_ctx(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= NUM_CTX_MAX):
        raise AdminRefusal(400, f"num_ctx should be a number of tokens, not {text[:40]!r}")
    return int(text)


def dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"


def json_answer(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status,
        body=body,
        content_type="application/json",
        headers={"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", **(headers or {})},
    )
