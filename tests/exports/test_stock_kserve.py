"""The other way: serinus models under stock `kserve.ModelServer`, real processes, and the same answers as under serinus."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import ensemble_support
import grpc
from deferred import Deferred
from hosts_support import free_port, process, serving
from serinus import hosts
from serinus.loading import settings_from_directory
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings

pb = Deferred("kserve.protocol.grpc", "grpc_predict_v2_pb2")
GRPCInferenceServiceStub = Deferred("kserve.protocol.grpc.grpc_predict_v2_pb2_grpc", "GRPCInferenceServiceStub")
as_kserve = Deferred("serinus.exports.kserve_model", "as_kserve")


@pytest.mark.slow
def test_our_xgboost_runtime_runs_under_stock_kserve(tmp_path):
    folder = ensemble_support.write(tmp_path)
    port = free_port()
    rows = ensemble_support.request(6)["features"]
    arguments = [
        "-m",
        "serinus.exports.kserve_model",
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


def _lightgbm(folder: Path) -> None:
    import lightgbm_support

    lightgbm_support.save(lightgbm_support.train(trees=5), folder)


def _onnx(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Mul", ["x", "two"], ["y"])
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph([node], "g", value[:1], value[1:], [two])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(folder / "model.onnx")
    )


def _torch(folder: Path) -> None:
    import torch

    rows = {"input": {0: torch.export.Dim("rows", min=1)}}
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(2, 3),), dynamic_shapes=rows)
    torch.export.save(program, str(folder / "model.pt2"))
    specs = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}
    specs["outputs"] = [{"name": "y", "datatype": "FP32", "shape": [-1, 2]}]
    (folder / "model-settings.json").write_text(json.dumps(specs))


def _tensorflow(folder: Path) -> None:
    import tensorflow as tf

    module = tf.Module()
    module.double = tf.function(lambda x: {"y": x * 2.0}, [tf.TensorSpec([None, 3], tf.float32, name="x")])
    tf.saved_model.save(module, str(folder / "1"), signatures={"serving_default": module.double})


def _sklearn(folder: Path) -> None:
    from sklearn.ensemble import RandomForestRegressor

    import sklearn_support

    data = sklearn_support.rows()
    sklearn_support.save(RandomForestRegressor(5, random_state=0).fit(data, data[:, 0]), folder)


def _catboost(folder: Path) -> None:
    import catboost

    data = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    model = catboost.CatBoostRegressor(5, thread_count=1, logging_level="Silent", allow_writing_files=False)
    model.fit(data, data[:, 0]).save_model(str(folder / "model.cbm"))


def _classic(folder: Path) -> None:
    _catboost(folder)
    (folder / "model-settings.json").write_text(json.dumps({"name": "m", "implementation": "classic_server"}))


def _mlflow(folder: Path) -> None:
    import mlflow.xgboost
    import xgboost
    from mlflow.models import infer_signature

    data = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    model = xgboost.train({"max_depth": 2}, xgboost.DMatrix(data, data[:, 0]), 5)
    signature = infer_signature(data, model.predict(xgboost.DMatrix(data)))
    mlflow.xgboost.save_model(model, folder, signature=signature, pip_requirements=[])


RUNTIMES = [_lightgbm, _sklearn, _catboost, _classic, _mlflow, _onnx, _torch, _tensorflow]


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("write", RUNTIMES, ids=lambda write: write.__name__[1:])
async def test_every_runtime_answers_under_stock_kserve_as_it_does_here(tmp_path: Path, write: Callable[[Path], None]):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' own, of what they deprecate
        write(tmp_path)
    (settings,) = settings_from_directory(tmp_path)
    async with serving(settings.implementation, **own(settings)) as plane:
        (spec,) = plane.model_metadata("m", "").inputs
        array = np.linspace(-1, 1, 4 * spec.shape[1], dtype=np.float32).reshape(4, -1)
        ours = await plane.infer(InferRequest("m", [Tensor.of(spec.name, array)]))
    output = ours.outputs[0]
    port, grpc_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["-m", "serinus.exports.kserve_model", "--model_dir", str(tmp_path), "--model_name", "m"]
    arguments += ["--http_port", str(port), "--grpc_port", str(grpc_port)]
    tensor = {"name": spec.name, "datatype": "FP32", "shape": list(array.shape), "data": array.reshape(-1).tolist()}
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[array.tobytes()])
    message.inputs.add(name=spec.name, datatype="FP32", shape=array.shape)
    with process(arguments, f"{url}/v2/models/m/ready"):
        v2 = httpx.post(f"{url}/v2/models/m/infer", json={"inputs": [tensor]}).json()["outputs"][0]
        v1 = httpx.post(f"{url}/v1/models/m:predict", json={"instances": array.tolist()}).json()
        bad = httpx.post(f"{url}/v2/models/m/infer", json={"inputs": [{**tensor, "shape": [1, array.size]}]})
        metadata = httpx.get(f"{url}/v2/models/m").json()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            reply = await GRPCInferenceServiceStub(channel).ModelInfer(message)
    assert (v2["name"], v2["datatype"], v2["shape"]) == (output.name, output.datatype, list(output.shape))
    assert np.array(v2["data"], output.data.dtype).tolist() == output.data.reshape(-1).tolist()
    assert as_array(reply).tolist() == output.data.reshape(-1).tolist()
    np.testing.assert_allclose(np.array(v1["predictions"]).reshape(output.shape), output.data, rtol=1e-6)
    assert bad.status_code == 400
    assert metadata["inputs"] == [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}]


def own(settings: ModelSettings) -> dict[str, Any]:
    """What a directory says, less what the test says itself."""
    kept = ("model_dir", "inputs", "outputs", "version")
    return {name: getattr(settings, name) for name in kept}


def as_array(reply: pb.ModelInferResponse) -> np.ndarray:
    """The values of a reply's first output, raw or typed."""
    kind = {"FP32": np.float32, "FP64": np.float64}[reply.outputs[0].datatype]
    if reply.raw_output_contents:
        return np.frombuffer(reply.raw_output_contents[0], kind)
    contents = reply.outputs[0].contents
    return np.array(contents.fp32_contents or contents.fp64_contents, kind)


