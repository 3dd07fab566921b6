"""Requests and responses between this library's types and MLServer's.

What an `MLModel` sees is what MLServer shows it: lists as flat or nested as they were sent, BYTES as `str` over REST and as `bytes`
over gRPC, an id (MLServer invents one where the client gave none), and the request's headers in `parameters.headers`.
The answer to the client carries the client's own id, or none.
"""

# MLServer cannot be installed beside KServe, where the type checker runs.
# pyright: reportMissingImports=false
from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from mlserver.types import (
    InferenceRequest,
    InferenceResponse,
    MetadataTensor,
    Parameters,
    RequestInput,
    RequestOutput,
    ResponseOutput,
    TensorData,
)

from ...errors import ClientError, InvalidInput, ModelFailed, SerinusError
from ...protocol.datatypes import BFLOAT16, BYTES, NUMPY_DTYPES
from ...protocol.json_codec import check_shape, decode_data
from ...protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Limits, RequestedOutput, Tensor, TensorSpec
from ..transport import is_grpc

__all__ = [
    "from_mlserver_request",
    "from_mlserver_response",
    "loose_request",
    "specs",
    "tensor_metadata",
    "to_mlserver_request",
    "to_mlserver_response",
]


class LooseRequest(InferRequest):
    """A request that MLServer takes and the protocol does not allow; it has no tensors."""

    __slots__ = ("payload",)

    def __init__(self, model_name: str, version: str, headers: Mapping[str, str], payload: InferenceRequest) -> None:
        super().__init__(model_name, (), version, payload.id, headers=headers)
        self.payload = payload


def loose_request(body: bytes, model_name: str, version: str, headers: Mapping[str, str]) -> LooseRequest | None:
    """Read what MLServer's documents send beyond the protocol: a bare string, strings of any shape, nested parameters.

    Source: MLServer 1.7, "Content Types", and the examples "Serving a custom model with JSON serialization" and "Content Type
    Decoding".

    Returns:
        None where it is not that, or its numbers do not fit their datatype and shape.
    """
    try:
        payload = InferenceRequest.model_validate_json(body)
        for tensor in payload.inputs:
            datatype = str(getattr(tensor.datatype, "value", tensor.datatype))
            if datatype != BYTES:
                shape = check_shape(tensor.shape, tensor.name, Limits())
                decode_data(tensor.name, datatype, shape, _values(tensor), Limits())
    except (ValueError, ClientError):
        return None
    return LooseRequest(model_name, version, headers, payload) if payload.inputs else None


def to_mlserver_request(request: InferRequest) -> InferenceRequest:
    """Show a request as MLServer's data plane would.

    Raises:
        InvalidInput: BF16, which MLServer does not know, or text that is not UTF-8.
    """
    headers = dict(request.headers)
    if isinstance(request, LooseRequest):
        parameters = request.payload.parameters or Parameters()
        parameters.headers = headers
        return request.payload.model_copy(update={"id": request.id or str(uuid.uuid4()), "parameters": parameters})
    text = not is_grpc(headers)
    return InferenceRequest.model_construct(
        id=request.id or str(uuid.uuid4()),
        parameters=Parameters.model_construct(**{**request.parameters, "headers": headers}),
        inputs=[_request_input(tensor, text) for tensor in request.inputs],
        outputs=[
            RequestOutput(name=output.name, parameters=_parameters(output.parameters)) for output in request.outputs
        ]
        if request.outputs
        else None,
    )


def _request_input(tensor: Tensor, text: bool) -> RequestInput:
    if tensor.datatype == BFLOAT16:
        raise InvalidInput(f"input {tensor.name!r} is BF16, which this model's framework does not know; send FP32")
    array = tensor.data
    if tensor.datatype == BYTES and text:
        try:
            decoded = [value.decode() for value in array.reshape(-1).tolist()]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"input {tensor.name!r}: {error.object[:32]!r} is not UTF-8; send it over gRPC"
            ) from error
        array = np.empty(len(decoded), dtype=object)
        array[:] = decoded
        array = array.reshape(tensor.shape)
    values = (array if tensor.nested else array.reshape(-1)).tolist()
    return RequestInput.model_construct(
        name=tensor.name,
        shape=list(tensor.shape),
        datatype=tensor.datatype,
        parameters=_parameters(tensor.parameters),
        data=TensorData.model_construct(root=values),
    )


def _parameters(parameters: Mapping[str, Any]) -> Parameters | None:
    return Parameters(**parameters) if parameters else None


def _plain(parameters: Parameters | None) -> dict[str, Any]:
    if parameters is None:
        return {}
    plain = parameters.model_dump(exclude={"headers"}, exclude_none=True)
    return {
        name: value if isinstance(value, (str, bool, int, float)) else _json(value) for name, value in plain.items()
    }


def _json(value: Any) -> str:
    """Write what is no value of a parameter, and no element of BYTES, as text."""
    return orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY).decode()


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return (_json(value) if isinstance(value, (dict, list)) else str(value)).encode()


def _values(tensor: RequestInput | ResponseOutput) -> Any:
    return getattr(tensor.data, "root", tensor.data)


