"""The protocols over a hosted `kserve.Model`, and the places where KServe's own server departs from the documents."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance_support import Server, json_tensor, values_of
from serinus.protocol import _open_inference_pb2 as pb
from serve_support import serving
from waiting import wait_until

pytestmark = [
    pytest.mark.slow,  # importing kserve takes the server several seconds
    pytest.mark.skipif(importlib.util.find_spec("kserve") is None, reason="kserve is not installed"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("hosted")
    environment = {"PYTHONPATH": str(Path(__file__).parents[1] / "support")}
    flags = ("--class", "conformance_kserve:Taker", "--model_name", "taker")
    with serving(folder, *flags, environment=environment) as served:
        running = Server(served)
        yield running
        running.close()


def test_v1_answers_carry_the_response_headers_of_the_class(server: Server):
    answer = server.ask("POST", "/v1/models/taker:predict", {"instances": [[1]]})
    assert (answer.status, answer.json) == (200, {"predictions": [[1]]})
    assert answer.headers["x-taken"] == "dict"
    assert int(answer.headers["content-length"]) == len(answer.body)


def test_bytes_of_the_class_are_the_body_with_its_own_content_type(server: Server):
    answer = server.ask("POST", "/v1/models/taker:predict", {"instances": ["picture"]})
    assert (answer.status, answer.headers["content-type"], answer.body) == (200, "image/png", b"\x89PNG")


def test_v2_answers_carry_the_response_headers_of_the_class(server: Server):
    tensor = json_tensor("t", "FP32", [1, 2], [1.0, 2.0])
    answer = server.infer("taker", tensor, id="7")
    assert (answer.status, answer.json["id"]) == (200, "7")
    assert answer.headers["x-taken"].endswith("Request")
    reply = server.grpc_infer("taker", tensor)
    assert values_of(reply.message) == [1.0, 2.0]
    assert "x-taken" in reply.initial


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/avro", "text/csv"])
def test_v1_bodies_that_are_no_json_reach_the_class_as_bytes(server: Server, kind: str):
    """KServe's DataPlane.decode: a content type other than JSON leaves the body as it is."""
    answer = server.ask("POST", "/v1/models/taker:predict", b"\x89PNG\0", {"Content-Type": kind})
    assert (answer.status, answer.json) == (200, {"predictions": [5]})
    assert answer.headers["x-taken"] == "bytes"


def test_binary_cloudevents_whose_data_are_no_json_reach_the_class_as_bytes(server: Server):
    fields = {
        "Content-Type": "application/avro",
        "ce-id": "1",
        "ce-source": "s",
        "ce-type": "t",
        "ce-specversion": "1.0",
    }
    answer = server.ask("POST", "/v1/models/taker:predict", b"\x00\x01", fields)
    assert (answer.status, answer.json) == (200, {"predictions": [2]})
    assert answer.headers["ce-type"] == "io.kserve.inference.response"


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", None])
def test_what_claims_to_be_json_and_is_not_is_400(server: Server, kind: str | None):
    fields: dict[str, Any] = {"Content-Type": kind}
    answer = server.ask("POST", "/v1/models/taker:predict", b"{", fields)
    assert answer.status == 400
    assert "JSON" in answer.error


# kserve 0.21's departures (each was measured on its server) that a request alone shows.
DEPARTURES: dict[str, tuple[Any, int]] = {
    "missing-inputs": ({}, 400),
    "id-number": ({"id": 1, "inputs": [json_tensor("t", "FP32", [1], [1.0])]}, 400),
    "wrong-shape": ({"inputs": [json_tensor("t", "FP32", [2], [1.0])]}, 400),
    "no-number": ({"inputs": [json_tensor("t", "FP32", [1], ["a"])]}, 400),
    "uint8-overflow": ({"inputs": [json_tensor("t", "UINT8", [1], [300])]}, 400),
    "float-into-int": ({"inputs": [json_tensor("t", "INT32", [1], [1.7])]}, 400),
    "null-into-int": ({"inputs": [json_tensor("t", "INT32", [1], [None])]}, 400),
    "text-into-bool": ({"inputs": [json_tensor("t", "BOOL", [1], ["false"])]}, 400),
    "negative-shape": ({"inputs": [json_tensor("t", "FP32", [-1], [1.0])]}, 400),
    "lower-case-datatype": ({"inputs": [json_tensor("t", "fp32", [1], [1.0])]}, 400),
    "unknown-output": ({"inputs": [json_tensor("t", "FP32", [1], [1.0])], "outputs": [{"name": "no"}]}, 400),
    "bad-parameter": ({"inputs": [json_tensor("t", "FP32", [1], [1.0])], "parameters": {"a": []}}, 400),
}


