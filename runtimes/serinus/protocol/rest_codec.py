"""V2 REST bodies: inference requests and responses, metadata, errors, statistics, the repository's index.

Theory of operation. `RestCodec.decode_request` first offers the JSON to the compiled kernel (`json_kernel`), which reads the
numbers straight into arrays and leaves a small skeleton of the rest; a skeleton seen before needs no parsing at all. Whatever
the kernel does not take, and above all whatever is wrong, goes through orjson and the checks of `rest_document`: there is one
place where a request is refused and one set of messages, and without the kernel the results are the same.

Sources: Open Inference Protocol, inference_rest.md; Triton, extension_binary_data.md, extension_statistics.md and
extension_model_repository.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from ..errors import InvalidInput, TooLarge, UpstreamFailed
from .binary_codec import BinaryReader, binary_flag, decode_raw_body, pad
from .documents.json_values import NotFinite, property_text
from .json_codec import decode_parameters, encode_data, load_object
from .json_kernel import JsonKernel
from .raw import Buffer, encode
from .rest_document import decode_id, decode_requested_outputs, decode_tensors
from .types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    ServerMetadata,
    Tensor,
    TensorSpec,
)

__all__ = [
    "JSON_CONTENT_TYPE",
    "OCTET_CONTENT_TYPE",
    "EncodedBody",
    "RestCodec",
    "error_json",
    "index_json",
    "metadata_json",
    "statistics_json",
]

JSON_CONTENT_TYPE = "application/json"
OCTET_CONTENT_TYPE = "application/octet-stream"

_MAX_FRAMES = 1024
"""Frames kept: one per model, version and output's name, type and shape. Beyond it all are forgotten."""


class EncodedBody:
    """A body ready to send.

    Attributes:
        chunks: the bytes, in order.
        json_length: value of the header `Inference-Header-Content-Length`; None: plain JSON, no such header.
        content_type: value of `Content-Type`.
        length: bytes of all chunks, the value of `Content-Length`.
    """

    __slots__ = ("chunks", "content_type", "json_length", "length")

    def __init__(self, chunks: list[Buffer], json_length: int | None, content_type: str, length: int) -> None:
        self.chunks = chunks
        self.json_length = json_length
        self.content_type = content_type
        self.length = length

    def to_bytes(self) -> bytes:
        """Join the chunks."""
        return b"".join(self.chunks)


