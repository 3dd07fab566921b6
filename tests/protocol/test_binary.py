"""The binary tensor data extension: its document's examples, every datatype, and sizes that do not add up."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol_support import plain_codec, request_facts, response_facts, tensor_facts, tensor_lists, tensors
from serinus.errors import InvalidInput, TooLarge
from serinus.protocol.binary_codec import parse_json_length
from serinus.protocol.raw import bfloat16_bits, bfloat16_values, decode, encode, round_to_bfloat16
from serinus.protocol.rest_codec import RestCodec
from serinus.protocol.types import InferRequest, InferResponse, Limits, RequestedOutput, Tensor, TensorSpec

CODECS = [pytest.param(RestCodec(), id="kernel"), pytest.param(plain_codec(), id="plain")]
EXAMPLE = (
    b'{ "model_name" : "mymodel", "inputs" : ['
    b'{ "name" : "input0", "shape" : [ 2, 2 ], "datatype" : "UINT32", "parameters" : { "binary_data_size" : 16 } },'
    b'{ "name" : "input1", "shape" : [ 3 ], "datatype" : "BOOL", "parameters" : { "binary_data_size" : 3 } } ],'
    b' "outputs" : [ { "name" : "output0", "parameters" : { "binary_data" : true } } ] }'
)
EXAMPLE_DATA = struct.pack("<4I", 1, 2, 3, 4) + b"\x01\x00\x01"
"""extension_binary_data.md, "Examples"."""


def head(*inputs: tuple[str, list[int], str, Any], **members: Any) -> bytes:
    """JSON of inputs given by name, shape, datatype and binary_data_size."""
    return json.dumps(
        {
            "inputs": [
                {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
                for name, shape, datatype, size in inputs
            ],
            **members,
        }
    ).encode()


def decode_body(codec: RestCodec, document: bytes, data: bytes, **options: Any) -> InferRequest:
    return codec.decode_request(document + data, model_name="m", json_length=len(document), **options)


@pytest.mark.parametrize("codec", CODECS)
def test_the_documents_request_is_read(codec: RestCodec):
    request = decode_body(codec, EXAMPLE, EXAMPLE_DATA)
    assert request.inputs[0].data.tolist() == [[1, 2], [3, 4]]
    assert request.inputs[1].data.tolist() == [True, False, True]
    assert [dict(tensor.parameters) for tensor in request.inputs] == [{}, {}]
    assert [dict(output.parameters) for output in request.outputs or ()] == [{"binary_data": True}]


def test_the_documents_response_is_written():
    request = decode_body(RestCodec(), EXAMPLE, EXAMPLE_DATA)
    response = InferResponse("mymodel", [Tensor.of("output0", np.arange(6, dtype=np.float32).reshape(3, 2))])
    encoded = RestCodec().encode_response(response, request)
    whole = encoded.to_bytes()
    assert encoded.content_type == "application/octet-stream"
    assert encoded.json_length == len(whole) - 24
    assert encoded.length == len(whole)
    assert json.loads(whole[: encoded.json_length])["outputs"] == [
        {"name": "output0", "shape": [3, 2], "datatype": "FP32", "parameters": {"binary_data_size": 24}}
    ]
    assert whole[encoded.json_length :] == struct.pack("<6f", *range(6))


@pytest.mark.parametrize("codec", CODECS)
def test_raw_and_json_tensors_mix_in_one_request(codec: RestCodec):
    document = json.dumps(
        {
            "inputs": [
                {"name": "a", "shape": [2], "datatype": "INT16", "parameters": {"binary_data_size": 4, "k": "v"}},
                {"name": "b", "shape": [2], "datatype": "FP64", "data": [0.5, 1]},
                {"name": "c", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
                {"name": "d", "shape": [1], "datatype": "BYTES", "data": ["text"]},
            ]
        }
    ).encode()
    data = struct.pack("<2h", -1, 5) + struct.pack("<I", 2) + b"\xff\x00"
    request = decode_body(codec, document, data)
    assert [tensor.data.tolist() for tensor in request.inputs] == [[-1, 5], [0.5, 1.0], [b"\xff\x00"], [b"text"]]
    assert [dict(tensor.parameters) for tensor in request.inputs] == [{"k": "v"}, {}, {}, {}]


@pytest.mark.parametrize(
    ("binary_data_output", "flags", "raw"),
    [
        (None, None, set()),
        (True, None, {"a", "b"}),
        (False, None, set()),
        (None, {"a": True}, {"a"}),
        (True, {"a": False, "b": None}, {"b"}),
        (False, {"b": True, "a": None}, {"b"}),
    ],
    ids=lambda value: str(
        sorted(value) if isinstance(value, set) else value
    ),  # a set has another order in another process
)
def test_an_outputs_own_flag_overrides_the_requests(binary_data_output: Any, flags: Any, raw: set[str]):
    members: dict[str, Any] = (
        {} if binary_data_output is None else {"parameters": {"binary_data_output": binary_data_output}}
    )
    if flags is not None:
        members["outputs"] = [
            {"name": name} if flag is None else {"name": name, "parameters": {"binary_data": flag}}
            for name, flag in flags.items()
        ]
    request = decode_body(RestCodec(), head(("x", [1], "UINT8", 1), **members), b"\x05")
    response = InferResponse("m", [Tensor.of("a", np.arange(3)), Tensor.of("b", np.array([b"\xff"], object))])
    if "b" not in raw:
        response.outputs = [response.outputs[0]]
    encoded = RestCodec().encode_response(response, request)
    outputs = json.loads(encoded.to_bytes()[: encoded.json_length])["outputs"]
    assert {output["name"] for output in outputs if "data" not in output} == raw & {"a", "b"}
    assert (encoded.json_length is None) == (not raw)
    assert response_facts(RestCodec().decode_response(encoded.to_bytes(), encoded.json_length)) == response_facts(
        response
    )


@given(tensor_lists(), st.integers(0, 7))
def test_a_request_comes_back_from_raw_bytes_as_it_was(given_tensors: list[Tensor], shift: int):
    request = InferRequest("m", given_tensors, "", "i", {"a": 1}, [RequestedOutput("y")], binary=True)
    encoded = RestCodec().encode_request(request, binary=True)
    assert encoded.json_length is not None
    whole = encoded.to_bytes()
    assert encoded.json_length % 8 == 0
    moved = whole[: encoded.json_length] + b" " * shift + whole[encoded.json_length :]
    for codec in (RestCodec(), plain_codec()):
        for _ in range(2):  # the second time from the template
            back = codec.decode_request(moved, model_name="m", json_length=encoded.json_length + shift)
            facts, expected = request_facts(back), request_facts(request)
            assert dict(back.parameters) == {"a": 1, "binary_data_output": True}
            assert facts[:4] + facts[5:] == expected[:4] + expected[5:]


@given(tensor_lists())
def test_a_response_comes_back_from_raw_bytes_as_it_was(given_tensors: list[Tensor]):
    response = InferResponse("m", given_tensors, "1", None)
    encoded = RestCodec().encode_response(response, InferRequest("m", [], binary=True))
    back = RestCodec().decode_response(encoded.to_bytes(), encoded.json_length)
    assert response_facts(back) == response_facts(response)


WRONG = [
    (head(("x", [2], "FP32", 8)), b"\0" * 7, "input 'x': 'binary_data_size' is 8, 7 bytes are left after the JSON"),
    (head(("x", [2], "FP32", 8)), b"\0" * 9, "1 bytes follow the last tensor"),
    (head(("x", [2], "FP32", 4)), b"\0" * 4, "input 'x': shape [2] of FP32 takes 8 bytes, 4 came"),
    (
        head(("x", [2**31], "FP32", 4)),
        b"\0" * 4,
        "input 'x': shape [2147483648] of FP32 takes 8589934592 bytes, 4 came",
    ),
    (
        head(("x", [2**62, 2**62], "FP32", 4)),
        b"\0" * 4,
        f"input 'x': shape [{2**62}, {2**62}] of FP32 takes {2**126} bytes, 4 came",
    ),
    (head(("x", [2**62], "BYTES", 4)), b"\0" * 4, f"input 'x': shape [{2**62}] of BYTES takes at least {2**64} bytes"),
    (head(("x", [1], "FP32", -4)), b"", "input 'x': 'binary_data_size' is -4, a number of bytes was expected"),
    (
        head(("x", [1], "FP32", "4")),
        b"",
        "input 'x': 'binary_data_size' is the string '4', a number of bytes was expected",
    ),
    (head(("x", [1], "FP32", 4.0)), b"", "input 'x': 'binary_data_size' is 4.0, a number of bytes was expected"),
    (head(("x", [1], "FP32", True)), b"", "input 'x': 'binary_data_size' is true, a number of bytes was expected"),
    (head(("x", [2], "BOOL", 2)), b"\x00\x02", "input 'x': byte 1 is 2, a BOOL is 0 or 1"),
    (head(("x", [1], "BYTES", 3)), b"\0\0\0", "input 'x': shape [1] of BYTES takes at least 4 bytes"),
    (head(("x", [1], "BYTES", 5)), b"\x02\0\0\0a", "input 'x': element 0 of 1 (shape [1]) claims 2 bytes, 1 are left"),
    (
        head(("x", [1], "BYTES", 8)),
        b"\xff\xff\xff\xffabcd",
        "input 'x': element 0 of 1 (shape [1]) claims 4294967295 bytes, 4 are left",
    ),
    (
        head(("x", [2], "BYTES", 9)),
        b"\x05\0\0\0abcde",
        "input 'x': element 1 of 2 (shape [2]): its 4-byte length is cut off at byte 9",
    ),
    (
        head(("x", [1], "BYTES", 6)),
        b"\x01\0\0\0ab",
        "input 'x': shape [1] holds 1 elements, which end at byte 5; 1 bytes are left",
    ),
    (
        b'{"inputs":[{"name":"x","shape":[1],"datatype":"UINT8","data":[1],"parameters":{"binary_data_size":1}}]}',
        b"\0",
        "input 'x': both 'data' and the parameter 'binary_data_size' are there",
    ),
    (b"{]", b"", "the request's JSON part is not JSON: "),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("document", "data", "message"), WRONG, ids=[case[-1][:50] for case in WRONG])
def test_sizes_that_do_not_add_up_are_refused(codec: RestCodec, document: bytes, data: bytes, message: str):
    with pytest.raises(InvalidInput) as caught:
        decode_body(codec, document, data)
    assert str(caught.value).startswith(message)


def test_raw_tensors_need_the_header():
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length says where that ends"):
        RestCodec().decode_request(head(("x", [1], "UINT8", 1)), model_name="m")
    for data in (b"1", b"\xff\xff\xff\xff", bytearray(b"\0")):
        with pytest.raises(InvalidInput, match=r"is not JSON.*only with the header Inference-Header-Content-Length"):
            RestCodec().decode_request(head(("x", [1], "UINT8", len(data))) + data, model_name="m")
    with pytest.raises(InvalidInput) as caught:
        RestCodec().decode_request(b'{"inputs": [}', model_name="m")
    assert "header" not in str(caught.value)


def test_a_tensor_beyond_the_limit_is_refused():
    limits = Limits(tensor_bytes=7)
    for codec in (RestCodec(limits), plain_codec(limits)):
        with pytest.raises(TooLarge, match="input 'x': 8 bytes decoded, the limit is 7"):
            decode_body(codec, head(("x", [2], "FP32", 8)), b"\0" * 8)
        with pytest.raises(TooLarge, match="input 'x': 4 bytes in 1 elements, the limit is 7"):
            decode_body(codec, head(("x", [1], "BYTES", 4)), b"\0" * 4)


@pytest.mark.parametrize("value", ["-1", "1.0", "x", "", "0x10", "+5", "٣", "1" * 30, "101"])
def test_a_bad_length_header_is_refused(value: str):
    with pytest.raises(InvalidInput, match="Inference-Header-Content-Length is "):
        parse_json_length(value, 100)


def test_a_good_length_header_is_read():
    assert [parse_json_length(value, 100) for value in ("0", "100", " 7 ")] == [0, 100, 7]


def test_an_image_is_read_without_touching_its_elements():
    image = np.arange(224 * 224 * 3, dtype=np.float32).reshape(1, 224, 224, 3)
    encoded = RestCodec().encode_request(InferRequest("m", [Tensor.of("x", image)]), binary=True)
    whole = encoded.to_bytes()
    for codec in (RestCodec(), plain_codec()):
        array = codec.decode_request(whole, model_name="m", json_length=encoded.json_length).inputs[0].data
        assert np.shares_memory(array, np.frombuffer(whole, np.uint8))
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, image, strict=True)


SPEC = TensorSpec("x", "FP32", (-1, 2))


@pytest.mark.parametrize(
    ("spec", "data", "shape"),
    [
        (SPEC, b"\0" * 24, (3, 2)),
        (SPEC, b"", (0, 2)),
        (TensorSpec("x", "FP32", (-1, 2, -1)), b"\0" * 24, (1, 2, 3)),
        (TensorSpec("x", "INT8", (4,)), b"\0" * 4, (4,)),
        (TensorSpec("x", "BYTES", (1,)), b"any \xff bytes", (1,)),
        (TensorSpec("x", "BYTES", (-1, 1)), b"", (1, 1)),
    ],
    ids=str,
)
def test_a_raw_body_is_the_only_input(spec: TensorSpec, data: bytes, shape: tuple[int, ...]):
    request = RestCodec().decode_request(data, model_name="m", json_length=0, inputs=[spec])
    (tensor,) = request.inputs
    tensor_facts(tensor)
    assert (tensor.name, tensor.datatype, tensor.shape, request.binary) == ("x", spec.datatype, shape, True)
    if spec.datatype == "BYTES":
        assert tensor.data.reshape(-1).tolist() == [data]


@pytest.mark.parametrize(
    ("specs", "data", "message"),
    [
        (None, b"", "a raw body needs a model of exactly 1 input, this one's are which are not known"),
        ([], b"", "a raw body needs a model of exactly 1 input, this one's are 0"),
        ([SPEC, SPEC], b"", "a raw body needs a model of exactly 1 input, this one's are 2"),
        ([SPEC], b"\0" * 7, "input 'x': 7 bytes are no whole number of FP32 rows of shape [-1, 2]"),
        (
            [TensorSpec("x", "FP32", (2, -1, -1))],
            b"",
            "input 'x': a raw body cannot tell the dimensions of [2, -1, -1]",
        ),
        ([TensorSpec("x", "FP32", (3,))], b"\0" * 8, "input 'x': shape [3] of FP32 takes 12 bytes, 8 came"),
        (
            [TensorSpec("x", "BYTES", (2,))],
            b"",
            "input 'x': a raw body is one element of BYTES, the model's shape is [2]",
        ),
        (
            [TensorSpec("x", "FP32", (-1, 0))],
            b"\0",
            "input 'x': 1 bytes are no whole number of FP32 rows of shape [-1, 0]",
        ),
    ],
    ids=str,
)
def test_a_raw_body_that_cannot_be_told_is_refused(specs: Any, data: bytes, message: str):
    with pytest.raises(InvalidInput) as caught:
        RestCodec().decode_request(data, model_name="m", json_length=0, inputs=specs)
    assert str(caught.value).startswith(message)


@given(tensors())
def test_raw_bytes_come_back_as_they_were_from_any_alignment(tensor: Tensor):
    data = bytes(encode(tensor.data, tensor.datatype))
    for shift in range(3):
        array = decode("t", tensor.datatype, tensor.shape, memoryview(b"\0" * shift + data)[shift:], Limits())
        assert tensor_facts(Tensor("t", tensor.datatype, tensor.shape, array))[-1] == tensor_facts(tensor)[-1]


def test_strings_are_sent_as_utf8():
    assert encode(np.array(["é", b"\xff"], object), "BYTES") == b"\x02\0\0\0\xc3\xa9\x01\0\0\0\xff"


def test_large_arrays_are_sent_from_their_own_memory():
    array = np.zeros(100_000, np.float32)
    assert np.shares_memory(np.frombuffer(encode(array, "FP32"), np.uint8), array)


def test_bfloat16_is_every_pattern_and_rounds_to_even():
    patterns = np.arange(2**16, dtype=np.uint16)
    back = bfloat16_bits(bfloat16_values(patterns))
    is_nan = np.isnan(bfloat16_values(patterns))
    np.testing.assert_array_equal(back[~is_nan], patterns[~is_nan])
    assert np.isnan(bfloat16_values(back[is_nan])).all()
    given_values = np.array([1.00390625, 1.01171875, -1.00390637, 3.4e38, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(
        round_to_bfloat16(given_values), np.array([1.0, 1.015625, -1.0078125, np.inf, np.inf, np.nan], np.float32)
    )
