"""What stands in an example of an input: numbers are 0, free dimensions 1. An input of many values is not written out."""

from __future__ import annotations

import math
from typing import Any, Final

from ..types import ModelMetadata, TensorSpec

__all__ = ["example_request", "example_shape", "example_value", "is_written_out"]

_MOST_VALUES: Final = 256
"""Of an input that is written out: more fill a screen."""


def example_shape(spec: TensorSpec) -> list[int]:
    """The dimensions of an example."""
    return [max(size, 1) for size in spec.shape]


def example_value(spec: TensorSpec) -> Any:
    """The value of each of its elements, as JSON has it."""
    return "text" if spec.datatype == "BYTES" else False if spec.datatype == "BOOL" else 0


def is_written_out(spec: TensorSpec) -> bool:
    """Whether an example shows every value."""
    return math.prod(example_shape(spec)) <= _MOST_VALUES


def example_request(metadata: ModelMetadata, *, whole: bool = False) -> dict[str, Any]:
    """Make a V2 request of one row for a model's inputs, optional ones left out.

    Args:
        metadata: of the model.
        whole: every input has its `data`, however many values that are; else one of many values is without.
    """
    inputs = []
    for spec in metadata.inputs:
        if spec.optional:
            continue
        shape = example_shape(spec)
        entry: dict[str, Any] = {"name": spec.name, "shape": shape, "datatype": spec.datatype}
        if whole or is_written_out(spec):
            entry["data"] = [example_value(spec)] * math.prod(shape)
        inputs.append(entry)
    return {"inputs": inputs}
