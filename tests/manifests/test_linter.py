"""Manifests: where each field was written, what KServe refuses, and what it accepts and does not do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from serinus.cli import main
from serinus.errors import ConfigError
from serinus.local.plan.deployment_plan import PlanOptions
from serinus.local.plan.plan_loader import load
from serinus.manifests.documents import load_text
from serinus.manifests.fields import flag_value
from serinus.manifests.linter import check_documents
from serinus.manifests.problems import Problem, Problems
from serinus.manifests.reading import check, load_documents

GOOD = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: fraud
  annotations: {serving.kserve.io/deploymentMode: Standard}
spec:
  predictor:
    minReplicas: 1
    containers:
      - name: kserve-container
        image: xgboost_server:1.0
        env: [{name: PROTOCOL, value: v2}, {name: STORAGE_URI, value: pvc://models/fraud}]
        resources: {requests: {cpu: 500m, memory: 1Gi}}
        ports: [{containerPort: 8080}, {name: grpc-v2, containerPort: 8081}]
"""
HPA = GOOD.replace("deploymentMode: Standard", "deploymentMode: Standard, serving.kserve.io/autoscalerClass: hpa")
KNATIVE = GOOD.replace("  annotations: {serving.kserve.io/deploymentMode: Standard}\n", "").replace(
    ", {name: grpc-v2, containerPort: 8081}", ""
)
MODEL = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: fraud
  annotations: {serving.kserve.io/deploymentMode: Standard}
