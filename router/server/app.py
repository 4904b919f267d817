"""Where a request goes: to inference, or to the pages; what its Origin means comes before either."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Sequence

from router.seams import Clock
from router.server.client import ClientConnection
from router.server.inference import Inference
from router.server.pages import Ask, Pages
from router.server.request import ClientRequest
from router.wire import headers, paths
from router.wire.dialects import Answer
from router.wire.endpoints import BY_PATH
from router.wire.headers import Pair


class App:
    """The handler of the clients' port."""

    def __init__(
        self,
        inference: Inference,
        pages: Pages,
        fresh_id: Callable[[], str],
        *,
        clock: Clock,
        on_page: Callable[[str, int, float, bool], None],
    ) -> None:
        """`on_page` hears of each answer that is no inference call's: its route's label, its status, how long it took,
        and whether it is a refusal."""
        self._inference = inference
        self._pages = pages
        self._fresh_id = fresh_id
        self._clock = clock
        self._on_page = on_page

    async def handle(self, request: ClientRequest, connection: ClientConnection) -> None:
        path, query = paths.split_target(request.target.decode("latin-1"))
        plain, began_s = paths.decoded(path) or "", self._clock.now_s()
        crossing = self._pages.cross(request.method, path, request.header)
        if crossing.answer is not None:
            request.discard()
            self._tell(plain, crossing.answer, began_s)
            await self._send(request, connection, crossing.answer, self._request_id(request), ())
            return
        endpoint = BY_PATH.get(plain)
        if endpoint is not None and request.method == "POST":
            await self._inference.serve(request, connection, endpoint, crossing.headers)
            return
        request_id = self._request_id(request)
        body = self._inference.body_of(request, connection)
        try:
            ask = Ask(request.method, path, request.header, request.headers, body.read, request_id, query)
            answer = await self._pages.answer(ask)
            self._tell(plain, answer, began_s)
        finally:
            body.release()
        await self._send(request, connection, answer, request_id, crossing.headers)

    def _tell(self, path: str, answer: Answer, began_s: float) -> None:
        self._on_page(paths.label_of(path), answer.status, self._clock.now_s() - began_s, answer.is_refused)

    def _request_id(self, request: ClientRequest) -> str:
        return headers.request_id(request.header("x-request-id"), self._fresh_id)

    async def _send(
        self,
        request: ClientRequest,
        connection: ClientConnection,
        answer: Answer,
        request_id: str,
        extra: Sequence[Pair],
    ) -> None:
        """Whole at once. A body that is still on its way, to a route that wants none, ends the connection."""
        reply = self._inference.reply_on(connection, request, extra)
        reply.keep_alive(request.is_complete and request.keeps_alive)
        try:
            reply.start(answer.status, [*answer.headers, (b"x-request-id", request_id.encode())], len(answer.body))
            reply.write_unless_head(answer.body, is_head=request.method == "HEAD")
            reply.end()
            await reply.taken()  # until then its bytes count as held, and a client that takes none is cut off
        finally:
            reply.close()


def fresh_ids() -> Callable[[], str]:
    """Ids that never repeat: this start's own prefix, and a count."""
    prefix = secrets.token_hex(6)
    count = itertools.count(1)
    return lambda: f"{prefix}-{next(count):x}"
