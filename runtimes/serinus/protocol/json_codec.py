"""Tensor data, parameters and names as JSON.

Sources: Open Inference Protocol, inference_rest.md, "Tensor Data", "Parameters", "Inference Request JSON Object".

What the specification leaves to the server, and what is done here:
  - `data` may be nested exactly as `shape` says, or flat; responses are flat, as the specification's examples are.
  - Numbers are never bent: 300 into UINT8, 1.7 into INT32 and 1e39 into FP32 are refused, 2.0 into INT32 is 2 (JSON knows one kind
    of number). NaN and Infinity are not JSON.
  - null is NaN in a floating-point tensor, a missing value: KServe's and MLServer's clients write NaN so and their servers read it so.
    No other datatype has such a value, and null there is refused.
  - BOOL takes true and false, and 0 and 1, which NumPy clients of other servers send (Triton 2.x takes only true and false).
  - FP16 and BF16 take numbers, rounded to the nearest value of the type (Triton refuses both).
  - BYTES takes strings of any Unicode text, as UTF-8. An output that is no UTF-8 cannot be JSON: the client is told to ask for it
    raw. (Triton writes its bytes into the JSON as they are, which then is none.)
  - NaN and infinite outputs are null (as ECMAScript's JSON.stringify has it; Triton writes bare NaN, which JSON parsers
    refuse), and null reads back as NaN: an infinity is lost. A server's `json_not_finite` says otherwise (see `NotFinite`); the binary
    extension and gRPC carry all of them.
  - Keys that the specification does not name are ignored, and null stands for "left out" in `id`, `parameters` and `outputs`, and in
    the parameters `content_type` and `headers`.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Mapping, Sequence
from itertools import chain
from math import prod
from typing import Any, Final

import numpy as np
import orjson

from ..errors import InvalidInput, ModelFailed, TooLarge
from .datatypes import BFLOAT16, BYTES, DATATYPES, NUMPY_DTYPES
from .documents.json_values import NotFinite, dump_array
from .json_census import check_census
from .raw import round_to_bfloat16
from .types import NO_PARAMETERS, Limits

__all__ = [
    "check_datatype",
    "check_empty",
    "check_name",
    "check_shape",
    "decode_data",
    "decode_parameters",
    "describe",
    "encode_data",
    "flatten",
    "is_nested",
    "load_object",
    "load_value",
]

_FEW_BRACKETS: Final = 256
"""Up to so many, levels are counted in the parsed document, which is quicker."""
_LARGE_BYTES: Final = 1 << 20
"""A body from which on parsing takes milliseconds."""
_LEFT_OUT_AS_NULL: Final = frozenset({"content_type", "headers"})
"""Fields of MLServer's `Parameters`, which its documents' `inference_request.dict()` writes as null where they are not set."""
_QUOTE: Final = ord('"')
_NO_MARKS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS: Final = np.zeros(256, np.int8)
"""What a character adds to the level."""
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1

_NUMBERS = frozenset({int, float})
_INTEGER_RANGES = {
    name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    for name, dtype in NUMPY_DTYPES.items()
    if dtype.kind in "iu"
}
_FLOATS = frozenset({"FP16", "FP32", "FP64", BFLOAT16})
_NULL_HINT: Final = "; null is a missing value in floating-point tensors only"
_NUMPY_JSON = orjson.OPT_SERIALIZE_NUMPY


def describe(value: Any) -> str:
    """Name a JSON value's kind for a message, without naming a Python class."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the string {_short(value)}"
    if isinstance(value, int | float):
        return _short_number(value)
    return "an array" if isinstance(value, list) else "an object"


def _short(text: str) -> str:
    return f"{text!r}" if len(text) <= 40 else f"{text[:40]!r}..."


