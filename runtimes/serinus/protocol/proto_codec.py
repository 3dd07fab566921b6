"""V2 gRPC messages: serialized bytes to requests and responses, and back.

Sources: Open Inference Protocol, inference_grpc.md, "Inference", "Raw Tensor Data", "Tensor Data Types"; Triton,
grpc_service.proto.

What the specification leaves to the server, and what is done here:
  - A message's tensors are all raw or all typed; a mixture is refused.
  - Raw in gives raw out, typed in gives typed out (MLServer does so; Triton always answers raw, KServe 0.21 always typed). Where a
    response holds FP16 or BF16, which have no typed field, all of it is raw.
  - Typed values are checked as JSON numbers are: 300 in `uint_contents` is no UINT8.
  - An empty `id` is none, as proto3 cannot tell the two apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from math import prod
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError

from ..errors import InvalidInput, ModelFailed, TooLarge, UpstreamFailed
from . import _open_inference_pb2 as pb
from .classification import check_classes
from .datatypes import BYTES, NUMPY_DTYPES
from .documents.json_values import property_text
from .documents.model_config import ModelConfig
from .json_codec import check_datatype, check_empty, check_name, describe
from .proto_census import check_message
from .raw import Buffer, decode, encode
from .types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    RequestedOutput,
    ServerMetadata,
    Tensor,
)

__all__ = [
    "config_message",
    "decode_repository_parameters",
    "decode_request",
    "decode_response",
    "encode_request",
    "encode_response",
    "index_message",
    "metadata_message",
    "statistics_message",
]

_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype to its field of InferTensorContents; FP16 and BF16 have none and travel raw."""

_WIDE = {"UINT8": np.uint32, "UINT16": np.uint32, "INT8": np.int32, "INT16": np.int32}
"""Narrow integers travel in fields of 32 bits, and are checked when they are narrowed."""

_PACKED = {"BOOL": b"\x0a", "FP32": b"\x32", "FP64": b"\x3a"}
"""Datatypes whose packed field has the raw form of the tensor behind this tag and a length (protobuf, "Packed Repeated Fields"):
serialized, such a field is the tensor, with no Python object per element."""

_LOOKED_AT_BYTES: Final = 64 * 1024
"""A message with less cannot hold so much that it is worth a look."""
_CHUNK: Final = 1 << 16
"""Elements that are taken in one call, which no other thread interrupts: some milliseconds."""

_NO_LIMITS = Limits()


def decode_request(
    message: Buffer, *, limits: Limits = _NO_LIMITS, headers: Mapping[str, str] = NO_PARAMETERS
) -> InferRequest:
    """Read a serialized ModelInferRequest.

    Args:
        message: the gRPC message without its frame.
        limits: all of them but `json_depth` apply.
        headers: kept in the request.

    Returns:
        The request; `binary` says that its tensors came raw. Raw arrays are read-only views.

    Raises:
        InvalidInput: with the tensor's name, what came and what was expected.
        TooLarge: one of the limits was passed.
    """
    if len(message) > limits.body_bytes:
        raise TooLarge(f"the message has {len(message)} bytes, the limit is {limits.body_bytes}")
    message = bytes(message)
    if len(message) > _LOOKED_AT_BYTES:
        check_message(message)
    try:
        request = pb.ModelInferRequest.FromString(message)
    except DecodeError:
        raise InvalidInput("the message is no ModelInferRequest: its bytes do not decode as protobuf") from None
    if not request.model_name:
        raise InvalidInput("'model_name' is empty")
    if not request.inputs:
        raise InvalidInput("'inputs' is empty: at least one input was expected")
    raw = request.raw_input_contents
    tensors = _decode_tensors(request.inputs, raw, "input", limits)
    parameters = _decode_parameters(request.parameters, "request", limits) if request.parameters else NO_PARAMETERS
    outputs = _decode_requested_outputs(request.outputs, limits) if request.outputs else None
    return InferRequest(
        request.model_name,
        tensors,
        request.model_version,
        request.id or None,
        parameters,
        outputs,
        headers,
        None,
        0,
        len(raw) > 0,
    )


