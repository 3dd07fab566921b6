"""The in-memory client that authors test their models with."""

from __future__ import annotations

import asyncio
import doctest
from typing import Any

import numpy as np
import orjson
import pytest

import serinus.testing
from dataplane_support import Doubler
from deferred import Deferred
from serinus import InferRequest, InferResponse, RequestedOutput, RequestModel, Tensor
from serinus.errors import InvalidInput, ModelFailed, NotSupported, SerinusError
from serinus.protocol import proto_codec
from serinus.settings import ModelSettings
from serinus.testing import InMemoryClient
from stream_support import Conversing
from waiting import until

kserve_classes = Deferred("kserve_classes")

X = np.array([[1, 2], [3, 4]], np.float32)


def test_the_example_of_the_module_is_right():
    result = doctest.testmod(serinus.testing)
    assert result.attempted > 3
    assert result.failed == 0


def test_arrays_in_arrays_out_and_errors_as_a_client_gets_them():
    with InMemoryClient(Doubler) as client:
        assert client.metadata.name == "model"
        assert isinstance(client.model, Doubler)
        assert np.array_equal(client.infer({"x": X}, outputs=["y"])["y"], 2 * X)
        with pytest.raises(InvalidInput, match="input 'z' is not one of"):
            client.infer({"z": X})
        classes = client.infer({"x": X}, outputs=[RequestedOutput("y", {"classification": 1})])
        assert classes["y"].tolist() == [[b"4.0:1"], [b"8.0:1"]]


def test_requests_sent_together_are_one_batch():
    with InMemoryClient(Doubler) as client:
        requests = [InferRequest("model", [Tensor.of("x", X + i)]) for i in range(3)]
        bad = InferRequest("model", [Tensor.of("x", X * 0 + 13)])
        client.model.sizes.clear()  # type: ignore[attr-defined] # Doubler's own
        answers = client.together(*requests, bad)
        assert [type(answer) for answer in answers] == [InferResponse] * 3 + [ModelFailed]
        assert client.model.sizes[0] == 8  # type: ignore[attr-defined] # as above


def test_streams():
    with InMemoryClient(Conversing) as client:
        first, second = (InferRequest("model", [Tensor.of("count", np.array([n]))], id=str(n)) for n in (2, 1))
        responses = client.stream(first, second)
        assert next(responses).output("n").data.tolist() == [0]
        assert client.model.opened == 1  # type: ignore[attr-defined] # Conversing's own
        assert [(answer.id, answer.output("n").data.tolist()) for answer in responses] == [("2", [1]), ("2", [0])]
        responses = client.stream(first)
        next(responses)
        responses.close()
        client.run(until(lambda: client.model.closed == 2))  # type: ignore[attr-defined] # as above
        with pytest.raises(InvalidInput, match="count"):
            next(client.stream(InferRequest("model", [Tensor.of("n", X)])))
    with InMemoryClient(Doubler) as client:
        (answer,) = client.stream(InferRequest("model", [Tensor.of("x", X)]))
        assert np.array_equal(answer.output("y").data, 2 * X)


def test_a_model_that_only_streams_says_so():
    class Streaming(RequestModel):
        streams = True

    with InMemoryClient(Streaming) as client, pytest.raises(NotSupported, match="infer_stream"):
        client.infer({"x": X})


def test_the_bytes_of_rest():
    with InMemoryClient(Doubler) as client:
        body = orjson.dumps(
            {"id": "7", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2.5]}]}
        )
        status, answer, encoded = client.rest(body)
        assert status == 200
        assert encoded is not None
        document = orjson.loads(answer)
        assert document["id"] == "7"
        assert document["outputs"] == [{"name": "y", "shape": [1, 2], "datatype": "FP32", "data": [2.0, 5.0]}]
        status, answer, encoded = client.rest(body.replace(b"FP32", b"FP64"))
        assert (status, encoded) == (400, None)
        assert orjson.loads(answer) == {"error": "input 'x': datatype is FP64, the model takes FP32"}
        assert client.rest(b"{")[0] == 400
        assert client.rest_v1(b'{"instances": [[1, 2]]}') == (200, b'{"predictions":[[2.0,4.0]]}')
        assert client.rest_v1(b'{"instances": 1}')[0] == 400


def test_the_bytes_of_grpc():
    with InMemoryClient(Doubler) as client:
        message = proto_codec.encode_request(InferRequest("model", [Tensor.of("x", X)], id="7"))
        status, answer = client.grpc(bytes(message))
        assert status == 0
        response = proto_codec.decode_response(answer)
        assert response.id == "7"
        assert np.array_equal(response.outputs[0].data, 2 * X)
        status, text = client.grpc(bytes(proto_codec.encode_request(InferRequest("other", [Tensor.of("x", X)]))))
        assert (status, text) == (5, b"model 'other' is not known; the models here are 'model'")
        assert client.grpc(b"\xff\xff")[0] == 3


def test_a_request_model_gets_headers():
    class Who(RequestModel):
        async def infer(self, request: Any) -> InferResponse:
            who = np.array([request.headers["who"].encode()], object)
            return InferResponse("", [Tensor.of("who", who)])

    with InMemoryClient(Who, name="w") as client:
        assert client.infer({}, headers={"who": "me"})["who"].tolist() == [b"me"]


def test_a_model_that_does_not_load_is_told_on_entering_and_a_closed_client_says_so():
    class Broken(Doubler):
        def load(self) -> None:
            raise SerinusError("no file")

    client = InMemoryClient(Broken)
    with pytest.raises(SerinusError, match="no file"), client:
        pass
    with pytest.raises(RuntimeError, match="not open"):
        client.infer({"x": X})


@pytest.mark.parametrize("way", ["class", "instance", "settings"])
@pytest.mark.parametrize("transformed", [False, True])
def test_a_kserve_class_is_tested_as_it_is_with_and_without_its_transformer(way: str, transformed: bool):
    made = {
        "class": lambda: kserve_classes.Sums,
        "instance": lambda: kserve_classes.Sums("model"),
        "settings": lambda: ModelSettings(name="model", implementation="kserve_classes:Sums"),
    }
    model = made[way]()
    transformer = (
        ("kserve_classes:PlusOneTimesTen" if way == "settings" else kserve_classes.PlusOneTimesTen)
        if transformed
        else None
    )
    with InMemoryClient(model, transformer=transformer) as client:
        status, answer = client.rest_v1(b'{"instances": [[1, 2], [3, 4]]}')
    assert (status, orjson.loads(answer) if isinstance(answer, bytes) else answer) == (
        200,
        {"predictions": [50, 90] if transformed else [3, 7]},
    )


def test_what_is_no_model_is_told():
    with pytest.raises(SerinusError, match=r"expected a subclass of serinus\.model\.Model"), InMemoryClient(dict):
        pass


def test_a_closed_client_and_one_in_a_coroutine_say_what_to_do():
    client = InMemoryClient(Doubler)
    with client:
        pass
    with pytest.raises(RuntimeError, match="make another"), client:
        pass

    async def inside() -> None:
        with InMemoryClient(Doubler):
            pass

    with pytest.raises(RuntimeError, match="not coroutines"):
        asyncio.run(inside())