def _array(what: str, tensor: RequestInput | ResponseOutput, error: type[SerinusError]) -> np.ndarray:
    datatype = str(getattr(tensor.datatype, "value", tensor.datatype))
    shape = tuple(int(size) for size in tensor.shape)
    values = _values(tensor)
    try:
        if datatype == BYTES:
            return _bytes_array(values, shape, _content_type(tensor)).reshape(shape)
        # MLServer writes NaN as null; NumPy reads None as NaN.
        return np.asarray(values, dtype=NUMPY_DTYPES[datatype]).reshape(shape)
    except (TypeError, ValueError, OverflowError, KeyError) as problem:
        raise error(f"{what} {tensor.name!r}: the values do not fit {datatype} {list(shape)}: {problem}") from problem


def _output_array(output: ResponseOutput) -> np.ndarray:
    """Read an output's values; strings of a shape that counts other than them are a list: MLServer's examples write their length."""
    if output.datatype == BYTES and _content_type(output) != "np":
        array = _bytes_array(_values(output), (-1,), None)
        return array.reshape(output.shape) if array.size == math.prod(output.shape) else array
    return _array("output", output, ModelFailed)


def _content_type(tensor: RequestInput | ResponseOutput) -> str | None:
    return tensor.parameters.content_type if tensor.parameters is not None else None


def _bytes_array(values: Any, shape: tuple[int, ...], content_type: str | None) -> np.ndarray:
    count = math.prod(shape)
    flat = np.array(values, dtype=object).reshape(-1).tolist() if not isinstance(values, (str, bytes)) else [values]
    if (
        content_type == "np"
        and len(flat) == 1
        and count > 1
        and isinstance(flat[0], bytes)
        and not len(flat[0]) % count
    ):
        # MLServer's NumpyCodec: one buffer of fixed-width strings, padded with zeros.
        buffer: Any = flat[0]
        width = len(buffer) // count
        flat = [buffer[start : start + width].rstrip(b"\0") for start in range(0, len(buffer), width)]
    array = np.empty(len(flat), dtype=object)
    array[:] = [_text(value) for value in flat]
    return array


def from_mlserver_response(answer: InferenceResponse, request: InferRequest, version: str) -> InferResponse:
    """Read what an `MLModel` answered.

    Raises:
        ModelFailed: an output contradicts itself.
    """
    outputs = []
    for output in answer.outputs:
        array = _output_array(output)
        datatype = str(getattr(output.datatype, "value", output.datatype))
        outputs.append(Tensor(output.name, datatype, array.shape, array, _plain(output.parameters) or NO_PARAMETERS))
    headers = (answer.parameters.headers if answer.parameters is not None else None) or {}
    return InferResponse(
        request.model_name,
        outputs,
        version or answer.model_version or "",
        request.id,
        _plain(answer.parameters) or NO_PARAMETERS,
        {str(name): str(value) for name, value in headers.items()} or NO_PARAMETERS,
    )


def from_mlserver_request(payload: InferenceRequest, model_name: str) -> InferRequest:
    """Read a request that MLServer decoded.

    Raises:
        InvalidInput: values that do not fit their datatype and shape.
    """
    parameters = _plain(payload.parameters)
    parameters.pop("content_type", None)
    return InferRequest(
        model_name,
        [
            Tensor(tensor.name, str(getattr(tensor.datatype, "value", tensor.datatype)), array.shape, array)
            for tensor in payload.inputs
            for array in (_array("input", tensor, InvalidInput),)
        ],
        id=payload.id,
        parameters=parameters or NO_PARAMETERS,
        outputs=[RequestedOutput(output.name) for output in payload.outputs or ()] or None,
    )


def to_mlserver_response(response: InferResponse) -> InferenceResponse:
    """Write an answer for MLServer to encode; NaN becomes null, as in MLServer's own codecs."""
    return InferenceResponse(
        model_name=response.model_name,
        model_version=response.model_version or None,
        id=response.id,
        outputs=[
            ResponseOutput(
                name=tensor.name,
                shape=list(tensor.shape),
                datatype="FP32" if tensor.datatype == BFLOAT16 else tensor.datatype,  # type: ignore[arg-type] # by value
                data=TensorData(_listed(tensor)),
            )
            for tensor in response.outputs
        ],
    )


def _listed(tensor: Tensor) -> list[Any]:
    values = tensor.data.reshape(-1).tolist()
    if tensor.data.dtype.kind == "f":
        return [None if value != value else value for value in values]
    return values


def specs(tensors: Any) -> tuple[TensorSpec, ...]:
    """Read MLServer's tensor metadata."""
    return tuple(
        TensorSpec(tensor.name, str(getattr(tensor.datatype, "value", tensor.datatype)), tuple(tensor.shape))
        for tensor in tensors or ()
    )


def tensor_metadata(listed: Any) -> list[MetadataTensor]:
    """Write MLServer's tensor metadata, leaving out what it has no datatype for."""
    return [
        MetadataTensor(name=spec.name, datatype=spec.datatype, shape=list(spec.shape))
        for spec in listed
        if spec.datatype != BFLOAT16
    ]