def decode_response(message: Buffer, *, limits: Limits = _NO_LIMITS) -> InferResponse:
    """Read a serialized ModelInferResponse, as a client.

    Raises:
        UpstreamFailed: it is not one; the message says where it departs.
    """
    try:
        response = pb.ModelInferResponse.FromString(bytes(message))
        outputs = _decode_tensors(response.outputs, response.raw_output_contents, "output", limits)
        parameters = _decode_parameters(response.parameters, "response", limits)
    except DecodeError:
        raise UpstreamFailed("the predictor's answer does not decode as protobuf") from None
    except (InvalidInput, TooLarge) as error:
        raise UpstreamFailed(f"the predictor's answer cannot be read: {error}") from error
    return InferResponse(response.model_name, outputs, response.model_version, response.id or None, parameters)


def _decode_tensors(entries: Sequence[Any], raw: Sequence[bytes], role: str, limits: Limits) -> list[Tensor]:
    count = len(entries)
    if count > limits.tensors:
        raise TooLarge(f"the message holds {count} {role}s, the limit is {limits.tensors} (max_tensors)")
    if raw and len(raw) != count:
        for entry in entries:  # one in shared memory has no raw contents (Triton, extension_shared_memory.md)
            if "shared_memory_region" in entry.parameters:
                raise _in_shared_memory(f"{role} {entry.name!r}")
        raise InvalidInput(f"'raw_{role}_contents' holds {len(raw)} tensors, '{role}s' names {count}")
    tensors: list[Tensor] = []
    names: set[str] = set()
    for index, entry in enumerate(entries):
        name = check_name(entry.name, f"{role} {index}", limits)
        what = f"{role} {name!r}"
        if name in names:
            raise InvalidInput(f"{what} is given twice")
        names.add(name)
        datatype = check_datatype(entry.datatype, what)
        shape = _shape(entry.shape, what, limits)
        parameters = _decode_parameters(entry.parameters, what, limits) if entry.parameters else NO_PARAMETERS
        if "shared_memory_region" in parameters:
            raise _in_shared_memory(what)
        if raw:
            if entry.HasField("contents") and entry.contents.ListFields():
                raise InvalidInput(
                    f"{what}: both 'contents' and 'raw_{role}_contents' are there, one of them was expected"
                )
            data = decode(what, datatype, shape, raw[index], limits)
        else:
            data = _decode_contents(what, datatype, shape, entry.contents, limits)
        tensors.append(Tensor(name, datatype, shape, data, parameters))
    return tensors


def _in_shared_memory(what: str) -> InvalidInput:
    return InvalidInput(f"{what}: shared memory is not offered by this server; send the values")


def _shape(value: Sequence[int], what: str, limits: Limits) -> tuple[int, ...]:
    if len(value) > limits.rank:
        raise InvalidInput(f"{what}: 'shape' has {len(value)} dimensions, the limit is {limits.rank} (max_rank)")
    shape = tuple(value)
    if shape and min(shape) < 0:
        raise InvalidInput(f"{what}: shape {list(shape)} has a negative dimension; a request says each one's true size")
    if 0 in shape:
        check_empty(shape, what, limits)
    return shape


