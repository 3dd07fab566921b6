"""Streams of responses over gRPC, on both engines: Triton's decoupled form and MLServer's."""

from __future__ import annotations

import asyncio
import json
import queue
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

import grpc
import grpc_support
from grpc_support import ENGINES, Running, serving
from stream_support import COUNTING, Conversing, Counting

STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grpc_support.MODELS, "counting", Counting)
    monkeypatch.setitem(grpc_support.MODELS, "conversing", Conversing)


NAMES = ("sum", "counting", "conversing")


@pytest.fixture(params=ENGINES)
def server(request: pytest.FixtureRequest, models: None) -> Iterator[Running]:
    with serving(request.param, names=NAMES) as running:
        yield running


@pytest.fixture
def channel(server: Running) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


def request_for(model: str, number: int, identity: str = "", **parameters: Any) -> pb.ModelInferRequest:
    entry = pb.ModelInferRequest.InferInputTensor(name="count", datatype="INT64", shape=[1])
    request = pb.ModelInferRequest(model_name=model, id=identity, inputs=[entry])
    request.raw_input_contents.append(np.int64(number).tobytes())
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param"
        setattr(request.parameters[name], kind, value)
    return request


def number(response: pb.ModelInferResponse) -> int:
    assert response.outputs[0].name == "n"
    return int(np.frombuffer(response.raw_output_contents[0], np.int64)[0])


def summary(answers: Any) -> list[Any]:
    """Each answer's id and number, its error, or "end"."""
    found: list[Any] = []
    for answer in answers:
        response = answer.infer_response
        if answer.error_message:
            found.append((response.id, answer.error_message))
        elif response.outputs:
            found.append((response.id, number(response)))
        else:
            assert response.parameters["triton_final_response"].bool_param
            found.append((response.id, "end"))
    return found


def triton_stream(channel: grpc.Channel, requests: Any, **options: Any) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(requests), timeout=20, **options)


def mlserver_stream(channel: grpc.Channel, requests: Any, **options: Any) -> Any:
    method = channel.stream_stream(STREAM, pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString)
    return method(iter(requests), timeout=20, **options)


# Triton's form: each request is answered in its place, any number of times


def test_each_request_is_answered_in_its_place(channel: grpc.Channel):
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
    plain = pb.ModelInferRequest(model_name="sum", id="s", inputs=[entry])
    plain.raw_input_contents.append(np.ones(3, np.float32).tobytes())
    requests = [
        request_for("counting", 3, "a"),
        plain,
        request_for("counting", 0, "b"),
        request_for("counting", 1, "c"),
    ]
    answers = list(triton_stream(channel, requests))
    assert [answer.infer_response.id for answer in answers] == ["a", "a", "a", "s", "c"]
    assert [number(answers[i].infer_response) for i in (0, 1, 2, 4)] == [0, 1, 2, 0]
    final = [answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers]
    assert final == [False, False, False, True, False]


def test_a_client_that_wants_to_know_is_told_of_the_end(channel: grpc.Channel):
    wanted = {"triton_enable_empty_final_response": True}
    requests = [request_for("counting", 2, "a", **wanted), request_for("counting", 0, "b", **wanted)]
    assert summary(triton_stream(channel, requests)) == [("a", 0), ("a", 1), ("a", "end"), ("b", "end")]


def test_tritons_client_reads_such_a_stream(server: Running):
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(server.address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), stream_timeout=20)
        tensor = triton.InferInput("count", [1], "INT64")
        tensor.set_data_from_numpy(np.array([3]))
        wanted = [triton.InferRequestedOutput("n")]
        client.async_stream_infer("counting", [tensor], outputs=wanted, enable_empty_final_response=True)
        got = [answers.get(timeout=20) for _ in range(4)]
        client.stop_stream()
    assert [error for _, error in got] == [None] * 4
    *some, last = (result for result, _ in got)
    assert [result.as_numpy("n").tolist() for result in some] == [[0], [1], [2]]
    assert some[0].as_numpy("text") is None
    assert last.get_response().parameters["triton_final_response"].bool_param
    assert answers.empty()


