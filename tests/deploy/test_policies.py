"""What the chart's NetworkPolicies let through, flow by flow, and what they do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("helm_python", reason="no Helm for this platform: the chart is not checked here")

from tests.deploy.policies import Network, Place, network_of, places_of
from tests.deploy.render import NAMESPACE, Object, objects_of

OLLAMA = {"app.kubernetes.io/name": "ollama", "app.kubernetes.io/instance": "ollama"}
NAMESPACES = ("llm", "apps", "gpu", "monitoring", "observability", "kube-system")
CLIENTS, METRICS, ADMIN, REDIS, EXPORTER = 11435, 9464, 9465, 6379, 9121

CLIENT = Place("10.244.2.1", "apps", {"app": "chat"})
STRANGER = Place("10.244.2.2", NAMESPACE, {"app": "stranger"})
PROMETHEUS = Place("10.244.2.3", "monitoring", {"app.kubernetes.io/name": "prometheus"})
COLLECTOR = Place("10.244.2.4", "observability", {"app": "otel"})
RESOLVER = Place("10.244.2.5", "kube-system", {"k8s-app": "kube-dns"}, {"dns": 53, "dns-tcp": 53})
NODE_HERE = Place("10.244.2.6", NAMESPACE, OLLAMA, {"http": 11434})
NODE_THERE = Place("10.244.2.7", "gpu", OLLAMA, {"http": 11434})
API_SERVER = Place("192.0.2.1")
OUTSIDE = Place("198.51.100.7")
EVERYBODY = (CLIENT, STRANGER, PROMETHEUS, COLLECTOR, RESOLVER, NODE_HERE, NODE_THERE, OUTSIDE)


@dataclass(frozen=True)
class Scene:
    network: Network
    ours: dict[str, Place]

    @property
    def router(self) -> Place:
        return self.ours["router"]

    def reached(self, target: Place, port: int) -> list[Place]:
        """Those of everybody, and of the chart's own pods, who get through."""
        callers = [*EVERYBODY, *(one for one in self.ours.values() if one is not target)]
        return [one for one in callers if self.network.lets(one, target, port)]

    def may_call(self, target: Place, port: int, protocol: str = "TCP") -> bool:
        return self.network.lets(self.router, target, port, protocol)


def scene(**values: Any) -> Scene:
    policies = {"enabled": True, **values.pop("networkPolicy", {})}
    objects: list[Object] = objects_of({"networkPolicy": policies, **values})
    return Scene(network_of(objects, NAMESPACES, apps={"team": "apps"}), places_of(objects))


def test_without_policies_everything_passes_and_nobody_is_promised_anything() -> None:
    objects = objects_of()
    network, ours = network_of(objects, NAMESPACES), places_of(objects)
    assert network.policies == ()
    assert all(network.lets(one, ours["redis"], REDIS) for one in EVERYBODY)


# --- in


def test_everybody_may_call_by_default_and_nobody_reaches_the_admin_api() -> None:
    at = scene()
    assert set(EVERYBODY) <= set(at.reached(at.router, CLIENTS))
    assert at.reached(at.router, ADMIN) == []
    assert at.reached(at.router, 22) == []


def test_callers_may_be_named_and_helm_test_still_passes() -> None:
    at = scene(networkPolicy={"ingress": [{"namespaceSelector": {"matchLabels": {"team": "apps"}}}]})
    assert at.reached(at.router, CLIENTS) == [CLIENT, at.ours["test"]]


def test_pods_of_any_namespace_may_scrape_by_default_and_nobody_from_outside() -> None:
    at = scene()
    scrapers = at.reached(at.router, METRICS)
    assert {PROMETHEUS, at.ours["test"]} <= set(scrapers)
    assert OUTSIDE not in scrapers


