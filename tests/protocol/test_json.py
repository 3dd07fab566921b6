"""V2 REST bodies without raw tensors: the protocol document's examples, every datatype, and every way to be wrong."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from protocol_support import (
    ALL_DATATYPES,
    body,
    plain_codec,
    request_facts,
    response_facts,
    tensor_facts,
    tensor_json,
    tensor_lists,
)
from serinus.errors import InvalidInput, ModelFailed, SerinusError, TooLarge, UpstreamFailed
from serinus.protocol.json_kernel import JsonKernel
from serinus.protocol.rest_codec import RestCodec, error_json, index_json, metadata_json, statistics_json
from serinus.protocol.types import (
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    Tensor,
    TensorSpec,
)

CODECS = [pytest.param(RestCodec(), id="kernel"), pytest.param(plain_codec(), id="plain")]
EXAMPLE = (
    b'{"id" : "42", "inputs" : [{"name" : "input0", "shape" : [ 2, 2 ], "datatype" : "UINT32", "data" : [ 1, 2, 3, 4 ]},'
    b' {"name" : "input1", "shape" : [ 3 ], "datatype" : "BOOL", "data" : [ true, false, true ]}],'
    b' "outputs" : [{"name" : "output0"}]}'
)
"""inference_rest.md, "Inference Request Examples", but that its BOOL tensor of shape [3] has three values, not one."""


def decode(document: bytes, codec: RestCodec | None = None, **options: Any) -> InferRequest:
    return (codec or RestCodec()).decode_request(document, model_name="m", **options)


@pytest.mark.parametrize("codec", CODECS)
def test_the_specifications_request_is_read(codec: RestCodec):
    request = codec.decode_request(EXAMPLE, model_name="mymodel", model_version="3", headers={"a": "b"})
    assert (request.model_name, request.model_version, request.id, request.headers) == (
        "mymodel",
        "3",
        "42",
        {"a": "b"},
    )
    assert [output.name for output in request.outputs or ()] == ["output0"]
    np.testing.assert_array_equal(request.inputs[0].data, np.array([[1, 2], [3, 4]], np.uint32), strict=True)
    np.testing.assert_array_equal(request.inputs[1].data, np.array([True, False, True]), strict=True)
    assert request.binary is False


@pytest.mark.parametrize("codec", CODECS)
def test_the_specifications_own_slip_is_refused(codec: RestCodec):
    with pytest.raises(InvalidInput, match=re.escape("input 'input1': shape [3] holds 3 values, data has 1")):
        decode(EXAMPLE.replace(b"true, false, true", b"true"), codec)


def test_the_specifications_response_is_written():
    output = Tensor.of("output0", np.array([[1.0, 1.1], [2.0, 2.1], [3.0, 3.1]], np.float32))
    encoded = RestCodec().encode_response(InferResponse("mymodel", [output], id="42"), decode(EXAMPLE))
    assert (encoded.json_length, encoded.content_type, encoded.length) == (
        None,
        "application/json",
        len(encoded.to_bytes()),
    )
    assert json.loads(encoded.to_bytes()) == {
        "model_name": "mymodel",
        "id": "42",
        "outputs": [{"name": "output0", "shape": [3, 2], "datatype": "FP32", "data": [1.0, 1.1, 2.0, 2.1, 3.0, 3.1]}],
    }


@pytest.mark.parametrize("data", [[1, 2, 4, 5], [[1, 2], [4, 5]]], ids=["flat", "nested"])
@pytest.mark.parametrize("codec", CODECS)
def test_data_may_be_nested_or_flat(codec: RestCodec, data: Any):
    request = decode(body(tensor_json("INT64", [2, 2], data)), codec)
    np.testing.assert_array_equal(request.inputs[0].data, np.array([[1, 2], [4, 5]]), strict=True)


@pytest.mark.parametrize("codec", CODECS)
def test_every_datatype_is_read(codec: RestCodec):
    for datatype in ALL_DATATYPES:
        data = {"BOOL": [True, False], "BYTES": ["a", "ünï\u0000"]}.get(datatype, [1, 0])
        tensor = decode(body(tensor_json(datatype, [1, 2], data)), codec).inputs[0]
        tensor_facts(tensor)
        expected = [[b"a", "ünï\u0000".encode()]] if datatype == "BYTES" else [[1, 0]]
        assert tensor.data.tolist() == expected


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("shape", "data"),
    [([0], []), ([0, 30], []), ([2, 0], [[], []]), ([2, 0], []), ([], [5]), ([1, 1, 1], [[[5]]])],
    ids=str,
)
def test_empty_and_scalar_shapes_are_shapes(codec: RestCodec, shape: list[int], data: Any):
    tensor = decode(body(tensor_json("FP32", shape, data)), codec).inputs[0]
    assert tensor.data.shape == tuple(shape)
    assert tensor.data.reshape(-1).tolist() == [5.0] * tensor.data.size


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("datatype", "data", "expected"),
    [
        ("BOOL", [0, 1], [False, True]),
        ("INT32", [2.0, 1e3], [2, 1000]),
        ("UINT64", [2**64 - 1, 2**53 + 1], [2**64 - 1, 2**53 + 1]),
        ("INT64", [-(2**63), 2**63 - 1], [-(2**63), 2**63 - 1]),
        ("INT8", [-128, 127], [-128, 127]),
        ("FP16", [0.1, 65504], [float(np.float16(0.1)), 65504.0]),
        ("BF16", [1.00390625, 1.01171875], [1.0, 1.015625]),
        ("FP64", [0.1, 5e-324], [0.1, 5e-324]),
        ("BYTES", ["\U0001f426", ""], ["\U0001f426".encode(), b""]),
    ],
)
def test_values_arrive_exactly(codec: RestCodec, datatype: str, data: list[Any], expected: list[Any]):
    assert decode(body(tensor_json(datatype, [2], data)), codec).inputs[0].data.tolist() == expected


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([1], [None]),
        ([4], [1, None, None, -2.5]),
        ([2, 2], [1, None, None, -2.5]),
        ([2, 2], [[1, None], [None, -2.5]]),
        ([2, 1, 2], [[[None, None]], [[None, None]]]),
    ],
)
def test_null_in_a_floating_point_tensor_is_nan(codec: RestCodec, datatype: str, shape: list[int], data: Any):
    flat = [float("nan") if value is None else value for value in np.array(data, object).reshape(-1)]
    for _ in range(2):  # by a skeleton that is new, and by one that is known
        tensor = decode(body(tensor_json(datatype, shape, data)), codec).inputs[0]
        expected = np.array(flat, tensor.data.dtype).reshape(shape)
        np.testing.assert_array_equal(tensor.data, expected, strict=True)


@pytest.mark.parametrize("datatype", ["FP16", "BF16", "FP32", "FP64"])
def test_the_kernel_itself_takes_null(datatype: str):
    kernel = JsonKernel.open(Limits())
    if kernel is None:
        pytest.skip("the kernels are not built")
    for text in ("null", "1,null", " null ,2", "null,\nnull"):
        document = b'{"inputs":[{"name":"x","shape":[%d],"datatype":"%b","data":[%b]}]}'
        document %= (text.count(",") + 1, datatype.encode(), text.encode())
        assert kernel.decode_request(document, None, "m", "", {}) is not None, text
    for text in ("nul", "nulll", "Null", "-null", "null1", "null0"):
        document = b'{"inputs":[{"name":"x","shape":[1],"datatype":"%b","data":[%b]}]}' % (
            datatype.encode(),
            text.encode(),
        )
        assert kernel.decode_request(document, None, "m", "", {}) is None, text


INPUT = tensor_json("FP32", [1], [1])
WRONG_DATA = [
    ("UINT8", [2], [1, 300], "input 'x': data[1] is 300, UINT8 holds 0 to 255"),
    ("UINT8", [1], [-1], "input 'x': data[0] is -1, UINT8 holds 0 to 255"),
    ("UINT32", [1], [2**32], "input 'x': data[0] is 4294967296, UINT32 holds 0 to 4294967295"),
    (
        "INT64",
        [1],
        [2**63],
        "input 'x': data[0] is 9223372036854775808, INT64 holds -9223372036854775808 to 9223372036854775807",
    ),
    ("INT64", [1], [2**64], "input 'x': data[0] is 1.8446744073709552e+19, INT64 holds the integers"),
    ("INT32", [1], [1.7], "input 'x': data[0] is 1.7, an integer (INT32) was expected"),
    ("INT32", [1], [True], "input 'x': data[0] is true, an integer (INT32) was expected"),
    ("INT32", [1], ["1"], "input 'x': data[0] is the string '1', an integer (INT32) was expected"),
    ("BOOL", [1], [2], "input 'x': data[0] is 2, true or false (or 1 or 0) was expected"),
    ("BOOL", [1], ["false"], "input 'x': data[0] is the string 'false', true or false (or 1 or 0) was expected"),
    ("BOOL", [1], [1.0], "input 'x': data[0] is 1.0, true or false (or 1 or 0) was expected"),
    ("FP32", [2], [1, "nan"], "input 'x': data[1] is the string 'nan', a number (FP32) was expected"),
    (
        "INT32",
        [2],
        [1, None],
        "input 'x': data[1] is null, an integer (INT32) was expected; null is a missing value in floating",
    ),
    ("UINT8", [1, 2], [[1, None]], "input 'x': data[0][1] is null, an integer (UINT8) was expected; null is a missing"),
    (
        "BOOL",
        [1],
        [None],
        "input 'x': data[0] is null, true or false (or 1 or 0) was expected; null is a missing value",
    ),
    (
        "BYTES",
        [2],
        ["a", None],
        "input 'x': data[1] is null, a string (BYTES) was expected; null is a missing value in",
    ),
    ("FP32", [2], [None, "a"], "input 'x': data[1] is the string 'a', a number (FP32) was expected"),
    ("FP32", [2], [None, True], "input 'x': data[1] is true, a number (FP32) was expected"),
    ("FP16", [2], [None, 65520], "input 'x': data[1] is 65520, which is beyond the range of FP16"),
    ("FP32", [1], None, "input 'x': neither 'data' nor the parameter 'binary_data_size' is there"),
    ("FP32", [2, 2], [[1, 2], None], "input 'x': data[1] is null, an array of 2 was expected"),
    ("FP32", [1], [True], "input 'x': data[0] is true, a number (FP32) was expected"),
    ("FP32", [1], [1e39], "input 'x': data[0] is 1e+39, which is beyond the range of FP32"),
    ("FP16", [1], [65520], "input 'x': data[0] is 65520, which is beyond the range of FP16"),
    ("BF16", [1], [3.4e38], "input 'x': data[0] is 3.4e+38, which is beyond the range of BF16"),
    ("BYTES", [1], [5], "input 'x': data[0] is 5, a string (BYTES) was expected"),
    ("FP32", [2, 3], [1, 2, 3, 4, 5], "input 'x': shape [2, 3] holds 6 values, data has 5"),
    ("FP32", [1], [1, 2], "input 'x': shape [1] holds 1 values, data has 2"),
    ("FP32", [2, 3], [[1, 2, 3], [4, 5]], "input 'x': data[1] holds 2 values, shape [2, 3] has 3 there"),
    ("FP32", [2, 2, 2], [[[1, 2], [3, 4]], [[5, 6], 7]], "input 'x': data[1][1] is 7, an array of 2 was expected"),
    ("FP32", [2, 2], [[1, 2], 3], "input 'x': data[1] is 3, an array of 2 was expected (shape [2, 2])"),
    ("FP32", [2, 2], [1, [2, 3], 4, 5], "input 'x': data[1] is an array, a number (FP32) was expected"),
    ("FP32", [2, 2], [[1, 2, 3, 4]], "input 'x': shape [2, 2] has 2 rows, data has 1"),
    ("FP32", [4], [[1, 2, 3, 4]], "input 'x': shape [4] has 4 rows, data has 1"),
    ("FP32", [1, 1], [[[1]]], "input 'x': data is nested deeper than shape [1, 1] has dimensions"),
    ("INT32", [2, 2], [[1, 2], [3, 9e9]], "input 'x': data[1][1] is 9000000000, INT32 holds"),
    ("FP32", [2**40, 2**40], [1], f"input 'x': shape [{2**40}, {2**40}] holds {2**80} values, data has 1"),
    ("FP32", [1], 5, "input 'x': 'data' is 5, an array was expected"),
    ("FP32", [1], {"a": 1}, "input 'x': 'data' is an object, an array was expected"),
    ("FP32", [1], {"": [1]}, "input 'x': 'data' is an object, an array was expected"),
    ("FP32", [1], "AAAA", "input 'x': 'data' is the string 'AAAA', an array was expected"),
    ("FP32", [-1], [1], "input 'x': shape [-1] has a negative dimension"),
    ("FP32", [1.0], [1], "input 'x': 'shape' holds 1.0, integers of 0 or more were expected"),
    ("FP32", [True], [1], "input 'x': 'shape' holds true, integers of 0 or more were expected"),
    ("FP32", ["1"], [1], "input 'x': 'shape' holds the string '1', integers of 0 or more were expected"),
    ("FP32", 1, [1], "input 'x': 'shape' is 1, an array of integers was expected"),
    ("FP33", [1], [1], "input 'x': 'datatype' is 'FP33', it must be one of BOOL, UINT8"),
    ("fp32", [1], [1], "input 'x': 'datatype' is 'fp32', it must be one of BOOL, UINT8"),
    (5, [1], [1], "input 'x': 'datatype' is 5, it must be one of BOOL, UINT8"),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("datatype", "shape", "data", "message"), WRONG_DATA, ids=[case[-1][:60] for case in WRONG_DATA]
)
def test_a_wrong_tensor_is_refused_with_its_place(codec: RestCodec, datatype: Any, shape: Any, data: Any, message: str):
    with pytest.raises(InvalidInput) as caught:
        decode(body(tensor_json(datatype, shape, data)), codec)
    assert str(caught.value).startswith(message)


WRONG_BODIES = [
    (b"", "the request body is empty, a JSON object was expected"),
    (b"{", "the request body is not JSON: "),
    (b'{"a":1,}', "the request body is not JSON: trailing comma is not allowed (line 1, column 7)"),
    (
        b'{"inputs":\n [NaN]}',
        "the request body is not JSON: unexpected character",
    ),
    (b"[1]", "the request body is an array, a JSON object was expected"),
    (b"null", "the request body is null, a JSON object was expected"),
    (b'{"inputs":"\xff"}', "the request body is not JSON: "),
    (b"{}", "'inputs' is missing: an array of at least one input was expected"),
    (
        b'{"instances":[[1, 2]]}',
        "'inputs' is missing; 'instances' is V1's, which is asked below /v1/models/NAME",
    ),
    (b'{"inputs":[]}', "'inputs' is empty: at least one input was expected"),
    (b'{"inputs":{}}', "'inputs' is an object, an array of at least one input was expected"),
    (b'{"inputs":[5]}', "input 0 is 5, an object was expected"),
    (b'{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}', "input 0: 'name' is missing"),
    (
        b'{"inputs":[{"name":5,"shape":[1],"datatype":"FP32","data":[1]}]}',
        "input 0: 'name' is 5, a string was expected",
    ),
    (b'{"inputs":[{"name":"","shape":[1],"datatype":"FP32","data":[1]}]}', "input 0: 'name' is empty"),
    (b'{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}', "input 'x': 'shape' is missing"),
    (b'{"inputs":[{"name":"x","shape":[1],"data":[1]}]}', "input 'x': 'datatype' is missing"),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}', "input 'x': neither 'data' nor the parameter"),
    (body(tensor_json("FP32", [1] * 33, [1])), "input 'x': 'shape' has 33 dimensions, the limit is 32 (max_rank)"),
    (body(INPUT, INPUT), "input 'x' is given twice"),
    (body(INPUT, id=5), "'id' is 5, a string was expected"),
    (body(INPUT, parameters=[1]), "request: 'parameters' is an array, an object was expected"),
    (body(INPUT, parameters={"a": None}), "request: parameter 'a' is null, a string, number or boolean was expected"),
    (
        body(INPUT, parameters={"a": {}}),
        "request: parameter 'a' is an object, a string, number or boolean was expected",
    ),
    (body({**INPUT, "parameters": {"a": [1]}}), "input 'x': parameter 'a' is an array, a string, number or boolean"),
    (
        body(INPUT, parameters={"binary_data_output": 1}),
        "request: 'binary_data_output' is 1, true or false was expected",
    ),
    (body(INPUT, outputs={}), "'outputs' is an object, an array was expected"),
    (body(INPUT, outputs=["y"]), "requested output 0 is the string 'y', an object was expected"),
    (body(INPUT, outputs=[{}]), "requested output 0: 'name' is missing"),
    (body(INPUT, outputs=[{"name": "y"}, {"name": "y"}]), "requested output 'y' is given twice"),
    (
        body(INPUT, outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]),
        "requested output 'y': 'binary_data' is the string 'yes', true or false was expected",
    ),
    (
        body({"name": "x", "shape": [1], "datatype": "FP32", "parameters": {"shared_memory_region": "r"}}),
        "input 'x': shared memory is not offered by this server",
    ),
    (
        body(INPUT, outputs=[{"name": "y", "parameters": {"shared_memory_region": "r"}}]),
        "requested output 'y': shared memory is not offered by this server",
    ),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1]}]} x', "the request body is not JSON: "),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[Infinity]}]}', "the request body is not JSON: "),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1e999]}]}', "the request body is not JSON: "),
    (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\\ud800"]}]}', "the request body is not JSON: "),
]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("document", "message"), WRONG_BODIES, ids=[str(i) for i in range(len(WRONG_BODIES))])
def test_a_wrong_body_is_refused_and_says_why(codec: RestCodec, document: bytes, message: str):
    with pytest.raises(InvalidInput) as caught:
        decode(document, codec)
    assert str(caught.value).startswith(message)
    assert not re.search(r"Error|Traceback|<class|numpy|dict|NoneType|\blist\b", str(caught.value))


def test_a_syntax_error_names_its_line_and_column():
    with pytest.raises(InvalidInput, match=r"^the request body is not JSON: .* \(line 2, column 3\)$"):
        decode(b'{"inputs":\n [NaN]}')


@pytest.mark.parametrize("codec", CODECS)
def test_optional_members_may_be_null_and_unknown_ones_are_ignored(codec: RestCodec):
    request = decode(
        body(INPUT, id=None, parameters=None, outputs=None, model_name="other", extra={"deep": [[1]]}), codec
    )
    assert (request.id, dict(request.parameters), request.outputs, request.model_name) == (None, {}, None, "m")


@pytest.mark.parametrize("codec", CODECS)
def test_what_mlservers_clients_leave_out_as_null_is_left_out(codec: RestCodec):
    """The body of MLServer's documents: `json=inference_request.dict()`."""
    document = {
        "id": None,
        "parameters": {"content_type": "np", "headers": None},
        "inputs": [{**INPUT, "parameters": {"content_type": None, "headers": None}}],
        "outputs": [{"name": "y", "parameters": {"content_type": None, "headers": None, "binary_data": False}}],
    }
    for _ in range(2):  # the second time from what the first has taught
        request = decode(json.dumps(document).encode(), codec)
        assert dict(request.parameters) == {"content_type": "np"}
        assert dict(request.inputs[0].parameters) == {}
        assert dict(request.outputs[0].parameters) == {"binary_data": False}
        assert request.id is None


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("given", ["", "42", "ünï", 'quote" back\\slash \n', "x" * 1000], ids=range(5))
def test_the_id_is_echoed_as_it_came_and_never_invented(codec: RestCodec, given: str):
    response = InferResponse("m", [Tensor.of("y", np.zeros(1))], id=decode(body(INPUT, id=given), codec).id)
    assert json.loads(codec.encode_response(response, decode(EXAMPLE)).to_bytes())["id"] == given
    response.id = decode(body(INPUT), codec).id
    assert "id" not in json.loads(codec.encode_response(response, decode(EXAMPLE)).to_bytes())