def _short_number(value: float) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def load_object(
    body: bytes | bytearray | memoryview, what: str, limits: Limits, *, not_finite: bool = False
) -> dict[str, Any]:
    """Parse a body that must be one JSON object (RFC 8259).

    Args:
        body: UTF-8.
        what: its name in messages: "the request body".
        limits: `body_bytes` and `json_depth` are checked.
        not_finite: take the tokens NaN, Infinity and -Infinity.

    Raises:
        InvalidInput: empty, not JSON (with line and column), not an object, or nested deeper than `json_depth`.
        TooLarge: longer than `body_bytes`, or more values, arrays and objects than `json_census` allows.
    """
    document = load_value(body, what, limits, not_finite=not_finite)
    if type(document) is not dict:
        raise InvalidInput(f"{what} is {describe(document)}, a JSON object was expected")
    return document


def load_value(body: bytes | bytearray | memoryview, what: str, limits: Limits, *, not_finite: bool = False) -> Any:
    """Parse a body that may be any JSON, otherwise as `load_object`."""
    if len(body) > limits.body_bytes:
        raise TooLarge(f"{what} has {len(body)} bytes, the limit is {limits.body_bytes} (max_body_bytes)")
    body = bytes(body)
    check_census(body, what)
    try:
        document = _parse(body)
    except orjson.JSONDecodeError as error:
        if not len(body):
            raise InvalidInput(f"{what} is empty, a JSON object was expected") from None
        if (
            "depth limit" in error.msg or "recursion" in error.msg.lower()
        ):  # orjson's own, ~1024; its words vary by version
            raise InvalidInput(f"{what} is nested deeper than {limits.json_depth} levels (max_json_depth)") from None
        document = _load_not_finite(body) if not_finite else None
        reason = error.msg.split(": line ")[0]
        if document is None:
            raise InvalidInput(f"{what} is not JSON: {reason} (line {error.lineno}, column {error.colno})") from None
    # Brackets are an upper bound of the depth that costs next to nothing; strings that hold some only bring the true count.
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > limits.json_depth:
        depth = _depth(document, limits) if brackets <= _FEW_BRACKETS else _depth_of_text(body)
        if depth > limits.json_depth:
            raise InvalidInput(f"{what} is nested deeper than {limits.json_depth} levels (max_json_depth)")
    return document


def _parse(body: bytes | bytearray | memoryview) -> Any:
    """Parse JSON; the collector of cycles, which would look at a large body's arrays time and again, waits for the end of it."""
    if len(body) < _LARGE_BYTES or not gc.isenabled():
        return orjson.loads(body)
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def _load_not_finite(body: bytes) -> Any:
    """Parse JSON with NaN, Infinity or -Infinity in it, which orjson refuses; None where that is not what is wrong with it."""
    if b"NaN" not in body and b"Infinity" not in body:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _depth(document: Any, limits: Limits) -> int:
    """Count levels, level by level rather than by recursion, and stop one past the limit."""
    level: list[Any] = [document]
    depth = 0
    while level and depth <= limits.json_depth:
        depth += 1
        below: list[Any] = []
        for value in level:
            children = value.values() if type(value) is dict else value
            below.extend(child for child in children if type(child) is dict or type(child) is list)
        level = below
    return depth


def _depth_of_text(body: bytes) -> int:
    """Count levels of a JSON text that was parsed: brackets outside of strings, a chunk at a time.

    Millions of arrays are looked at in a hundredth of the time that `_depth` takes.
    """
    marks = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _NO_MARKS)
    deepest = level = quotes = 0
    for start in range(0, len(marks), _LARGE_BYTES):
        chunk = np.frombuffer(marks, np.uint8, min(_LARGE_BYTES, len(marks) - start), start)
        within = (np.cumsum(chunk == _QUOTE, dtype=np.uint8) + np.uint8(quotes)) & 1
        levels = np.cumsum(_STEPS[chunk] * (1 - within.astype(np.int8)), dtype=np.int32) + level
        deepest, level, quotes = max(deepest, int(levels.max())), int(levels[-1]), int(within[-1])
    return deepest


def check_name(value: Any, what: str, limits: Limits) -> str:
    """Return a tensor's name.

    Raises:
        InvalidInput: not a string, empty, or longer than `name_bytes`.
    """
    if type(value) is not str:
        raise InvalidInput(f"{what}: 'name' is {describe(value)}, a string was expected")
    if not value:
        raise InvalidInput(f"{what}: 'name' is empty")
    if len(value) * 4 > limits.name_bytes and len(value.encode()) > limits.name_bytes:
        raise InvalidInput(
            f"{what}: 'name' has {len(value.encode())} bytes, the limit is {limits.name_bytes} (max_name_bytes)"
        )
    return value


