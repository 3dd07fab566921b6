"""What no runtime here serves: MLflow's pyfunc in a process, where the operator trusts it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlflow_support
from dataplane_support import outcome, serving
from mlflow_support import invoke
from serinus.errors import ConfigError, InvalidInput, ModelFailed
from serinus.hosts import build_model
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings

pytestmark = pytest.mark.slow

TRUSTED = ("mlflow.pyfunc",)


def texts(*values: str | bytes) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return array


HERE: dict[str, Any] = {"allow_implementation": TRUSTED, "execution": "thread"}
"""In this process, where MLflow is imported already: what is looked at is no matter of where the model runs."""


def settings_of(folder: Path, **named: Any) -> ModelSettings:
    return ModelSettings(name="m", implementation="mlflow_server", model_dir=folder, **named)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("mlflow")

    def of(kind: str) -> Path:
        folder = root / kind
        return folder if folder.exists() else mlflow_support.save(kind, folder)

    return of


@pytest.mark.parametrize("kind", ["columns", "lgb_classifier", pytest.param("torch_pickle", marks=pytest.mark.slow)])
def test_code_of_a_folder_is_not_loaded_unless_the_operator_allows_it(kind: str, folders: Any):
    with pytest.raises(
        ConfigError, match=r"runs whatever code the folder's writer put in.*--allow_implementation mlflow.pyfunc"
    ):
        build_model(settings_of(folders(kind)))


async def test_a_python_model_in_a_process_of_its_own_gets_columns_and_parameters_and_refuses_in_mlflows_words(
    folders: Any,
):
    folder = folders("columns")
    async with serving(build_model, settings_of(folder, allow_implementation=TRUSTED)) as plane:
        servable = plane.registry.find("m", "")
        assert servable.execution == "process"
        assert [(spec.name, spec.datatype, spec.shape, spec.optional) for spec in servable.model.inputs] == [
            ("i", "INT64", (-1,), False), ("s", "BYTES", (-1,), False), ("o", "FP64", (-1,), True),
        ]  # fmt: skip
        details = servable.model.details
        assert details["engine"] == "pyfunc"
        assert "no runtime here serves" in details["engine_reason"]
        assert details["parameters"] == {"scale": {"type": "float", "default": 1.0}}
        request = InferRequest(
            "m",
            [Tensor.of("i", np.array([1, 2])), Tensor("s", "BYTES", (2,), texts("x", "ü"))],
            parameters={"scale": 2.5},
        )
        answer = {tensor.name: tensor.data for tensor in (await plane.infer(request)).outputs}
        assert answer["sum"].tolist() == [2.5, 5.0]
        assert answer["word"].tolist() == [b"x!", "ü!".encode()]
        assert os.getpid() not in answer["pid"].tolist()
        body = {"dataframe_records": [{"i": 1, "s": "x", "o": 0.5}], "params": {"scale": 2.0}}
        status, document = await invoke(plane, body)
        assert status == 200
        (row,) = document["predictions"]
        assert (row["sum"], row["word"]) == (3.0, "x!")
        # By name over V1, and what MLflow refuses is the client's fault, in its words.
        body = json.dumps({"instances": [{"i": 3, "s": "a", "o": 1.0}]}).encode()
        answer = json.loads(await plane.predict_v1("m", body))
        assert answer["predictions"][0]["sum"] == 4.0
        status, document = await invoke(plane, {"dataframe_split": {"columns": ["i"], "data": [["x"]]}})
        assert status == 400
        assert "i" in document["message"]
        status, document = await invoke(plane, b"{", "application/json")
        assert status == 400
        status, document = await invoke(plane, b"i,s\n1,a", "text/csv")
        assert (status, document["predictions"][0]["word"]) == (200, "a!")


@pytest.mark.slow  # a process that imports MLflow
async def test_a_model_that_raises_or_ends_its_process_fails_its_request_alone(folders: Any):
    async with serving(build_model, settings_of(folders("failing"), allow_implementation=TRUSTED)) as plane:

        def asking(value: float) -> InferRequest:
            return InferRequest("m", [Tensor.of("x", np.array([value]))])

        failed = await outcome(plane, asking(-1))
        assert isinstance(failed, ModelFailed)
        assert "secret" not in str(failed)
        status, document = await invoke(plane, {"inputs": {"x": [-1.0]}})
        assert status == 500
        assert "secret" not in json.dumps(document)
        assert isinstance(await outcome(plane, asking(13)), ModelFailed)
        assert (await plane.infer(asking(4))).outputs[0].data.tolist() == [8.0]


async def test_types_with_parts_dates_and_bytes_are_texts_of_the_protocol(folders: Any):
    async with serving(build_model, settings_of(folders("parted"), **HERE)) as plane:
        sent = {
            "tags": texts('["a", "b"]'), "place": texts('{"city": "oslo"}'), "day": texts("2024-05-01T10:00:00"), "raw": texts(b"\xff\x00"),
        }  # fmt: skip
        request = InferRequest("m", [Tensor(name, "BYTES", (1,), array) for name, array in sent.items()])
        answer = {tensor.name: tensor.data.tolist() for tensor in (await plane.infer(request)).outputs}
        assert answer == {"n": [2], "year": [2024], "city": [b"oslo"], "bytes": [2]}
        for name, wrong in (("tags", "{"), ("day", "no day")):
            odd = [Tensor(key, "BYTES", (1,), texts(wrong) if key == name else array) for key, array in sent.items()]
            refused = await outcome(plane, InferRequest("m", odd))
            assert isinstance(refused, InvalidInput)
            assert f"input {name!r}" in str(refused)


async def test_a_model_without_a_signature_takes_columns_and_answers_texts(folders: Any):
    async with serving(build_model, settings_of(folders("texts"), **HERE)) as plane:
        request = InferRequest("m", [Tensor.of(name, np.arange(2.0)) for name in "pq"])
        assert (await plane.infer(request)).outputs[0].data.tolist() == [b"2 columns"] * 2


async def test_the_pyfunc_can_be_asked_for_and_answers_as_the_runtime(folders: Any):
    folder = folders("xgb_classifier")
    data = mlflow_support.frame(6, seed=5)
    asked = settings_of(folder, **HERE, extra={"served_by": "pyfunc"})
    async with serving(build_model, asked) as plane:
        request = InferRequest("m", [Tensor.of(name, data[name].to_numpy()) for name in data])
        answer = (await plane.infer(request)).outputs[0].data
        np.testing.assert_array_equal(answer, mlflow_support.loaded(folder).predict(data))


def test_the_runtime_can_be_asked_for_and_says_why_it_cannot(folders: Any):
    with pytest.raises(
        ConfigError, match="served_by is 'runtime', and none serves it: no runtime here serves the flavour"
    ):
        build_model(settings_of(folders("columns"), extra={"served_by": "runtime"}))
    with pytest.raises(ConfigError, match="no setting 'engine'"):
        build_model(settings_of(folders("columns"), allow_implementation=TRUSTED, extra={"engine": "x"}))