spec:
  predictor:
    name: v1
    minReplicas: 2
    model: {modelFormat: {name: xgboost}, storageUri: gs://bucket/v1}
  canary:
    - trafficPercent: 10
      predictor:
        name: v2
        model: {modelFormat: {name: xgboost}, storageUri: gs://bucket/v2}
"""
TRANSFORMER = (
    GOOD
    + """\
  transformer:
    containers:
      - name: kserve-container
        image: fraud_features
        args: ["--predictor_protocol=v2"]
        resources: {requests: {cpu: 500m, memory: 1Gi}}
"""
)


def found(text: str) -> list[Problem]:
    problems = Problems()
    check_documents(load_text(text, "isvc.yaml"), problems)
    return list(problems.all)


@pytest.mark.parametrize(
    "text", [GOOD, KNATIVE, MODEL, TRANSFORMER], ids=["standard", "knative", "canary", "transformer"]
)
def test_a_good_manifest_has_no_findings(text: str) -> None:
    assert found(text) == []


SCALED_TO_ZERO = KNATIVE.replace("minReplicas: 1", "minReplicas: 0")
SEVERAL_URIS = MODEL.replace(
    ", storageUri: gs://bucket/v1}",
    "}\n    storageUris: [{uri: gs://bucket/a, mountPath: /mnt/models/a}, {uri: 's3://bucket/b', mountPath: /mnt/models/b}]",
)


@pytest.mark.parametrize("text", [SCALED_TO_ZERO, SEVERAL_URIS], ids=["minReplicas: 0", "storageUris"])
def test_scaling_to_zero_and_several_storage_uris_have_no_findings(text: str) -> None:
    assert text not in {KNATIVE, MODEL}
    assert found(text) == []


def _edit(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


ERRORS = {
    "name": (GOOD, "name: fraud", "name: Fraud", 4, "metadata.name", "lower-case"),
    "version": (GOOD, "v1beta1", "v1", 1, "apiVersion", "use serving.kserve.io/v1beta1"),
    "unknown field": (GOOD, "minReplicas", "minReplica", 8, "spec.predictor.minReplica", "did you mean minReplicas?"),
    "misplaced": (
        GOOD,
        "minReplicas: 1",
        "storageUri: x",
        8,
        "spec.predictor.storageUri",
        "predictor.model.storageUri",
    ),
    "type": (GOOD, "minReplicas: 1", "minReplicas: one", 8, "spec.predictor.minReplicas", "whole number"),
    "quotes": (GOOD, "value: v2", "value: 2", 12, "spec.predictor.containers[0].env[0].value", 'write "2" in quotes'),
    "twice": (
        GOOD,
        "    minReplicas: 1",
        "    minReplicas: 1\n    minReplicas: 2",
        9,
        "spec.predictor.minReplicas",
        "keep one",
    ),
    "negative": (GOOD, "minReplicas: 1", "minReplicas: -1", 8, "spec.predictor.minReplicas", "0 or more"),
    "min above max": (
        GOOD,
        "minReplicas: 1",
        "minReplicas: 3\n    maxReplicas: 2",
        8,
        "spec.predictor.minReplicas",
        "raise",
    ),
    "concurrency": (
        GOOD,
        "minReplicas: 1",
        "containerConcurrency: -2",
        8,
        "spec.predictor.containerConcurrency",
        "0 or",
    ),
    "pythonpath": (
        GOOD,
        "name: PROTOCOL",
        "name: PYTHONPATH",
        12,
        "spec.predictor.containers[0].env[0]",
        "into the image",
    ),
    "protocol": (GOOD, "value: v2", "value: grpc-v2", 12, "spec.predictor.containers[0].env[0].value", "v1 or v2"),
    "no image fields": (GOOD, "    containers:", "    tolerations:", 7, "spec.predictor", "add model: or containers:"),
    "two implementations": (
        GOOD,
        "    minReplicas: 1",
        "    model: {modelFormat: {name: a}}",
        9,
        "spec.predictor.containers",
        "keep one",
    ),
    "scheme": (
        GOOD,
        "pvc://models",
        "s4://models",
        12,
        "spec.predictor.containers[0].env[1].value",
        "did you mean s3://?",
    ),
    "autoscaler": (
        GOOD,
        "deploymentMode: Standard",
        "autoscalerClass: kpa",
        5,
        "metadata.annotations.serving.kserve.io/autoscalerClass",
        "hpa",
    ),
    "metric of knative": (
        KNATIVE,
        "minReplicas: 1",
        "scaleMetric: cpu",
        7,
        "spec.predictor.scaleMetric",
        "concurrency or rps",
    ),
    "metric of hpa": (HPA, "minReplicas: 1", "scaleMetric: rps", 8, "spec.predictor.scaleMetric", "cpu or memory"),
    "target": (HPA, "minReplicas: 1", "scaleTarget: 101", 8, "spec.predictor.scaleTarget", "1 to 100"),
    "strategy": (
        KNATIVE,
        "minReplicas: 1",
        "deploymentStrategy: {}",
        7,
        "spec.predictor.deploymentStrategy",
        "Standard",
    ),
    "logger": (
        GOOD,
        "minReplicas: 1",
        "logger: {url: http://x}",
        8,
        "spec.predictor.logger.mode",
        "all, request or response",
    ),
    "percentage": (
        KNATIVE,
        "minReplicas: 1",
        "canaryTrafficPercent: 150",
        7,
        "spec.predictor.canaryTrafficPercent",
        "0 to 100",
    ),
    "port": (
        GOOD,
        "containerPort: 8080",
        "containerPort: 80800",
        14,
        "spec.predictor.containers[0].ports[0].containerPort",
        "65535",
    ),
    "mount": (
        MODEL,
        "    minReplicas: 2",
        "    storageUris: [{uri: gs://b, mountPath: /}]",
        9,
        "spec.predictor.storageUris[0].mountPath",
        "absolute",
    ),
    "name in model": (
        MODEL,
        "model: {modelFormat",
        "model: {name: x, modelFormat",
        10,
        "spec.predictor.model.name",
        "remove",
    ),
    "canary mode": (MODEL, "Standard", "Knative", 11, "spec.canary", "canaryTrafficPercent"),
    "canary sum": (MODEL, "trafficPercent: 10", "trafficPercent: 101", 11, "spec.canary", "100 or less"),
    "canary name": (MODEL, "name: v2", "name: v1", 14, "spec.canary[0].predictor.name", "another name"),
    "canary replicas": (
        MODEL,
        "        name: v2",
        "        name: v2\n        minReplicas: 3",
        15,
        "spec.canary[0].predictor.minReplicas",
        "lower",
    ),
    "canary scaling": (
        MODEL,
        "        name: v2",
        "        name: v2\n        maxReplicas: 3",
        15,
        "spec.canary[0].predictor.maxReplicas",
        "remove",
    ),
    "canary percent": (
        MODEL,
        "trafficPercent: 10",
        "percent: 10",
        12,
        "spec.canary[0].percent",
        "write trafficPercent",
    ),
    "order": (
        GOOD,
        "      - name: kserve-container",
        "      - {name: transformer-container, image: a, args: [--predictor_host=localhost]}\n      - name: kserve-container",
        10,
        "spec.predictor.containers[0].name",
        "put kserve-container first",
    ),
    "kind": (GOOD, "kind: InferenceService", "kind: InferenceServce", 2, "kind", "did you mean InferenceService?"),
}


@pytest.mark.parametrize(("text", "old", "new", "line", "field", "mend"), ERRORS.values(), ids=ERRORS)
def test_what_kserve_refuses_is_an_error_at_its_line(
    text: str, old: str, new: str, line: int, field: str, mend: str
) -> None:
    errors = [problem for problem in found(_edit(text, old, new)) if problem.severity == "error"]
    assert (line, field) in {(problem.line, problem.field) for problem in errors}, errors
    assert any(mend in f"{problem.message}: {problem.mend}" for problem in errors if problem.field == field), errors


WARNINGS = {
    "ignored canary": (
        GOOD,
        "minReplicas: 1",
        "canaryTrafficPercent: 10",
        "spec.predictor.canaryTrafficPercent",
        "5335",
    ),
    "unpaired canary": (
        TRANSFORMER.replace("  annotations: {serving.kserve.io/deploymentMode: Standard}\n", ""),
        "minReplicas: 1",
        "canaryTrafficPercent: 10",
        "spec.predictor.canaryTrafficPercent",
        "1669",
    ),
    "throttled": (GOOD, "cpu: 500m, ", "", "spec.predictor.containers[0].resources", "1 CPU"),
    "unnamed grpc port": (GOOD, "name: grpc-v2", "name: second", "spec.predictor.containers[0].ports[1]", "h2c"),
    "two ports in knative": (GOOD, "deploymentMode: Standard", "stop: 'false'", "spec.predictor.containers", "8471"),
    "no PROTOCOL": (GOOD, "{name: PROTOCOL, value: v2}, ", "", "spec.predictor.containers[0].env", "PROTOCOL"),
    "speaks v1": (TRANSFORMER, "--predictor_protocol=v2", "--x=y", "spec.transformer.containers[0].args", "V1"),
    "dead flag": (
        TRANSFORMER,
        '"--pred',
        '"--protocol=v2", "--pred',
        "spec.transformer.containers[0].args",
        "never used",
    ),
    "first port": (TRANSFORMER, "=v2", "=grpc-v2", "spec.predictor.containers[0].ports[0]", "gRPC port first"),
    "annotation": (
        GOOD,
        "deploymentMode: Standard",
        "deploymentmode: Standard",
        "metadata.annotations.serving.kserve.io/deploymentmode",
        "did you mean serving.kserve.io/deploymentMode?",
    ),
    "mode": (GOOD, "Standard", "Raw", "metadata.annotations.serving.kserve.io/deploymentMode", "cluster's default"),
    "length": (GOOD, "name: fraud", "name: fraud" + "d" * 40, "metadata.name", "2428"),
}


@pytest.mark.parametrize(("text", "old", "new", "field", "words"), WARNINGS.values(), ids=WARNINGS)
def test_what_kserve_accepts_and_does_not_do_is_a_warning(
    text: str, old: str, new: str, field: str, words: str
) -> None:
    findings = [problem for problem in found(_edit(text, old, new)) if problem.field == field]
    assert any(words in str(problem) and problem.severity == "warning" for problem in findings), findings


RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: one}
spec:
  supportedModelFormats: [{name: xgboost, autoSelect: true, priority: 1}]
  protocolVersions: [v2]
  containers: [{name: kserve-container, image: xgboost_server}]
"""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RUNTIME.replace("name: kserve-container", "name: kserve"), "rename it to kserve-container"),
        (RUNTIME.replace("priority: 1", "priority: 0"), "1 or more"),
        (RUNTIME + "---\n" + RUNTIME.replace("name: one", "name: two"), "use another priority"),
        (
            RUNTIME.replace("1}]", "1}, {name: xgboost, autoSelect: true, priority: 2, version: '2'}]"),
            "make them equal",
        ),
        (RUNTIME + "---\n" + RUNTIME, "is also at isvc.yaml:3"),
    ],
    ids=["container", "priority", "same priority", "two priorities", "same name"],
)
def test_what_kserve_refuses_in_a_runtime_is_an_error(text: str, words: str) -> None:
    assert any(words in str(problem) for problem in found(text))
    assert found(RUNTIME) == []