LIMITS = [
    (Limits(body_bytes=10), body(INPUT), "the request body has"),
    (Limits(tensor_bytes=8), body(tensor_json("FP32", [3], [1, 2, 3])), "input 'x': 12 bytes decoded, the limit is 8"),
    (Limits(tensors=1), body(INPUT, {**INPUT, "name": "z"}), "'inputs' holds 2 tensors, the limit is 1"),
    (
        Limits(tensors=1),
        body(INPUT, outputs=[{"name": "a"}, {"name": "b"}]),
        "'outputs' names 2 tensors, the limit is 1",
    ),
    (Limits(name_bytes=4), body({**INPUT, "name": "abcde"}), "input 0: 'name' has 5 bytes, the limit is 4"),
    (Limits(name_bytes=4), body(INPUT, parameters={"abcde": 1}), "request: a parameter's name has 5 bytes"),
    (Limits(name_bytes=4), body({**INPUT, "name": "éé€"}), "input 0: 'name' has 7 bytes, the limit is 4"),
    (
        Limits(json_depth=5),
        body(tensor_json("FP32", [1, 1, 1], [[[1]]])),
        "the request body is nested deeper than 5 levels",
    ),
    (Limits(), body(INPUT, x=json.loads("[" * 70 + "]" * 70)), "the request body is nested deeper than 64 levels"),
    (Limits(), b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "the request body is nested deeper than 64 levels"),
]


