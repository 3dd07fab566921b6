"""`predict_stream` and handlers that stream: what MLServer's clients see of them here is what they see of stock MLServer."""

from __future__ import annotations

import json
import queue
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from mlserver.codecs import StringCodec
from mlserver.grpc import converters
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest
from processes import CLIENT, Address

import grpc

SERVERS = ("serinus", "mlserver")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Address:
    return request.getfixturevalue("ours" if request.param == "serinus" else "stock")


def body(text: str, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}], **more}


def let_go(server: Address) -> int:
    """Let the model say the next word; gives how many streams have ended."""
    answer = CLIENT.post(f"{server.url}/v2/models/m/infer", json=body("go"))
    return int(answer.json()["outputs"][0]["data"][0])


def word(event: str) -> str:
    assert event.startswith("data: ")
    return json.loads(event[6:])["outputs"][0]["data"][0]


@pytest.mark.parametrize("verb", ["infer_stream", "generate_stream"])
def test_each_response_leaves_when_it_is_there(server: Address, verb: str):
    with CLIENT.stream("POST", f"{server.url}/v2/models/m/{verb}", json=body("a wait b wait c", id="7")) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in answer.iter_lines() if line)
        first = next(lines)
        assert word(first) == "a"
        assert (json.loads(first[6:])["model_name"], json.loads(first[6:])["id"]) == ("m", "7")
        let_go(server)
        assert [word(next(lines)), word(next(lines))] == ["wait", "b"]
        let_go(server)
        assert [word(line) for line in lines] == ["wait", "c"]


def test_a_handler_may_stream(server: Address):
    with CLIENT.stream("GET", f"{server.url}/lines", params={"count": 3}) as answer:
        assert (answer.status_code, answer.headers["x-own"]) == (200, "1")
        assert "content-length" not in answer.headers
        lines = answer.iter_lines()
        assert next(lines) == "0"
        for n in (1, 2):
            let_go(server)
            assert next(lines) == str(n)
        assert list(lines) == []


def grpc_request(text: str, **fields: Any) -> Any:
    payload = InferenceRequest(inputs=[StringCodec.encode_input("text", [text])], **fields)
    return converters.ModelInferRequestConverter.from_types(payload, model_name="m", model_version=None)


def said(response: Any) -> str:
    answer = converters.ModelInferResponseConverter.to_types(response)
    return StringCodec.decode_output(answer.outputs[0])[0]


def test_a_stream_of_grpc_takes_requests_as_they_come(server: Address):
    requests: queue.Queue[Any] = queue.Queue()
    with grpc.insecure_channel(server.grpc) as channel:
        answers = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests.get, None), timeout=30)
        requests.put(grpc_request("a b", id="9"))
        first = next(answers)
        assert (first.model_name, first.id, said(first)) == ("m", "9", "a")
        assert said(next(answers)) == "b"
        requests.put(grpc_request("c", id="another"))
        third = next(answers)
        assert (said(third), third.id) == ("c", "9")  # MLServer gives a stream the id of its first request
        requests.put(None)
        assert list(answers) == []
        assert answers.code() == grpc.StatusCode.OK


def test_an_error_of_the_class_ends_a_stream_of_grpc(server: Address):
    with grpc.insecure_channel(server.grpc) as channel:
        answers = GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([grpc_request("a fail b")]), timeout=30)
        assert said(next(answers)) == "a"
        with pytest.raises(grpc.RpcError, match="it cannot say that"):
            next(answers)
        assert answers.code() == grpc.StatusCode.INVALID_ARGUMENT


# What stock MLServer does not do


def test_errors_are_told_in_a_stream_too(ours: Address):
    url = f"{ours.url}/v2/models/m/versions/v3/infer_stream"
    answer = CLIENT.post(url, json=body("a fail b"))
    good, bad, _ = answer.text.split("\n\n")
    assert (answer.status_code, word(good), json.loads(bad[6:])) == (200, "a", {"error": "it cannot say that"})
    assert json.loads(good[6:])["model_version"] == "v3"
    answer = CLIENT.post(url, json=body("a break"))
    assert "secret" not in answer.text
    assert "failed to predict" in answer.text
    answer = CLIENT.post(url, json=body("fail"))
    assert (answer.status_code, answer.json()) == (400, {"error": "it cannot say that"})


@pytest.mark.parametrize("path", ["m/generate", "m/versions/v3/generate"])
def test_generate_is_infer_by_mlservers_other_name(ours: Address, path: str):
    answer = CLIENT.post(f"{ours.url}/v2/models/{path}", json=body("a", id="7"))
    assert (answer.status_code, answer.json()["id"]) == (200, "7")
    bad = CLIENT.post(f"{ours.url}/v2/models/{path}", json={"inputs": 1})
    assert (bad.status_code, "inputs" in bad.json()["error"]) == (400, True)


def test_a_client_that_leaves_ends_the_classes_stream(ours: Address):
    before = let_go(ours)
    with CLIENT.stream("POST", f"{ours.url}/v2/models/m/infer_stream", json=body("a wait b wait c")) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert word(next(lines)) == "a"
    for _ in range(100):
        if let_go(ours) > before:
            return
    raise AssertionError("the stream goes on")


def triton(address: Address, count: int, *texts: str, **options: Any) -> list[tuple[Any, Any]]:
    """Send texts with a client of Triton's, and wait for so many answers: responses and errors."""
    answers: queue.Queue[Any] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(address.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=20)
        for number, text in enumerate(texts):
            tensor = tritonclient.grpc.InferInput("text", [1], "BYTES")
            tensor.set_data_from_numpy(np.array([text], dtype=object))
            client.async_stream_infer("m", [tensor], request_id=str(number), **options)
        got = [answers.get(timeout=20) for _ in range(count)]
        client.stop_stream()
    assert answers.empty()
    return [(result and result.get_response(), error) for result, error in got]


def test_a_client_of_tritons_asks_for_tritons_messages_by_wanting_the_last_one(ours: Address):
    got = triton(ours, 6, "a b", "fail", "c", enable_empty_final_response=True)
    assert [
        (str(error.message()) if error else (said(response) if response.outputs else "end")) for response, error in got
    ] == ["a", "b", "end", "it cannot say that", "c", "end"]
    assert [response.id for response, _ in got if response is not None] == ["0", "0", "0", "2", "2"]


def test_the_server_can_be_told_to_speak_tritons_messages_only(empty: Address):
    assert CLIENT.post(f"{empty.url}/v2/repository/models/m/load", timeout=60).status_code == 200
    got = triton(empty, 2, "a", "b")
    assert [said(response) for response, _ in got] == ["a", "b"]
    assert [error for _, error in got] == [None, None]


def test_a_stream_of_ours_runs_under_stock_mlserver(ours: Address, stock: Address):
    """The other way round: a serinus model that streams, under its own `serinus serve` and `mlserver start`."""
    request = {"inputs": [{"name": "count", "datatype": "INT64", "shape": [1], "data": [3]}]}
    found = []
    for address in (ours, stock):
        answer = CLIENT.post(f"{address.url}/v2/models/countdown/infer_stream", json=request)
        found.append([json.loads(event[6:])["outputs"] for event in answer.text.split("\n\n") if event])
        assert CLIENT.post(f"{address.url}/v2/models/countdown/infer", json=request).status_code == 501
    assert found[0] == [[{"name": "n", "datatype": "INT64", "shape": [1], "data": [n]}] for n in (3, 2, 1)]
    assert [[without_nulls(output) for output in outputs] for outputs in found[1]] == found[0]


def without_nulls(document: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if value is not None}