def test_a_rendered_field_is_shown_where_its_source_wrote_it(tmp_path: Path) -> None:
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.mkdir()
    overlay.mkdir()
    (base / "isvc.yaml").write_text(GOOD)
    (base / "kustomization.yaml").write_text("resources: [isvc.yaml]\n")
    (overlay / "kustomization.yaml").write_text(
        "resources: [../base]\nnamePrefix: my-\npatches: [{path: patch.yaml}]\n"
    )
    (overlay / "patch.yaml").write_text(
        "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: fraud}\n"
        "spec:\n  predictor:\n\n    minReplicas: 5\n"
    )
    (document,) = load_documents(overlay)
    assert document.name == "my-fraud"
    image = document.place(("spec", "predictor", "containers", 0, "image"))
    assert (Path(image.file).name, image.line) == ("isvc.yaml", 11)
    replicas = document.place(("spec", "predictor", "minReplicas"))
    assert (Path(replicas.file).name, replicas.line) == ("patch.yaml", 7)
    (overlay / "kustomization.yaml").write_text("resources: [nothing.yaml]\n")
    with pytest.raises(ConfigError, match=r"kustomization.yaml:1: kustomize cannot render"):
        load_documents(overlay)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "not YAML"), ("- 1", "a manifest is a mapping"), ("a: 1", "apiVersion: missing"), ("", "empty")],
    ids=["syntax", "list", "no kind", "empty"],
)
def test_a_file_that_is_no_manifest_is_told_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    (problem,) = check([file]).problems
    assert words in str(problem)
    assert str(problem).startswith(f"{file}:1:")
    (missing,) = check([tmp_path / "none.yaml"]).problems
    assert "no such file" in str(missing)