def test_who_scrapes_may_be_named() -> None:
    chosen = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    at = scene(networkPolicy={"monitoringNamespaceSelector": chosen}, redis={"metrics": {"enabled": True}})
    assert at.reached(at.router, METRICS) == [PROMETHEUS, at.ours["test"]]
    assert at.reached(at.ours["redis"], EXPORTER) == [PROMETHEUS]


def test_valkey_is_reached_by_routers_and_by_nobody_else() -> None:
    at = scene(redis={"metrics": {"enabled": True}}, ollama={"enabled": True})
    assert at.reached(at.ours["redis"], REDIS) == [at.router]
    assert at.router not in at.reached(at.ours["redis"], EXPORTER)


def test_another_release_s_routers_do_not_reach_this_one_s_valkey() -> None:
    at = scene()
    other = Place("10.244.3.1", NAMESPACE, {**at.router.labels, "app.kubernetes.io/instance": "other"})
    elsewhere = Place("10.244.3.2", "apps", at.router.labels)
    assert not at.network.lets(other, at.ours["redis"], REDIS)
    assert not at.network.lets(elsewhere, at.ours["redis"], REDIS)


def test_valkey_calls_nobody() -> None:
    at = scene()
    assert [one for one in EVERYBODY for port in (53, 443, 80) if at.network.lets(at.ours["redis"], one, port)] == []


def test_the_chart_s_own_ollama_is_reached_by_routers_only_and_may_pull() -> None:
    at = scene(ollama={"enabled": True})
    servers = at.ours["ollama"]
    assert at.reached(servers, 11434) == [at.router]
    assert at.network.lets(servers, OUTSIDE, 443)
    assert at.network.lets(servers, RESOLVER, 53, "UDP")


# --- out


def test_routers_reach_names_nodes_the_api_server_and_valkey() -> None:
    at = scene()
    for target, port in ((NODE_HERE, 11434), (NODE_THERE, 11434), (API_SERVER, 443), (API_SERVER, 6443)):
        assert at.may_call(target, port), (target, port)
    assert at.may_call(at.ours["redis"], REDIS)
    assert at.may_call(RESOLVER, 53)
    assert at.may_call(RESOLVER, 53, "UDP")


def test_routers_reach_nothing_else() -> None:
    at = scene()
    for target, port in ((OUTSIDE, 80), (NODE_HERE, 22), (COLLECTOR, 4318), (STRANGER, 8080), (OUTSIDE, REDIS)):
        assert not at.may_call(target, port), (target, port)
    assert not at.may_call(Place("10.244.3.3", "apps", at.ours["redis"].labels), REDIS), "a Valkey of somebody else's"


def test_without_kubernetes_discovery_the_api_server_is_not_reached() -> None:
    at = scene(discovery={"kubernetes": {"enabled": False}}, nodes=["gpu-1"])
    assert not at.may_call(API_SERVER, 443)
    assert not at.may_call(API_SERVER, 6443)


def test_nodes_may_be_kept_to_namespaces() -> None:
    named = {"matchLabels": {"kubernetes.io/metadata.name": "gpu"}}
    at = scene(networkPolicy={"egress": [{"namespaceSelector": named, "podSelector": {"matchLabels": OLLAMA}}]})
    assert at.may_call(NODE_THERE, 11434)
    assert not at.may_call(NODE_HERE, 11434)
    assert not at.may_call(OUTSIDE, 11434)


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://198.51.100.7:8080", 8080),
        ("https://198.51.100.7", 443),
        ("http://198.51.100.7", 80),
        ("198.51.100.7", 11434),
        ({"url": "http://198.51.100.7:9000/", "slots": 4}, 9000),
    ],
)
def test_nodes_of_the_list_are_reached_on_their_own_ports(url: Any, port: int) -> None:
    # Discovery without the API, so that 443 is not open for it.
    at = scene(nodes=[url], discovery={"kubernetes": {"enabled": False}})
    assert at.may_call(OUTSIDE, port)
    assert not at.may_call(OUTSIDE, port + 1)


