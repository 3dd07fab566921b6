"""Raw tensors: little-endian bytes to arrays and back, as the binary extension and gRPC's `raw_input_contents` carry them.

Sources: Open Inference Protocol, inference_grpc.md, "Raw Tensor Data"; Triton, extension_binary_data.md, "Binary Tensor Request":
row-major, no padding, BOOL one byte 0 or 1, a BYTES element is a uint32 length and then its bytes.

What leaves `decode` is always aligned for its type. Where in a body a tensor begins is the client's choice (its JSON may have any
length), and compiled code that meets a float at an odd address may trap, so a misaligned tensor is copied and an aligned
one is a read-only view. The encoders of this package pad their JSON with spaces to a multiple of 8, so between two of them
nothing is copied.
"""

from __future__ import annotations

import sys
from math import prod

import numpy as np

from ..errors import InvalidInput, TooLarge
from .datatypes import BFLOAT16, BYTES, ITEM_BYTES, NUMPY_DTYPES
from .types import Limits

__all__ = ["ALIGNMENT", "Buffer", "bfloat16_bits", "bfloat16_values", "decode", "encode", "round_to_bfloat16"]

if sys.byteorder != "little":
    raise ImportError(
        "serinus reads tensors in place and they are little-endian on the wire: big-endian hosts are not supported"
    )

ALIGNMENT = 8
"""Bytes: the widest element of the protocol; what an encoder pads its JSON to."""

Buffer = bytes | bytearray | memoryview

_ELEMENT_BYTES = 41
"""What an element takes in memory beside its own bytes: 33 as an object of CPython, 8 for its place in the array."""

_COPY_BYTES = 16 * 1024
"""Up to here a copy costs less than keeping a memoryview alive through the transport."""


def decode(name: str, datatype: str, shape: tuple[int, ...], buffer: Buffer, limits: Limits) -> np.ndarray:
    """Read one tensor from exactly the bytes that were sent for it.

    Args:
        name: what to call the tensor in messages: "input 'x'".
        datatype: one of `DATATYPES`.
        shape: dimensions, none negative.
        buffer: the tensor's bytes, all of them.
        limits: `tensor_bytes` bounds what the decoded tensor may occupy.

    Returns:
        An aligned array of `NUMPY_DTYPES[datatype]` and `shape`; often a read-only view of `buffer`.

    Raises:
        InvalidInput: the byte count does not fit the shape, or an element is malformed.
        TooLarge: the tensor would pass `limits.tensor_bytes`.
    """
    if datatype == BYTES:
        return _decode_bytes(name, shape, buffer, limits)
    count = prod(shape)
    expected = count * ITEM_BYTES[datatype]
    size = len(buffer)
    if size != expected:
        raise InvalidInput(f"{name}: shape {list(shape)} of {datatype} takes {expected} bytes, {size} came")
    dtype = NUMPY_DTYPES[datatype]
    if count * dtype.itemsize > limits.tensor_bytes:
        raise TooLarge(
            f"{name}: {count * dtype.itemsize} bytes decoded, the limit is {limits.tensor_bytes} (max_tensor_bytes)"
        )
    if datatype == BFLOAT16:
        return bfloat16_values(np.frombuffer(buffer, dtype="<u2")).reshape(shape)
    array = np.ndarray(shape, dtype, buffer)
    if datatype == "BOOL":
        _check_bool(name, array)
    if not array.flags.aligned:
        array = array.copy()
    return array


def _check_bool(name: str, array: np.ndarray) -> None:
    """Refuse bytes other than 0 and 1: NumPy's behaviour on such a bool is undefined."""
    codes = array.reshape(-1).view(np.uint8)
    if codes.size and int(codes.max()) > 1:
        position = int(np.argmax(codes > 1))
        raise InvalidInput(f"{name}: byte {position} is {int(codes[position])}, a BOOL is 0 or 1")


def _decode_bytes(name: str, shape: tuple[int, ...], buffer: Buffer, limits: Limits) -> np.ndarray:
    """Read length-prefixed elements into an object array of `bytes`."""
    count = prod(shape)
    size = len(buffer)
    if count * 4 > size:  # before anything is allocated for the claimed count
        raise InvalidInput(
            f"{name}: shape {list(shape)} of BYTES takes at least {count * 4} bytes (4 for each length), {size} came"
        )
    if size + count * _ELEMENT_BYTES > limits.tensor_bytes:
        raise TooLarge(
            f"{name}: {size} bytes in {count} elements, the limit is {limits.tensor_bytes} (max_tensor_bytes); in memory each element "
            f"takes {_ELEMENT_BYTES} more"
        )
    data = bytes(buffer)
    elements: list[bytes] = []
    offset = 0
    for index in range(count):
        start = offset + 4
        if start > size:
            raise InvalidInput(
                f"{name}: element {index} of {count} (shape {list(shape)}): its 4-byte length is cut off at byte {offset}"
            )
        end = start + int.from_bytes(data[offset:start], "little")
        if end > size:
            raise InvalidInput(
                f"{name}: element {index} of {count} (shape {list(shape)}) claims {end - start} bytes, {size - start} are left"
            )
        elements.append(data[start:end])
        offset = end
    if offset != size:
        raise InvalidInput(
            f"{name}: shape {list(shape)} holds {count} elements, which end at byte {offset}; {size - offset} bytes are left over"
        )
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(shape)


def encode(array: np.ndarray, datatype: str) -> Buffer:
    """Write one tensor's raw bytes.

    Args:
        array: any strides; elements of BYTES may be `bytes` or `str` (sent as UTF-8).
        datatype: one of `DATATYPES`; the array is cast where its type is another.

    Returns:
        Bytes, or for large arrays a view of the array's own memory.
    """
    if datatype == BYTES:
        return _encode_bytes(array)
    if datatype == BFLOAT16:
        return bfloat16_bits(array).tobytes()
    dtype = NUMPY_DTYPES[datatype]
    if array.dtype != dtype:
        array = array.astype(dtype)
    if array.nbytes <= _COPY_BYTES:
        return array.tobytes()
    return np.ascontiguousarray(array).data.cast("B")


def _encode_bytes(array: np.ndarray) -> bytes:
    parts: list[bytes] = []
    for element in array.reshape(-1).tolist():
        data = element if isinstance(element, bytes) else str(element).encode()
        parts.append(len(data).to_bytes(4, "little"))
        parts.append(data)
    return b"".join(parts)


def bfloat16_values(bits: np.ndarray) -> np.ndarray:
    """Widen BF16 bit patterns, uint16 of any shape, to the float32 values that they stand for."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """Round numbers to BF16, nearest and ties to even, as uint16 bit patterns; NaN stays NaN, overflow is infinity."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> np.uint32(16)).astype(np.uint16)
    is_nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, (bits >> np.uint32(16)).astype(np.uint16) | np.uint16(0x40), rounded).reshape(values.shape)


def round_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round to the nearest values that BF16 has, carried as float32 of the same shape."""
    return bfloat16_values(bfloat16_bits(values))