@pytest.mark.parametrize(("limits", "document", "message"), LIMITS, ids=[case[-1][:40] for case in LIMITS])
def test_each_limit_is_honoured_with_and_without_the_kernel(limits: Limits, document: bytes, message: str):
    for codec in (RestCodec(limits), plain_codec(limits)):
        with pytest.raises((TooLarge, InvalidInput)) as caught:
            decode(document, codec)
        assert str(caught.value).startswith(message)
        sized = limits.body_bytes == 10 or limits.tensor_bytes == 8 or limits.tensors == 1
        assert type(caught.value) is (TooLarge if sized else InvalidInput)


def test_brackets_within_strings_are_no_depth():
    assert decode(body(tensor_json("BYTES", [1], ["[" * 500]))).inputs[0].data[0] == b"[" * 500


@given(tensor_lists(text_only=True, finite=True))
def test_a_request_comes_back_from_json_as_it_was(tensors: list[Tensor]):
    request = InferRequest(
        "m", tensors, "", "i", {"a": 1.5, "b": "x", "c": True}, [RequestedOutput("y", {"binary_data": True})]
    )
    encoded = RestCodec().encode_request(request, binary=False)
    assert encoded.json_length is None
    for codec in (RestCodec(), plain_codec()):
        assert request_facts(codec.decode_request(encoded.to_bytes(), model_name="m")) == request_facts(request)


