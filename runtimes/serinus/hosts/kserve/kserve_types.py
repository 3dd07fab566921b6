"""Requests and responses between this library's types and KServe's, without a Python list on the way.

KServe hands a subclass `kserve.InferRequest`: inputs whose `data` is a Python list (REST) or is empty beside raw bytes (gRPC
raw), and `as_numpy()`. The classes here derive from KServe's, hold the decoded array, and make a list only when somebody
looks at `data`. What a subclass can see is as KServe shows it:

* `data` is flat or nested as the client's JSON was (a predictor's, in a response); over gRPC and the binary extension it is flat.
* over REST, elements of BYTES are `str`, over gRPC `bytes` (`kserve.protocol.infer_type.InferRequest.from_inference_request`,
  `from_grpc`); `as_numpy()` likewise.
* over gRPC the request's parameters are `InferParameter` messages, over REST plain values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from kserve import InferInput, InferOutput
from kserve import InferRequest as KServeRequest
from kserve import InferResponse as KServeResponse
from kserve.protocol.grpc.grpc_predict_v2_pb2 import InferParameter, ModelInferResponse
from kserve.protocol.infer_type import RequestedOutput as KServeRequestedOutput

from ...errors import InvalidInput, ModelFailed, SerinusError
from ...protocol import raw
from ...protocol.datatypes import BYTES, DATATYPES, NUMPY_DTYPES
from ...protocol.types import NO_PARAMETERS, InferRequest, InferResponse, Limits, RequestedOutput, Tensor
from ..transport import is_grpc

__all__ = [
    "HostedInput",
    "HostedOutput",
    "HostedRequest",
    "HostedResponse",
    "from_kserve_request",
    "from_kserve_response",
    "response_from_dict",
    "response_to_dict",
    "to_kserve_request",
    "to_kserve_response",
]

_UNBOUNDED = Limits(tensor_bytes=1 << 62)
"""What a model made was not claimed by a client; it is there already."""


class _Lazy:
    """A tensor that holds an array until somebody asks for a list; mixed into KServe's two tensor classes."""

    _name: str
    _shape: list[int]
    _datatype: str
    _parameters: Any
    _raw_data: bytes | None
    _array: np.ndarray | None
    _list: Any
    _flat: bool
    _text: bool

    def _hold(self, tensor: Tensor, text: bool) -> None:
        self._name = tensor.name
        self._shape = list(tensor.shape)
        self._datatype = tensor.datatype
        self._raw_data = None
        self._array = tensor.data
        self._list = None
        self._flat = not tensor.nested
        self._text = text and tensor.datatype == BYTES

    @property
    def _data(self) -> Any:
        array = self._array
        if array is None:
            return self._list
        if self._list is None:
            if self._text:
                array = self._as_text(array)
            self._list = (array.reshape(-1) if self._flat else array).tolist()
        return self._list

    @_data.setter
    def _data(self, value: Any) -> None:
        self._array = None
        self._list = value

    def _as_text(self, array: np.ndarray) -> np.ndarray:
        """Decode `bytes` elements as UTF-8, once: KServe shows JSON strings as `str`."""
        try:
            elements = [
                element.decode() if isinstance(element, bytes) else element for element in array.reshape(-1).tolist()
            ]
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"input {self._name!r}: {error.object[:32]!r} is not UTF-8; this model takes text"
            ) from error
        text = np.empty(len(elements), dtype=object)
        text[:] = elements
        self._array = text.reshape(array.shape)
        self._text = False
        return self._array

    def as_numpy(self) -> np.ndarray:
        """Give the array; shape and NumPy type as the tensor says.

        Elements of BYTES that are not all UTF-8 stay `bytes`: they came over the binary extension (a JSON string cannot be such),
        and are no text. KServe 0.21 refuses them over REST, so a transformer of images could have none there.
        """
        array = self._array
        if array is None:
            return super().as_numpy()  # type: ignore[misc] # KServe's own, by the class that this is mixed into
        if not self._text:
            return array
        try:
            return self._as_text(array)
        except InvalidInput:
            return array

    def as_string(self) -> list[Any]:
        """Give BYTES as a flat list of `str`."""
        if self._datatype != BYTES:
            raise InvalidInput(f"input {self._name!r} is {self._datatype}, BYTES was expected")
        elements = self.as_numpy().reshape(-1).tolist()
        return [element.decode() if isinstance(element, bytes) else str(element) for element in elements]


