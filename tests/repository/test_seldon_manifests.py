"""manifests/seldon: what Seldon's API server, scheduler and operator would make of it, as far as its published schemas and rules say."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SELDON = ROOT / "manifests" / "seldon"


@functools.cache
def documents() -> list[dict[str, Any]]:
    """Every object that the kustomization lists; to be read and not changed."""
    files = yaml.safe_load((SELDON / "kustomization.yaml").read_text())["resources"]
    return [yaml.safe_load((SELDON / file).read_text()) for file in files]


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item["spec"] for item in documents() if item["kind"] == kind}


def test_every_manifest_is_listed():
    listed = set(yaml.safe_load((SELDON / "kustomization.yaml").read_text())["resources"])
    assert listed == {file.name for file in SELDON.glob("*.yaml")} - {"kustomization.yaml"}
    assert {item["kind"] for item in documents()} == {"NetworkPolicy", "Server", "Model", "Pipeline", "Experiment"}


def test_the_structure_is_that_of_seldons_crds():
    from serinus.manifests.reading import check

    checked = check([SELDON])
    assert checked.objects == len(documents())
    assert {(problem.severity, problem.rule) for problem in checked.problems} == {("warning", "object-unchecked")}


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        ("server-ensemble.yaml", "serverConfig:", "serverconfig:", "spec.serverconfig: unknown field"),
        ("server-ensemble.yaml", "readOnlyRootFilesystem", "readonlyRootFilesystem", "did you mean readOnlyRootFile"),
        ("model-fraud-ensemble.yaml", "storageUri:", "uri:", "spec.storageUri: missing"),
        ("pipeline-fraud.yaml", "inputs:", "input:", "unknown field"),
        ("experiment-recommender.yaml", "weight: 90", "weight: ninety", "write a whole number"),
    ],
)
def test_a_slip_in_them_is_found(name: str, old: str, new: str, said: str, tmp_path: Path):
    from serinus.manifests.reading import check

    text = (SELDON / name).read_text()
    assert old in text
    (tmp_path / name).write_text(text.replace(old, new, 1))
    errors = [str(problem) for problem in check([tmp_path / name]).problems if problem.severity == "error"]
    assert any(said in error for error in errors), errors


def test_every_server_runs_an_image_of_ours_bounded_and_unprivileged_in_mlservers_place():
    servers = of_kind("Server")
    assert len(servers) == 3
    for spec in servers.values():
        assert spec["serverConfig"] == "mlserver"
        (container,) = spec["podSpec"]["containers"]
        assert container["name"] == "mlserver", "the ServerConfig's container is merged by this name"
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys()
        context = container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["privileged"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
        # Probes, ports and the variables of ports and folder stay the ServerConfig's.
        variables = {item["name"] for item in container["env"]}
        assert not variables & {"MLSERVER_HTTP_PORT", "MLSERVER_GRPC_PORT", "MLSERVER_MODELS_DIR"}
        assert not container.keys() & {"readinessProbe", "livenessProbe", "startupProbe", "command", "args"}


def test_each_model_has_exactly_one_server_with_what_it_requires():
    servers = {name: set(spec["capabilities"]) for name, spec in of_kind("Server").items()}
    assert sum(map(len, servers.values())) == len(set().union(*servers.values()))
    for name, spec in of_kind("Model").items():
        fitting = [server for server, offered in servers.items() if set(spec["requirements"]) <= offered]
        assert len(fitting) == 1, name


def test_the_pipelines_steps_are_models_and_every_reference_leads_somewhere():
    """Seldon's scheduler: checkStepsExist, checkStepNameNotPipelineName, checkPipelineOutputs (store/pipeline/validate.go)."""
    ((name, spec),) = of_kind("Pipeline").items()
    steps = [step["name"] for step in spec["steps"]]
    assert set(steps) <= of_kind("Model").keys()
    assert name not in steps
    for index, step in enumerate(spec["steps"]):
        for text in step.get("inputs", []):
            source, kind, _ = text.split(".")
            assert source in steps[:index]
            assert kind == "outputs"
    for text in spec["output"]["steps"]:
        source, kind, *_ = text.split(".")
        assert source in steps
        assert kind == "outputs"


def test_the_features_that_the_ensemble_takes_are_the_first_steps_outputs():
    from fraud_features.step import FeaturesStep

    spec = of_kind("Pipeline")["fraud"]
    wired = [text.rpartition(".")[2] for text in spec["steps"][1]["inputs"]]
    taken = yaml.safe_load((ROOT / "inferenceservices" / "fraud" / "model" / "ensemble.yaml").read_text())["inputs"]
    assert wired == [entry["name"] for entry in taken]
    assert set(wired) < {entry["name"] for entry in FeaturesStep("m", feature_store_url="").get_output_types()}


def test_the_experiment_splits_90_to_10_and_mirrors_what_is_no_candidate():
    """Seldon's scheduler: validateDefaultModelIsCandidate, validateNoDuplicateNames (store/experiment/validate.go)."""
    (spec,) = of_kind("Experiment").values()
    weights = {item["name"]: item["weight"] for item in spec["candidates"]}
    assert weights == {"recommender-v1": 90, "recommender-v2": 10}
    assert spec["default"] == "recommender-v1"
    models = of_kind("Model")
    mirror = spec["mirror"]["name"]
    assert mirror not in weights
    assert {*weights, mirror} <= models.keys()
    assert models[mirror]["storageUri"] == models["recommender-v2"]["storageUri"]


def test_the_policy_covers_every_server_and_leaves_the_servers_own_ports_to_the_pod():
    (spec,) = of_kind("NetworkPolicy").values()
    (label,) = spec["podSelector"]["matchExpressions"]
    assert label["key"] == "seldon-server-name"
    assert set(label["values"]) == of_kind("Server").keys()
    ports = {entry["port"] for rule in spec["ingress"] for entry in rule["ports"]}
    assert ports == {9001, 9501, 9006, 8082}
    assert not ports & {9000, 9500}
