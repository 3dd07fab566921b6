"""SavedModels: versions, signatures, TensorFlow Serving's requests. Real SavedModels, small."""

from __future__ import annotations

import base64
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from deferred import Deferred
from depth import only_deep
from rest_support import rest_in_thread
from serinus import InferRequest, ModelSettings, RequestedOutput, Tensor
from serinus.errors import ConfigError, InvalidInput, NotFound
from serinus.loading import settings_from_directory
from serve_support import ask_server
from vision_support import plane_of

tensorflow_classes = Deferred("tensorflow_classes")
tf = Deferred("tensorflow")

pytestmark = [
    pytest.mark.slow,  # importing TensorFlow alone takes ~8 s
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # TensorFlow's own
    pytest.mark.timeout(300),
]


@pytest.fixture
def no_gpu() -> None:
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")


def save(folder: Path, b: float = 2.0) -> Path:
    module = tensorflow_classes.HalfPlus(b)
    signatures = {
        "serving_default": module.half,
        "several": module.several,
        "lengths": module.lengths,
        "scalar": module.scalar,
        "scores": module.scores,
    }
    tf.saved_model.save(module, str(folder), signatures=signatures)
    return folder


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    """Versions 1, 2 and 10, which add 1, 2 and 10; one that is not complete; and labels."""
    root = tmp_path_factory.mktemp("half_plus")
    for version in (1, 2, 10):
        save(root / str(version), float(version))
    (root / "11").mkdir()
    (root / "labels.txt").write_text("a\nb\nc\n")
    return root


def settings(path: Path, name: str = "m", **extra: Any) -> list[ModelSettings]:
    import dataclasses

    return [
        dataclasses.replace(one, name=name, extra={**one.extra, **extra})
        for one in settings_from_directory(path, extra=extra)
    ]


async def v1(plane: Any, body: dict[str, Any], version: str = "") -> Any:
    return orjson.loads(await plane.predict_v1("m", orjson.dumps(body), version=version))


POLICIES = {
    "the newest by default": ({}, ["10"]),
    "the newest two": ({"version_policy": {"latest": 2}}, ["2", "10"]),
    "as TensorFlow Serving writes it": ({"version_policy": {"latest": {"num_versions": 2}}}, ["2", "10"]),
    "more than there are": ({"version_policy": {"latest": 9}}, ["1", "2", "10"]),
    "all": ({"version_policy": {"all": {}}}, ["1", "2", "10"]),
    "some": ({"version_policy": {"specific": [10, 1]}}, ["1", "10"]),
    "some as TensorFlow Serving writes it": ({"version_policy": {"specific": {"versions": [1]}}}, ["1"]),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("implementation", ["", "tensorflow_server", "tensorflow_server.model:TensorflowModel"])
def test_the_version_policy_says_which_versions_are_served(model_dir: Path, name: str, implementation: str):
    extra, versions = POLICIES[name]
    found = settings_from_directory(model_dir, implementation, extra)
    assert [one.version for one in found] == versions
    assert [one.model_dir for one in found] == [model_dir / version for version in versions]


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"specific": [3]}, "no version 3.*there are 1, 2, 10"),
        ({"latest": 0}, "accepted are"),
        ({"newest": 1}, "accepted are"),
        ("all", "accepted are"),
        ({"specific": []}, "accepted are"),
        ({"latest": 1, "all": {}}, "accepted are"),
    ],
    ids=str,
)
def test_a_policy_that_cannot_hold_is_refused(model_dir: Path, policy: Any, reason: str):
    with pytest.raises(ConfigError, match=reason):
        settings_from_directory(model_dir, extra={"version_policy": policy})


def test_the_policy_stands_in_model_settings_json_too(tmp_path: Path, model_dir: Path):
    document = {"name": "half", "parameters": {"uri": str(model_dir), "extra": {"version_policy": {"all": {}}}}}
    (tmp_path / "model-settings.json").write_text(json.dumps(document))
    found = settings_from_directory(tmp_path, allow_uri=[model_dir])
    assert [(one.name, one.version) for one in found] == [
        ("half", "1"),
        ("half", "2"),
        ("half", "10"),
    ]


async def test_versions_of_one_model_answer_side_by_side(model_dir: Path):
    async with plane_of(*settings(model_dir, version_policy={"all": {}})) as plane:
        assert plane.model_metadata("m").versions == ("1", "2", "10")
        body = {"instances": [1.0, 2.0, 5.0]}
        assert await v1(plane, body) == {"predictions": [10.5, 11.0, 12.5]}
        assert await v1(plane, body, "2") == {"predictions": [2.5, 3.0, 4.5]}
        assert await v1(plane, body, "1") == {"predictions": [1.5, 2.0, 3.5]}
        with pytest.raises(NotFound, match="no version '3'"):
            await v1(plane, body, "3")