def test_a_response_leaves_before_the_next_one_is_made(server: Running, channel: grpc.Channel):
    answers = triton_stream(channel, [request_for("counting", 3, hold=True)])
    server.until(lambda: COUNTING["counting"].opened)
    for n in range(3):
        server.loop.call_soon_threadsafe(COUNTING["counting"].go.release)
        assert number(next(answers).infer_response) == n
        assert COUNTING["counting"].given == n + 1
    assert list(answers) == []
    assert COUNTING["counting"].closed == 1


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (request_for("counting", 5, "a", fail_at=1), "it does not count to 1"),
        (
            request_for("counting", 5, "a", break_at=1),
            "model 'counting' failed to predict; the server's log has the details",
        ),
        (request_for("counting", 5, "a", fail_at=0), "it does not count to 0"),
        (request_for("nope", 5, "a"), "nope"),
        (pb.ModelInferRequest(model_name="counting", id="a"), "input"),
        (request_for("counting", 5, "a", timeout=-1), "timeout"),
    ],
)
def test_an_error_is_told_in_its_place_and_the_stream_goes_on(channel: grpc.Channel, request_: Any, said: str):
    *some, last, next_ = summary(triton_stream(channel, [request_, request_for("counting", 1, "b")]))
    assert some in ([], [("a", 0)])
    assert last[0] == "a"
    assert said in last[1]
    assert next_ == ("b", 0)


def test_requests_of_one_stream_run_side_by_side(server: Running, channel: grpc.Channel):
    requests = [request_for("counting", 1, "a", hold=True), request_for("counting", 2, "b")]
    answers = triton_stream(channel, requests)
    server.until(lambda: COUNTING["counting"].given == 2)  # those of b, which wait for those of a
    server.loop.call_soon_threadsafe(COUNTING["counting"].go.release)
    assert summary(answers) == [("a", 0), ("b", 0), ("b", 1)]


@pytest.mark.parametrize("model", ["counting", "conversing"])
def test_a_client_that_leaves_ends_its_streams(server: Running, channel: grpc.Channel, model: str):
    answers = channel.stream_stream(STREAM)(
        iter([request_for(model, 5, hold=True).SerializeToString()] * (2 if model == "counting" else 1)), timeout=20
    )
    opened = 2 if model == "counting" else 1
    server.until(lambda: COUNTING[model].opened == opened)
    server.loop.call_soon_threadsafe(COUNTING[model].go.release)
    next(answers)
    answers.cancel()
    server.until(lambda: COUNTING[model].closed == opened)
    served = server.plane.registry.find(model)
    server.until(lambda: served.in_flight == 0)
    assert served.statistics.failures == {"cancelled": opened}


@pytest.mark.parametrize("model", ["counting", "conversing"])
def test_a_deadline_ends_a_stream(server: Running, channel: grpc.Channel, model: str):
    method = channel.stream_stream(STREAM, None, pb.ModelStreamInferResponse.FromString)
    answers = method(iter([request_for(model, 5, hold=True).SerializeToString()]), timeout=0.5)
    try:  # in Triton's form the server may be the first to say so, in words
        ((_, said),) = summary(answers)
        assert (model, "deadline" in said) == ("counting", True)
    except grpc.RpcError:
        assert answers.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    server.until(lambda: COUNTING[model].closed == 1)


@pytest.mark.slow
def test_a_slow_reader_holds_the_model_back(server: Running, channel: grpc.Channel):
    answers = triton_stream(channel, [request_for("counting", 200, size=1_000_000)])
    model = COUNTING["counting"]
    server.until(lambda: model.given > 5)
    seen = -1
    while seen != model.given:
        seen = model.given
        time.sleep(0.3)  # that nothing more is made can only be seen by waiting
    assert seen < 100
    assert [number(answer.infer_response) for answer in answers] == list(range(200))


# MLServer's form: one call of the model takes the whole stream


def test_a_whole_stream_is_a_conversation(channel: grpc.Channel):
    requests: queue.Queue[Any] = queue.Queue()
    answers = mlserver_stream(channel, iter(requests.get, None))
    requests.put(request_for("conversing", 2, "a"))
    first = next(answers)
    assert (first.model_name, first.id, number(first), len(first.raw_output_contents)) == ("conversing", "a", 0, 2)
    assert "triton_final_response" not in first.parameters
    assert number(next(answers)) == 1
    requests.put(request_for("conversing", 1, "b"))
    third = next(answers)
    assert (third.id, number(third)) == ("a", 0)
    requests.put(None)
    assert list(answers) == []
    assert COUNTING["conversing"].opened == COUNTING["conversing"].closed == 1