@given(tensor_lists(text_only=True, finite=True))
def test_a_response_comes_back_from_json_as_it_was(tensors: list[Tensor]):
    response = InferResponse("m", tensors, "7", "i", {"a": 1})
    encoded = RestCodec().encode_response(response, InferRequest("m", []))
    assert response_facts(RestCodec().decode_response(encoded.to_bytes())) == response_facts(response)


def test_outputs_without_a_number_are_null_and_read_back_as_nan():
    response = InferResponse("m", [Tensor.of("y", np.array([np.nan, np.inf, -np.inf, 1], np.float32))])
    document = RestCodec().encode_response(response, InferRequest("m", [])).to_bytes()
    assert json.loads(document)["outputs"][0]["data"] == [None, None, None, 1.0]
    np.testing.assert_array_equal(RestCodec().decode_response(document).outputs[0].data, np.float32([np.nan] * 3 + [1]))


def test_floats_are_written_as_short_as_their_type_allows():
    response = InferResponse("m", [Tensor.of("y", np.array([0.1, 1e-7, 16777216], np.float32))])
    assert b'"data":[0.1,1e-7,16777216.0]' in RestCodec().encode_response(response, InferRequest("m", [])).to_bytes()


def test_an_output_that_is_no_text_is_refused_as_json_and_told_how_to_ask():
    response = InferResponse("m", [Tensor.of("y", np.array([b"ok", b"\xff"], object))])
    with pytest.raises(InvalidInput, match=r"output 'y': element 1 is not UTF-8 text .* 'binary_data': true"):
        RestCodec().encode_response(response, InferRequest("m", []))


