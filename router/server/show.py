"""`/api/show`: from what probes have learnt; else one node that has the manifest is asked, then another.

A question may take seconds, so its bounds stand here: how long a node has, how many are asked, how many questions run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from router.errors import CloudRefused, NoNode, Refusal, UnknownModel, UpstreamFailed
from router.fleet.node import DiskModel, Health, Node, NodeSpec
from router.fleet.snapshot import UP, Snapshot
from router.policy.access import Team
from router.policy.route import CLOUD_IS_OFF
from router.seams import NO_MORE, NodeFailed
from router.server.catalog import Catalog
from router.wire.names import parse_name
from router.wire.show import ShowBody, ShowWish, renamed

NODE_S = 3.0  # a node reads a manifest and the head of a file; verbose answers take a second
NODES_ASKED_MAX = 3
QUESTIONS_MAX = 8  # at once; a verbose answer has 10 MB
QUESTION_S = 12.0  # waiting for its turn included: more than all nodes together may take
RETRY_S = 2.0


class Shower(Protocol):
    """The part of `NodeApi` that is asked here."""

    async def show(self, node: NodeSpec, model: str, more: Mapping[str, object] = NO_MORE) -> bytes: ...


class Bodies(Protocol):
    """What is known by manifest digest."""

    def get(self, digest: str) -> ShowBody | None: ...

    def keep(self, digest: str, shown: ShowBody) -> None: ...


class Shows:
    def __init__(
        self,
        api: Shower,
        bodies: Bodies,
        catalog: Catalog,
        snapshot: Callable[[], Snapshot],
        has_cloud: Callable[[], bool],
    ) -> None:
        self._api = api
        self._bodies = bodies
        self._catalog = catalog
        self._snapshot = snapshot
        self._has_cloud = has_cloud
        self._turns = asyncio.Semaphore(QUESTIONS_MAX)
        self._asking: dict[str, asyncio.Task[ShowBody]] = {}  # by digest

    async def close(self) -> None:
        tasks = list(self._asking.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, wish: ShowWish, team: Team) -> bytes:
        """Refuses as the catalog does, with CloudRefused, or with NoNode and UpstreamFailed when no node tells."""
        listed = self._catalog.find(wish.model, team)
        model = listed.model
        if not self._has_cloud() and (model.is_cloud or parse_name(wish.model).is_cloud):
            raise CloudRefused(CLOUD_IS_OFF)
        shown = await self._shown(model, wish.more)
        return renamed(shown, listed.name, model.modified_at)

    async def _shown(self, model: DiskModel, more: Mapping[str, object]) -> ShowBody:
        if more or not model.digest:
            return await self._ask(model, more)
        return self._bodies.get(model.digest) or await self._ask_once(model)

    async def _ask_once(self, model: DiskModel) -> ShowBody:
        """However many want to know, one question; it goes on when the first of them leaves."""
        task = self._asking.get(model.digest)
        if task is None:
            task = self._asking[model.digest] = asyncio.create_task(self._ask(model, NO_MORE), name="show")
            task.add_done_callback(lambda done: self._learnt(model.digest, done))
        return await asyncio.shield(task)

    def _learnt(self, digest: str, task: asyncio.Task[ShowBody]) -> None:
        del self._asking[digest]
        # Looking at the exception also tells asyncio that somebody did.
        if not task.cancelled() and task.exception() is None:
            self._bodies.keep(digest, task.result())

    async def _ask(self, model: DiskModel, more: Mapping[str, object]) -> ShowBody:
        nodes = nodes_to_ask(self._snapshot(), model)
        refusal: Refusal = NoNode(f"no node that has '{model.name}' is up", retry_after_s=RETRY_S)
        try:
            async with asyncio.timeout(QUESTION_S), self._turns:
                for node in nodes:
                    try:
                        async with asyncio.timeout(NODE_S):
                            body = await self._api.show(node.spec, model.name, more)
                        return ShowBody(model.name, _checked(body))
                    except NodeFailed as failed:
                        refusal = _refusal_of(failed, model)
                    except TimeoutError:
                        refusal = _silent(model)
        except TimeoutError:
            refusal = _silent(model)
        raise refusal


def nodes_to_ask(snapshot: Snapshot, model: DiskModel) -> list[Node]:
    """Those with this very manifest, the healthy ones first."""
    having = [
        node for node, stored in snapshot.stored(model.key) if node.health in UP and stored.digest == model.digest
    ]
    having.sort(key=lambda node: (node.health is not Health.HEALTHY, node.health is Health.DRAINING, node.name))
    return having[:NODES_ASKED_MAX]


def _checked(body: bytes) -> bytes:
    if not body.startswith(b"{"):
        raise NodeFailed(200, "no JSON object")
    return body


def _refusal_of(failed: NodeFailed, model: DiskModel) -> Refusal:
    if failed.status == 404:
        return UnknownModel(f"model '{model.name}' not found")
    if failed.status:
        return UpstreamFailed(f"no node tells about '{model.name}': {failed.text}")
    return _silent(model)


def _silent(model: DiskModel) -> Refusal:
    return NoNode(f"no node that has '{model.name}' tells about it now, please try again", retry_after_s=RETRY_S)
