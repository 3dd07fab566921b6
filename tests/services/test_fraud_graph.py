"""The fraud service as an InferenceGraph: features, then the ensemble, joined by V1; by `serinus up`, through the real Envoy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fraud_features.features import FEATURE_NAMES
from fraud_support import SERVICE
from local_support import ask, up

GRAPH = SERVICE / "graph"
V1, V2 = (json.loads((folder / "request.json").read_text()) for folder in (GRAPH, SERVICE))
RESPONSE = json.loads((SERVICE / "response.json").read_text())


def test_the_graph_s_request_is_the_service_s_in_v1() -> None:
    columns = {tensor["name"]: tensor["data"] for tensor in V2["inputs"]}
    assert V1["instances"] == [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def test_both_services_declare_the_protocol_that_the_graph_maps_and_their_first_port_is_rest() -> None:
    for name in ("features", "model"):
        document = yaml.safe_load((GRAPH / f"inferenceservice-{name}.yaml").read_text())
        (container,) = document["spec"]["predictor"]["containers"]
        assert {"name": "PROTOCOL", "value": "v1"} in container["env"]
        assert container["ports"][0]["name"] == "http1"
        assert f"--model_name=fraud-{name}" in container["args"]


@pytest.mark.slow
def test_the_graph_answers_what_the_other_forms_answer(tmp_path: Path) -> None:
    wanted = {output["name"]: output["data"] for output in RESPONSE["outputs"]}
    with up(tmp_path, str(GRAPH), "--no-watch") as running:

        def post(host: str, path: str, body: Any) -> tuple[int, Any]:
            status, _, answer = ask(running.gateway, path, json.dumps(body).encode(), host=f"{host}.default.localhost")
            return status, json.loads(answer)

        status, answer = post("fraud", "/", V1)
        assert status == 200, answer
        got = answer["predictions"]
        assert [row["decision"] for row in got] == wanted["decision"]
        assert [row["reasons"] for row in got] == wanted["reasons"]
        scores = np.array([[row["score"] for row in got], wanted["score"]], np.float32)
        assert scores[0].tolist() == scores[1].tolist()

        # A retry is counted once, so the features are the same; V2 has them as tensors.
        status, answer = post("fraud-features", "/v2/models/fraud-features/infer", V2)
        shapes = {output["name"]: output["shape"] for output in answer["outputs"]}
        assert shapes == {"features": [3, len(FEATURE_NAMES)], "amount": [3], "terminal_id": [3]}

        # What is wrong is told by the first step, with its status, and the model is not asked.
        bad = {"instances": [{**V1["instances"][0], "amount": -1}]}
        status, answer = post("fraud", "/", bad)
        assert status == 400
        assert "column 'amount', row 0: -1" in answer["error"]

        # Outcomes go to the features service itself.
        known = ("transaction_id", "datetime", "customer_id", "terminal_id")
        outcome = {**{name: V1["instances"][0][name] for name in known}, "fraud": 1}
        labels = {"operation": "record_labels", "instances": [outcome]}
        status, answer = post("fraud-features", "/v1/models/fraud-features:predict", labels)
        assert (status, answer["predictions"][0]["recorded"]) == (200, True)

        _, _, page = ask(running.gateway, "/metrics", host="fraud.default.localhost")
        text = page.decode()
        assert 'serinus_graph_step_requests_total{graph="default/fraud",node="root",step="features"} 2\n' in text
        assert 'serinus_graph_step_requests_total{graph="default/fraud",node="root",step="model"} 1\n' in text