SERVING = {
    "scalars in rows": ({"instances": [1.0, 2.0]}, {"predictions": [2.5, 3.0]}),
    "whole numbers for a float": ({"instances": [1, 2]}, {"predictions": [2.5, 3.0]}),
    "named rows": ({"instances": [{"x": 1.0}, {"x": 2.0}]}, {"predictions": [2.5, 3.0]}),
    "a column": ({"inputs": [1.0, 2.0]}, {"outputs": [2.5, 3.0]}),
    "a named column": ({"inputs": {"x": [1.0, 2.0]}}, {"outputs": [2.5, 3.0]}),
    "the default signature by name": (
        {"signature_name": "serving_default", "instances": [1.0]},
        {"predictions": [2.5]},
    ),
    "several inputs and outputs in rows": (
        {
            "signature_name": "several",
            "instances": [
                {"tag": "foo", "signal": [1, 2, 3, 4, 5], "sensor": [[1, 2], [3, 4]]},
                {"tag": "bar", "signal": [3, 4, 1, 2, 5.5], "sensor": [[4, 5], [6, 8]]},
            ],
        },
        {"predictions": [{"most": 4, "name": "foo!", "sum": 15.0}, {"most": 8, "name": "bar!", "sum": 15.5}]},
    ),
    "several inputs and outputs in columns": (
        {
            "signature_name": "several",
            "inputs": {"tag": ["foo"], "signal": [[1, 2, 3, 4, 5]], "sensor": [[[1, 2], [3, 4]]]},
        },
        {"outputs": {"most": [4], "name": ["foo!"], "sum": [15.0]}},
    ),
    "b64 in rows, and an output of bytes": (
        {"signature_name": "lengths", "instances": [{"b64": base64.b64encode(b"\xff\x00\xfe").decode()}, "ab"]},
        {"predictions": [{"first_bytes": {"b64": "/w=="}, "length": 3}, {"first_bytes": {"b64": "YQ=="}, "length": 2}]},
    ),
    "b64 under a name": (
        {"signature_name": "lengths", "instances": [{"image_bytes": {"b64": "AAEC"}}]},
        {"predictions": [{"first_bytes": {"b64": "AA=="}, "length": 3}]},
    ),
    "b64 in a column": (
        {"signature_name": "lengths", "inputs": {"image_bytes": [{"b64": "AAEC"}]}},
        {"outputs": {"first_bytes": [{"b64": "AA=="}], "length": [3]}},
    ),
    "a scalar input, which has no rows": ({"signature_name": "scalar", "inputs": 3.0}, {"outputs": [3.0, -3.0]}),
    "a matrix": ({"signature_name": "scores", "instances": [[0, 0, 0]]}, {"predictions": [[1 / 3, 1 / 3, 1 / 3]]}),
}


@pytest.mark.parametrize("name", SERVING)
async def test_requests_of_tensorflow_serving_get_its_answers(model_dir: Path, name: str):
    """TensorFlow Serving, api_rest.md, "Predict API"."""
    body, wanted = SERVING[name]
    async with plane_of(*settings(model_dir / "2")) as plane:
        found = await v1(plane, body)
    assert list(found) == list(wanted)
    flat = lambda value: orjson.dumps(value, option=orjson.OPT_SORT_KEYS)  # noqa: E731
    if name == "a matrix":
        assert found["predictions"][0] == pytest.approx(wanted["predictions"][0])
    else:
        assert flat(found) == flat(wanted)


async def test_the_tokens_nan_and_infinity_are_taken(model_dir: Path):
    async with plane_of(*settings(model_dir / "2")) as plane:
        response = await plane.predict_v1("m", b'{"instances": [NaN, -Infinity, 1.0]}')
    assert orjson.loads(response) == {"predictions": [None, None, 2.5]}