class RestCodec:
    """Bytes of HTTP bodies to requests and responses, and back. One per server; safe to share between threads."""

    def __init__(self, limits: Limits = Limits(), *, not_finite: NotFinite = "null") -> None:  # noqa: B008 # frozen
        self.limits = limits
        self._not_finite: NotFinite = not_finite
        """What stands for NaN and infinities in the JSON of responses."""
        self._kernel = JsonKernel.open(limits)
        """None where the kernels are not built."""
        self._frames: dict[tuple[Any, ...], tuple[bytes, bytes]] = {}
        """JSON before and after the id, up to the data of a response's only output."""

    def decode_request(
        self,
        body: Buffer,
        *,
        model_name: str,
        model_version: str = "",
        json_length: int | None = None,
        headers: Mapping[str, str] = NO_PARAMETERS,
        inputs: Sequence[TensorSpec] | None = None,
    ) -> InferRequest:
        """Read the body of an inference request.

        Args:
            body: the whole HTTP body.
            model_name: from the URL.
            model_version: from the URL; empty: the server chooses.
            json_length: value of Inference-Header-Content-Length (see `binary_codec.parse_json_length`); None: the header is absent
                and the body is JSON. 0: a raw body, which takes `inputs`.
            headers: kept in the request.
            inputs: what the model takes; needed for raw bodies only.

        Returns:
            The request, its arrays as `Tensor` says. `binary` is the parameter binary_data_output, or true for a raw body.

        Raises:
            InvalidInput: with the tensor's name, what came and what was expected.
            TooLarge: one of the limits was passed.
        """
        limits = self.limits
        if len(body) > limits.body_bytes:
            raise TooLarge(f"the request body has {len(body)} bytes, the limit is {limits.body_bytes}")
        if self._kernel is not None and json_length != 0:
            request = self._kernel.decode_request(body, json_length, model_name, model_version, headers)
            if request is not None:
                return request
        if json_length is None:
            try:
                document = load_object(body, "the request body", limits)
            except InvalidInput as error:
                if b'"binary_data_size"' not in bytes(body):
                    raise
                raise InvalidInput(
                    f"{error}; binary data follow the JSON only with the header Inference-Header-Content-Length"
                ) from None
        else:
            if json_length > len(body):
                raise InvalidInput(f"Inference-Header-Content-Length is {json_length}, the body has {len(body)} bytes")
            if json_length == 0:
                tensor = decode_raw_body(body, inputs, limits)
                return InferRequest(model_name, (tensor,), model_version, headers=headers, binary=True)
            document = load_object(memoryview(body)[:json_length], "the request's JSON part", limits)
        reader = BinaryReader(body, json_length)
        if "inputs" not in document and "instances" in document:
            raise InvalidInput("'inputs' is missing; 'instances' is V1's, which is asked below /v1/models/NAME")
        tensors = decode_tensors(document.get("inputs"), "input", reader, limits)
        reader.finish()
        parameters = decode_parameters(document.get("parameters"), "request", limits)
        binary = binary_flag(parameters, "binary_data_output", "request")
        return InferRequest(
            model_name,
            tensors,
            model_version,
            decode_id(document.get("id")),
            parameters,
            decode_requested_outputs(document.get("outputs"), limits),
            headers,
            None,
            0,
            binary is True,
        )

    def decode_response(self, body: Buffer, json_length: int | None = None) -> InferResponse:
        """Read the body of an inference response, as a client.

        Raises:
            UpstreamFailed: it is not one; the message says where it departs.
        """
        limits = self.limits
        try:
            document = load_object(
                body if json_length is None else memoryview(body)[:json_length],
                "the response body",
                limits,
                not_finite=True,
            )
            reader = BinaryReader(body, json_length)
            tensors = decode_tensors(document.get("outputs"), "output", reader, limits)
            reader.finish()
            parameters = decode_parameters(document.get("parameters"), "response", limits)
            response_id = decode_id(document.get("id"))
        except (InvalidInput, TooLarge) as error:
            raise UpstreamFailed(f"the predictor's answer cannot be read: {error}") from error
        model_name = document.get("model_name") or ""
        model_version = document.get("model_version") or ""
        return InferResponse(str(model_name), tensors, str(model_version), response_id, parameters)

    def encode_response(self, response: InferResponse, request: InferRequest) -> EncodedBody:
        """Write an inference response.

        Args:
            response: its outputs are written in order, all of them.
            request: says which outputs travel raw (`binary`, and each requested output's `binary_data`).

        Raises:
            InvalidInput: a BYTES output that is not UTF-8, or an infinity where those are refused, was asked for as JSON.
            ModelFailed: an output's values do not fit its datatype.
        """
        outputs = response.outputs
        if len(outputs) == 1 and not request.binary and not request.outputs and not response.parameters:
            tensor = outputs[0]
            if not tensor.parameters:
                return self._encode_single(response, tensor)
        raw_names = _binary_outputs(request, outputs)
        parts: list[bytes] = [_response_head(response)]
        if response.id is not None:
            parts += [b',"id":', orjson.dumps(response.id)]
        parts.append(_outputs_head(response))
        tail: list[Buffer] = []
        separator = b""
        for tensor in outputs:
            parts.append(separator)
            parts.extend(_encode_tensor(tensor, "output", tensor.name in raw_names, tail, self._not_finite))
            separator = b","
        parts.append(b"]}")
        return _body(parts, tail)

    def _encode_single(self, response: InferResponse, tensor: Tensor) -> EncodedBody:
        """Write the usual response: one output as JSON, its frame the same as last time."""
        key = (response.model_name, response.model_version, tensor.name, tensor.datatype, tensor.shape)
        frame = self._frames.get(key)
        if frame is None:
            if len(self._frames) >= _MAX_FRAMES:
                self._frames.clear()
            frame = (_response_head(response), _outputs_head(response) + _tensor_head(tensor) + b',"data":')
            self._frames[key] = frame
        data = encode_data(tensor.name, tensor.data, tensor.datatype, not_finite=self._not_finite)
        if response.id is None:
            document = b"".join((frame[0], frame[1], data, b"}]}"))
        else:
            document = b"".join((frame[0], b',"id":', orjson.dumps(response.id), frame[1], data, b"}]}"))
        return EncodedBody([document], None, JSON_CONTENT_TYPE, len(document))

    def encode_request(self, request: InferRequest, *, binary: bool) -> EncodedBody:
        """Write an inference request, as a client.

        Args:
            request: `binary` of the request asks for raw outputs.
            binary: send the inputs raw.

        Raises:
            InvalidInput: a BYTES input that is not UTF-8 is to be sent as JSON.
        """
        parts: list[bytes] = [b"{"]
        if request.id is not None:
            parts += [b'"id":', orjson.dumps(request.id), b","]
        parameters = dict(request.parameters)
        if request.binary:
            parameters["binary_data_output"] = True
        if parameters:
            parts += [b'"parameters":', orjson.dumps(parameters), b","]
        parts.append(b'"inputs":[')
        tail: list[Buffer] = []
        for index, tensor in enumerate(request.inputs):
            if index:
                parts.append(b",")
            parts.extend(_encode_tensor(tensor, "input", binary, tail))
        parts.append(b"]")
        if request.outputs:
            outputs = [
                {"name": output.name, "parameters": dict(output.parameters)}
                if output.parameters
                else {"name": output.name}
                for output in request.outputs
            ]
            parts += [b',"outputs":', orjson.dumps(outputs)]
        parts.append(b"}")
        return _body(parts, tail)


