"""gRPC messages whose numbers of things must agree: values and shapes, tensors and limits, what is there and what is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serinus.errors import InvalidInput, TooLarge, UpstreamFailed
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol.proto_codec import (
    decode_repository_parameters,
    decode_request,
    decode_response,
    index_message,
    statistics_message,
)
from serinus.protocol.types import InferRequest, Limits

TYPED: dict[str, tuple[str, Any]] = {
    "BOOL": ("bool_contents", True),
    "UINT8": ("uint_contents", 1),
    "UINT64": ("uint64_contents", 1),
    "INT16": ("int_contents", 1),
    "INT32": ("int_contents", 1),
    "INT64": ("int64_contents", 1),
    "FP32": ("fp32_contents", 1.0),
    "FP64": ("fp64_contents", 1.0),
    "BYTES": ("bytes_contents", b"a"),
}


def message(inputs: int = 1, shape: tuple[int, ...] = (1,)) -> Any:
    request = pb.ModelInferRequest(model_name="m")
    for n in range(inputs):
        request.inputs.add(name=f"x{n}", datatype="INT32", shape=shape, contents={"int_contents": [1]})
    return request


def decode(request: Any, **limits: int) -> InferRequest:
    return decode_request(request.SerializeToString(), limits=Limits(**limits))


@pytest.mark.parametrize("datatype", TYPED)
@pytest.mark.parametrize("count", [0, 1, 2, 4, 5])
def test_typed_values_are_as_many_as_the_shape_says(datatype: str, count: int):
    field, value = TYPED[datatype]
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype=datatype, shape=[3], contents={field: [value] * count})
    with pytest.raises(InvalidInput) as caught:
        decode(request)
    assert str(caught.value) == f"input 'x': shape [3] holds 3 values, '{field}' has {count}"


@pytest.mark.parametrize("datatype", TYPED)
def test_a_shape_with_a_zero_holds_nothing(datatype: str):
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype=datatype, shape=[2, 0])
    (tensor,) = decode(request).inputs
    assert (tensor.shape, tensor.data.shape, tensor.data.tolist()) == ((2, 0), (2, 0), [[], []])


def test_contents_without_a_value_beside_raw_ones_are_none():
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\7\0\0\0"])
    request.inputs.add(name="x", datatype="INT32", shape=[1]).contents.SetInParent()
    assert request.inputs[0].HasField("contents")
    decoded = decode(request)
    assert (decoded.binary, decoded.inputs[0].data.tolist()) == (True, [7])


@pytest.mark.parametrize("raws", [1, 3])
def test_raw_contents_are_as_many_as_the_inputs(raws: int):
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\1\0\0\0"] * raws)
    for name in ("x", "y"):
        request.inputs.add(name=name, datatype="INT32", shape=[1])
    with pytest.raises(InvalidInput, match=f"'raw_input_contents' holds {raws} tensors, 'inputs' names 2"):
        decode(request)


def test_as_many_inputs_as_the_limit_are_taken_and_one_more_is_not():
    assert len(decode(message(3), tensors=3).inputs) == 3
    with pytest.raises(TooLarge, match="the message holds 3 inputs, the limit is 2"):
        decode(message(3), tensors=2)


def test_a_message_as_long_as_the_limit_is_taken_and_a_longer_one_is_not():
    size = len(message().SerializeToString())
    assert decode(message(), body_bytes=size).model_name == "m"
    with pytest.raises(TooLarge, match=f"the message has {size} bytes, the limit is {size - 1}"):
        decode(message(), body_bytes=size - 1)


def test_as_many_dimensions_as_the_limit_are_taken_and_one_more_is_not():
    assert decode(message(shape=(1, 1, 1)), rank=3).inputs[0].data.shape == (1, 1, 1)
    with pytest.raises(InvalidInput, match="'shape' has 3 dimensions, the limit is 2"):
        decode(message(shape=(1, 1, 1)), rank=2)


@pytest.mark.parametrize("where", ["request", "input", "output"])
def test_as_many_parameters_as_the_limit_are_taken_and_one_more_is_not(where: str):
    request = message()
    target = {"request": request, "input": request.inputs[0], "output": request.outputs.add(name="y")}[where]
    for n in range(3):
        target.parameters[f"p{n}"].int64_param = n
    decoded = decode(request, tensors=3)
    found: Any = {"request": decoded, "input": decoded.inputs[0], "output": (decoded.outputs or ())[0]}[where]
    assert found.parameters == {"p0": 0, "p1": 1, "p2": 2}
    with pytest.raises(TooLarge, match=r"has 3 parameters, the limit is 2 \(max_tensors\)"):
        decode(request, tensors=2)


def test_a_name_without_a_value_is_shown_to_its_fortieth_letter():
    request = message()
    request.parameters["n" * 60].SetInParent()
    with pytest.raises(InvalidInput, match=f"parameter '{'n' * 40}' has no value"):
        decode(request)
    load = pb.RepositoryModelLoadRequest(model_name="m")
    load.parameters["n" * 60].SetInParent()
    with pytest.raises(InvalidInput, match=f"parameter '{'n' * 40}' has no value"):
        decode_repository_parameters(load)


def test_a_load_request_keeps_every_parameter_with_its_type():
    load = pb.RepositoryModelLoadRequest(model_name="m", repository_name="r")
    load.parameters["config"].string_param = "{}"
    load.parameters["flag"].bool_param = False
    load.parameters["number"].int64_param = 0
    assert decode_repository_parameters(load) == ("m", {"config": "{}", "flag": False, "number": 0})


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (pb.ModelInferResponse(raw_output_contents=[b""]), "'raw_output_contents' holds 1 tensors, 'outputs' names 0"),
        (
            pb.ModelInferResponse(outputs=[{"name": "y", "datatype": "INT9"}]),
            "output 'y': 'datatype' is 'INT9'",
        ),
        (
            pb.ModelInferResponse(outputs=[{"name": "y", "datatype": "INT8", "shape": [1]}]),
            "output 'y': shape [1] holds 1 values, 'int_contents' has 0",
        ),
    ],
    ids=["count", "datatype", "values"],
)
def test_a_predictors_answer_that_cannot_be_read_is_its_fault_and_says_where(response: Any, said: str):
    with pytest.raises(UpstreamFailed) as caught:
        decode_response(response.SerializeToString())
    assert str(caught.value).startswith(f"the predictor's answer cannot be read: {said}")


def test_a_predictors_answer_larger_than_the_limit_is_its_fault():
    response = pb.ModelInferResponse()
    response.outputs.add(name="y", datatype="FP64", shape=[2], contents={"fp64_contents": [1, 2]})
    assert decode_response(response.SerializeToString(), limits=Limits(tensor_bytes=16)).outputs[0].shape == (2,)
    with pytest.raises(UpstreamFailed, match="16 bytes decoded, the limit is 15"):
        decode_response(response.SerializeToString(), limits=Limits(tensor_bytes=15))


def test_a_predictors_answer_without_an_id_has_none():
    assert decode_response(pb.ModelInferResponse(model_name="m").SerializeToString()).id is None
    assert decode_response(pb.ModelInferResponse(model_name="m", id="7").SerializeToString()).id == "7"


def test_the_index_tells_the_reason_and_leaves_out_what_is_not_there():
    rows = [
        {"name": "m", "version": "2", "state": "UNAVAILABLE", "reason": "no file"},
        {"name": "n", "version": None, "state": "READY", "reason": None},
    ]
    assert [(row.name, row.version, row.state, row.reason) for row in index_message(rows).models] == [
        ("m", "2", "UNAVAILABLE", "no file"),
        ("n", "", "READY", ""),
    ]


def test_statistics_that_are_not_told_are_zero():
    (told,) = statistics_message([{"name": "m"}]).model_stats
    assert (told.name, told.version) == ("m", "")
    assert (told.last_inference, told.inference_count, told.execution_count) == (0, 0, 0)
    assert not told.batch_stats
    assert not told.memory_usage
    assert not told.response_stats


def test_a_narrow_integers_first_value_beyond_is_named_where_it_is_too_small():
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="INT8", shape=[2, 2], contents={"int_contents": [0, 1, -129, 500]})
    with pytest.raises(InvalidInput, match=r"int_contents\[2\] is -129, INT8 holds -128 to 127"):
        decode(request)


def test_raw_values_of_two_inputs_are_not_exchanged():
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[b"\1\0\0\0", b"\2\0\3\0"])
    request.inputs.add(name="a", datatype="INT32", shape=[1])
    request.inputs.add(name="b", datatype="INT16", shape=[2])
    first, second = decode(request).inputs
    assert (first.data.tolist(), second.data.tolist()) == ([1], [2, 3])
    assert (first.data.dtype, second.data.dtype) == (np.int32, np.int16)
