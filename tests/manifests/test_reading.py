"""What `serinus lint` reads: folders to the bottom, standard input, the good documents of a broken file; and how it tells what it found."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serinus.cli.main import main
from serinus.manifests import kustomization, reading
from serinus.manifests.documents import load_text
from serinus.manifests.problems import Problem, Problems
from serinus.manifests.reading import check, load_documents
from serinus.manifests.rules.update_rules import check_updates

GOOD = (
    "apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {name: %s}\n"
    "spec: {predictor: {model: {modelFormat: {name: xgboost}, storageUri: %s}}}\n"
)
BAD = GOOD.replace("storageUri", "storageUrl")


def fields(problems: list[Problem]) -> list[tuple[str, int, str]]:
    return [(Path(problem.file).name, problem.line, problem.field) for problem in problems]


def test_a_folder_is_read_to_the_bottom_and_each_folder_is_a_set_of_its_own(tmp_path: Path) -> None:
    for name in ("a", "b/c", ".git", "node_modules"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.yaml").write_text(GOOD % ("same", "gs://a"))
    (tmp_path / "b/c/values.yaml").write_text("replicas: 2\n")
    checked = check([tmp_path])
    assert (checked.problems, checked.objects) == ([], 2)
    (tmp_path / "b/c/y.yml").write_text(GOOD % ("same", "gs://a"))
    (twice,) = check([tmp_path]).problems
    assert (twice.severity, twice.rule) == ("warning", "object-written-once")
    (empty := tmp_path / "empty").mkdir()
    (nothing,) = check([empty]).problems
    assert "no manifest" in nothing.message


def test_a_broken_file_hides_neither_its_other_documents_nor_other_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [\n---\n" + BAD % ("one", "gs://a") + "---\nb: }\n")
    (tmp_path / "b.yaml").write_text(BAD % ("two", "gs://a"))
    found = fields(check([tmp_path]).problems)
    assert [(file, field) for file, _, field in found].count(("a.yaml", "")) == 2
    assert ("a.yaml", 6, "spec.predictor.model.storageUrl") in found
    assert ("b.yaml", 4, "spec.predictor.model.storageUrl") in found


def test_sources_of_helm_are_told_from_manifests(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("{{- if .Values.on }}\n" + GOOD % ("a", "gs://a") + "{{- end }}\n")
    (problem,) = check([tmp_path / "t.yaml"]).problems
    assert "template of Helm" in problem.message
    assert "helm template . | serinus lint -" in problem.mend
    (chart := tmp_path / "chart/templates").mkdir(parents=True)
    (tmp_path / "chart/Chart.yaml").write_text("name: a\n")
    (chart / "t.yaml").write_text("{{ toYaml . }}: [\n")
    (warning,) = check([tmp_path / "chart"]).problems
    assert (warning.severity, warning.layer) == ("warning", "unchecked")


def test_a_component_is_rendered_with_those_that_name_it_and_not_by_itself(tmp_path: Path) -> None:
    (component := tmp_path / "components/a").mkdir(parents=True)
    patch = "patches: [{target: {kind: InferenceService}, patch: '[{op: remove, path: /metadata/labels/x}]'}]\n"
    (component / "kustomization.yaml").write_text(
        "kind: Component\napiVersion: kustomize.config.k8s.io/v1alpha1\n" + patch
    )
    (tmp_path / "x.yaml").write_text(GOOD % ("a", "gs://a"))
    assert check([tmp_path]).problems == []


def test_a_document_that_lacks_one_of_kind_and_version_is_told_of_in_a_folder_too(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: InferenceService\nmetadata: {name: a}\n")
    (problem,) = check([tmp_path]).problems
    assert (problem.field, problem.layer) == ("apiVersion", "server")


@pytest.fixture
def lint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`serinus lint` in this process, which has imported its commands already."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        status = main(["lint", *words])
        return subprocess.CompletedProcess(["lint", *words], status, *capsys.readouterr())

    return run


def test_standard_input_is_a_file_and_the_last_line_counts(
    lint: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = lint("-", text=GOOD % ("a", "gs://a") + "---\n" + BAD % ("b", "gs://a"))
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "<stdin>:9:spec.predictor.model.storageUrl: unknown field: did you mean storageUri? [the API server refuses it]"
    )
    assert (lines[-1], done.returncode) == ("1 error, 0 warnings in 2 objects of 1 file", 1)
    fine = lint("-", text=GOOD % ("a", "gs://a"))
    assert (fine.stdout, fine.returncode) == ("0 errors, 0 warnings in 1 object of 1 file\n", 0)


def test_findings_are_written_for_code_scanning_and_as_annotations(
    tmp_path: Path, lint: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "a.yaml").write_text(BAD % ("b", "gs://a"))
    log = json.loads(lint("a.yaml", "-o", "sarif").stdout)
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    assert {result["ruleId"] for result in run["results"]} == {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    first = run["results"][0]
    assert (first["level"], first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]) == ("error", "a.yaml")
    assert first["locations"][0]["physicalLocation"]["region"]["startLine"] == 4
    (tmp_path / "a,b.yaml").write_text(BAD % ("b", "gs://a"))
    annotation = lint("a,b.yaml", "-o", "github").stdout.splitlines()[0]
    assert annotation.startswith(
        "::error file=a%2Cb.yaml,line=4,title=structure-unknown-field::spec.predictor.model.storageUrl: unknown field"
    )


def test_a_finding_is_one_short_line_whatever_the_manifest_has(
    tmp_path: Path, lint: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    key, value = r'"x\e[2J\n::warning file=z::\ud800"', f'"{"v" * 100_000}"'
    (tmp_path / "a\n::error::.yaml").write_text(
        f"apiVersion: serving.kserve.io/v1beta1\nkind: InferenceService\nmetadata: {{name: a}}\nspec: {{{key}: 1, predictor: {{minReplicas: {value}}}}}\n"
    )
    done = lint(".")
    assert not done.stderr
    lines = done.stdout.splitlines()
    assert all(line.startswith(r"a\n::error::.yaml:4:spec.") for line in lines[:-1]), lines
    assert r"spec.x\x1b[2J\n::warning file=z::\ud800: unknown field" in done.stdout
    assert "… (100024 characters)" in done.stdout
    assert len(done.stdout) < 5000


@pytest.mark.slow
def test_a_version_that_is_none_and_a_cluster_that_is_not_there_are_told(
    tmp_path: Path, lint: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "a.yaml").write_text(GOOD % ("b", "gs://a"))
    assert "write such as 0.15" in lint("--kserve-version", "latest", "a.yaml").stderr
    (tmp_path / "config").write_text("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: 'http://127.0.0.1:9'}}]\n"
        "contexts: [{name: a, context: {cluster: a}}]\ncurrent-context: a\n")  # fmt: skip
    command = [sys.executable, "-m", "serinus.cli", "lint", "--previous", "live", "a.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": "/usr/bin:/bin", "KUBECONFIG": str(tmp_path / "config"), "COLUMNS": "400"},
    )  # fmt: skip
    assert done.returncode == 2
    assert "kubectl could not read InferenceService b" in done.stderr


def updates(old: str, new: str) -> list[tuple[str, str]]:
    problems = Problems()
    check_updates(load_text(old, "old"), load_text(new, "new"), problems)
    return [(problem.rule, problem.field) for problem in problems.all]


MODE = GOOD.replace("{name: %s}", "{name: %s, annotations: {serving.kserve.io/deploymentMode: %s}}")
NAMED = GOOD.replace("{predictor: {", "{predictor: {name: %s, ")
RUNTIME = (
    "apiVersion: serving.kserve.io/v1alpha1\nkind: ServingRuntime\nmetadata: {name: a}\nspec: {containers: []%s}\n"
)
TRAINED = (
    "apiVersion: serving.kserve.io/v1alpha1\nkind: TrainedModel\nmetadata: {name: a}\nspec: {model: {memory: %s}}\n"
)
LLM = "apiVersion: serving.kserve.io/v1alpha2\nkind: LLMInferenceService\nmetadata: {name: a}\nspec: {parallelism: {%s}}\n"
UPDATES = [
    (MODE % ("a", "Standard", "x"), MODE % ("a", "Knative", "x"), ["update-same-mode"]),
    (MODE % ("a", "RawDeployment", "x"), MODE % ("a", "Standard", "x"), []),
    (GOOD % ("a", "x") + "status: {deploymentMode: Knative}\n", MODE % ("a", "Standard", "x"), ["update-same-mode"]),
    (GOOD % ("a", "x"), MODE % ("a", "Standard", "x"), []),
    (MODE % ("b", "Knative", "x"), MODE % ("a", "Standard", "x"), []),
    (NAMED % ("a", "v1", "x"), NAMED % ("a", "v2", "x"), ["update-name-with-model"]),
    (NAMED % ("a", "v1", "x"), NAMED % ("a", "v2", "y"), []),
    (NAMED % ("a", "v1", "x"), NAMED % ("a", "v1", "x"), []),
    (RUNTIME % ", workerSpec: {}", RUNTIME % "", ["update-worker-stays"]),
    (RUNTIME % "", RUNTIME % ", workerSpec: {}", []),
    (TRAINED % "1Gi", TRAINED % "2Gi", ["update-memory-stays"]),
    (TRAINED % "1Gi", TRAINED % "1024Mi", []),
    (LLM % "pipeline: 2", LLM % "pipeline: 4", ["update-parallelism-stays"]),
    (LLM % "data: 4, dataLocal: 2", LLM % "data: 8, dataLocal: 4", []),
]


@pytest.mark.parametrize(("old", "new", "rules"), UPDATES)
def test_an_update_is_judged_against_what_is_there(old: str, new: str, rules: list[str]) -> None:
    assert [rule for rule, _ in updates(old, new)] == rules
    assert updates(old, old) == []


def test_a_kustomization_that_is_never_rendered_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text("#!/bin/sh\nexec sleep 60\n")
    kubectl.chmod(0o755)
    monkeypatch.setattr(kustomization, "_kubectl", lambda: str(kubectl))
    monkeypatch.setattr(kustomization, "_RENDER_S", 0.2)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "kustomization.yaml").write_text("resources: [https://192.0.2.1/base.yaml]\n")
    (problem,) = check([tmp_path / "app"]).problems
    assert "kustomize has not rendered it after 0.2 s" in problem.message


@pytest.mark.timeout(20)  # a pipe was waited for without an end
def test_what_is_no_file_of_a_sensible_size_is_told_and_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(1 << 40)
    (problem,) = check([tmp_path / "large.yaml"]).problems
    assert "is 1099511627776 bytes, 67108864 at most were expected" in problem.message
    (folder := tmp_path / "folder").mkdir()
    os.mkfifo(folder / "pipe.yaml")
    (folder / "a.yaml").write_text(GOOD % ("a", "gs://a"))
    assert [document.name for document in load_documents(folder)] == ["a"]


@pytest.mark.timeout(20)
def test_a_pipe_that_is_named_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(GOOD % ("a", "gs://a"),))
    writer.start()
    checked = check([tmp_path / "pipe"])
    writer.join()
    assert (checked.problems, checked.objects) == ([], 1)


def test_a_broken_file_of_many_documents_is_read_again_no_further_than_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_MOST_AGAIN", 10_000)  # its own bound takes seconds to reach
    text = "---\n".join(GOOD % (f"a{number}", "gs://a") for number in range(60)) + "---\na: ["
    (tmp_path / "a.yaml").write_text(text)
    checked = check([tmp_path / "a.yaml"])
    assert 20 < checked.objects < 60
    assert [problem.line for problem in checked.problems] == [text.count("\n") + 1]
