"""Bodies of MLflow's scoring server, read for a model that one of our runtimes serves, and its answers.

Of `dataframe_split`, `dataframe_records`, `instances` and `inputs` exactly one, and `params`; or CSV with a header. As MLflow does where there is a signature:
columns come in any order, those that the model does not know are left out, and one that is missing is refused by name.

A body may be written so that it becomes far more than it is: records that each bring a column of their own, a text of a megabyte among thousands of
short ones, lines of CSV that hold next to nothing. What becomes of it is counted before it is made.

Source: mlflow.org, "Deploy MLflow Model as a Local Inference Server"; `mlflow.pyfunc.scoring_server` and `mlflow.utils.proto_json_utils` of 3.x.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np

from serinus.errors import InvalidInput, TooLarge, UnsupportedMedia
from serinus.model import Model
from serinus.protocol.datatypes import BYTES, NUMPY_DTYPES
from serinus.protocol.json_census import MOST_CONTAINERS, MOST_VALUES
from serinus.protocol.json_codec import describe, load_object
from serinus.protocol.types import InferRequest, InferResponse, Limits, Tensor, TensorSpec

from .flavours import Answer
from .signature import MlSignature

__all__ = ["Asked", "predictions", "read_body", "to_request"]

_FORMS: Final = ("dataframe_split", "dataframe_records", "instances", "inputs")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a body asks: columns by name, or one array."""

    columns: Mapping[str, list[Any]] | None
    array: Any
    """Lists as they came, where there are no columns."""
    is_frame: bool
    """MLflow makes a DataFrame of it, and answers in its way."""


def read_body(body: bytes, content_type: str, limits: Limits = Limits()) -> Asked:  # noqa: B008 # frozen
    """Read a body.

    Raises:
        InvalidInput: it is none of the forms.
        TooLarge: it is, or becomes, more than is read.
        UnsupportedMedia: a content type that is not read here.
    """
    kind, _, rest = content_type.partition(";")
    charset = rest.partition("charset=")[2].strip().strip('"').lower()
    if charset not in ("", "utf-8"):
        raise UnsupportedMedia(f"the body is in {charset[:40]}; only UTF-8 is read")
    kind = kind.strip().lower() or "application/json"
    if kind == "text/csv":
        return _csv(body)
    if kind != "application/json":
        raise UnsupportedMedia(f"the content type is {kind[:80]!r}; application/json or text/csv was expected")
    document = load_object(body, "the request body", limits, not_finite=True)
    forms = [form for form in _FORMS if form in document]
    if len(forms) != 1:
        came = ", ".join(str(key)[:40] for key in list(document)[:8]) or "nothing"
        raise InvalidInput(f"the body has {came}; exactly one of {', '.join(_FORMS)} was expected")
    form = forms[0]
    data = document[form]
    if form == "dataframe_split":
        return _split(data)
    if form == "dataframe_records":
        return _records(data, form, is_frame=True)
    if form == "instances" and isinstance(data, list) and data and isinstance(data[0], dict):
        return _records(data, form, is_frame=False)
    if isinstance(data, dict):
        if form == "instances":
            raise InvalidInput("instances: a list was expected; named columns are 'inputs'")
        return Asked({name: value if isinstance(value, list) else [value] for name, value in data.items()}, None, False)
    if not isinstance(data, list):
        raise InvalidInput(f"{form}: a list was expected")
    return Asked(None, data, False)


def _split(data: object) -> Asked:
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("data"), list)
        or data.keys() - {"data", "columns", "index"}
    ):
        raise InvalidInput("dataframe_split: an object with 'data', and perhaps 'columns' and 'index', was expected")
    rows, names = data["data"], data.get("columns")
    if names is None:
        return Asked(None, rows, True)
    if not isinstance(names, list) or len(set(map(str, names))) != len(names):
        raise InvalidInput("dataframe_split: 'columns' has to be a list of names, each once")
    for index, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(names):
            count = len(row) if isinstance(row, list) else "no list of"
            raise InvalidInput(f"dataframe_split: row {index} has {count} values, for {len(names)} columns")
    return Asked({str(name): [row[place] for row in rows] for place, name in enumerate(names)}, None, True)


