"""The datatypes of the Open Inference Protocol and the NumPy types that carry them.

Source: Open Inference Protocol, inference_rest.md and inference_grpc.md, "Tensor Data Types"; BF16 from Triton's
extension of that table.

Two types have no NumPy twin. **BYTES** is an object array whose elements are `bytes`. **BF16** is carried as float32,
which holds every BF16 value exactly; encoding rounds to the nearest even.
"""

from __future__ import annotations

from typing import Final

import numpy as np

__all__ = ["BFLOAT16", "BYTES", "DATATYPES", "ITEM_BYTES", "NUMPY_DTYPES", "datatype_of"]

BYTES: Final = "BYTES"
BFLOAT16: Final = "BF16"

NUMPY_DTYPES: Final[dict[str, np.dtype]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(np.float32),
    "BYTES": np.dtype(object),
}
"""Datatype name to the NumPy type that carries it in this process."""

DATATYPES: Final[frozenset[str]] = frozenset(NUMPY_DTYPES)

ITEM_BYTES: Final[dict[str, int]] = {
    name: (2 if name == BFLOAT16 else dtype.itemsize) for name, dtype in NUMPY_DTYPES.items() if name != BYTES
}
"""Bytes of one element in the raw (little-endian) form; BYTES has none, each element carries its own length."""

_DATATYPE_OF: Final[dict[np.dtype, str]] = {dtype: name for name, dtype in NUMPY_DTYPES.items() if name != BFLOAT16}


def datatype_of(dtype: np.dtype) -> str:
    """Name the datatype that carries a NumPy type; strings and bytes of any width are BYTES.

    Raises:
        KeyError: the type has no place in the protocol (complex, datetime, structured).
    """
    name = _DATATYPE_OF.get(dtype)
    if name is not None:
        return name
    if dtype.kind in "SUO":
        return BYTES
    if dtype.name == "bfloat16":  # ml_dtypes' type, which JAX and TensorFlow return and tritonclient sends
        return BFLOAT16
    return _DATATYPE_OF[dtype.newbyteorder("=")]
