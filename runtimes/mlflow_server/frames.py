"""What a pyfunc is given and what it answers: DataFrames and arrays, from tensors and as tensors. Runs where MLflow does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from serinus.errors import InvalidInput, ModelFailed

from .signature import Column, MlSignature

__all__ = ["as_arrays", "as_given"]


def as_given(inputs: Mapping[str, np.ndarray], signature: MlSignature) -> Any:
    """Make what MLflow's `predict` takes.

    Args:
        inputs: by name, as the signature has them; of a model without one, columns [n] or one tensor.
        signature: of the model.

    Returns:
        A DataFrame where the signature has columns or several tensors [n] came without one; else an array, or arrays by name.

    Raises:
        InvalidInput: texts that are no UTF-8, JSON or dates.
    """
    if signature.is_frame:
        import pandas as pd

        kinds = {column.spec.name: column for column in signature.inputs}
        made = {name: _column(array, kinds[name]) for name, array in inputs.items()}
        frame = pd.DataFrame({name: made[name] for name in kinds if name in made})
        if not signature.input_names:
            frame.columns = pd.RangeIndex(len(frame.columns))
        return frame
    arrays = {name: _texts(name, array) if array.dtype == object else array for name, array in inputs.items()}
    if signature.inputs:
        return arrays if signature.input_names else next(iter(arrays.values()))
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if all(array.ndim == 1 for array in arrays.values()):
        import pandas as pd

        return pd.DataFrame(arrays)
    return arrays


def _texts(name: str, array: np.ndarray) -> np.ndarray:
    made = np.empty(array.shape, object)
    try:
        for place, value in np.ndenumerate(array):
            made[place] = value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise InvalidInput(f"input {name!r}: a text is not UTF-8") from None
    return made


def _column(array: np.ndarray, column: Column) -> Any:
    name = column.spec.name
    if column.kind == "binary":
        return array
    if array.dtype != object:
        return array
    texts = _texts(name, array)
    if column.kind == "datetime":
        import pandas as pd

        try:
            return pd.to_datetime(pd.Series(texts)).astype("datetime64[ns]")
        except (ValueError, TypeError) as error:
            raise InvalidInput(f"input {name!r}: dates were expected as ISO 8601 texts: {str(error)[:200]}") from None
    if column.kind == "json":
        try:
            made = np.empty(len(texts), object)
            for place, value in enumerate(texts):
                made[place] = json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"input {name!r}: its JSON text was expected: {error}") from None
        return made
    return texts


def as_arrays(answer: Any, signature: MlSignature) -> dict[str, np.ndarray]:
    """Make tensors of what `predict` returned.

    Args:
        answer: a DataFrame, a Series, an array, lists, arrays by name, or a single value.
        signature: names the outputs where the answer does not.

    Raises:
        ModelFailed: no tensor carries it.
    """
    if hasattr(answer, "toarray"):
        answer = answer.toarray()
    if hasattr(answer, "detach"):  # PyTorch's
        answer = answer.detach().cpu().numpy()
    names = [column.spec.name for column in signature.outputs]
    if hasattr(answer, "columns") and hasattr(answer, "to_numpy"):
        columns = {str(name): _array(answer[name].to_numpy()) for name in answer.columns}
        if len(names) == 1 and len(columns) > 1 and signature.outputs[0].kind == "tensor":
            return {names[0]: _array(answer.to_numpy())}
        if len(names) == len(columns) and not set(names) & columns.keys():
            return dict(zip(names, columns.values(), strict=True))
        return columns
    if isinstance(answer, list) and answer and all(isinstance(row, dict) for row in answer):
        keys = list(dict.fromkeys(key for row in answer for key in row))
        if all(isinstance(key, str) for key in keys) and all(row.keys() == answer[0].keys() for row in answer):
            return {key: _array([row[key] for row in answer]) for key in keys}
    if isinstance(answer, dict):
        return {str(name): _array(value) for name, value in answer.items()}
    if hasattr(answer, "to_numpy"):
        answer = np.asarray(answer)
    return {names[0] if len(names) == 1 else "output-0": _array(answer)}


def _array(value: Any) -> np.ndarray:
    """Make one tensor: numbers as they are, all else as texts; parts of their own as JSON."""
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        value = [value]
    # NumPy would give each text of a list the room of the longest one.
    is_text = isinstance(value, list) and any(isinstance(one, str | bytes) for one in value)
    try:
        array = np.asarray(value, object if is_text else None)
    except ValueError:  # rows of different lengths
        array = np.empty(len(value), object)
        array[:] = value
    if array.dtype == np.float16 or array.dtype.kind in "biuf":
        return array
    if array.dtype.kind == "M":
        array = np.datetime_as_string(array)
    if array.dtype.kind not in "OUS":
        raise ModelFailed(f"the model answers {array.dtype}, which no tensor carries")
    made = np.empty(array.shape, object)
    for place, one in np.ndenumerate(array):
        made[place] = _bytes(one)
    return made


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if value is None:
        return b""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return json.dumps(value, default=str).encode()
