"""inferenceservices/README.md, played by a stranger in an empty folder; with DEEP=1 in an environment of its own, with the wheel.

That a wheel with an extra is all that a server needs is held in every run by tests/native/test_wheels.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from absent_packages import BESIDE_BOOSTERS, without
from container_support import UV, build_wheel, engine_answers
from depth import DEEP
from kubernetes_server import KubernetesServer, kubernetes
from page_player import blocks_of, playing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "inferenceservices" / "README.md"
EXTRAS = "[serve,local,xgboost-server]"


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment into which the page's first command has installed the wheel of this tree; or of the tests' own."""
    first = blocks_of(PAGE.read_text())[0]
    assert first == ("sh", f"pip install 'serinus{EXTRAS}'\n")
    if not DEEP:
        return Path(sys.executable).parent
    folder = tmp_path_factory.mktemp("stranger")
    wheel = build_wheel(folder / "dist")
    python = folder / "environment" / "bin" / "python"
    subprocess.run([str(UV), "venv", "-q", "--python", sys.executable, str(python.parents[1])], check=True)
    install = [
        str(UV),
        "pip",
        "install",
        "-q",
        "--python",
        str(python),
        "-c",
        str(ROOT / "constraints.txt"),
        f"{wheel}{EXTRAS}",
    ]
    installed = subprocess.run(install, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    wheel.unlink()  # what `serinus build` puts into an image is the installed package itself
    return python.parent


@pytest.fixture
def cluster() -> Iterator[KubernetesServer]:
    """An API server with the discovery that kubectl asks for."""
    with kubernetes() as server:
        groups = {
            "v1beta1": ("inferenceservices", "InferenceService"),
            "v1alpha1": ("servingruntimes", "ServingRuntime"),
        }
        versions = [{"groupVersion": f"serving.kserve.io/{version}", "version": version} for version in groups]
        server.objects["/api"] = {"kind": "APIVersions", "versions": ["v1"]}
        server.objects["/api/v1"] = {"kind": "APIResourceList", "groupVersion": "v1", "resources": []}
        group = {"name": "serving.kserve.io", "versions": versions, "preferredVersion": versions[0]}
        server.objects["/apis"] = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
        for version, (plural, kind) in groups.items():
            resource = {
                "name": plural,
                "singularName": "",
                "namespaced": True,
                "kind": kind,
                "verbs": ["get", "patch", "create"],
            }
            server.objects[f"/apis/serving.kserve.io/{version}"] = {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"serving.kserve.io/{version}",
                "resources": [resource],
            }
        yield server


def test_every_command_of_the_page_does_what_it_says(programs: Path, cluster: KubernetesServer, tmp_path: Path):
    has_engine = engine_answers()
    # An environment of the package has it to put into an image; the tests' own has the source tree, and says to name the wheel.
    wheel = "" if DEEP or not has_engine else f" --wheel {build_wheel(tmp_path / 'dist')}"

    def exchange(line: str) -> str | None:
        if line.startswith("pip install"):
            return None  # done: `programs`
        if line.startswith("serinus build") and "--print" not in line and not has_engine:
            return None
        if line.startswith("serinus build") and "--print" not in line:
            return line + wheel
        return line.replace(
            "kubectl apply", "kubectl apply --validate=false"
        )  # the API server here has no schema to send

    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{cluster.port}"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "default"}}],
            }
        )
    )
    folder = tmp_path / "empty"
    folder.mkdir()
    # What XGBoost imports where it is, the page's first command does not bring.
    environment = {"KUBECONFIG": str(kubeconfig), **({} if DEEP else without(tmp_path, *BESIDE_BOOSTERS))}
    with playing(folder, programs, exchange, **environment) as player:
        try:
            player.play(PAGE.read_text())
        finally:
            if has_engine:
                subprocess.run(["docker", "rmi", "-f", "iris:1", "churn:1"], capture_output=True, check=False)
    said = player.said
    assert set(said) >= set(commands())  # none was passed over but those that start servers and need an engine
    (value,) = [text for line, text in said.items() if line == "python ask.py"]
    assert 1.0 < float(value.strip(" []\n")) < 2.0  # 0.5 - -1
    assert said["serinus infer churn --json request.json"].count("[2.5 4. ]") == 1
    assert "promoted" in next(text for line, text in said.items() if line.startswith("serinus canary run"))
    if has_engine:
        image = said["serinus build ./models/1 --name iris --tag iris:1"]
        assert re.search(r"built iris:1: \d+ MB", image), image
        assert re.search(r"ready in \d+\.\d s as user 1000", image), image
        assert "predict FP32 [1] = " in image
        assert "request.json: y FP32 [2] = 2.5, 4.0" in said["serinus build . --tag churn:1"]
    assert cluster.service("iris")["spec"]["predictor"]["model"]["storageUri"] == "gs://your-bucket/iris/1"
    assert cluster.service("churn")["spec"]["predictor"]["model"]["runtime"] == "churn"


def commands() -> list[str]:
    """Lines of the page that run to their end without an engine."""
    lines = [line for language, text in blocks_of(PAGE.read_text()) if language == "sh" for line in text.splitlines()]
    left_out = ("pip install", "serinus serve", "serinus bench", "cd ")
    kept = [line for line in lines if not line.startswith(left_out)]
    return [line for line in kept if not line.startswith("serinus build") or "--print" in line]


def test_the_inferenceservice_of_the_page_is_a_format_a_runtime_and_a_place_and_nothing_else():
    (text,) = [
        text for language, text in blocks_of(PAGE.read_text()) if language == "yaml" and "kind: Inference" in text
    ]
    predictor = text.split("    model:\n")[1]
    assert re.findall(r"^      (\w+):", predictor, re.MULTILINE) == ["modelFormat", "runtime", "storageUri"]


def test_the_class_of_the_template_passes_its_own_test(programs: Path, tmp_path: Path):
    """As its owner runs it, with the tests' own pytest."""
    subprocess.run([str(programs / "serinus"), "init", "churn"], cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path / "churn",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
