"""k8s/ is the chart without Helm: the same pods, rights and probes, and every overlay builds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytest.importorskip("helm_python", reason="no Helm for this platform: k8s/ is not compared with the chart")

from tests.deploy import kustomize
from tests.deploy.render import Object, check, is_foreign, named, of_kind

OVERLAYS = sorted(path.parent for path in kustomize.K8S.glob("overlays/*/kustomization.yaml"))
COMPONENTS = sorted(path.parent for path in kustomize.K8S.glob("components/*/kustomization.yaml"))
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH")


def built(folder: Path) -> list[Object]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_the_manifests_are_the_chart_s() -> None:
    stale = [str(path) for path, text in kustomize.files().items() if not path.exists() or path.read_text() != text]
    assert stale == [], "python -m tests.deploy.kustomize"


def test_no_manifest_is_left_over_from_another_chart() -> None:
    there = {path for part in ("base", "components") for path in (kustomize.K8S / part).rglob("*.yaml")}
    assert {path for path in there if path.name != "kustomization.yaml"} == kustomize.files().keys()


@needs_kubectl
def test_the_base_is_what_helm_installs() -> None:
    ours = {(one["kind"], one["metadata"]["name"]): one for one in built(kustomize.K8S / "base")}
    theirs = {
        (one["kind"], one["metadata"]["name"]): one
        for one in map(kustomize.without_helm, kustomize.rendered())
        if one["kind"] != "Pod"
    }
    assert ours.keys() == theirs.keys()
    for key, one in theirs.items():
        if one["kind"] == "ConfigMap":
            assert yaml.safe_load(ours[key]["data"]["config.yaml"]) == yaml.safe_load(one["data"]["config.yaml"])
        else:
            assert ours[key] == one, key


@needs_kubectl
@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_an_overlay_builds_and_kubernetes_takes_it(folder: Path) -> None:
    objects = built(folder)
    for one in objects:
        assert one["metadata"]["namespace"] == "llm"
        if not is_foreign(one):
            check(one)
    (subject,) = of_kind(objects, "RoleBinding")[0]["subjects"]
    assert subject["namespace"] == "llm"


@needs_kubectl
def test_production_asks_for_keys_and_makes_no_secret() -> None:
    objects = built(kustomize.K8S / "overlays/prod")
    assert of_kind(objects, "Secret") == []
    deployment = named(objects, "Deployment", "ollama-router")
    pod = deployment["spec"]["template"]["spec"]
    env = {one["name"]: one["value"] for one in pod["containers"][0]["env"]}
    assert env["OLLAMA_ROUTER_AUTH__REQUIRED"] == "true"
    sources = pod["volumes"][0]["projected"]["sources"]
    secrets = [source["secret"]["name"] for source in sources if "secret" in source]
    assert secrets == ["ollama-router-redis", "ollama-router-keys"]


@needs_kubectl
@pytest.mark.parametrize("folder", COMPONENTS, ids=lambda folder: folder.name)
def test_every_component_goes_with_the_base(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(kustomize.K8S, tmp_path / "k8s")
    overlay = tmp_path / "k8s/overlays/with"
    overlay.mkdir()
    parts = {"namespace": "llm", "resources": ["../../base"], "components": [f"../../components/{folder.name}"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"kind": "Kustomization", **parts}))
    kinds = {one["kind"] for one in built(overlay)}
    assert set(kustomize.COMPONENTS[folder.name][1]) <= kinds
