"""Values written as JSON: arrays and scalars of every NumPy type, and numbers that JSON does not have.

Theory of operation. orjson writes most NumPy arrays and scalars, floats as the shortest text that reads back to the same value of their
type, and NaN and infinities as null. What it does not take (`longlong`, which ONNX Runtime answers, `longdouble`, texts and bytes, objects,
arrays without a dimension, of other strides or byte order) is turned into what it does. Tokens are put where it wrote null, so the other
values have the same text under every `NotFinite`.
"""

from __future__ import annotations

import base64
import json
from itertools import chain, zip_longest
from typing import Any, Final, Literal

import numpy as np
import orjson

from ...errors import InvalidInput, ModelFailed

__all__ = ["NotFinite", "bytes_as_json", "dump_array", "dump_document", "property_text"]

NotFinite = Literal["null", "tokens", "refuse"]
"""What stands for NaN and infinities in a JSON answer.

null: null for all of them, as ECMAScript's JSON.stringify, KServe and MLServer write them: valid JSON, and an infinity reads back as NaN.
tokens: NaN, Infinity and -Infinity, as Python's json module and TensorFlow Serving write and read them ("JSON conformance"); no JSON.
refuse: null for NaN, which reads back as such; an answer with an infinity is refused, since null would lose it."""

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_WRITABLE: Final = "biuf"


def dump_array(what: str, array: np.ndarray, not_finite: NotFinite) -> bytes:
    """Write an array of numbers or booleans, nested as its shape is.

    Args:
        what: its name in messages: "output 'y'".
        array: at least one dimension; any strides and byte order.
        not_finite: see `NotFinite`.

    Raises:
        InvalidInput: an infinity, where they are refused.
    """
    try:
        text = orjson.dumps(array, option=_OPTIONS)
    except TypeError:  # orjson takes C-contiguous native arrays only
        array = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
        text = orjson.dumps(array, option=_OPTIONS)
    if not_finite == "null" or array.dtype.kind != "f" or b"null" not in text:
        return text
    flat = array.reshape(-1)
    lost = flat[~np.isfinite(flat)]
    if not_finite == "refuse":
        if np.isinf(lost).any():
            raise _infinite(what)
        return text
    tokens = [json.dumps(value).encode() for value in lost.tolist()]
    return b"".join(chain.from_iterable(zip_longest(text.split(b"null"), tokens, fillvalue=b"")))


def dump_document(document: Any, not_finite: NotFinite = "null") -> bytes:
    """Write a document of dicts, lists, texts, numbers, dates, and NumPy's arrays and scalars.

    Bytes are text where they are UTF-8, else `{"b64": ...}` (TensorFlow Serving's api_rest.md, "Encoding binary values").

    Raises:
        ModelFailed: a value has no place in JSON: complex numbers, durations, records, objects of other kinds.
        InvalidInput: an infinity, where they are refused.
    """
    try:
        try:
            text = orjson.dumps(document, default=_known, option=_OPTIONS)
        except TypeError as error:
            if error.__cause__ is not None:
                raise
            document = _prepared(document)
            text = orjson.dumps(document, default=_known, option=_OPTIONS)
        if not_finite == "null" or b"null" not in text:
            return text
        plain = _plain(document, "the answer" if not_finite == "refuse" else "")
    except TypeError as error:
        raise ModelFailed(f"the model's answer cannot be written as JSON: {error.__cause__ or error}") from error
    return text if not_finite == "refuse" else json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()


def bytes_as_json(value: bytes) -> Any:
    """Give what stands for bytes in V1: text where they are UTF-8, else base64 in an object."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def property_text(value: Any) -> str:
    """Write a fact of a model's metadata as text: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else orjson.dumps(value, default=str).decode()


def _infinite(what: str) -> InvalidInput:
    return InvalidInput(
        f"{what} holds an infinity, which JSON does not have, and the server's json_not_finite is 'refuse'; ask for it with the "
        "parameter 'binary_data': true, or over gRPC"
    )


def _known(value: Any) -> Any:
    """Turn what orjson does not know into what it does."""
    if isinstance(value, np.ndarray):
        if not value.ndim:
            return value[()] if value.dtype.kind != "O" else value.item()
        if value.dtype.kind in "OUS":
            return value.tolist()
        if value.dtype.kind == "f" and value.dtype.itemsize > 8:
            return value.astype(np.float64)
        plain = np.asarray(value)
        if value.dtype.kind in f"{_WRITABLE}M" and not (
            type(value) is np.ndarray and plain.flags.c_contiguous and plain.dtype.isnative
        ):
            return np.ascontiguousarray(plain, plain.dtype.newbyteorder("="))
        raise TypeError(f"it holds values of type {value.dtype}, which JSON does not have")
    if isinstance(value, np.integer) and not isinstance(value, np.timedelta64):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes_as_json(bytes(value))
    kind = value.dtype if isinstance(value, np.generic) else type(value).__name__
    raise TypeError(f"it holds a value of type {kind}, which JSON does not have")


def _plain(value: Any, refusing: str) -> Any:
    """Turn a document that orjson has written into Python's own values, infinities and NaN among them.

    Args:
        value: part of the document.
        refusing: infinities are refused, and this is what holds them; empty: they are not.
    """
    if isinstance(value, dict):
        return {_key(key): _plain(part, refusing) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, refusing) for part in value]
    if isinstance(value, np.floating):
        value = np.asarray(value)
    if isinstance(value, float):
        if refusing and value in (float("inf"), float("-inf")):
            raise _infinite(refusing)
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return _plain(value.tolist(), refusing)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
        return orjson.loads(orjson.dumps(value, default=_known, option=_OPTIONS))
    if refusing and np.isinf(value).any():
        raise _infinite(refusing)
    wide = value.astype(np.float64) if value.dtype.itemsize > 8 else value
    numbers: list[Any] = orjson.loads(dump_array("", np.atleast_1d(wide.reshape(-1)), "null"))
    for index in np.flatnonzero(~np.isfinite(wide.reshape(-1))).tolist():
        numbers[index] = float(wide.reshape(-1)[index])
    held = np.empty(len(numbers), object)
    held[:] = numbers
    return held.reshape(value.shape).tolist()


def _prepared(value: Any) -> Any:
    """Turn what orjson refuses without asking `_known`: NumPy's scalars as keys, arrays of another byte order."""
    if isinstance(value, dict):
        return {
            key.item() if isinstance(key, np.generic) and not isinstance(key, str) else key: _prepared(part)
            for key, part in value.items()
        }
    if isinstance(value, list | tuple):
        return [_prepared(part) for part in value]
    if isinstance(value, np.ndarray) and not value.dtype.isnative:
        return value.astype(value.dtype.newbyteorder("="))
    return value


def _key(key: Any) -> str:
    """Write an object's key as orjson does."""
    if isinstance(key, str):
        return key
    return next(iter(orjson.loads(orjson.dumps({key: None}, option=_OPTIONS))))
