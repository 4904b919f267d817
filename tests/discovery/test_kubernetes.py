"""The watch loop against an API over HTTP: what comes, goes, fails and returns."""

from __future__ import annotations

import asyncio
import logging
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from kubernetes.aio import client

from router.discovery.api_server import ApiServer
from router.discovery.kubernetes import KubernetesDiscovery, Selection
from router.discovery.reflector import Kind, Part, Reflector
from router.fleet.node import Presence
from tests.discovery.watching import Pauses, Watched, watched
from tests.fakes.kubernetes_api import FakeApi, endpoint, kubernetes_api, pod_of, slice_of

DEFAULT = Selection((), "app.kubernetes.io/name=ollama", (), "http", 11434)
BOTH = (endpoint("10.0.0.1", "ollama-0"), endpoint("10.0.0.2", "ollama-1"))


@dataclass
class Scene:
    api: FakeApi
    watched: Watched
    discovery: KubernetesDiscovery
    pauses: Pauses
    errors: list[str]

    @property
    def names(self) -> list[str]:
        return self.watched.names

    async def shows(self, *names: str) -> None:
        await self.watched.until(lambda: self.names == list(names))

    async def watches(self, kind: str = "endpointslices", times: int = 1) -> None:
        await self.watched.until(lambda: len(self.api.watched(kind)) >= times)


def discovery_of(api: FakeApi, selection: Selection, pauses: Pauses, errors: list[str]) -> KubernetesDiscovery:
    async def connect() -> client.ApiClient:
        return client.ApiClient(client.Configuration(host=api.url))

    return KubernetesDiscovery(
        ApiServer(connect),
        selection,
        on_error=errors.append,
        rng=Random(0),
        pause=pauses,
        namespace=lambda: "llm",
    )


@asynccontextmanager
async def scene(
    *items: dict[str, Any], pods: tuple[dict[str, Any], ...] = (), selection: Selection = DEFAULT, **api_is: Any
) -> AsyncIterator[Scene]:
    async with kubernetes_api() as api:
        api.put_all("endpointslices", list(items))
        api.put_all("pods", list(pods))
        for name, value in api_is.items():
            setattr(api, name, value)
        pauses, errors = Pauses(), list[str]()
        discovery = discovery_of(api, selection, pauses, errors)
        async with watched(discovery) as seen:
            yield Scene(api, seen, discovery, pauses, errors)


async def test_pods_come_go_and_stop_being_ready() -> None:
    async with scene(slice_of(BOTH[0])) as at:
        await at.shows("ollama-0")
        await at.watches()
        await at.api.put("endpointslices", slice_of(*BOTH))
        await at.shows("ollama-0", "ollama-1")
        await at.api.put(
            "endpointslices", slice_of(BOTH[0], endpoint("10.0.0.2", "ollama-1", ready=False, serving=False))
        )
        await at.watched.until(lambda: at.watched.said[-1][1].presence is Presence.NOT_READY)
        await at.api.put(
            "endpointslices", slice_of(BOTH[0], endpoint("10.0.0.2", "ollama-1", ready=False, terminating=True))
        )
        await at.watched.until(lambda: at.watched.said[-1][1].presence is Presence.LEAVING)
        await at.api.put("endpointslices", slice_of(BOTH[0]))
        await at.shows("ollama-0")
        await at.api.remove("endpointslices", "ollama-abcde")
        await at.shows()
        assert at.errors == []
        assert len(at.api.listed("endpointslices")) == 1, "one list, the rest was watched"


async def test_an_annotation_drains_and_its_end_resumes() -> None:
    async with scene(slice_of(BOTH[0]), pods=(pod_of("ollama-0", OLLAMA_NUM_PARALLEL="4"),)) as at:
        await at.shows("ollama-0")
        assert at.watched.said[0][0].slots == 4, "from the first word on"
        await at.watches("pods")
        for annotations, presence in (({"ollama-router.io/drain": "true"}, Presence.LEAVING), ({}, Presence.READY)):
            await at.api.put("pods", pod_of("ollama-0", annotations))
            await at.watched.until(lambda presence=presence: at.watched.said[-1][0].presence is presence)


async def test_a_bookmark_says_that_a_quiet_watch_still_hears() -> None:
    async with scene(slice_of(*BOTH)) as at:
        assert at.discovery.synced_at_s is None
        await at.watches()
        await at.shows("ollama-0", "ollama-1")
        synced_at_s = at.discovery.synced_at_s
        assert synced_at_s is not None
        await at.api.bookmark()
        await at.watched.until(lambda: (at.discovery.synced_at_s or 0) > synced_at_s)
        assert len(at.watched.said) == 1


