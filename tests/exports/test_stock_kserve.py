"""The other way: serinus models under stock `kserve.ModelServer`, real processes, and the same answers as under serinus."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import ensemble_support
import framework_models
import grpc
from deferred import Deferred
from hosts_support import free_port, process, serving
from serinus import hosts
from serinus.loading import settings_from_directory
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings

SUPPORT = Path(__file__).parents[1] / "support"
pb = Deferred("kserve.protocol.grpc", "grpc_predict_v2_pb2")
GRPCInferenceServiceStub = Deferred("kserve.protocol.grpc.grpc_predict_v2_pb2_grpc", "GRPCInferenceServiceStub")
read_settings = Deferred("serinus.exports.kserve_model", "_settings")
as_kserve = Deferred("serinus.exports.kserve_model", "as_kserve")


@pytest.mark.slow
def test_our_xgboost_runtime_runs_under_stock_kserve(tmp_path):
    folder = ensemble_support.write(tmp_path)
    # It leaves a record of the trees' verification, and the server then imports no XGBoost.
    hosts.build_model(ModelSettings(name="m", implementation="xgboost_server", model_dir=folder / "xgb.ubj")).load()
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
        answer = httpx.post(
            f"{url}/v2/models/fraud/infer", json=body, timeout=60
        )  # PyTorch's first call is slow on a busy machine
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


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each framework, and one of CatBoost's that names the runtime of several formats."""
    folder = tmp_path_factory.mktemp("models")
    framework_models.write(folder)
    shutil.rmtree(folder / "xgboost")  # has a test of its own above
    shutil.copytree(folder / "catboost", folder / "classic")
    (folder / "classic" / "model-settings.json").write_text(json.dumps({"implementation": "classic_server"}))
    return folder


@pytest.fixture(scope="module")
def stock(models: Path) -> Iterator[tuple[str, str]]:
    """Stock KServe with all of them: its addresses, HTTP and gRPC. One, since a process that imports every framework takes ten seconds of CPU to start."""
    port, grpc_port = free_port(), free_port()
    arguments = [str(SUPPORT / "stock_kserve.py"), str(models), "--http_port", str(port), "--grpc_port", str(grpc_port)]
    url = f"http://127.0.0.1:{port}"
    with process(arguments, f"{url}/v2/health/ready"):
        yield url, f"127.0.0.1:{grpc_port}"


RUNTIMES = framework_models.in_this_run(
    ("lightgbm", "sklearn", "catboost", "classic", "mlflow", "onnx", "torch", "tensorflow")
)


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", RUNTIMES)
async def test_every_runtime_answers_under_stock_kserve_as_it_does_here(
    name: str, models: Path, stock: tuple[str, str]
):
    (settings,) = settings_from_directory(models / name)
    assert settings.implementation == f"{name}_server"
    async with serving(settings.implementation, **own(settings)) as plane:
        (spec,) = plane.model_metadata("m", "").inputs
        array = np.linspace(-1, 1, 4 * spec.shape[1], dtype=np.float32).reshape(4, -1)
        ours = await plane.infer(InferRequest("m", [Tensor.of(spec.name, array)]))
    output = ours.outputs[0]
    url, grpc_address = stock
    tensor = {"name": spec.name, "datatype": "FP32", "shape": list(array.shape), "data": array.reshape(-1).tolist()}
    message = pb.ModelInferRequest(model_name=name, raw_input_contents=[array.tobytes()])
    message.inputs.add(name=spec.name, datatype="FP32", shape=array.shape)
    with httpx.Client(timeout=60) as client:
        v2 = client.post(f"{url}/v2/models/{name}/infer", json={"inputs": [tensor]}).json()["outputs"][0]
        v1 = client.post(f"{url}/v1/models/{name}:predict", json={"instances": array.tolist()}).json()
        bad = client.post(f"{url}/v2/models/{name}/infer", json={"inputs": [{**tensor, "shape": [1, array.size]}]})
        metadata = client.get(f"{url}/v2/models/{name}").json()
    async with grpc.aio.insecure_channel(grpc_address) as channel:
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
def test_the_command_reads_of_a_folder_what_it_serves(tmp_path: Path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").touch()  # it is not loaded
    asked = {"implementation": "", "allow_implementation": [], "model_name": "m", "nthread": 2}
    settings = read_settings(argparse.Namespace(model_dir=str(tmp_path), **asked))
    assert (settings.name, settings.implementation, settings.version, settings.threads) == (
        "m",
        "tensorflow_server",
        "1",
        2,
    )


@pytest.fixture(params=["serinus", "kserve"])
def teller(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A class that streams: which server has it, and its URL there."""
    if request.param == "kserve":
        yield "kserve", f"{request.getfixturevalue('stock')[0]}/v1/models/teller"
        return
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1/models/teller"
    arguments = ["-m", "serinus.cli", "serve", "--class", str(SUPPORT / "kserve_teller.py"), "--host", "127.0.0.1"]
    arguments += ["--model_name", "teller", "--http_port", str(port), "--enable_grpc", "false"]
    with process(arguments, url):
        yield "serinus", url


@pytest.mark.slow
def test_a_v1_stream_leaves_piece_by_piece_here_as_under_stock_kserve(teller: tuple[str, str]):
    server, url = teller
    with httpx.Client(timeout=20) as client:
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
