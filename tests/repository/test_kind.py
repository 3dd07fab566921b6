"""The script that makes a kind cluster: checked for what can be checked without one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "manifests/kind/up.sh"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    # PATH without kind, kubectl, helm and docker: a dry run asks for none of them.
    command = ["bash", str(SCRIPT), *words]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=30, env={"PATH": "/usr/bin:/bin"}
    )


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_has_no_finding() -> None:
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (
            "standard",
            ["gateway-api", "manifests/kind/gateway.yaml", "deploymentMode=Standard", "enableGatewayApi=true"],
        ),
        ("knative", ["serving-core.yaml", "kourier.yaml", "deploymentMode=Knative"]),
    ],
)
def test_a_dry_run_prints_every_command_and_runs_none(mode: str, words: list[str]) -> None:
    done = run(
        "--dry-run", "--mode", mode, "--image", "a", "--image", "b", "--service", "inferenceservices/fraud/fused"
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ ")]
    assert lines[0].startswith("+ kind create cluster")
    assert [line.split()[4].split(":")[0] for line in lines if "kind load" in line] == ["a", "b"]
    assert any("apply -k inferenceservices/fraud/fused" in line for line in lines)
    for word in words:
        assert any(word in line for line in lines), word
    assert all(line.split()[1] in {"kind", "kubectl", "helm"} for line in lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mode", "both"], "expected standard or knative"),
        (["--mod", "standard"], "unknown"),
        (["--mode"], "needs a value"),
        (["--overlay", "--dry-run"], "needs a value"),
        (["--overlay", "nowhere"], "no kustomization.yaml there"),
    ],
)
def test_a_slip_is_told_before_anything_is_made(words: list[str], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert said in done.stderr
    assert "+ kind" not in done.stdout


def test_help_has_examples_and_down_deletes_alone() -> None:
    assert "make images" in run("--help").stdout
    assert run("--down", "--dry-run").stdout.splitlines() == ["+ kind delete cluster --name serinus "]


def test_the_gateway_is_the_one_that_the_chart_is_told_of() -> None:
    documents = list(yaml.safe_load_all((ROOT / "manifests/kind/gateway.yaml").read_text()))
    gateway = next(document for document in documents if document["kind"] == "Gateway")
    name = f"{gateway['metadata']['namespace']}/{gateway['metadata']['name']}"
    assert f"kserveGateway={name}" in SCRIPT.read_text()
    ports = next(d for d in documents if d["kind"] == "EnvoyProxy")["spec"]["provider"]["kubernetes"]["envoyService"][
        "patch"
    ]["value"]["spec"]["ports"]
    cluster = yaml.safe_load((ROOT / "manifests/kind/cluster.yaml").read_text())
    assert ports[0]["nodePort"] == cluster["nodes"][0]["extraPortMappings"][0]["containerPort"]
