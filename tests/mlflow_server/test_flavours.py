"""Flavours that our runtimes serve answer as MLflow's own pyfunc does, over V2 and over /invocations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlflow_support
from dataplane_support import serving
from mlflow_support import invoke
from serinus.hosts import build_model
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings

pytestmark = pytest.mark.slow

SERVED_BY = {"sklearn": "sklearn_server", "xgb": "xgboost_server", "lgb": "lightgbm_server", "onnx": "onnx_server", "torch": "torch_server"}  # fmt: skip


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERINUS_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Folders of models, each saved once."""
    root = tmp_path_factory.mktemp("mlflow")

    def of(kind: str) -> Path:
        folder = root / kind
        return folder if folder.exists() else mlflow_support.save(kind, folder)

    return of


def settings_of(folder: Path, **named: Any) -> ModelSettings:
    return ModelSettings(name="m", implementation="mlflow_server", model_dir=folder, **named)


KINDS = [
    pytest.param(kind, marks=[pytest.mark.slow] if kind.startswith("torch") else [])  # PyTorch takes seconds to import
    for kind in mlflow_support.FLAVOURS
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_flavour_is_served_by_our_runtime_and_answers_as_the_pyfunc_does(kind: str, folders: Any):
    folder = folders(kind)
    data = mlflow_support.frame(20, seed=7)
    rows = data.to_numpy(np.float32)
    is_tensor = kind in mlflow_support.TENSORS
    expected = mlflow_support.loaded(folder).predict(rows if is_tensor else data.astype(np.float64))
    if isinstance(expected, dict):
        (expected,) = expected.values()
    expected = np.asarray(expected)

    async with serving(build_model, settings_of(folder)) as plane:
        model = plane.registry.find("m", "").model
        assert model.details["served_by"] == SERVED_BY[kind.partition("_")[0]]
        sent = rows if is_tensor or model.inputs[0].datatype == "FP32" else data.to_numpy()
        answer = await plane.infer(InferRequest("m", [Tensor.of(model.inputs[0].name, sent)]))
        if kind == "sklearn_proba":
            assert answer.outputs[0].shape == (20, 2)
        got = answer.outputs[0].data
        assert got.shape == expected.shape
        if expected.dtype.kind == "i":
            assert got.dtype.kind == "i"
            np.testing.assert_array_equal(got, expected)
        else:
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)

        body = (
            {"instances": rows.tolist()} if is_tensor else {"dataframe_split": json.loads(data.to_json(orient="split"))}
        )
        status, document = await invoke(plane, body)
        assert status == 200
        predictions = document["predictions"]
        if kind == "onnx":
            (predictions,) = predictions.values()
        np.testing.assert_allclose(np.asarray(predictions), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["sklearn", "xgb_classifier", "lgb_booster"])
async def test_each_form_of_a_body_gets_the_answer_of_mlflows_scoring_server(kind: str, folders: Any):
    from mlflow.pyfunc import scoring_server

    folder = folders(kind)
    data = mlflow_support.frame(5, seed=9)
    turned = data[["d", "b", "a", "c"]].assign(extra=1)
    bodies = [
        {"dataframe_split": json.loads(data.to_json(orient="split"))},
        {"dataframe_split": json.loads(turned.to_json(orient="split"))},
        {"dataframe_records": json.loads(turned.to_json(orient="records"))},
        {"instances": json.loads(data.to_json(orient="records"))},
        {"inputs": {name: data[name].tolist() for name in data}},
        {"dataframe_split": json.loads(data.to_json(orient="split")), "params": {"unknown": 1}},
    ]
    theirs = mlflow_support.loaded(folder)
    schema = theirs.metadata.get_input_schema()
    async with serving(build_model, settings_of(folder)) as plane:
        for body in bodies:
            expected = scoring_server.invocations(json.dumps(body), "application/json", theirs, schema)
            status, document = await invoke(plane, body)
            assert (status, document.keys()) == (expected.status, json.loads(expected.response).keys()), body
            np.testing.assert_allclose(document["predictions"], json.loads(expected.response)["predictions"], rtol=1e-9)
        text = turned.to_csv(index=False)
        expected = scoring_server.invocations(text, "text/csv", theirs, schema)
        status, document = await invoke(plane, text.encode(), "text/csv; charset=utf-8")
        np.testing.assert_allclose(document["predictions"], json.loads(expected.response)["predictions"], rtol=1e-9)