async def test_what_changes_nothing_says_nothing() -> None:
    async with scene(slice_of(*BOTH)) as at:
        await at.watches()
        await at.api.put("endpointslices", {**slice_of(*BOTH), "newerField": 1})
        await at.api.put("pods", pod_of("of-somebody-else"))
        await at.api.put("endpointslices", slice_of(BOTH[0]))
        await at.shows("ollama-0")
        assert len(at.watched.said) == 2


async def test_a_watch_that_the_server_ends_goes_on_from_the_last_bookmark_without_a_list() -> None:
    async with scene(slice_of(*BOTH)) as at:
        await at.watches()
        await at.watches("pods")
        await at.api.bookmark()
        version = at.api.version
        reflectors = at.discovery._slices
        await at.watched.until(lambda: bool(reflectors))
        await at.api.put("endpointslices", slice_of(BOTH[1]))
        await at.shows("ollama-1")
        await at.api.end_watches()
        await at.watches(times=2)
        again = at.api.watched("endpointslices")[1]
        assert int(again["resourceVersion"]) > version
        assert again["allowWatchBookmarks"] == "true"
        await at.api.put("endpointslices", slice_of(*BOTH))
        await at.shows("ollama-0", "ollama-1")


async def test_a_version_that_is_too_old_is_listed_anew_and_nobody_is_lost_meanwhile() -> None:
    async with scene(slice_of(*BOTH)) as at:
        await at.watches()
        at.api.objects["endpointslices", "llm", "ollama-abcde"]["endpoints"] = [BOTH[1]]
        await at.api.forget()
        await at.shows("ollama-1")
        assert at.watched.said[0] != at.watched.said[-1]
        assert () not in at.watched.said
        assert at.errors == [], "410 is how a server says: list again"
        await at.watched.until(lambda: len(at.api.listed("endpointslices")) == 2)


async def test_while_the_api_is_away_nodes_stay_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router")
    async with scene(slice_of(*BOTH)) as at:
        await at.watches()
        await at.watches("pods")
        assert at.discovery.trouble == ""
        at.pauses.is_open = False
        await at.api.close()
        for _ in range(8):  # 0.5 s, doubled: more than a minute of trying
            await at.watched.until(lambda: at.pauses.waiting == 2)
            at.pauses.pass_all()
        await at.watched.until(lambda: at.pauses.waiting == 2)
        assert sum(at.pauses.asked_s) / 2 > 60 / 2
        assert max(at.pauses.asked_s) <= 30
        assert at.names == ["ollama-0", "ollama-1"]
        assert len(at.watched.said) == 1
        assert "endpointslices in namespace llm cannot be read: " in at.discovery.trouble
        assert set(at.errors) == {"unreachable"}
        told = [record.message for record in caplog.records if "endpointslices" in record.message]
        assert len(told) <= 2, "not with every try"

        at.api.put_all("endpointslices", [slice_of(BOTH[1])])
        await at.api.open()
        at.pauses.is_open = True
        at.pauses.pass_all()
        await at.shows("ollama-1")
        await at.watched.until(lambda: at.discovery.trouble == "")
        assert "discovery: endpointslices in namespace llm can be read again" in caplog.messages


async def test_without_the_right_to_read_pods_it_does_without(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "router")
    async with scene(slice_of(*BOTH), forbidden={"pods"}) as at:
        await at.shows("ollama-0", "ollama-1")
        assert (at.discovery.trouble, at.errors) == ("", [])
        assert any(text.startswith("discovery: may not read pods in namespace llm") for text in caplog.messages)


async def test_pods_that_cannot_be_read_are_not_waited_for_and_come_later() -> None:
    async with scene(slice_of(BOTH[0]), pods=(pod_of("ollama-0", OLLAMA_NUM_PARALLEL="4"),), broken={"pods"}) as at:
        await at.shows("ollama-0")
        assert "pods in namespace llm cannot be read: 500" in at.discovery.trouble
        assert at.watched.said[-1][0].slots is None
        at.api.broken.clear()
        await at.watched.until(lambda: at.watched.said[-1][0].slots == 4)
        assert at.discovery.trouble == ""


