"""On a real Kubernetes, in this order: install without a value, serve, follow pods, upgrade, survive, leave no trace.

RBAC and Pod Security `restricted` are enforced there. `make e2e-kube` runs it; nothing else does.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube.cluster_house import (
    CHART,
    HERE,
    IMAGE,
    NAMESPACE,
    RELEASE,
    Cluster,
    cluster,
    needs_root,
    until,
)

pytestmark = [pytest.mark.kube, pytest.mark.timeout(600), pytest.mark.xdist_group("kube")]
CACHE = Path(os.environ.get("KUBE_CACHE", HERE.parents[1] / ".cache" / "kube"))
STREAMS = 50
VALKEY = f"statefulset/{RELEASE}-redis"
SETTLED = {"ollama-0": "healthy", "ollama-1": "healthy"}


@pytest.fixture(scope="module")
def at() -> Iterator[Cluster]:
    needs_root()
    with cluster(CACHE / "bin", CACHE / "state") as found:
        for archive in ("router.tar", "client.tar", "valkey.tar", "ollama.tar"):
            found.load_image(CACHE / "images" / archive)
        restricted(found, NAMESPACE)
        found.kubectl("create", "configmap", "simulated-node", f"--from-file={HERE / 'node.py'}")
        found.kubectl("apply", "-f", "-", given=(HERE / "ollama.yaml").read_text().replace("IMAGE", IMAGE))
        found.kubectl("rollout", "status", "statefulset/ollama", "--timeout=120s")
        yield found


def restricted(at: Cluster, namespace: str) -> None:
    at.run("kubectl", "create", "namespace", namespace)
    at.run("kubectl", "label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")


def settle(at: Cluster) -> None:
    until(lambda: at.all_see(SETTLED), "both nodes are healthy for every router")


def busiest(at: Cluster, asked: Callable[[], dict[str, dict[str, Any]]]) -> str:
    """The node with most calls, once there are several: to take one away that has none would prove nothing."""

    def used() -> dict[str, int]:
        return {name: node["used"] for name, node in asked().items()}

    until(lambda: max(used().values(), default=0) > 1, "a node has calls")
    counts = used()
    return max(counts, key=lambda name: counts[name])


def test_it_installs_without_a_value_and_tells_what_it_found(at: Cluster) -> None:
    notes = at.helm("install", RELEASE, str(CHART), "--wait", "--timeout", "120s")
    assert "2 Ollama pods are ready behind Services labelled app.kubernetes.io/name=ollama in llm." in notes
    assert "NO NODE" not in notes
    settle(at)
    nodes = at.nodes()
    assert {node["machine"] for node in nodes.values()} == {"lab"}


def test_two_routers_share_the_chart_s_valkey_which_asks_for_its_password(at: Cluster) -> None:
    assert len(at.routers()) == 2
    until(at.shares, "both routers have the store")
    assert "NOAUTH" in at.kubectl("exec", VALKEY, "--", "valkey-cli", "ping")
    command = 'REDISCLI_AUTH="$(cat /etc/redis/password)" valkey-cli config get maxmemory-policy'
    assert "noeviction" in at.kubectl("exec", VALKEY, "--", "sh", "-c", command)


def test_helm_test_passes(at: Cluster) -> None:
    assert "Phase:          Succeeded" in at.helm("test", RELEASE, "--timeout", "120s")


def test_the_official_client_chats_and_streams_from_another_pod(at: Cluster) -> None:
    result = at.begin_load(streams=4, seconds=5).result()
    assert result["failed"] == {}
    assert set(result["done"]) == {"plain", "stream"}
    assert sum(node["slots"] for node in at.nodes().values()) >= 64, "OLLAMA_NUM_PARALLEL, as the pods say"


def test_the_pod_has_no_other_rights_than_to_look(at: Cluster) -> None:
    account = f"system:serviceaccount:{NAMESPACE}:{RELEASE}"
    for verb, what, answer in (
        ("list", "endpointslices", "yes"),
        ("watch", "pods", "yes"),
        ("get", "secrets", "no"),
        ("patch", "pods", "no"),
        ("create", "pods/exec", "no"),
    ):
        assert at.kubectl("auth", "can-i", verb, what, f"--as={account}", may_fail=True).strip() == answer, (verb, what)


def test_nodes_come_and_go_under_load_and_no_call_fails(at: Cluster) -> None:
    load = at.begin_load(streams=10, seconds=30)
    at.kubectl("scale", "statefulset/ollama", "--replicas=3")
    until(lambda: at.all_see({**SETTLED, "ollama-2": "healthy"}), "the third node is healthy")
    at.kubectl("scale", "statefulset/ollama", "--replicas=2")
    until(lambda: at.all_see(SETTLED), "the third node is gone")
    assert load.result()["failed"] == {}


def test_an_annotation_empties_a_node_and_status_says_when_it_is_safe(at: Cluster) -> None:
    load = at.begin_load(streams=10, seconds=20)
    at.kubectl("annotate", "pod", "ollama-0", "ollama-router.io/drain=true")
    until(lambda: at.all_see({**SETTLED, "ollama-0": "draining"}), "the node drains")
    until(lambda: all(at.nodes(one)["ollama-0"]["is_idle"] for one in at.routers()), "nothing runs there any more")
    at.kubectl("annotate", "pod", "ollama-0", "ollama-router.io/drain-")
    settle(at)
    assert load.result()["failed"] == {}


def test_a_pod_that_is_deleted_ends_what_it_has_and_its_successor_is_another_start(at: Cluster) -> None:
    load = at.begin_load(streams=10, seconds=25)
    leaving = busiest(at, at.nodes)
    at.kubectl("delete", "pod", leaving, "--wait=false")
    until(lambda: at.states().get(leaving) != "healthy", "it is seen leaving")
    until(lambda: at.all_see(SETTLED), "its successor is healthy")
    assert load.result()["failed"] == {}


def test_a_node_that_is_killed_costs_its_open_streams_and_nothing_after_them(at: Cluster) -> None:
    load = at.begin_load(streams=10, seconds=20)
    killed = busiest(at, at.nodes)
    at.kill(killed, "ollama")
    until(lambda: at.is_started_anew(killed, "ollama"), "it is started anew")
    settle(at)
    failed = load.result()["failed"]
    assert 0 < sum(failed.values()) <= 12, failed
    assert at.begin_load(streams=4, seconds=3).result()["failed"] == {}


def test_an_upgrade_and_a_roll_back_under_open_streams_fail_no_call(at: Cluster) -> None:
    before = set(at.routers())
    password = at.kubectl("get", "secret", f"{RELEASE}-redis", "-o", "jsonpath={.data}")
    valkey = at.kubectl("get", "pod", f"{RELEASE}-redis-0", "-o", "jsonpath={.metadata.uid}")
    load = at.begin_load(streams=STREAMS, seconds=60)
    changed = ("--reset-then-reuse-values", "--set", "config.log.format=text")
    at.helm("upgrade", RELEASE, str(CHART), *changed, "--wait", "--timeout", "200s")
    assert before.isdisjoint(at.routers())
    at.helm("rollback", RELEASE, "1", "--wait", "--timeout", "200s")
    result = load.result()
    assert result["failed"] == {}
    assert result["done"]["stream"] > STREAMS
    assert at.kubectl("get", "secret", f"{RELEASE}-redis", "-o", "jsonpath={.data}") == password, "it is kept"
    assert at.kubectl("get", "pod", f"{RELEASE}-redis-0", "-o", "jsonpath={.metadata.uid}") == valkey, (
        "it is left alone"
    )
    until(at.shares, "both routers have the store")


def test_a_change_of_the_list_arrives_without_a_restart(at: Cluster) -> None:
    before = at.routers()
    at.helm("upgrade", RELEASE, str(CHART), "--set", "nodes={http://192.0.2.77:11434}", "--wait", "--timeout", "120s")
    until(
        lambda: all("192.0.2.77:11434" in at.states(one) for one in before), "every router knows the node of the list"
    )
    assert at.routers() == before
    at.helm("rollback", RELEASE, "--wait", "--timeout", "120s")
    settle(at)


def test_a_router_that_is_killed_costs_its_own_calls_and_the_other_one_serves(at: Cluster) -> None:
    gone, other = at.routers()
    load = at.begin_load(streams=10, seconds=25)
    at.kill(gone, "router")
    until(lambda: at.is_started_anew(gone, "router"), "it is started anew")
    settle(at)
    failed = load.result()["failed"]
    # Open at the one that was killed, and what came before kube-proxy heard of it.
    assert sum(failed.values()) <= 24, failed
    assert at.begin_load(streams=4, seconds=3).result()["failed"] == {}
    until(
        lambda: all(node["is_idle"] for node in at.nodes(other).values()),
        "the slots of the one that was killed are free",
    )
    until(at.shares, "both routers have the store")


def evicted(at: Cluster, pod: str) -> bool:
    """As `kubectl drain` of its machine asks for it. False where the budget of disruptions says no."""
    meta = {"name": pod, "namespace": NAMESPACE}
    eviction = json.dumps({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": meta})
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    answer = at.run("kubectl", "create", "--raw", path, "-f", "-", given=eviction, may_fail=True)
    return "Success" in answer


def test_a_machine_that_is_drained_takes_one_router_at_a_time_and_no_call_fails(at: Cluster) -> None:
    first, second = at.routers()
    load = at.begin_load(streams=10, seconds=30)
    assert evicted(at, first)
    assert not evicted(at, second), "before the first is replaced"
    until(lambda: evicted(at, second), "the first is replaced")
    until(lambda: len(at.routers()) == 2 and {first, second}.isdisjoint(at.routers()), "both are replaced")
    settle(at)
    assert load.result()["failed"] == {}
    until(at.shares, "both routers have the store")


def test_while_valkey_starts_anew_no_call_fails_and_then_both_routers_share_again(at: Cluster) -> None:
    load = at.begin_load(streams=STREAMS, seconds=40)
    at.kubectl("delete", "pod", f"{RELEASE}-redis-0", "--grace-period=0", "--force")
    # By their logs: it is over within three seconds, too soon for a look at gauges.
    until(lambda: all("redis is away" in at.kubectl("logs", one) for one in at.routers()), "both routers go on alone")
    at.kubectl("rollout", "status", VALKEY, "--timeout=120s")
    until(at.shares, "both routers have the store")
    result = load.result()
    assert result["failed"] == {}
    assert result["done"]["stream"] > STREAMS


def asked_with(at: Cluster, router: str, key: str) -> str:
    """The status of a list that is asked for with this key, at this router."""
    url = "http://127.0.0.1:11435/v1/models"
    code = (
        "import sys, urllib.request as u, urllib.error as e\n"
        "try: print(u.urlopen(u.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})).status)\n"
        "except e.HTTPError as error: print(error.code)"
    )
    return at.kubectl("exec", router, "--", "python3", "-c", code, url, key).strip()


def test_keys_are_asked_for_and_rotated_without_a_restart(at: Cluster) -> None:
    first, second = "first-key-of-research", "second-key-of-research"

    def give(key: str) -> None:
        keys = ("--set", "auth.enabled=true", "--set", f"auth.apiKeys[0].team=research,auth.apiKeys[0].key={key}")
        one = ("--set", "tests.existingSecret=one-key")
        at.helm("upgrade", RELEASE, str(CHART), *keys, *one, "--wait", "--timeout", "200s")

    def answers(key: str) -> set[str]:
        return {asked_with(at, router, key) for router in at.routers()}

    at.kubectl("create", "secret", "generic", "one-key", f"--from-literal=api-key={first}")
    give(first)
    until(lambda: answers(first) == {"200"}, "the key is known")
    assert answers(second) == {"401"}
    assert "Phase:          Succeeded" in at.helm("test", RELEASE, "--timeout", "120s")
    before = at.routers()
    give(second)
    until(lambda: answers(second) == {"200"}, "the next key is known, as soon as kubelet has brought it")
    assert answers(first) == {"401"}
    assert at.routers() == before
    assert "Succeeded" not in at.helm("test", RELEASE, "--timeout", "120s", may_fail=True), "with the key of before"
    # The pod of a test that fails stays, for whoever wants to know why; Helm leaves it behind.
    assert "401" in at.kubectl("logs", f"{RELEASE}-test")
    at.kubectl("delete", "pod", f"{RELEASE}-test")
    at.kubectl("delete", "secret", "one-key")
    at.helm("upgrade", RELEASE, str(CHART), "--wait", "--timeout", "200s")


def test_uninstalling_leaves_nothing(at: Cluster) -> None:
    at.helm("uninstall", RELEASE, "--wait", "--timeout", "200s")
    kinds = "all,configmaps,secrets,serviceaccounts,roles,rolebindings,persistentvolumeclaims,networkpolicies,ingresses"
    selector = f"app.kubernetes.io/instance={RELEASE}"
    until(lambda: not at.kubectl("get", kinds, "-l", selector, "-o", "name").strip(), "nothing of the release is left")
    clusterwide = at.run("kubectl", "get", "clusterroles,clusterrolebindings", "-l", selector, "-o", "name")
    assert clusterwide.strip() == ""


def test_without_helm_the_same_router_serves(at: Cluster) -> None:
    overlay = str(CHART.parents[1] / "k8s" / "overlays" / "dev")
    at.kubectl("apply", "-k", overlay)
    at.kubectl("rollout", "status", f"deployment/{RELEASE}", "--timeout=120s")
    settle(at)
    until(at.shares, "both routers have the store")
    assert at.begin_load(streams=2, seconds=2).result()["failed"] == {}
    at.kubectl("delete", "-k", overlay)


def test_packed_and_with_servers_of_its_own_it_serves_and_their_replacement_cuts_no_call(
    at: Cluster, tmp_path: Path
) -> None:
    """For those who have no Ollama yet, in a namespace of their own; what is installed is the archive of a release."""
    restricted(at, "own")
    at.run("helm", "package", str(CHART), "--destination", str(tmp_path))
    (archive,) = tmp_path.glob("*.tgz")
    small = "ollama.gpu.enabled=false,ollama.persistence.enabled=false,ollama.resources.limits.memory=1Gi"
    small += ",ollama.resources.requests.cpu=50m,ollama.resources.requests.memory=64Mi"
    values = f"ollama.enabled=true,ollama.replicaCount=2,ollama.models={{llama3.2:3b}},ollama.numParallel=32,{small}"
    # 20 s for streams of a few seconds, before the servers are told to stop and cut what is left.
    grace = "ollama.terminationGracePeriodSeconds=35"
    told = ("--set", f"{values},{grace}", "--wait", "--timeout", "200s")
    at.run("helm", "-n", "own", "install", RELEASE, str(archive), *told)
    pods = [f"{RELEASE}-ollama-{number}" for number in (0, 1)]

    def nodes() -> dict[str, dict[str, Any]]:
        asked = ("exec", f"deploy/{RELEASE}", "--", "ollama-router", "nodes", "--json")
        answer = at.run("kubectl", "-n", "own", *asked, may_fail=True)
        return {node["name"]: node for node in json.loads(answer or "[]")}

    def states() -> dict[str, str]:
        return {name: node["state"] for name, node in nodes().items()}

    until(lambda: states() == dict.fromkeys(pods, "healthy"), "its own servers are found")
    pulled = at.run("kubectl", "-n", "own", "exec", pods[0], "-c", "ollama", "--", "cat", "/models/pulled")
    assert pulled.split() == ["llama3.2:3b"]
    load = at.begin_load(streams=10, seconds=45, service=f"{RELEASE}.own")
    leaving = busiest(at, nodes)
    at.run("kubectl", "-n", "own", "delete", "pod", leaving, "--wait=false")
    until(lambda: states().get(leaving) != "healthy", "it is seen leaving")
    until(lambda: states() == dict.fromkeys(pods, "healthy"), "its successor is healthy")
    assert load.result()["failed"] == {}
    at.run("helm", "-n", "own", "uninstall", RELEASE, "--wait", "--timeout", "120s")
    at.run("kubectl", "delete", "namespace", "own", "--wait=false")


def test_where_no_node_is_the_notes_say_why(at: Cluster) -> None:
    at.kubectl("delete", "service", "ollama")
    until(lambda: not at.items("endpointslices"), "the slices are gone")
    notes = at.helm("install", RELEASE, str(CHART), "--wait", "--timeout", "120s")
    assert "NO NODE FOUND: no Service in llm is labelled app.kubernetes.io/name=ollama." in notes
    at.helm("uninstall", RELEASE, "--wait", "--timeout", "120s")


@pytest.mark.parametrize("path", sorted(CHART.glob("ci/*.yaml")), ids=lambda path: path.stem.removesuffix("-values"))
def test_the_api_server_takes_what_every_values_file_makes(at: Cluster, path: Path) -> None:
    """Strictly, and with the published definitions of the operators' kinds."""
    for name in definitions(at):
        at.run("kubectl", "apply", "--server-side", "-f", name)
    for namespace in ("lab", "monitoring"):
        at.run("kubectl", "create", "namespace", namespace, may_fail=True)
    # This cluster speaks IPv4 only.
    one_family = ("--set", "service.ipFamilies={IPv4},service.ipFamilyPolicy=SingleStack")
    objects = at.helm("template", "full", str(CHART), "--values", str(path), *one_family)
    at.run("kubectl", "apply", "--dry-run=server", "--validate=strict", "-f", "-", given=objects)


def definitions(at: Cluster) -> list[str]:
    known = at.run("kubectl", "get", "crds", "-o", "name")
    if "scaledobjects.keda.sh" in known:
        return []
    return subprocess.run([HERE / "crds.sh"], capture_output=True, text=True, check=True).stdout.split()
