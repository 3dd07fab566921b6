"""A model's signature: what MLflow says of its inputs, outputs and parameters, as tensors of the protocol.

A column of a DataFrame is a tensor [n] of its own; a tensor is a tensor. Texts, dates (ISO 8601) and bytes are BYTES; what has parts of its own
(Array, Object, Map, Any) is its JSON text, one a row.

Source: `mlflow.types.schema` of 2.x and 3.x (`ColSpec`, `TensorSpec`, `ParamSpec`, and their `to_dict`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from serinus.errors import ConfigError
from serinus.protocol.datatypes import datatype_of
from serinus.protocol.types import TensorSpec

__all__ = ["NO_SIGNATURE", "Column", "MlSignature", "Parameter", "read_signature", "told"]

_DATATYPES: Final = {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "binary": "BYTES",
    "datetime": "BYTES",
}
"""Of `mlflow.types.DataType`."""
_PARTED: Final = frozenset({"array", "object", "map", "any", "sparkml_vector"})
_MOST_COLUMNS: Final = 100_000
_MOST_TOLD: Final = 120
_MOST_DTYPE: Final = 32
"""Characters; NumPy reads a list of kinds in one text too, and takes a second for 200 KB of it."""


@dataclass(frozen=True, slots=True)
class Column:
    """One input or output."""

    spec: TensorSpec
    kind: str
    """MLflow's type of a column; `tensor`: a tensor; `json`: a type that has parts."""
    is_named: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of inference."""

    name: str
    kind: str
    default: Any
    is_list: bool


@dataclass(frozen=True, slots=True)
class MlSignature:
    """Empty parts: the model does not say."""

    inputs: tuple[Column, ...] = ()
    outputs: tuple[Column, ...] = ()
    parameters: Mapping[str, Parameter] | None = None

    @property
    def is_frame(self) -> bool:
        """The model takes columns, and no tensors."""
        return bool(self.inputs) and all(column.kind != "tensor" for column in self.inputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """Of the columns or tensors; empty: they have none."""
        return tuple(column.spec.name for column in self.inputs) if all(c.is_named for c in self.inputs) else ()

    @property
    def told(self) -> dict[str, Any]:
        """What of it the metadata say beside the tensors."""
        found: dict[str, Any] = {}
        optional = [column.spec.name for column in self.inputs if column.spec.optional]
        if optional:
            found["optional_inputs"] = optional
        kinds = {
            c.spec.name: c.kind
            for c in self.inputs
            if c.kind not in ("tensor", *_DATATYPES) or c.kind in ("binary", "datetime")
        }
        if kinds:
            found["input_kinds"] = kinds
        if self.parameters:
            found["parameters"] = {p.name: {"type": p.kind, "default": p.default} for p in self.parameters.values()}
        return found


NO_SIGNATURE: Final = MlSignature()


def read_signature(document: object, where: str) -> MlSignature:
    """Read what `MLmodel` has under `signature`.

    Args:
        document: a mapping whose values are JSON texts; None: there is none.
        where: the file, for messages.

    Raises:
        ConfigError: it is none.
    """
    if document is None:
        return NO_SIGNATURE
    if not isinstance(document, dict):
        raise ConfigError(f"{where}: signature is no mapping")
    listed = _listed(document, "params", where)
    parameters = None
    if listed is not None:
        parameters = {made.name: made for made in (_parameter(entry, where) for entry in listed)}
    return MlSignature(
        _columns(document, "inputs", "input-", where), _columns(document, "outputs", "output-", where), parameters
    )


def _listed(document: Mapping[str, Any], key: str, where: str) -> list[Any] | None:
    value = document.get(key)
    if value is None:
        return None
    try:
        listed = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: signature.{key}: not JSON: {str(error)[:200]}") from None
    if isinstance(listed, dict):  # outputs of a type of their own are written alone
        listed = [listed]
    if not isinstance(listed, list) or len(listed) > _MOST_COLUMNS:
        raise ConfigError(f"{where}: signature.{key}: a list of at most {_MOST_COLUMNS} was expected")
    return listed


def _columns(document: Mapping[str, Any], key: str, prefix: str, where: str) -> tuple[Column, ...]:
    columns = tuple(
        _column(entry, index, prefix, f"{where}: signature.{key}[{index}]")
        for index, entry in enumerate(_listed(document, key, where) or ())
    )
    counts = Counter(column.spec.name for column in columns)
    twice = min((name for name, count in counts.items() if count > 1), default=None)
    if twice is not None:
        raise ConfigError(f"{where}: signature.{key}: {told(twice)} is there more than once")
    return columns


def _column(entry: object, index: int, prefix: str, where: str) -> Column:
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: a mapping was expected")
    name = entry.get("name")
    if name is not None and not isinstance(name, str | int):
        raise ConfigError(f"{where}: its name is {told(name)}; a text was expected")
    shown = f"{prefix}{index}" if name is None else str(name)
    optional = entry.get("required") is False or entry.get("optional") is True
    kind = entry.get("type")
    if kind == "tensor":
        datatype, shape = _tensor(entry.get("tensor-spec"), where)
        return Column(TensorSpec(shown, datatype, shape, optional=optional), "tensor", name is not None)
    kind = kind.lower() if isinstance(kind, str) else ""
    if kind in _DATATYPES:
        return Column(TensorSpec(shown, _DATATYPES[kind], (-1,), optional=optional), kind, name is not None)
    if kind in _PARTED:
        return Column(TensorSpec(shown, "BYTES", (-1,), optional=optional), "json", name is not None)
    known = ", ".join((*_DATATYPES, "tensor", *sorted(_PARTED)))
    raise ConfigError(f"{where}: its type is {told(entry.get('type'))}; one of {known} was expected")


def told(value: object) -> str:
    """Put a value of somebody's file into a message, the beginning of it."""
    text = repr(value)
    return text if len(text) <= _MOST_TOLD else f"{text[:_MOST_TOLD]}..."


def _tensor(document: object, where: str) -> tuple[str, tuple[int, ...]]:
    if not isinstance(document, dict) or not isinstance(document.get("shape"), list):
        raise ConfigError(f"{where}: tensor-spec needs dtype and shape")
    shape = document["shape"]
    if not all(type(size) is int and -1 <= size < 1 << 63 for size in shape) or len(shape) > 32:
        raise ConfigError(f"{where}: shape is {told(shape)}; whole numbers were expected, -1 for what may vary")
    dtype = document.get("dtype")
    try:
        kind = np.dtype(dtype if isinstance(dtype, str) and len(dtype) <= _MOST_DTYPE else "no kind")
        datatype = "BYTES" if kind.kind in "USO" else datatype_of(kind)
    except (TypeError, ValueError, KeyError):
        raise ConfigError(f"{where}: dtype {told(dtype)} is none that the protocol carries") from None
    return datatype, tuple(shape)


def _parameter(entry: object, where: str) -> Parameter:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"{where}: signature.params: an entry without a name")
    kind = entry.get("type", entry.get("dtype"))
    return Parameter(
        entry["name"], kind if isinstance(kind, str) else "any", entry.get("default"), bool(entry.get("shape"))
    )