def _decode_contents(what: str, datatype: str, shape: tuple[int, ...], contents: Any, limits: Limits) -> np.ndarray:
    """Read the typed field that belongs to the datatype, and refuse any other."""
    field = _CONTENTS.get(datatype)
    filled = [descriptor.name for descriptor, _ in contents.ListFields()]
    if field is None:
        raise InvalidInput(f"{what}: {datatype} has no typed field; send it in 'raw_input_contents'")
    if filled and filled != [field]:
        other = next(name for name in filled if name != field)
        raise InvalidInput(f"{what}: {datatype} travels in '{field}', {other!r} came")
    values = getattr(contents, field)
    count = prod(shape)
    if len(values) != count:
        raise InvalidInput(f"{what}: shape {list(shape)} holds {count} values, '{field}' has {len(values)}")
    dtype = NUMPY_DTYPES[datatype]
    if count * dtype.itemsize > limits.tensor_bytes:
        raise TooLarge(
            f"{what}: {count * dtype.itemsize} bytes decoded, the limit is {limits.tensor_bytes} (max_tensor_bytes)"
        )
    if datatype == BYTES:
        array = np.empty(count, dtype=object)
        for start in range(0, count, _CHUNK):
            array[start : start + _CHUNK] = values[start : start + _CHUNK]
        return array.reshape(shape)
    if datatype in _PACKED and count:
        packed = contents.SerializeToString()
        if len(packed) == len(_PACKED[datatype]) + len(_varint(count * dtype.itemsize)) + count * dtype.itemsize:
            return np.frombuffer(packed[-count * dtype.itemsize :], dtype).reshape(shape)
        # unknown fields follow
    wide = _WIDE.get(datatype)
    if wide is None:
        return _numbers(values, dtype, count).reshape(shape)
    array = _numbers(values, np.dtype(wide), count)
    limit = np.iinfo(dtype)
    if count and (int(array.min()) < limit.min or int(array.max()) > limit.max):
        index = int(np.argmax((array < limit.min) | (array > limit.max)))
        raise InvalidInput(f"{what}: {field}[{index}] is {array[index]}, {datatype} holds {limit.min} to {limit.max}")
    return array.astype(dtype).reshape(shape)


def _numbers(values: Iterable[Any], dtype: np.dtype, count: int) -> np.ndarray:
    """Read numbers, a chunk at a time."""
    if count <= _CHUNK:
        return np.fromiter(values, dtype, count)
    array, remaining = np.empty(count, dtype), iter(values)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        array[start : start + size] = np.fromiter(islice(remaining, size), dtype, size)
    return array


def _decode_parameters(parameters: Mapping[str, Any], what: str, limits: Limits) -> Mapping[str, Any]:
    decoded: dict[str, Any] = {}
    if len(parameters) > limits.tensors:
        raise TooLarge(f"{what} has {len(parameters)} parameters, the limit is {limits.tensors} (max_tensors)")
    for key, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(f"{what}: parameter {key[:40]!r} has no value; a string, number or boolean was expected")
        if len(key) * 4 > limits.name_bytes and len(key.encode()) > limits.name_bytes:
            raise InvalidInput(
                f"{what}: a parameter's name has {len(key.encode())} bytes, the limit is {limits.name_bytes} (max_name_bytes)"
            )
        decoded[key] = getattr(parameter, kind)
    return decoded or NO_PARAMETERS


def _decode_requested_outputs(entries: Sequence[Any], limits: Limits) -> list[RequestedOutput]:
    if len(entries) > limits.tensors:
        raise TooLarge(f"'outputs' names {len(entries)} tensors, the limit is {limits.tensors} (max_tensors)")
    outputs: list[RequestedOutput] = []
    names: set[str] = set()
    for index, entry in enumerate(entries):
        name = check_name(entry.name, f"requested output {index}", limits)
        what = f"requested output {name!r}"
        if name in names:
            raise InvalidInput(f"{what} is given twice")
        names.add(name)
        parameters = _decode_parameters(entry.parameters, what, limits)
        if "shared_memory_region" in parameters:
            raise InvalidInput(f"{what}: shared memory is not offered by this server")
        check_classes(parameters, what, limits)
        outputs.append(RequestedOutput(name, parameters))
    return outputs