def test_outputs_of_any_strides_and_byte_order_are_written_row_by_row():
    for array in (
        np.arange(6, dtype=np.int32).reshape(2, 3).T,
        np.arange(12, dtype=np.int32)[::2],
        np.arange(3, dtype=">i4"),
    ):
        response = InferResponse("m", [Tensor("y", "INT32", array.shape, array)])
        output = json.loads(RestCodec().encode_response(response, InferRequest("m", [])).to_bytes())["outputs"][0]
        assert output["data"] == array.reshape(-1).tolist()


def test_an_output_that_cannot_be_its_datatype_is_the_models_fault():
    response = InferResponse("m", [Tensor("y", "FP32", (1,), np.array(["a"], object))])
    with pytest.raises(ModelFailed, match="output 'y': the model's values cannot be written as FP32"):
        RestCodec().encode_response(response, InferRequest("m", []))


def test_the_frame_of_a_response_is_never_mixed_up():
    codec = RestCodec()
    for name, version, tensor in [
        ("m", "1", Tensor.of("y", np.float32([1]))),
        ("m", "2", Tensor.of("y", np.float32([1]))),
        ("m", "", Tensor.of("y", np.float32([[1]]))),
        ("m", "", Tensor.of("y", np.float64([1]))),
        ("m", "", Tensor.of('"', np.float64([1]))),
        ("m", "", Tensor("y", "FP64", (1,), np.float64([1]), {"p": 1})),
    ] * 2:
        response = InferResponse(name, [tensor], version)
        document = codec.encode_response(response, InferRequest("m", [])).to_bytes()
        assert response_facts(codec.decode_response(document)) == response_facts(response)
        assert ("model_version" in json.loads(document)) == bool(version)


