"""The images, built and run by a real Docker engine: without root, on a read-only root file system."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAUD = ROOT / "inferenceservices" / "fraud"


def _engine() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not _engine(), reason="needs a Docker engine"),
]


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def build(app: str, transformer: str = "") -> str:
    """Build one image as the Makefile does; returns its name."""
    name = f"{app}-{transformer}" if transformer else app
    arguments = ["--build-arg", f"APP={app}", "--build-arg", f"TRANSFORMER={transformer}", "-t", f"{name}:test"]
    docker("build", "-q", "-f", str(ROOT / "runtimes" / "Dockerfile"), *arguments, str(ROOT))
    return f"{name}:test"


@contextlib.contextmanager
def container(image: str, model: Path) -> Iterator[tuple[str, int]]:
    """Run an image as the ServingRuntime does; yields its id and the REST port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hardened = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    mount = ["-v", f"{model}:/mnt/models:ro", "-e", "INFERENCE_SERVICE_NAME=fraud", "-p", f"127.0.0.1:{port}:8080"]
    started = docker("run", "-d", *hardened, *mount, image)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                    break
            except OSError:
                state = docker("inspect", "-f", "{{.State.Running}}", started)
                assert state == "true", _logs(started)
                assert time.monotonic() < deadline, _logs(started)
                time.sleep(0.1)  # a container starts: its port is all there is to wait on
        yield started, port
    finally:
        docker("rm", "-f", started)


def _logs(started: str) -> str:
    done = subprocess.run(["docker", "logs", started], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_the_fused_fraud_image_decides_as_its_example_says():
    with container(build("ensemble_server", "fraud_features"), FRAUD / "model") as (started, port):
        body = (FRAUD / "request.json").read_bytes()
        url = f"http://127.0.0.1:{port}/v2/models/fraud/infer"
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.loads(answer.read())
        expected = json.loads((FRAUD / "response.json").read_text())
        assert {o["name"]: o["data"] for o in found["outputs"]} == {o["name"]: o["data"] for o in expected["outputs"]}
        assert docker("exec", started, "id", "-u") == "1000"
        docker("stop", "-t", "30", started)
        assert docker("inspect", "-f", "{{.State.ExitCode}}", started) == "0"


def test_the_xgboost_image_has_kernels_and_serves_a_model_file(tmp_path: Path):
    tmp_path.chmod(0o755)
    shutil.copy(FRAUD / "model" / "fraud.ubj", tmp_path / "model.ubj")
    (tmp_path / "model.ubj").chmod(0o644)
    with container(build("xgboost_server"), tmp_path) as (_, port):
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/fraud", timeout=30)
        with answer:
            metadata = json.loads(answer.read())
    assert metadata["properties"]["engine"] == "forest"


def test_a_build_without_a_name_says_what_to_name():
    dockerfile = str(ROOT / "runtimes" / "Dockerfile")
    done = subprocess.run(["docker", "build", "-f", dockerfile, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--build-arg APP=xgboost_server" in done.stdout + done.stderr
