"""The V1 protocol, `:predict` bodies: rows and columns to V2 requests and back.

Sources: TensorFlow Serving, api_rest.md, "Predict API" (row format, column format, "Encoding binary values"); KServe,
"V1 Protocol", which is its row format.

  - `{"instances": [...]}` is the row format: one entry per row, a value (for a model of one input) or an object of named values.
    It is answered with `{"predictions": [...]}`, one entry per row.
  - `{"inputs": ...}` is the column format: the whole tensor, or an object of named tensors. It is answered with `{"outputs": ...}`.
    An array of objects is rows all the same, as KServe's lgbserver has it, and answered like them.
  - A model whose columns have names takes rows of these, too: `{"age": 50, "city": "oslo"}`, each column with the datatype that its
    values have, in any order; also as pandas writes frames, a cell as `{"0": 50}` or `[50]`, and rows as arrays with texts among numbers.
  - `NaN`, `Infinity` and `-Infinity` are taken, though no JSON ("JSON conformance"), and null for NaN; answers stay JSON and hold null,
    unless the server's `json_not_finite` says otherwise.
  - `{"b64": "..."}` stands for bytes wherever a string may stand; outputs that are not UTF-8 are answered so,
    and outputs whose name ends in `_bytes` always.
  - `signature_name` chooses one of the model's signatures; what has none of its own has `serving_default` alone. Another is refused.
Datatypes come from the model's metadata; a model that says nothing of its inputs gets BOOL, INT64, FP64 or BYTES, as the
values are.
"""

from __future__ import annotations

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ..errors import InvalidInput, TooLarge
from .datatypes import BYTES, NUMPY_DTYPES
from .documents.json_values import NotFinite, bytes_as_json, dump_document
from .documents.tensorflow_serving import DEFAULT_SIGNATURE
from .json_codec import decode_data, describe, flatten, load_object
from .types import NO_PARAMETERS, InferRequest, InferResponse, Limits, ModelMetadata, Tensor

__all__ = ["DEFAULT_INPUT", "V1Payload", "decode", "encode", "to_request"]

DEFAULT_INPUT = "input-0"
"""Name of the input of a model that names none (KServe's and MLServer's convention)."""

_NO_LIMITS = Limits()


_V2_TENSOR: Final = frozenset({"name", "shape", "datatype", "data"})
"""Members of a tensor in V2's JSON (inference_rest.md, "Request Input")."""


@dataclass(frozen=True, slots=True)
class V1Payload:
    """A `:predict` body, checked as far as it can be without knowing the model."""

    document: dict[str, Any]
    """The whole body, for models that answer V1 themselves."""
    is_columns: bool
    """Column format: `inputs` came, not `instances`."""
    columns: dict[str, Any]
    """Values by input name; the name is empty where the body gives none."""
    signature_name: str = ""
    """TensorFlow Serving's choice of signature; empty: the default one."""


def decode(body: bytes, limits: Limits = _NO_LIMITS) -> V1Payload:
    """Read a `:predict` body.

    Raises:
        InvalidInput: neither or both formats, no rows, or rows whose names differ.
        TooLarge: one of the limits was passed.
    """
    document = load_object(body, "the request body", limits, not_finite=True)
    signature = document.get("signature_name")
    if signature is not None and type(signature) is not str:
        raise InvalidInput(f"'signature_name' is {describe(signature)}, a string was expected")
    rows, inputs = document.get("instances"), document.get("inputs")
    if rows is None and type(inputs) is list and inputs and _is_named(inputs[0]):
        rows, inputs = inputs, None
    has_rows, has_columns = rows is not None, inputs is not None
    if has_rows == has_columns:
        found = "both are" if has_rows else "neither is"
        raise InvalidInput(f"'instances' (row format) or 'inputs' (column format) was expected, {found} there")
    columns = _columns_of(inputs) if has_columns else _columns_of_rows(rows)
    if len(columns) > limits.tensors:
        raise TooLarge(f"the body names {len(columns)} inputs, the limit is {limits.tensors} (max_tensors)")
    return V1Payload(document, has_columns, columns, signature or "")


def _is_named(value: Any) -> bool:
    return type(value) is dict and not (len(value) == 1 and "b64" in value)


def _columns_of(inputs: Any) -> dict[str, Any]:
    if not _is_named(inputs):
        return {"": inputs}
    if not inputs:
        raise InvalidInput("'inputs' is an empty object: at least one input was expected")
    return inputs


