"""The page on GitOps: its manifests have the fields that Argo CD and Flux know, and name the fields that a run really moves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubernetes_server import kubernetes, service_object
from serinus.canary.targets.kserve_target import KServeTarget
from serinus.canary.targets.kubeconfig import Access
from serinus.canary.targets.kubernetes_client import FIELD_MANAGER, KubernetesClient, Refused
from serinus.cli.canary.canary_run import EXIT_STATUS
from serinus.cli.operator import run as command

PAGE = Path(__file__).resolve().parents[2] / "runtimes" / "serinus" / "GITOPS.md"
TEXT = PAGE.read_text()
BLOCKS = {
    block["kind"]: block
    for part in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    for block in [yaml.safe_load(part)]
}
ENTRY = {
    "trafficPercent": 0,
    "predictor": {"name": "v2", "model": {"modelFormat": {"name": "xgboost"}, "storageUri": "gs://b/v2"}},
}


def moved(mode: str) -> set[str]:
    """The paths that a step changes, as JSON pointers."""
    with kubernetes() as server:
        if mode == "Knative":
            server.put(service_object())
            server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=0))
        else:
            server.put(service_object("Standard", canary=[ENTRY]))
        target = KServeTarget(KubernetesClient(Access("127.0.0.1", server.port)), "default", "m")
        return {operation["path"] for operation in target.planned("percent", 10, target.state()).patch}


def test_argo_cd_ignores_the_fields_that_a_run_moves_and_syncs_without_them():
    spec = BLOCKS["Application"]["spec"]
    # argo-cd pkg/apis/application/v1alpha1/types.go: ResourceIgnoreDifferences
    known = {"group", "kind", "name", "namespace", "jsonPointers", "jqPathExpressions", "managedFieldsManagers"}
    assert all(each.keys() <= known for each in spec["ignoreDifferences"])
    assert all(
        (each["group"], each["kind"]) == ("serving.kserve.io", "InferenceService") for each in spec["ignoreDifferences"]
    )
    pointers = {pointer for each in spec["ignoreDifferences"] for pointer in each.get("jsonPointers", ())}
    assert moved("Knative") <= pointers
    expressions = [each for part in spec["ignoreDifferences"] for each in part.get("jqPathExpressions", ())]
    assert {"/spec/canary/0/trafficPercent"} == moved("Standard")
    assert expressions == [".spec.canary[]?.trafficPercent"]
    assert [manager for each in spec["ignoreDifferences"] for manager in each.get("managedFieldsManagers", ())] == [
        FIELD_MANAGER
    ]
    assert "RespectIgnoreDifferences=true" in spec["syncPolicy"]["syncOptions"]


def test_flux_ignores_the_fields_that_a_run_moves():
    drift = BLOCKS["HelmRelease"]["spec"]["driftDetection"]
    assert drift["mode"] in ("enabled", "warn", "disabled")
    for rule in drift["ignore"]:
        assert rule.keys() <= {"paths", "target"}
        assert rule["target"].keys() <= {
            "group",
            "version",
            "kind",
            "name",
            "namespace",
            "annotationSelector",
            "labelSelector",
        }
    paths = {path for rule in drift["ignore"] for path in rule["paths"]}
    for mode in ("Knative", "Standard"):
        assert all(any(path == each or path.startswith(f"{each}/") for each in paths) for path in moved(mode))


def test_the_manifest_of_the_page_is_one_that_lint_passes(tmp_path: Path):
    path = tmp_path / "isvc.yaml"
    path.write_text(yaml.safe_dump(BLOCKS["InferenceService"]))
    assert command(["lint", str(path)]) == 0


@pytest.mark.parametrize("manager", ["argocd-controller", "kustomize-controller"])
def test_a_field_that_a_gitops_controller_owns_is_refused_by_its_name(manager: str):
    with kubernetes() as server:
        server.put(service_object(), manager)
        server.put(service_object(uri="gs://b/v2", canaryTrafficPercent=0), manager)
        target = KServeTarget(KubernetesClient(Access("127.0.0.1", server.port)), "default", "m")
        with pytest.raises(Refused, match=manager):
            target.change("percent", 10, target.state())
    assert f"`{manager}`" in TEXT
    assert EXIT_STATUS["cannot"] == 15
    assert "status 15" in TEXT


def test_kustomize_applies_the_patch_that_decide_only_writes(tmp_path: Path):
    kustomization: dict[str, Any] = BLOCKS["Kustomization"]
    service = BLOCKS["InferenceService"]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    (tmp_path / "inferenceservice.yaml").write_text(yaml.safe_dump(service))
    patch = [{"op": "replace", "path": "/spec/predictor/canaryTrafficPercent", "value": 25}]
    (tmp_path / "patch.yaml").write_text(yaml.safe_dump(patch))
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([str(kubectl), "kustomize", str(tmp_path)], capture_output=True, text=True, check=True)
    assert yaml.safe_load(done.stdout)["spec"]["predictor"]["canaryTrafficPercent"] == 25


def test_the_pages_exit_statuses_are_those_of_the_command():
    promote, back, up = (EXIT_STATUS[each] for each in ("promote", "rollback", "advance"))
    assert f"{promote}|{back}|{up})" in TEXT
    assert f"  {EXIT_STATUS['undecided']})" in TEXT
