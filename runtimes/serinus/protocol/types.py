"""What a request, a response, a tensor and a model's description are, whichever transport carries them.

The four types on the hot path (`Tensor`, `RequestedOutput`, `InferRequest`, `InferResponse`) are slotted but not frozen: a frozen
dataclass pays one `object.__setattr__` call per field (~0.2 us each). Treat them as values all the same: a codec makes
them, nobody changes one that they did not make.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from .datatypes import datatype_of

__all__ = [
    "NO_PARAMETERS",
    "InferRequest",
    "InferResponse",
    "Limits",
    "ModelMetadata",
    "Parameter",
    "RequestedOutput",
    "ServerMetadata",
    "Signature",
    "Tensor",
    "TensorSpec",
    "no_parameters",
]

Parameter = str | bool | int | float
"""A parameter's value (inference_rest.md, "Parameters"): string, number or boolean."""


class _NoParameters(dict[str, Any]):
    """An empty dict that refuses to be filled, and so may be hashed."""

    def __hash__(self) -> int:  # type: ignore[override] # dict forbids hashing because it can change; this one cannot
        return 0

    def __setitem__(self, key: str, value: Any) -> None:
        raise TypeError("NO_PARAMETERS is shared by every request; make a dict of your own")

    update = setdefault = __ior__ = __setitem__  # type: ignore[assignment] # every way to fill it fails alike


NO_PARAMETERS: Final[Mapping[str, Any]] = _NoParameters()
"""Shared empty mapping, so that a request without parameters allocates none."""


def no_parameters() -> Mapping[str, Any]:
    """Return NO_PARAMETERS: the factory of dataclasses, which take no dict as a default (Python 3.10 not even a hashable one)."""
    return NO_PARAMETERS


@dataclass(slots=True, eq=False)
class Tensor:
    """A named array with its protocol datatype.

    `data` has the shape `shape`, C order, and the NumPy type `NUMPY_DTYPES[datatype]`: BYTES is an object array of
    `bytes`, BF16 is float32. Arrays decoded from a request may be read-only views of its buffer.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: np.ndarray
    parameters: Mapping[str, Any] = field(default_factory=no_parameters)
    nested: bool = False
    """Its JSON was nested as the shape says, not flat: hosted classes that read lists are shown what was sent."""

    @classmethod
    def of(cls, name: str, array: np.ndarray, datatype: str | None = None) -> Tensor:
        """Wrap an array, naming the datatype from its NumPy type unless one is given (needed for BF16).

        Raises:
            KeyError: the array's type has no place in the protocol.
        """
        return cls(name, datatype or datatype_of(array.dtype), array.shape, array)


@dataclass(slots=True, eq=False)
class RequestedOutput:
    """One entry of the request's `outputs`: its name and parameters such as `binary_data` or `classification`."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=no_parameters)


@dataclass(slots=True, eq=False)
class InferRequest:
    """One inference request (inference_rest.md, "Inference Request JSON Object"; ModelInferRequest in gRPC)."""

    model_name: str
    inputs: Sequence[Tensor]
    model_version: str = ""
    """Empty: the server chooses."""
    id: str | None = None
    """Echoed when given, never invented."""
    parameters: Mapping[str, Any] = field(default_factory=no_parameters)
    outputs: Sequence[RequestedOutput] | None = None
    """None or empty: all outputs."""
    headers: Mapping[str, str] = field(default_factory=no_parameters)
    """HTTP headers or gRPC metadata, names in lower case; binary gRPC metadata is left out."""
    deadline: float | None = None
    """`time.monotonic()` at which the client stops waiting; None: it waits."""
    priority: int = 0
    """Schedule policy extension: 1 is the highest, 0 means the model's default."""
    binary: bool = False
    """Outputs travel raw unless an output's own parameters say otherwise (binary extension; gRPC raw in, raw out)."""

    def input(self, name: str) -> Tensor | None:
        """Find an input by name; None when the request has none of that name."""
        for tensor in self.inputs:
            if tensor.name == name:
                return tensor
        return None


@dataclass(slots=True, eq=False)
class InferResponse:
    """One inference response; `headers` are added to the HTTP response or the gRPC initial metadata."""

    model_name: str
    outputs: Sequence[Tensor]
    model_version: str = ""
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=no_parameters)
    headers: Mapping[str, str] = field(default_factory=no_parameters)

    def output(self, name: str) -> Tensor | None:
        """Find an output by name; None when the response has none of that name."""
        for tensor in self.outputs:
            if tensor.name == name:
                return tensor
        return None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model says of one input or output: -1 in `shape` is a dimension that may vary."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    labels: tuple[str, ...] = ()
    """Class names of an output, by index, for the classification extension; empty: none."""
    optional: bool = False
    """An input that a request may leave out."""
    any_rank: bool = False
    """The model does not know how many dimensions it has, and takes any; `shape` is then (-1,), since the protocol has no other word for it."""

    def in_config(self, *, batched: bool) -> tuple[str, tuple[int, ...], bool]:
        """Give what Triton's model configuration says of it (model_config.proto).

        Args:
            batched: rows are, so the first free dimension is the batch's.

        Returns:
            `data_type`; `dims` without the batch's; whether these are [1] for a scalar. The configuration has no empty `dims`: Triton
            refuses them, and pytriton's client such a model, so a scalar is [1] and `reshape { shape: [] }`.
        """
        kind = "TYPE_STRING" if self.datatype == "BYTES" else f"TYPE_{self.datatype}"
        dims = self.shape[1:] if batched and self.shape[:1] == (-1,) else self.shape
        return kind, dims or (1,), not dims


@dataclass(frozen=True, slots=True)
class Signature:
    """One of several functions of a model (TensorFlow's SignatureDef), chosen by the request parameter `signature_name`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """inference_rest.md, "Model Metadata Response JSON Object"."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What else is worth knowing: the engine chosen, the execution mode."""
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    """By name, for requests that choose one; empty: the model has only the one that `inputs` and `outputs` tell."""
    column_names: tuple[str, ...] = ()
    """Names by which the columns of the one matrix may come apart, each with its own datatype; empty: they may not."""


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """inference_rest.md, "Server Metadata Response JSON Object"."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may claim and carry. Checked before anything is allocated for it."""

    body_bytes: int = 64 * 1024 * 1024
    """Largest HTTP body or gRPC message. 64 MiB: a batch of 100 FP32 224x224x3 images; nginx's 1 MiB is too small for tensors."""
    tensor_bytes: int = 256 * 1024 * 1024
    """Largest tensor in memory after decoding."""
    tensors: int = 1024
    """Most inputs, and most requested outputs, in one request."""
    rank: int = 32
    """Most dimensions; NumPy 1 stops at 32."""
    json_depth: int = 64
    """Deepest nesting of JSON arrays and objects; orjson itself stops at 1024."""
    name_bytes: int = 1024
    """Longest tensor or parameter name."""
    classes: int = 65_536
    """Most classes that the classification extension gives of one output: each one is a text. ImageNet-21k has 21 841."""
