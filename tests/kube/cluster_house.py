"""The cluster of `cluster/`, and hands on it: kubectl, helm, a program of a team that runs in a pod of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
CHART = HERE.parents[1] / "helm" / "ollama-router"
VERSION = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
IMAGE = f"ghcr.io/ollama-router/ollama-router:{VERSION}"
NAMESPACE, RELEASE = "llm", "ollama-router"
PATIENCE_S = 120.0
CLIENT = "docker.io/library/client:dev"
POD_CONTEXT = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


@dataclass(frozen=True)
class Load:
    """A team's program under way, in a pod of its own. `result` waits for its end."""

    cluster: Cluster
    pod: str

    def result(self) -> dict[str, dict[str, int]]:
        until(lambda: self._phase() in ("Succeeded", "Failed"), f"{self.pod} has ended")
        output = self.cluster.kubectl("logs", self.pod)
        assert self._phase() == "Succeeded", output
        self.cluster.kubectl("delete", "pod", self.pod, "--wait=false")
        found: dict[str, dict[str, int]] = json.loads(output.strip().splitlines()[-1])
        print(found)
        return found

    def _phase(self) -> str:
        return self.cluster.kubectl("get", "pod", self.pod, "-o", "jsonpath={.status.phase}")


class Cluster:
    def __init__(self, binaries: Path, state: Path) -> None:
        self._binaries = binaries
        self._state = state

    def _command(self, tool: str, *arguments: str) -> list[str]:
        given = [] if tool == "ctr" else ["--kubeconfig", str(self._state / "admin.conf")]
        return ["nsenter", "--net=/run/netns/kube", "--", str(self._binaries / tool), *given, *arguments]

    def run(self, tool: str, *arguments: str, given: str = "", may_fail: bool = False) -> str:
        done = subprocess.run(
            self._command(tool, *arguments), input=given, capture_output=True, text=True, check=False, timeout=300
        )
        assert may_fail or done.returncode == 0, f"{tool} {' '.join(arguments)}: {done.stderr}{done.stdout}"
        return done.stdout

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return self.run("kubectl", "-n", NAMESPACE, *arguments, **more)

    def helm(self, *arguments: str, **more: Any) -> str:
        return self.run("helm", "-n", NAMESPACE, *arguments, **more)

    def load_image(self, archive: Path) -> None:
        self.run("ctr", "-a", str(self._state / "containerd.sock"), "-n", "k8s.io", "images", "import", str(archive))

    def items(self, what: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", what, "-o", "json"))["items"]
        return found

    def routers(self) -> list[str]:
        """Names of the pods that are not leaving."""
        found = [pod["metadata"] for pod in self.items("pods")]
        ours = [meta for meta in found if meta.get("labels", {}).get("app.kubernetes.io/component") == "router"]
        return [meta["name"] for meta in ours if "deletionTimestamp" not in meta]

    def nodes(self, router: str = f"deploy/{RELEASE}") -> dict[str, dict[str, Any]]:
        """As a router sees them, asked in its own pod."""
        answer = self.kubectl("exec", router, "--", "ollama-router", "nodes", "--json", may_fail=True)
        return {node["name"]: node for node in json.loads(answer or "[]")}

    def states(self, router: str = f"deploy/{RELEASE}") -> dict[str, str]:
        return {name: node["state"] for name, node in self.nodes(router).items()}

    def all_see(self, states: dict[str, str]) -> bool:
        routers = self.routers()
        return bool(routers) and all(self.states(router) == states for router in routers)

    def gauge(self, router: str, name: str) -> float | None:
        """Of a router's own /metrics; None while it does not answer."""
        code = "import sys, urllib.request as u; print(u.urlopen('http://127.0.0.1:9464/metrics').read().decode())"
        for line in self.kubectl("exec", router, "--", "python3", "-c", code, may_fail=True).splitlines():
            if line.startswith(f"ollama_router_{name} "):
                return float(line.split()[-1])
        return None

    def shares(self) -> bool:
        """Every router has the store, and none decides alone."""
        return all(
            self.gauge(router, "redis_up") == 1 and self.gauge(router, "degraded_mode") == 0
            for router in self.routers()
        )

    def kill(self, pod: str, container: str) -> None:
        """By SIGKILL, as for want of memory: nobody is told, and nothing ends in order. Kubelet starts it anew."""
        identity = self._status(pod, container)["containerID"].removeprefix("containerd://")
        address = ("-a", str(self._state / "containerd.sock"), "-n", "k8s.io")
        self.run("ctr", *address, "tasks", "kill", "--signal", "SIGKILL", identity)

    def is_started_anew(self, pod: str, container: str) -> bool:
        status = self._status(pod, container)
        return status["ready"] and status["restartCount"] > 0

    def _status(self, pod: str, container: str) -> dict[str, Any]:
        found = json.loads(self.kubectl("get", "pod", pod, "-o", "json"))["status"]["containerStatuses"]
        return next(one for one in found if one["name"] == container)

    def begin_load(self, streams: int, seconds: float, service: str = f"{RELEASE}.{NAMESPACE}") -> Load:
        """Returns when the program has begun."""
        name, base_url = f"load-{time.monotonic_ns()}", f"http://{service}:11434/v1"
        container = {
            "name": "load",
            "image": CLIENT,
            "imagePullPolicy": "IfNotPresent",
            "args": ["/opt/load.py", base_url, str(streams), str(seconds)],
            "securityContext": RESTRICTED,
        }
        spec = {"restartPolicy": "Never", "securityContext": POD_CONTEXT, "containers": [container]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        self.kubectl("apply", "-f", "-", given=json.dumps(pod))
        until(lambda: self.kubectl("logs", name, may_fail=True).startswith("begun"), f"{name} has begun")
        return Load(self, name)


def until(holds: Callable[[], bool], what: str) -> None:
    """Asks again and again; a command of its own is pause enough."""
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s, f"after {PATIENCE_S:g} s still not: {what}"


@contextmanager
def cluster(binaries: Path, state: Path) -> Iterator[Cluster]:
    """Up, and down again whatever happens."""
    scripts = HERE / "cluster"
    subprocess.run([scripts / "build.sh", binaries], check=True)
    subprocess.run([HERE / "images.sh", sys.executable, binaries.parent / "images", VERSION], check=True)
    try:
        subprocess.run([scripts / "up.sh", binaries, state], check=True)
        yield Cluster(binaries, state)
    finally:
        if os.environ.get("KEEP") is None:
            subprocess.run([scripts / "down.sh", state], check=False)


def needs_root() -> None:
    if os.geteuid() != 0:
        pytest.fail("the cluster needs root: network namespaces, mounts and cgroups")
