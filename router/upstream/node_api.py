"""Control calls to a node: probes, facts, loads. Not the data path, so a well-kept client does the work."""

from __future__ import annotations

import json
import math
import ssl
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from types import TracebackType

import aiohttp

from router.fleet.node import NodeSpec
from router.fleet.tickets import LOAD_S_MAX
from router.seams import NO_MORE, Clock, NodeFailed
from router.upstream.access import NodeAccess, is_local_error, tls_text

# A catalog of thousands of models stays far below; what is larger is not a node's answer.
REPORT_BYTES_MAX = 32 * 1024 * 1024
ERROR_BYTES_MAX = 4096


class HttpNodeApi:
    """One client session for all nodes; `async with` owns it. Times may be set anew: calls that run keep theirs."""

    def __init__(
        self,
        clock: Clock,
        *,
        connect_s: float,
        timeout_s: float,
        access: Callable[[NodeSpec], NodeAccess],
        per_node: int = 4,
    ) -> None:
        self._clock = clock
        self.timeout_s = timeout_s
        self.connect_s = connect_s
        self._access = access
        self._per_node = per_node
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> HttpNodeApi:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=self._per_node, ttl_dns_cache=10),
            auto_decompress=False,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def version(self, node: NodeSpec) -> bytes:
        return (await self._ask(node, "GET", "/api/version", None, self.timeout_s))[0]

    async def ps(self, node: NodeSpec) -> tuple[bytes, float | None]:
        return await self._ask(node, "GET", "/api/ps", None, self.timeout_s)

    async def tags(self, node: NodeSpec) -> bytes:
        return (await self._ask(node, "GET", "/api/tags", None, self.timeout_s))[0]

    async def show(self, node: NodeSpec, model: str, more: Mapping[str, object] = NO_MORE) -> bytes:
        return (await self._ask(node, "POST", "/api/show", {**more, "model": model}, self.timeout_s))[0]

    async def load(self, node: NodeSpec, model: str, num_ctx: int, keep_alive_s: float | None) -> float:
        """An empty prompt loads (server/routes.go); a model that cannot generate answers 400 and is loaded as one that
        embeds: what a model can do is not always in its capability list (recording catalog/tags, all-minilm)."""
        began_s = self._clock.now_s()
        wish: dict[str, object] = {"model": model}
        if keep_alive_s is not None:
            # Whole seconds: Go's durations know no exponent, and 0 would unload what was just loaded.
            wish["keep_alive"] = -1 if math.isinf(keep_alive_s) else f"{max(1, math.ceil(keep_alive_s))}s"
        if num_ctx:
            wish["options"] = {"num_ctx": num_ctx}
        try:
            await self._ask(node, "POST", "/api/generate", wish, LOAD_S_MAX)
        except NodeFailed as failed:
            if failed.status != 400:
                raise
            await self._ask(node, "POST", "/api/embed", wish, LOAD_S_MAX)
        return self._clock.now_s() - began_s

    async def unload(self, node: NodeSpec, model: str) -> None:
        """Ollama lets calls that run end first, and answers at once (server/routes.go, GenerateHandler)."""
        await self._ask(node, "POST", "/api/generate", {"model": model, "keep_alive": 0}, self.timeout_s)

    async def _ask(
        self, node: NodeSpec, method: str, path: str, wish: dict[str, object] | None, timeout_s: float
    ) -> tuple[bytes, float | None]:
        assert self._session is not None, "used outside its `async with`"
        timeout = aiohttp.ClientTimeout(total=timeout_s, connect=self.connect_s)
        access = self._access(node)
        try:
            async with self._session.request(
                method,
                node.url + path,
                json=wish,
                timeout=timeout,
                allow_redirects=False,
                ssl=access.tls or True,
                headers=[(name.decode("latin-1"), value.decode("latin-1")) for name, value in access.credentials],
            ) as answer:
                if answer.status != 200:
                    raise NodeFailed(answer.status, _error_text(await answer.content.read(ERROR_BYTES_MAX)))
                body = await _read_bounded(answer)
                return body, _unix_of(answer.headers.get("Date"))
        except (ssl.SSLError, ssl.CertificateError) as error:  # aiohttp's own kinds of them are these, too
            cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
            raise NodeFailed(0, tls_text(cause), reason="tls") from error
        except aiohttp.ClientConnectorError as error:
            raise NodeFailed(0, str(error.os_error.strerror or error), reason=_reason(error.os_error)) from error
        except TimeoutError as error:
            raise NodeFailed(0, f"no answer within {timeout_s:g} s") from error
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise NodeFailed(0, f"{type(error).__name__}: {error}") from error


def _reason(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return "local" if is_local_error(error) else "no_answer"


async def _read_bounded(answer: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for piece in answer.content.iter_any():
        body += piece
        if len(body) > REPORT_BYTES_MAX:
            raise NodeFailed(200, f"more than {REPORT_BYTES_MAX} bytes of report")
    return bytes(body)


def _error_text(body: bytes) -> str:
    """Ollama's own words where it used its own form."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace").strip()
    text = parsed.get("error") if isinstance(parsed, dict) else None
    return text if isinstance(text, str) else body.decode("utf-8", "replace").strip()


def _unix_of(date: str | None) -> float | None:
    try:
        return parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None
