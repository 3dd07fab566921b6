"""`TorchServeHost`: a TorchServe handler, unchanged, over V1, V2 and TorchServe's own `/predictions/NAME`.

Theory of operation. The host stands in front of the handler (`handler_model`), which the plane serves behind it with a queue of its own, so that whatever way a
request comes, its items wait in the one queue and share its batches. A V1 request brings one item an instance, as with TorchServe's envelope `kserve`; a V2
request one item, its first input as an object, as with `kservev2`; a body of `/predictions` is one item `{"body": ...}`, a form's fields by their names.

Source: pytorch/serve, ts/torch_handler/request_envelope/kserve.py and kservev2.py, docs/inference_api.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from ...errors import ConfigError, InvalidInput, ModelFailed, NotReady, SerinusError, UnsupportedMedia
from ...loading.model_formats import TORCHSERVE
from ...model import Behind, Model, RequestModel, V1Answer
from ...protocol.datatypes import BYTES, datatype_of
from ...protocol.documents.json_values import dump_document
from ...protocol.json_codec import load_value
from ...protocol.types import InferRequest, InferResponse, Limits, Tensor
from ...settings import ModelSettings
from .handler_model import Answered, HandlerModel, HandlerRequest, HandlerResponse

__all__ = ["TorchServeHost", "build_torchserve"]


def build_torchserve(settings: ModelSettings, handler: Any = None) -> TorchServeHost:
    """Make the host of a handler's class or instance; None: of the archive's, which is code, and so only where somebody allows it.

    Raises:
        ConfigError: nobody does.
    """
    if handler is None and not settings.allows(TORCHSERVE):
        raise ConfigError(
            f"{settings.model_dir}: is an archive of TorchServe's, whose handler is code that runs with this server's rights: its files, network and "
            f"credentials. If the archive is your own and nobody else can write it, start with --allow_implementation {TORCHSERVE}"
        )
    return TorchServeHost(settings, handler)


class TorchServeHost(RequestModel):
    """A handler that answers whole requests.

    Args:
        settings: `model_dir` is the archive.
        handler: a class or instance; None: the archive's.
    """

    platform = "pytorch_torchserve"
    checks_requests = False

    def __init__(self, settings: ModelSettings, handler: Any = None) -> None:
        super().__init__(settings)
        self._handler = handler
        self._behind: Behind | None = None
        self.inputs, self.outputs = settings.inputs, settings.outputs

    def _factory(self, settings: ModelSettings) -> Model:
        return HandlerModel(settings, self._handler)

    async def start(self) -> None:
        """Load the handler, and open its queue."""
        if self.serve_behind is None:
            raise ConfigError(f"the handler {self.name!r} is not served by a data plane, which has to queue its items")
        own = dataclasses.replace(
            self.settings, inputs=(), outputs=(), max_concurrency=1
        )  # one batch at a time: the next one fills meanwhile
        self._behind = await self.serve_behind(self._factory, own)
        self.details |= self._behind.model.details

    async def _ask(self, items: Sequence[Any], headers: Mapping[str, str], id: str | None) -> Sequence[Answered]:
        if self._behind is None:
            raise NotReady(f"model {self.name!r} is not loaded")
        if not items:
            return ()
        response = await self._behind.infer(HandlerRequest(self.name, items, headers, id))
        return response.items if isinstance(response, HandlerResponse) else ()

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a V2 request: its first input is the item."""
        if not request.inputs:
            raise InvalidInput("a request to a handler has one input or more")
        first = request.inputs[0]
        data = first.data.reshape(-1)
        values = [_text(value) for value in data] if first.datatype == BYTES else data.tolist()
        item = {"name": first.name, "shape": list(first.shape), "datatype": first.datatype, "data": values}
        (answered,) = await self._ask([item], request.headers, request.id)
        _check(answered)
        array = _array(_plain(answered.value))
        datatype = BYTES if array.dtype == object else datatype_of(array.dtype)
        output = Tensor("predict", datatype, array.shape, array)
        return InferResponse(request.model_name, [output], self.settings.version, request.id)

    async def predict_v1(self, payload: Any, headers: Mapping[str, str]) -> dict[str, Any] | V1Answer:
        """Answer a V1 body: each instance is an item."""
        instances = payload.get("instances") if isinstance(payload, dict) else None
        if not isinstance(instances, list):
            raise InvalidInput('the body has no list "instances"')
        answered = await self._ask(instances, headers, headers.get("x-request-id"))
        for one in answered:
            _check(one)
        return {"predictions": [_plain(one.value) for one in answered]}

    def extra_routes(self) -> Sequence[Any]:
        """Give TorchServe's paths."""

        async def ping(_: Any) -> tuple[int, Mapping[str, str], bytes]:
            return 200, {"content-type": "application/json"}, b'{"status": "Healthy"}'

        paths = [f"/predictions/{self.name}"]
        if self.settings.version:
            paths.append(f"{paths[0]}/{self.settings.version}")
        offered = [("POST", path, self._predictions) for path in paths]
        return [("GET", "/ping", ping), *offered] if "/" not in self.name and "{" not in self.name else []

    async def _predictions(self, request: Any) -> tuple[int, Mapping[str, str], bytes]:
        kind = request.headers.get("content-type", "")
        try:
            item = {**request.query, **_fields(request.body, kind)}
            (answered,) = await self._ask([item], request.headers, request.headers.get("x-request-id"))
        except SerinusError as error:
            document = {"code": error.http_status, "type": type(error).__name__, "message": str(error)}
            return error.http_status, {"content-type": "application/json"}, dump_document(document)
        value = answered.value
        if isinstance(value, str | bytes | bytearray):
            body, content_type = (value.encode() if isinstance(value, str) else bytes(value)), "text/plain"
        else:
            body, content_type = dump_document(_plain(value)), "application/json"
        return answered.status, {"content-type": content_type, **answered.headers}, body


