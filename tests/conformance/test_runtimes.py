"""The protocols over the models of the classic runtimes and MLflow's folders: what test_extensions asks of an XGBoost model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import classic_models
from conformance_support import Server, check_config, check_metadata, check_no_rows, json_tensor, values_of
from serinus.hosts import build_model
from serinus.settings import ModelSettings
from serve_support import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MODELS = {
    "skl": ("sklearn", "sklearn_server"),
    "cat": ("catboost cbm", "catboost_server"),
    "cat-json": ("catboost json", "catboost_server"),
    "lgb": ("lightgbm", "lightgbm_server"),
    "all-skl": ("sklearn", "classic_server"),
    "all-xgb": ("xgboost", "classic_server"),
    "all-onnx": ("onnx", "classic_server"),
}
"""Format and implementation by the model's name; MLflow's folder beside them is `flow`."""
each_model = pytest.mark.parametrize("model", [*MODELS, "flow"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, np.ndarray]]]:
    folder = tmp_path_factory.mktemp("runtimes")
    repository = folder / "models"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the frameworks' own, of what they deprecate
        answers = {
            name: classic_models.write(kind, repository / name, name=name, implementation=implementation)
            for name, (kind, implementation) in MODELS.items()
        }
        answers["flow"] = classic_models.write_mlflow(repository / "flow")
        # Each leaves its verification record: the server then imports frameworks for MLflow's folder alone.
        for name, (kind, implementation) in MODELS.items():
            if kind in classic_models.WITH_RECORDS:
                made = ModelSettings(name=name, implementation=implementation, model_dir=repository / name)
                build_model(made).load()
    settings = {"name": "flow", "implementation": "mlflow_server"}
    (repository / "flow" / "model-settings.json").write_text(json.dumps(settings))
    with serving(folder, str(repository), "--repository_control", "on", timeout_s=240) as running:
        server = Server(running)
        yield server, answers
        server.close()


def tensor(server: Server, model: str) -> dict[str, Any]:
    """Three rows for a model, under the name and datatype that its metadata say."""
    (spec,) = server.ask("GET", f"/v2/models/{model}").json["inputs"]
    data = classic_models.rows(3)
    assert spec["shape"] == [-1, classic_models.COLUMNS]
    return json_tensor(spec["name"], spec["datatype"], list(data.shape), data.reshape(-1).tolist())


@each_model
def test_rest_and_grpc_answer_what_the_framework_predicts(served: Any, model: str):
    server, answers = served
    given = tensor(server, model)
    answer = server.infer(model, given, id="7")
    assert (answer.status, answer.json["id"]) == (200, "7"), answer.body
    classic_models.expected(answers[model], answer.json["outputs"][0]["data"])
    for raw in (False, True):
        reply = server.grpc_infer(model, given, raw=raw)
        assert reply.code == "OK", reply
        classic_models.expected(answers[model], values_of(reply.message))


@each_model
def test_metadata_promise_what_is_answered(served: Any, model: str):
    check_metadata(served[0], model, tensor(served[0], model))


@each_model
def test_no_rows_are_answered_with_none(served: Any, model: str):
    check_no_rows(served[0], model, tensor(served[0], model))


@each_model
def test_the_configuration_over_grpc_equals_rests(served: Any, model: str):
    check_config(served[0], model)


@each_model
@pytest.mark.parametrize(
    "change",
    [
        {"shape": [18]},
        {"shape": [3, 5]},
        {"datatype": "BYTES", "data": ["a"] * 18},
        {"datatype": "FP33"},
        {"data": [1.0]},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_tensor_that_does_not_fit_is_refused_by_name_and_the_next_is_answered(
    served: Any, model: str, change: dict[str, Any]
):
    server, _ = served
    given = tensor(server, model)
    answer = server.infer(model, {**given, **change})
    assert answer.status == 400, answer.body
    assert given["name"] in answer.error
    assert server.infer(model, given).status == 200


@each_model
def test_v1_answers_a_list_of_rows_as_long_as_was_asked(served: Any, model: str):
    server, answers = served
    answer = server.ask("POST", f"/v1/models/{model}:predict", {"instances": classic_models.rows(3).tolist()})
    assert answer.status == 200, answer.body
    classic_models.expected(answers[model], answer.json["predictions"])


@each_model
def test_a_model_is_unloaded_and_loaded_again_by_request(served: Any, model: str):
    server, answers = served
    given = tensor(server, model)
    assert server.ask("POST", f"/v2/repository/models/{model}/unload", {}).status == 200
    assert server.infer(model, given).status == 404
    assert server.ask("POST", f"/v2/repository/models/{model}/load", {}).status == 200
    classic_models.expected(answers[model], server.infer(model, given).json["outputs"][0]["data"])
