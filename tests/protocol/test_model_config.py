"""Triton's model configuration, key by key."""

from __future__ import annotations

from typing import Any

import pytest

from serinus.protocol.documents.model_config import ModelConfig
from serinus.protocol.types import ModelMetadata, TensorSpec

X = TensorSpec("x", "FP32", (-1, 3))
ONE = TensorSpec("one", "INT64", (-1,))
MAYBE = TensorSpec("maybe", "BYTES", (-1, 2), optional=True)


def document(*, inputs: Any = (X,), outputs: Any = (ONE,), parameters: Any = None, **fields: Any) -> dict[str, Any]:
    metadata = ModelMetadata("m", ("1",), "onnx", inputs, outputs, parameters or {})
    return ModelConfig(metadata, **fields).document()


def test_a_model_that_is_not_batched_has_its_shapes_whole():
    assert document() == {
        "name": "m",
        "platform": "onnx",
        "backend": "onnx",
        "max_batch_size": 0,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 3]}],
        "output": [{"name": "one", "data_type": "TYPE_INT64", "dims": [-1]}],
    }


def test_a_batched_model_has_them_without_the_rows_and_a_scalar_a_row_is_told_so():
    assert document(max_batch_rows=8, max_delay_s=2.5) == {
        "name": "m",
        "platform": "onnx",
        "backend": "onnx",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
        "output": [{"name": "one", "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}}],
        "dynamic_batching": {"max_queue_delay_microseconds": 2_500_000},
    }


def test_a_batch_of_one_row_is_a_batch():
    found = document(max_batch_rows=1)
    assert found["max_batch_size"] == 1
    assert found["dynamic_batching"] == {"max_queue_delay_microseconds": 0}


def test_inputs_say_that_they_are_optional_and_outputs_do_not():
    found = document(inputs=(MAYBE, X), outputs=(MAYBE, ONE))
    assert [entry.get("optional") for entry in found["input"]] == [True, None]
    assert [entry.get("optional") for entry in found["output"]] == [None, None]


@pytest.mark.parametrize("batched", [True, False])
def test_why_rows_are_not_joined_is_told_where_they_are_not(batched: bool):
    found = document(parameters={"batching_reason": "its rows depend"}, max_batch_rows=4 if batched else 0)
    told = {"batching_reason": {"string_value": "its rows depend"}}
    assert found.get("parameters") == (None if batched else told)
    assert "parameters" not in document()


@pytest.mark.parametrize("decoupled", [True, False])
def test_a_model_of_any_number_of_responses_says_so(decoupled: bool):
    found = document(decoupled=decoupled)
    assert found.get("model_transaction_policy") == ({"decoupled": True} if decoupled else None)
    assert "model_transaction_policy" not in document()
