"""The ensemble, whose KServe form MLServer's environment cannot import, under stock `mlserver start` by its own settings."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from processes import free_port, process

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "bin" / "python"
ANSWERS = """
import json, sys, sysconfig
import numpy
from ensemble_server.model import Ensemble

rng = numpy.random.default_rng(3)
rows = 40
terminals = numpy.empty(rows, object)
terminals[:] = [b"t%d" % (i % 7) for i in range(rows)]
inputs = {
    "features": rng.normal(size=(rows, 39)).astype("float32"),
    "amount": rng.uniform(1, 3000, rows),
    "terminal_id": terminals,
}
model = Ensemble("fraud", sys.argv[1])
assert "kserve" in sys.modules, "the other form is to be compared with"
model.load()
kinds = {spec.name: spec.datatype for spec in (*model.input_specs, *model.output_specs)}

def written(arrays):
    plain = lambda value: value.decode() if isinstance(value, bytes) else value
    return [
        {"name": name, "datatype": kinds[name], "shape": list(array.shape), "data": [plain(v) for v in array.reshape(-1).tolist()]}
        for name, array in arrays.items()
    ]

answers = model.predict_arrays(inputs, {})
print(json.dumps([written(inputs), written(answers), sysconfig.get_path("platlib")]))
"""


def test_the_fraud_ensemble_answers_under_stock_mlserver_what_it_answers_as_a_kserve_model(tmp_path: Path):
    if not PYTHON.exists():
        pytest.skip("there is no .venv, which has PyTorch and KServe: make setup")
    command = [str(PYTHON), "-c", ANSWERS, str(ROOT / "inferenceservices" / "fraud" / "model")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    inputs, expected, packages = json.loads(done.stdout.splitlines()[-1])
    # Behind MLServer's own packages: only what those lack comes from there, and KServe, which cannot run beside them, does not.
    beside = tmp_path / "beside"
    beside.mkdir()
    for package in Path(packages).iterdir():
        if not package.name.startswith("kserve"):
            (beside / package.name).symlink_to(package)
    code = tmp_path / "code"
    code.mkdir()
    (code / "sitecustomize.py").write_text(f"import sys\nsys.path.append({str(beside)!r})\n")
    models = tmp_path / "models"
    shutil.copytree(ROOT / "inferenceservices" / "fraud" / "model", models)
    document = json.loads((ROOT / "runtimes" / "ensemble_server" / "model-settings.json").read_text())
    document["name"] = "fraud"
    (models / "model-settings.json").write_text(json.dumps(document))
    http = free_port()
    ports = {"http_port": http, "grpc_port": free_port(), "metrics_port": free_port()}
    (models / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports}))
    url = f"http://127.0.0.1:{http}/v2/models/fraud"
    with process(["mlserver", "start", str(models)], code, f"{url}/ready"):
        answer = httpx.post(f"{url}/infer", json={"id": "7", "inputs": inputs}, timeout=30)
        fewer = httpx.post(f"{url}/infer", json={"inputs": inputs[:1]}, timeout=30)
        metadata = httpx.get(url).json()
    assert answer.status_code == 200, answer.text
    found = {output["name"]: output for output in answer.json()["outputs"]}
    assert list(found) == [output["name"] for output in expected]
    for output in expected:
        got = found[output["name"]]
        assert (got["datatype"], got["shape"]) == (output["datatype"], output["shape"])
        if output["datatype"] == "BYTES":
            assert got["data"] == output["data"]
        else:
            np.testing.assert_array_equal(np.float32(got["data"]), np.float32(output["data"]))
    assert {output["data"][0] for output in expected if output["name"] == "decision"} <= {
        "approve",
        "review",
        "decline",
    }
    assert fewer.status_code == 400
    assert "amount" in fewer.json()["error"]
    assert metadata["platform"] == "serinus_ensemble"
    assert [spec["name"] for spec in metadata["inputs"]] == ["features", "amount", "terminal_id"]