def test_dates_and_lists_are_read_as_kubernetes_reads_them() -> None:
    first, second = load_text(
        "kind: List\napiVersion: v1\nitems:\n- {apiVersion: v1, kind: A, d: 2020-01-01}\n- {apiVersion: v1, kind: B}\n",
        "f",
    )
    assert first.value["d"] == "2020-01-01"
    assert (second.kind, second.place(("kind",)).line) == ("B", 5)


@pytest.mark.parametrize(
    ("words", "value"),
    [(["--a_b", "x"], "x"), (["--a-b=x"], "x"), (["--a_b="], ""), (["a_b", "x"], None), ([], None)],
)
def test_a_flag_is_read_in_every_spelling(words: list[str], value: str | None) -> None:
    assert flag_value(words, "a_b") == value


@pytest.mark.slow  # processes
def test_lint_exits_by_severity_and_speaks_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def lint(*words: str) -> tuple[int, str]:
        status = main(["lint", *words])
        return status, capsys.readouterr().out

    Path("isvc.yaml").write_text(_edit(GOOD, "cpu: 500m, ", ""))
    status, said = lint("isvc.yaml")
    assert status == 0
    assert said.startswith("isvc.yaml:13:spec.predictor.containers[0].resources: warning: no cpu")
    assert lint("isvc.yaml", "--strict")[0] == 1
    command = [sys.executable, "-m", "serinus.cli", "lint", "isvc.yaml", "--strict"]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 1
    Path("isvc.yaml").write_text(_edit(GOOD, "minReplicas", "minReplica"))
    status, said = lint("isvc.yaml", "-o", "json")
    assert status == 1
    assert json.loads(said)[0] | {"message": ""} == {
        "file": "isvc.yaml",
        "line": 8,
        "field": "spec.predictor.minReplica",
        "message": "",
        "mend": "did you mean minReplicas?",
        "severity": "error",
        "layer": "server",
        "rule": "structure-unknown-field",
    }