def _records(data: object, form: str, *, is_frame: bool) -> Asked:
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise InvalidInput(f"{form}: a list of objects was expected, one a row")
    names = dict.fromkeys(name for row in data for name in row)
    if len(names) * len(data) > MOST_VALUES:
        raise TooLarge(
            f"{form}: {len(data)} rows of {len(names)} different names are a table of more than {MOST_VALUES} values; send several requests, "
            "or rows with the same names"
        )
    if not is_frame and any(row.keys() != names.keys() for row in data):
        raise InvalidInput(f"{form}: every object has to have the same names")
    return Asked({name: [row.get(name) for row in data] for name in names}, None, is_frame)


def _csv(body: bytes) -> Asked:
    names: list[str] | None = None
    rows: list[list[str]] = []
    try:
        lines = csv.reader(io.StringIO(body.decode("utf-8-sig")))
        for row in lines:
            if names is None:
                names = row
            elif row:
                if len(row) != len(names):
                    raise InvalidInput(f"row {len(rows)} of the CSV has {len(row)} values, for {len(names)} columns")
                rows.append(row)
                if len(rows) > MOST_CONTAINERS or len(rows) * len(names) > MOST_VALUES:
                    raise TooLarge(
                        f"the CSV has more than {MOST_CONTAINERS} rows or {MOST_VALUES} values; send several requests"
                    )
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInput(f"the body is no CSV in UTF-8: {error}") from None
    if names is None or len(set(names)) != len(names):
        raise InvalidInput("the body is no CSV with a header of names, each once")
    return Asked({name: _typed([row[place] for row in rows]) for place, name in enumerate(names)}, None, True)


def _typed(texts: Sequence[str]) -> list[Any]:
    """Numbers where all of a column are, empty ones missing; else texts."""
    try:
        return [None if not text.strip() else float(text) for text in texts]
    except ValueError:
        return [text or None for text in texts]


def to_request(asked: Asked, model: Model, signature: MlSignature) -> InferRequest:
    """Make the request that a body stands for.

    Args:
        asked: of `read_body`.
        model: loaded; its columns and inputs decide.
        signature: whose names are those of a matrix that has none itself.

    Raises:
        InvalidInput: what came does not fit them.
    """
    columns = asked.columns
    if columns is not None and not any(isinstance(values, list) for values in columns.values()):
        raise InvalidInput("the body has no columns")
    if columns is not None and model.columns is not None:
        names = model.columns.names
        chosen = _chosen(columns, names, ())
        return InferRequest(
            model.name, [Tensor.of(name, _array(values, name, None)) for name, values in chosen.items()]
        )
    if columns is not None and len(model.inputs) > 1:
        optional = tuple(spec.name for spec in model.inputs if spec.optional)
        chosen = _chosen(columns, tuple(spec.name for spec in model.inputs), optional)
        specs = {spec.name: spec for spec in model.inputs}
        return InferRequest(
            model.name, [_tensor(_array(values, name, specs[name]), specs[name]) for name, values in chosen.items()]
        )
    if len(model.inputs) != 1:
        raise InvalidInput(f"the model takes {len(model.inputs)} inputs; send them by name")
    spec = model.inputs[0]
    if columns is None:
        return InferRequest(model.name, [_tensor(_array(asked.array, spec.name, spec), spec)])
    if len(columns) == 1 and (not asked.is_frame or spec.name in columns or len(spec.shape) == 1):
        return InferRequest(model.name, [_tensor(_array(next(iter(columns.values())), spec.name, spec), spec)])
    if len(spec.shape) != 2:
        raise InvalidInput(f"columns came, and the model takes one input {spec.name!r} of shape {list(spec.shape)}")
    chosen = columns
    if signature.is_frame and signature.input_names:
        chosen = _chosen(columns, signature.input_names, ())
    made = [_array(values, name, None) for name, values in chosen.items()]
    odd = next(
        (name for name, array in zip(chosen, made, strict=True) if array.ndim != 1 or array.dtype == object), None
    )
    if odd is not None:
        raise InvalidInput(f"column {odd!r}: one number a row was expected")
    return InferRequest(model.name, [_tensor(np.column_stack(made), spec)])


def _chosen(columns: Mapping[str, list[Any]], names: Sequence[str], optional: Sequence[str]) -> dict[str, list[Any]]:
    missing = [name for name in names if name not in columns and name not in optional]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise InvalidInput(
            f"the column{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing[:8]))}{more} of the model "
            f"{'are' if len(missing) > 1 else 'is'} missing; there are {', '.join(list(columns)[:8]) or 'none'}"
        )
    return {name: columns[name] for name in names if name in columns}


