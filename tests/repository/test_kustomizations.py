"""What `kubectl apply` gets: every kustomization rendered by the real kubectl, and held to KServe's rules."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kustomize_support import RENDERED, ROOT, overlay, render, runtimes
from representative import every

pytestmark = pytest.mark.slow

KSERVES_PRIORITIES = {1, 2, 3}
"""Priorities of KServe 0.21's own runtimes (config/runtimes)."""


@pytest.mark.parametrize("folder", RENDERED, ids=str)
def test_a_kustomization_renders_and_names_each_object_once(folder: Path):
    documents = render(ROOT / folder)
    names = [
        (document["kind"], document["metadata"].get("namespace"), document["metadata"]["name"])
        for document in documents
    ]
    assert documents
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "folder", [folder for folder in RENDERED if folder.parts[:2] == ("manifests", "overlays")], ids=str
)
def test_every_container_is_bounded_probed_and_unprivileged(folder: Path):
    found = runtimes(ROOT / folder)
    assert found
    for runtime in found:
        for container in runtime["spec"]["containers"]:
            assert container["name"] == "kserve-container"
            assert ":" in container["image"].rsplit("/", 1)[-1], "an image needs a tag"
            assert not container["image"].endswith(":latest")
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys()
            for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                assert container[probe]["httpGet"]["port"] == 8080
            context = container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports == {"http": 8080, "grpc": 8081}
            assert len(set(ports)) == len(container["ports"])


def test_no_two_runtimes_claim_a_format_with_one_priority_and_none_has_kserves():
    claims = []
    for runtime in runtimes(ROOT / "manifests" / "base"):
        for entry in runtime["spec"]["supportedModelFormats"]:
            assert entry["priority"] not in KSERVES_PRIORITIES
            claims.append((entry["name"], entry["version"], entry["priority"]))
    assert len(claims) == len(set(claims))


def test_every_runtime_has_an_image_folder_of_its_name():
    for runtime in runtimes(ROOT / "manifests" / "base"):
        image = runtime["spec"]["containers"][0]["image"].split(":")[0]
        assert (ROOT / "runtimes" / image / "__init__.py").is_file()
        assert runtime["metadata"]["name"] == f"serinus-{image.replace('_', '-')}"


def _images(value: Any) -> set[str]:
    """Every image that a document names, without registry and tag."""
    if isinstance(value, list):
        return set().union(*map(_images, value))
    if not isinstance(value, dict):
        return set()
    own = {value["image"].rsplit("/", 1)[-1].split(":")[0]} if isinstance(value.get("image"), str) else set()
    return own.union(*map(_images, value.values()))


def test_every_image_that_a_manifest_names_is_built_by_make():
    done = subprocess.run(["make", "-n", "images", "images-gpu"], cwd=ROOT, capture_output=True, text=True, check=True)
    built = set(re.findall(r' -t "([^":]+):', done.stdout))
    named = set().union(*(_images(render(ROOT / folder)) for folder in RENDERED))
    assert {"tensorflow_server-image_pixels", "torch_server-recommender_features"} <= named
    assert named <= built


def test_a_runtime_is_chosen_by_name_until_autoselect_is_added(tmp_path: Path):
    before = _selected(runtimes(ROOT / "manifests" / "base"))
    after = _selected(runtimes(overlay(tmp_path, "autoselect")))
    assert set(before) == {False}
    assert set(after) == {True}


def test_knative_gets_one_port(tmp_path: Path):
    for runtime in runtimes(overlay(tmp_path, "knative")):
        assert [port["name"] for port in runtime["spec"]["containers"][0]["ports"]] == ["http1"]


def test_the_gpu_component_asks_for_a_gpu_a_node_and_an_image_with_cuda(tmp_path: Path):
    found = {runtime["metadata"]["name"]: runtime["spec"] for runtime in runtimes(overlay(tmp_path, "gpu"))}
    for name in ("serinus-torch-server", "serinus-onnx-server", "serinus-tensorflow-server"):
        spec = found[name]
        assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert spec["containers"][0]["image"].split(":")[0].endswith("-gpu")
        assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
        assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"
        # None may fall back to the CPU unnoticed.
        assert spec["containers"][0]["args"][-1] in {'--extra=device="cuda"', '--extra=providers=["cuda"]'}
    for name in ("serinus-xgboost-server", "serinus-ensemble-server"):
        assert "nvidia.com/gpu" not in found[name]["containers"][0]["resources"]["limits"]
        assert "nodeSelector" not in found[name]


POOLS = {
    "gpu-gke": {"cloud.google.com/gke-accelerator"},
    "gpu-eks": {"eks.amazonaws.com/instance-gpu-manufacturer"},
    "gpu-aks": {"kubernetes.azure.com/accelerator"},
}
"""The label of nodes with GPUs that each cloud puts there itself."""


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_of_a_cloud_is_chosen_by_its_own_label_and_no_other(tmp_path: Path, pool: str):
    for runtime in runtimes(overlay(tmp_path, "gpu", pool)):
        spec = runtime["spec"]
        if "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]:
            assert "nodeSelector" not in spec
            assert "affinity" not in spec
            continue
        terms = (
            spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {})
        )
        required = {
            expression["key"] for term in terms.get("nodeSelectorTerms", []) for expression in term["matchExpressions"]
        }
        assert spec.get("nodeSelector", {}).keys() | required == POOLS[pool]
        keys = [toleration["key"] for toleration in spec["tolerations"]]
        assert keys == ["nvidia.com/gpu", "sku"] if pool == "gpu-aks" else keys == ["nvidia.com/gpu"]


@pytest.mark.parametrize(
    "components",
    every(
        4,
        [
            pair
            for size in (3, 2, 1)
            for pair in itertools.combinations(("autoselect", "gpu", "knative", "revision"), size)
        ],
    ),
    ids="+".join,
)
def test_components_go_together(tmp_path: Path, components: tuple[str, ...]):
    assert len(runtimes(overlay(tmp_path, *components))) == len(runtimes(ROOT / "manifests" / "base"))


def test_the_component_for_standard_mode_tells_every_runtime_its_predictors_name(tmp_path: Path):
    label = {"fieldRef": {"fieldPath": "metadata.labels['app']"}}
    for runtime in runtimes(overlay(tmp_path, "revision")):
        variables = {entry["name"]: entry for entry in runtime["spec"]["containers"][0]["env"]}
        assert variables["SERINUS_REVISION"]["valueFrom"] == label
        assert len(variables) == len(runtime["spec"]["containers"][0]["env"])


def _selected(found: list[dict[str, Any]]) -> list[bool]:
    return [entry["autoSelect"] for runtime in found for entry in runtime["spec"]["supportedModelFormats"]]