@pytest.mark.parametrize(
    "document", [b"<html>", b"{}", b'{"outputs":[{"name":"y","shape":[2],"datatype":"FP32","data":[1]}]}']
)
def test_a_response_that_is_none_is_the_upstreams_fault(document: bytes):
    with pytest.raises(UpstreamFailed, match="the predictor's answer cannot be read: "):
        RestCodec().decode_response(document)


def test_metadata_leaves_out_what_is_empty_and_optional():
    model = ModelMetadata(
        "m", (), "xgboost_ubj", (TensorSpec("x", "FP32", (-1, 30)),), (TensorSpec("y", "FP32", (-1,), ("a",)),)
    )
    assert json.loads(metadata_json(model)) == {
        "name": "m",
        "platform": "xgboost_ubj",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 30]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1]}],
    }
    versioned = ModelMetadata("m", ("1", "2"), "p", (), (), {"engine": "forest"})
    assert json.loads(metadata_json(versioned))["versions"] == ["1", "2"]
    assert json.loads(metadata_json(versioned))["properties"] == {"engine": "forest"}
    assert json.loads(metadata_json(ServerMetadata("serinus", "1", ("binary_tensor_data",)))) == {
        "name": "serinus",
        "version": "1",
        "extensions": ["binary_tensor_data"],
    }


