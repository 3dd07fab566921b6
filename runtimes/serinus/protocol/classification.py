"""The classification extension: an output's highest values as text, `value:index[:label]`.

Source: Triton, extension_classification.md. The first dimension of a tensor of two or more is its batch, and each row is classified
by itself; Triton knows from the model's configuration whether there is a batch, a tensor of one dimension has none.

Values are written as the shortest text that reads back to the same number, as in the extension's examples ("3.3:1");
Triton's server writes six decimals ("3.300000:1") and so cannot tell small probabilities apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from ..errors import InvalidInput, TooLarge
from .datatypes import BYTES
from .json_codec import describe
from .types import Limits, Tensor

__all__ = ["check_classes", "classification_count", "classify"]


def classification_count(parameters: Mapping[str, Any], what: str) -> int:
    """Return the parameter `classification` of a requested output; 0 where it is not given.

    Raises:
        InvalidInput: not an integer of 0 or more.
    """
    count = parameters.get("classification", 0)
    if type(count) is not int or count < 0:
        raise InvalidInput(f"{what}: 'classification' is {describe(count)}, a number of classes was expected")
    return count


def check_classes(parameters: Mapping[str, Any], what: str, limits: Limits) -> None:
    """Hold the parameter `classification` of a requested output to the limit, where it is a number at all.

    Raises:
        TooLarge: it asks for more classes than `limits.classes`.
    """
    count = parameters.get("classification")
    if type(count) is int and count > limits.classes:
        raise TooLarge(f"{what}: 'classification' is {count}, the limit is {limits.classes} (max_classes)")


def classify(tensor: Tensor, count: int, labels: Sequence[str] = ()) -> Tensor:
    """Turn an output into its `count` highest classes, the highest first and equal ones by index.

    Args:
        tensor: numbers, shape [classes] or [batch, ...]; what follows the batch is taken as one row of classes.
        count: at least 1; more than there are classes gives all of them.
        labels: class names by index; an index without one is written without.

    Returns:
        BYTES of shape [count] or [batch, count]. NaN counts as the lowest value.

    Raises:
        InvalidInput: the output is not numeric.
    """
    what = f"output {tensor.name!r}"
    if tensor.datatype in (BYTES, "BOOL"):
        raise InvalidInput(f"{what}: 'classification' wants numbers, the output is {tensor.datatype}")
    data = tensor.data
    rows = data.reshape(data.shape[0], prod(data.shape[1:])) if data.ndim > 1 else data.reshape(1, -1)
    width = min(count, rows.shape[1])
    order = _descending(rows)[:, :width]
    texts = np.empty((rows.shape[0], width), dtype=object)
    for row, places in enumerate(order.tolist()):
        for rank, index in enumerate(places):
            label = f":{labels[index]}" if index < len(labels) and labels[index] else ""
            texts[row, rank] = f"{rows[row, index]!s}:{index}{label}".encode()
    shaped = texts if data.ndim > 1 else texts.reshape(-1)
    return Tensor(tensor.name, BYTES, shaped.shape, shaped)


def _descending(rows: np.ndarray) -> np.ndarray:
    """Order each row's indices from the highest value to the lowest, ties by index, NaN last."""
    # Sorting the reversed row ascending and reading it backwards keeps equal values in order without negating
    # unsigned or smallest signed integers; lexsort's first key is the last tie-breaker.
    keys = np.nan_to_num(rows, nan=-np.inf, posinf=np.inf, neginf=-np.inf) if rows.dtype.kind == "f" else rows
    width = rows.shape[1]
    backwards = np.argsort(keys[:, ::-1], axis=1, kind="stable")
    return (width - 1 - backwards)[:, ::-1]