def _columns_of_rows(instances: Any) -> dict[str, Any]:
    if type(instances) is not list:
        raise InvalidInput(f"'instances' is {describe(instances)}, an array with one entry per row was expected")
    if not instances:
        raise InvalidInput("'instances' is empty: at least one row was expected")
    if not _is_named(instances[0]):
        for index, row in enumerate(instances):
            if _is_named(row):
                raise InvalidInput(f"instances[{index}] is an object of named inputs, instances[0] is not")
        return {"": instances}
    names = instances[0].keys()
    if not names:
        raise InvalidInput("instances[0] is an empty object: at least one input was expected")
    for index, row in enumerate(instances):
        if not _is_named(row) or row.keys() != names:
            came = f"names {_listed(row)}" if _is_named(row) else f"is {describe(row)}"
            raise InvalidInput(f"instances[{index}] {came}, instances[0] names {_listed(names)}; all rows must agree")
    return {name: [row[name] for row in instances] for name in names}


def _listed(names: Any) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "nothing"


def to_request(
    payload: V1Payload, metadata: ModelMetadata, *, model_version: str = "", limits: Limits = _NO_LIMITS
) -> InferRequest:
    """Make the V2 request that a V1 body stands for.

    Args:
        payload: from `decode`.
        metadata: the model's; its input specs name and type the tensors.
        model_version: empty: the server chooses.
        limits: rank and tensor size apply.

    Raises:
        InvalidInput: unknown inputs, ragged values, or values that the datatype does not hold.
        TooLarge: one of the limits was passed.
    """
    inputs, parameters = metadata.inputs, NO_PARAMETERS
    if not metadata.signatures and payload.signature_name not in ("", DEFAULT_SIGNATURE):
        raise InvalidInput(
            f"'signature_name' is {payload.signature_name!r}; the model has {DEFAULT_SIGNATURE!r} alone, which is used where none is named"
        )
    if metadata.signatures and payload.signature_name:
        signature = metadata.signatures.get(payload.signature_name)
        if signature is None:
            raise InvalidInput(
                f"'signature_name' is {payload.signature_name!r}; the model's signatures are {_listed(metadata.signatures)}"
            )
        inputs, parameters = signature.inputs, {"signature_name": payload.signature_name}
    specs = {spec.name: spec for spec in inputs}
    columns = payload.columns
    if columns.keys() >= _V2_TENSOR and not {*specs, *metadata.column_names} >= _V2_TENSOR:
        raise InvalidInput(
            "'inputs' holds tensors of a V2 request ('name', 'shape', 'datatype', 'data'), which goes to /v2/models/NAME/infer; V1 takes "
            "rows in 'instances', or values by name in 'inputs'"
        )
    names = metadata.column_names
    if names and "" not in columns and not (columns.keys() <= specs.keys() and len(specs) == 1):
        return _by_column(columns, metadata.name, model_version, limits)
    if names and "" in columns and _has_texts(columns[""], len(names)):
        apart = {name: [row[index] for row in columns[""]] for index, name in enumerate(names)}
        return _by_column(apart, metadata.name, model_version, limits)
    if "" in columns and len(columns) == 1:
        required = [spec.name for spec in inputs if not spec.optional] or list(specs)
        if len(required) > 1:
            raise InvalidInput(f"the model has {len(required)} inputs ({_listed(required)}): name each one's values")
        columns = {required[0] if required else DEFAULT_INPUT: columns[""]}
    unknown = columns.keys() - specs.keys()
    if specs and unknown:
        raise InvalidInput(f"the model has no input {_listed(unknown)}; its inputs are {_listed(specs)}")
    tensors = []
    for name, value in columns.items():
        what = f"input {name!r}"
        shape = _shape_of(what, value, limits)
        spec = specs.get(name)
        values: list[Any] | None = None
        if spec is None or spec.datatype == BYTES:  # numbers are flattened as they are decoded
            values = flatten(what, shape, value) if shape else [value]
        datatype = spec.datatype if spec else _datatype_of(what, values or [])
        if datatype == BYTES and values is not None:
            values = [_text(what, index, element) for index, element in enumerate(values)]
            array = np.empty(len(values), dtype=object)
            array[:] = values
            tensors.append(Tensor(name, BYTES, shape, array.reshape(shape)))
        else:
            data = value if shape else [value]
            tensors.append(Tensor(name, datatype, shape, decode_data(what, datatype, shape, data, limits)))
    return InferRequest(metadata.name, tensors, model_version, parameters=parameters)


def _has_texts(rows: Any, width: int) -> bool:
    """Whether the values are whole rows of columns, and texts are among them."""
    if type(rows) is not list or not all(type(row) is list and len(row) == width for row in rows):
        return False
    return any(type(value) is str or type(value) is dict for row in rows for value in row)


