"""Canaries, their rights, and every kustomization on a real kube-apiserver: what a server of ours in tests could get wrong itself.

No controller of KServe runs there, so what it would write into `status` is written by the tests, in its words.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from api_server import ApiServer, api_server, missing
from kustomize_support import RENDERED, ROOT, render
from serinus.canary.targets.kserve_target import KServeTarget
from serinus.canary.targets.kubeconfig import load_access
from serinus.canary.targets.kubernetes_client import KubernetesClient, Refused
from serinus.canary.targets.target import Action, TargetChanged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.skipif(bool(missing()), reason=missing())]

SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/models/inferenceservices"
NAME = "recommender"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    # Paths of sockets and certificates stay short.
    with tempfile.TemporaryDirectory(prefix="api-") as folder, api_server(Path(folder)) as running:
        yield running


def kinds(server: ApiServer) -> set[str]:
    return {line.split()[-1] for line in server.run("api-resources", "--no-headers").splitlines()}


@pytest.mark.parametrize("folder", RENDERED, ids=str)
def test_a_kustomization_passes_strict_validation_and_is_kept_as_it_was_written(server: ApiServer, folder: Path):
    served = kinds(server)
    for document in render(ROOT / folder):
        if document["kind"] not in served:
            continue  # Prometheus Operator's, Seldon's: their CRDs are not those of KServe
        text = yaml.safe_dump(filled(document))
        space = document["metadata"].get("namespace", "models")
        words = (
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "-n",
            space,
            "-o",
            "json",
            "-f",
            "-",
        )
        kept = json.loads(server.run(*words, text=text))
        assert list(lost(document, kept)) == []


def filled(document: dict[str, Any]) -> dict[str, Any]:
    """What the CRD asks of a framework's block and KServe's defaulting webhook writes before it is asked: `name`."""
    copied = json.loads(json.dumps(document))
    if copied["kind"] == "InferenceService":
        spec = copied["spec"]
        for block in (spec["predictor"], *(entry["predictor"] for entry in spec.get("canary", ()))):
            if "model" in block:
                block["model"].setdefault("name", "")
    return copied


def lost(written: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Fields that were written and did not come back."""
    if isinstance(written, dict):
        for key, value in written.items():
            if isinstance(kept, dict) and key in kept:
                yield from lost(value, kept[key], f"{path}.{key}")
            elif value not in (None, {}, [], ""):
                yield f"{path}.{key}"
    elif isinstance(written, list):
        if not isinstance(kept, list) or len(kept) != len(written):
            yield path
        else:
            for index, value in enumerate(written):
                yield from lost(value, kept[index], f"{path}[{index}]")
    elif str(written) != str(kept):
        yield f"{path}: {written!r} became {kept!r}"


# Canaries


def model(version: str) -> dict[str, Any]:
    return {"name": "", "modelFormat": {"name": "pytorch"}, "storageUri": f"gs://b/{version}"}


def applied(server: ApiServer, mode: str, spec: dict[str, Any], manager: str = "kubectl") -> None:
    metadata = {
        "name": NAME,
        "namespace": "models",
        "annotations": {"serving.kserve.io/deploymentMode": mode},
    }
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": spec,
    }
    words = ("apply", "--server-side", "--validate=strict", f"--field-manager={manager}", "-f", "-")
    server.run(*words, text=yaml.safe_dump(document))


def report(server: ApiServer, status: dict[str, Any]) -> dict[str, Any]:
    """Write the status as the controller does, on its own subresource where the CRD has one."""
    _, service = server.ask("GET", f"{SERVICES}/{NAME}")
    generation = service["metadata"]["generation"]
    body = {"status": {"observedGeneration": generation, **status}}
    code, told = server.ask("PATCH", f"{SERVICES}/{NAME}/status", body, kind=MERGE)
    assert code == 200, told
    return told


