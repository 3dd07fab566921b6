"""The ensemble, whose KServe form MLServer's environment cannot import, under stock `mlserver start` by its own settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from processes import CLIENT, Address


def test_the_fraud_ensemble_answers_under_stock_mlserver_what_it_answers_as_a_kserve_model(
    frameworks: Path, stock: Address
):
    inputs, expected = json.loads((frameworks / "ensemble.json").read_text())
    url = f"{stock.url}/v2/models/fraud"
    answer = CLIENT.post(f"{url}/infer", json={"id": "7", "inputs": inputs}, timeout=30)
    fewer = CLIENT.post(f"{url}/infer", json={"inputs": inputs[:1]}, timeout=30)
    metadata = CLIENT.get(url).json()
    assert answer.status_code == 200, answer.text
    found = {output["name"]: output for output in answer.json()["outputs"]}
    assert list(found) == [output["name"] for output in expected]
    for output in expected:
        got = found[output["name"]]
        assert (got["datatype"], got["shape"]) == (output["datatype"], output["shape"])
        if output["datatype"] == "BYTES":
            assert got["data"] == output["data"]
        else:
            np.testing.assert_array_equal(np.float32(got["data"]), np.float32(output["data"]))
    assert {output["data"][0] for output in expected if output["name"] == "decision"} <= {
        "approve",
        "review",
        "decline",
    }
    assert fewer.status_code == 400
    assert "amount" in fewer.json()["error"]
    assert metadata["platform"] == "serinus_ensemble"
    assert [spec["name"] for spec in metadata["inputs"]] == ["features", "amount", "terminal_id"]
