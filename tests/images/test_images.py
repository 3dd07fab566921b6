"""The images as a ServingRuntime runs them: without root, on a read-only root file system."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from pathlib import Path

import pytest

from image_support import DOCKER, FRAUD, ROOT, build, container, docker, has_engine

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not has_engine(), reason="needs a Docker engine"),
]

AS_THE_RUNTIME_DOES = {"INFERENCE_SERVICE_NAME": "fraud"}


def test_the_fused_fraud_image_decides_as_its_example_says():
    image, mounts = build("ensemble_server-fraud_features"), {FRAUD / "model": "/mnt/models"}
    with container(image, mounts=mounts, environment=AS_THE_RUNTIME_DOES) as started:
        body = (FRAUD / "request.json").read_bytes()
        url = f"http://127.0.0.1:{started.port}/v2/models/fraud/infer"
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.loads(answer.read())
        expected = json.loads((FRAUD / "response.json").read_text())
        assert {o["name"]: o["data"] for o in found["outputs"]} == {o["name"]: o["data"] for o in expected["outputs"]}
        assert docker("exec", started.id, "id", "-u") == "1000"
        docker("stop", "-t", "30", started.id)
        assert docker("inspect", "-f", "{{.State.ExitCode}}", started.id) == "0"


def test_the_xgboost_image_has_kernels_and_serves_a_model_file(tmp_path: Path):
    shutil.copy(FRAUD / "model" / "fraud.ubj", tmp_path / "model.ubj")
    image, mounts = build("xgboost_server"), {tmp_path: "/mnt/models"}
    with container(image, mounts=mounts, environment=AS_THE_RUNTIME_DOES) as started:
        metadata = started.ask("/v2/models/fraud")
    assert metadata["properties"]["engine"] == "forest"


def test_a_build_without_a_name_says_what_to_name():
    dockerfile = str(ROOT / "runtimes" / "Dockerfile")
    done = subprocess.run([DOCKER, "build", "-f", dockerfile, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--build-arg APP=xgboost_server" in done.stdout + done.stderr
