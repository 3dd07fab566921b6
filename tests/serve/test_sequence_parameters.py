"""Parameters of Triton's sequence extension, as its own clients send them: a model is told of them alike over every transport."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from serve_support import Served, serving

CODE = """
import json
import numpy as np
from serinus import Model, TensorSpec


class Told(Model):
    inputs = (TensorSpec("x", "FP32", (-1, 1)),)
    outputs = (TensorSpec("parameters", "BYTES", (-1,)),)

    def predict(self, inputs, call):
        text = json.dumps(dict(call.parameters), sort_keys=True).encode()
        return {"parameters": np.array([text] * len(inputs["x"]), dtype=object)}
"""

SEQUENCE: dict[str, Any] = {"sequence_id": 7, "sequence_start": True, "sequence_end": False}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("told")
    (folder / "told.py").write_text(CODE)
    with serving(folder, "--class", f"{folder / 'told.py'}:Told", "--model_name", "told") as served:
        yield served


def _inputs(module: Any) -> list[Any]:
    tensor = module.InferInput("x", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.float32([[1]]))
    return [tensor]


def _over_rest(server: Served) -> Any:
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.http_port}") as client:
        return client.infer("told", _inputs(tritonclient.http), **SEQUENCE).as_numpy("parameters")


def _over_rest_json(server: Served) -> Any:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1]}
    status, answer = server.ask("POST", "/v2/models/told/infer", {"inputs": [tensor], "parameters": SEQUENCE})
    assert status == 200, answer
    return answer["outputs"][0]["data"]


def _over_grpc(server: Served) -> Any:
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        return client.infer("told", _inputs(tritonclient.grpc), **SEQUENCE).as_numpy("parameters")


def _over_a_stream(server: Served) -> Any:
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("told", _inputs(tritonclient.grpc), **SEQUENCE)
        result, error = answers.get(timeout=30)
        client.stop_stream()
    assert error is None
    return result.as_numpy("parameters")


@pytest.mark.parametrize("ask", [_over_rest, _over_rest_json, _over_grpc, _over_a_stream])
def test_a_model_is_told_of_a_sequence_over_every_transport(server: Served, ask: Any):
    (told,) = ask(server)
    assert json.loads(told) == SEQUENCE


@pytest.mark.slow
def test_sequences_are_no_extension_that_is_promised(server: Served):
    assert "sequence" not in server.ask("GET", "/v2")[1]["extensions"]
