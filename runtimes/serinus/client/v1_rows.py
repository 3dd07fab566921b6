"""A tensor request as V1 rows for a predictor that speaks V1, and its predictions as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InvalidInput, UpstreamFailed
from ..protocol.datatypes import BYTES
from ..protocol.types import InferRequest, InferResponse, Tensor

__all__ = ["v1_document", "v1_response"]


def v1_document(request: InferRequest) -> dict[str, Any]:
    """Write a tensor request as V1 rows: values where there is one input, objects of named values where there are more."""
    columns = {tensor.name: _v1_values(tensor) for tensor in request.inputs}
    if len(columns) == 1:
        return {"instances": next(iter(columns.values()))}
    rows = {len(values) for values in columns.values()}
    if len(rows) != 1:
        raise InvalidInput(
            "the inputs differ in rows, and the predictor speaks V1, which sends rows; use --predictor_protocol v2"
        )
    return {"instances": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _v1_values(tensor: Tensor) -> list[Any]:
    array = tensor.data
    if array.ndim == 0:
        array = array.reshape(1)
    if tensor.datatype != BYTES:
        if array.dtype.kind == "f" and np.isinf(array).any():  # null would be read as NaN
            raise InvalidInput(
                f"input {tensor.name!r} holds an infinity, which V1's JSON cannot carry to the predictor; use --predictor_protocol v2"
            )
        return array.tolist()
    text = np.empty(array.size, dtype=object)
    text[:] = [element.decode("utf-8", "replace") for element in array.reshape(-1).tolist()]
    return text.reshape(array.shape).tolist()


def v1_response(document: Mapping[str, Any], request: InferRequest) -> InferResponse:
    """Read V1 predictions as tensors: objects of named values become one output each.

    Raises:
        UpstreamFailed: they are no tensors.
    """
    predictions = document.get("predictions")
    if not isinstance(predictions, list):
        raise UpstreamFailed("the predictor's V1 answer has no 'predictions'")
    if predictions and all(isinstance(row, dict) for row in predictions):
        columns = {name: [row.get(name) for row in predictions] for name in predictions[0]}
    else:
        columns = {"output-0": predictions}
    outputs = []
    for name, values in columns.items():
        try:
            array = np.array(values)
            if array.dtype == object and {type(value) for value in array.reshape(-1)} <= {float, int, type(None)}:
                array = array.astype(np.float64)  # null stands for NaN
        except ValueError as error:
            raise UpstreamFailed(f"the predictor's V1 predictions {name!r} are no tensor: {error}") from error
        if array.dtype.kind in "US":
            text = np.empty(array.size, dtype=object)
            text[:] = [str(element).encode() for element in array.reshape(-1).tolist()]
            array = text.reshape(array.shape)
        elif array.dtype.kind not in "biuf":
            raise UpstreamFailed(f"the predictor's V1 predictions {name!r} are no tensor of numbers or strings")
        outputs.append(Tensor.of(name, array))
    return InferResponse(request.model_name, outputs, "", request.id)