def test_null_is_nan_as_kserves_own_client_writes_it(server: Server):
    answer = server.ask("POST", "/v2/models/taker/infer", {"inputs": [json_tensor("t", "FP32", [3], [1.0, None, 2.0])]})
    assert answer.status == 200, answer.body
    assert [output["data"] for output in answer.json["outputs"]] == [[1.0, None, 2.0]]
    over = server.ask("POST", "/v2/models/taker/infer", {"inputs": [json_tensor("t", "FP32", [1], [1e39])]})
    assert over.status == 400


@pytest.mark.parametrize(("body", "status"), DEPARTURES.values(), ids=DEPARTURES)
def test_client_faults_are_400_in_words(server: Server, body: Any, status: int):
    answer = server.ask("POST", "/v2/models/taker/infer", body)
    assert answer.status == status, answer.body
    assert answer.error
    assert server.alive()


def test_outputs_are_filtered_and_binary_where_the_request_says_so(server: Server):
    tensors = [json_tensor("a", "FP32", [1], [1.0]), json_tensor("b", "FP32", [1], [2.0])]
    answer = server.infer("taker", *tensors, outputs=[{"name": "b"}])
    assert [output["name"] for output in answer.json["outputs"]] == ["b"]
    answer = server.infer("taker", *tensors, parameters={"binary_data_output": True})
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    assert len(answer.body) - length == 8


# What the class raises, and the status of each transport: kserve 0.21's gRPC says UNKNOWN with the text of an AttributeError of
# its own, INTERNAL, or INVALID_ARGUMENT where its REST says 500 (its departures 10 and 11).
RAISED = {
    "invalid": (400, "INVALID_ARGUMENT", "column 'amount' is missing"),
    "inference": (500, "INTERNAL", "the weights are corrupt"),
    "not-ready": (503, "UNAVAILABLE", "not ready"),
    "not-implemented": (501, "UNIMPLEMENTED", "no such mode"),
    "shape": (500, "INTERNAL", "model 'taker'"),
}


@pytest.mark.parametrize("kind", RAISED)
def test_what_the_class_raises_has_the_same_blame_over_both_transports(server: Server, kind: str):
    status, code, words = RAISED[kind]
    tensor = json_tensor(kind, "FP32", [1], [1.0])
    answer = server.infer("taker", tensor)
    assert answer.status == status, answer.body
    assert words in answer.error
    assert server.alive()
    server.grpc_refused(code, server.grpc_infer("taker", tensor), words)


def test_a_model_that_is_not_well_is_not_ready_over_both_transports(server: Server):
    """Departure 8: `/v2/health/ready` is "if all the models are ready for inferencing"."""

    def says(status: int) -> bool:
        rest = [server.ask("GET", f"/v2/{path}").status for path in ("health/ready", "models/taker/ready")]
        rpc = [
            server.rpc("ServerReady", pb.ServerReadyRequest()).message.ready,
            server.rpc("ModelReady", pb.ModelReadyRequest(name="taker")).message.ready,
        ]
        return (rest, rpc) == ([status] * 2, [status == 200] * 2)

    assert server.ask("POST", "/v1/models/taker:predict", {"instances": ["ill"]}).status == 200
    assert server.ask("POST", "/v1/models/taker:predict", {"instances": [1]}).status == 503
    for status in (503, 200):
        wait_until(lambda status=status: says(status))
        assert server.ask("GET", "/v2/health/live").status == 200
    assert server.ask("POST", "/v1/models/taker:predict", {"instances": [1]}).status == 200


def test_no_client_fault_left_a_traceback(server: Server):
    entries = re.split(r"\n(?=\d{4}-\d\d-\d\d )", server.served.log.read_text())
    blamed = ("the weights are corrupt", "cannot reshape")
    left = [entry for entry in entries if "Traceback" in entry and not any(words in entry for words in blamed)]
    assert not left, left