def test_an_error_is_an_object_whatever_the_message_holds():
    assert json.loads(error_json('input "x"\n\ud800 é')) == {"error": 'input "x"\n? é'}


def test_the_index_and_the_statistics_are_as_the_extensions_have_them():
    assert json.loads(index_json([{"name": "m", "version": "", "state": "READY"}])) == [
        {"name": "m", "state": "READY", "reason": ""}
    ]
    stat = {"name": "m", "version": "1", "inference_count": 3, "inference_stats": {"success": {"count": 1, "ns": 5}}}
    assert json.loads(statistics_json([stat])) == {"model_stats": [stat]}


def test_a_decoded_request_owns_its_values():
    codec = RestCodec()
    first = decode(body(tensor_json("FP32", [2], [1, 2]), parameters={"a": 1}), codec)
    second = decode(body(tensor_json("FP32", [2], [3, 4]), parameters={"a": 1}), codec)
    assert first.inputs[0].data.tolist() == [1, 2]
    assert second.inputs[0].data.tolist() == [3, 4]
    assert first.parameters is not second.parameters


def test_every_refusal_is_a_client_error():
    for _, document, _ in LIMITS[1:]:
        with pytest.raises(SerinusError) as caught:
            decode(document, RestCodec(Limits(1 << 20, 1, 1, 1, 1, 1)))
        assert 400 <= caught.value.http_status < 500