def test_an_image_that_cannot_run_here_is_told_with_field_line_and_mend(tmp_path: Path) -> None:
    file = tmp_path / "isvc.yaml"
    file.write_text(_edit(GOOD, "xgboost_server:1.0", "registry:5000/team/redis:7"))
    (error,) = load(file, (), PlanOptions()).errors
    assert str(error).startswith(
        f"{file}:11:spec.predictor.containers[0].image: registry:5000/team/redis:7 is no image"
    )
    assert "--image registry:5000/team/redis='COMMAND'" in error.mend
    assert load(file, (), PlanOptions(images={"redis": ("run",)})).errors == ()


WORKLOAD = """
apiVersion: %s
kind: %s
metadata: {name: a}
spec:
  template:
    metadata: {labels: {app: a}}
    spec:
      %s
      containers: [%s]
"""


@pytest.mark.parametrize(
    ("kind", "pod", "container", "field"),
    [
        ("Deployment", "", "{name: A, image: x}", "containers[0].name"),
        ("Deployment", "", "{name: a}", "containers[0].image"),
        (
            "Deployment",
            "",
            "{name: a, image: x, volumeMounts: [{name: b, mountPath: /b}]}",
            "containers[0].volumeMounts[0].name",
        ),
        ("Deployment", "restartPolicy: Never", "{name: a, image: x}", "restartPolicy"),
        ("Job", "restartPolicy: Always", "{name: a, image: x}", "restartPolicy"),
        ("Job", "", "{name: a, image: x}", "restartPolicy"),
        (
            "Job",
            "restartPolicy: Never",
            "{name: a, image: x, resources: {limits: {cpu: 1}, requests: {cpu: 2}}}",
            "containers[0].resources.requests.cpu",
        ),
    ],
)
def test_pods_of_kubernetes_own_workloads_are_judged_and_the_server_refuses_them(
    kind: str, pod: str, container: str, field: str
):
    group = "batch/v1" if kind == "Job" else "apps/v1"
    selector = "" if kind == "Job" else "\n  selector: {matchLabels: {app: a}}"
    found = checked((WORKLOAD % (group, kind, pod, container)).rstrip() + selector)
    (problem,) = [each for each in found if each.severity == "error"]
    assert (problem.field, problem.layer) == (f"spec.template.spec.{field}", "server")


def test_a_workload_that_the_server_takes_has_no_finding():
    pod = "restartPolicy: Never"
    text = WORKLOAD % ("batch/v1", "Job", pod, "{name: a, image: x, volumeMounts: [{name: b, mountPath: /b}]}")
    assert checked(text.replace(pod, f"{pod}\n      volumes: [{{name: b, emptyDir: {{}}}}]")) == ()


def test_an_item_of_null_and_one_written_twice_are_warned_of_where_the_server_takes_them():
    role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: a}\n"
    role += "rules: [{apiGroups: [''], resources: [pods, null], verbs: [get]}]\n"
    account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: a}\nsecrets: [{name: b}, {name: b}]\n"
    for text in (role, account):
        (problem,) = checked(text)
        assert problem.severity == "warning"


def checked(text: str) -> tuple[Problem, ...]:
    problems = Problems()
    check_documents(load_text(text, "a.yaml"), problems)
    return problems.all
