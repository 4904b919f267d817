"""Manifests of k8s/ that are made from the chart: `python -m tests.deploy.kustomize` writes them.

So that those who do without Helm get the same pods, rights and probes. Kustomizations and overlays are written by hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import helm_python
import yaml

from tests.deploy.render import CHART, ROOT, Object, config_of, of_kind

K8S = ROOT / "k8s"
NAME = "ollama-router"
HEAD = "# Made from the chart by `python -m tests.deploy.kustomize`; change it there.\n"
FILES: dict[str, tuple[str, ...]] = {
    "deployment.yaml": ("Deployment",),
    "service.yaml": ("Service",),
    "rbac.yaml": ("ServiceAccount", "Role", "RoleBinding"),
    "redis.yaml": ("StatefulSet",),
    "pdb.yaml": ("PodDisruptionBudget",),
}
# The chart makes a password where none is there yet; here it is the overlay's.
GIVEN = {"redis": {"auth": {"existingSecret": f"{NAME}-redis"}}}
ALWAYS = {"enabled": True, "renderMode": "alwaysRender"}
# Component: what the chart is told, and the kinds that come of it.
COMPONENTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "monitoring": (
        {"metrics": {"serviceMonitor": ALWAYS, "prometheusRule": ALWAYS}},
        ("ServiceMonitor", "PrometheusRule"),
    ),
    "ingress": ({"ingress": {"enabled": True}}, ("Ingress",)),
    "httproute": (
        {"httpRoute": {"enabled": True, "parentRefs": [{"name": "gateway"}], "hostnames": ["ollama.example.com"]}},
        ("HTTPRoute",),
    ),
    "networkpolicy": ({"networkPolicy": {"enabled": True}}, ("NetworkPolicy",)),
}
OF_HELM = ("helm.sh/chart", "app.kubernetes.io/managed-by")


def rendered(values: dict[str, Any] | None = None) -> list[Object]:
    """As a release of the chart's own name."""
    texts = helm_python.Chart.load(str(CHART)).render({**GIVEN, **(values or {})}, name=NAME, namespace="default")
    return [one for name, text in texts.items() if name.endswith(".yaml") for one in yaml.safe_load_all(text) if one]


def without_helm(one: Any) -> Any:
    """Neither a namespace, which overlays say, nor what only Helm needs."""
    if isinstance(one, list):
        return [without_helm(item) for item in one]
    if not isinstance(one, dict):
        return one
    left = {key: without_helm(value) for key, value in one.items() if key not in (*OF_HELM, "checksum/restart")}
    if left.get("namespace") == "default":
        del left["namespace"]
    if left.get("matchNames") == ["default"]:
        return {}
    return left


def files() -> dict[Path, str]:
    basis = rendered()
    found = {K8S / "base" / name: _text(basis, kinds) for name, kinds in FILES.items()}
    found[K8S / "base" / "config.yaml"] = HEAD + yaml.safe_dump(config_of(basis, NAME), sort_keys=True)
    for component, (values, kinds) in COMPONENTS.items():
        objects = rendered(values)
        for kind in kinds:
            found[K8S / "components" / component / f"{kind.lower()}.yaml"] = _text(objects, (kind,))
    return found


def _text(objects: list[Object], kinds: tuple[str, ...]) -> str:
    chosen = [without_helm(one) for kind in kinds for one in of_kind(objects, kind)]
    return HEAD + yaml.safe_dump_all(chosen, sort_keys=False, width=120)


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text)