def check_shape(value: Any, what: str, limits: Limits) -> tuple[int, ...]:
    """Return a request tensor's shape: every dimension known and not negative.

    Raises:
        InvalidInput: not an array of integers, a negative one (-1 is for metadata only), or more of them than `rank`.
    """
    if type(value) is not list:
        raise InvalidInput(f"{what}: 'shape' is {describe(value)}, an array of integers was expected")
    if len(value) > limits.rank:
        raise InvalidInput(f"{what}: 'shape' has {len(value)} dimensions, the limit is {limits.rank} (max_rank)")
    for size in value:
        if type(size) is not int:
            raise InvalidInput(f"{what}: 'shape' holds {describe(size)}, integers of 0 or more were expected")
        if size < 0:
            raise InvalidInput(f"{what}: shape {value} has a negative dimension; a request says each one's true size")
    if 0 in value:
        check_empty(value, what, limits)
    return tuple(value)


def check_empty(shape: Sequence[int], what: str, limits: Limits) -> None:
    """Hold the other dimensions of a tensor without elements to the limit: a claim of 2^62 rows of nothing is no tensor.

    NumPy refuses such shapes only where they overflow, and a model that sums over the empty dimension would allocate the rest.

    Raises:
        InvalidInput: were the empty dimensions 1, the tensor could not be held. What came is not large: this is no 413.
    """
    if prod(size for size in shape if size) * 8 > limits.tensor_bytes:
        raise InvalidInput(
            f"{what}: shape {list(shape)} holds no values, but its other dimensions pass the limit of {limits.tensor_bytes} bytes (max_tensor_bytes)"
        )


def check_datatype(value: Any, what: str) -> str:
    """Return a datatype's name.

    Raises:
        InvalidInput: not one of the protocol's.
    """
    if type(value) is not str or value not in DATATYPES:
        kind = describe(value) if type(value) is not str else f"{value!r}"
        raise InvalidInput(f"{what}: 'datatype' is {kind}, it must be one of {', '.join(NUMPY_DTYPES)}")
    return value


def decode_parameters(value: Any, what: str, limits: Limits) -> Mapping[str, Any]:
    """Check a `parameters` object: each value a string, a number or a boolean; null counts as left out in two that MLServer's clients write.

    Raises:
        InvalidInput: not an object, a value of another kind, or a key longer than `name_bytes`.
        TooLarge: more than `tensors`.
    """
    if value is None:
        return NO_PARAMETERS
    if type(value) is not dict:
        raise InvalidInput(f"{what}: 'parameters' is {describe(value)}, an object was expected")
    if len(value) > limits.tensors:
        raise TooLarge(f"{what}: 'parameters' holds {len(value)} values, the limit is {limits.tensors} (max_tensors)")
    null = False
    for key, parameter in value.items():
        if type(parameter) not in (str, bool, int, float):
            if parameter is None and key in _LEFT_OUT_AS_NULL:
                null = True
                continue
            raise InvalidInput(
                f"{what}: parameter {_short(key)} is {describe(parameter)}, a string, number or boolean was expected"
            )
        if len(key) * 4 > limits.name_bytes and len(key.encode()) > limits.name_bytes:
            raise InvalidInput(
                f"{what}: a parameter's name has {len(key.encode())} bytes, the limit is {limits.name_bytes} (max_name_bytes)"
            )
    return {key: parameter for key, parameter in value.items() if parameter is not None} if null else value