def _array(values: Any, name: str, spec: TensorSpec | None) -> np.ndarray:
    """Make an array of a column's values: numbers with NaN for null, or texts as objects.

    Raises:
        InvalidInput: they are neither, or of different lengths.
    """
    leaves = _leaves(values, name)
    kinds = set(map(type, leaves))
    # NumPy would give each text of an array the room of the longest one.
    is_text = str in kinds or dict in kinds or (spec is not None and spec.datatype == BYTES)
    try:
        array = np.array(values, object if is_text else None)
    except ValueError:
        raise InvalidInput(f"{name!r}: its rows have different lengths") from None
    if is_text:
        if array.size != len(leaves):
            raise InvalidInput(f"{name!r}: its rows have different lengths")
        return _encoded(array.shape, leaves, name)
    if array.dtype.kind in "biuf":
        return array
    try:
        return np.array(values, np.float64)  # None becomes NaN
    except (TypeError, ValueError, OverflowError):
        return _encoded(array.shape, leaves, name)


def _leaves(values: Any, name: str) -> list[Any]:
    """Give the values that are no lists, in their order.

    Raises:
        InvalidInput: lists and values stand beside one another.
    """
    level = values if isinstance(values, list) else [values]
    while True:
        kinds = set(map(type, level))
        if list not in kinds:
            return level
        if len(kinds) > 1:
            raise InvalidInput(f"{name!r}: its rows have different lengths")
        level = list(chain.from_iterable(level))


def _encoded(shape: tuple[int, ...], leaves: Sequence[Any], name: str) -> np.ndarray:
    made = np.empty(len(leaves), object)
    for place, value in enumerate(leaves):
        if value is not None and not isinstance(value, str):
            raise InvalidInput(
                f"{name!r}: texts and {describe(value)} are mixed, or the value is neither a number nor a text"
            )
        made[place] = None if value is None else value.encode()
    return made.reshape(shape)


def _tensor(array: np.ndarray, spec: TensorSpec) -> Tensor:
    """Bring numbers to the datatype of an input.

    Raises:
        InvalidInput: they do not fit it.
    """
    if spec.datatype == BYTES:
        if array.dtype != object:
            raise InvalidInput(f"{spec.name!r}: the model takes texts, not numbers")
        return Tensor(spec.name, BYTES, array.shape, array)
    if array.dtype == object:
        raise InvalidInput(f"{spec.name!r}: the model takes numbers, not texts")
    dtype = np.dtype(NUMPY_DTYPES[spec.datatype])
    if len(spec.shape) == 2 and array.ndim == 1 and spec.shape[1] in (-1, 1):
        array = array.reshape(-1, 1)
    with np.errstate(all="ignore"):
        made = array.astype(dtype)
        if dtype.kind in "iub" and not np.array_equal(made, array):
            raise InvalidInput(f"{spec.name!r}: the model takes {spec.datatype}, and not all numbers are of it")
    return Tensor(spec.name, spec.datatype, made.shape, made)


def predictions(response: InferResponse, answer: Answer, *, is_frame: bool) -> Any:
    """Write an answer as MLflow does: a list a row, records of columns, or lists by name.

    Args:
        response: of the model.
        answer: what the flavour's pyfunc answers.
        is_frame: it would have been asked with a DataFrame.
    """
    outputs = {tensor.name: _listed(tensor) for tensor in response.outputs}
    only = next(iter(outputs.values())) if len(outputs) == 1 else None
    if answer == "onnx":
        if not is_frame:
            return outputs
        flat = [(tensor.name, _listed(tensor, flat=True)) for tensor in response.outputs]
        return [
            dict(zip([name for name, _ in flat], row, strict=True)) for row in zip(*(v for _, v in flat), strict=True)
        ]
    if answer == "torch" and is_frame and only is not None:
        return [
            {str(place): value for place, value in enumerate(row if isinstance(row, list) else [row])} for row in only
        ]
    return only if only is not None else outputs


def _listed(tensor: Tensor, *, flat: bool = False) -> list[Any]:
    data = tensor.data.reshape(-1) if flat else tensor.data
    if tensor.datatype != BYTES:
        return data.tolist()
    texts = np.empty(data.shape, object)
    for place, value in np.ndenumerate(data):
        texts[place] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return texts.tolist()