@pytest.mark.slow
async def test_as_kserve_gives_a_model_that_kserve_can_call(tmp_path):
    folder = ensemble_support.write(tmp_path)
    settings = ModelSettings(name="m", implementation="xgboost_server", model_dir=folder / "xgb.ubj")
    model = as_kserve(hosts.build_model(settings))
    model.load()
    rows = ensemble_support.request(3)["features"]
    answer, _ = await model({"instances": rows.tolist()}, headers={})
    np.testing.assert_allclose(answer["predictions"], 1 / (1 + np.exp(-ensemble_support.margins(rows))), atol=1e-6)
    model.stop()


@pytest.mark.slow
@pytest.mark.parametrize("server", ["serinus", "kserve"])
def test_a_v1_stream_leaves_piece_by_piece_here_as_under_stock_kserve(server: str):
    script = str(Path(__file__).parents[1] / "support/kserve_teller.py")
    port = free_port()
    arguments = (
        [script] if server == "kserve" else ["-m", "serinus.cli", "serve", "--class", script, "--host", "127.0.0.1"]
    )
    arguments += ["--model_name", "teller", "--http_port", str(port), "--enable_grpc", "false"]
    url = f"http://127.0.0.1:{port}/v1/models/teller"
    with process(arguments, url), httpx.Client(timeout=20) as client:
        texts = {"instances": ["a", "wait", "b", "wait", "c"]}
        with client.stream("POST", f"{url}:predict", json=texts) as answer:
            assert answer.status_code == 200
            lines = answer.iter_lines()
            assert next(lines) == "a"
            for told in ("b", "c"):
                assert client.post(f"{url}:predict", json={"instances": ["go"]}).json() == {"predictions": ["gone"]}
                assert [next(lines), next(lines)] == ["wait", told]
            assert list(lines) == []
        if server == "serinus":  # KServe's has sent 200 before the class is asked for the first piece
            refused = client.post(f"{url}:predict", json={"instances": ["fail"]})
            assert (refused.status_code, refused.json()) == (400, {"error": "it cannot tell that"})
        with pytest.raises(httpx.RemoteProtocolError):
            client.post(f"{url}:predict", json={"instances": ["a", "fail"]})
        assert client.post(f"{url}:predict", json={"instances": ["go"]}).status_code == 200
