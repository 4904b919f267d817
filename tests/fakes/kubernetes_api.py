"""A Kubernetes API of EndpointSlices and pods: lists in pages, watches with bookmarks, versions that grow old.

It knows what the router asks, and validates nothing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Object = dict[str, Any]


class FakeApi:
    """`objects` by kind, namespace and name; every change has the next version. `asked` is what came, oldest first."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.version = 100
        self.oldest = 0  # a watch from before it is 410 Gone
        self.events: list[tuple[int, str, str, Object]] = []  # version, kind, type, object
        self.forbidden: set[str] = set()
        self.status = 200  # of everything, while it is another
        self.broken: set[str] = set()  # kinds that are answered with 500
        self.asked: list[Mapping[str, str]] = []
        self.url = ""
        self._changed = asyncio.Condition()
        self._watches: set[web.StreamResponse] = set()
        self._runner: web.AppRunner | None = None
        self._port = 0

    # what a cluster does

    async def put(self, kind: str, item: Object) -> None:
        async with self._changed:
            self._put(kind, item)
            self._changed.notify_all()

    def put_all(self, kind: str, items: list[Object]) -> None:
        """Before anybody watches."""
        for item in items:
            self._put(kind, item)

    async def remove(self, kind: str, name: str, namespace: str = "llm") -> None:
        async with self._changed:
            item = self.objects.pop((kind, namespace, name))
            self.version += 1
            item["metadata"]["resourceVersion"] = str(self.version)
            self.events.append((self.version, kind, "DELETED", item))
            self._changed.notify_all()

    def _put(self, kind: str, item: Object) -> None:
        self.version += 1
        key = (kind, item["metadata"]["namespace"], item["metadata"]["name"])
        item["metadata"]["resourceVersion"] = str(self.version)
        self.events.append((self.version, kind, "MODIFIED" if key in self.objects else "ADDED", item))
        self.objects[key] = item

    async def forget(self) -> None:
        """Compaction: whoever watches is told that his version is too old."""
        async with self._changed:
            self.oldest = self.version + 1
            self.version += 1
            self._changed.notify_all()

    async def bookmark(self) -> None:
        async with self._changed:
            self.version += 1
            for kind in ("endpointslices", "pods"):
                self.events.append(
                    (self.version, kind, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})
                )
            self._changed.notify_all()

    async def end_watches(self) -> None:
        """As the server does with each after some minutes."""
        for watch in list(self._watches):
            assert watch._req is not None
            watch._req.task.cancel()

    def watched(self, kind: str) -> list[Mapping[str, str]]:
        return [asked for asked in self.asked if asked["kind"] == kind and asked.get("watch") == "true"]

    def listed(self, kind: str) -> list[Mapping[str, str]]:
        return [asked for asked in self.asked if asked["kind"] == kind and "watch" not in asked]

    # HTTP

    async def open(self) -> None:
        app = web.Application()
        for prefix in ("/apis/discovery.k8s.io/v1", "/api/v1"):
            app.router.add_get(prefix + "/namespaces/{namespace}/{kind}", self._serve)
            app.router.add_get(prefix + "/{kind}", self._serve)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self._port}"

    async def close(self) -> None:
        """Away: connections break, and new ones are refused, until it is opened again on the same port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        kind, namespace = request.match_info["kind"], request.match_info.get("namespace", "")
        self.asked.append({"kind": kind, "namespace": namespace, **request.query})
        if self.status != 200:
            return _status(self.status, "as the test wants it")
        if kind in self.broken:
            return _status(500, "etcd is out of sorts")
        if kind in self.forbidden:
            return _status(403, f'{kind} is forbidden: User "router" cannot list resource "{kind}"')
        if request.query.get("watch") == "true":
            return await self._watch(request, kind, namespace)
        return self._list(request.query, kind, namespace)

    def _list(self, query: Mapping[str, str], kind: str, namespace: str) -> web.Response:
        found = [item for key, item in sorted(self.objects.items()) if _is_meant(key, item, kind, namespace, query)]
        begin, size = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(found)
        end = begin + size
        meta = {"resourceVersion": str(self.version), **({"continue": str(end)} if end < len(found) else {})}
        return web.json_response({"metadata": meta, "items": found[begin:end], "newerField": {"a": [1]}})

    async def _watch(self, request: web.Request, kind: str, namespace: str) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        seen = int(request.query["resourceVersion"])
        if seen < self.oldest:
            return _status(410, "too old resource version")
        await answer.prepare(request)
        self._watches.add(answer)
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda seen=seen: self.version > seen)
                    is_old, news = seen < self.oldest, [event for event in self.events if event[0] > seen]
                    seen = self.version
                if is_old:
                    await answer.write(_line("ERROR", {"kind": "Status", "code": 410, "message": "too old"}))
                    return answer
                for _, of, type_, item in news:
                    key = (of, str(item["metadata"].get("namespace", "")), str(item["metadata"].get("name", "")))
                    if of == kind and (type_ == "BOOKMARK" or _is_meant(key, item, kind, namespace, request.query)):
                        await answer.write(_line(type_, item))
        finally:
            self._watches.discard(answer)


def _is_meant(key: tuple[str, str, str], item: Object, kind: str, namespace: str, query: Mapping[str, str]) -> bool:
    if key[0] != kind or (namespace and key[1] != namespace):
        return False
    selector, labels = query.get("labelSelector", ""), item["metadata"].get("labels", {})
    if " in (" in selector:
        name, _, values = selector.rstrip(")").partition(" in (")
        return labels.get(name) in values.split(",")
    return all(
        labels.get(name) == value for name, _, value in (term.partition("=") for term in selector.split(",") if term)
    )


def _line(type_: str, item: Object) -> bytes:
    return json.dumps({"type": type_, "object": item, "newerField": 1}).encode() + b"\n"


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "code": code, "message": message}, status=code)


@asynccontextmanager
async def kubernetes_api() -> AsyncIterator[FakeApi]:
    api = FakeApi()
    await api.open()
    try:
        yield api
    finally:
        await api.close()


# --- objects as a cluster writes them


def endpoint(address: str, pod: str, **conditions: bool | None) -> Object:
    """Ready, unless conditions say otherwise."""
    return {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False, **conditions},
        "nodeName": "worker-1",
        "zone": "eu-1a",
        "targetRef": {"kind": "Pod", "namespace": "llm", "name": pod, "uid": f"uid-{pod}"},
    }


def slice_of(*endpoints: Object, name: str = "ollama-abcde", port: int = 11434, **changes: Any) -> Object:
    """Of the Service `ollama` in the namespace `llm`, labelled as the common chart does."""
    labels = {"kubernetes.io/service-name": "ollama", "app.kubernetes.io/name": "ollama", **changes.pop("labels", {})}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "llm", "labels": labels},
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        "endpoints": list(endpoints),
        **changes,
    }


def pod_of(name: str, annotations: Mapping[str, str] | None = None, **environment: str) -> Object:
    env = [{"name": key, "value": value} for key, value in environment.items()]
    return {
        "metadata": {"name": name, "namespace": "llm", "uid": f"uid-{name}", "annotations": dict(annotations or {})},
        "spec": {"containers": [{"name": "ollama", "env": env}]},
        "status": {"phase": "Running"},
    }
