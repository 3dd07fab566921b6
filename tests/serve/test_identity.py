"""A server that knows its revision says it: in each series, in the access log, in each answer of either transport."""

from __future__ import annotations

import http.client
import json
import re
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

import grpc
from rest_support import rest
from serinus.cli.serving.options import parse
from serinus.cli.serving.serve import _server_settings
from serinus.errors import ConfigError
from serve_support import serving

MODEL = """
from serinus import Model, TensorSpec


class Halves(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    outputs = (TensorSpec("y", "FP32", (-1, 2)),)

    def predict(self, inputs, call):
        return {"y": inputs["x"] / 2}
"""
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})


@pytest.mark.slow
def test_a_process_tells_its_revision_everywhere(tmp_path: Path):
    (tmp_path / "halves.py").write_text(MODEL)
    words = ["--class", f"{tmp_path}/halves.py:Halves", "--model_name", "m", "--model_version", "3", "--access_log"]
    with serving(tmp_path, *words, environment={"K_REVISION": "m-predictor-00002"}) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=30)
        statuses = {}
        for path in ("/v2/models/m/infer", "/v2/models/nope/infer", "/v2/models/m/versions/3/infer"):
            connection.request("POST", path, BODY, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            statuses[path] = (answer.status, answer.headers["X-Serinus-Revision"])
        connection.close()
        assert set(statuses.values()) == {(200, "m-predictor-00002"), (404, "m-predictor-00002")}
        request = pb.ModelInferRequest(model_name="m", raw_input_contents=[np.ones((1, 2), np.float32).tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            infer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer
            _, call = infer.with_call(request, timeout=20)
            assert ("x-serinus-revision", "m-predictor-00002") in [tuple(pair) for pair in call.initial_metadata()]
            request.model_name = "nope"
            with pytest.raises(grpc.RpcError) as refused:
                infer(request, timeout=20)
            trailing = [tuple(pair) for pair in refused.value.trailing_metadata()]  # type: ignore[attr-defined]
            assert ("x-serinus-revision", "m-predictor-00002") in trailing
        _, page = server.ask("GET", "/metrics")
        samples = [line for line in page.splitlines() if line and not line.startswith("#")]
        assert [line for line in samples if 'revision="m-predictor-00002"' not in line] == []
        log = server.log.read_text()
    lines = [line for line in log.splitlines() if "/infer status" in line or "ModelInfer status" in line]
    told = [re.findall(r"^.*? ms (.*?)(?: rows .*)? request_id \S+$", line)[0] for line in lines]
    whole, unknown = "model m version 3 revision m-predictor-00002", "revision m-predictor-00002"
    assert told == [whole, unknown, whole, whole, unknown]


@pytest.mark.parametrize("http", ["thin", "uvicorn"])
async def test_both_http_transports_tell_it_with_every_status(http: str):
    async with rest("row", http=http, revision="row-v2-predictor") as server:
        for path, status in (("/v2/health/live", 200), ("/nowhere", 404), ("/v2/models/row", 200)):
            answer = await server.ask("GET", path)
            assert (answer.status, answer.headers["x-serinus-revision"]) == (status, "row-v2-predictor")
    async with rest("row", http=http) as server:
        assert "x-serinus-revision" not in (await server.ask("GET", "/v2/health/live")).headers


@pytest.mark.parametrize(
    ("environment", "revision"),
    [
        ({"K_REVISION": "m-00001"}, "m-00001"),
        ({"K_REVISION": "m-00001", "SERINUS_REVISION": "mine"}, "mine"),
        ({"SERINUS_REVISION": "isvc.fraud-v2-predictor"}, "fraud-v2-predictor"),
        ({}, ""),
    ],
    ids=["Knative", "ours first", "Standard mode's label", "none"],
)
def test_the_revision_is_what_the_cluster_says(environment: dict[str, str], revision: str):
    assert _server_settings(parse([], environment).values).revision == revision


@pytest.mark.parametrize("name", ["a\nb", "ü", "x" * 254])
def test_a_revision_that_no_header_carries_is_refused(name: str):
    with pytest.raises(ConfigError, match="--revision"):
        _server_settings(parse(["--revision", name], {}).values)