class HostedInput(_Lazy, InferInput):
    """`kserve.InferInput` around an array."""

    def __init__(self, tensor: Tensor, grpc: bool) -> None:
        self._hold(tensor, not grpc)
        self._parameters = dict(tensor.parameters) if tensor.parameters else (None if grpc else {})


class HostedOutput(_Lazy, InferOutput):
    """`kserve.InferOutput` around an array."""

    def __init__(self, tensor: Tensor, grpc: bool) -> None:
        self._hold(tensor, not grpc)
        self._parameters = dict(tensor.parameters) if tensor.parameters else None


class HostedRequest(KServeRequest):
    """`kserve.InferRequest` that remembers whether raw outputs are wanted."""

    _binary = False
    _asked_version: str | None = None
    """What the client asked for: the transformer's version, which says nothing of the predictor's."""

    @property
    def use_binary_outputs(self) -> bool:
        """Whether outputs travel raw, as the request says."""
        return self._binary


class HostedResponse(KServeResponse):
    """`kserve.InferResponse` of a predictor."""


def to_kserve_request(request: InferRequest, headers: Mapping[str, str]) -> HostedRequest:
    """Show a request as KServe's data plane would.

    Args:
        request: its arrays are shared, not copied.
        headers: the request's, which also tell the transport.
    """
    grpc = is_grpc(headers)
    parameters: dict[str, Any] = dict(request.parameters)
    if grpc and parameters:
        parameters = {name: _message(value) for name, value in parameters.items()}
    hosted = HostedRequest(
        request.model_name,
        [HostedInput(tensor, grpc) for tensor in request.inputs],
        request.id,
        None,
        grpc,
        parameters,
        [KServeRequestedOutput(output.name, dict(output.parameters)) for output in request.outputs]
        if request.outputs
        else None,
        request.model_version or None,
    )
    hosted._binary = request.binary  # our own subclass
    hosted._asked_version = request.model_version or None
    return hosted


def _message(value: Any) -> InferParameter:
    if isinstance(value, bool):
        return InferParameter(bool_param=value)
    if isinstance(value, int):
        return InferParameter(int64_param=value)
    return InferParameter(string_param=value if isinstance(value, str) else repr(value))


def _plain(parameters: Any) -> dict[str, Any]:
    """Read parameters back, whether plain or messages."""
    if not parameters:
        return {}
    plain: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, InferParameter):
            which = value.WhichOneof("parameter_choice")
            if which:
                plain[name] = getattr(value, which)
        else:
            plain[name] = value
    return plain


def _kept_parameters(parameters: Any) -> Mapping[str, Any]:
    plain = _plain(parameters)
    plain.pop("binary_data_size", None)  # KServe's note to its own encoder
    return plain or NO_PARAMETERS


def _array(tensor: Any, role: str, error: type[SerinusError]) -> np.ndarray:
    """Read the values of one of KServe's tensors.

    Raises:
        error: they do not fit the tensor's own datatype and shape.
    """
    what = f"{role} {tensor.name!r}"
    datatype = tensor.datatype
    if datatype not in DATATYPES:
        raise error(f"{what}: the datatype is {datatype!r}, one of {', '.join(sorted(DATATYPES))} was expected")
    shape = tuple(int(size) for size in tensor.shape)
    held = getattr(tensor, "_array", None)
    if held is not None and held.shape == shape and (datatype != BYTES or _is_of_strings(held)):
        return held
    raw_data = tensor._raw_data  # KServe has no public name for it
    if raw_data is not None:
        try:
            return raw.decode(what, datatype, shape, raw_data, _UNBOUNDED)
        except InvalidInput as problem:
            raise error(str(problem)) from problem
    data = tensor.data
    if data is None:
        raise error(f"{what}: it has no data")
    if datatype == BYTES:
        return _bytes_array(what, data, shape, error)
    try:
        array = np.asarray(data, dtype=NUMPY_DTYPES[datatype])
    except (TypeError, ValueError, OverflowError) as problem:
        raise error(f"{what}: the values do not fit {datatype}: {problem}") from problem
    return _shaped(what, array, shape, error)


