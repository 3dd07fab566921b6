"""`MLModel` classes run unchanged in serinus, and serinus models run under stock `mlserver start`."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import xgboost
from mlserver.types import InferenceResponse, ResponseOutput
from processes import CLIENT, RUNTIME, Address
from prometheus_client.parser import text_string_to_metric_families

from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import InvalidInput, ModelFailed, NotReady, SerinusError
from serinus.hosts import build_model
from serinus.hosts.mlserver.mlserver_types import from_mlserver_response
from serinus.loading import settings_from_directory
from serinus.protocol.types import InferRequest, RequestedOutput, Tensor
from serinus.settings import ModelSettings

REST = {"host": "a", "x-tenant": "blue"}


@contextlib.asynccontextmanager
async def serving(settings: ModelSettings) -> AsyncIterator[Plane]:
    plane = Plane(Registry(build_model))
    await plane.start([settings])
    try:
        yield plane
    finally:
        await plane.close()


def named(cls: str, **settings: Any) -> ModelSettings:
    return ModelSettings(name="m", implementation=f"models:{cls}", **settings)


def words(*values: bytes) -> Tensor:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return Tensor.of("text", array)


async def test_mlservers_sum_model_answers_with_its_codec_and_headers():
    async with serving(named("SumModel")) as plane:
        rows = Tensor.of("x", np.array([[1, 2], [3, 4]], np.int64))
        response = await plane.infer(InferRequest("m", [rows], headers=REST))
        assert response.outputs[0].data.tolist() == [[3], [7]]
        assert response.id is None
        assert response.headers == {"x-seen": "blue"}
        answer = await plane.predict_v1("m", b'{"instances": [[1, 2]]}')
        assert json.loads(answer) == {"predictions": [[3]]}


async def test_a_parameter_that_is_called_headers_does_not_stand_for_the_requests():
    async with serving(named("SumModel")) as plane:
        request = InferRequest("m", [Tensor.of("x", np.array([[1, 2]]))], parameters={"headers": "text"}, headers=REST)
        assert (await plane.infer(request)).headers == {"x-seen": "blue"}


async def test_custom_handlers_are_routes():
    async with serving(named("SumModel")) as plane:
        (method, path, handler), *_ = plane.extra_routes()
        assert (method, path) == ("POST", "/my-custom-endpoint")
        request = SimpleNamespace(
            method="POST", path=path, query={}, headers={"content-type": "application/json"}, body=b"[1, 2, 39]"
        )
        assert await handler(request) == (200, {"content-type": "application/json"}, b"42")
        request.body = b'"no list"'
        status, _, body = await handler(request)
        assert status == 422
        assert b"detail" in body


@pytest.mark.parametrize("kind", ["mlserver", "http"])
@pytest.mark.parametrize(
    ("status", "grpc_status"), [(404, 5), (418, 3), (422, 3), (429, 8), (500, 13), (503, 14), (504, 4), (200, 13)]
)
async def test_the_status_that_a_class_chose_is_the_answers(kind: str, status: int, grpc_status: int):
    async with serving(named("Refusing", extra={"kind": kind, "status": status})) as plane:
        with pytest.raises(SerinusError, match="refused") as caught:
            await plane.infer(InferRequest("m", [words(b"a")], headers=REST))
        assert (caught.value.http_status, caught.value.grpc_status) == (status if status >= 400 else 500, grpc_status)
        handler = next(handler for _, path, handler in plane.extra_routes() if path == "/refuse")
        answer = await handler(SimpleNamespace(method="GET", path="/refuse", query={}, headers={}, body=b""))
        assert answer == (status, {"content-type": "application/json"}, b'{"error":"refused here"}')


@pytest.mark.parametrize("headers", [REST, {"user-agent": "grpc"}], ids=["rest", "grpc"])
async def test_decoded_arguments_get_strings_over_both_transports(headers: dict[str, str]):
    async with serving(named("TextModel")) as plane:
        response = await plane.infer(InferRequest("m", [words(b"ab", "zü".encode())], headers=headers))
        assert response.outputs[0].data.reshape(-1).tolist() == [b"AB", "ZÜ".encode()]


async def test_an_input_that_decode_args_misses_is_the_clients_fault():
    async with serving(named("TwoTexts")) as plane:
        (output,) = (await plane.infer(InferRequest("m", [words(b"ab")], headers=REST))).outputs
        assert output.data.reshape(-1).tolist() == [b"ab!"]
        end = Tensor.of("end", words(b"?").data)
        with pytest.raises(
            InvalidInput, match=r"^input 'text' is missing; the inputs of this model are 'text', 'end'$"
        ):
            await plane.infer(InferRequest("m", [end], headers=REST))
        with pytest.raises(InvalidInput, match="'other' was not found"):
            await plane.infer(InferRequest("m", [words(b"ab"), Tensor.of("other", end.data)], headers=REST))
        with pytest.raises(ModelFailed):
            await plane.infer(InferRequest("m", [words(b"fail")], headers=REST))


async def test_a_string_whose_shape_is_its_length_stays_one_string():
    async with serving(named("WholeText")) as plane:
        response = await plane.infer(InferRequest("m", [words(b"ab")], headers=REST))
        assert response.outputs[0].data.tolist() == [b'{"got": ["ab"]}']
        assert response.outputs[0].shape == (1,)


@pytest.mark.parametrize(
    ("shape", "data", "expected"),
    [
        ([2, 11], ["hello world", "bye bye"], [b"hello world", b"bye bye"]),
        ([11], "hello world", [b"hello world"]),
        ([2, 1], ["a", "b"], [[b"a"], [b"b"]]),
    ],
)
def test_strings_of_a_shape_that_counts_other_than_them_are_a_list(shape: list[int], data: Any, expected: Any):
    output = ResponseOutput(name="text", datatype="BYTES", shape=shape, data=data)
    answer = from_mlserver_response(InferenceResponse(model_name="m", outputs=[output]), InferRequest("m", ()), "")
    assert answer.outputs[0].data.tolist() == expected
    assert answer.outputs[0].shape == answer.outputs[0].data.shape


async def test_metrics_that_a_class_logs_are_on_the_page_of_its_own_model():
    metrics = Metrics()
    plane = Plane(Registry(build_model, metrics=metrics))
    await plane.start([named("Counting", version="2"), ModelSettings(name="other", implementation="models:Counting")])
    try:
        for model, rows in (("m", 3), ("m", 30), ("other", 1)):
            await plane.infer(InferRequest(model, [Tensor.of("x", np.zeros((rows, 1)))], headers=REST))
        page = metrics.render().decode().splitlines()
    finally:
        await plane.close()
    assert "# HELP rows_seen Rows of a request." in page
    (family,) = [family for family in text_string_to_metric_families("\n".join(page)) if family.name == "rows_seen"]
    assert family.type == "histogram"
    assert {sample.name for sample in family.samples} == {"rows_seen_bucket", "rows_seen_count", "rows_seen_sum"}
    assert 'rows_seen_sum{model_name="m",model_version="2"} 33.0' in page
    assert 'rows_seen_count{model_name="other",model_version=""} 1.0' in page
    (bucket,) = [line for line in page if line.startswith("rows_seen_bucket") and 'le="5.0"' in line and '"m"' in line]
    assert bucket.endswith(" 1.0")
    assert not [line for line in page if "_created" in line]


def _entry(datatype: str, shape: list[int], data: Any, **parameters: Any) -> dict[str, Any]:
    entry = {"name": "x", "datatype": datatype, "shape": shape, "data": data}
    return {**entry, "parameters": parameters} if parameters else entry


LOOSE = [
    _entry("FP32", [2, 2], [1.5, 2.5, None, 4.5], content_type="np"),  # MLServer's documents, "NumPy Array"
    _entry("BYTES", [1], "hello world", content_type="str"),  # the example "Content Type Decoding"
    _entry("BYTES", [11], "hello world"),
    _entry("BYTES", [2, 11], ["hello world", "bye bye"]),
    _entry("BYTES", [7], ['{"a":1}']),  # the example "Serving a custom model with JSON serialization"
    _entry("BYTES", [1], [{"a": 1}]),
    _entry("INT32", [1], [1], explain_parameters={"threshold": 0.95}),  # mlserver-alibi-explain
]
REFUSED = {
    "count": _entry("FP32", [3], [1.5]),
    "range": _entry("UINT8", [1], [300]),
    "overflow": _entry("FP32", [1], [1e39]),
    "text": _entry("INT32", [1], ["a"]),
    "null": _entry("INT32", [1], [None]),
    "shape": _entry("FP32", [-1], [1.5]),
}


def test_what_mlservers_documents_send_beyond_the_protocol_reaches_the_class_and_what_is_wrong_does_not(ours: Address):
    url = f"{ours.url}/v2/models/shown/infer"
    answers = [CLIENT.post(url, json={"id": "7", "inputs": [entry]}) for entry in LOOSE]
    bad = {name: CLIENT.post(url, json={"inputs": [REFUSED[name]]}) for name in REFUSED}
    torn = CLIENT.post(url, content=b"{")
    for entry, answer in zip(LOOSE, answers, strict=True):
        assert answer.status_code == 200, answer.text
        (output,) = answer.json()["outputs"]
        # A null among floating-point numbers is NaN for every model, as NumPy's codec would make of it; printed, since NaN equals nothing.
        shown = (
            {**entry, "data": [float("nan") if value is None else value for value in entry["data"]]}
            if entry["datatype"] == "FP32"
            else entry
        )
        (found,) = json.loads(output["data"][0])["inputs"]
        assert {key: str(value) for key, value in found.items()} == {key: str(value) for key, value in shown.items()}
        assert output["data"][1] == '{"a":1}'
        assert output["parameters"] == {"nested": '{"b":[1]}', "kept": True}
        assert answer.json()["id"] == "7"
    assert {name: answer.status_code for name, answer in bad.items()} == dict.fromkeys(REFUSED, 400)
    assert "shape [3] holds 3 values, data has 1" in bad["count"].json()["error"]
    assert torn.status_code == 400


async def test_a_class_that_calls_itself_not_ready_is_asked_nothing():
    async with serving(named("Tired")) as plane:
        request = InferRequest("m", [Tensor.of("x", np.zeros((1, 1)))], headers=REST)
        await plane.infer(request)
        with pytest.raises(NotReady, match="says that it is not ready"):
            await plane.infer(request)
        with pytest.raises(NotReady, match="says that it is not ready"):
            await anext(plane.infer_stream(request))


async def test_model_settings_of_a_folder_reach_the_class(tmp_path):
    document = {
        "name": "scaled",
        "implementation": "models.Scaled",
        "parameters": {"version": "3", "extra": {"factor": 2.5}},
    }
    (tmp_path / "model-settings.json").write_text(json.dumps(document))
    (settings,) = settings_from_directory(tmp_path, allow_implementation=["models.*"])
    assert (settings.name, settings.version, settings.extra) == ("scaled", "3", {"factor": 2.5})
    async with serving(settings) as plane:
        rows = Tensor.of("x", np.array([[2.0]]))
        response = await plane.infer(InferRequest("scaled", [rows], headers=REST))
        assert response.outputs[0].data.tolist() == [[5.0]]
        assert response.model_version == "3"
        with pytest.raises(InvalidInput, match="rows must be finite"):
            await plane.infer(InferRequest("scaled", [Tensor.of("x", np.array([[np.inf]]))], headers=REST))


async def test_a_load_that_says_false_is_not_served():
    with pytest.raises(SerinusError, match=r"load\(\) returned False"):
        async with serving(named("Scaled", extra={"factor": -1})):
            pass


async def test_an_answer_that_contradicts_itself_is_the_models_fault():
    async with serving(named("Contradiction")) as plane:
        with pytest.raises(ModelFailed, match="output 'y'"):
            await plane.infer(InferRequest("m", [words(b"a")], headers=REST))


async def test_mlservers_own_xgboost_runtime_and_ours_agree_value_for_value(model_file: Path):
    rows = np.random.default_rng(1).normal(size=(257, 5)).astype(np.float32)
    rows[::7, 2] = np.nan
    theirs = ModelSettings(name="m", implementation="mlserver_xgboost.XGBoostModel", model_dir=model_file)
    ours = ModelSettings(name="m", implementation="xgboost_server", model_dir=model_file)
    tensor = Tensor.of("x", rows)
    async with serving(theirs) as plane:
        wanted = [RequestedOutput("predict"), RequestedOutput("predict_proba")]
        expected = await plane.infer(InferRequest("m", [tensor], headers=REST, outputs=wanted))
    async with serving(ours) as plane:
        wanted = [RequestedOutput("class"), RequestedOutput("probability")]
        got = await plane.infer(InferRequest("m", [tensor], headers=REST, outputs=wanted))
    assert expected.output("predict").data.reshape(-1).tolist() == got.output("class").data.tolist()
    theirs_1 = expected.output("predict_proba").data.astype(np.float32)[:, 1]
    # The margins are equal; the last bit of a probability is the libraries' own exp.
    np.testing.assert_array_max_ulp(got.output("probability").data, theirs_1, maxulp=2)


def test_custom_handlers_answer_after_a_reload(ours: Address):
    path, models = f"{ours.url}/my-custom-endpoint", f"{ours.url}/v2/repository/models"
    answers = [CLIENT.post(path, json=[1, 41])]
    assert CLIENT.post(f"{models}/theirs/load").status_code == 200
    answers.append(CLIENT.post(path, json=[1, 41]))
    assert CLIENT.post(f"{models}/theirs/unload").status_code == 200
    unloaded = CLIENT.post(path, json=[1, 41])
    assert CLIENT.post(f"{models}/theirs/load").status_code == 200
    answers.append(CLIENT.post(path, json=[1, 41]))
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "42")] * 3
    assert unloaded.status_code == 503
    assert "not loaded" in unloaded.json()["error"]


def test_custom_handlers_of_a_model_that_is_loaded_later_are_offered(empty: Address):
    """As Seldon's agent does: the repository is served empty, and models are loaded by request."""
    assert CLIENT.post(f"{empty.url}/my-custom-endpoint", json=[1, 41]).status_code == 404
    # The first load of a class imports MLServer, which takes longer than httpx waits on a machine that does other things too.
    assert CLIENT.post(f"{empty.url}/v2/repository/models/theirs/load", timeout=60).status_code == 200
    answer = CLIENT.post(f"{empty.url}/my-custom-endpoint", json=[1, 41])
    assert (answer.status_code, answer.text) == (200, "42")