def encode_response(response: InferResponse, request: InferRequest) -> bytes:
    """Write a serialized ModelInferResponse, raw where the request came raw.

    Raises:
        ModelFailed: an output's values do not fit its datatype.
    """
    message = pb.ModelInferResponse(
        model_name=response.model_name, model_version=response.model_version, id=response.id or ""
    )
    _fill_parameters(message.parameters, response.parameters)
    raw = request.binary or any(tensor.datatype not in _CONTENTS for tensor in response.outputs)
    _fill_tensors(message.outputs, message.raw_output_contents, response.outputs, "output", raw)
    return message.SerializeToString()


def encode_request(request: InferRequest, *, raw: bool = True) -> bytes:
    """Write a serialized ModelInferRequest, as a client.

    Args:
        request: its headers and deadline are the transport's to send.
        raw: send raw contents (as all servers take them); False: typed, where every datatype has a typed field.
    """
    message = pb.ModelInferRequest(
        model_name=request.model_name, model_version=request.model_version, id=request.id or ""
    )
    _fill_parameters(message.parameters, request.parameters)
    for output in request.outputs or ():
        entry = message.outputs.add(name=output.name)
        _fill_parameters(entry.parameters, output.parameters)
    raw = raw or any(tensor.datatype not in _CONTENTS for tensor in request.inputs)
    _fill_tensors(message.inputs, message.raw_input_contents, request.inputs, "input", raw)
    return message.SerializeToString()


def _fill_tensors(entries: Any, raw_contents: Any, tensors: Sequence[Tensor], role: str, raw: bool) -> None:
    for tensor in tensors:
        entry = entries.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if tensor.parameters:
            _fill_parameters(entry.parameters, tensor.parameters)
        try:
            if raw:
                raw_contents.append(bytes(encode(tensor.data, tensor.datatype)))
            elif tensor.datatype in _PACKED and tensor.data.size:
                data = bytes(encode(tensor.data, tensor.datatype))
                entry.contents.MergeFromString(_PACKED[tensor.datatype] + _varint(len(data)) + data)
            else:
                getattr(entry.contents, _CONTENTS[tensor.datatype]).extend(_plain(tensor))
        except (TypeError, ValueError):
            raise ModelFailed(f"{role} {tensor.name!r}: its values cannot be written as {tensor.datatype}") from None


def _varint(value: int) -> bytes:
    """Write a length as protobuf does: 7 bits a byte, the lowest first."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _plain(tensor: Tensor) -> list[Any]:
    values = tensor.data.reshape(-1)
    if tensor.datatype == BYTES:
        return [value if isinstance(value, bytes) else str(value).encode() for value in values.tolist()]
    dtype = NUMPY_DTYPES[tensor.datatype]
    return (values if values.dtype == dtype else values.astype(dtype)).tolist()


def _fill_parameters(target: Any, parameters: Mapping[str, Any]) -> None:
    for key, value in parameters.items():
        parameter = target[key]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int):
            if -(2**63) <= value < 2**63:
                parameter.int64_param = value
            elif 0 <= value < 2**64:
                parameter.uint64_param = value
            else:
                parameter.double_param = float(value)
        elif isinstance(value, float):
            parameter.double_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        else:
            raise ModelFailed(f"parameter {key!r} is {describe(value)}, a string, number or boolean was expected")


def metadata_message(metadata: ModelMetadata | ServerMetadata, *, mlservers: bool = False) -> Any:
    """Make a ModelMetadataResponse or ServerMetadataResponse; the model's parameters are its `properties`, as text.

    Args:
        metadata: of a model or of the server.
        mlservers: field 6 of a model's is read as MLServer has it (dataplane.proto, `map<string, InferParameter> parameters`) in the place
            of the Open Inference Protocol's `map<string, string> properties`. Clients of the latter read it without an error, but with
            MLServer's marks around the text.
    """
    if isinstance(metadata, ServerMetadata):
        return pb.ServerMetadataResponse(name=metadata.name, version=metadata.version, extensions=metadata.extensions)
    message = pb.ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        properties={
            key: _as_parameter(property_text(value)) if mlservers else property_text(value)
            for key, value in metadata.parameters.items()
        },
    )
    for target, specs in ((message.inputs, metadata.inputs), (message.outputs, metadata.outputs)):
        for spec in specs:
            target.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
    return message


_STRING_PARAMETER: Final = "\x1a"
"""Tag of InferParameter's field 3, `string_param`, of wire type LEN."""


