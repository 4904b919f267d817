"""One kind of object in one namespace, kept as the API server has it: a list, then a watch that goes on from there.

What was seen last stays while the server is away. https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from router.discovery.backoff import pause_s
from router.discovery.slices import Object

log = logging.getLogger(__name__)

T = TypeVar("T")
Pause = Callable[[float], Awaitable[None]]

# Objects of one kind in one place; a namespace with more is none where Ollama runs, and each is held in memory.
OBJECTS_MAX = 20_000
# A watch that the server ends is usual and begins again at once, but for a server that ends it over and over.
REWATCH_S = 0.2
# After so many failures in a row nobody waits any longer for what is optional.
OPTIONAL_FAILS = 3
# Rights that were refused may be granted later, and nobody waits for it.
REFUSED_S = 300.0


class Kind(StrEnum):
    SLICES = "endpointslices"
    PODS = "pods"


@dataclass(frozen=True, slots=True)
class Part:
    """What one list and one watch ask for. `namespace` is empty for all of them."""

    kind: Kind
    namespace: str
    selector: str = ""

    def __str__(self) -> str:
        return f"{self.kind} in {f'namespace {self.namespace}' if self.namespace else 'all namespaces'}"


class ApiFailed(Exception):
    """`status` is 0 where no HTTP answer came, 410 where the version that was asked from is too old."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}" if status else text)
        self.status = status
        self.text = text

    @property
    def reason(self) -> str:
        """A closed set: the label of `discovery_errors_total`."""
        known = {0: "unreachable", 401: "unauthorized", 403: "forbidden", 410: "gone"}
        return known.get(self.status, f"http_{self.status // 100}xx")


class Api(Protocol):
    """What a reflector asks for; every failure is ApiFailed."""

    def pages(self, part: Part) -> AsyncIterator[tuple[list[Object], str]]:
        """The whole list, some objects at a time, each time with the version of the list."""
        ...

    def events(self, part: Part, version: str) -> AbstractAsyncContextManager[AsyncIterator[tuple[str, Object]]]:
        """What changed since, by type and object; entered when the server has accepted the watch."""
        ...


class Reflector(Generic[T]):
    """`read` makes of an object what is kept of it. `on_change` hears that something differs, `on_trouble` why the
    server could not be asked, and '' when it could again."""

    def __init__(
        self,
        api: Api,
        part: Part,
        read: Callable[[Object], T],
        *,
        rng: random.Random,
        pause: Pause,
        on_change: Callable[[], None],
        on_trouble: Callable[[Part, ApiFailed | None], None],
        is_optional: bool = False,
        objects_max: int = OBJECTS_MAX,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._part = part
        self._read = read
        self._rng = rng
        self._pause = pause
        self._on_change = on_change
        self._on_trouble = on_trouble
        self._is_optional = is_optional
        self._objects_max = objects_max
        self._wall = wall
        self.synced_at_s: float | None = None  # of the last list, event or bookmark
        self.objects: dict[tuple[str, str], T] = {}  # by namespace and name
        self.has_listed = asyncio.Event()  # or was told, where it is optional, that it may not
        self._fails = 0

    def __repr__(self) -> str:
        return f"<Reflector of {self._part} | {len(self.objects)} objects | {self._fails} failures>"

    async def run(self) -> None:
        version = ""
        while True:
            try:
                if not version:
                    version = await self._list()
                version = await self._watch(version)
                await self._pause(REWATCH_S)
            except ApiFailed as failed:
                # Whatever went wrong, the list is the remedy: a version may be lost with the server that knew it.
                version = ""
                await self._pause(self._failed(failed))

    def _failed(self, failed: ApiFailed) -> float:
        """How long to wait. A version that is too old is the server's way to say: list again."""
        self._fails += 1
        if self._is_optional and failed.status in (401, 403):
            if not self.has_listed.is_set():
                log.info("discovery: may not read %s, and does without: %s", self._part, failed.text)
            self.has_listed.set()
            self._on_change()
            return REFUSED_S
        if self._is_optional and self._fails >= OPTIONAL_FAILS and not self.has_listed.is_set():
            self.has_listed.set()
            self._on_change()
        if failed.status != 410 or self._fails > 1:
            self._on_trouble(self._part, failed)
        return pause_s(self._fails, self._rng)

    async def _list(self) -> str:
        found: dict[tuple[str, str], T] = {}
        version = ""
        async for items, version in self._api.pages(self._part):  # noqa: B007 - the last one counts
            for item in items:
                self._keep(found, item)
        self._answered()
        is_other = found != self.objects or not self.has_listed.is_set()
        self.objects = found
        self.has_listed.set()
        if is_other:
            self._on_change()
        return version

    async def _watch(self, version: str) -> str:
        """Until the server ends it; the version that the next one goes on from."""
        async with self._api.events(self._part, version) as events:
            self._answered()
            async for kind, item in events:
                self.synced_at_s = self._wall()
                version = _version(item) or version
                if kind in ("ADDED", "MODIFIED", "DELETED") and self._takes(kind, item):
                    self._on_change()
        return version

    def _takes(self, kind: str, item: Object) -> bool:
        before = self.objects.get(_key(item))
        if kind == "DELETED":
            return self.objects.pop(_key(item), None) is not None
        self._keep(self.objects, item)
        return self.objects.get(_key(item)) != before

    def _keep(self, objects: dict[tuple[str, str], T], item: Object) -> None:
        if _key(item) in objects or len(objects) < self._objects_max:
            objects[_key(item)] = self._read(item)

    def _answered(self) -> None:
        self.synced_at_s = self._wall()
        if self._fails:
            self._fails = 0
            self._on_trouble(self._part, None)


def _key(item: Object) -> tuple[str, str]:
    meta = item.get("metadata") or {}
    return str(meta.get("namespace", "")), str(meta.get("name", ""))


def _version(item: Object) -> str:
    return str((item.get("metadata") or {}).get("resourceVersion") or "")
