"""A request's tensors as the rows that a tree model takes: one matrix, or one column a feature."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..errors import InvalidInput
from ..feature_columns import FeatureColumns

__all__ = ["as_rows"]


def as_rows(
    inputs: Mapping[str, np.ndarray], columns: int, names: FeatureColumns | None, dtype: np.dtype
) -> np.ndarray:
    """Bring a batch into one matrix; itself where it is one already.

    Args:
        inputs: one tensor [n, columns] of any name, or one [n] or [n, 1] for each feature name.
        columns: features of a row.
        names: of the features; None: the model knows none.
        dtype: of the rows.

    Returns:
        [n, columns] in C order.

    Raises:
        InvalidInput: the tensors are not like that.
    """
    if len(inputs) == 1:
        ((name, rows),) = inputs.items()
        if rows.dtype == dtype and rows.ndim == 2 and rows.shape[1] == columns and rows.flags.c_contiguous:
            return rows
        return _as_matrix(name, rows, columns, dtype)
    if names is None:
        raise InvalidInput(
            f"{len(inputs)} inputs came; the model knows no feature names, so it takes one input of shape [n, {columns}]"
        )
    return names.join(inputs)


def _as_matrix(name: str, rows: np.ndarray, columns: int, dtype: np.dtype) -> np.ndarray:
    if rows.dtype.kind not in "fiub":
        raise InvalidInput(f"input {name!r}: the model takes numbers, not {rows.dtype.name}")
    if rows.ndim == 1 and columns == 1:
        rows = rows.reshape(-1, 1)
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise InvalidInput(
            f"input {name!r}: shape {list(rows.shape)} does not fit; the model takes [n, {columns}], "
            "one column per feature, in the order of training"
        )
    with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes infinite, as in the frameworks
        return np.ascontiguousarray(rows, dtype)