def _as_parameter(text: str) -> str:
    """Write a serialized InferParameter that is UTF-8 too, as a field of strings must be, so that clients of either form decode it.

    A length of up to 127 bytes is one character. A longer one takes three bytes of a varint, which are two characters of UTF-8 only if its
    lowest seven bits are 66 to 95, and the fourteenth is not set: the text is filled up with spaces to the next such length.
    """
    given = size = len(text.encode())
    if size < 128:
        return f"{_STRING_PARAMETER}{chr(size)}{text}"
    while not 66 <= size % 128 <= 95 or size & 1 << 13:
        size += 1
    length = bytes((0x80 | size & 0x7F, 0x80 | size >> 7 & 0x3F, size >> 14))
    return f"{_STRING_PARAMETER}{length.decode()}{text}{' ' * (size - given)}"


def config_message(config: ModelConfig) -> Any:
    """Make a ModelConfigResponse."""
    return pb.ModelConfigResponse(config=json_format.ParseDict(config.document(), pb.ModelConfig()))


def index_message(models: Iterable[Mapping[str, Any]]) -> Any:
    """Make a RepositoryIndexResponse.

    Args:
        models: mappings with name, version, state and reason, as `rest_codec.index_json` takes them.
    """
    message = pb.RepositoryIndexResponse()
    for model in models:
        message.models.add(
            name=model["name"],
            version=model.get("version") or "",
            state=model["state"],
            reason=model.get("reason") or "",
        )
    return message


def statistics_message(models: Iterable[Mapping[str, Any]]) -> Any:
    """Make a ModelStatisticsResponse.

    Args:
        models: `$model_stat` objects, as `rest_codec.statistics_json` takes them.
    """
    message = pb.ModelStatisticsResponse()
    for model in models:
        entry = message.model_stats.add(name=model["name"], version=model.get("version") or "")
        for field in ("last_inference", "inference_count", "execution_count"):
            setattr(entry, field, int(model.get(field, 0)))
        _fill_durations(entry.inference_stats, model.get("inference_stats", {}))
        for key, durations in model.get("response_stats", {}).items():
            _fill_durations(entry.response_stats[key], durations)
        for batch in model.get("batch_stats", ()):
            row = entry.batch_stats.add(batch_size=int(batch["batch_size"]))
            _fill_durations(row, {key: value for key, value in batch.items() if key != "batch_size"})
        for usage in model.get("memory_usage", ()):
            entry.memory_usage.add(**usage)
    return message


def _fill_durations(target: Any, durations: Mapping[str, Mapping[str, int]]) -> None:
    for field, duration in durations.items():
        stored = getattr(target, field)
        stored.count = int(duration["count"])
        stored.ns = int(duration["ns"])
        stored.SetInParent()


def decode_repository_parameters(request: Any) -> tuple[str, dict[str, Any]]:
    """Read a RepositoryModelLoadRequest or RepositoryModelUnloadRequest.

    Returns:
        The model's name, from either of the two fields where clients put it (see open_inference.proto), and the parameters.

    Raises:
        InvalidInput: no name, or a parameter without a value.
    """
    name = request.model_name or request.repository_name
    if not name:
        raise InvalidInput("'model_name' is empty")
    parameters: dict[str, Any] = {}
    for key, parameter in request.parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidInput(f"parameter {key[:40]!r} has no value")
        parameters[key] = getattr(parameter, kind)
    return name, parameters
