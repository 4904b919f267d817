"""The chart: what it renders for every values file, what it refuses, and that it fits the router it installs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

pytest.importorskip("helm_python", reason="no Helm for this platform: the chart is not checked here")
import helm_python

from router.discovery.api_server import PATHS
from router.discovery.reflector import Kind
from router.settings import load_settings
from router.settings.changes import NEED_RESTART
from router.simulation.pool import SimulatedPool
from router.store.redis.address import parse_url
from router.wiring import Router
from tests.deploy import chart_docs
from tests.deploy.render import (
    CHART,
    CI,
    ROOT,
    check,
    ci_values,
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
from tests.shell.house import router_before
from tests.shell.test_teams import KEY, teams

NAME = "r-ollama-router"
each_ci = pytest.mark.parametrize("path", CI, ids=lambda path: path.stem.removesuffix("-values"))
# One router, whose slots are in its memory.
ALONE: dict[str, Any] = {"replicaCount": 1, "redis": {"enabled": False}}
NO_REDIS: dict[str, Any] = {"redis": {"enabled": False}}


# --- every values file


@each_ci
def test_helm_finds_nothing_to_say(path: Path) -> None:
    answer = helm_python.lint(str(CHART), ci_values(path), strict=True)
    assert not [message for message in answer.get("messages", []) if message.get("severity") != "INFO"], answer


@each_ci
def test_kubernetes_takes_every_object(path: Path) -> None:
    for one in objects_of(ci_values(path)):
        if not is_foreign(one):
            check(one)


@each_ci
def test_no_object_stands_twice_and_all_know_whose_they_are(path: Path) -> None:
    objects = [one for one in objects_of(ci_values(path)) if "extra" not in one["metadata"]["name"]]
    objects = [one for one in objects if not one["metadata"]["name"].endswith("-text")]
    identities = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in objects]
    assert len(set(identities)) == len(identities)
    for one in objects:
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "ollama-router"
        assert labels["app.kubernetes.io/instance"] == "r"
        assert "helm.sh/chart" in labels


@each_ci
def test_the_router_understands_its_configuration(path: Path, tmp_path: Path) -> None:
    config = config_of(objects_of(ci_values(path)))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    settings = load_settings(str(file)).settings
    assert settings.nodes or settings.discovery.is_on


@each_ci
def test_every_environment_variable_is_a_setting(path: Path) -> None:
    deployment = named(objects_of(ci_values(path)), "Deployment", NAME)
    variables = {one["name"]: "" for one in pod_of(deployment)["containers"][0].get("env", [])}
    environ = {name: "x" for name in variables if name != "OLLAMA_ROUTER_STORE__URL"}
    warned = load_settings(environ={**environ, "OLLAMA_ROUTER_LOG__LEVEL": "debug"}).warnings
    assert warned == ()


@each_ci
def test_pods_keep_to_the_restricted_profile_and_say_what_they_need(path: Path) -> None:
    for one in workloads(objects_of(ci_values(path))):
        pod = pod_of(one)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"].get("runAsUser", 65532) == 65532
        assert "runAsUser" in pod["securityContext"] or "openshift" in path.name, "there the cluster chooses"
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["enableServiceLinks"] is False
        ours = [c for c in (*pod["containers"], *pod.get("initContainers", [])) if c["image"] != "busybox"]
        for container in ours:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert not container["image"].endswith(":latest")


@each_ci
def test_selectors_choose_the_pods_that_are_there_and_hold_no_version(path: Path) -> None:
    objects = objects_of(ci_values(path))
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in workloads(objects) if one["kind"] != "Pod"]
    for service in of_kind(objects, "Service"):
        selector = service["spec"]["selector"]
        assert len([labels for labels in pods if selector.items() <= labels.items()]) == 1, service["metadata"]["name"]
    for one in workloads(objects):
        if one["kind"] != "Pod":
            assert not [key for key in one["spec"]["selector"]["matchLabels"] if "version" in key or "chart" in key]


# --- what is promised


def test_without_a_value_it_looks_for_the_pods_of_the_common_chart_in_its_own_namespace() -> None:
    objects = objects_of()
    config = config_of(objects)
    assert config["discovery"]["kubernetes"] == {
        "enabled": True,
        "namespaces": [],
        "label_selector": "app.kubernetes.io/name=ollama",
        "service_names": [],
        "port_name": "http",
        "port": 11434,
    }
    kinds = Counter(one["kind"] for one in objects)
    once = ("ConfigMap", "Deployment", "Pod", "PodDisruptionBudget", "Role", "RoleBinding", "Secret", "ServiceAccount")
    assert kinds == {**dict.fromkeys((*once, "StatefulSet"), 1), "Service": 3}
    assert named(objects, "Service", NAME)["spec"]["ports"][0]["port"] == 11434
    container = pod_of(named(objects, "Deployment", NAME))["containers"][0]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert container["image"] == f"ghcr.io/ollama-router/ollama-router:{version}"


def test_without_a_value_two_routers_share_the_chart_s_valkey() -> None:
    objects = objects_of()
    assert named(objects, "Deployment", NAME)["spec"]["replicas"] == 2
    assert named(objects, "PodDisruptionBudget", NAME)["spec"]["maxUnavailable"] == 1
    assert config_of(objects)["store"] == {
        "url": f"redis://{NAME}-redis:6379/0",
        "password_file": "/etc/ollama-router/redis-password",
        "replicas": 2,
    }
    sources = pod_of(named(objects, "Deployment", NAME))["volumes"][0]["projected"]["sources"]
    (secret,) = of_kind(objects, "Secret")
    (password,) = secret["data"]
    assert {"key": password, "path": "redis-password"} in sources[1]["secret"]["items"]


def test_one_router_alone_needs_no_store() -> None:
    objects = objects_of(ALONE)
    assert "store" not in config_of(objects)
    assert of_kind(objects, "StatefulSet") == of_kind(objects, "Secret") == []
    assert of_kind(objects, "PodDisruptionBudget") == []


def test_routers_with_a_whole_configuration_of_the_operator_s_share_a_store_all_the_same(tmp_path: Path) -> None:
    objects = objects_of({"config": {"existingConfigMap": "mine"}})
    deployment = named(objects, "Deployment", NAME)
    environ = {one["name"]: one["value"] for one in pod_of(deployment)["containers"][0]["env"]}
    file = tmp_path / "config.yaml"
    file.write_text("nodes: [gpu-1]\n")
    loaded = load_settings(str(file), environ=environ)
    assert loaded.warnings == ()
    assert loaded.settings.store.url == f"redis://{NAME}-redis:6379/0"
    assert loaded.settings.store.password_file == "/etc/ollama-router/redis-password"


def test_an_upgrade_of_the_router_does_not_start_its_valkey_anew() -> None:
    template = named(objects_of(), "StatefulSet", f"{NAME}-redis")["spec"]["template"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())["version"]
    assert chart not in json.dumps(template["metadata"])


def test_the_chart_installs_the_version_it_was_made_for() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert chart["appVersion"] == chart["version"] == version[1]


def test_its_rights_are_what_the_code_asks_for() -> None:
    """The only code that asks lists and watches, and every path is of a kind that is granted."""
    source = (ROOT / "router/discovery/api_server.py").read_text()
    assert re.findall(r'param_serialize\(\s*"([A-Z]+)"', source) == ["GET"]
    used = set()
    for kind, path in PATHS.items():
        group = "" if path.startswith("/api/v1") else path.split("/")[2]
        assert path.endswith(f"{{namespace}}/{kind.value}"), "a collection: list and watch, never a single object"
        used |= {(group, kind.value, verb) for verb in ("list", "watch")}
    (role,) = of_kind(objects_of(), "Role")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == used
    (lesser,) = of_kind(objects_of({"rbac": {"readPods": False}}), "Role")
    assert [rule["resources"] for rule in lesser["rules"]] == [[Kind.SLICES.value]]


def test_rights_stand_where_it_looks() -> None:
    several = objects_of({"discovery": {"kubernetes": {"namespaces": ["a", "b"]}}})
    assert [role["metadata"]["namespace"] for role in of_kind(several, "Role")] == ["a", "b"]
    assert {one["subjects"][0]["namespace"] for one in of_kind(several, "RoleBinding")} == {"llm"}
    everywhere = objects_of({"discovery": {"kubernetes": {"namespaces": ["*"]}}})
    assert [role["metadata"]["name"] for role in of_kind(everywhere, "ClusterRole")] == [f"llm-{NAME}"]
    assert of_kind(everywhere, "Role") == []


def test_without_kubernetes_discovery_there_are_no_rights_and_no_token() -> None:
    objects = objects_of({"discovery": {"kubernetes": {"enabled": False}}, "nodes": ["gpu-1"]})
    assert of_kind(objects, "Role") == of_kind(objects, "RoleBinding") == []
    assert pod_of(named(objects, "Deployment", NAME))["automountServiceAccountToken"] is False


@pytest.mark.parametrize(("drain", "streams"), [(5, 300), (30, 900), (0, 0)])
def test_a_pod_has_the_time_that_leaving_takes(drain: int, streams: int) -> None:
    objects = objects_of({"shutdown": {"drainDelaySeconds": drain, "streamDrainSeconds": streams}})
    deployment = named(objects, "Deployment", NAME)
    assert pod_of(deployment)["terminationGracePeriodSeconds"] == drain + streams + 15
    assert deployment["spec"]["progressDeadlineSeconds"] > drain + streams + 15
    assert config_of(objects)["shutdown"] == {"drain_delay_s": drain, "stream_drain_s": streams}


def test_probes_ask_different_questions() -> None:
    container = pod_of(named(objects_of(), "Deployment", NAME))["containers"][0]
    paths = {name: container[name]["httpGet"]["path"] for name in container if name.endswith("Probe")}
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


def test_a_roll_out_never_takes_a_pod_before_the_next_is_ready() -> None:
    strategy = named(objects_of(), "Deployment", NAME)["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}


def restart_mark(config: dict[str, Any], **values: Any) -> str:
    deployment = named(objects_of({"config": config, **values}), "Deployment", NAME)
    mark: str = deployment["spec"]["template"]["metadata"]["annotations"]["checksum/restart"]
    return mark


def test_pods_roll_for_what_needs_a_restart_and_for_nothing_else() -> None:
    basis = restart_mark({})
    assert restart_mark({"line": {"max_wait_s": 7}}, aliases={"gpt-4": "qwen3"}, nodes=["gpu-1"]) == basis
    changes: dict[str, Any] = {"pool": "other", "client": {"header_s": 7}, "log": {"format": "text"}, "workers": 2}
    changes |= {"limits": {"stream_buffer_bytes": 7}, "metrics": {"teams": True}, "admin": {"listen": "127.0.0.1:1"}}
    for key, value in changes.items():
        assert restart_mark({key: value}) != basis, key
    of_the_chart: dict[str, dict[str, Any]] = {
        "store": {"redis": {"auth": {"enabled": False}}},
        "tracing": {"tracing": {"enabled": True, "endpoint": "http://otel-collector:4318"}},
    }
    for key, values in of_the_chart.items():
        assert restart_mark({}, **values) != basis, key
    groups = {path.partition(".")[0] for path in NEED_RESTART} - {"listen", "metrics_listen", "tls"}
    assert groups == changes.keys() | of_the_chart.keys(), "each of them is tried here"


def test_every_file_is_mounted_as_a_folder_so_that_changes_arrive() -> None:
    for path in CI:
        pod = pod_of(named(objects_of(ci_values(path)), "Deployment", NAME))
        assert not [mount for mount in pod["containers"][0]["volumeMounts"] if "subPath" in mount]


def test_keys_are_known_by_their_digests_only() -> None:
    values = {"auth": {"enabled": True, "apiKeys": [{"team": "research", "key": "secret-key-of-research"}]}}
    objects = objects_of(values)
    keys = yaml.safe_load(named(objects, "Secret", f"{NAME}-keys")["stringData"]["keys.yaml"])
    assert keys == {"research": [hashlib.sha256(b"secret-key-of-research").hexdigest()]}
    assert "secret-key-of-research" not in json.dumps(objects)
    assert config_of(objects)["auth"] == {"required": True, "keys_file": "/etc/ollama-router/keys.yaml"}
    sources = pod_of(named(objects, "Deployment", NAME))["volumes"][0]["projected"]["sources"]
    assert sources[1]["secret"]["items"] == [{"key": "keys.yaml", "path": "keys.yaml"}]


def test_the_store_is_the_chart_s_own_or_somebody_else_s() -> None:
    own = objects_of({"redis": {"auth": {"enabled": False}}})
    assert config_of(own)["store"] == {"url": f"redis://{NAME}-redis:6379/0", "replicas": 2}
    assert of_kind(own, "Secret") == []
    theirs = config_of(objects_of(ci_values(CHART / "ci/external-redis-values.yaml")))["store"]
    assert theirs == {
        "url": "rediss://ollama-router@redis.example.com:6380/0",
        "password_file": "/etc/ollama-router/redis-password",
        "ca_file": "/etc/ollama-router/redis-ca.crt",
        "replicas": 3,
    }
    by_secret = objects_of(ci_values(CHART / "ci/redis-url-values.yaml"))
    assert config_of(by_secret)["store"] == {"replicas": 2}
    (variable,) = pod_of(named(by_secret, "Deployment", NAME))["containers"][0]["env"]
    assert variable["name"] == "OLLAMA_ROUTER_STORE__URL"


def test_the_store_may_be_behind_sentinels_or_a_cluster() -> None:
    watched = objects_of(ci_values(CHART / "ci/redis-sentinel-values.yaml"))
    store = config_of(watched)["store"]
    assert store == {
        "url": "rediss+sentinel://ollama-router@sentinel-1.redis,sentinel-2.redis:26380,sentinel-3.redis:26380/llm%20main/2",
        "password_file": "/etc/ollama-router/redis-password",
        "sentinel_user": "watcher",
        "sentinel_password_file": "/etc/ollama-router/sentinel-password",
        "ca_file": "/etc/ollama-router/redis-ca.crt",
        "cert_file": "/etc/ollama-router/redis-tls.crt",
        "key_file": "/etc/ollama-router/redis-tls.key",
        "replicas": 2,
    }
    url = parse_url(store["url"])
    assert (url.kind, url.is_tls, url.service, url.db) == ("sentinel", True, "llm main", 2)
    assert url.servers[:2] == (("sentinel-1.redis", 26379), ("sentinel-2.redis", 26380))
    store = config_of(objects_of(ci_values(CHART / "ci/redis-cluster-values.yaml")))["store"]
    assert store == {
        "url": "redis+cluster://redis-1,redis-2:7000",
        "password_file": "/etc/ollama-router/redis-password",
        "replicas": 2,
    }
    assert parse_url(store["url"]).servers == (("redis-1", 6379), ("redis-2", 7000))


@pytest.mark.parametrize("stem", ["external-redis", "redis-sentinel", "redis-cluster"])
def test_every_file_that_the_store_s_settings_name_is_in_the_pod_and_no_other(stem: str) -> None:
    objects = objects_of(ci_values(CHART / f"ci/{stem}-values.yaml"))
    sources = pod_of(named(objects, "Deployment", NAME))["volumes"][0]["projected"]["sources"]
    mounted = {item["path"]: source["secret"]["name"] for source in sources[1:] for item in source["secret"]["items"]}
    told = {key: Path(value).name for key, value in config_of(objects)["store"].items() if key.endswith("_file")}
    assert sorted(mounted) == sorted(told.values())
    assert mounted["redis-password"] == mounted.get("sentinel-password", "redis-credentials") == "redis-credentials"


def test_a_client_s_certificate_goes_with_the_system_s_authorities_and_may_hold_its_key() -> None:
    tls = {"enabled": True, "existingSecret": "client", "caKey": "", "certKey": "both.pem"}
    objects = objects_of({**NO_REDIS, "externalRedis": {"host": "redis", "tls": tls}})
    assert config_of(objects)["store"] == {
        "url": "rediss://redis:6379/0",
        "cert_file": "/etc/ollama-router/redis-tls.crt",
        "replicas": 2,
    }


SCALED = {"autoscaling": {"enabled": True, "minReplicas": 3, "maxReplicas": 9}}
BY_KEDA = {"keda": {"enabled": True, "minReplicaCount": 4, "maxReplicaCount": 9, "triggers": [{"type": "cpu"}]}}


@pytest.mark.parametrize(("values", "least"), [({"replicaCount": 5}, 5), (SCALED, 3), (BY_KEDA, 4)])
def test_a_router_that_starts_without_the_store_shares_with_as_many_as_there_are_at_least(
    values: dict[str, Any], least: int
) -> None:
    assert config_of(objects_of(values))["store"]["replicas"] == least


def test_another_number_of_routers_starts_none_of_them_anew() -> None:
    two, three = (named(objects_of({"replicaCount": count}), "Deployment", NAME)["spec"] for count in (2, 3))
    assert two["template"] == three["template"]


def test_sentinels_that_a_url_names_may_have_a_password_of_their_own(tmp_path: Path) -> None:
    sentinel = {"username": "watcher", "existingSecret": "sentinels", "existingSecretPasswordKey": "password"}
    external = {"url": "redis+sentinel://s-1,s-2/mymaster", "sentinel": sentinel}
    objects = objects_of({**NO_REDIS, "externalRedis": external, "config": {"existingConfigMap": "mine"}})
    pod = pod_of(named(objects, "Deployment", NAME))
    file = tmp_path / "config.yaml"
    file.write_text("nodes: [gpu-1]\n")
    environ = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    store = load_settings(str(file), environ=environ).settings.store
    assert (store.url, store.sentinel_user) == ("redis+sentinel://s-1,s-2/mymaster", "watcher")
    assert store.sentinel_password_file == "/etc/ollama-router/sentinel-password"
    assert pod["volumes"][0]["projected"]["sources"][1]["secret"]["name"] == "sentinels"


@pytest.mark.parametrize(
    ("external", "ports"),
    [
        ({"host": "redis", "port": 6380}, [6380]),
        ({"url": "redis://user@redis:6381/0"}, [6381]),
        ({"url": "rediss://redis/3"}, [6379]),
        ({"url": "redis://[fd00::7]/3"}, [6379]),
        ({"existingSecret": "a", "existingSecretUrlKey": "url", "port": 6382}, [6382]),
        ({"url": "redis+sentinel://s-1:26380,s-2,[fd00::7]:26381/mymaster", "port": 6383}, [26380, 26379, 26381, 6383]),
        ({"sentinel": {"enabled": True, "masterSet": "m", "nodes": ["s-1", "s-2"]}}, [26379, 6379]),
        ({"cluster": {"enabled": True, "nodes": ["redis-1:7000", "redis-2"]}}, [7000, 6379]),
    ],
)
def test_policies_let_routers_through_to_sentinels_and_servers(external: dict[str, Any], ports: list[int]) -> None:
    objects = objects_of({**NO_REDIS, "externalRedis": external, "networkPolicy": {"enabled": True}})
    egress = named(objects, "NetworkPolicy", NAME)["spec"]["egress"]
    assert {"ports": [{"port": port, "protocol": "TCP"} for port in ports]} in egress


def test_only_routers_reach_the_chart_s_valkey_where_policies_are_made() -> None:
    objects = objects_of({"networkPolicy": {"enabled": True}})
    policy = named(objects, "NetworkPolicy", f"{NAME}-redis")["spec"]
    ours = {name: workload["spec"]["selector"] for name, workload in by_component(objects).items()}
    assert policy["podSelector"] == ours["redis"]
    assert policy["ingress"] == [
        {"ports": [{"port": "redis", "protocol": "TCP"}], "from": [{"podSelector": ours["router"]}]}
    ]
    assert "egress" not in policy, "it calls nobody"


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://otel:4318/v1/traces", 4318),
        ("https://otel.example.com", 443),
        ("http://[fd00::7]", 80),
        ("http://10.0.0.5", 80),
    ],
)
def test_policies_let_traces_through_to_their_receiver(endpoint: str, port: int) -> None:
    objects = objects_of({"networkPolicy": {"enabled": True}, "tracing": {"enabled": True, "endpoint": endpoint}})
    egress = named(objects, "NetworkPolicy", NAME)["spec"]["egress"]
    assert {"ports": [{"port": port, "protocol": "TCP"}]} in egress


def by_component(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    made = [one for one in workloads(objects) if one["kind"] != "Pod"]
    return {one["metadata"]["labels"]["app.kubernetes.io/component"]: one for one in made}


def test_a_password_stands_in_no_command_line() -> None:
    redis = named(objects_of(), "StatefulSet", f"{NAME}-redis")
    container = pod_of(redis)["containers"][0]
    assert "--requirepass" not in json.dumps(container)
    assert "env" not in container


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_valkey_s_metrics_are_scraped_and_never_taken_for_a_router_s(kind: str) -> None:
    monitor = {kind[0].lower() + kind[1:]: {"enabled": True, "renderMode": "alwaysRender"}}
    objects = objects_of({"redis": {"metrics": {"enabled": True}}, "metrics": monitor})
    of_routers, of_redis = (one["spec"] for one in of_kind(objects, kind))
    assert of_redis["jobLabel"] == "app.kubernetes.io/component" != of_routers["jobLabel"]
    workload = named(objects, "StatefulSet", f"{NAME}-redis")
    service = named(objects, "Service", f"{NAME}-redis")
    labels = (
        service["metadata"]["labels"]
        if kind == "ServiceMonitor"
        else workload["spec"]["template"]["metadata"]["labels"]
    )
    assert of_redis["selector"]["matchLabels"].items() <= labels.items()
    assert not of_routers["selector"]["matchLabels"].items() <= labels.items()
    exporter = pod_of(workload)["containers"][1]
    assert {port["name"] for port in exporter["ports"]} == {"metrics"}
    assert exporter["env"][1]["valueFrom"]["secretKeyRef"]["name"] == f"{NAME}-redis"


def test_ollama_of_the_chart_is_found_by_its_router() -> None:
    objects = objects_of({"ollama": {"enabled": True, "models": ["llama3.2:3b"]}})
    service = named(objects, "Service", f"{NAME}-ollama")
    assert service["metadata"]["labels"]["app.kubernetes.io/name"] == "ollama"
    assert [port["name"] for port in service["spec"]["ports"]] == ["http"]
    server = pod_of(named(objects, "StatefulSet", f"{NAME}-ollama"))["containers"][0]
    assert {"name": "OLLAMA_NUM_PARALLEL", "value": "4"} in server["env"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    routers = named(objects, "Deployment", NAME)["spec"]["selector"]["matchLabels"]
    assert not routers.items() <= service["spec"]["selector"].items()


def test_operators_objects_wait_for_their_kinds() -> None:
    for mode, count in (("skipIfMissing", 0), ("alwaysRender", 1)):
        monitor = {"enabled": True, "renderMode": mode}
        objects = objects_of({"metrics": {"serviceMonitor": monitor, "prometheusRule": monitor}})
        assert len(of_kind(objects, "ServiceMonitor")) == len(of_kind(objects, "PrometheusRule")) == count
    missing = {"metrics": {"podMonitor": {"enabled": True, "renderMode": "failIfMissing"}}}
    assert "this cluster knows no PodMonitor: install the Prometheus Operator first" in problems_of(missing)


def test_a_service_monitor_finds_exactly_the_metrics_service() -> None:
    objects = objects_of(ci_values(CHART / "ci/full-values.yaml"))
    selector = named(objects, "ServiceMonitor", NAME)["spec"]["selector"]["matchLabels"].items()
    services = [one["metadata"] for one in of_kind(objects, "Service")]
    assert [meta["name"] for meta in services if selector <= meta["labels"].items()] == [f"{NAME}-metrics"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on PATH")
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    objects = objects_of({"metrics": {"prometheusRule": {"enabled": True, "renderMode": "alwaysRender"}}})
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(named(objects, "PrometheusRule", NAME)["spec"]))
    done = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", chart_docs.alerts())
def test_each_alert_may_be_left_out_held_longer_and_called_otherwise(name: str) -> None:
    usual = alerts_of({})
    assert [rule for rule in usual if rule["alert"] != name] == alerts_of({name: {"enabled": False}})
    changed = alerts_of({name: {"for": "42m", "severity": "page"}})
    for before, after in zip(usual, changed, strict=True):
        told = {"for": "42m", "labels": {**before["labels"], "severity": "page"}} if before["alert"] == name else {}
        assert after == {**before, **told}


@pytest.mark.parametrize(
    "name", [name for name, rules in chart_docs.alerts().items() if all("# threshold" in one["expr"] for one in rules)]
)
def test_a_threshold_may_be_another_one_and_nothing_else_of_the_expression_changes(name: str) -> None:
    before, after = (
        next(rule["expr"] for rule in alerts_of(changes) if rule["alert"] == name)
        for changes in ({}, {name: {"threshold": 0.125}})
    )
    assert after == re.sub(r"> \S+  # threshold", "> 0.125  # threshold", before) != before
    promql_parser.parse(after)


def test_an_alert_without_a_threshold_takes_none_and_one_that_there_is_not_takes_nothing() -> None:
    rule = {"enabled": True, "renderMode": "alwaysRender"}
    for changes in ({"OllamaRouterDown": {"threshold": 1}}, {"OllamaRouterAsleep": {"enabled": False}}):
        told = problems_of({"metrics": {"prometheusRule": {**rule, "defaultRules": changes}}})
        assert "additional properties" in told


def alerts_of(changes: dict[str, Any], **values: Any) -> list[dict[str, Any]]:
    rule = {"enabled": True, "renderMode": "alwaysRender", "defaultRules": changes}
    (made,) = of_kind(objects_of({"metrics": {"prometheusRule": rule}, **values}), "PrometheusRule")
    groups = made["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def test_spans_say_which_pod_they_are_of_and_carry_the_receiver_s_credentials() -> None:
    objects = objects_of(ci_values(CHART / "ci/full-values.yaml"))
    assert config_of(objects)["tracing"]["headers_file"] == "/etc/ollama-router/tracing-headers"
    container = pod_of(named(objects, "Deployment", NAME))["containers"][0]
    (told,) = [one["value"] for one in container["env"] if one["name"] == "OTEL_RESOURCE_ATTRIBUTES"]
    assert told == (
        "k8s.pod.name=$(POD_NAME),k8s.namespace.name=$(POD_NAMESPACE),"
        "service.instance.id=$(POD_NAMESPACE).$(POD_NAME),deployment.environment.name=pro%2C%20duction"
    )
    by_name = {one["name"]: index for index, one in enumerate(container["env"])}
    assert by_name["POD_NAME"] < by_name["OTEL_RESOURCE_ATTRIBUTES"], "Kubernetes fills in what stands before"


def test_helm_test_calls_with_a_key_where_it_is_given_one() -> None:
    auth = {"enabled": True, "existingSecret": "keys"}
    for tests, given in (({}, None), ({"existingSecret": "mine"}, {"name": "mine", "key": "api-key"})):
        pod = pod_of(named(objects_of({"auth": auth, "tests": tests}), "Pod", f"{NAME}-test"))
        found = [one["valueFrom"]["secretKeyRef"] for one in pod["containers"][0].get("env", [])]
        assert found == ([given] if given else [])


async def test_helm_test_passes_before_a_router_that_asks_for_keys_and_fails_before_an_open_one() -> None:
    program = pod_of(named(objects_of({"auth": {"enabled": True, "existingSecret": "a"}}), "Pod", f"{NAME}-test"))
    async with SimulatedPool(nodes=1) as pool:
        for auth, key, code in (({"required": True}, KEY, 0), ({"required": True}, "sk-other", 1), ({}, "", 1)):
            async with router_before(pool.nodes, auth=auth, teams=teams()) as router:
                assert await ran(program["containers"][0]["args"][0], router, key) == code


async def ran(program: str, router: Router, key: str) -> int:
    """Its exit code."""
    base, metrics = (f"http://127.0.0.1:{port}" for port in (router.port, router.metrics_port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, base, metrics, env={"API_KEY": key}, stdout=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


def test_what_artifact_hub_is_told_of_images_is_what_is_run() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    told = {one["image"] for one in yaml.safe_load(chart["annotations"]["artifacthub.io/images"])}
    objects = objects_of({"ollama": {"enabled": True}, "redis": {"metrics": {"enabled": True}}})
    pods = [pod_of(one) for one in workloads(objects)]
    assert told == {c["image"] for pod in pods for c in (*pod["containers"], *pod.get("initContainers", []))}


def test_the_chart_s_icon_exists() -> None:
    icon = yaml.safe_load((CHART / "Chart.yaml").read_text())["icon"]
    assert (ROOT / icon.partition("/main/")[2]).is_file()


@pytest.mark.parametrize(
    ("named", "job"),
    [
        ({}, ".*ollama-router.*"),
        ({"nameOverride": "llm"}, ".*llm.*"),
        ({"fullnameOverride": "gate"}, ".*(ollama-router|gate).*"),
    ],
)
def test_alerts_find_a_release_under_another_name(named: dict[str, str], job: str) -> None:
    expressions = "".join(rule["expr"] for rule in alerts_of({}, **named))
    assert set(re.findall(r'(?:job|deployment)=~"([^"]*)"', expressions)) == {job}


def test_each_alert_leads_to_a_page_that_helps() -> None:
    base = "https://runbooks.example.com"
    rule = {"enabled": True, "renderMode": "alwaysRender", "runbookUrlBase": base}
    groups = named(objects_of({"metrics": {"prometheusRule": rule}}), "PrometheusRule", NAME)["spec"]["groups"]
    urls = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert urls
    assert [url for url in urls if not (ROOT / "docs/runbooks" / url.removeprefix(f"{base}/")).is_file()] == []


def test_what_the_project_has_of_dashboards_and_alerts_is_in_the_chart() -> None:
    """`make chart-files` copies them: Helm packs nothing from outside of its folder."""
    for pattern, folder in (("dashboards/*.json", "dashboards"), ("dashboards/rules/*.yaml", "alerts")):
        for path in ROOT.glob(pattern):
            packed = CHART / folder / path.name
            assert packed.exists(), "make chart-files"
            assert packed.read_bytes() == path.read_bytes(), "make chart-files"
        left_over = {path.name for path in (CHART / folder).iterdir()} - {path.name for path in ROOT.glob(pattern)}
        assert left_over == set()


def test_dashboards_become_config_maps_that_grafana_s_sidecar_finds() -> None:
    maps = objects_of({"grafanaDashboards": {"enabled": True}})
    maps = [one for one in of_kind(maps, "ConfigMap") if one["metadata"]["name"] != NAME]
    assert len(maps) == len(list((CHART / "dashboards").glob("*.json")))
    for one in maps:
        assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert one["metadata"]["annotations"] == {"grafana_folder": "Ollama"}
        assert all(json.loads(text) for text in one["data"].values())
        assert len(json.dumps(one)) < 900_000


def test_dashboards_lead_to_the_runbooks_that_alerts_lead_to() -> None:
    base = "https://runbooks.example.com"
    maps = objects_of({
        "grafanaDashboards": {"enabled": True}, "metrics": {"prometheusRule": {"runbookUrlBase": base}},
    })  # fmt: skip
    texts = "".join(text for one in of_kind(maps, "ConfigMap") for text in one["data"].values())
    assert f"{base}/OllamaRouterNodeDown.md" in texts
    assert "docs/runbooks" not in texts


# --- what is refused

WATCHED: dict[str, Any] = {"enabled": True, "masterSet": "mymaster", "nodes": ["s-1"]}
CLIENT: dict[str, Any] = {"enabled": True, "existingSecret": "client"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (NO_REDIS, "2 replicas and nothing that they share"),
    ({**NO_REDIS, "autoscaling": {"enabled": True}}, "6 replicas and nothing that they share"),
    ({"externalRedis": {"url": "redis://a"}}, "set redis.enabled=false for a Redis of your own"),
    (
        {**NO_REDIS, "externalRedis": {"host": "a", "existingSecretPasswordKey": "p"}},
        "set externalRedis.existingSecret",
    ),
    (
        {**NO_REDIS, "externalRedis": {"url": "redis://a", "tls": {"enabled": True}}},
        "in externalRedis.url write rediss://",
    ),
    (
        {**NO_REDIS, "externalRedis": {"url": "redis://a", "host": "a"}},
        "more than once where it is, by host, url: keep",
    ),
    (
        {**NO_REDIS, "externalRedis": {"host": "a", "sentinel": WATCHED}},
        "more than once where it is, by host, sentinel",
    ),
    ({**NO_REDIS, "externalRedis": {"cluster": {"enabled": True}, "sentinel": WATCHED}}, "by cluster, sentinel"),
    ({**NO_REDIS, "externalRedis": {"url": "redis://user:secret@a"}}, "externalRedis.url holds a password"),
    ({**NO_REDIS, "externalRedis": {"host": "a", "existingSecret": "b"}}, "is set and no key of it"),
    ({"externalRedis": {"tls": {"enabled": True}}}, "tls.enabled and no Redis that it is for"),
    ({**NO_REDIS, "externalRedis": {"host": "a", "tls": {"existingSecret": "b"}}}, "the store speaks no TLS"),
    ({"externalRedis": {"tls": {"existingSecret": "b"}}}, "the store speaks no TLS"),
    (
        {**NO_REDIS, "externalRedis": {"host": "a", "tls": {"enabled": True, "certKey": "tls.crt"}}},
        "set externalRedis.tls.existingSecret",
    ),
    (
        {**NO_REDIS, "externalRedis": {"host": "a", "tls": {**CLIENT, "keyKey": "tls.key"}}},
        "set externalRedis.tls.certKey",
    ),
    ({**NO_REDIS, "externalRedis": {"host": "a", "tls": {**CLIENT, "caKey": ""}}}, "nothing of it is used"),
    ({**NO_REDIS, "externalRedis": {"sentinel": {**WATCHED, "nodes": []}}}, "name all sentinels"),
    (
        {**NO_REDIS, "externalRedis": {"sentinel": {**WATCHED, "masterSet": ""}}},
        "what do the sentinels call the primary?",
    ),
    (
        {**NO_REDIS, "externalRedis": {"host": "a", "sentinel": {"nodes": ["s-1"]}}},
        "set externalRedis.sentinel.enabled",
    ),
    (
        {**NO_REDIS, "externalRedis": {"host": "a", "sentinel": {"username": "b"}}},
        "and there are no sentinels",
    ),
    (
        {**NO_REDIS, "externalRedis": {"sentinel": {**WATCHED, "existingSecret": "a"}}},
        "sentinel.existingSecretPasswordKey",
    ),
    (
        {**NO_REDIS, "externalRedis": {"sentinel": {**WATCHED, "existingSecretPasswordKey": "a"}}},
        "externalRedis.sentinel names a key of a Secret and no Secret",
    ),
    ({**NO_REDIS, "externalRedis": {"cluster": {"enabled": True}}}, "name some of its servers"),
    ({**NO_REDIS, "externalRedis": {"host": "a", "cluster": {"nodes": ["b"]}}}, "set externalRedis.cluster.enabled"),
    (
        {**NO_REDIS, "externalRedis": {"cluster": {"enabled": True, "nodes": ["b"]}, "database": 1}},
        "externalRedis.database 1: a cluster has no databases",
    ),
    (
        {**NO_REDIS, "externalRedis": {"sentinel": {**WATCHED, "nodes": ["redis://s-1"]}}},
        "redis://s-1 is neither host nor host:port",
    ),
    ({"auth": {"enabled": True}}, "auth.enabled and nobody has a key"),
    ({"auth": {"existingSecret": "a", "apiKeys": [{"team": "a", "key": "b"}]}}, "remove the plain keys"),
    (
        {"autoscaling": {"enabled": True}, "keda": {"enabled": True, "triggers": [{}]}},
        "autoscaling.enabled and keda.enabled would both scale",
    ),
    ({"keda": {"enabled": True}}, "keda.triggers is empty"),
    (
        {"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}},
        "metrics.serviceMonitor and metrics.podMonitor would both scrape every pod",
    ),
    ({"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}}, "needs the Service of metrics.enabled"),
    ({"httpRoute": {"enabled": True}}, "which Gateway is it for?"),
    ({"tracing": {"enabled": True}}, "tracing.endpoint is empty"),
    ({"discovery": {"dns": {"enabled": True}}}, "name headless Services"),
    ({"discovery": {"kubernetes": {"enabled": False}}}, "there is nothing to route to"),
    ({"discovery": {"kubernetes": {"namespaces": ["*", "a"]}}}, 'names "*" and others'),
    (
        {"terminationGracePeriodSeconds": 30},
        "drainDelaySeconds + shutdown.streamDrainSeconds + 15 = 320",
    ),
    ({"podDisruptionBudget": {"minAvailable": 1}}, "set the other to null"),
    ({"podDisruptionBudget": {"maxUnavailable": None}}, "neither minAvailable nor maxUnavailable"),
    ({"autoscaling": {"enabled": True, "minReplicas": 9}}, "minReplicas 9 is more than autoscaling.maxReplicas 6"),
    ({"tests": {"existingSecret": "a"}}, "nobody asks for it"),
    ({"config": {"nodes": []}}, "config.nodes: the chart says this itself; set nodes at the top instead"),
    ({"config": {"store": {}}}, "set redis or externalRedis at the top instead"),
    ({"config": {"existingConfigMap": "a", "pool": "b"}}, "other settings stand beside it"),
]


@pytest.mark.parametrize(("values", "text"), REFUSED, ids=[text[:40] for _, text in REFUSED])
def test_values_that_cannot_be_are_refused_with_a_line_that_says_why(values: dict[str, Any], text: str) -> None:
    assert text in problems_of(values)


def test_all_that_is_wrong_is_told_at_once() -> None:
    told = problems_of({**NO_REDIS, "auth": {"enabled": True}, "config": {"nodes": []}})
    assert len(re.findall(r"^- ", told, re.MULTILINE)) == 3


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"replicas": 2}, "replicas"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"service": {"type": "Internal"}}, "type"),
        ({"discovery": {"kubernetes": {"namespaces": "llm"}}}, "namespaces"),
        ({"replicaCount": -1}, "replicaCount"),
        ({"discovery": {"kubernetes": {"namespaces": [1]}}}, "namespaces"),
        ({"auth": {"enabled": True, "apiKeys": [{"key": "sk-1"}]}}, "team"),
        ({"auth": {"enabled": True, "apiKeys": ["sk-1"]}}, "apiKeys"),
        ({"service": {"port": 70000}}, "port"),
        ({**NO_REDIS, "externalRedis": {"sentinel": {**WATCHED, "nodes": [26379]}}}, "nodes"),
    ],
)
def test_the_schema_refuses_what_the_chart_does_not_know(values: dict[str, Any], word: str) -> None:
    assert word in problems_of(values)


# --- documents


def test_the_readme_and_the_schema_say_what_the_values_say() -> None:
    assert (CHART / "README.md").read_text() == chart_docs.readme(), "python -m tests.deploy.chart_docs"
    assert (CHART / "values.schema.json").read_text() == chart_docs.schema_text(), "python -m tests.deploy.chart_docs"


def test_what_the_chart_says_itself_is_what_its_own_words_refuse() -> None:
    told = problems_of({"config": {key: {"a": "b"} for key in chart_docs.SAID_BY_THE_CHART}})
    assert set(re.findall(r"^- config\.(\w+): the chart says this itself", told, re.MULTILINE)) == set(
        chart_docs.SAID_BY_THE_CHART
    )


def test_every_value_says_what_it_does() -> None:
    assert [value.name for value in chart_docs.values() if not value.is_group and not value.text] == []


def test_every_value_is_used() -> None:
    templates = "".join(path.read_text() for path in (CHART / "templates").rglob("*") if path.is_file())
    unused = [value.name for value in chart_docs.values() if not value.is_group and value.path[-1] not in templates]
    # Of probes, all but `enabled` is passed on as it is; so are the two of HTTPRoute's time-outs.
    passed = ("startupProbe.", "livenessProbe.", "readinessProbe.", "httpRoute.timeouts.")
    assert [name for name in unused if not name.startswith(passed)] == []


def test_notes_tell_the_address_and_what_to_look_out_for() -> None:
    (notes,) = [text for name, text in texts_of().items() if name.endswith("NOTES.txt")]
    assert "http://r-ollama-router.llm:11434/v1" in notes
    assert "WARNING: whoever reaches the Service may use every node" in notes
    assert "no store" not in notes


def test_notes_warn_of_routers_that_may_share_nothing() -> None:
    told = texts_of({**NO_REDIS, "config": {"existingConfigMap": "mine"}})
    (notes,) = [text for name, text in told.items() if name.endswith("NOTES.txt")]
    assert "WARNING: 2 routers, and the chart knows of no store that they share: unless mine names" in notes