def _check(answered: Answered) -> None:
    """Raise what a handler answered by a status alone."""
    if answered.status >= 400:
        kind = InvalidInput if answered.status < 500 else ModelFailed
        raise kind(str(_plain(answered.value))[:2000]).with_status(answered.status)


def _fields(body: bytes, content_type: str) -> dict[str, Any]:
    """Read a body as TorchServe does: JSON as its value, a form as its fields, all else as bytes.

    Raises:
        InvalidInput: it is not what its content type says.
        UnsupportedMedia: a form without a boundary.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        return {"body": load_value(body, "the request body", Limits())}
    if kind == "application/x-www-form-urlencoded":
        return dict(parse_qsl(body.decode("utf-8", "replace")))
    if kind == "multipart/form-data":
        try:
            message = BytesParser(policy=HTTP).parsebytes(
                b"Content-Type: " + content_type.encode("latin-1", "replace") + b"\r\n\r\n" + body
            )
        except (ValueError, LookupError):
            raise InvalidInput("the form cannot be read") from None
        if not message.is_multipart():
            raise UnsupportedMedia("multipart/form-data needs the boundary that its parts have")
        found: dict[str, Any] = {}
        for part in message.iter_parts():
            name = part.get_param("name", header="content-disposition")
            if isinstance(name, str):
                found[name] = part.get_payload(decode=True)
        return found
    return {"body": body}


def _plain(value: Any) -> Any:
    """Make of a handler's answer what JSON and arrays have: no tensors, no bytes."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _array(value: Any) -> np.ndarray:
    """Make one tensor: numbers and truth values as they are, all else as texts, what has parts as JSON."""
    is_text = isinstance(value, list) and any(isinstance(one, str) for one in value)
    try:
        # NumPy would give each text of a list the room of the longest one; a list of them is made below.
        array = np.asarray(None if is_text else value)
    except ValueError:
        array = np.asarray(None)
    if array.dtype.kind in "biuf":
        return array
    if array.dtype.kind == "U" and not isinstance(value, dict):
        made = np.empty(array.shape, object)
        for place, one in np.ndenumerate(array):
            made[place] = str(one).encode()
        return made
    listed = value if isinstance(value, list) else [value]
    made = np.empty(len(listed) if isinstance(value, list) else (), object)
    for index, one in enumerate(listed):
        made[index if isinstance(value, list) else ()] = one.encode() if isinstance(one, str) else dump_document(one)
    return made


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
