"""The local runner with `serinus serve` itself: an InferenceService of one of our images, a real model, both protocols."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from local_support import ask, up

pytestmark = pytest.mark.slow

MANIFEST = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: scores}
spec:
  predictor:
    timeout: 20
    model:
      modelFormat: {name: xgboost}
      protocolVersion: v2
      storageUri: model
"""


def test_our_own_server_runs_from_kserves_yaml_and_answers_both_protocols(tmp_path: Path) -> None:
    xgboost = pytest.importorskip("xgboost")
    grpcclient = pytest.importorskip("tritonclient.grpc")
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(200, 4)).astype(np.float32)
    booster = xgboost.train(
        {"objective": "binary:logistic", "max_depth": 2},
        xgboost.DMatrix(rows, label=(rows.sum(axis=1) > 0).astype(np.float32)),
        num_boost_round=5,
    )
    wanted = booster.inplace_predict(rows[:3])
    (tmp_path / "model").mkdir()
    booster.save_model(tmp_path / "model" / "model.ubj")
    (tmp_path / "isvc.yaml").write_text(MANIFEST)
    with up(tmp_path, "isvc.yaml") as running:
        status, _, body = ask(running.gateway, "/v2/models/scores", host="scores.default.localhost")
        assert status == 200, body
        name = json.loads(body)["inputs"][0]["name"]
        request = {"inputs": [{"name": name, "datatype": "FP32", "shape": [3, 4], "data": rows[:3].ravel().tolist()}]}
        status, headers, body = ask(
            running.gateway, "/v2/models/scores/infer", json.dumps(request).encode(), host="scores.default.localhost"
        )
        assert status == 200, body
        assert headers["x-serinus-revision"] == "scores-predictor-00001"
        assert np.allclose(np.ravel(json.loads(body)["outputs"][0]["data"]), wanted, atol=1e-6)
        tensor = grpcclient.InferInput(name, [3, 4], "FP32")
        tensor.set_data_from_numpy(rows[:3])
        with grpcclient.InferenceServerClient(
            running.gateway, channel_args=[("grpc.default_authority", "scores.default.localhost")]
        ) as client:
            answer = client.infer("scores", [tensor])
        first = answer.get_response().outputs[0].name
        assert np.allclose(answer.as_numpy(first).ravel(), wanted, atol=1e-6)
        assert "scores-predictor-00001: restarted" in running.cli("restart", "scores").stdout
        status, _, body = ask(running.gateway, "/v2/models/scores/ready", host="scores.default.localhost")
        assert status == 200
