"""What stands in an example of a model's inputs, for a page of documentation or a first request."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.protocol.documents.example_values import example_request, example_shape, example_value, is_written_out
from serinus.protocol.types import ModelMetadata, TensorSpec

MOST_VALUES = 256


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((), []), ((-1,), [1]), ((-1, 3), [1, 3]), ((2, -1, -1), [2, 1, 1]), ((0, 4), [1, 4]), ((1,), [1])],
)
def test_free_dimensions_are_one(shape: tuple[int, ...], expected: list[int]):
    assert example_shape(TensorSpec("x", "FP32", shape)) == expected


@pytest.mark.parametrize(
    ("datatype", "value"), [("BYTES", "text"), ("BOOL", False), ("FP32", 0), ("INT8", 0), ("UINT64", 0), ("BF16", 0)]
)
def test_values_are_of_their_kind(datatype: str, value: Any):
    found = example_value(TensorSpec("x", datatype, (-1,)))
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("shape", "is_short"),
    [((), True), ((-1, 1), True), ((-1, MOST_VALUES), True), ((2, 129), False), ((-1, MOST_VALUES + 1), False)],
)
def test_an_input_of_up_to_two_hundred_and_fifty_six_values_is_written_out(shape: tuple[int, ...], is_short: bool):
    spec = TensorSpec("x", "FP32", shape)
    assert is_written_out(spec) is is_short
    (entry,) = example_request(ModelMetadata("m", (), "", (spec,), ()))["inputs"]
    assert ("data" in entry) is is_short
    (whole,) = example_request(ModelMetadata("m", (), "", (spec,), ()), whole=True)["inputs"]
    size = 1
    for each in whole["shape"]:
        size *= each
    assert whole["data"] == [0] * size


def test_a_request_has_each_input_that_must_be_there_in_order():
    inputs = (
        TensorSpec("x", "FP32", (-1, 2)),
        TensorSpec("maybe", "FP32", (-1,), optional=True),
        TensorSpec("text", "BYTES", (-1,)),
        TensorSpec("flag", "BOOL", (-1, 1)),
    )
    assert example_request(ModelMetadata("m", (), "", inputs, ())) == {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]},
            {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["text"]},
            {"name": "flag", "shape": [1, 1], "datatype": "BOOL", "data": [False]},
        ]
    }
    assert example_request(ModelMetadata("m", (), "", (), ())) == {"inputs": []}