def _is_of_strings(array: np.ndarray) -> bool:
    return set(map(type, array.reshape(-1).tolist())) <= {bytes, str}


def _bytes_array(what: str, data: Any, shape: tuple[int, ...], error: type[SerinusError]) -> np.ndarray:
    source = data if isinstance(data, np.ndarray) else np.array(data, dtype=object)
    elements = [_bytes(element) for element in source.reshape(-1).tolist()]
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return _shaped(what, array, shape, error)


def _bytes(element: Any) -> bytes:
    """Write an element of BYTES: what JSON had as true is "true" again."""
    if isinstance(element, bytes):
        return element
    return orjson.dumps(element) if isinstance(element, bool | dict) else str(element).encode()


def _shaped(what: str, array: np.ndarray, shape: tuple[int, ...], error: type[SerinusError]) -> np.ndarray:
    if array.shape == shape:
        return array
    try:
        return array.reshape(shape)
    except ValueError as problem:
        count = math.prod(shape)
        raise error(f"{what}: shape {list(shape)} holds {count} values, data has {array.size}") from problem


def _without_null(tensor: Any) -> Any:
    held = getattr(tensor, "_array", None)
    if tensor.datatype == BYTES and held is not None and any(element is None for element in held.reshape(-1).tolist()):
        raise InvalidInput(
            f"input {tensor.name!r}: data holds null, which cannot be passed on to the predictor; send a string in its place"
        )
    return tensor


def from_kserve_request(
    hosted: KServeRequest,
    *,
    model_name: str,
    headers: Mapping[str, str],
    deadline: float | None,
) -> InferRequest:
    """Read the request that a `preprocess` made, on its way to the predictor; of a version, where the class has set one itself.

    Raises:
        InvalidInput: BYTES with null, which the client sent, and which this way cannot carry.
        ModelFailed: its tensors contradict themselves.
    """
    parameters = _plain(hosted.parameters)
    parameters.pop("binary_data_output", None)
    version = hosted.model_version or ""
    if isinstance(hosted, HostedRequest) and version == hosted._asked_version:  # our own subclass
        version = ""
    return InferRequest(
        model_name,
        [
            Tensor(
                tensor.name,
                tensor.datatype,
                tuple(tensor.shape),
                _array(_without_null(tensor), "the predictor's input", ModelFailed),
                _kept_parameters(tensor.parameters),
            )
            for tensor in hosted.inputs
        ],
        version,
        hosted.id or None,
        parameters or NO_PARAMETERS,
        [RequestedOutput(output.name, _plain(output.parameters)) for output in hosted.request_outputs or ()] or None,
        headers,
        deadline,
        0,
        True,
    )


def to_kserve_response(response: InferResponse, grpc: bool) -> HostedResponse:
    """Show a predictor's answer as KServe's client would; arrays are shared."""
    return HostedResponse(
        response.id or "",
        response.model_name,
        [HostedOutput(tensor, grpc) for tensor in response.outputs],
        response.model_version or None,
        None,
        grpc,
        dict(response.parameters) if response.parameters else None,
    )


def from_kserve_response(hosted: KServeResponse, request: InferRequest, version: str) -> InferResponse:
    """Read the answer that a subclass made.

    The id is the request's: echoed, never invented (inference_rest.md, "Inference Response JSON Object"). The version is the model's, or,
    where it is served without one, what the subclass answered: its predictor's, as under KServe.

    Raises:
        ModelFailed: an output contradicts itself.
    """
    outputs = []
    for output in hosted.outputs:
        array = _array(output, "output", ModelFailed)
        outputs.append(Tensor(output.name, output.datatype, array.shape, array, _kept_parameters(output.parameters)))
    parameters = _plain(hosted.parameters)
    return InferResponse(
        request.model_name,
        outputs,
        version or hosted.model_version or "",
        request.id,
        parameters or NO_PARAMETERS,
    )