def test_nodes_of_headless_names_are_reached_on_their_port() -> None:
    at = scene(discovery={"dns": {"enabled": True, "hosts": ["ollama.gpu:8000"]}})
    assert at.may_call(NODE_THERE, 8000)


def test_traces_reach_their_receiver() -> None:
    at = scene(tracing={"enabled": True, "endpoint": "http://otel-collector.observability:4318"})
    assert at.may_call(COLLECTOR, 4318)
    assert not at.may_call(COLLECTOR, 4317)


def test_a_store_outside_is_reached_where_it_listens_and_no_valkey_is_meant() -> None:
    sentinels = {"enabled": True, "masterSet": "m", "nodes": ["s-1", "s-2:26380"]}
    at = scene(redis={"enabled": False}, externalRedis={"port": 6390, "sentinel": sentinels})
    assert [port for port in (26379, 26380, 6390) if not at.may_call(OUTSIDE, port)] == []
    assert not at.may_call(OUTSIDE, REDIS)


def test_a_resolver_may_listen_elsewhere() -> None:
    at = scene(networkPolicy={"dnsPorts": [53, 5353]})
    assert at.may_call(RESOLVER, 5353, "UDP")


def test_further_rules_are_taken_as_they_are() -> None:
    office = {"from": [{"ipBlock": {"cidr": "198.51.100.0/24", "except": ["198.51.100.64/26"]}}]}
    at = scene(networkPolicy={"extraIngress": [office], "extraEgress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}]})
    assert at.network.lets(OUTSIDE, at.router, METRICS)
    assert not at.network.lets(Place("198.51.100.70"), at.router, METRICS)
    assert at.may_call(OUTSIDE, 9999)


# --- the evaluator itself, against what the documents of Kubernetes say


def policy(**spec: Any) -> Network:
    made = {"kind": "NetworkPolicy", "metadata": {"namespace": "llm", "name": "p"}, "spec": {"podSelector": {}, **spec}}
    return network_of([made], NAMESPACES)


def test_the_evaluator_denies_all_where_a_policy_has_no_rule() -> None:
    closed = policy(policyTypes=["Ingress"])
    assert not closed.lets(CLIENT, STRANGER, 80)
    assert closed.lets(STRANGER, CLIENT, 80), "egress is not its business"
    assert closed.lets(CLIENT, PROMETHEUS, 80), "nor are other namespaces"
    assert policy(policyTypes=["Ingress"], ingress=[{}]).lets(CLIENT, STRANGER, 80)


def test_the_evaluator_takes_pod_and_namespace_together_or_either() -> None:
    pods = {"podSelector": {"matchLabels": {"app": "chat"}}}
    apps = {
        "namespaceSelector": {
            "matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["apps"]}]
        }
    }
    assert not policy(ingress=[{"from": [pods]}]).lets(CLIENT, STRANGER, 80), "a pod alone means the same namespace"
    assert policy(ingress=[{"from": [{**pods, **apps}]}]).lets(CLIENT, STRANGER, 80)
    assert not policy(ingress=[{"from": [{**pods, **apps}]}]).lets(STRANGER, NODE_HERE, 80)
    assert policy(ingress=[{"from": [pods, apps]}]).lets(CLIENT, STRANGER, 80)


def test_the_evaluator_knows_named_ports_ranges_and_protocols() -> None:
    assert policy(ingress=[{"ports": [{"port": "http"}]}]).lets(CLIENT, NODE_HERE, 11434)
    assert not policy(ingress=[{"ports": [{"port": "http"}]}]).lets(CLIENT, STRANGER, 11434), "it has none of that name"
    ranged = policy(ingress=[{"ports": [{"port": 8000, "endPort": 8010}]}])
    assert [port for port in (7999, 8000, 8010, 8011) if ranged.lets(CLIENT, STRANGER, port)] == [8000, 8010]
    assert not ranged.lets(CLIENT, STRANGER, 8000, "UDP")