@pytest.mark.parametrize("kind", ["onnx", pytest.param("torch_export", marks=pytest.mark.slow)])
async def test_networks_that_are_asked_with_columns_answer_records_as_mlflow_does(kind: str, folders: Any):
    from mlflow.pyfunc import scoring_server

    folder = folders(kind)
    body = {"dataframe_split": {"columns": list("abcd"), "data": [[0.5, 1, -1, 2]]}}
    theirs = mlflow_support.loaded(folder)
    raw = type(
        "Raw",
        (),
        {
            "predict": lambda self, data: theirs._model_impl.predict(data.astype(np.float32)),
            "metadata": theirs.metadata,
        },
    )()
    expected = (
        json.loads(scoring_server.invocations(json.dumps(body), "application/json", raw, None).response)
        if kind != "onnx"
        else None
    )
    async with serving(build_model, settings_of(folder)) as plane:
        status, document = await invoke(plane, body)
        assert status == 200
        assert isinstance(document["predictions"][0], dict)
        if expected is not None:
            (ours,), (row,) = document["predictions"], expected["predictions"]
            assert ours.keys() == row.keys()
            np.testing.assert_allclose(list(ours.values()), list(row.values()), rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"", "application/json", 400, "request body"),
        (b"[1]", "application/json", 400, "object"),
        ({"rows": []}, "application/json", 400, "exactly one of dataframe_split"),
        ({"instances": [], "inputs": []}, "application/json", 400, "exactly one of"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, "application/json", 400, "row 0 has 2 values, for 1 columns"),
        ({"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}, "application/json", 400, "'d' of the model is missing"),
        ({"dataframe_records": {"a": 1}}, "application/json", 400, "a list of objects"),
        ({"dataframe_records": [{"a": "x", "b": 1, "c": 1, "d": 1}]}, "application/json", 400, "'a'"),
        ({"dataframe_records": [{"a": [1, 2], "b": 1, "c": 1, "d": 1}]}, "application/json", 400, "'a'"),
        ({"dataframe_records": [{"a": {}, "b": 1, "c": 1, "d": 1}]}, "application/json", 400, "'a'"),
        ({"instances": {"a": 1}}, "application/json", 400, "a list was expected"),
        ({"instances": [[1, 2], [3]]}, "application/json", 400, "different lengths"),
        ({"instances": [[1, 2, 3]]}, "application/json", 400, "4"),
        ({"instances": [{"a": 1}, {"b": 1}]}, "application/json", 400, "the same names"),
        ({"inputs": "text"}, "application/json", 400, "a list was expected"),
        (b"a,b\n1", "text/csv", 400, "row 0 of the CSV has 1 values, for 2 columns"),
        (b"\xff\xfe", "text/csv", 400, "no CSV in UTF-8"),
        (b"", "text/csv", 400, "no CSV with a header"),
        (b"{}", "application/json; charset=latin-1", 415, "only UTF-8"),
        (b"{}", "application/vnd.apache.parquet", 415, "application/json or text/csv"),
    ],
)  # fmt: skip
async def test_a_body_that_is_none_is_refused_in_words(body: Any, kind: str, status: int, words: str, folders: Any):
    async with serving(build_model, settings_of(folders("sklearn"))) as plane:
        got, document = await invoke(plane, body, kind)
        assert got == status, document
        assert words in document["message"]
        assert document["error_code"] == "BAD_REQUEST"


async def test_invocations_are_requests_like_all_others_for_the_statistics(folders: Any):
    async with serving(build_model, settings_of(folders("xgb_booster"))) as plane:
        for _ in range(3):
            await invoke(plane, {"instances": [[1, 2, 3, 4]]})
        assert plane.registry.find("m", "").statistics.success_count == 3


def test_a_pickle_is_served_only_where_the_operator_allows_it(folders: Any):
    from serinus.errors import ConfigError

    folder = folders("sklearn_pickle")
    with pytest.raises(
        ConfigError, match=r"loading one runs whatever code its writer put in.*--allow_implementation pickle"
    ):
        build_model(settings_of(folder)).load()
    model = build_model(settings_of(folder, allow_implementation=("pickle",)))
    model.load()
    assert model.details["served_by"] == "sklearn_server"
