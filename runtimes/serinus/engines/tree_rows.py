"""A request's tensors as the rows that a tree model takes: one matrix, or one column a feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import InvalidInput

__all__ = ["as_rows"]


def as_rows(
    inputs: Mapping[str, np.ndarray], columns: int, feature_names: Sequence[str], dtype: np.dtype
) -> np.ndarray:
    """Bring a batch into one matrix; itself where it is one already.

    Args:
        inputs: one tensor [n, columns] of any name, or one [n] or [n, 1] for each feature name.
        columns: features of a row.
        feature_names: in the order of training; empty: the model knows none.
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
    return _join_columns(inputs, columns, feature_names, dtype)


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


def _join_columns(inputs: Mapping[str, np.ndarray], columns: int, names: Sequence[str], dtype: np.dtype) -> np.ndarray:
    """Put one tensor per feature side by side in the order of training."""
    if not names:
        raise InvalidInput(
            f"{len(inputs)} inputs came; the model knows no feature names, so it takes one input of shape [n, {columns}]"
        )
    absent = [name for name in names if name not in inputs]
    unknown = sorted(set(inputs) - set(names))
    if absent or unknown:
        parts = [
            f"missing are {', '.join(absent[:8])}" if absent else "",
            f"unknown are {', '.join(unknown[:8])}" if unknown else "",
        ]
        raise InvalidInput(
            f"{len(inputs)} inputs came; the model takes one of shape [n, {columns}], or one per feature name: "
            + "; ".join(filter(None, parts))
        )
    count = len(inputs[names[0]])
    rows = np.empty((count, len(names)), dtype)
    for index, name in enumerate(names):
        column = _as_matrix(name, inputs[name], 1, dtype)
        if len(column) != count:
            raise InvalidInput(f"input {name!r}: {len(column)} rows, while {names[0]!r} has {count}")
        rows[:, index] = column[:, 0]
    return rows