def response_from_dict(document: Mapping[str, Any], request: InferRequest, version: str) -> InferResponse:
    """Read a V2 or V1 response object that a subclass returned in place of an `InferResponse`.

    Raises:
        ModelFailed: it is neither.
    """
    outputs = document.get("outputs")
    if isinstance(outputs, Sequence) and not isinstance(outputs, str):
        if any(isinstance(entry, Mapping) and "contents" in entry for entry in outputs):
            return from_kserve_response(_of_contents(document), request, version)
        try:
            tensors = [
                InferOutput(
                    entry["name"], list(entry["shape"]), entry["datatype"], entry["data"], entry.get("parameters")
                )
                for entry in outputs
            ]
        except (KeyError, TypeError) as error:
            raise ModelFailed(
                f"the model answered an output without {error}: name, shape, datatype, data are due"
            ) from error
        own_version = document.get("model_version")
        hosted = KServeResponse(
            "",
            request.model_name,
            tensors,
            model_version=str(own_version) if own_version else None,
            parameters=document.get("parameters"),
        )
        return from_kserve_response(hosted, request, version)
    if "predictions" in document:
        predictions = document["predictions"]
        if isinstance(predictions, list) and predictions and all(isinstance(one, str) for one in predictions):
            # NumPy would give each text the room of the longest one.
            array = _bytes_array("predictions", predictions, (len(predictions),), ModelFailed)
            return InferResponse(request.model_name, [Tensor.of("output-0", array)], version, request.id)
        array = np.asarray(predictions)
        if array.dtype == object or array.dtype.kind not in "biufSU":
            raise ModelFailed("the model answered V1 predictions that are no tensor, and the request was V2")
        if array.dtype.kind in "SU":
            array = _bytes_array("predictions", array.astype(object), array.shape, ModelFailed)
        return InferResponse(request.model_name, [Tensor.of("output-0", array)], version, request.id)
    keys = ", ".join(sorted(map(str, document))) or "nothing"
    raise ModelFailed(f"the model answered an object of {keys}; 'outputs' (V2) or 'predictions' (V1) was expected")


def _of_contents(document: Mapping[str, Any]) -> KServeResponse:
    """Read an object of gRPC's fields (`contents: {fp32_contents: [...]}`), as KServe's gRPC server takes it from a class.

    Raises:
        ModelFailed: a field does not exist, or does not hold what it is given.
    """
    try:
        message = ModelInferResponse(
            model_version=str(document.get("model_version") or ""),
            outputs=document["outputs"],
            parameters=document.get("parameters"),
        )
    except (TypeError, ValueError) as error:
        raise ModelFailed(f"the model answered outputs that are none of gRPC's: {error}") from error
    return KServeResponse.from_grpc(message)


def response_to_dict(hosted: KServeResponse) -> dict[str, Any]:
    """Write an `InferResponse` as the JSON object that KServe answers a V1 request with."""
    document: dict[str, Any] = {"model_name": hosted.model_name}
    if hosted.id:
        document["id"] = hosted.id
    if hosted.model_version:
        document["model_version"] = hosted.model_version
    parameters = _plain(hosted.parameters)
    if parameters:
        document["parameters"] = parameters
    document["outputs"] = [_output_json(output) for output in hosted.outputs]
    return document


def _output_json(output: InferOutput) -> dict[str, Any]:
    array = _array(output, "output", ModelFailed)
    elements: Iterable[Any] = array.reshape(-1).tolist()
    if output.datatype == BYTES:
        elements = [element.decode(errors="replace") for element in elements]
    return {"name": output.name, "shape": list(array.shape), "datatype": output.datatype, "data": list(elements)}
