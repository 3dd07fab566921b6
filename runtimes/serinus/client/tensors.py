"""What callers have, arrays and lists, as the tensors of a request; and an answer's tensors as arrays by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from ..errors import InvalidInput
from ..protocol.datatypes import BYTES, NUMPY_DTYPES, datatype_of
from ..protocol.types import InferResponse, Tensor, TensorSpec

__all__ = ["Answer", "Frame", "make_tensor", "named_values", "needs_spec"]


_FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})
"""Datatypes that can say that a value is missing: NaN, as JSON's null does on the wire."""


class Answer(Mapping[str, np.ndarray]):
    """An inference's outputs by name, in the model's order, and what came with them.

    Attributes:
        model_name: the model that answered.
        model_version: its version; empty: it has none.
        id: the request's own.
        parameters: of the answer.
        headers: HTTP's header fields, names in lower case; empty over gRPC.
        tensors: the outputs as they came, with datatype and parameters.
    """

    def __init__(self, response: InferResponse) -> None:
        self.model_name = response.model_name
        self.model_version = response.model_version
        self.id = response.id
        self.parameters = response.parameters
        self.headers = response.headers
        self.tensors: Sequence[Tensor] = response.outputs
        self._arrays = {tensor.name: tensor.data for tensor in response.outputs}

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return self._arrays[name]
        except KeyError:
            there = ", ".join(map(repr, self._arrays)) or "none"
            raise KeyError(f"{self.model_name!r} answered no output {name!r}; its outputs are {there}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        outputs = ", ".join(f"{tensor.name}: {tensor.datatype} {list(tensor.shape)}" for tensor in self.tensors)
        return f"<Answer of {self.model_name!r} {self.model_version!r}: {outputs}>"

    def text(self, name: str) -> np.ndarray:
        """Give a BYTES output as text.

        Returns:
            object array of `str`, the output's shape; what is no UTF-8 becomes U+FFFD.
        """
        array = self[name]
        texts = np.empty(array.size, dtype=object)
        texts[:] = [
            value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
            for value in array.reshape(-1).tolist()
        ]
        return texts.reshape(array.shape)


class Frame(Protocol):
    """A table by columns, as pandas' DataFrame is one."""

    @property
    def columns(self) -> Any:
        """Names of the columns."""

    def items(self) -> Iterable[tuple[Any, Any]]:
        """Give name and values of each column."""
        ...


def needs_spec(values: Any) -> bool:
    """Whether an input's type is not its own: Python's numbers and lists become what the model declares."""
    return not isinstance(values, (np.ndarray, np.generic, Tensor)) and not hasattr(values, "__array__")


def named_values(inputs: Mapping[str, Any] | Frame) -> Mapping[str, Any]:
    """Give a request's inputs by name: a mapping as it is, a table column by column.

    Raises:
        InvalidInput: it is neither.
    """
    if isinstance(inputs, Mapping):
        return inputs
    if hasattr(inputs, "columns") and hasattr(inputs, "items"):
        return {str(name): _column(values) for name, values in inputs.items()}
    came = type(inputs).__name__
    raise InvalidInput(
        f"inputs: a {came} came; arrays by their inputs' names were expected, as in {{'input-0': array}}"
    )


def _column(values: Any) -> np.ndarray:
    """A DataFrame's column; what comes as objects and is a number but for missing ones is made one of numbers."""
    array = np.asarray(values)
    return array if array.dtype != object else _numbers(array)


def _numbers(array: np.ndarray) -> np.ndarray:
    """Objects that are numbers as such: missing ones (None, NaN, pandas' NA) make it FP64 with NaN. Any other array stays as it is."""
    values = array.reshape(-1).tolist()
    if any(isinstance(value, str | bytes) for value in values):
        return array
    given = [float("nan") if _is_missing(value) else value for value in values]
    try:
        made = np.array(given)
        return made.reshape(array.shape) if made.dtype.kind in "biuf" else made.astype(np.float64).reshape(array.shape)
    except (TypeError, ValueError):
        return array


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and value != value)


def make_tensor(name: str, values: Any, spec: TensorSpec | None) -> Tensor:
    """Make an input of an array, or of a number, text or list of them.

    Args:
        name: of the input.
        values: a tensor is sent as it is, under this name; an array travels with its own datatype; anything else becomes the spec's.
        spec: what the model says of the input; None: it says nothing.

    Raises:
        InvalidInput: no tensor can be made of it without loss.
    """
    if isinstance(values, Tensor):
        return Tensor(name, values.datatype, values.shape, values.data, values.parameters)
    try:
        array = np.asarray(values)
    except ValueError:
        raise InvalidInput(f"input {name!r}: the lists differ in length, and a tensor is rectangular") from None
    if array.dtype == object and spec is not None and spec.datatype in _FLOATS and needs_spec(values):
        array = _numbers(array)
    if array.dtype.kind in "SUO":
        if array.dtype.kind != "O" and spec is not None and spec.datatype != BYTES and needs_spec(values):
            first = next(iter(array.reshape(-1).tolist()), "")
            raise InvalidInput(
                f"input {name!r}: text came, such as {first[:40]!r}, and the model takes {spec.datatype}; send numbers, as in [[1, 2]]"
            )
        return _bytes_tensor(name, array)
    if spec is not None and needs_spec(values):
        return _cast(name, array, spec)
    try:
        datatype = datatype_of(array.dtype)
    except KeyError:
        raise InvalidInput(
            f"input {name!r}: an array of {array.dtype} has no place in the protocol; "
            "send numbers, booleans, text or bytes (dates as text or as seconds)"
        ) from None
    array = np.ascontiguousarray(array, NUMPY_DTYPES[datatype]).reshape(array.shape)
    return Tensor(name, datatype, array.shape, array)


def _bytes_tensor(name: str, array: np.ndarray) -> Tensor:
    values = np.empty(array.size, dtype=object)
    for index, value in enumerate(array.reshape(-1).tolist()):
        if isinstance(value, str):
            values[index] = value.encode()
        elif isinstance(value, bytes):
            values[index] = value
        else:
            mend = (
                "it is missing, for which text has no word: fill it in"
                if _is_missing(value)
                else "an array of objects holds text or bytes; make one of numbers with array.astype(float)"
            )
            raise InvalidInput(f"input {name!r}: element {index} is of type {type(value).__name__}; {mend}")
    return Tensor(name, BYTES, array.shape, values.reshape(array.shape))


def _cast(name: str, array: np.ndarray, spec: TensorSpec) -> Tensor:
    if spec.datatype == BYTES or spec.datatype not in NUMPY_DTYPES:
        raise InvalidInput(f"input {name!r}: numbers came, and the model takes {spec.datatype}; send text or bytes")
    dtype = NUMPY_DTYPES[spec.datatype]
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        # To a float type a value is rounded to the nearest; into whole numbers and booleans it must fit.
        lossless = dtype.kind == "f" or bool((cast.astype(array.dtype) == array).all() and (cast == array).all())
    if not lossless:
        raise InvalidInput(f"input {name!r}: the model takes {spec.datatype}, and not every value is one")
    return Tensor(name, spec.datatype, cast.shape, cast)
