"""From a batch's outputs to each request's response: rows cut, outputs chosen and classified."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...protocol.classification import classification_count, classify
from ...protocol.datatypes import BYTES
from ...protocol.types import InferRequest, Tensor, TensorSpec
from ..batching.pending_request import PendingRequest

__all__ = ["Outputs", "cut_rows", "select_outputs"]

Outputs = list[tuple[str, str, np.ndarray, TensorSpec | None]]
"""Name, datatype, array of the batch, spec."""


def cut_rows(members: Sequence[PendingRequest], outputs: Outputs) -> list[list[Tensor]]:
    """Cut each output into the rows of each request. The parts are views."""
    if len(members) == 1:  # whole: the outputs of a model that is not batchable have no rows
        return [[Tensor(name, datatype, array.shape, array) for name, datatype, array, _ in outputs]]
    parts: list[list[Tensor]] = []
    start = 0
    for pending in members:
        rows = pending.rows
        stop = start + rows
        parts.append(
            [
                Tensor(name, datatype, (rows, *array.shape[1:]), array[start:stop])
                for name, datatype, array, _ in outputs
            ]
        )
        start = stop
    return parts


def select_outputs(
    tensors: list[Tensor],
    request: InferRequest,
    specs: Mapping[str, TensorSpec],
    by_row: bool,
    texts_are_classes: bool = False,
) -> list[Tensor]:
    """Put the outputs in the order of the request, classified where it asks for classes and they are not yet."""
    by_name = {tensor.name: tensor for tensor in tensors}
    chosen = []
    for output in request.outputs or ():
        tensor = by_name[output.name]
        count = classification_count(output.parameters, f"output '{output.name}'")
        if count and not (texts_are_classes and tensor.datatype == BYTES):
            if by_row and tensor.data.ndim == 1:
                rows = tensor.shape[0]  # one value per row: each row is a batch entry of one class
                tensor = Tensor(tensor.name, tensor.datatype, (rows, 1), tensor.data.reshape(rows, 1))
            spec = specs.get(output.name)
            tensor = classify(tensor, count, spec.labels if spec else ())
        chosen.append(tensor)
    return chosen