REFUSED = {
    "an unknown signature": ({"signature_name": "nope", "instances": [1]}, "the model's signatures are .*'several'"),
    "a signature that is no text": ({"signature_name": 3, "instances": [1]}, "a string was expected"),
    "an unknown input": ({"instances": [{"z": 1}]}, "no input 'z'; its inputs are 'x'"),
    "a missing input": (
        {"signature_name": "several", "instances": [{"tag": "a", "signal": [1] * 5}]},
        "'sensor' is missing",
    ),
    "bare rows for several inputs": ({"signature_name": "several", "instances": [1]}, "has 3 inputs"),
    "another shape": ({"signature_name": "scores", "instances": [[1, 2]]}, "the model takes 3"),
    "both formats": ({"instances": [1], "inputs": [1]}, "both are there"),
    "text for numbers": ({"instances": ["a"]}, "input 'x'"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_does_not_fit_a_signature_is_the_clients_fault(model_dir: Path, name: str):
    body, reason = REFUSED[name]
    async with plane_of(*settings(model_dir / "2")) as plane:
        with pytest.raises(InvalidInput, match=reason):
            await v1(plane, body)


async def test_a_v2_request_chooses_a_signature_by_its_parameter(model_dir: Path):
    async with plane_of(*settings(model_dir / "2")) as plane:
        metadata = plane.model_metadata("m")
        assert [(spec.name, spec.datatype, spec.shape) for spec in metadata.inputs] == [("x", "FP32", (-1,))]
        assert metadata.parameters["signatures"] == "lengths,scalar,scores,serving_default,several"
        x = Tensor.of("x", np.zeros((2, 3), np.float32))
        response = await plane.infer(InferRequest("m", [x], parameters={"signature_name": "scores"}))
        assert [(tensor.name, tensor.shape) for tensor in response.outputs] == [("scores", (2, 3))]
        outputs = [RequestedOutput("scores", {"classification": 1})]
        response = await plane.infer(InferRequest("m", [x], parameters={"signature_name": "scores"}, outputs=outputs))
        assert response.outputs[0].data[0, 0].endswith(b":0:a")
        with pytest.raises(InvalidInput, match="'signature_name' is 'nope'; the signatures of model 'm' are"):
            await plane.infer(InferRequest("m", [x], parameters={"signature_name": "nope"}))
        with pytest.raises(InvalidInput, match="'sum' is not one of"):
            wrong = [RequestedOutput("sum")]
            await plane.infer(InferRequest("m", [x], parameters={"signature_name": "scores"}, outputs=wrong))


async def test_signatures_do_not_share_a_batch(model_dir: Path):
    import asyncio

    async with plane_of(*settings(model_dir / "2")) as plane:
        bodies = [
            {"instances": [1.0]},
            {"signature_name": "scores", "instances": [[0, 0, 9]]},
            {"signature_name": "scalar", "inputs": 1},
        ]
        found = await asyncio.gather(*(v1(plane, bodies[i % 3]) for i in range(30)))
    assert found[0] == {"predictions": [2.5]}
    assert found[2] == {"outputs": [1.0, -1.0]}
    for i, answer in enumerate(found):
        assert answer == found[i % 3]


def test_a_signature_may_be_made_the_default(model_dir: Path):
    from tensorflow_server import TensorflowModel

    model = TensorflowModel(ModelSettings(name="m", model_dir=model_dir, extra={"signature": "scores"}))
    model.load()
    assert [spec.name for spec in model.outputs] == ["scores"]
    assert model.outputs[0].labels == ("a", "b", "c")
    with pytest.raises(ConfigError, match=r"no signature 'nope'; there are"):
        TensorflowModel(ModelSettings(name="m", model_dir=model_dir, extra={"signature": "nope"})).load()
    with pytest.raises(ConfigError, match=r"'signatur' is unknown.*did you mean signature"):
        TensorflowModel(ModelSettings(name="m", model_dir=model_dir, extra={"signatur": "x"})).load()
    with pytest.raises(ConfigError, match="no such labels file"):
        TensorflowModel(ModelSettings(name="m", model_dir=model_dir, extra={"labels": "nope.txt"})).load()


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_refused_clearly(model_dir: Path):
    from tensorflow_server import TensorflowModel

    with pytest.raises(
        ConfigError, match=r"'cuda', but this machine shows 0 GPUs to TensorFlow.*-gpu image.*device cpu"
    ):
        TensorflowModel(ModelSettings(name="m", model_dir=model_dir, extra={"device": "cuda"})).load()
    with pytest.raises(ConfigError, match=r"'device' is 'tpu'; accepted are auto, cpu, cuda"):
        TensorflowModel(ModelSettings(name="m", model_dir=model_dir, extra={"device": "tpu"})).load()
    for device in ("auto", "cpu"):
        model = TensorflowModel(ModelSettings(name="m", model_dir=model_dir, extra={"device": device}))
        model.load()
        assert model.details["device"] == "cpu"


def test_what_is_no_saved_model_is_refused(tmp_path: Path):
    from tensorflow_server import TensorflowModel

    with pytest.raises(ConfigError, match=r"no saved_model\.pb here"):
        TensorflowModel(ModelSettings(name="m", model_dir=tmp_path)).load()
    (tmp_path / "saved_model.pb").write_bytes(b"not a protobuf")
    with pytest.raises(ConfigError, match="TensorFlow refuses it"):
        TensorflowModel(ModelSettings(name="m", model_dir=tmp_path)).load()


def test_every_datatype_goes_through_a_graph(tmp_path: Path):
    from tensorflow_server import TensorflowModel

    types = {
        "BOOL": tf.bool, "UINT8": tf.uint8, "UINT16": tf.uint16, "UINT32": tf.uint32, "UINT64": tf.uint64, "INT8": tf.int8,
        "INT16": tf.int16, "INT32": tf.int32, "INT64": tf.int64, "FP16": tf.float16, "BF16": tf.bfloat16, "FP32": tf.float32,
        "FP64": tf.float64, "BYTES": tf.string,
    }  # fmt: skip
    module = tf.Module()
    specs = [tf.TensorSpec([None], dtype, name=name) for name, dtype in types.items()]
    module.echo = tf.function(
        lambda *values: {f"{n}_out": tf.identity(v) for n, v in zip(types, values, strict=True)}, specs
    )
    tf.saved_model.save(module, str(tmp_path), signatures=module.echo)
    model = TensorflowModel(ModelSettings(name="m", model_dir=tmp_path))
    model.load()
    from serinus import Call
    from serinus.protocol.datatypes import NUMPY_DTYPES

    inputs = {
        name: np.array([b"a", b"\xff"], object) if name == "BYTES" else np.array([0, 1], NUMPY_DTYPES[name])
        for name in types
    }
    found = model.predict(inputs, Call())
    assert {spec.name: spec.datatype for spec in model.outputs} == {f"{name}_out": name for name in types}
    for name, array in inputs.items():
        assert found[f"{name}_out"].dtype == array.dtype
        assert found[f"{name}_out"].tolist() == array.tolist()
    model.unload()


def test_versions_are_served_over_http_and_one_that_appears_from_the_next_load_on(tmp_path: Path, model_dir: Path):
    root = tmp_path / "half"
    for version in ("1", "2"):
        shutil.copytree(model_dir / version, root / version)
    body = {"signature_name": "serving_default", "instances": [1.0, 2.0, 5.0]}

    def found(name: str) -> list[ModelSettings]:
        return settings(root, name, version_policy={"latest": 2})

    with rest_in_thread(own=found("half"), discover=found) as running:
        ask = partial(ask_server, running.port)
        assert ask("POST", "/v1/models/half:predict", body) == (200, {"predictions": [2.5, 3.0, 4.5]})
        assert ask("POST", "/v1/models/half/versions/1:predict", body) == (200, {"predictions": [1.5, 2.0, 3.5]})
        scalar = {"inputs": 1, "signature_name": "scalar"}
        assert ask("POST", "/v1/models/half:predict", scalar) == (200, {"outputs": [1.0, -1.0]})
        shutil.copytree(model_dir / "10", root / "10")
        assert ask("POST", "/v1/models/half:predict", body)[1] == {"predictions": [2.5, 3.0, 4.5]}
        status, answer = ask("POST", "/v2/repository/models/half/load", {})
        assert status == 200, answer
        assert ask("GET", "/v2/models/half")[1]["versions"] == ["2", "10"]
        # Readiness does not wait for the version that the policy has retired.
        assert ask("GET", "/v2/health/ready")[0] == 200
        assert ask("POST", "/v1/models/half:predict", body)[1] == {"predictions": [10.5, 11.0, 12.5]}
        assert ask("POST", "/v1/models/half/versions/2:predict", body) == (200, {"predictions": [2.5, 3.0, 4.5]})
        assert ask("POST", "/v1/models/half/versions/1:predict", body)[0] == 404


@only_deep(
    "test_a_file_that_ends_the_process_is_refused_now_and_at_the_next_start and its neighbours, tests/engines/test_load_trial.py"
)
def test_a_saved_model_that_was_never_loaded_is_loaded_in_a_process_of_its_own_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from tensorflow_server import TensorflowModel

    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))
    wanted = ModelSettings(name="m", model_dir=save(tmp_path / "1"), trial=True)
    for tried in (1, 1):  # it is on record
        model = TensorflowModel(wanted)
        with caplog.at_level("INFO", "serinus.model"):
            model.load()
        assert caplog.text.count("is loaded in a process of its own first") == tried
        model.unload()