def _response_head(response: InferResponse) -> bytes:
    """Write a response up to its id."""
    head = b'{"model_name":' + orjson.dumps(response.model_name)
    return head + b',"model_version":' + orjson.dumps(response.model_version) if response.model_version else head


def _outputs_head(response: InferResponse) -> bytes:
    """Write a response from behind its id to its first output."""
    parameters = b',"parameters":' + orjson.dumps(dict(response.parameters)) if response.parameters else b""
    return parameters + b',"outputs":['


def _tensor_head(tensor: Tensor) -> bytes:
    return b"".join(
        (
            b'{"name":',
            orjson.dumps(tensor.name),
            b',"datatype":',
            orjson.dumps(tensor.datatype),
            b',"shape":',
            orjson.dumps(tensor.shape),
        )
    )


def _body(parts: list[bytes], tail: list[Buffer]) -> EncodedBody:
    document = b"".join(parts)
    if not tail:
        return EncodedBody([document], None, JSON_CONTENT_TYPE, len(document))
    document = pad(document)
    chunks: list[Buffer] = [document, *tail]
    return EncodedBody(chunks, len(document), OCTET_CONTENT_TYPE, sum(map(len, chunks)))


def _binary_outputs(request: InferRequest, outputs: Sequence[Tensor]) -> frozenset[str]:
    """Name the outputs that travel raw: the request's default, overridden by each output's own `binary_data`."""
    names = {tensor.name for tensor in outputs} if request.binary else set()
    for output in request.outputs or ():
        flag = output.parameters.get("binary_data")
        if flag is True:
            names.add(output.name)
        elif flag is False:
            names.discard(output.name)
    return frozenset(names)


def _encode_tensor(
    tensor: Tensor, role: str, binary: bool, tail: list[Buffer], not_finite: NotFinite = "null"
) -> Iterable[bytes]:
    """Write one tensor's JSON; raw data goes to `tail`."""
    head = _tensor_head(tensor)
    if binary:
        data = encode(tensor.data, tensor.datatype)
        tail.append(data)
        parameters = {**tensor.parameters, "binary_data_size": len(data)}
        return (head, b',"parameters":', orjson.dumps(parameters), b"}")
    if tensor.parameters:
        head += b',"parameters":' + orjson.dumps(dict(tensor.parameters))
    return (
        head,
        b',"data":',
        encode_data(tensor.name, tensor.data, tensor.datatype, role=role, not_finite=not_finite),
        b"}",
    )


def metadata_json(metadata: ModelMetadata | ServerMetadata) -> bytes:
    """Write the metadata of a model or of the server (inference_rest.md, "Model Metadata", "Server Metadata").

    What is empty and optional is left out: `versions` of an unversioned model, `properties`, which are text as in gRPC
    (open_inference_rest.yaml, "metadata_model_response").
    """
    if isinstance(metadata, ServerMetadata):
        return orjson.dumps(
            {"name": metadata.name, "version": metadata.version, "extensions": list(metadata.extensions)}
        )
    document: dict[str, Any] = {"name": metadata.name}
    if metadata.versions:
        document["versions"] = list(metadata.versions)
    document["platform"] = metadata.platform
    document["inputs"] = [_spec_json(spec) for spec in metadata.inputs]
    document["outputs"] = [_spec_json(spec) for spec in metadata.outputs]
    if metadata.parameters:
        document["properties"] = {key: property_text(value) for key, value in metadata.parameters.items()}
    return orjson.dumps(document)


def _spec_json(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def error_json(message: str, more: Mapping[str, str] = NO_PARAMETERS) -> bytes:
    """Write the error object of every failed request: `{"error": message}`, and what else there is to say."""
    return orjson.dumps({"error": message.encode(errors="replace").decode(), **more})


def index_json(models: Iterable[Mapping[str, Any]]) -> bytes:
    """Write the repository's index (extension_model_repository.md, "Index").

    Args:
        models: mappings with name, version (left out when empty), state and reason.
    """
    entries = []
    for model in models:
        entry = {"name": model["name"]}
        if model.get("version"):
            entry["version"] = model["version"]
        entry["state"] = model["state"]
        entry["reason"] = model.get("reason", "")
        entries.append(entry)
    return orjson.dumps(entries)


def statistics_json(models: Iterable[Mapping[str, Any]]) -> bytes:
    """Write the statistics response (extension_statistics.md, "Statistics Response JSON Object").

    Args:
        models: `$model_stat` objects as the extension names their fields; durations as {"count": int, "ns": int}.
    """
    return orjson.dumps({"model_stats": [dict(model) for model in models]})
