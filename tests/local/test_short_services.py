"""InferenceServices of a format and a place, live under `serinus up`: KServe's first example, and one runtime for all classic formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import grpc
import lightgbm_support
import sklearn_support
from conformance_support import infer_message, values_of
from deferred import Deferred
from depth import some_of
from local_support import METHOD, Up, ask, up
from serinus.protocol import _open_inference_pb2 as pb

datasets = Deferred("sklearn.datasets")
linear = Deferred("sklearn.linear_model")
svm = Deferred("sklearn.svm")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

EXAMPLE = "gs://kfserving-examples/models/sklearn/1.0/model"
IRIS = f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {{name: sklearn-iris}}
spec:
  predictor:
    model:
      modelFormat: {{name: sklearn}}
      storageUri: {EXAMPLE}
"""
"""KServe's first example (its docs, "Deploy your first predictive inference service")."""
PICKLE = "      env: [{name: SERINUS_ALLOW_IMPLEMENTATION, value: pickle}]\n"
"""The word that lets its joblib file be loaded."""
FLOWERS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
"""The rows that KServe's page asks about; its answer is [1, 1]."""


def infer(running: Up, name: str, rows: list[list[float]], *, rpc: bool = False) -> list[Any]:
    """The first output of a V2 request for a service's model, over REST or gRPC, through the gateway."""
    host = f"{name}.default.localhost"
    status, _, body = ask(running.gateway, f"/v2/models/{name}", host=host)
    assert status == 200, body
    spec = json.loads(body)["inputs"][0]
    tensor = {
        "name": spec["name"],
        "datatype": spec["datatype"],
        "shape": [len(rows), len(rows[0])],
        "data": [value for row in rows for value in row],
    }
    if rpc:
        with grpc.insecure_channel(running.gateway, options=[("grpc.default_authority", host)]) as channel:
            message = infer_message(name, [tensor]).SerializeToString()
            return values_of(pb.ModelInferResponse.FromString(channel.unary_unary(METHOD)(message, timeout=60)))
    status, _, body = ask(
        running.gateway, f"/v2/models/{name}/infer", json.dumps({"inputs": [tensor]}).encode(), host=host
    )
    assert status == 200, body
    return json.loads(body)["outputs"][0]["data"]


# A runtime of ours that is named is live below too.
@pytest.mark.parametrize("runtimes", some_of(["kserve", "ours"], 1))
def test_kserves_first_example_answers_as_its_page_says_over_v1_v2_and_grpc(runtimes: str, tmp_path: Path) -> None:
    """Chosen by its format alone, as KServe's own runtime would be; or by the name of ours."""
    data, labels = datasets.load_iris(return_X_y=True)
    (tmp_path / "model").mkdir()
    sklearn_support.save(svm.SVC(gamma="scale").fit(data, labels), tmp_path / "model", "model.joblib")
    text = (
        IRIS
        if runtimes == "kserve"
        else IRIS.replace("      storageUri", "      runtime: serinus-sklearn-server\n      storageUri")
    )
    (tmp_path / "isvc.yaml").write_text(text + PICKLE)
    words = ["isvc.yaml", "--mount", f"{EXAMPLE}={tmp_path / 'model'}"]
    words += ["--runtimes", "kserve"] if runtimes == "kserve" else []
    with up(tmp_path, *words) as running:
        body = json.dumps({"instances": FLOWERS}).encode()
        status, _, answer = ask(
            running.gateway, "/v1/models/sklearn-iris:predict", body, host="sklearn-iris.default.localhost"
        )
        assert (status, json.loads(answer)) == (200, {"predictions": [1, 1]})
        assert infer(running, "sklearn-iris", FLOWERS) == [1, 1]
        assert infer(running, "sklearn-iris", FLOWERS, rpc=True) == [1, 1]


CLASSIC = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: NAME}
spec:
  predictor:
    model:
      modelFormat: {name: NAME}
      runtime: serinus-classic-server
      storageUri: gs://models/NAME
"""


def test_one_classic_runtime_serves_services_of_several_formats_over_rest_and_grpc(tmp_path: Path) -> None:
    rows = sklearn_support.rows(50)
    folders = {name: tmp_path / name for name in ("sklearn", "lightgbm")}
    for folder in folders.values():
        folder.mkdir()
    ridge = linear.Ridge().fit(rows, rows[:, 0])
    sklearn_support.save(ridge, folders["sklearn"])
    booster = lightgbm_support.train(trees=5)
    lightgbm_support.load(
        lightgbm_support.save(booster, folders["lightgbm"])
    )  # with its record no server imports LightGBM
    few = {"sklearn": rows[:3], "lightgbm": np.float32(np.arange(2 * booster.num_feature()).reshape(2, -1) / 10)}
    expected = {"sklearn": ridge.predict(few["sklearn"]), "lightgbm": booster.predict(few["lightgbm"])}
    (tmp_path / "isvc.yaml").write_text("---\n".join(CLASSIC.replace("NAME", name) for name in folders))
    words = [word for name, folder in folders.items() for word in ("--mount", f"gs://models/{name}={folder}")]
    with up(tmp_path, "isvc.yaml", *words) as running:
        for name in folders:
            for rpc in (False, True):
                found = infer(running, name, few[name].tolist(), rpc=rpc)
                np.testing.assert_allclose(np.reshape(found, expected[name].shape), expected[name], rtol=1e-5)
