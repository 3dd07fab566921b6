"""What each environment gets: `manifests/overlays` for the cluster, `overlays/NAME/services` for each InferenceService in it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kustomize_support import COMPONENTS, FOLDERS, RENDERED, ROOT, Loader, dump, overlay, relative, render, runtimes
from representative import every
from serinus.manifests.reading import check

pytestmark = pytest.mark.slow

OVERLAYS = [folder.name for folder in RENDERED if folder.parts[:2] == ("manifests", "overlays")]
SERVICES = [
    Path(f"inferenceservices/{form}")
    for form in ("fraud/fused", "fraud/split", "recommender/standard", "vision/fused", "vision/collocated")
]
KINDS = {
    "local": set(),
    "staging": {"NetworkPolicy", "PodMonitor", "ConfigMap"},
    "production": {"NetworkPolicy", "PodMonitor", "ConfigMap", "PrometheusRule"},
    "production-gpu": {"NetworkPolicy", "PodMonitor", "ConfigMap", "PrometheusRule"},
}
"""What an overlay has beside runtimes, a namespace and its account."""


def kinds(documents: list[dict[str, Any]]) -> set[str]:
    return {document["kind"] for document in documents}


@pytest.mark.parametrize("name", KINDS)
def test_an_overlay_brings_what_its_environment_needs(name: str):
    documents = render(ROOT / "manifests" / "overlays" / name)
    assert kinds(documents) == {"ClusterServingRuntime", "Namespace", "ServiceAccount", *KINDS[name]}
    assert sorted(KINDS) == sorted(OVERLAYS)
    spaces = {document["metadata"].get("namespace") for document in documents if document["kind"] not in ("ClusterServingRuntime", "Namespace")}  # fmt: skip
    assert spaces == {"models"}


def test_overlays_give_the_runtimes_different_resources():
    found = {
        name: {
            runtime["metadata"]["name"]: str(runtime["spec"]["containers"][0]["resources"])
            for runtime in runtimes(ROOT / "manifests" / "overlays" / name)
        }
        for name in OVERLAYS
    }
    for one, other in itertools.combinations(OVERLAYS, 2):
        assert found[one] != found[other], (one, other)
    for name in OVERLAYS:
        gpus = {runtime for runtime, resources in found[name].items() if "nvidia.com/gpu" in resources}
        assert bool(gpus) is (name == "production-gpu")


def test_only_the_registry_is_to_be_edited():
    """Every image of an overlay for a cluster is at the one registry that stands for the user's, and nothing else names a host of ours."""
    for name in OVERLAYS:
        images = {
            runtime["spec"]["containers"][0]["image"] for runtime in runtimes(ROOT / "manifests" / "overlays" / name)
        }
        at_registry = {image.startswith("registry.example.com/serinus/") for image in images}
        assert at_registry == {name != "local"}


