"""The Kubernetes API over HTTP: lists in pages, watches line by line. The answers' JSON is passed on as it is.

Of the `kubernetes` package only connection, credentials and paths are used: its models refuse fields that they do not
know, and a newer API server must not end discovery.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

from router.discovery.reflector import ApiFailed, Kind, Part
from router.discovery.slices import Object

NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
# An object of 1,000 endpoints is 300 KB: a page must not keep the loop from its streams.
PAGE_OBJECTS = 50
LIST_S = 30.0
# The server ends a watch by then; one that is silent for longer hangs on a connection that nobody holds any more.
WATCH_S, WATCH_SILENCE_S = 240, 300.0
ERROR_TEXT_CHARS = 300
JSON = "application/json"
UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError)

PATHS: Mapping[Kind, str] = {
    Kind.SLICES: "/apis/discovery.k8s.io/v1{namespace}/endpointslices",
    Kind.PODS: "/api/v1{namespace}/pods",
}


class ApiServer:
    """Fills `Api`. `connect` makes the package's client when it is first needed: importing it takes a second."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect
        self._client: Any = None
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"<ApiServer {'connected' if self._client is not None else 'not asked yet'}>"

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = None

    async def pages(self, part: Part) -> AsyncIterator[tuple[list[Object], str]]:
        more = ""
        while True:
            asked = {"limit": PAGE_OBJECTS, **({"continue": more} if more else {})}
            page = _object(await self._read(await self._ask(part, LIST_S, asked)))
            meta = page.get("metadata") or {}
            yield list(page.get("items") or ()), str(meta.get("resourceVersion", ""))
            more = str(meta.get("continue") or "")
            if not more:
                return

    @asynccontextmanager
    async def events(self, part: Part, version: str) -> AsyncIterator[AsyncIterator[tuple[str, Object]]]:
        asked = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": WATCH_S}
        answer = await self._ask(part, WATCH_SILENCE_S, asked)
        try:
            yield _lines(answer)
        finally:
            answer.close()

    async def _ask(self, part: Part, silence_s: float, asked: Mapping[str, object]) -> aiohttp.ClientResponse:
        """An answer with status 200, its body not read."""
        client = await self._connected()
        from kubernetes.aio.config import ConfigException  # noqa: PLC0415 - by now it is there

        path = PATHS[part.kind].format(namespace=f"/namespaces/{part.namespace}" if part.namespace else "")
        query = [*asked.items(), *([("labelSelector", part.selector)] if part.selector else [])]
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=LIST_S, sock_read=silence_s)
        try:
            request = await client.param_serialize(
                "GET", path, query_params=query, header_params={"Accept": JSON}, auth_settings=["BearerToken"]
            )
            answer: aiohttp.ClientResponse = (await client.call_api(*request, _request_timeout=timeout)).response
        except (*UNREACHABLE, ConfigException) as error:  # its credentials are read again each minute
            raise _unreachable(error) from None
        if answer.status == 200:
            return answer
        raise ApiFailed(answer.status, _message((await self._read(answer)).decode("utf-8", "replace")))

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        try:
            async with asyncio.timeout(LIST_S):
                return await answer.read()
        except UNREACHABLE as error:
            raise _unreachable(error) from None
        finally:
            answer.release()

    async def _connected(self) -> Any:
        async with self._turn:
            if self._client is None:
                self._client = await self._connect()
        return self._client


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Object]]:
    """Each line is an event. ERROR is the server's way to fail once the answer has begun."""
    while True:
        try:
            line = await answer.content.readline()
        except (*UNREACHABLE, ValueError) as error:  # the second: a line that is longer than any object may be
            raise _unreachable(error) from None
        if not line:
            return
        event = _object(line)
        kind, item = event.get("type"), event.get("object")
        item = item if isinstance(item, dict) else {}
        if kind == "ERROR":
            code = item.get("code")
            raise ApiFailed(code if isinstance(code, int) else 500, str(item.get("message", "")))
        yield str(kind), item


def _object(data: bytes) -> Object:
    try:
        found = json.loads(data)
    except ValueError:
        raise ApiFailed(0, "the answer is no JSON") from None
    if not isinstance(found, dict):
        raise ApiFailed(0, "the answer is no object")
    return found


def _message(text: str) -> str:
    with suppress(ValueError, KeyError, TypeError):
        text = str(json.loads(text)["message"])
    return text.strip()[:ERROR_TEXT_CHARS]


def _unreachable(error: Exception) -> ApiFailed:
    return ApiFailed(0, str(error) or type(error).__name__)


def own_namespace() -> str:
    """Of the pod that this process runs in; elsewhere `default`."""
    try:
        return Path(NAMESPACE_FILE).read_text(encoding="ascii").strip() or "default"
    except OSError:
        return "default"


async def connect() -> Any:
    """With the service account of the pod, or with what KUBECONFIG names."""
    return await asyncio.to_thread(_loaded) if "KUBERNETES_SERVICE_HOST" in os.environ else await _from_file()


def _loaded() -> Any:
    from kubernetes.aio import client, config  # noqa: PLC0415

    configuration = client.Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        told = "the pod's service account cannot be used (automountServiceAccountToken?)"
        raise ApiFailed(0, f"{told}: {error}") from None
    return client.ApiClient(configuration)


async def _from_file() -> Any:
    from kubernetes.aio import client, config  # noqa: PLC0415

    configuration = client.Configuration()
    try:
        await config.load_kube_config(client_configuration=configuration)
    except (config.ConfigException, OSError) as error:
        raise ApiFailed(0, f"this process runs in no pod, and KUBECONFIG is of no use: {error}") from None
    return client.ApiClient(configuration)
