"""The V1 protocol's bodies, by TensorFlow Serving's and KServe's documents."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from protocol_support import tensor_facts
from serinus.errors import InvalidInput, TooLarge
from serinus.protocol.types import InferResponse, Limits, ModelMetadata, Tensor, TensorSpec
from serinus.protocol.v1_codec import decode, encode, to_request


def model(*inputs: TensorSpec) -> ModelMetadata:
    return ModelMetadata("m", (), "p", inputs, ())


ONE = model(TensorSpec("x", "FP32", (-1, 2)))
TWO = model(
    TensorSpec("tag", "BYTES", (-1,)),
    TensorSpec("signal", "FP32", (-1, 2)),
    TensorSpec("opt", "INT8", (-1,), optional=True),
)
TEXT = model(TensorSpec("x", "BYTES", (-1,)))


def read(document: Any, metadata: ModelMetadata) -> dict[str, Tensor]:
    request = to_request(decode(json.dumps(document).encode()), metadata, model_version="1")
    assert (request.model_name, request.model_version) == ("m", "1")
    for tensor in request.inputs:
        tensor_facts(tensor)
    return {tensor.name: tensor for tensor in request.inputs}


def test_rows_of_values_are_the_only_input():
    np.testing.assert_array_equal(
        read({"instances": [[1, 2], [3.5, 4]]}, ONE)["x"].data, np.array([[1, 2], [3.5, 4]], np.float32), strict=True
    )


def test_rows_of_named_values_are_stacked():
    # api_rest.md, "Specifying input tensors in row format"
    tensors = read(
        {
            "instances": [{"tag": "foo", "signal": [1, 2]}, {"tag": "bar", "signal": [3, 4.5]}],
            "signature_name": "serving_default",
        },
        TWO,
    )
    assert tensors["tag"].data.tolist() == [b"foo", b"bar"]
    assert tensors["signal"].data.tolist() == [[1, 2], [3, 4.5]]


def test_columns_are_whole_tensors():
    tensors = read({"inputs": {"tag": ["foo", "bar"], "signal": [[1, 2], [3, 4.5]]}}, TWO)
    assert tensors["tag"].data.tolist() == [b"foo", b"bar"]
    assert tensors["signal"].shape == (2, 2)
    assert read({"inputs": [[1, 2]]}, ONE)["x"].shape == (1, 2)
    assert read({"inputs": 5}, model(TensorSpec("x", "INT8", ())))["x"].data.tolist() == 5


def test_base64_stands_for_bytes():
    binary = base64.b64encode(b"\xff\x00").decode()
    metadata = model(TensorSpec("x", "BYTES", (-1,)))
    assert read({"instances": [{"b64": binary}, "text"]}, metadata)["x"].data.tolist() == [b"\xff\x00", b"text"]
    assert read({"instances": [{"x": {"b64": binary}}]}, metadata)["x"].data.tolist() == [b"\xff\x00"]
    assert read({"inputs": {"b64": binary}}, metadata)["x"].data.tolist() == b"\xff\x00"


@pytest.mark.parametrize(
    ("values", "datatype"),
    [
        ([[1, 2]], "INT64"),
        ([2**64 - 1], "UINT64"),
        ([1, 2.5], "FP64"),
        ([True, False], "BOOL"),
        (["a"], "BYTES"),
        ([{"b64": "YQ=="}], "BYTES"),
        ([[]], "FP64"),
        ([1, None], "FP64"),
        ([[None]], "FP64"),
    ],
    ids=str,
)
def test_a_model_that_says_nothing_gets_what_the_values_are(values: Any, datatype: str):
    tensor = read({"instances": values}, model())["input-0"]
    assert tensor.datatype == datatype


WRONG = [
    ({}, ONE, "'instances' (row format) or 'inputs' (column format) was expected, neither is there"),
    (
        {"instances": [1], "inputs": [1]},
        ONE,
        "'instances' (row format) or 'inputs' (column format) was expected, both are",
    ),
    ({"instances": []}, ONE, "'instances' is empty: at least one row was expected"),
    ({"instances": 5}, ONE, "'instances' is 5, an array with one entry per row was expected"),
    ({"instances": [{}]}, ONE, "instances[0] is an empty object"),
    ({"inputs": {}}, ONE, "'inputs' is an empty object"),
    ({"instances": [[1, 2], {"x": 1}]}, ONE, "instances[1] is an object of named inputs, instances[0] is not"),
    ({"instances": [{"x": 1}, {"y": 1}]}, ONE, "instances[1] names 'y', instances[0] names 'x'; all rows must agree"),
    ({"instances": [{"x": 1}, 5]}, ONE, "instances[1] is 5, instances[0] names 'x'; all rows must agree"),
    ({"instances": [{"z": [1, 2]}]}, ONE, "the model has no input 'z'; its inputs are 'x'"),
    (
        {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]},
        ONE,
        "'inputs' holds tensors of a V2 request ('name', 'shape', 'datatype', 'data'), which goes to /v2/models/NAME/infer",
    ),
    (
        {"inputs": [{"name": n, "shape": [1], "datatype": "FP32", "data": [1]} for n in ("signal", "tag")]},
        TWO,
        "'inputs' holds tensors of a V2 request",
    ),
    (
        {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1], "parameters": {}}]},
        model(),
        "'inputs' holds tensors of a V2 request",
    ),
    ({"instances": [[1, 2]]}, TWO, "the model has 2 inputs ('signal', 'tag'): name each one's values"),
    ({"instances": [[1, 2], [3]]}, ONE, "input 'x': data[1] holds 1 values, shape [2, 2] has 2 there"),
    ({"instances": [[1, "a"]]}, ONE, "input 'x': data[0][1] is the string 'a', a number (FP32) was expected"),
    ({"instances": [1, "a"]}, model(), "input 'input-0': 1 and the string 'a' do not make one tensor"),
    (
        {"instances": [None, "a"]},
        model(),
        "input 'input-0' holds null, which stands for a missing number, beside what is no number",
    ),
    ({"instances": [None, True]}, model(), "input 'input-0' holds null, which stands for a missing number, beside"),
    ({"instances": [None]}, TEXT, "input 'x': value 0 is null, a string or {\"b64\": ...} was expected"),
    (
        {"instances": [5]},
        TEXT,
        "input 'x': value 0 is 5, a string or {\"b64\": ...} was expected",
    ),
    ({"instances": [{"b64": "?"}]}, TEXT, "input 'x': value 0: 'b64' is not base64"),
    ({"instances": [1], "signature_name": 5}, ONE, "'signature_name' is 5, a string was expected"),
    (
        {"instances": [[1, 2]], "signature_name": "s"},
        ONE,
        "'signature_name' is 's'; the model has 'serving_default' alone",
    ),
    (
        {"instances": [1], "signature_name": "s"},
        model(),
        "'signature_name' is 's'; the model has 'serving_default' alone",
    ),
]


@pytest.mark.parametrize(("document", "metadata", "message"), WRONG, ids=[case[-1][:50] for case in WRONG])
def test_a_wrong_body_is_refused_and_says_why(document: Any, metadata: ModelMetadata, message: str):
    with pytest.raises(InvalidInput) as caught:
        to_request(decode(json.dumps(document).encode()), metadata)
    assert str(caught.value).startswith(message)


def test_limits_are_honoured():
    with pytest.raises(TooLarge, match="the body names 2 inputs, the limit is 1"):
        decode(b'{"inputs":{"a":1,"b":2}}', Limits(tensors=1))
    with pytest.raises(InvalidInput, match="nested deeper than 2 levels"):
        to_request(decode(b'{"inputs":[[[1]]]}'), ONE, limits=Limits(rank=2))
    with pytest.raises(TooLarge, match="the limit is 7"):
        to_request(decode(b'{"inputs":[[1,2]]}'), ONE, limits=Limits(tensor_bytes=7))


ROWS = decode(b'{"instances":[1]}')
COLUMNS = decode(b'{"inputs":[1]}')
SCORES = Tensor.of("y", np.array([[0.5, np.nan], [1, 2]], np.float32))
NAMES = Tensor.of("n", np.array([b"a", b"\xff"], object))


@pytest.mark.parametrize(
    ("outputs", "rows", "columns"),
    [
        ([SCORES], {"predictions": [[0.5, None], [1, 2]]}, {"outputs": [[0.5, None], [1, 2]]}),
        ([NAMES], {"predictions": ["a", {"b64": "/w=="}]}, {"outputs": ["a", {"b64": "/w=="}]}),
        (
            [SCORES, NAMES],
            {"predictions": [{"y": [0.5, None], "n": "a"}, {"y": [1, 2], "n": {"b64": "/w=="}}]},
            {"outputs": {"y": [[0.5, None], [1, 2]], "n": ["a", {"b64": "/w=="}]}},
        ),
        ([Tensor.of("s", np.array(2))], {"predictions": 2}, {"outputs": 2}),
    ],
    ids=["one", "bytes", "two", "scalar"],
)
def test_an_answer_has_the_format_of_its_question(outputs: list[Tensor], rows: Any, columns: Any):
    assert json.loads(encode(InferResponse("m", outputs), ROWS)) == rows
    assert json.loads(encode(InferResponse("m", outputs), COLUMNS)) == columns


def test_outputs_of_different_lengths_have_no_rows():
    with pytest.raises(InvalidInput, match="the outputs have different numbers of rows"):
        encode(InferResponse("m", [SCORES, Tensor.of("z", np.zeros(3))]), ROWS)


def test_outputs_of_any_strides_are_written():
    response = InferResponse("m", [Tensor.of("y", np.arange(6).reshape(2, 3).T)])
    assert json.loads(encode(response, ROWS)) == {"predictions": [[0, 3], [1, 4], [2, 5]]}


NAMED = ModelMetadata("m", (), "p", (TensorSpec("input-0", "FP32", (-1, 2)),), (), column_names=("age", "city"))
BY_COLUMN: dict[str, tuple[Any, dict[str, tuple[str, list[Any]]]]] = {
    "rows": (
        {"instances": [{"age": 1, "city": "oslo"}, {"city": "bergen", "age": 2}]},
        {"age": ("INT64", [1, 2]), "city": ("BYTES", [b"oslo", b"bergen"])},
    ),
    "rows under inputs": ({"inputs": [{"age": 1.5, "city": 0}]}, {"age": ("FP64", [1.5]), "city": ("INT64", [0])}),
    "frames": (
        {"inputs": [{"age": {"0": 1, "1": 2}, "city": {"0": "a", "1": "b"}}]},
        {"age": ("INT64", [1, 2]), "city": ("BYTES", [b"a", b"b"])},
    ),
    "cells that are arrays": (
        {"instances": [{"age": [True], "city": [2]}]},
        {"age": ("BOOL", [True]), "city": ("INT64", [2])},
    ),
    "columns": (
        {"inputs": {"age": [1, 2], "city": ["a", "b"]}},
        {"age": ("INT64", [1, 2]), "city": ("BYTES", [b"a", b"b"])},
    ),
    "arrays with texts among numbers": (
        {"instances": [[1, "oslo"], [2.5, {"b64": "YQ=="}]]},
        {"age": ("FP64", [1, 2.5]), "city": ("BYTES", [b"oslo", b"a"])},
    ),
    "nulls": (
        {"instances": [{"age": None, "city": None}, {"age": 2, "city": "a"}]},
        {"age": ("FP64", [None, 2]), "city": ("BYTES", [None, b"a"])},
    ),
    "names that the model has not": ({"instances": [{"height": 1}]}, {"height": ("INT64", [1])}),
}


@pytest.mark.parametrize("name", BY_COLUMN)
def test_rows_of_a_model_with_named_columns_are_its_columns(name: str):
    document, wanted = BY_COLUMN[name]
    request = to_request(decode(json.dumps(document).encode()), NAMED)
    assert [tensor.name for tensor in request.inputs] == list(wanted)
    for tensor in request.inputs:
        datatype, values = wanted[tensor.name]
        got = [None if value != value else value for value in tensor.data.tolist()]
        assert (tensor.datatype, tensor.shape, got) == (datatype, (len(values),), values)


def test_rows_of_a_model_with_named_columns_may_be_bare():
    request = to_request(decode(b'{"instances": [[1, 2], [3, 4]]}'), NAMED)
    assert [(tensor.name, tensor.data.tolist()) for tensor in request.inputs] == [("input-0", [[1, 2], [3, 4]])]
    named = to_request(decode(b'{"instances": [{"input-0": [1, 2]}]}'), NAMED)
    assert named.inputs[0].data.tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ([[1]], "input 'age'.*came for one row"),
        ({"0": {"1": 2}}, "input 'age'.*came for one row"),
        (["a", 1], "do not make one tensor"),
    ],
)
def test_a_cell_that_is_no_value_is_refused(cell: Any, message: str):
    with pytest.raises(InvalidInput, match=message):
        to_request(decode(json.dumps({"instances": [{"age": cell}]}).encode()), NAMED)


def test_rows_under_inputs_are_answered_as_rows():
    payload = decode(b'{"inputs": [{"age": 1, "city": 0}]}')
    assert encode(InferResponse("m", [Tensor.of("predict", np.float32([0.5]))]), payload) == b'{"predictions":[0.5]}'


def test_a_model_whose_inputs_are_called_as_a_tensors_members_is_asked_by_them():
    names = ("name", "shape", "datatype", "data")
    found = read(
        {"instances": [dict.fromkeys(names, 1.5)]}, model(*(TensorSpec(name, "FP32", (-1,)) for name in names))
    )
    assert {name: tensor.data.tolist() for name, tensor in found.items()} == {name: [1.5] for name in names}
