"""gRPC messages at their bounds: lengths, names, numbers of 64 bits and fields that are not known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from serinus.errors import InvalidInput, ModelFailed, TooLarge
from serinus.protocol import _open_inference_pb2 as pb
from serinus.protocol.proto_codec import decode_request, encode_request, encode_response
from serinus.protocol.types import InferRequest, InferResponse, Limits, RequestedOutput, Tensor


def message(datatype: str = "INT32", shape: tuple[int, ...] = (1,), **contents: Any) -> Any:
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype=datatype, shape=shape, contents=contents or None)
    return request


def decode(request: Any, **limits: int) -> InferRequest:
    return decode_request(request.SerializeToString(), limits=Limits(**limits))


PACKED = {
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BOOL": ("bool_contents", np.bool_),
}


@pytest.mark.parametrize("datatype", PACKED)
@pytest.mark.parametrize("count", [1, 2, 31, 32, 127, 128, 5000])
def test_typed_values_arrive_and_leave_whatever_the_length_of_their_length(datatype: str, count: int):
    field, dtype = PACKED[datatype]
    array = (np.arange(count) % 2).astype(dtype)
    request = InferRequest("m", [Tensor.of("x", array)])
    sent = encode_request(request, raw=False)
    assert list(getattr(pb.ModelInferRequest.FromString(sent).inputs[0].contents, field)) == array.tolist()
    got = decode_request(sent).inputs[0].data
    assert got.tolist() == array.tolist()
    assert got.dtype == dtype


@pytest.mark.parametrize("datatype", PACKED)
def test_a_field_that_is_not_known_beside_the_values_is_skipped(datatype: str):
    field, dtype = PACKED[datatype]
    request = message(datatype, (3,), **{field: [1, 0, 1]})
    request.inputs[0].contents.MergeFromString(b"\xfa\x3e\x04abcd")  # field 1007, four bytes
    assert len(request.inputs[0].contents.SerializeToString()) > 7
    got = decode(request).inputs[0].data
    assert (got.tolist(), got.dtype) == (np.array([1, 0, 1], dtype).tolist(), dtype)


@pytest.mark.parametrize(
    ("datatype", "field", "low", "high"),
    [
        ("INT8", "int_contents", -128, 127),
        ("INT16", "int_contents", -32768, 32767),
        ("UINT8", "uint_contents", 0, 255),
        ("UINT16", "uint_contents", 0, 65535),
    ],
)
def test_narrow_integers_are_held_to_their_bounds_and_the_message_names_the_first_beyond(
    datatype: str, field: str, low: int, high: int
):
    assert decode(message(datatype, (2,), **{field: [low, high]})).inputs[0].data.tolist() == [low, high]
    for beyond in {high + 1, low - 1} - {-1}:
        with pytest.raises(InvalidInput) as caught:
            decode(message(datatype, (4,), **{field: [low, high, beyond, beyond]}))
        assert f"{field}[2] is {beyond}, {datatype} holds {low} to {high}" in str(caught.value)
    assert decode(message(datatype, (0,))).inputs[0].data.tolist() == []


@pytest.mark.parametrize(("most", "fits"), [(16, True), (15, False)])
def test_the_bytes_of_a_tensor_are_bounded_to_the_byte(most: int, fits: bool):
    request = message("INT32", (4,), int_contents=[1, 2, 3, 4])
    if fits:
        assert decode(request, tensor_bytes=most).inputs[0].data.tolist() == [1, 2, 3, 4]
    else:
        with pytest.raises(TooLarge, match="16 bytes decoded, the limit is 15"):
            decode(request, tensor_bytes=most)


@pytest.mark.parametrize(
    ("name", "size"),
    [("a" * 12, 12), ("é" * 6, 12), ("\U0001f426" * 3, 12), ("a" * 5, 5)],
    ids=["ascii", "two", "four", "short"],
)
def test_a_parameters_name_is_bounded_in_bytes(name: str, size: int):
    request = message(int_contents=[1])
    request.parameters[name].int64_param = 1
    assert decode(request, name_bytes=12).parameters == {name: 1}
    with pytest.raises(InvalidInput, match=f"a parameter's name has {size} bytes, the limit is {size - 1}"):
        decode(request, name_bytes=size - 1)


@pytest.mark.parametrize("count", [2, 3])
def test_outputs_that_are_asked_for_are_bounded_in_number(count: int):
    request = message(int_contents=[1])
    for n in range(count):
        request.outputs.add(name=f"y{n}")
    if count == 2:
        assert [output.name for output in decode(request, tensors=2).outputs or ()] == ["y0", "y1"]
    else:
        with pytest.raises(TooLarge, match="'outputs' names 3 tensors, the limit is 2"):
            decode(request, tensors=2)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (True, "bool_param"),
        (False, "bool_param"),
        (0, "int64_param"),
        (2**63 - 1, "int64_param"),
        (-(2**63), "int64_param"),
        (2**63, "uint64_param"),
        (2**64 - 1, "uint64_param"),
        (2**64, "double_param"),
        (-(2**63) - 1, "double_param"),
        (0.5, "double_param"),
        ("t", "string_param"),
        ("", "string_param"),
    ],
    ids=str,
)
def test_a_parameter_travels_in_the_field_that_holds_it(value: Any, kind: str):
    sent = pb.ModelInferRequest.FromString(encode_request(InferRequest("m", [], parameters={"p": value})))
    assert sent.parameters["p"].WhichOneof("parameter_choice") == kind
    expected = float(value) if kind == "double_param" else value
    assert getattr(sent.parameters["p"], kind) == expected
    response = InferResponse(
        "m", [Tensor("y", "INT32", (1,), np.array([1], np.int32), {"p": value})], parameters={"p": value}
    )
    told = pb.ModelInferResponse.FromString(encode_response(response, InferRequest("m", [])))
    for parameter in (told.parameters["p"], told.outputs[0].parameters["p"]):
        assert getattr(parameter, kind) == expected


def test_what_no_parameter_holds_is_the_models_failure():
    response = InferResponse("m", [], parameters={"p": [1]})
    with pytest.raises(ModelFailed, match="parameter 'p' is an array, a string, number or boolean was expected"):
        encode_response(response, InferRequest("m", []))


@pytest.mark.parametrize("raw", [True, False])
def test_a_clients_request_says_all_that_it_has(raw: bool):
    tensors = [Tensor.of("x", np.array([1, 2], np.int16)), Tensor.of("t", np.array([b"a", "é"], object))]
    outputs = [RequestedOutput("y", {"classification": 3}), RequestedOutput("z")]
    request = InferRequest("m", tensors, "3", "42", outputs=outputs)
    sent = pb.ModelInferRequest.FromString(encode_request(request, raw=raw))
    assert (sent.model_name, sent.model_version, sent.id) == ("m", "3", "42")
    assert [output.name for output in sent.outputs] == ["y", "z"]
    assert sent.outputs[0].parameters["classification"].int64_param == 3
    assert len(sent.raw_input_contents) == (2 if raw else 0)
    got = decode_request(sent.SerializeToString())
    assert [tensor.data.tolist() for tensor in got.inputs] == [[1, 2], [b"a", "é".encode()]]


def test_half_floats_make_a_request_raw_that_was_to_be_typed():
    tensors = [Tensor.of("x", np.array([1.5], np.float16)), Tensor.of("y", np.array([2], np.int32))]
    sent = pb.ModelInferRequest.FromString(encode_request(InferRequest("m", tensors), raw=False))
    assert len(sent.raw_input_contents) == 2
    answered = encode_response(InferResponse("m", tensors), InferRequest("m", []))
    assert len(pb.ModelInferResponse.FromString(answered).raw_output_contents) == 2
