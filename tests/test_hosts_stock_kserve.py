"""The other way: serinus models under stock `kserve.ModelServer`, real processes, and the same answers as under serinus."""

from __future__ import annotations

import httpx
import numpy as np
import pytest

import ensemble_support
from hosts_support import free_port, process, serving
from serinus import hosts
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings


@pytest.mark.slow
def test_our_xgboost_runtime_runs_under_stock_kserve(tmp_path):
    folder = ensemble_support.write(tmp_path)
    port = free_port()
    rows = ensemble_support.request(6)["features"]
    arguments = [
        "-m",
        "serinus.hosts.kserve_model",
        "--class",
        "xgboost_server",
        "--model_dir",
        str(folder / "xgb.ubj"),
    ]
    arguments += ["--model_name", "fraud", "--http_port", str(port), "--enable_grpc", "false"]
    url = f"http://127.0.0.1:{port}"
    with process(arguments, f"{url}/v2/models/fraud/ready"):
        body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [6, 4], "data": rows.tolist()}], "id": "1"}
        v2 = httpx.post(f"{url}/v2/models/fraud/infer", json={**body, "outputs": [{"name": "margin"}]}).json()
        v1 = httpx.post(f"{url}/v1/models/fraud:predict", json={"instances": rows.tolist()}).json()
        bad = httpx.post(f"{url}/v2/models/fraud/infer", json={"inputs": [{**body["inputs"][0], "shape": [4, 6]}]})
        metadata = httpx.get(f"{url}/v2/models/fraud").json()
    expected = ensemble_support.margins(rows)
    np.testing.assert_array_equal(np.array(v2["outputs"][0]["data"], np.float32), expected)
    np.testing.assert_allclose(v1["predictions"], 1 / (1 + np.exp(-expected)), atol=1e-6)
    assert v2["id"] == "1"
    assert bad.status_code == 400
    assert metadata["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 4]}]


@pytest.mark.slow
async def test_the_ensemble_answers_alike_under_stock_kserve_and_here(tmp_path):
    folder = ensemble_support.write(tmp_path)
    inputs = ensemble_support.request(25, 8)
    tensors = [Tensor.of(name, array) for name, array in inputs.items()]
    async with serving("ensemble_server", name="fraud", model_dir=folder) as plane:
        ours = await plane.infer(InferRequest("fraud", tensors, parameters={"explain": 2}))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["-m", "ensemble_server", "--model_name", "fraud", "--model_dir", str(folder)]
    arguments += ["--http_port", str(port), "--enable_grpc", "false"]
    body = {
        "parameters": {"explain": 2},
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "data": [
                    value.decode() if isinstance(value, bytes) else value for value in tensor.data.reshape(-1).tolist()
                ],
            }
            for tensor in tensors
        ],
    }
    with process(arguments, f"{url}/v2/models/fraud/ready"):
        answer = httpx.post(f"{url}/v2/models/fraud/infer", json=body)
        row = {
            name: value.decode()
            if isinstance(value := array[0].tolist() if hasattr(array[0], "tolist") else array[0], bytes)
            else value
            for name, array in inputs.items()
        }
        v1 = httpx.post(f"{url}/v1/models/fraud:predict", json={"instances": [row]}).json()
        missing = httpx.post(f"{url}/v2/models/fraud/infer", json={"inputs": body["inputs"][:1]})
    theirs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    assert np.array(theirs["score"], np.float32).tolist() == ours.output("score").data.tolist()
    assert [value.encode() for value in theirs["decision"]] == ours.output("decision").data.tolist()
    assert [value.encode() for value in theirs["reasons"]] == ours.output("reasons").data.tolist()
    assert v1["predictions"][0]["decision"] == theirs["decision"][0]
    assert missing.status_code == 400
    assert "'amount' is missing" in missing.json()["error"]


async def test_as_kserve_gives_a_model_that_kserve_can_call(tmp_path):
    folder = ensemble_support.write(tmp_path)
    settings = ModelSettings(name="m", implementation="xgboost_server", model_dir=folder / "xgb.ubj")
    model = hosts.as_kserve(hosts.build_model(settings))
    model.load()
    rows = ensemble_support.request(3)["features"]
    answer, _ = await model({"instances": rows.tolist()}, headers={})
    np.testing.assert_allclose(answer["predictions"], 1 / (1 + np.exp(-ensemble_support.margins(rows))), atol=1e-6)
    model.stop()
