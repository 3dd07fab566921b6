"""The InferenceServices that are shipped: short, and with their runtimes and components all that a pod needs to be safe."""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kustomize_support import dump, render

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / "inferenceservices"
FILES = sorted(SERVICES.rglob("inferenceservice.yaml"))
FOLDERS = sorted(
    {file.parent.relative_to(SERVICES) for file in FILES}
    | {Path("vision/collocated-gpu"), Path("vision/fused-resnet50"), Path("recommender/knative/canary")}
)
SCREEN_LINES = 35
KNATIVE = {"fraud/fused": (), "fraud/split": ("knative-transformer",), "vision/fused": ()}
"""Forms that are written for Standard mode, each with what Knative mode takes beside `components/knative`."""


def of_kind(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [document for document in render(folder) if document["kind"] == kind]


def pods(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Every block of a rendered folder that has containers: runtimes, transformers, transformers beside a model."""
    for document in render(folder):
        spec = document["spec"]
        blocks = [spec] if document["kind"] == "ServingRuntime" else [spec["predictor"], spec.get("transformer", {})]
        yield from (block for block in blocks if block.get("containers"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.parent.relative_to(SERVICES)))
def test_a_services_own_yaml_fits_a_screen_and_says_what_is_its_own(file: Path):
    text = file.read_text()
    assert len(text.splitlines()) <= SCREEN_LINES
    spec = yaml.safe_load(text)["spec"]
    for predictor in (spec["predictor"], *(item["predictor"] for item in spec.get("canary", []))):
        assert {"modelFormat", "runtime", "protocolVersion", "storageUri"} <= predictor["model"].keys()
    for word in ("httpGet", "securityContext", "volumeMounts", "emptyDir"):
        assert word not in text


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_every_container_is_bounded_probed_and_unprivileged(folder: Path):
    found = list(pods(SERVICES / folder))
    assert found
    for block in found:
        for container in block["containers"]:
            assert ":" in container["image"].rsplit("/", 1)[-1], "an image needs a tag"
            assert not container["image"].endswith(":latest")
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys()
            rest = 8090 if container["name"] == "transformer-container" else 8080
            for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
                assert container[probe]["httpGet"]["port"] == rest
            assert container["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
            context = container["securityContext"]
            assert context["runAsNonRoot"] is True
            assert context["runAsUser"] == 1000
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["privileged"] is False
            assert context["capabilities"]["drop"] == ["ALL"]
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert {"name": "SERINUS_DRAIN_DELAY_S", "value": "5"} in container["env"]
            assert "--host=0.0.0.0" in container["args"]
            (mount,) = container["volumeMounts"]
            assert mount["mountPath"] == "/tmp"
            assert {volume["name"]: volume.get("emptyDir") for volume in block["volumes"]} == {mount["name"]: {}}
            wanted = {"http1": rest, "h2c": rest + 1}
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports == wanted if "knative" not in folder.parts else ports == {"http1": rest}


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_the_runtime_that_a_service_names_comes_with_it_and_first_or_from_the_base(folder: Path):
    kinds = [document["kind"] for document in render(SERVICES / folder)]
    assert kinds in (["ServingRuntime", "InferenceService"], ["InferenceService"])
    beside = {document["metadata"]["name"] for document in of_kind(SERVICES / folder, "ServingRuntime")}
    base = {document["metadata"]["name"] for document in render(ROOT / "manifests" / "base")}
    (service,) = of_kind(SERVICES / folder, "InferenceService")
    spec = service["spec"]
    named = {spec["predictor"]["model"]["runtime"]}
    named |= {item["predictor"]["model"]["runtime"] for item in spec.get("canary", [])}
    assert named == beside or (not beside and named <= base)


def overlay(tmp_path: Path, form: str) -> Path:
    """Write a service's overlay for Knative mode, as its README says; kustomize wants relative paths."""
    names = [form, *(f"components/{name}" for name in ("knative", *KNATIVE[form]))]
    resource, *components = (os.path.relpath(SERVICES / name, tmp_path.resolve()) for name in names)
    lines = [
        "apiVersion: kustomize.config.k8s.io/v1beta1",
        "kind: Kustomization",
        "sortOptions: {order: fifo}",
        f"resources: [{resource}]",
        f"components: [{', '.join(components)}]",
    ]
    (tmp_path / "kustomization.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("form", KNATIVE)
def test_in_knative_mode_every_pod_of_a_service_has_one_port_and_nothing_else_changes(form: str, tmp_path: Path):
    from serinus.local.plan.deployment_plan import PlanOptions
    from serinus.local.plan.plan_loader import load

    folder = overlay(tmp_path, form)
    (service,) = of_kind(folder, "InferenceService")
    assert service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    ports = [[port["name"] for port in c["ports"]] for block in pods(folder) for c in block["containers"]]
    assert ports == ([["h2c"], ["http1"]] if form == "fraud/split" else [["http1"]])
    plans = []
    for path in (folder, SERVICES / form):
        loaded = load(path, (), PlanOptions())
        assert loaded.problems == ()
        (plan,) = loaded.services
        parts = (plan.stable.predictor, plan.stable.transformer)
        plans.append([(c.words, c.env) for part in parts if part is not None for c in part.containers])
    assert plans[0] == plans[1]


def test_the_revision_component_reaches_a_services_own_runtime(tmp_path: Path):
    names = ("inferenceservices/recommender/standard", "manifests/components/revision")
    service, component = (os.path.relpath(ROOT / name, tmp_path.resolve()) for name in names)
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{service}]\ncomponents: [{component}]\n")
    (runtime,) = of_kind(tmp_path, "ServingRuntime")
    assert "SERINUS_REVISION" in {item["name"] for item in runtime["spec"]["containers"][0]["env"]}


def promoted(written: Mapping[str, Any]) -> dict[str, Any]:
    """The recommender with the canary's block for its predictor, as its comment says."""
    changed = copy.deepcopy(dict(written))
    (canary,) = changed["spec"].pop("canary")
    old = changed["spec"]["predictor"]
    changed["spec"]["predictor"] = {**old, **canary["predictor"]}
    return changed


@pytest.mark.parametrize("own_uri", [True, False], ids=["with a storage URI of its own", "of the same storage URI"])
def test_the_recommenders_canary_is_promoted_by_renaming_the_stable_predictor(own_uri: bool, tmp_path: Path):
    from serinus.local.plan.deployment_plan import PlanOptions
    from serinus.local.plan.plan_loader import load
    from serinus.manifests.documents import load_text
    from serinus.manifests.problems import Problems
    from serinus.manifests.rules.update_rules import check_updates

    runtime, before = copy.deepcopy(render(SERVICES / "recommender" / "standard"))
    if not own_uri:
        stable = before["spec"]["predictor"]["model"]
        before["spec"]["canary"][0]["predictor"]["model"]["storageUri"] = stable["storageUri"]
    after = promoted(before)
    assert after["spec"]["predictor"]["name"] == "v2"
    problems = Problems()
    old, new = (load_text(yaml.safe_dump(document), "isvc.yaml") for document in (before, after))
    check_updates(old, new, problems)
    assert [problem.rule for problem in problems.errors] == ([] if own_uri else ["update-name-with-model"])
    # The pods that served the canary serve on: the promoted predictor is the same template under the same name.
    plans = []
    for name, document in (("before", before), ("after", after)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(dump([runtime, document]))
        (plan,) = load(file, (), PlanOptions()).services
        plans.append(plan)
    (canary,) = plans[0].canaries
    assert plans[1].canaries == ()
    assert plans[1].stable.predictor.deployment == canary.predictor.deployment == "recommender-v2-predictor"
    assert plans[1].stable.predictor.digest == canary.predictor.digest


def test_the_recommenders_demo_writes_a_third_version_that_runs_as_the_first_two_do(tmp_path: Path) -> None:
    from serinus.local.plan.deployment_plan import PlanOptions
    from serinus.local.plan.plan_loader import load

    spec = importlib.util.spec_from_file_location("recommender_demo", ROOT / "inferenceservices/recommender/demo.py")
    assert spec is not None
    assert spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "recommender_demo", demo)  # dataclasses look their module up
        spec.loader.exec_module(demo)
        loaded = load(demo.write_version_3(tmp_path), (), PlanOptions())
    assert loaded.errors == ()
    (plan,) = loaded.services
    (container,) = plan.stable.predictor.containers
    assert "--max_delay_s=0.15" in container.words
    assert [each.uri for each in plan.stable.predictor.storage] == [f"{demo.MODELS}/v2"]
    first = load(ROOT / "inferenceservices/recommender/knative/v1", (), PlanOptions()).services[0]
    assert plan.stable.predictor.deployment == first.stable.predictor.deployment
    assert plan.canary_percent == 0
