"""A decoded request has all that was sent and nothing that was not, whichever way it was decoded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from protocol_support import plain_codec
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol.proto_codec import decode_request
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, TensorSpec

HEADERS = {"x-request-id": "9"}


def from_json(codec: RestCodec, headers: Mapping[str, str], **members: Any) -> InferRequest:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
    document = json.dumps({"inputs": [tensor], **members}).encode()
    return codec.decode_request(document, model_name="m", model_version="3", headers=headers)


def from_binary(codec: RestCodec, headers: Mapping[str, str], **members: Any) -> InferRequest:
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "parameters": {"binary_data_size": 8}}
    document = json.dumps({"inputs": [tensor], **members}).encode()
    raw = np.array([1, 2], np.float32).tobytes()
    return codec.decode_request(
        document + raw, model_name="m", model_version="3", headers=headers, json_length=len(document)
    )


def from_message(headers: Mapping[str, str], **members: Any) -> InferRequest:
    message = pb.ModelInferRequest(model_name="m", model_version="3", id=members.get("id", ""))
    message.inputs.add(name="x", datatype="FP32", shape=[1, 2], contents={"fp32_contents": [1, 2]})
    for key, value in members.get("parameters", {}).items():
        message.parameters[key].int64_param = value
    for output in members.get("outputs", []):
        message.outputs.add(name=output["name"])
    return decode_request(message.SerializeToString(), headers=headers)


WAYS: dict[str, Any] = {
    "JSON by the kernel": lambda headers, **members: from_json(RestCodec(), headers, **members),
    "JSON the ordinary way": lambda headers, **members: from_json(plain_codec(), headers, **members),
    "binary by the kernel": lambda headers, **members: from_binary(RestCodec(), headers, **members),
    "binary the ordinary way": lambda headers, **members: from_binary(plain_codec(), headers, **members),
    "gRPC": from_message,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_request_that_says_little_says_nothing_more(way: str):
    request = WAYS[way](HEADERS)
    assert (request.model_name, request.model_version, request.headers) == ("m", "3", HEADERS)
    assert (request.id, request.outputs, request.deadline, request.priority) == (None, None, None, 0)
    assert request.parameters == {}
    assert request.binary is False
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, tensor.shape, tensor.data.tolist()) == ("x", "FP32", (1, 2), [[1, 2]])
    assert tensor.nested is False


@pytest.mark.parametrize("way", WAYS)
def test_a_request_that_says_much_keeps_it(way: str):
    request = WAYS[way]({}, id="42", parameters={"timeout": 7, "priority": 2}, outputs=[{"name": "z"}, {"name": "y"}])
    assert (request.id, request.headers, request.deadline) == ("42", {}, None)
    assert request.parameters == {"timeout": 7, "priority": 2}
    assert request.priority == 0, "the parameter is the plane's to read"
    assert [(output.name, output.parameters) for output in request.outputs or ()] == [("z", {}), ("y", {})]


@pytest.mark.parametrize("codec", [RestCodec(), plain_codec()], ids=["kernel", "ordinary"])
def test_a_raw_body_is_the_only_input_of_a_request_without_more(codec: RestCodec):
    spec = TensorSpec("x", "INT16", (-1,))
    request = codec.decode_request(b"\1\0\2\0", model_name="m", json_length=0, inputs=[spec], headers=HEADERS)
    assert (request.model_name, request.model_version, request.headers, request.binary) == ("m", "", HEADERS, True)
    assert (request.id, request.outputs, request.deadline, request.priority, request.parameters) == (
        None,
        None,
        None,
        0,
        {},
    )
    assert [(tensor.name, tensor.data.tolist()) for tensor in request.inputs] == [("x", [1, 2])]


@pytest.mark.parametrize("codec", [RestCodec(), plain_codec()], ids=["kernel", "ordinary"])
def test_data_that_is_nested_as_its_shape_is_marked_and_flat_data_is_not(codec: RestCodec):
    for data, nested in (([1, 2], False), ([[1, 2]], True)):
        tensor = {"name": "x", "shape": [1, 2], "datatype": "INT32", "data": data}
        document = json.dumps({"inputs": [tensor]}).encode()
        for _ in range(2):  # a form that is new, and one that was seen
            (got,) = codec.decode_request(document, model_name="m").inputs
            assert (got.nested, got.data.tolist()) == (nested, [[1, 2]])


@pytest.mark.parametrize("way", WAYS)
def test_what_two_requests_of_one_form_carry_is_their_own(way: str):
    first = WAYS[way]({}, parameters={"a": 1})
    second = WAYS[way]({}, parameters={"a": 1})
    first.parameters["b"] = 2
    assert second.parameters == {"a": 1}
