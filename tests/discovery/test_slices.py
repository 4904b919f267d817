"""What EndpointSlices, pods and labels mean, whatever else stands in them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.discovery.said import GIB
from router.discovery.slices import Pod, Wanted, nodes_of, read_pod, read_slice
from router.fleet.node import NodeSpec, Presence
from tests.fakes.kubernetes_api import endpoint, pod_of, slice_of

WANTED = Wanted("http", 11434)


def nodes(*slices: dict[str, Any], pods: tuple[Pod, ...] = (), wanted: Wanted = WANTED) -> tuple[NodeSpec, ...]:
    return nodes_of([read_slice(one, wanted) for one in slices], {pod.uid: pod for pod in pods}, wanted)


def test_a_node_is_named_after_its_pod_and_knows_its_place() -> None:
    (node,) = nodes(slice_of(endpoint("10.0.0.7", "ollama-0")))
    assert (node.name, node.url, node.uid) == ("ollama-0", "http://10.0.0.7:11434", "uid-ollama-0")
    assert (node.machine, node.zone, node.presence) == ("worker-1", "eu-1a", Presence.READY)
    assert (node.slots, node.weight) == (None, 1.0)


def test_with_several_namespaces_a_name_carries_its_own() -> None:
    wanted = Wanted("http", 11434, is_qualified=True)
    assert [node.name for node in nodes(slice_of(endpoint("10.0.0.7", "ollama-0")), wanted=wanted)] == ["llm/ollama-0"]


def test_what_no_pod_stands_behind_is_named_by_its_address() -> None:
    bare = {"addresses": ["192.0.2.9"]}
    (node,) = nodes(slice_of(bare))
    assert (node.name, node.presence) == ("192.0.2.9:11434", Presence.READY)
    (six,) = nodes(slice_of({"addresses": ["2001:db8::9"]}, addressType="IPv6"))
    assert (six.name, six.url) == ("[2001:db8::9]:11434", "http://[2001:db8::9]:11434")


@pytest.mark.parametrize(
    ("limits", "gpus"),
    [
        ([{"nvidia.com/gpu": "2", "memory": "16Gi"}], 2),
        ([{"amd.com/gpu": 1}, {"cpu": "1"}], 1),
        ([{"gpu.intel.com/i915": "1"}, {"nvidia.com/mig-3g.20gb": "2"}], 3),
        ([{"nvidia.com/gpu": "many"}], None),
        ([{"nvidia.com/gpu": "0"}], None),
        ([{"memory": "16Gi"}, {}], None),
    ],
)
def test_limits_say_how_many_gpus_a_pod_may_use(limits: list[dict[str, Any]], gpus: int | None) -> None:
    pod = pod_of("ollama-0")
    pod["spec"]["containers"] = [{"name": "ollama", "resources": {"limits": one}} for one in limits]
    (node,) = nodes(slice_of(endpoint("10.0.0.7", "ollama-0")), pods=(read_pod(pod),))
    assert node.gpus == gpus


@pytest.mark.parametrize(
    ("conditions", "presence"),
    [
        ({}, Presence.READY),
        ({"ready": None, "serving": None, "terminating": None}, Presence.READY),
        ({"ready": False, "serving": False}, Presence.NOT_READY),
        ({"ready": False, "serving": None}, Presence.NOT_READY),
        ({"ready": False, "serving": True, "terminating": True}, Presence.LEAVING),
        ({"ready": True, "serving": None, "terminating": True}, Presence.LEAVING),
        ({"ready": False, "serving": False, "terminating": True}, None),
    ],
)
def test_conditions_say_how_a_node_stands(conditions: dict[str, bool | None], presence: Presence | None) -> None:
    found = nodes(slice_of(endpoint("10.0.0.7", "ollama-0", **conditions)))
    assert [node.presence for node in found] == ([] if presence is None else [presence])


def test_a_pod_in_several_slices_is_one_node() -> None:
    ipv6 = slice_of(endpoint("2001:db8::7", "ollama-0"), name="six", addressType="IPv6")
    (node,) = nodes(ipv6, slice_of(endpoint("10.0.0.7", "ollama-0")), slice_of(endpoint("10.0.0.7", "ollama-0")))
    assert node.host == "10.0.0.7"


def test_a_pod_that_leaves_in_one_slice_leaves() -> None:
    leaving = endpoint("10.0.0.7", "ollama-0", ready=False, terminating=True)
    (node,) = nodes(slice_of(endpoint("10.0.0.7", "ollama-0")), slice_of(leaving, name="newer"))
    assert node.presence is Presence.LEAVING


def test_a_pod_that_is_ready_in_one_slice_is_ready() -> None:
    waiting = endpoint("10.0.0.7", "ollama-0", ready=False, serving=False)
    (node,) = nodes(slice_of(waiting), slice_of(endpoint("10.0.0.7", "ollama-0"), name="publishes-not-ready"))
    assert node.presence is Presence.READY


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ([{"name": "metrics", "port": 9000}, {"name": "http", "port": 8080}], 8080),
        ([{"name": "metrics", "port": 9000}, {"name": "ollama", "port": 11434}], 11434),
        ([{"name": "", "port": 8080, "protocol": "TCP"}], 8080),
        ([{"port": 8080}], 8080),
        ([{"name": "http", "port": 8080, "protocol": "UDP"}, {"name": "x", "port": 81}], 81),
    ],
)
def test_the_port_is_chosen_by_name_then_by_number_then_for_want_of_another(ports: list[Any], port: int) -> None:
    assert [node.port for node in nodes(slice_of(endpoint("10.0.0.7", "a"), ports=ports))] == [port]


def test_a_service_without_such_a_port_names_nobody_and_is_told() -> None:
    ports = [{"name": "a", "port": 1}, {"name": "b", "port": 2}]
    one = read_slice(slice_of(endpoint("10.0.0.7", "a"), ports=ports), WANTED)
    assert one.endpoints == ()
    assert one.problems == ("Service llm/ollama has no port named 'http' and none on 11434",)
    assert read_slice(slice_of(ports=ports), WANTED).problems == (), "nobody is behind it anyway"


def test_names_instead_of_addresses_are_no_nodes() -> None:
    assert nodes(slice_of({"addresses": ["gpu.example"]}, addressType="FQDN")) == ()


def test_annotations_of_the_pod_come_before_labels_of_the_service_and_before_its_environment() -> None:
    labels = {"ollama-router.io/weight": "2", "ollama-router.io/slots": "8", "ollama-router.io/vram-gib": "24"}
    one = slice_of(*(endpoint(f"10.0.0.{n}", f"ollama-{n}") for n in range(3)), labels=labels)
    pods = (
        read_pod(pod_of("ollama-0", {"ollama-router.io/slots": "3"}, OLLAMA_NUM_PARALLEL="4")),
        read_pod(pod_of("ollama-1", OLLAMA_NUM_PARALLEL="4")),
        read_pod(pod_of("ollama-2", OLLAMA_NUM_PARALLEL="0")),
    )
    found = nodes(one, pods=pods)
    assert [node.slots for node in found] == [3, 4, 8]
    assert {node.weight for node in found} == {2.0}
    assert {node.vram_bytes for node in found} == {24 * GIB}


def test_an_annotation_drains_a_node_and_its_absence_does_not() -> None:
    one = slice_of(endpoint("10.0.0.7", "ollama-0"))
    for text, presence in (("true", Presence.LEAVING), ("false", Presence.READY), ("", Presence.READY)):
        (node,) = nodes(one, pods=(read_pod(pod_of("ollama-0", {"ollama-router.io/drain": text})),))
        assert node.presence is presence


def test_a_label_of_the_service_drains_all_of_it_but_for_pods_that_say_otherwise() -> None:
    one = slice_of(
        endpoint("10.0.0.7", "ollama-0"), endpoint("10.0.0.8", "ollama-1"), labels={"ollama-router.io/drain": "true"}
    )
    found = nodes(one, pods=(read_pod(pod_of("ollama-1", {"ollama-router.io/drain": "false"})),))
    assert [node.presence for node in found] == [Presence.LEAVING, Presence.READY]


@pytest.mark.parametrize(
    ("name", "text"),
    [("slots", "0"), ("slots", "many"), ("slots", "99999"), ("weight", "-1"), ("weight", "nan"), ("drain", "perhaps")],
)
def test_what_means_nothing_counts_as_not_said_and_is_told(name: str, text: str) -> None:
    pod = read_pod(pod_of("ollama-0", {f"ollama-router.io/{name}": text}))
    assert pod.said == read_pod(pod_of("ollama-0")).said
    (problem,) = pod.problems
    assert problem.startswith(f"pod llm/ollama-0, annotation ollama-router.io/{name}: '{text}' should be ")


FIELDS = [
    "metadata", "labels", "name", "namespace", "addressType", "ports", "port", "protocol", "endpoints", "addresses",
    "conditions", "ready", "serving", "terminating", "targetRef", "kind", "uid", "spec", "containers", "env", "value",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_no_shape_of_an_answer_ends_discovery(item: dict[str, Any]) -> None:
    nodes({**item, "addressType": "IPv4"}, pods=(read_pod(item),))