def decode_data(name: str, datatype: str, shape: tuple[int, ...], data: Any, limits: Limits) -> np.ndarray:
    """Turn a `data` array, parsed, into the tensor's array.

    Args:
        name: what to call the tensor in messages: "input 'x'".
        datatype: one of `DATATYPES`.
        shape: from `check_shape`.
        data: nested as `shape`, or flat.
        limits: `tensor_bytes` bounds the result.

    Returns:
        An array of `NUMPY_DTYPES[datatype]` and `shape`.

    Raises:
        InvalidInput: wrong count, ragged, or a value that the datatype does not hold; the message names the position.
        TooLarge: the array would pass `tensor_bytes`.
    """
    if type(data) is not list:
        raise InvalidInput(f"{name}: 'data' is {describe(data)}, an array was expected")
    nested = is_nested(data)
    values = flatten(name, shape, data) if nested else data
    count = prod(shape)
    if len(values) != count:
        raise InvalidInput(f"{name}: shape {list(shape)} holds {count} values, data has {len(values)}")
    if count * NUMPY_DTYPES[datatype].itemsize > limits.tensor_bytes:
        raise TooLarge(
            f"{name}: {count * NUMPY_DTYPES[datatype].itemsize} bytes decoded, the limit is {limits.tensor_bytes} (max_tensor_bytes)"
        )
    where = _Where(name, shape, nested)
    if datatype in _FLOATS:
        return _floats(where, datatype, values).reshape(shape)
    if datatype == BYTES:
        return _texts(where, values).reshape(shape)
    if datatype == "BOOL":
        return _bools(where, values).reshape(shape)
    return _integers(where, datatype, values).reshape(shape)


def is_nested(data: list[Any]) -> bool:
    """Tell an array of arrays from a flat one."""
    return bool(data) and type(data[0]) is list


class _Where:
    """Names a value by its place in `data`: made for messages only."""

    __slots__ = ("name", "nested", "shape")

    def __init__(self, name: str, shape: tuple[int, ...], nested: bool) -> None:
        self.name = name
        self.shape = shape
        self.nested = nested

    def __call__(self, index: int) -> str:
        return f"{self.name}: data{_position(index, self.shape if self.nested else (index + 1,))}"


def _position(index: int, shape: tuple[int, ...]) -> str:
    """Write a flat index as subscripts."""
    subscripts = []
    for size in reversed(shape):
        subscripts.append(index % size)
        index //= size
    return "".join(f"[{subscript}]" for subscript in reversed(subscripts))


