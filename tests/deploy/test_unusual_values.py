"""Values that few set and that are right all the same: long names, IPv6, TLS, other labels, another namespace."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

pytest.importorskip("helm_python", reason="no Helm for this platform: the chart is not checked here")
import helm_python

from router.settings import load_settings
from router.store.redis.address import parse_url
from tests.deploy.render import (
    CHART,
    Object,
    check,
    config_of,
    is_foreign,
    named,
    objects_of,
    of_kind,
    pod_of,
    problems_of,
    texts_of,
    workloads,
)

NAME = "r-ollama-router"
NO_REDIS: dict[str, Any] = {"redis": {"enabled": False}}
# A label of a StatefulSet's pods is its name, a dash and ten characters, and a label's value has 63.
STATEFUL_SET_NAME_MAX = 52
DNS_LABEL_MAX = 63


def release(name: str, values: dict[str, Any], namespace: str = "llm") -> list[Object]:
    texts = helm_python.Chart.load(str(CHART)).render(values, name=name, namespace=namespace)
    return [one for path, text in texts.items() if path.endswith(".yaml") for one in yaml.safe_load_all(text) if one]


def notes_of(values: dict[str, Any]) -> str:
    (notes,) = [text for name, text in texts_of(values).items() if name.endswith("NOTES.txt")]
    return notes


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a" * 53, {}),
        ("team-with-a-rather-long-name-in-its-staging-cluster-x", {}),
        ("r", {"fullnameOverride": "f" * 60}),
        ("r", {"nameOverride": "n" * 60}),
    ],
)
def test_long_names_stay_within_what_pods_can_be_labelled_with(name: str, values: dict[str, Any]) -> None:
    every = {"ollama": {"enabled": True}, "grafanaDashboards": {"enabled": True}, "networkPolicy": {"enabled": True}}
    objects = release(name, {**every, **values})
    for one in objects:
        check(one)
        limit = {"StatefulSet": STATEFUL_SET_NAME_MAX, "Service": DNS_LABEL_MAX}.get(one["kind"], 253)
        assert len(one["metadata"]["name"]) <= limit, one["metadata"]["name"]
        assert not one["metadata"]["name"].endswith("-")
        assert all(len(value) <= DNS_LABEL_MAX for value in one["metadata"]["labels"].values())


def test_labels_of_the_operator_s_take_the_place_of_the_chart_s_but_for_those_that_choose() -> None:
    taken = {"app.kubernetes.io/part-of": "llm-platform", "app.kubernetes.io/component": "mine", "team": "a"}
    values = {"commonLabels": taken, "podLabels": {"team": "b", "app.kubernetes.io/name": "mine"}}
    texts = texts_of(values)
    for text in texts.values():
        assert not re.search(r"^( *)(\S+): .*\n(?:\1 *\S+: .*\n)*?\1\2: ", text, re.MULTILINE), "no key stands twice"
    objects = objects_of(values)
    for one in objects:
        assert one["metadata"]["labels"]["app.kubernetes.io/part-of"] == "llm-platform"
        assert one["metadata"]["labels"]["app.kubernetes.io/component"] != "mine"
    deployment = named(objects, "Deployment", NAME)
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert labels["team"] == "b"


def test_everything_goes_to_another_namespace_and_rights_with_it() -> None:
    objects = objects_of({"namespaceOverride": "other", "ollama": {"enabled": True}})
    assert {one["metadata"]["namespace"] for one in objects} == {"other"}
    (subject,) = of_kind(objects, "RoleBinding")[0]["subjects"]
    assert subject["namespace"] == "other"
    assert "http://r-ollama-router.other:11434/v1" in notes_of({"namespaceOverride": "other"})


def test_the_router_listens_on_both_families_whatever_the_cluster_speaks() -> None:
    config = config_of(objects_of({"metrics": {"port": 9999}}))
    assert (config["listen"], config["metrics_listen"]) == ("*:11435", "*:9999")


@pytest.mark.parametrize("host", ["fd00::7", "[fd00::7]"])
def test_a_redis_may_be_named_by_an_ipv6_address(host: str) -> None:
    store = config_of(objects_of({**NO_REDIS, "externalRedis": {"host": host, "port": 6380}}))["store"]
    assert parse_url(store["url"]).servers == (("fd00::7", 6380),)


def test_an_openshift_namespace_chooses_the_user() -> None:
    objects = objects_of(yaml.safe_load((CHART / "ci/openshift-values.yaml").read_text()))
    for one in workloads(objects):
        context = pod_of(one)["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context.keys().isdisjoint({"runAsUser", "runAsGroup", "fsGroup"})


def test_pods_may_be_recreated_instead_of_rolled() -> None:
    deployment = named(objects_of({"strategy": {"type": "Recreate"}}), "Deployment", NAME)
    check(deployment)
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_probes_take_the_standard_fields() -> None:
    values = {"startupProbe": {"initialDelaySeconds": 3}, "livenessProbe": {"terminationGracePeriodSeconds": 5}}
    deployment = named(objects_of({**values, "readinessProbe": {"successThreshold": 2}}), "Deployment", NAME)
    check(deployment)
    container = pod_of(deployment)["containers"][0]
    assert container["startupProbe"]["initialDelaySeconds"] == 3
    assert container["livenessProbe"]["terminationGracePeriodSeconds"] == 5
    assert container["readinessProbe"]["successThreshold"] == 2


TLS = {"config": {"tls": {"cert_file": "/tls/tls.crt", "key_file": "/tls/tls.key"}}}


def test_a_router_that_speaks_tls_is_tested_and_told_so() -> None:
    objects = objects_of(TLS)
    test = named(objects, "Pod", f"{NAME}-test")["spec"]["containers"][0]["args"]
    assert test[1:] == [f"https://{NAME}:11434", f"http://{NAME}-metrics:9464"]
    assert named(objects, "Service", NAME)["spec"]["ports"][0]["appProtocol"] == "https"
    assert f"https://{NAME}.llm:11434/v1" in notes_of(TLS)
    probes = pod_of(named(objects, "Deployment", NAME))["containers"][0]
    assert probes["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}, "which speaks no TLS"


def test_the_pod_of_helm_test_goes_where_routers_go() -> None:
    where = {"nodeSelector": {"pool": "llm"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}]}
    spec = named(objects_of(where), "Pod", f"{NAME}-test")["spec"]
    assert {key: spec[key] for key in where} == where


@pytest.mark.parametrize(("seconds", "waits"), [(300, "285"), (16, "1"), (15, None), (0, None)])
def test_an_ollama_of_the_chart_s_ends_its_calls_before_it_is_told_to_stop(seconds: int, waits: str | None) -> None:
    values = {"ollama": {"enabled": True, "terminationGracePeriodSeconds": seconds}}
    pod = pod_of(named(objects_of(values), "StatefulSet", f"{NAME}-ollama"))
    hook = pod["containers"][0].get("lifecycle")
    assert hook == ({"preStop": {"exec": {"command": ["sleep", waits]}}} if waits else None)
    assert pod["terminationGracePeriodSeconds"] == seconds


def test_with_keda_or_an_autoscaler_nobody_else_says_how_many_there_are() -> None:
    for scaler in ({"autoscaling": {"enabled": True}}, {"keda": {"enabled": True, "triggers": [{"type": "cpu"}]}}):
        assert "replicas" not in named(objects_of(scaler), "Deployment", NAME)["spec"]


def test_notes_tell_the_address_from_outside() -> None:
    ingress = {"enabled": True, "hosts": [{"host": "{{ .Release.Name }}.example.com", "paths": [{"path": "/"}]}]}
    assert "from outside    http://r.example.com/v1" in notes_of({"ingress": ingress})
    hosts = [{"host": "llm.example.com", "paths": [{"path": "/"}]}]
    with_tls = {"ingress": {"enabled": True, "hosts": hosts, "tls": [{"hosts": ["llm.example.com"]}]}}
    assert "from outside    https://llm.example.com/v1" in notes_of(with_tls)
    route = {"enabled": True, "parentRefs": [{"name": "g"}], "hostnames": ["llm.example.com"]}
    assert "from outside    https://llm.example.com/v1" in notes_of({"httpRoute": route})
    assert "from outside" not in notes_of({})


def test_extra_objects_may_use_the_chart_s_names() -> None:
    extra = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": '{{ include "ollama-router.fullname" . }}-x'},
    }
    assert named(objects_of({"extraObjects": [extra]}), "ConfigMap", f"{NAME}-x")


def test_operators_kinds_render_with_long_values_and_stay_foreign() -> None:
    values = {"httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}], "timeouts": None}}
    (route,) = [one for one in objects_of(values) if is_foreign(one)]
    assert "timeouts" not in route["spec"]["rules"][0], "null leaves it to the gateway"


SELF = "it would call itself"
NOT_SOUGHT = "ollama.enabled runs servers that this router does not look for"


def kubernetes(**values: Any) -> dict[str, Any]:
    return {"discovery": {"kubernetes": values}}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"nameOverride": "ollama"}, SELF),
        (kubernetes(serviceNames=[NAME]), SELF),
        (kubernetes(labelSelector="app.kubernetes.io/part-of=ollama-router"), SELF),
        ({**kubernetes(labelSelector="llm == yes"), "commonLabels": {"llm": "yes"}}, SELF),
        ({**kubernetes(labelSelector="llm=yes"), "service": {"labels": {"llm": "yes"}}}, SELF),
        ({"ollama": {"enabled": True}, **kubernetes(serviceNames=["ollama"])}, NOT_SOUGHT),
        ({"ollama": {"enabled": True}, **kubernetes(namespaces=["gpu"])}, NOT_SOUGHT),
        ({"ollama": {"enabled": True}, **kubernetes(enabled=False), "nodes": ["gpu-1"]}, NOT_SOUGHT),
        ({"ollama": {"enabled": True}, **kubernetes(labelSelector="app=ollama")}, NOT_SOUGHT),
        ({"service": {"nodePort": 31434}}, "service.nodePort goes with service.type NodePort or LoadBalancer"),
        ({"service": {"externalTrafficPolicy": "Local"}}, "service.externalTrafficPolicy goes with"),
        ({"service": {"type": "NodePort", "loadBalancerClass": "a"}}, "goes with service.type LoadBalancer"),
        ({"service": {"clusterIP": "None"}}, "set service.port=11435"),
        ({"nodes": [{"name": "gpu-1"}]}, "nodes[0] has no url"),
        ({"nodes": ["gpu-1", ""]}, "nodes[1] has no url"),
        ({"ingress": {"enabled": True, "hosts": []}}, "under which name?"),
        ({"autoscaling": {"enabled": True, "targetCPUUtilizationPercentage": 0}}, "by what shall it scale?"),
        ({"metrics": {"port": 11435}}, "metrics.port 11435 is taken"),
        ({**NO_REDIS, "externalRedis": {"host": "redis:6380"}}, "its port goes to externalRedis.port"),
        ({**NO_REDIS, "externalRedis": {"host": "redis://redis"}}, "a whole URL to externalRedis.url"),
        ({**NO_REDIS, "externalRedis": {"url": "http://redis"}}, "externalRedis.url begins with redis://"),
        ({"metrics": {"path": "/other"}}, "path"),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_installed(values: dict[str, Any], text: str) -> None:
    assert text in problems_of(values)


@pytest.mark.parametrize(
    ("config", "where", "word"),
    [
        ({"lines": {}}, "/config", "lines"),
        ({"line": {"max_wait": 7}}, "/config/line", "max_wait"),
        ({"line": {"models": {"llama3": {"max_wait": 7}}}}, "/config/line/models/llama3", "max_wait"),
        ({"teams": {"research": {"tokens": 7}}}, "/config/teams/research", "tokens"),
        ({"placement": {"models": [{"model": "llama3"}]}}, "/config/placement/models/0", "model"),
        ({"existingConfigMaps": "mine"}, "/config", "existingConfigMaps"),
    ],
)
def test_settings_that_the_router_does_not_have_are_refused_where_they_stand(
    config: dict[str, Any], where: str, word: str
) -> None:
    told = problems_of({"config": config})
    assert where in told
    assert f"'{word}'" in told


def test_values_of_settings_are_the_router_s_business() -> None:
    """A schema would know less: 30m is a duration there."""
    assert problems_of({"config": {"guard": {"keep_alive_max": "30m"}, "teams": {"a": {"weight": 2}}}}) == ""


@pytest.mark.parametrize(
    "values",
    [
        {"nameOverride": "llm"},
        {"nameOverride": "ollama", **kubernetes(namespaces=["gpu"])},
        kubernetes(labelSelector="ollama-router.io/enabled"),
        kubernetes(labelSelector="app in (ollama, vllm),tier!=test"),
        {"ollama": {"enabled": True}, **kubernetes(namespaces=["*"])},
        {"ollama": {"enabled": True}, **kubernetes(namespaces=["gpu", "llm"])},
        {"ollama": {"enabled": True}, **kubernetes(serviceNames=["ollama", f"{NAME}-ollama"])},
        {
            "ollama": {"enabled": True},
            "discovery": {"kubernetes": {"enabled": False}, "dns": {"enabled": True, "hosts": [f"{NAME}-ollama"]}},
        },
        {"service": {"type": "NodePort", "nodePort": 31434, "externalTrafficPolicy": "Local"}},
        {"service": {"clusterIP": "None", "port": 11435}},
        {"service": {"clusterIP": "10.96.0.77"}},
        {**NO_REDIS, "externalRedis": {"url": "rediss+sentinel://s-1,s-2/mymaster/2"}},
        {**NO_REDIS, "externalRedis": {"host": "10.0.0.9"}},
        {"serviceAccount": {"create": False, "name": "theirs"}, "rbac": {"create": False}},
        {"redis": {"auth": {"existingSecret": "theirs"}, "persistence": {"enabled": True, "existingClaim": "old"}}},
        {"resources": {"limits": None}, "podDisruptionBudget": {"minAvailable": "50%", "maxUnavailable": None}},
    ],
)
def test_what_works_is_taken(values: dict[str, Any]) -> None:
    assert problems_of(values) == ""
    objects = objects_of(values)
    for one in objects:
        check(one)
    (config,) = [one["data"]["config.yaml"] for one in of_kind(objects, "ConfigMap")]
    assert load_settings(overrides=yaml.safe_load(config)).settings.discovery.is_on
