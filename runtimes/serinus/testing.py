"""An in-memory server for the tests of models: everything but the sockets.

    >>> import numpy as np
    >>> from serinus import Model, TensorSpec
    >>> class Doubler(Model):
    ...     inputs = (TensorSpec("x", "FP32", (-1, 2)),)
    ...     outputs = (TensorSpec("y", "FP32", (-1, 2)),)
    ...
    ...     def predict(self, inputs, call):
    ...         return {"y": inputs["x"] * 2}
    >>> with InMemoryClient(Doubler) as client:
    ...     client.infer({"x": np.array([[1, 2]], np.float32)})["y"].tolist()
    [[2.0, 4.0]]

The model is loaded, warmed up and batched as under `serinus serve`, and requests are checked the same way. `rest` and `grpc`
take the bytes that a client would send, so a test can hold a model to the protocol without a port.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from .dataplane.access.repository_access import OPEN
from .dataplane.plane import Plane
from .dataplane.registry import Registry
from .dataplane.response_stream import ResponseStream
from .errors import SerinusError
from .hosts import build_model, build_model_of
from .model import Model
from .protocol import proto_codec
from .protocol.rest_codec import EncodedBody, RestCodec, error_json
from .protocol.types import (
    NO_PARAMETERS,
    InferRequest,
    InferResponse,
    Limits,
    ModelMetadata,
    RequestedOutput,
    Tensor,
)
from .settings import ModelSettings

__all__ = ["InMemoryClient"]

_T = TypeVar("_T")


class InMemoryClient:
    """A model behind the data plane, in this process, for tests that are not coroutines.

    Args:
        model: a `Model` subclass, a `kserve.Model` or MLServer `MLModel` (class or instance), a function from settings to
            a `Model`, or the settings of any model that `serinus serve` takes.
        name: of the model; not beside settings.
        settings: further fields of `ModelSettings`; likewise.
        transformer: a `kserve.Model` whose preprocess and postprocess run around the model, as `--transformer`: a class, an
            instance, or beside settings its name.
        limits: of request bodies.

    Raises:
        SerinusError: the model does not load (when entered).
    """

    def __init__(
        self,
        model: type[Any] | Callable[[ModelSettings], Model] | ModelSettings | Any,
        *,
        name: str = "model",
        settings: Mapping[str, Any] = NO_PARAMETERS,
        transformer: Any = None,
        limits: Limits = Limits(),  # noqa: B008 # frozen
    ) -> None:
        factory: Callable[[ModelSettings], Model]
        if isinstance(model, ModelSettings):
            self._settings, factory = model, partial(build_model, transformer=transformer)
        elif inspect.isroutine(model) and transformer is None:
            self._settings, factory = ModelSettings(name=name, **settings), model
        else:
            self._settings = ModelSettings(name=name, **settings)
            factory = partial(build_model_of, model, transformer=transformer)
        self.plane = Plane(Registry(factory), limits=limits, access=OPEN)
        """For what this class has no method for: metadata, statistics, load and unload."""
        self._codec = RestCodec(limits)
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._used = False

    def __enter__(self) -> InMemoryClient:  # noqa: PYI034 # typing.Self comes with Python 3.11
        if self._used:
            raise RuntimeError("this client was closed, and its server with it; make another")
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "InMemoryClient is for tests that are not coroutines; in one, use serinus.dataplane.plane.Plane, "
                "or enter the client in a thread (asyncio.to_thread)"
            )
        self._used = True
        self._loop = asyncio.new_event_loop()
        try:
            self.run(self.plane.start([self._settings]))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._loop is not None:
            self.run(self.plane.close())
            self.run(self._loop.shutdown_default_executor())
            self._loop.close()
            self._loop = None

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the client's event loop, such as `client.plane.load("model")`."""
        if self._loop is None:
            coroutine.close()
            raise RuntimeError("the client is not open; use it as `with InMemoryClient(...) as client:`")
        return self._loop.run_until_complete(coroutine)

    @property
    def model(self) -> Model:
        """The loaded model."""
        return self.plane.registry.find(self._settings.name).model

    @property
    def metadata(self) -> ModelMetadata:
        """What the model says of itself."""
        return self.plane.model_metadata(self._settings.name)

    def infer(
        self,
        inputs: Mapping[str, np.ndarray],
        *,
        parameters: Mapping[str, Any] = NO_PARAMETERS,
        outputs: Sequence[str | RequestedOutput] | None = None,
        headers: Mapping[str, str] = NO_PARAMETERS,
    ) -> dict[str, np.ndarray]:
        """Send arrays, get arrays.

        Args:
            inputs: by name; the datatype is the array's (strings and objects are BYTES).
            parameters: of the request.
            outputs: wanted ones; None: the model's default.
            headers: as if HTTP's.

        Raises:
            SerinusError: what a client would be answered.
        """
        wanted = None
        if outputs is not None:
            wanted = [RequestedOutput(output) if isinstance(output, str) else output for output in outputs]
        request = InferRequest(
            self._settings.name,
            [Tensor.of(name, np.asarray(array)) for name, array in inputs.items()],
            parameters=parameters,
            outputs=wanted,
            headers=headers,
        )
        return {tensor.name: tensor.data for tensor in self.request(request).outputs}

    def request(self, request: InferRequest) -> InferResponse:
        """Send a whole request.

        Raises:
            SerinusError: what a client would be answered.
        """
        return self.run(self.plane.infer(request))

    def stream(self, *requests: InferRequest) -> Iterator[InferResponse]:
        """Send a request, and give its responses as the model makes them; further ones for a model that takes whole streams.

        Raises:
            SerinusError: what a client would be answered, or told in the stream.
        """

        async def following() -> AsyncIterator[InferRequest]:
            for request in requests[1:]:
                yield request

        async def begun() -> ResponseStream[InferResponse]:
            return self.plane.infer_stream(requests[0], following())

        async def next_of(responses: ResponseStream[InferResponse]) -> InferResponse | None:
            return await anext(responses, None)

        responses = self.run(begun())
        try:
            while (response := self.run(next_of(responses))) is not None:
                yield response
        finally:
            self.run(responses.aclose())

    def together(self, *requests: InferRequest) -> list[InferResponse | SerinusError]:
        """Send requests at the same moment, so that they are batched; gives each one's response or error."""

        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*(self.plane.infer(one) for one in requests), return_exceptions=True)

        return self.run(all_of_them())

    def rest(
        self, body: bytes, *, json_length: int | None = None, headers: Mapping[str, str] = NO_PARAMETERS
    ) -> tuple[int, bytes, EncodedBody | None]:
        """Send the body of `POST /v2/models/<name>/infer`.

        Args:
            body: JSON, or JSON and tensors.
            json_length: the header Inference-Header-Content-Length; None: not sent.
            headers: further ones, names in lower case.

        Returns:
            HTTP status, response body, and the body's parts and headers (None for an error).
        """
        try:
            request = self._codec.decode_request(
                body,
                model_name=self._settings.name,
                json_length=json_length,
                headers=headers,
                inputs=self.metadata.inputs,
            )
            encoded = self._codec.encode_response(self.request(request), request)
        except SerinusError as error:
            return error.http_status, error_json(str(error)), None
        return 200, encoded.to_bytes(), encoded

    def rest_v1(self, body: bytes, *, headers: Mapping[str, str] = NO_PARAMETERS) -> tuple[int, Any]:
        """Send the body of `POST /v1/models/<name>:predict`; gives HTTP status and body (bytes, or the object it is made of)."""
        try:
            return 200, self.run(self.plane.predict_v1(self._settings.name, body, headers=headers))
        except SerinusError as error:
            return error.http_status, error_json(str(error))

    def grpc(self, message: bytes, *, headers: Mapping[str, str] = NO_PARAMETERS) -> tuple[int, bytes]:
        """Send a serialized ModelInferRequest.

        Returns:
            gRPC status, and the serialized ModelInferResponse, or the message of the error as UTF-8.
        """
        try:
            request = proto_codec.decode_request(message, limits=self._limits, headers=headers)
            return 0, bytes(proto_codec.encode_response(self.request(request), request))
        except SerinusError as error:
            return error.grpc_status, str(error).encode()
