"""The vision InferenceService: what its manifests say, and the whole of it on this machine."""

from __future__ import annotations

import base64
import http.client
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from image_pixels.models import is_built
from image_pixels.recipe import PRESETS

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "inferenceservices" / "vision"
BUILT = is_built(ROOT / ".cache" / "vision", "efficientnet-lite0")


def render(form: str) -> list[dict[str, Any]]:
    kubectl = Path(sys.executable).with_name("kubectl")
    done = subprocess.run([str(kubectl), "kustomize", str(SERVICE / form)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def service(form: str) -> dict[str, Any]:
    (found,) = (document for document in render(form) if document["kind"] == "InferenceService")
    return found


@pytest.mark.slow
def test_the_gpu_component_gives_the_network_a_gpu_as_the_runtimes_component_does():
    predictor = service("collocated-gpu")["spec"]["predictor"]
    assert predictor["model"]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert predictor["model"]["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert predictor["model"]["image"].startswith("tensorflow_server-gpu:")
    kubectl = Path(sys.executable).with_name("kubectl")
    overlay = ROOT / "manifests" / "overlays" / "production-gpu"
    done = subprocess.run([str(kubectl), "kustomize", str(overlay)], capture_output=True, text=True, check=True)
    runtimes = {
        document["metadata"]["name"]: document["spec"]
        for document in yaml.safe_load_all(done.stdout)
        if document["kind"] == "ClusterServingRuntime"
    }
    runtime = runtimes[predictor["model"]["runtime"]]
    assert predictor["nodeSelector"] == runtime["nodeSelector"]
    assert predictor["tolerations"] == runtime["tolerations"]
    assert predictor["model"]["args"] == runtime["containers"][0]["args"][-1:]
    transformer = predictor["containers"][0]
    assert "nvidia.com/gpu" not in transformer["resources"]["limits"]


def test_without_the_component_nothing_asks_for_a_gpu():
    for form in ("fused", "collocated", "fused-resnet50"):
        assert "nvidia" not in json.dumps(render(form))


def test_the_resnet50_form_changes_weights_and_pixels_together():
    one, other = (service(form) for form in ("fused", "fused-resnet50"))
    models = [document["spec"]["predictor"]["model"] for document in (one, other)]
    assert {key for key in models[0] if models[0][key] != models[1][key]} == {"storageUri", "env"}
    presets = [{item["name"]: item["value"] for item in model["env"]} for model in models]
    assert presets[0] != presets[1]
    assert all(set(values) == {"IMAGE_PIXELS_PRESET"} for values in presets)
    assert {values["IMAGE_PIXELS_PRESET"] for values in presets} <= set(PRESETS)
    for document in (one, other):
        place = document["metadata"]["annotations"]["serinus.dev/local-storage-uri"]
        assert (SERVICE / "fused" / place).resolve().is_relative_to(ROOT / ".cache" / "vision")


@pytest.mark.slow
def test_every_form_passes_kserves_rules():
    forms = ("fused", "collocated", "collocated-gpu", "fused-resnet50")
    command = [sys.executable, "-m", "serinus.cli", "lint", *(str(SERVICE / form) for form in forms)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, done.stdout + done.stderr)
    assert "0 errors" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(not BUILT, reason="python -m image_pixels.models has not been run")
@pytest.mark.parametrize("form", ["fused", "collocated"])
def test_the_service_answers_its_example_on_this_machine(tmp_path: Path, form: str):
    command = [sys.executable, "-m", "serinus.cli"]
    state = ["--state-dir", str(tmp_path)]
    up = [*command, "up", str(SERVICE / form), *state, "--port", "0", "-d", "-q", "--no-watch"]
    started = subprocess.run(up, capture_output=True, text=True, check=False)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        status = subprocess.run([*command, "status", *state, "-o", "json"], capture_output=True, text=True, check=True)
        connection = http.client.HTTPConnection("127.0.0.1", json.loads(status.stdout)["gateway"]["port"], timeout=60)

        def ask(path: str, body: bytes) -> Any:
            headers = {"Host": "vision.default.localhost", "Content-Type": "application/json"}
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            content = json.loads(answer.read())
            assert answer.status == 200, content
            return content

        example = json.loads((SERVICE / "request.json").read_text())
        wanted = json.loads((SERVICE / "response.json").read_text())
        found = ask("/v2/models/vision/infer", json.dumps(example).encode())
        assert found["id"] == wanted["id"]
        by_name = {output["name"]: output for output in found["outputs"]}
        for output in wanted["outputs"]:
            own = by_name[output["name"]]
            assert (own["datatype"], own["shape"]) == (output["datatype"], output["shape"])
            if output["datatype"] == "FP32":
                # Another CPU sums in another order.
                np.testing.assert_allclose(own["data"], output["data"], atol=1e-3)
            else:
                assert own["data"] == output["data"]
        picture = example["inputs"][0]["data"][0]
        assert base64.b64decode(picture).startswith(b"\xff\xd8")
        v1 = ask("/v1/models/vision:predict", json.dumps({"instances": [{"b64": picture}], "top_k": 3}).encode())
        assert [best["label"] for best in v1["predictions"][0]] == by_name["label"]["data"]
        connection.close()
    finally:
        subprocess.run([*command, "down", *state], capture_output=True, check=False)
