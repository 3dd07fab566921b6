"""Which columns of a table are which inputs of a model, and outputs as columns.

A model's inputs are found in the table, by the first of these that fits: columns called as the model's own columns (each travels with its
own type, as the model was trained on it); columns called as its inputs; or, of a model that takes one matrix, all columns of
numbers but those that are only kept, in the table's order. Nothing is guessed beyond that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import ConfigError, InvalidInput
from ..protocol.datatypes import BYTES, NUMPY_DTYPES, datatype_of
from ..protocol.types import ModelMetadata, Tensor, TensorSpec

__all__ = ["ColumnMapping", "output_columns"]


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """The way from a batch of rows to the tensors of a request."""

    columns: tuple[str, ...]
    matrix: TensorSpec | None = None
    """The one input that all columns are; None: each is its own."""
    specs: tuple[TensorSpec | None, ...] = ()
    """Of each column that is an input; None: it travels with its own type."""
    datatypes: Mapping[str, str] = field(default_factory=dict)
    """What the model says of columns that travel with their own types, by name; where it says nothing, there is none."""

    @classmethod
    def choose(
        cls, schema: pa.Schema, metadata: ModelMetadata, *, columns: Sequence[str] = (), keep: Sequence[str] = ()
    ) -> ColumnMapping:
        """Settle it once for a whole table.

        Args:
            schema: the table's.
            metadata: the model's.
            columns: those that may be inputs, in this order; none: all but the kept ones.
            keep: columns that go to the output as they are.

        Raises:
            ConfigError: the table lacks a column, or no way fits; with what the model takes.
        """
        missing = [name for name in (*columns, *keep) if name not in schema.names]
        if missing:
            raise ConfigError(f"the table has no column {_listed(missing)}; its columns are {_listed(schema.names)}")
        there = list(columns) or [name for name in schema.names if name not in keep]
        own = metadata.column_names
        if own and set(own) <= set(schema.names):
            datatypes = {spec.name: spec.datatype for spec in metadata.inputs}
            return cls(tuple(own), None, (None,) * len(own), datatypes)
        inputs = metadata.inputs
        required = [spec for spec in inputs if not spec.optional] or list(inputs)
        if required and all(spec.name in schema.names for spec in required):
            used = tuple(spec for spec in inputs if spec.name in schema.names)
            return cls(tuple(spec.name for spec in used), None, used)
        numbers = [name for name in there if _is_number(schema.field(name).type)]
        if (
            len(required) == 1
            and required[0].datatype != BYTES
            and (len(required[0].shape) == 2 or required[0].any_rank)
        ):
            width = required[0].shape[1] if len(required[0].shape) == 2 else -1
            chosen = there if columns else numbers
            if chosen and width in (-1, len(chosen)) and set(chosen) <= set(numbers):
                return cls(tuple(chosen), required[0])
        takes = (
            ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in inputs) or "nothing that it says"
        )
        named = f"; its columns are called {_listed(own)}" if own else ""
        wanted = list(own) or [spec.name for spec in required]
        absent = _absent(wanted, schema.names) if own or len(required) > 1 else ""
        mend = (
            "Give the columns the model's names"
            if absent and len(required) > 1
            else "Name those that are inputs (--columns a,b,c), or rename them as the model's inputs"
        )
        raise ConfigError(
            f"the table's columns do not make the model's inputs{absent}. The model takes {takes}{named}. The table has "
            f"{len(numbers)} columns of numbers of {len(there)}: {_listed(there)}. {mend}"
        )

    def tensors(self, batch: pa.RecordBatch) -> list[Tensor]:
        """Make a request's tensors of a batch of rows.

        Raises:
            InvalidInput: a value is missing where there is no way to say so, or no tensor can be made of it.
        """
        if self.matrix is None:
            return [
                _tensor(name, batch.column(name), spec, self.datatypes.get(name, BYTES))
                for name, spec in zip(self.columns, self.specs, strict=True)
            ]
        dtype = NUMPY_DTYPES[self.matrix.datatype]
        matrix = np.empty((batch.num_rows, len(self.columns)), dtype)
        for index, name in enumerate(self.columns):
            matrix[:, index] = _fitted(name, _numbers(name, batch.column(name)), dtype)
        return [Tensor(self.matrix.name, self.matrix.datatype, matrix.shape, matrix)]


def _is_number(kind: pa.DataType) -> bool:
    return (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or (types.is_dictionary(kind) and _is_text(kind.value_type))
    )


def _tensor(name: str, column: pa.Array, spec: TensorSpec | None, datatype: str) -> Tensor:
    kind = column.type
    if _is_text(kind):
        if spec is not None:
            datatype = spec.datatype
        if datatype != BYTES:
            raise InvalidInput(f"column {name!r} holds text, the model takes {datatype}{_no_number(column)}")
        return _bytes_tensor(name, column, spec)
    array = _numbers(name, column)
    if spec is None:
        return Tensor(name, datatype_of(array.dtype), array.shape, array)
    if spec.datatype == BYTES:
        raise InvalidInput(f"column {name!r} holds {kind}, the model takes text (BYTES)")
    array = _fitted(name, array, NUMPY_DTYPES[spec.datatype])
    array = array.reshape(_shape(array, spec))
    return Tensor(name, spec.datatype, array.shape, array)


def _no_number(column: pa.Array) -> str:
    """Which text keeps a column from being one of numbers. A format without types makes a column of text of one such value."""
    for row, value in enumerate(column.to_pylist()):
        try:
            float(value or "nan")
        except ValueError:
            shown = value.decode(errors="replace") if isinstance(value, bytes) else value
            return f": {shown[:40]!r} in row {row + 1} of these is no number"
    return "; in these rows each is a number, so write them as numbers, or look for a text further below"


def _absent(wanted: Sequence[str], there: Sequence[str]) -> str:
    """Names that a table lacks, and those that it may have meant: the same but for upper case and the blanks around them."""
    absent = [name for name in wanted if name not in there]
    plain = {name.strip().lower(): name for name in there}
    meant = [plain[name.strip().lower()] for name in absent if name.strip().lower() in plain]
    if not absent:
        return ""
    return f": missing are {_listed(absent)}" + (f" (the table has {_listed(meant)})" if meant else "")


def _bytes_tensor(name: str, column: pa.Array, spec: TensorSpec | None) -> Tensor:
    values: list[Any] = column.to_pylist()
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        if value is None and spec is not None:  # a column of the model's own may lack values, an input may not
            raise InvalidInput(f"column {name!r} lacks a value, and BYTES has no word for that")
        array[index] = value.encode() if isinstance(value, str) else value
    if spec is not None:
        array = array.reshape(_shape(array, spec))
    return Tensor(name, BYTES, array.shape, array)


def _shape(array: np.ndarray, spec: TensorSpec) -> tuple[int, ...]:
    """Rows first; a column of single values is [n], or [n, 1] where the model says so; flat lists get the model's own dimensions."""
    inner = spec.shape[1:]
    if spec.any_rank or not spec.shape or array.ndim == len(spec.shape):
        return array.shape
    if -1 not in inner:
        return (array.shape[0], *inner) if array.size == array.shape[0] * int(np.prod(inner)) else array.shape
    return (*array.shape, 1) if array.ndim == 1 and len(inner) == 1 else array.shape