def flatten(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """Flatten data that is nested as `shape`, one dimension after the other.

    Raises:
        InvalidInput: ragged, or nested otherwise; the message names the position.
    """
    values = data
    for axis, size in enumerate(shape):
        if axis == 0:
            if len(values) != size:
                raise InvalidInput(f"{name}: shape {list(shape)} has {size} rows, data has {len(values)}")
            continue
        for index, row in enumerate(values):
            if type(row) is not list:
                place = _position(index, shape[:axis])
                raise InvalidInput(
                    f"{name}: data{place} is {describe(row)}, an array of {size} was expected (shape {list(shape)})"
                )
            if len(row) != size:
                place = _position(index, shape[:axis])
                raise InvalidInput(f"{name}: data{place} holds {len(row)} values, shape {list(shape)} has {size} there")
        values = list(chain.from_iterable(values))
    if values and type(values[0]) is list:
        raise InvalidInput(f"{name}: data is nested deeper than shape {list(shape)} has dimensions")
    return values


def _refuse(where: _Where, values: list[Any], allowed: frozenset[type], wanted: str) -> None:
    """Raise for the first value whose kind is not allowed."""
    for index, value in enumerate(values):
        if type(value) not in allowed:
            hint = _NULL_HINT if value is None else ""
            raise InvalidInput(f"{where(index)} is {describe(value)}, {wanted} was expected{hint}")


def _floats(where: _Where, datatype: str, values: list[Any]) -> np.ndarray:
    kinds = set(map(type, values))
    if type(None) in kinds:
        values = [math.nan if value is None else value for value in values]
        kinds.remove(type(None))
    if not kinds <= _NUMBERS:
        _refuse(where, values, _NUMBERS, f"a number ({datatype})")
    wide = np.array(values, dtype=np.float64)
    if datatype == "FP64":
        return wide
    with np.errstate(over="ignore"):  # looked for below, where it can be named
        narrow = round_to_bfloat16(wide) if datatype == BFLOAT16 else wide.astype(NUMPY_DTYPES[datatype])
    if not np.isfinite(narrow).all() and (lost := np.isfinite(wide) & ~np.isfinite(narrow)).any():
        index = int(np.argmax(lost))
        raise InvalidInput(f"{where(index)} is {describe(values[index])}, which is beyond the range of {datatype}")
    return narrow


def _integers(where: _Where, datatype: str, values: list[Any]) -> np.ndarray:
    kinds = set(map(type, values))
    if not kinds <= _NUMBERS:
        _refuse(where, values, _NUMBERS, f"an integer ({datatype})")
    if float in kinds:
        values = [_whole(where, index, value, datatype) for index, value in enumerate(values)]
    low, high = _INTEGER_RANGES[datatype]
    if values and (min(values) < low or max(values) > high):
        index = next(i for i, value in enumerate(values) if not low <= value <= high)
        raise InvalidInput(f"{where(index)} is {describe(values[index])}, {datatype} holds {low} to {high}")
    return np.array(values, dtype=NUMPY_DTYPES[datatype])


def _whole(where: _Where, index: int, value: float, datatype: str) -> int:
    """Take 2.0 for 2; beyond 2^53 a float no longer says which integer was meant (and integers past 64 bits arrive as such)."""
    if type(value) is int:
        return value
    if not value.is_integer():
        raise InvalidInput(f"{where(index)} is {describe(value)}, an integer ({datatype}) was expected")
    if abs(value) > 2.0**53:
        low, high = _INTEGER_RANGES[datatype]
        raise InvalidInput(f"{where(index)} is {describe(value)}, {datatype} holds the integers {low} to {high}")
    return int(value)


def _bools(where: _Where, values: list[Any]) -> np.ndarray:
    for index, value in enumerate(values):
        if type(value) is not bool and not (type(value) is int and value in (0, 1)):
            hint = _NULL_HINT if value is None else ""
            raise InvalidInput(f"{where(index)} is {describe(value)}, true or false (or 1 or 0) was expected{hint}")
    return np.array(values, dtype=np.bool_)


def _texts(where: _Where, values: list[Any]) -> np.ndarray:
    if not set(map(type, values)) <= {str}:
        _refuse(where, values, frozenset({str}), "a string (BYTES)")
    array = np.empty(len(values), dtype=object)
    array[:] = [value.encode() for value in values]
    return array


def encode_data(
    name: str, array: np.ndarray, datatype: str, *, role: str = "output", not_finite: NotFinite = "null"
) -> bytes:
    """Write an array as a flat JSON array, row-major.

    Args:
        name: the tensor's.
        array: any strides; BYTES elements are `bytes` or `str`.
        datatype: one of `DATATYPES`; the array is cast where its type is another.
        role: "input" or "output", for messages.
        not_finite: what stands for NaN and infinities.

    Returns:
        JSON. Floats are the shortest text that reads back to the same value of their type.

    Raises:
        InvalidInput: a BYTES element is not UTF-8 and so cannot travel as JSON, or an infinity where those are refused.
        ModelFailed: the array's elements cannot be of that datatype.
    """
    dtype = NUMPY_DTYPES[datatype]
    if array.dtype is not dtype and array.dtype != dtype:
        try:
            array = array.astype(dtype)
        except (TypeError, ValueError):
            raise ModelFailed(f"{role} {name!r}: the model's values cannot be written as {datatype}") from None
    if datatype == BYTES:
        values = array.reshape(-1).tolist()
        return orjson.dumps([_text(name, role, index, element) for index, element in enumerate(values)])
    if array.ndim != 1:
        array = array.reshape(-1)
    if not_finite != "null":
        return dump_array(f"{role} {name!r}", array, not_finite)
    try:
        return orjson.dumps(array, option=_NUMPY_JSON)
    except TypeError:  # orjson takes C-contiguous native arrays only
        return orjson.dumps(np.ascontiguousarray(array), option=_NUMPY_JSON)


def _text(name: str, role: str, index: int, element: Any) -> str:
    if not isinstance(element, bytes):
        return str(element)
    try:
        return element.decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"{role} {name!r}: element {index} is not UTF-8 text and cannot travel as JSON; ask for it with the parameter "
            "'binary_data': true, or over gRPC"
        ) from None