def _by_column(columns: dict[str, Any], name: str, version: str, limits: Limits) -> InferRequest:
    """Make one tensor [n] of each column, of the datatype that its values have; a null is NaN among numbers, None among texts.

    Which columns the model has, its own checks say.
    """
    tensors = []
    for column, value in columns.items():
        what = f"input {column!r}"
        values = [one for cell in (value if type(value) is list else [value]) for one in _cells(cell)]
        there = [one for one in values if one is not None]
        odd = next((one for one in there if type(one) is list or _is_named(one)), None)
        if odd is not None:
            raise InvalidInput(f"{what}: {describe(odd)} came for one row, a value was expected")
        datatype = _datatype_of(what, there)
        shape = (len(values),)
        if datatype == BYTES:
            array = np.empty(len(values), dtype=object)
            array[:] = [None if one is None else _text(what, index, one) for index, one in enumerate(values)]
            tensors.append(Tensor(column, BYTES, shape, array))
            continue
        if len(there) < len(values):
            datatype = "FP64"
            values = [math.nan if one is None else float(one) if type(one) is bool else one for one in values]
        tensors.append(Tensor(column, datatype, shape, decode_data(what, datatype, shape, values, limits)))
    return InferRequest(name, tensors, version)


def _cells(cell: Any) -> list[Any]:
    """A cell's values: itself, those of an array, or those of an object by index, as `DataFrame.to_dict` writes them."""
    if type(cell) is list:
        return cell
    if type(cell) is dict and not (len(cell) == 1 and "b64" in cell):
        return list(cell.values())
    return [cell]


def _shape_of(what: str, value: Any, limits: Limits) -> tuple[int, ...]:
    """Read the dimensions off the first element of each level; `flatten` holds the others to them."""
    shape = []
    while type(value) is list:
        shape.append(len(value))
        if len(shape) > limits.rank:
            raise InvalidInput(f"{what}: values are nested deeper than {limits.rank} levels (max_rank)")
        if not value:
            break
        value = value[0]
    return tuple(shape)


def _datatype_of(what: str, values: list[Any]) -> str:
    kinds = set(map(type, values))
    if type(None) in kinds:
        if not kinds <= {int, float, type(None)}:
            raise InvalidInput(f"{what} holds null, which stands for a missing number, beside what is no number")
        return "FP64"
    if kinds <= {bool}:
        return "BOOL" if kinds else "FP64"
    if kinds <= {str, dict}:
        return BYTES
    if kinds <= {int}:
        return "INT64" if min(values) >= -(2**63) and max(values) < 2**63 else "UINT64"
    if kinds <= {int, float}:
        return "FP64"
    odd = next(value for value in values if type(value) is not type(values[0]))
    raise InvalidInput(f"{what}: {describe(values[0])} and {describe(odd)} do not make one tensor")


def _text(what: str, index: int, element: Any) -> bytes:
    if type(element) is str:
        return element.encode()
    if type(element) is dict and type(element.get("b64")) is str and len(element) == 1:
        try:
            return base64.b64decode(element["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise InvalidInput(f"{what}: value {index}: 'b64' is not base64") from None
    raise InvalidInput(f'{what}: value {index} is {describe(element)}, a string or {{"b64": ...}} was expected')


def encode(response: InferResponse, payload: V1Payload, not_finite: NotFinite = "null") -> bytes:
    """Write the body that answers a `:predict` request in its own format.

    Raises:
        InvalidInput: rows were asked for, and the outputs do not all have as many rows; or an infinity where those are refused.
    """
    outputs = response.outputs
    if payload.is_columns:
        columns = {tensor.name: _values(tensor) for tensor in outputs}
        document: dict[str, Any] = {"outputs": columns if len(columns) != 1 else next(iter(columns.values()))}
    elif len(outputs) == 1:
        document = {"predictions": _values(outputs[0])}
    else:
        lengths = {tensor.shape[0] if tensor.shape else -1 for tensor in outputs}
        if len(lengths) > 1 or -1 in lengths:
            shapes = ", ".join(f"{tensor.name!r} {list(tensor.shape)}" for tensor in outputs)
            raise InvalidInput(
                f"the outputs have different numbers of rows ({shapes}); ask in column format ('inputs')"
            )
        values = {tensor.name: _values(tensor) for tensor in outputs}
        rows = range(lengths.pop() if lengths else 0)
        document = {"predictions": [{name: column[row] for name, column in values.items()} for row in rows]}
    return dump_document(document, not_finite)


def _values(tensor: Tensor) -> Any:
    """Return what is written as nested arrays."""
    if tensor.datatype != BYTES:
        return np.asarray(tensor.data, NUMPY_DTYPES[tensor.datatype]).reshape(tensor.shape)
    binary = tensor.name.endswith("_bytes")
    texts = np.empty(tensor.data.shape, dtype=object)
    for index, element in np.ndenumerate(tensor.data):
        texts[index] = _written(element, binary)
    return texts.tolist()


def _written(element: Any, binary: bool) -> Any:
    if not isinstance(element, bytes):
        return str(element)
    return {"b64": base64.b64encode(element).decode()} if binary else bytes_as_json(element)