async def test_without_the_right_to_read_slices_nobody_is_named_and_it_is_said_what_is_missing() -> None:
    async with scene(slice_of(*BOTH), forbidden={"endpointslices"}) as at:
        await at.watched.until(lambda: "forbidden" in at.errors)
        assert at.watched.said == []
        assert "403" in at.discovery.trouble
        assert 'cannot list resource "endpointslices"' in at.discovery.trouble
        at.api.forbidden.clear()
        await at.shows("ollama-0", "ollama-1")


async def test_a_server_with_an_error_of_its_own_is_asked_again() -> None:
    async with scene(slice_of(*BOTH), status=503) as at:
        await at.watched.until(lambda: "http_5xx" in at.errors)
        at.api.status = 200
        await at.shows("ollama-0", "ollama-1")


async def test_services_are_chosen_by_label_or_by_name() -> None:
    other = slice_of(endpoint("10.0.0.9", "other-0"), name="other-x", labels={"kubernetes.io/service-name": "other"})
    other["metadata"]["labels"]["app.kubernetes.io/name"] = "something"
    async with scene(slice_of(*BOTH), other) as at:
        await at.shows("ollama-0", "ollama-1")
    named = Selection((), DEFAULT.label_selector, ("other",), "http", 11434)
    async with scene(slice_of(*BOTH), other, selection=named) as at:
        await at.shows("other-0")


async def test_several_namespaces_are_watched_and_stand_in_the_names() -> None:
    elsewhere = slice_of({**BOTH[1], "targetRef": {**BOTH[1]["targetRef"], "namespace": "lab"}})
    elsewhere["metadata"]["namespace"] = "lab"
    for namespaces in (("lab", "llm"), ("*",)):
        selection = Selection(namespaces, DEFAULT.label_selector, (), "http", 11434)
        async with scene(slice_of(BOTH[0]), elsewhere, selection=selection) as at:
            await at.shows("lab/ollama-1", "llm/ollama-0")


async def test_what_an_annotation_gets_wrong_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    wrong = pod_of("ollama-0", {"ollama-router.io/slots": "many"})
    async with scene(slice_of(*BOTH), pods=(wrong,)) as at:
        await at.watches()
        await at.api.put("endpointslices", slice_of(BOTH[0]))
        await at.shows("ollama-0")
        told = [text for text in caplog.messages if "ollama-router.io/slots: 'many'" in text]
        assert len(told) == 1


async def test_two_thousand_endpoints_in_twenty_slices_cost_little() -> None:
    """CPU of the first word and of one change, and memory; printed, since a clock judges no test."""
    slices = [
        slice_of(*(endpoint(f"10.{s}.{n}.1", f"ollama-{s}-{n}") for n in range(100)), name=f"ollama-{s}")
        for s in range(20)
    ]
    tracemalloc.start()
    async with scene(*slices) as at:
        began = time.process_time()
        await at.watched.until(lambda: len(at.names) == 2000)
        first = time.process_time() - began
        await at.watches()
        began = time.process_time()
        await at.api.put("endpointslices", slice_of(BOTH[0], name="ollama-0"))
        await at.watched.until(lambda: len(at.names) == 1901)
        print(
            f"first {first:.3f} s, change {time.process_time() - began:.3f} s, {tracemalloc.get_traced_memory()[0]} B"
        )
    tracemalloc.stop()
    assert [len(said) for said in at.watched.said] == [2000, 1901]
    assert len(at.api.listed("endpointslices")) == 1


async def test_a_list_of_many_pages_is_one_list() -> None:
    slices = [slice_of(endpoint(f"10.0.{n}.1", f"ollama-{n}"), name=f"s-{n}") for n in range(120)]
    async with scene(*slices) as at:
        await at.watched.until(lambda: len(at.names) == 120)
        assert [asked.get("continue") for asked in at.api.listed("endpointslices")] == [None, "50", "100"]


async def test_beyond_its_limit_a_reflector_keeps_no_more() -> None:
    async with kubernetes_api() as api:
        api.put_all("pods", [pod_of(f"p{n}") for n in range(9)])

        async def connect() -> client.ApiClient:
            return client.ApiClient(client.Configuration(host=api.url))

        server = ApiServer(connect)
        reflector = Reflector(
            server,
            Part(Kind.PODS, "llm"),
            lambda item: str(item["metadata"]["name"]),
            rng=Random(0),
            pause=Pauses(),
            on_change=lambda: None,
            on_trouble=lambda part, failed: None,
            objects_max=5,
        )
        task = asyncio.create_task(reflector.run())
        await reflector.has_listed.wait()
        assert len(reflector.objects) == 5
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await server.close()
