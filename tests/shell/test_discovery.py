"""A whole router whose nodes Kubernetes names: what pods, annotations and an absent API mean to calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from kubernetes.aio import client

from router import wiring_discovery
from router.fleet.node import Health
from router.simulation.node import SimulatedNode
from router.simulation.pool import SimulatedPool
from router.wire.names import parse_name
from router.wiring import Router
from tests.fakes.kubernetes_api import FakeApi, endpoint, kubernetes_api, pod_of, slice_of
from tests.shell.clients import Client, ask, generate, get, scrape
from tests.shell.house import router_before, until
from tests.shell.scenes import ENDLESS, QUICK, let_run, pool_of
from tests.shell.test_admin import error_of, told

KUBERNETES = {"discovery": {"kubernetes": {"enabled": True, "namespaces": ["llm"]}}}
DRAIN = {"ollama-router.io/drain": "true"}


@dataclass
class Cluster:
    api: FakeApi
    pool: SimulatedPool

    def slice_of(self, node: SimulatedNode, **conditions: bool) -> dict[str, Any]:
        """Of its own, since each simulated node has its own port."""
        port = int(node.url.rpartition(":")[2])
        return slice_of(endpoint("127.0.0.1", node.name, **conditions), name=f"ollama-{node.name}", port=port)

    async def put(self, node: SimulatedNode, **conditions: bool) -> None:
        await self.api.put("endpointslices", self.slice_of(node, **conditions))


@asynccontextmanager
async def cluster(nodes: int, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    async with kubernetes_api() as api, pool_of(nodes) as pool:

        async def connect() -> client.ApiClient:
            return client.ApiClient(client.Configuration(host=api.url))

        monkeypatch.setattr(wiring_discovery, "connect", connect)
        yield Cluster(api, pool)


@asynccontextmanager
async def discovering(at: Cluster, **changes: Any) -> AsyncIterator[Router]:
    at.api.put_all("endpointslices", [at.slice_of(node) for node in at.pool.nodes])
    at.api.put_all("pods", [pod_of(node.name) for node in at.pool.nodes])
    async with router_before([], **{**KUBERNETES, **changes}) as router:
        await until(lambda: len(router.keeper.snapshot.nodes) == len(at.pool.nodes))
        await until(lambda: router.keeper.snapshot.all_read)
        for kind in ("endpointslices", "pods"):
            await until(lambda kind=kind: bool(at.api.watched(kind)))
        yield router


def health(router: Router, name: str) -> Health | None:
    node = router.keeper.snapshot.nodes.get(name)
    return node.health if node is not None else None


async def test_pods_serve_by_their_own_names_and_go_when_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(2, monkeypatch) as at, discovering(at) as router:
        answer = await generate(router, QUICK)
        assert (answer.status, answer.headers["x-ollama-router-node"]) in ((200, "sim-1"), (200, "sim-2"))
        page = await scrape(router)
        assert page.value("discovery_nodes", source="kubernetes") == 2
        assert page.value("discovery_up", source="kubernetes") == 1
        assert page.value("node_info", node="sim-1", zone="eu-1a") == 1
        assert (await told(router, "/admin/nodes/sim-1"))["machine"] == "worker-1"
        await at.api.remove("endpointslices", "ollama-sim-1")
        await until(lambda: list(router.keeper.snapshot.nodes) == ["sim-2"])
        assert (await generate(router, QUICK)).headers["x-ollama-router-node"] == "sim-2"


@pytest.mark.parametrize("by", ["termination", "annotation"])
async def test_a_pod_that_leaves_ends_what_it_has_and_gets_nothing_new(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cluster(1, monkeypatch) as at, discovering(at) as router, Client(router.port) as first:
        (node,) = at.pool.nodes
        first.send("/api/generate", {"model": ENDLESS, "prompt": "Why?"})
        await first.first(b'"done":false')
        if by == "termination":
            await at.put(node, ready=False, serving=True, terminating=True)
        else:
            await at.api.put("pods", pod_of(node.name, DRAIN))
        await until(lambda: health(router, node.name) is Health.DRAINING)
        refused = await generate(router, ENDLESS)
        assert (refused.status, refused.refused) == (503, "no_node")
        shown = await told(router, f"/admin/nodes/{node.name}")
        assert (shown["is_drained"], shown["is_idle"]) == (True, False)
        let_run(node)
        assert (await first.answer()).status == 200, "to its end"
        await until(lambda: not any(router.store.occupancy.values()))
        assert (await told(router, f"/admin/nodes/{node.name}"))["is_idle"], "now it is safe"


async def test_an_annotation_stands_against_the_admin_api_until_it_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1, monkeypatch) as at, discovering(at) as router:
        (node,) = at.pool.nodes
        await at.api.put("pods", pod_of(node.name, DRAIN))
        await until(lambda: health(router, node.name) is Health.DRAINING)
        refused = await error_of(router, 409, f"/admin/nodes/{node.name}/resume", method="POST")
        assert "kubectl annotate pod sim-1 ollama-router.io/drain-" in refused
        await at.api.put("pods", pod_of(node.name))
        await until(lambda: health(router, node.name) is Health.HEALTHY)
        assert (await generate(router, QUICK)).status == 200


async def test_a_pod_that_is_not_ready_is_known_and_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1, monkeypatch) as at, discovering(at) as router:
        (node,) = at.pool.nodes
        assert (await generate(router, QUICK)).status == 200
        await at.put(node, ready=False, serving=False)
        await until(lambda: health(router, node.name) is Health.DOWN)
        assert (await generate(router, QUICK)).status == 503
        assert (await generate(router, "nobody-has-it:1b")).status == 404
        await at.put(node)
        await until(lambda: health(router, node.name) is Health.HEALTHY)
        await until(lambda: router.keeper.snapshot.has_node_up(parse_name(QUICK).key))
        assert (await generate(router, QUICK)).status == 200


async def test_while_the_api_is_away_calls_go_on_and_it_is_flagged(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1, monkeypatch) as at, discovering(at) as router:
        await at.api.close()
        await until(lambda: bool(router.reloader._parts.discovery.trouble))
        assert (await generate(router, QUICK)).status == 200
        assert (await get(router.metrics_port, "/readyz")).status == 200
        page = await scrape(router)
        assert page.value("discovery_up", source="kubernetes") == 0
        assert page.value("discovery_nodes", source="kubernetes") == 1
        assert page.labels("discovery_errors_total", "reason") == {"unreachable"}
        await at.api.open()
        await until(lambda: not router.reloader._parts.discovery.trouble)
        assert (await scrape(router)).value("discovery_up", source="kubernetes") == 1


async def test_a_listed_node_that_is_a_pod_too_is_one_node(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(2, monkeypatch) as at:
        listed = {"nodes": [{"url": at.pool.nodes[0].url, "name": "gpu-1", "slots": 3}]}
        async with discovering(at, **listed) as router:
            assert sorted(router.keeper.snapshot.nodes) == ["gpu-1", "sim-2"]
            assert router.keeper.spec_of("gpu-1").slots == 3
            await at.put(at.pool.nodes[0], ready=False, terminating=True)
            await until(lambda: health(router, "gpu-1") is Health.DRAINING)


async def test_a_listed_node_that_turns_out_to_be_a_pod_stays_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1, monkeypatch) as at:
        listed = {"nodes": [{"url": at.pool.nodes[0].url, "name": "gpu-1"}]}
        async with router_before([], **KUBERNETES, **listed) as router:
            await until(lambda: router.keeper.snapshot.all_read and bool(at.api.watched("endpointslices")))
            await at.put(at.pool.nodes[0])
            await until(lambda: router.keeper.spec_of("gpu-1").machine == "worker-1")
            assert router.keeper.snapshot.nodes["gpu-1"].is_read
            assert (await generate(router, QUICK)).status == 200


async def test_another_pod_under_the_same_name_is_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async with cluster(1, monkeypatch) as at, discovering(at) as router:
        assert (await generate(router, QUICK)).status == 200
        before = router.keeper.snapshot.nodes["sim-1"].incarnation
        other = at.slice_of(at.pool.nodes[0])
        other["endpoints"][0]["targetRef"]["uid"] = "uid-of-the-next"
        await at.api.put("endpointslices", other)
        await until(lambda: router.keeper.snapshot.nodes["sim-1"].incarnation > before)
        await until(lambda: router.keeper.snapshot.has_node_up(parse_name(QUICK).key))
        assert (await ask(router, "/api/generate", {"model": QUICK, "prompt": "Why?"})).status == 200