@pytest.fixture
def standard(server: ApiServer) -> Iterator[ApiServer]:
    canary = {"trafficPercent": 10, "predictor": {"name": "v2", "minReplicas": 1, "model": model("v2")}}
    stable = {"name": "v1", "minReplicas": 1, "maxReplicas": 3, "model": model("v1")}
    applied(server, "Standard", {"predictor": stable, "canary": [canary]})
    report(server, STANDARD_STATUS)
    yield server
    remove(server)


STANDARD_STATUS = {
    "deploymentMode": "Standard",
    "canaryStatuses": [{"name": "v2", "ready": True, "trafficPercent": 10}],
    "conditions": [{"type": "PredictorReady", "status": "True"}, {"type": "Ready", "status": "True"}],
}
TRAFFIC = [{"revisionName": f"{NAME}-predictor-00002", "percent": 10, "latestRevision": True}]
KNATIVE_STATUS = {
    "deploymentMode": "Knative",
    "components": {
        "predictor": {
            "latestCreatedRevision": f"{NAME}-predictor-00002",
            "latestReadyRevision": f"{NAME}-predictor-00002",
            "latestRolledoutRevision": f"{NAME}-predictor-00001",
            "traffic": [*TRAFFIC, {"revisionName": f"{NAME}-predictor-00001", "percent": 90, "tag": "prev"}],
        }
    },
}


@pytest.fixture
def knative(server: ApiServer) -> Iterator[ApiServer]:
    applied(server, "Knative", {"predictor": {"canaryTrafficPercent": 10, "model": model("v2")}})
    report(server, KNATIVE_STATUS)
    yield server
    remove(server)


def remove(server: ApiServer) -> None:
    server.run("delete", "inferenceservice", NAME, "--ignore-not-found")
    server.run("delete", "configmap", f"{NAME}-serinus-canary", "--ignore-not-found")


def target(server: ApiServer, **options: Any) -> KServeTarget:
    return KServeTarget(KubernetesClient(load_access(server.kubeconfig)), "models", NAME, **options)


def spec_of(server: ApiServer) -> dict[str, Any]:
    return server.ask("GET", f"{SERVICES}/{NAME}")[1]["spec"]


def managers(server: ApiServer) -> set[str]:
    fields = server.ask("GET", f"{SERVICES}/{NAME}")[1]["metadata"]["managedFields"]
    return {entry["manager"] for entry in fields}


def test_a_step_in_standard_mode_takes_kubectls_field_over_and_keeps_all_else(standard: ApiServer):
    moved = target(standard)
    seen = moved.state()
    assert (seen.stable, seen.canary, seen.percent, seen.ready) == (
        *(f"{NAME}-v1-predictor", f"{NAME}-v2-predictor"),
        10,
        True,
    )
    before = spec_of(standard)
    moved.change("percent", 25, seen)
    after = spec_of(standard)
    assert after["canary"][0]["trafficPercent"] == 25
    assert {**after, "canary": before["canary"]} == before
    assert "serinus-canary" in managers(standard)


def test_a_promotion_in_standard_mode_makes_the_canary_stable_and_its_list_goes(standard: ApiServer):
    moved = target(standard)
    moved.change("percent", 50, moved.state())
    report(standard, STANDARD_STATUS)
    moved.change("promote", 0, moved.state())
    spec = spec_of(standard)
    assert "canary" not in spec
    stable = spec["predictor"]
    assert (stable["name"], stable["model"]["storageUri"], stable["maxReplicas"]) == ("v2", "gs://b/v2", 3)


def test_a_rollback_in_standard_mode_removes_the_canary_alone(standard: ApiServer):
    before = spec_of(standard)
    moved = target(standard)
    moved.change("rollback", 0, moved.state())
    assert spec_of(standard) == {key: value for key, value in before.items() if key != "canary"}


