"""The chart as Helm renders it, in this process; and objects as Kubernetes would take them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from kubernetes import client

Object = dict[str, Any]

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "ollama-router"
CI = sorted(CHART.glob("ci/*.yaml"))
RELEASE, NAMESPACE = "r", "llm"
# Groups whose objects operators bring; Kubernetes itself knows none of them.
FOREIGN = ("monitoring.coreos.com/", "keda.sh/", "gateway.networking.k8s.io/")
HELM_TEXT = re.compile(r"^.*?(?=these values cannot be:)", re.DOTALL)


@cache
def _chart() -> helm_python.Chart:
    helm_python.disable_logging()
    return helm_python.Chart.load(str(CHART))


def texts_of(values: Mapping[str, Any] | None = None) -> dict[str, str]:
    """By template. Values that cannot be raise helm_python.HelmError."""
    given = dict(values or {})
    _chart().validate_schema(given)
    return _chart().render(given, name=RELEASE, namespace=NAMESPACE)


def objects_of(values: Mapping[str, Any] | None = None) -> list[Object]:
    texts = {name: text for name, text in texts_of(values).items() if name.endswith(".yaml")}
    return [one for text in texts.values() for one in yaml.safe_load_all(text) if one]


def problems_of(values: Mapping[str, Any]) -> str:
    """What the chart says against these values; empty where it takes them."""
    try:
        texts_of(values)
    except helm_python.HelmError as error:
        return HELM_TEXT.sub("", str(error))
    return ""


def ci_values(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text()) or {}


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [one for one in of_kind(objects, kind) if one["metadata"]["name"] == name]
    return found


def is_foreign(one: Object) -> bool:
    return str(one["apiVersion"]).startswith(FOREIGN)


def check(one: Object) -> None:
    """As the API server's schemas and the strict models of its client see it. Raises."""
    kubernetes_validate.validate(one, "1.37", strict=True)
    version = "".join(part.capitalize() for part in str(one["apiVersion"]).rpartition("/")[2:])
    getattr(client, f"{version}{one['kind']}").model_validate(one)


def config_of(objects: list[Object], name: str = f"{RELEASE}-ollama-router") -> Object:
    found: Object = yaml.safe_load(named(objects, "ConfigMap", name)["data"]["config.yaml"])
    return found


def pod_of(one: Object) -> Object:
    """The pod's spec of a workload, or of a pod."""
    return one["spec"] if one["kind"] == "Pod" else one["spec"]["template"]["spec"]


def workloads(objects: list[Object]) -> list[Object]:
    return [one for one in objects if one["kind"] in ("Deployment", "StatefulSet", "Pod")]