def test_our_xgboost_runtime_runs_under_stock_mlserver(stock: Address, tmp_path: Path, model_file: Path):
    parameters = {"uri": "./model.json", "extra": {"class": "xgboost_server"}}
    document = {"name": "classifier", "implementation": RUNTIME, "parameters": parameters}
    (tmp_path / "model.json").write_bytes(model_file.read_bytes())
    (tmp_path / "model-settings.json").write_text(json.dumps(document))
    (settings,) = settings_from_directory(tmp_path)
    assert (settings.implementation, settings.extra) == ("xgboost_server", {})
    rows = np.random.default_rng(2).normal(size=(9, 5)).astype(np.float32)
    url = f"{stock.url}/v2/models/classifier"
    body = {
        "id": "7",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [9, 5], "data": rows.reshape(-1).tolist()}],
        "outputs": [{"name": "probability"}],
    }
    answer = CLIENT.post(f"{url}/infer", json=body)
    bad = CLIENT.post(f"{url}/infer", json={"inputs": [{**body["inputs"][0], "shape": [5, 9]}]})
    metadata = CLIENT.get(url).json()
    assert answer.status_code == 200, answer.text
    assert answer.json()["id"] == "7"
    booster = xgboost.Booster(model_file=str(model_file))
    np.testing.assert_allclose(answer.json()["outputs"][0]["data"], booster.inplace_predict(rows), atol=1e-6)
    assert bad.status_code == 400
    assert "5" in bad.json()["error"]
    assert metadata["platform"] == "xgboost_booster"
    assert metadata["inputs"][0]["shape"] == [-1, 5]


