"""Where tensors lie in a body that has raw bytes behind its JSON.

Source: Triton, extension_binary_data.md. A body is `JSON, tensor, tensor, ...`: the header Inference-Header-Content-Length
says where the JSON ends, each tensor's parameter `binary_data_size` how long it is, and their order is that of the JSON.
With a JSON length of 0 the whole body is the model's only input ("Raw Binary Request").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..errors import InvalidInput
from .datatypes import BYTES, ITEM_BYTES
from .json_codec import describe
from .raw import ALIGNMENT, Buffer, decode
from .types import Limits, Tensor, TensorSpec

__all__ = ["BinaryReader", "binary_flag", "binary_size", "decode_raw_body", "pad", "parse_json_length"]


def parse_json_length(value: str, body_bytes: int) -> int:
    """Read the header `Inference-Header-Content-Length`.

    Raises:
        InvalidInput: not a decimal number, or more than the body has.
    """
    text = value.strip()
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise InvalidInput(f"Inference-Header-Content-Length is {text[:40]!r}, a number of bytes was expected")
    length = int(text)
    if length > body_bytes:
        raise InvalidInput(f"Inference-Header-Content-Length is {length}, the body has {body_bytes} bytes")
    return length


def binary_size(parameters: Mapping[str, Any], what: str) -> int | None:
    """Return the parameter `binary_data_size`; None where the tensor is in the JSON.

    Raises:
        InvalidInput: not an integer of 0 or more.
    """
    size = parameters.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        raise InvalidInput(f"{what}: 'binary_data_size' is {describe(size)}, a number of bytes was expected")
    return size


def binary_flag(parameters: Mapping[str, Any], key: str, what: str) -> bool | None:
    """Return `binary_data` or `binary_data_output`; None where it is not given.

    Raises:
        InvalidInput: not a boolean.
    """
    flag = parameters.get(key)
    if flag is None or type(flag) is bool:
        return flag
    raise InvalidInput(f"{what}: {key!r} is {describe(flag)}, true or false was expected")


class BinaryReader:
    """Hands out the raw bytes behind the JSON in order, and knows when some are missing or left over."""

    __slots__ = ("_body", "_offset")

    def __init__(self, body: Buffer, json_length: int | None) -> None:
        self._body = memoryview(body)
        self._offset = len(body) if json_length is None else json_length

    def take(self, name: str, size: int) -> memoryview:
        """Return the next `size` bytes.

        Raises:
            InvalidInput: fewer are left.
        """
        start = self._offset
        end = start + size
        if end > len(self._body):
            raise InvalidInput(
                f"{name}: 'binary_data_size' is {size}, {len(self._body) - start} bytes are left after the JSON"
                " (Inference-Header-Content-Length says where that ends)"
            )
        self._offset = end
        return self._body[start:end]

    def finish(self) -> None:
        """Refuse what is left over.

        Raises:
            InvalidInput: bytes that belong to no tensor.
        """
        left = len(self._body) - self._offset
        if left:
            raise InvalidInput(
                f"{left} bytes follow the last tensor; 'binary_data_size' of the tensors must cover them all"
            )


def decode_raw_body(body: Buffer, inputs: Sequence[TensorSpec] | None, limits: Limits) -> Tensor:
    """Read a body without JSON: the only input of a model, its one unknown dimension told by the size.

    Args:
        body: for BYTES one element without its length, else the raw tensor.
        inputs: the model's; None: unknown.
        limits: as in `raw.decode`.

    Raises:
        InvalidInput: the model has other than one input, or the shape cannot be told.
    """
    if not inputs or len(inputs) != 1:
        known = "which are not known" if inputs is None else f"{len(inputs)}"
        raise InvalidInput(f"a raw body needs a model of exactly 1 input, this one's are {known}; send a JSON header")
    spec = inputs[0]
    what = f"input {spec.name!r}"
    if spec.datatype == BYTES:
        # As Triton reads it: the body is the element itself, and the shape must be [1].
        if any(size not in (-1, 1) for size in spec.shape):
            raise InvalidInput(f"{what}: a raw body is one element of BYTES, the model's shape is {list(spec.shape)}")
        shape = (1,) * len(spec.shape)
        element = len(body).to_bytes(4, "little") + bytes(body)
        return Tensor(spec.name, BYTES, shape, decode(what, BYTES, shape, element, limits))
    unknown = [axis for axis, size in enumerate(spec.shape) if size < 0]
    if len(unknown) > 1 and unknown[0] == 0:  # the batch: "the request will be treated as batch-1"
        unknown = unknown[1:]
    if len(unknown) > 1:
        raise InvalidInput(f"{what}: a raw body cannot tell the dimensions of {list(spec.shape)}; send a JSON header")
    known = prod(size for size in spec.shape if size >= 0)
    row = known * ITEM_BYTES[spec.datatype]
    size = len(body)
    if unknown and (row == 0 or size % row):
        raise InvalidInput(
            f"{what}: {size} bytes are no whole number of {spec.datatype} rows of shape {list(spec.shape)}"
        )
    shape = tuple(
        size // row if axis in unknown else (1 if dimension < 0 else dimension)
        for axis, dimension in enumerate(spec.shape)
    )
    return Tensor(spec.name, spec.datatype, shape, decode(what, spec.datatype, shape, body, limits))


def pad(document: bytes) -> bytes:
    """Add spaces, which JSON ignores, so that the bytes behind it start aligned."""
    missing = -len(document) % ALIGNMENT
    return document + b" " * missing if missing else document