def _numbers(name: str, column: pa.Array) -> np.ndarray:
    """A column as an array of numbers, rows first; missing ones are NaN.

    Raises:
        InvalidInput: it holds no numbers, or lists of different lengths.
    """
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if column.null_count:
            raise InvalidInput(f"column {name!r} lacks a list in one of its rows")
        flat = column.flatten()
        rows = len(column)
        lengths = {kind.list_size} if pa.types.is_fixed_size_list(kind) else set(column.value_lengths().to_pylist())
        if len(lengths) > 1:
            raise InvalidInput(
                f"column {name!r} holds lists of {min(lengths)} to {max(lengths)} values; a tensor is rectangular"
            )
        inner = _numbers(name, flat)
        return inner.reshape(rows, (lengths or {0}).pop(), *inner.shape[1:])
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    elif not _is_number(kind):
        raise InvalidInput(
            f"column {name!r} holds {kind}; a model takes numbers, booleans or text (dates as seconds or as text)"
        )
    if column.null_count and not pa.types.is_floating(column.type):
        column = column.cast(pa.int8()).cast(pa.float64()) if pa.types.is_boolean(kind) else column.cast(pa.float64())
    return np.array(column.to_numpy(zero_copy_only=False))


def _fitted(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """As the model's type: to a float the nearest, into whole numbers only what is one.

    Raises:
        InvalidInput: a value is none of that type.
    """
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        cast = array.astype(dtype)
        if dtype.kind != "f" and not (cast == array).all():
            odd = array.reshape(-1)[int(np.argmax((cast != array).reshape(-1)))]
            raise InvalidInput(f"column {name!r}: the model takes {dtype}, which {odd!s} is not")
    return cast


def output_columns(tensors: Sequence[Tensor], rows: int) -> dict[str, pa.Array]:
    """Make columns of an answer's outputs: a value a row, or a list of fixed size.

    Raises:
        ConfigError: an output has another number of rows than the request, so it cannot stand beside them.
    """
    columns: dict[str, pa.Array] = {}
    for tensor in tensors:
        data = tensor.data
        if data.ndim == 0 or data.shape[0] != rows:
            raise ConfigError(
                f"output {tensor.name!r} has shape {list(data.shape)} for {rows} rows: it is not one value a row; "
                "name the outputs that are (--want)"
            )
        if data.ndim == 2 and data.shape[1] == 1:
            data = data[:, 0]
        columns[tensor.name] = _array(tensor, data)
    return columns


def _array(tensor: Tensor, data: np.ndarray) -> pa.Array:
    if data.ndim > 1:
        inner = _array(tensor, data.reshape(data.shape[0] * data.shape[1], *data.shape[2:]))
        return pa.FixedSizeListArray.from_arrays(inner, data.shape[1])
    if tensor.datatype != BYTES:
        return pa.array(np.ascontiguousarray(data))
    try:
        return pa.array([value.decode() if isinstance(value, bytes) else str(value) for value in data], pa.string())
    except UnicodeDecodeError:
        raise ConfigError(
            f"output {tensor.name!r} holds bytes that are no text, which a table cannot show; leave it out (--want)"
        ) from None


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown or "none"