RUNTIMES = ("xgboost", "lightgbm", "sklearn", "catboost", "classic-lightgbm", "classic-sklearn", "mlflow", "onnx")


@pytest.mark.parametrize("model", [*RUNTIMES, "torch", "tensorflow"])
def test_every_runtime_runs_by_its_own_settings_under_stock_mlserver(model: str, frameworks: Path, stock: Address):
    answers = frameworks / f"{model.removeprefix('classic-')}.npy"
    if not answers.exists():
        pytest.skip("a deep run has it: tests/support/framework_models.py")
    rows, expected = np.load(frameworks / "rows.npy"), np.load(answers)
    url = f"{stock.url}/v2/models/{model}"
    metadata = CLIENT.get(url).json()
    name = metadata["inputs"][0]["name"]
    tensor = {"name": name, "datatype": "FP32", "shape": [60, 5], "data": rows.reshape(-1).tolist()}
    answer = CLIENT.post(f"{url}/infer", json={"id": "7", "inputs": [tensor]})
    unknown = CLIENT.post(f"{url}/infer", json={"inputs": [{**tensor, "datatype": "BYTES", "data": ["a"] * 300}]})
    with tritonclient.grpc.InferenceServerClient(stock.grpc) as client:
        raw = tritonclient.grpc.InferInput(name, [60, 5], "FP32")
        raw.set_data_from_numpy(rows)
        over_grpc = client.infer(model, [raw], request_id="7").get_response()
    assert answer.status_code == 200, answer.text
    assert (answer.json()["id"], answer.json()["model_version"]) == ("7", "4")
    output = answer.json()["outputs"][0]
    np.testing.assert_allclose(np.reshape(output["data"], expected.shape), expected, rtol=1e-5, atol=1e-5)
    assert over_grpc.outputs[0].name == output["name"]
    assert list(over_grpc.outputs[0].shape) == output["shape"]
    assert unknown.status_code == 400, unknown.text
    assert metadata["inputs"][0]["shape"] == [-1, 5]