@pytest.mark.parametrize(
    ("requests", "code", "said"),
    [
        ([request_for("conversing", 3, fail_at=1)], grpc.StatusCode.INVALID_ARGUMENT, "does not count to 1"),
        ([request_for("conversing", 3, break_at=1)], grpc.StatusCode.INTERNAL, "failed to predict"),
        (
            [request_for("conversing", 1), request_for("counting", 1)],
            grpc.StatusCode.INVALID_ARGUMENT,
            "another stream",
        ),
        (
            [request_for("conversing", 1), pb.ModelInferRequest(model_name="conversing")],
            grpc.StatusCode.INVALID_ARGUMENT,
            "input",
        ),
    ],
)
def test_an_error_ends_a_whole_stream_with_its_status(channel: grpc.Channel, requests: Any, code: Any, said: str):
    answers = mlserver_stream(channel, requests)
    assert number(next(answers)) == 0
    with pytest.raises(grpc.RpcError) as caught:
        list(answers)
    assert caught.value.code() == code
    assert said in caught.value.details()
    assert "secret" not in caught.value.details()


def test_a_first_request_that_is_wrong_is_answered_in_its_place(channel: grpc.Channel):
    """What its model takes is not known, so it is answered like any other."""
    (answer,) = triton_stream(channel, [pb.ModelInferRequest(model_name="nope")])
    assert "nope" in answer.error_message


def test_who_wants_tritons_end_gets_tritons_messages(channel: grpc.Channel):
    request = request_for("conversing", 2, "a", triton_enable_empty_final_response=True)
    got = summary(triton_stream(channel, [request, request_for("conversing", 1, "b")]))
    assert got == [("a", 0), ("a", 1), ("a", "end"), ("b", 0)]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_may_speak_tritons_form_only(engine: str, models: None):
    with (
        serving(engine, names=NAMES, grpc_stream_form="triton") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        got = summary(triton_stream(channel, [request_for("conversing", 2, "a"), request_for("conversing", 1, "b")]))
    assert got == [("a", 0), ("a", 1), ("b", 0)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["counting", "conversing"])
def test_responses_over_the_limit_are_refused(engine: str, model: str, models: None):
    settings = {"names": NAMES, "grpc_max_send_message_length": 10_000}
    with serving(engine, **settings) as server, grpc.insecure_channel(server.address) as channel:
        stream = triton_stream if model == "counting" else mlserver_stream
        request = request_for(model, 2, size=20_000)
        if model == "counting":
            ((_, said),) = summary(stream(channel, [request]))
            assert "grpc_max_send_message_length" in said
        else:
            with pytest.raises(grpc.RpcError, match="grpc_max_send_message_length"):
                list(stream(channel, [request]))
        server.until(lambda: COUNTING[model].closed == 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("model", ["counting", "conversing"])
def test_a_server_that_stops_waits_for_its_streams(engine: str, model: str, models: None):
    with serving(engine, names=NAMES) as server, grpc.insecure_channel(server.address) as channel:
        stream = triton_stream if model == "counting" else mlserver_stream
        answers = stream(channel, [request_for(model, 2, hold=True)])
        server.until(lambda: COUNTING[model].opened == 1)
        draining = asyncio.run_coroutine_threadsafe(server.server.drain(20), server.loop)
        server.loop.call_soon_threadsafe(COUNTING[model].go.release)
        next(answers)
        assert not draining.done()
        server.loop.call_soon_threadsafe(COUNTING[model].go.release)
        assert len(list(answers)) == 1
        draining.result(20)


def test_the_configuration_says_which_model_is_decoupled(server):
    """perf_analyzer and other clients of Triton's read it to know that a request may have several responses."""
    with triton.InferenceServerClient(server.address) as client:
        told = {name: client.get_model_config(name, as_json=True)["config"] for name in NAMES}
        assert {name: told[name].get("model_transaction_policy") for name in NAMES} == {
            "sum": None,
            "counting": {"decoupled": True},
            "conversing": None,
        }
        for name in NAMES:
            client.load_model(name, config=json.dumps(told[name]))
        with pytest.raises(InferenceServerException, match="'model_transaction_policy' cannot be changed"):
            client.load_model("sum", config='{"model_transaction_policy": {"decoupled": true}}')