def service(tmp_path: Path, folder: Path, *components: str) -> dict[str, dict[str, Any]]:
    """What a team applies: one of our services with components of ours; by kind."""
    place = tmp_path / "mine"
    place.mkdir()
    lines = ["apiVersion: kustomize.config.k8s.io/v1beta1", "kind: Kustomization", "resources:"]
    lines += [f"  - {os.path.relpath(ROOT / folder, place.resolve())}", "components:"]
    lines += [f"  - {relative(place, name)}" for name in components]
    (place / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    documents = render(place)
    _lint(tmp_path, documents)
    return {document["kind"]: document for document in documents}


def _lint(tmp_path: Path, documents: list[dict[str, Any]]) -> None:
    """No error, and no warning but that a kind is unknown."""
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(dump(documents))
    assert not [str(problem) for problem in check([rendered]).problems if problem.layer != "unchecked"]


REPLICAS = {"local": (1, 1), "staging": (1, 2), "production": (2, 10), "production-gpu": (2, 4)}
SCALERS = {"local": None, "staging": "hpa", "production": "hpa", "production-gpu": "keda"}


@pytest.mark.parametrize("folder", every(4, SERVICES), ids=str)
@pytest.mark.parametrize("name", REPLICAS)
def test_a_service_gets_the_replicas_budget_and_account_of_its_environment(tmp_path: Path, name: str, folder: Path):
    found = service(tmp_path, folder, f"overlays/{name}/services")
    meta, predictor = found["InferenceService"]["metadata"], found["InferenceService"]["spec"]["predictor"]
    assert meta["namespace"] == "models"
    assert meta["labels"]["serinus.dev/metrics"] == "true"
    assert predictor["serviceAccountName"] == "models"
    # The feature store of fraud/fused is in its process: two would each know half of the transactions.
    single = folder == Path("inferenceservices/fraud/fused")
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == ((1, 1) if single else REPLICAS[name])
    if not single:
        assert meta["annotations"].get("serving.kserve.io/autoscalerClass") == SCALERS[name]
    production = name.startswith("production")
    assert ("topologySpreadConstraints" in predictor) is production
    assert ("PodDisruptionBudget" in found) is production
    if production:
        budget = found["PodDisruptionBudget"]
        assert (budget["metadata"]["name"], budget["metadata"]["namespace"]) == (meta["name"], "models")
        assert budget["spec"]["selector"] == {"matchLabels": {"serving.kserve.io/inferenceservice": meta["name"]}}
        assert budget["spec"]["maxUnavailable"] == 1


def test_a_service_scales_by_its_own_queue_time(tmp_path: Path):
    found = service(tmp_path, Path("inferenceservices/vision/fused"), "overlays/production-gpu/services")
    (metric,) = found["InferenceService"]["spec"]["predictor"]["autoScaling"]["metrics"]
    query = metric["external"]["metric"]["query"]
    assert 'serinus_queue_seconds_bucket{namespace="models",inferenceservice="vision"}' in query


@pytest.mark.parametrize("form", ["v1", "canary"])
def test_a_service_in_knative_mode_scales_by_requests_in_flight(tmp_path: Path, form: str):
    components = ("components/service", "components/autoscaling-knative", "components/disruption-budget")
    found = service(tmp_path, Path("inferenceservices/recommender/knative") / form, *components)
    predictor = found["InferenceService"]["spec"]["predictor"]
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("concurrency", 16)


@pytest.mark.parametrize("folder", every(3, [folder for folder in RENDERED if folder.parts[0] == "manifests"]), ids=str)
def test_what_is_rendered_has_nothing_that_lint_finds(folder: Path, tmp_path: Path):
    _lint(tmp_path, render(ROOT / folder))


def test_every_component_is_in_a_kustomization_that_is_rendered_here(tmp_path: Path):
    alone = {"autoselect", "gpu", "knative", "gpu-gke", "gpu-eks", "gpu-aks", "monitoring/pod-monitor-knative"}
    documents = render(overlay(tmp_path, "autoselect", "knative", "../monitoring/pod-monitor-knative"))
    assert "PodMonitor" in kinds(documents)
    used = alone | {
        os.path.relpath((ROOT / folder / component).resolve(), ROOT / "manifests").removeprefix("components/")
        for folder in FOLDERS
        for component in yaml.load((ROOT / folder / "kustomization.yaml").read_text(), Loader).get("components", [])
    }
    used |= {f"overlays/{name}/services" for name in REPLICAS} | {"autoscaling-knative"}
    used |= {"tls", "mtls"}  # tests/repository/test_tls_components.py
    there = {
        os.path.relpath(folder, "manifests").removeprefix("components/")
        for folder in COMPONENTS
        if folder.parts[0] == "manifests"
    }
    assert there <= used


def test_pods_of_the_runtimes_and_of_our_services_are_found_by_the_monitors_and_let_in_by_the_policy(tmp_path: Path):
    documents = {document["kind"]: document for document in render(ROOT / "manifests/overlays/production")}
    monitor, policy = documents["PodMonitor"]["spec"], documents["NetworkPolicy"]["spec"]
    wanted = monitor["selector"]["matchLabels"]
    endpoints = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    open_ports = {
        port
        for rule in policy["ingress"]
        for entry in rule.get("ports", [])
        for port in range(entry["port"], entry.get("endPort", entry["port"]) + 1)
    }
    for runtime in runtimes(ROOT / "manifests/overlays/production"):
        assert wanted.items() <= runtime["spec"]["labels"].items()
        ports = {port["name"]: port["containerPort"] for port in runtime["spec"]["containers"][0]["ports"]}
        assert endpoints & ports.keys()
        assert set(ports.values()) <= open_ports
    for folder in SERVICES:
        own = [document["spec"] for document in render(ROOT / folder) if document["kind"] == "ServingRuntime"]
        for spec in own:  # of the others the runtime is one of the base
            assert wanted.items() <= spec["labels"].items()
            ports = {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
            assert endpoints & ports.keys()
            assert set(ports.values()) <= open_ports
