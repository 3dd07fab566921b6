"""TensorFlow Serving's `:classify` and `:regress` bodies: examples to a V2 request, and its response to results.

Sources: TensorFlow Serving, api_rest.md, "Classify and Regress API" (the key of the answer is `results`, as its example and its server have it;
the page's scheme says `result`); classifier.cc and regressor.cc (names and shapes of the tensors); tensorflow/core/example/example.proto and
feature.proto, whose messages are written here by hand: they are few, and the library imports no TensorFlow.

An example is an object of features, each a value or a list of values of one kind. Texts and `{"b64": ...}` become bytes, numbers with a
fraction or exponent floats, whole numbers and truth values int64. The model gets one serialized Example a row, in its input `inputs`. A
`context` holds features that all examples share: its message goes before each example's, which protocol buffers read as one.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import orjson

from ...errors import InvalidInput
from ..datatypes import BYTES
from ..json_codec import describe, load_object
from ..types import NO_PARAMETERS, InferRequest, InferResponse, Limits, ModelMetadata, Signature, Tensor

__all__ = ["Examples", "ExampleTask", "decode", "encode", "to_request"]

ExampleTask = Literal["classify", "regress"]

_INPUT: Final = "inputs"
_OUTPUTS: Final[Mapping[str, tuple[str, ...]]] = {"classify": ("classes", "scores"), "regress": ("outputs",)}
"""Names of the tensors: tensorflow/core/.../signature_constants.py."""
_FLOATS: Final = frozenset({"FP16", "BF16", "FP32", "FP64"})
_LEAST_INT64, _MOST_INT64 = -(2**63), 2**63 - 1


@dataclass(frozen=True, slots=True)
class Examples:
    """A body, checked as far as it can be without knowing the model."""

    rows: list[bytes]
    """Serialized tf.train.Example messages."""
    signature_name: str = ""
    """Empty: the default one."""


def decode(body: bytes, limits: Limits) -> Examples:
    """Read a body.

    Raises:
        InvalidInput: no examples, or a feature that is none.
        TooLarge: one of the limits was passed.
    """
    document = load_object(body, "the request body", limits, not_finite=True)
    signature = document.get("signature_name")
    if signature is not None and type(signature) is not str:
        raise InvalidInput(f"'signature_name' is {describe(signature)}, a string was expected")
    examples, context = document.get("examples"), document.get("context")
    if type(examples) is not list or not examples:
        came = "missing" if examples is None else describe(examples) if type(examples) is not list else "empty"
        raise InvalidInput(f"'examples' is {came}, an array of objects of features was expected, one a row")
    shared = b"" if context is None else _example(context, "'context'")
    rows = []
    for index, example in enumerate(examples):
        message = _example(example, f"examples[{index}]")
        if context and (both := sorted(context.keys() & example.keys())):
            raise InvalidInput(f"examples[{index}] has the feature {both[0]!r}, which 'context' has for all of them")
        rows.append(shared + message)
    return Examples(rows, signature or "")


def _example(value: Any, what: str) -> bytes:
    """Serialize an Example: `Example.features` is 1, `Features.feature` a map, 1, whose entries have a key, 1, and a value, 2."""
    if type(value) is not dict:
        raise InvalidInput(f"{what} is {describe(value)}, an object of features was expected")
    entries = []
    for name, values in value.items():
        feature = _feature(values if type(values) is list else [values], f"{what}, feature {name!r}")
        entries.append(_field(1, _field(1, name.encode()) + _field(2, feature)))
    return _field(1, b"".join(entries))


def _feature(values: list[Any], what: str) -> bytes:
    """Serialize a Feature: one of `bytes_list` 1, `float_list` 2 and `int64_list` 3, whose values are its field 1."""
    kinds = {_kind(value, what) for value in values}
    if not kinds:
        return b""
    if len(kinds) > 1:
        raise InvalidInput(f"{what} mixes {' and '.join(sorted(kinds))}; the values of a feature are of one kind")
    kind = kinds.pop()
    if kind == "bytes":
        return _field(1, b"".join(_field(1, _bytes(value, what)) for value in values))
    if kind == "floats":
        with np.errstate(over="ignore"):  # beyond FP32 is infinity, as in TensorFlow Serving
            return _field(2, _field(1, np.asarray(values, "<f8").astype("<f4").tobytes()))
    for value in values:
        if not _LEAST_INT64 <= value <= _MOST_INT64:
            raise InvalidInput(f"{what}: {value} does not fit int64, which whole numbers are sent as")
    return _field(3, _field(1, b"".join(_varint(int(value) & 0xFFFFFFFFFFFFFFFF) for value in values)))


def _kind(value: Any, what: str) -> str:
    if type(value) is str or (type(value) is dict and len(value) == 1 and type(value.get("b64")) is str):
        return "bytes"
    if type(value) is float:
        return "floats"
    if type(value) in (int, bool):
        return "whole numbers"
    raise InvalidInput(f'{what} holds {describe(value)}; a number, a string or {{"b64": ...}} was expected')


def _bytes(value: Any, what: str) -> bytes:
    if type(value) is str:
        return value.encode()
    try:
        return base64.b64decode(value["b64"], validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{what}: 'b64' is not base64") from None


def _field(number: int, data: bytes) -> bytes:
    """Write a field of wire type 2, length and bytes (Protocol Buffers, "Encoding")."""
    return struct.pack("B", number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    groups.append(value)
    return bytes(groups)


def to_request(examples: Examples, metadata: ModelMetadata, task: ExampleTask, *, version: str = "") -> InferRequest:
    """Make the V2 request that examples stand for.

    Raises:
        InvalidInput: no such signature, or one that does not do this.
    """
    name, parameters = examples.signature_name, NO_PARAMETERS
    signature: Signature | None = Signature(metadata.inputs, metadata.outputs)
    if name:
        signature, parameters = metadata.signatures.get(name), {"signature_name": name}
        if signature is None:
            known = ", ".join(map(repr, sorted(metadata.signatures))) or "none"
            raise InvalidInput(f"'signature_name' is {name!r}; the model's signatures are {known}")
    if not _does(task, signature):
        able = sorted(repr(known) for known, one in metadata.signatures.items() if _does(task, one))
        hint = (
            f"name one that does, by 'signature_name': {', '.join(able)}" if able else "no signature of the model does"
        )
        wanted = " and ".join(map(repr, _OUTPUTS[task])) + (", or one of them" if task == "classify" else "")
        raise InvalidInput(
            f"{f'signature {name!r}' if name else 'the default signature'} does not {task}: one that does has the one input {_INPUT!r}, "
            f"of BYTES, and the output {wanted}; {hint}"
        )
    data = np.empty(len(examples.rows), dtype=object)
    data[:] = examples.rows
    return InferRequest(metadata.name, [Tensor(_INPUT, BYTES, data.shape, data)], version, parameters=parameters)


def _does(task: ExampleTask, signature: Signature) -> bool:
    outputs = {spec.name for spec in signature.outputs}
    takes = [(spec.name, spec.datatype) for spec in signature.inputs] == [(_INPUT, BYTES)]
    return takes and bool(outputs) and outputs <= set(_OUTPUTS[task])


def encode(response: InferResponse, task: ExampleTask, rows: int) -> bytes:
    """Write the body that answers `rows` examples.

    Raises:
        InvalidInput: the outputs are no results of so many examples: the signature's fault, which the request has chosen.
    """
    results = _classes(response, rows) if task == "classify" else _values(response, rows)
    return orjson.dumps({"results": results}, option=orjson.OPT_SERIALIZE_NUMPY)


def _values(response: InferResponse, rows: int) -> np.ndarray:
    (tensor,) = response.outputs
    if tensor.datatype not in _FLOATS or tensor.shape not in ((rows,), (rows, 1)):
        raise InvalidInput(
            f"output {tensor.name!r} is {tensor.datatype} {list(tensor.shape)}; a regression of {rows} examples has floats "
            f"[{rows}] or [{rows}, 1]"
        )
    return np.ascontiguousarray(tensor.data.reshape(rows))


def _classes(response: InferResponse, rows: int) -> list[list[list[Any]]]:
    """Pair labels and scores; a label is empty and a score 0 where the signature has none (classifier.cc)."""
    labels, scores = response.output("classes"), response.output("scores")
    for tensor in (labels, scores):
        if tensor is not None and (len(tensor.shape) != 2 or tensor.shape[0] != rows):
            raise InvalidInput(
                f"output {tensor.name!r} has shape {list(tensor.shape)}; a classification of {rows} examples has [{rows}, classes]"
            )
    if scores is not None and scores.datatype not in _FLOATS:
        raise InvalidInput(f"output 'scores' is {scores.datatype}; floats were expected")
    if labels is not None and labels.datatype != BYTES:
        raise InvalidInput(f"output 'classes' is {labels.datatype}; BYTES was expected")
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise InvalidInput(
            f"outputs 'classes' {list(labels.shape)} and 'scores' {list(scores.shape)} have not the same shape"
        )
    count = (labels or scores).shape[1] if labels or scores else 0  # type: ignore[union-attr] # one of them is there
    texts = [[""] * count] * rows if labels is None else [[_label(one) for one in row] for row in labels.data.tolist()]
    values = np.zeros((rows, count), np.float32) if scores is None else scores.data
    return [[[text, value] for text, value in zip(*row, strict=True)] for row in zip(texts, values, strict=True)]


def _label(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