def test_a_step_and_a_rollback_in_knative_mode_write_one_field_and_a_promotion_removes_it(knative: ApiServer):
    moved = target(knative)
    steps: tuple[tuple[Action, int, int], ...] = (("percent", 25, 25), ("rollback", 0, 0))
    for action, percent, wanted in steps:
        moved.change(action, percent, moved.state())
        assert spec_of(knative)["predictor"]["canaryTrafficPercent"] == wanted
        assert spec_of(knative)["predictor"]["model"]["storageUri"] == "gs://b/v2"
    moved.change("promote", 0, moved.state())
    assert "canaryTrafficPercent" not in spec_of(knative)["predictor"]


def test_a_field_that_a_gitops_controller_owns_is_left_unless_it_is_taken_over(standard: ApiServer):
    canary = spec_of(standard)["canary"][0] | {"trafficPercent": 20}
    words = ("apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller", "-f", "-")
    metadata = {"name": NAME, "namespace": "models"}
    kind = {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata}
    standard.run(
        *words, text=yaml.safe_dump({**kind, "spec": {"predictor": spec_of(standard)["predictor"], "canary": [canary]}})
    )
    moved = target(standard)
    with pytest.raises(Refused, match="argocd-controller owns the field"):
        moved.change("percent", 50, moved.state())
    assert spec_of(standard)["canary"][0]["trafficPercent"] == 20
    moved = target(standard, take_over=True)
    moved.change("percent", 50, moved.state())
    assert spec_of(standard)["canary"][0]["trafficPercent"] == 50


def test_an_edit_in_between_ends_the_change_and_one_of_the_status_does_not(standard: ApiServer):
    moved = target(standard)
    seen = moved.state()
    report(standard, {**STANDARD_STATUS, "url": "http://a"})
    moved.change("percent", 20, seen)
    seen = moved.state()
    edit = [{"op": "replace", "path": "/spec/canary/0/predictor/model/storageUri", "value": "gs://b/v3"}]
    standard.run("patch", "inferenceservice", NAME, "--type=json", "-p", json.dumps(edit))
    with pytest.raises(TargetChanged, match="generation"):
        moved.change("percent", 30, seen)
    assert spec_of(standard)["canary"][0]["trafficPercent"] == 20


def test_a_request_that_names_an_old_version_is_refused_by_the_server_itself(standard: ApiServer):
    client = KubernetesClient(load_access(standard.kubeconfig))
    path = f"{SERVICES}/{NAME}"
    old = client.get(path)["metadata"]["resourceVersion"]
    standard.run("label", "inferenceservice", NAME, "touched=yes")
    body = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": NAME, "namespace": "models", "resourceVersion": old},
        "spec": {"canary": spec_of(standard)["canary"]},
    }
    with pytest.raises(TargetChanged):
        client.apply(path, body, force=True)
    with pytest.raises(TargetChanged):
        client.patch(path, [{"op": "remove", "path": "/spec/canary"}], old)
    unknown = {**body, "metadata": {"name": NAME, "namespace": "models"}, "spec": {"canry": []}}
    with pytest.raises(Refused, match="field not declared in schema"):
        client.apply(path, unknown, force=True)


def test_a_record_is_kept_beside_the_service_is_found_by_the_next_and_two_writers_collide(standard: ApiServer):
    first = target(standard)
    first.state()
    assert first.load_record() is None
    first.save_record({"run": "a", "step": 1})
    _, kept = standard.ask("GET", f"/api/v1/namespaces/models/configmaps/{NAME}-serinus-canary")
    (owner,) = kept["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("InferenceService", NAME)
    second = target(standard)
    assert second.load_record() == {"run": "a", "step": 1}
    second.save_record({"run": "a", "step": 2})
    with pytest.raises(TargetChanged):
        first.save_record({"run": "a", "step": 3})
    assert target(standard).load_record() == {"run": "a", "step": 2}
    second.save_record(None)
    assert target(standard).load_record() is None


# Rights

ACCOUNT = "system:serviceaccount:models:serinus-canary"


@pytest.fixture
def judge(standard: ApiServer) -> Iterator[ApiServer]:
    """The account of `manifests/canary`, its Role and its binding."""
    documents = [item for item in render(ROOT / "manifests/canary") if item["kind"] != "Job"]
    binding = next(item for item in documents if item["kind"] == "RoleBinding")
    # An overlay's `namespace:` writes it here, as kustomize does for accounts that it renders.
    bound = {**binding, "subjects": [{**each, "namespace": "models"} for each in binding["subjects"]]}
    standard.run("apply", "-f", "-", text=yaml.safe_dump_all([*(d for d in documents if d is not binding), bound]))
    yield standard
    standard.run("delete", "-f", "-", text=yaml.safe_dump_all(documents))


def as_account(server: ApiServer) -> KServeTarget:
    """A target with a token of the account, that the API server itself gives."""
    token = server.run("create", "token", "serinus-canary").strip()
    access = load_access(server.kubeconfig)
    access.token = token
    return KServeTarget(KubernetesClient(access), "models", NAME)


def test_the_canarys_account_may_do_all_that_a_run_does(judge: ApiServer):
    moved = as_account(judge)
    seen = moved.state()
    assert moved.load_record() is None
    moved.save_record({"run": "a"})
    moved.save_record({"run": "a", "step": 2})
    assert moved.endpoints() == []
    moved.change("percent", 25, seen)
    report(judge, STANDARD_STATUS)
    moved.change("promote", 0, moved.state())
    moved.save_record(None)
    assert "canary" not in spec_of(judge)


@pytest.mark.parametrize(
    ("verb", "resource"),
    [
        ("get", "inferenceservices/another"),
        ("list", "inferenceservices"),
        ("delete", f"inferenceservices/{NAME}"),
        ("create", "inferenceservices"),
        ("patch", f"inferenceservices/{NAME}/status"),
        ("get", "configmaps/another"),
        ("list", "configmaps"),
        ("get", "secrets"),
        ("get", "pods"),
        ("create", "pods/exec"),
        ("patch", "deployments.apps"),
        ("get", "servingruntimes"),
    ],
)
def test_the_canarys_account_may_do_nothing_else(judge: ApiServer, verb: str, resource: str):
    words = (
        [verb, *resource.rpartition("/status")[0:1], "--subresource=status"]
        if "/status" in resource
        else [verb, resource]
    )
    asked = judge.kubectl("auth", "can-i", *words, f"--as={ACCOUNT}", "-n", "models")
    assert asked.stdout.strip() == "no", (asked.stdout, asked.stderr)


def test_each_right_of_the_account_is_used_by_a_run(judge: ApiServer):
    """Without any one verb of the Role, something that a run does is refused."""
    role = next(item for item in render(ROOT / "manifests/canary") if item["kind"] == "Role")
    for number, rule in enumerate(role["rules"]):
        for verb in rule["verbs"]:
            less = json.loads(json.dumps(role))
            less["rules"][number]["verbs"] = [each for each in rule["verbs"] if each != verb] or ["none"]
            judge.run(
                "apply", "--server-side", "--force-conflicts", "-n", "models", "-f", "-", text=yaml.safe_dump(less)
            )
            with pytest.raises(Refused, match="forbidden"):
                whole_run(as_account(judge))
            judge.run("delete", "configmap", f"{NAME}-serinus-canary", "--ignore-not-found")
    judge.run("apply", "--server-side", "--force-conflicts", "-n", "models", "-f", "-", text=yaml.safe_dump(role))


def whole_run(moved: KServeTarget) -> None:
    """What a run asks of the API server, the change at the end."""
    seen = moved.state()
    moved.load_record()
    moved.save_record({"run": "a"})
    moved.endpoints()
    moved.save_record(None)
    moved.change("percent", 11, seen)
    moved.change("percent", 10, moved.state())
