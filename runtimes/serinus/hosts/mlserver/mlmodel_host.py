"""`MLServerHost`: any MLServer `MLModel`, unchanged.

Theory of operation. Each hosted `MLModel` has an event loop of its own, in a thread of its own: `load`, `predict` and `unload` are
coroutines that mostly block, and under MLServer they have a worker process to block. Here they block their own loop, and
health checks, other models and the sockets go on. Nothing is pickled: arrays are shared.

Custom handlers (`@custom_handler`) are FastAPI endpoints by their signatures, so they are served by a FastAPI
application, called in process. What they or `predict_stream` give piece by piece crosses from the model's loop to the server's
piece by piece, and the model waits where the client reads slowly.
"""

# MLServer cannot be installed beside KServe, where the type checker runs.
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, cast
from urllib.parse import urlencode

try:
    from mlserver import MLModel
except ImportError as error:
    raise ImportError("hosting an MLServer MLModel needs mlserver: pip install 'serinus[mlserver]'") from error

from mlserver.codecs import decorator
from mlserver.context import model_context
from mlserver.errors import MLServerError, ModelNotFound, ModelNotReady
from mlserver.handlers.custom import get_custom_handlers
from mlserver.metrics import REGISTRY
from mlserver.settings import ModelParameters
from mlserver.settings import ModelSettings as MLServerSettings
from mlserver.types import InferenceRequest, InferenceResponse
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ...dataplane.response_stream import ResponseStream, closing
from ...errors import (
    ConfigError,
    Conflict,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotReady,
    NotSupported,
    Overloaded,
    SerinusError,
    TimedOut,
    TooLarge,
)
from ...loading.directory import DirectorySettings
from ...model import Family, RequestModel
from ...protocol.types import InferRequest, InferResponse
from ...settings import ModelSettings
from ..cross_loop_queue import bring
from ..error_translation import ErrorTranslation
from ..implementations import Implementation
from ..loop_thread import LoopThread
from ..prometheus_families import read_families
from .adaptive_batching import AdaptiveBatching
from .mlserver_types import (
    from_mlserver_response,
    loose_request,
    specs,
    to_mlserver_request,
)

__all__ = ["MLServerHost", "build_mlserver"]


def build_mlserver(implementation: Implementation, settings: ModelSettings) -> MLServerHost:
    """Make the host of an `MLModel` class or instance."""
    target = implementation.target
    model = target if implementation.is_instance else target(_settings(target, settings))
    return MLServerHost(settings, model)


def _settings(target: type[MLModel], settings: ModelSettings) -> MLServerSettings:
    """Give MLServer's settings: those of the `model-settings.json` where there is one, else made of ours."""
    if isinstance(settings, DirectorySettings):
        document = json.loads(settings.source.read_text(encoding="utf-8"))
        document |= {"name": settings.name, "implementation": f"{target.__module__}.{target.__qualname__}"}
        theirs = MLServerSettings.model_validate({**document, "_source": str(settings.source)})
        if settings.extra:
            theirs.parameters = theirs.parameters or ModelParameters()
            theirs.parameters.extra = {**(theirs.parameters.extra or {}), **settings.extra}
        return theirs
    parameters = ModelParameters(
        uri=str(settings.model_dir) if settings.model_dir is not None else None,
        version=settings.version or None,
        extra=dict(settings.extra),
    )
    return MLServerSettings(
        name=settings.name,
        implementation=target,  # type: ignore[call-arg] # an alias of the field, as MLServer documents
        platform=settings.platform,
        parameters=parameters,
    )


class MLServerHost(RequestModel):
    """An `MLModel` that answers whole requests.

    Args:
        settings: name and version.
        model: the instance.
    """

    platform = "mlserver_model"
    has_generate = True
    checks_requests = False
    """MLServer never checks requests against the metadata, so a model may say little or nothing there."""

    def __init__(self, settings: ModelSettings, model: MLModel) -> None:
        super().__init__(settings)
        self.hosted = model
        self._loop: LoopThread | None = None
        self._routes: list[Any] | None = None
        self.streams = self.whole_streams = type(model).predict_stream is not MLModel.predict_stream
        self.details["host"] = "mlserver"

    def load(self) -> None:
        """Start the model's loop and load the model on it.

        Raises:
            ConfigError: it says that it is not ready.
        """
        self._loop = LoopThread(f"mlserver-{self.name}")
        try:
            with model_context(self.hosted.settings):
                ready = self._loop.run(self.hosted.load())
            metadata = self._loop.run(self.hosted.metadata())
        except MLServerError as error:
            self._close()
            raise ConfigError(f"model {self.name!r}: {error}") from error
        except BaseException:
            self._close()
            raise
        if not ready:
            self._close()
            raise ConfigError(f"model {self.name!r}: load() returned {ready!r}")
        self.hosted.ready = True
        batching = self.hosted.settings
        if batching.max_batch_size > 1 and batching.max_batch_time > 0:  # MLServer's condition
            rows, delay_s = batching.max_batch_size, batching.max_batch_time
            self.request_batching = AdaptiveBatching(self.name, self.infer, max_rows=rows, max_delay_s=delay_s)
        self.inputs = self.settings.inputs or specs(metadata.inputs)
        self.outputs = self.settings.outputs or specs(metadata.outputs)
        if metadata.platform:
            self.details["platform"] = metadata.platform

    def unload(self) -> None:
        """Unload the model, then end its loop."""
        if self._loop is not None:
            try:
                with model_context(self.hosted.settings):
                    self._loop.run(self.hosted.unload())
            finally:
                self._close()

    def _close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    async def is_ready(self) -> bool:
        """Whether the class says so, as MLServer asks it."""
        return self.hosted.ready

    def loose_request(self, body: bytes, headers: Mapping[str, str], version: str) -> InferRequest | None:
        """Take what MLServer's documents send beyond the protocol."""
        return loose_request(body, self.name, version, headers)

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request on the model's loop."""
        loop = self.loop_thread()
        self._check_ready()
        return await loop.call(self._answer(request))

    async def _answer(self, request: InferRequest) -> InferResponse:
        with _translated, model_context(self.hosted.settings):
            answer = await self.hosted.predict(to_mlserver_request(request))
        return self._response(answer, request)

    def _check_ready(self) -> None:
        if not self.hosted.ready:
            raise NotReady(f"model {self.name!r} says that it is not ready")

    def _response(self, answer: Any, request: InferRequest) -> InferResponse:
        if not isinstance(answer, InferenceResponse):
            raise ModelFailed(
                f"model {self.name!r} answered a {type(answer).__name__}; an InferenceResponse was expected"
            )
        return from_mlserver_response(answer, request, self.settings.version)

    def infer_stream(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        """Answer with the class's `predict_stream`."""
        return self.loop_thread().each(self._streamed(bring(asyncio.get_running_loop(), requests)))

    def extra_routes(self) -> Sequence[Any]:
        """Routes of the model's custom handlers."""
        if self._routes is None:
            self._routes = self._handler_routes()
        return self._routes

    def _handler_routes(self) -> list[Any]:
        handlers = get_custom_handlers(self.hosted)
        if not handlers:
            return []
        from fastapi import FastAPI

        app = FastAPI(openapi_url=None)
        app.add_exception_handler(MLServerError, _known_error)
        for handler, method in handlers:
            app.add_api_route(handler.rest_path, method, methods=[handler.rest_method])
        return [(handler.rest_method, handler.rest_path, _AsgiRoute(app, self)) for handler, _ in handlers]

    def metrics(self) -> Sequence[Family]:
        """Tell what the class counts with `mlserver.log` and `mlserver.register`."""
        name, version = self.name, self.settings.version

        def is_own(_: str, labels: Mapping[str, str]) -> bool:
            return labels.get("model_name", name) == name and labels.get("model_version", version) == version

        return read_families(REGISTRY.collect(), is_own)

    def loop_thread(self) -> LoopThread:
        """Give the loop that the model lives on.

        Raises:
            NotReady: the model is not loaded.
        """
        if self._loop is None:
            raise NotReady(f"model {self.name!r} is not loaded")
        return self._loop

    async def _streamed(self, requests: AsyncIterator[InferRequest]) -> AsyncIterator[InferResponse]:
        """Run `predict_stream`, on the model's loop. MLServer gives every response of a stream the id of its first request."""
        first = await anext(requests)
        self._check_ready()

        async def payloads() -> AsyncIterator[InferenceRequest]:
            payload = to_mlserver_request(first)
            stream_id = payload.id
            yield payload
            async for request in requests:
                payload = to_mlserver_request(request)
                payload.id = stream_id
                yield payload

        with _translated, model_context(self.hosted.settings):
            answers = self.hosted.predict_stream(payloads())
            async with closing(answers):
                async for answer in answers:
                    yield self._response(answer, first)


def _translate(error: Exception) -> SerinusError | None:
    """Find the error to answer with; None: a fault of the class that nothing names, a 500."""
    if isinstance(error, ModelNotReady):  # MLServer says 400: the server is at fault
        return NotReady(str(error))
    if isinstance(error, ModelNotFound):
        return NotFound(str(error))
    if isinstance(error, MLServerError):
        return _of_status(error.status_code, str(error))  # type: ignore[attr-defined] # checked above
    if isinstance(error, HTTPException):  # MLServer's REST server is FastAPI, so its classes may raise FastAPI's
        return _of_status(error.status_code, str(error.detail))  # type: ignore[attr-defined] # checked above
    if isinstance(error, NotImplementedError):
        return NotSupported(str(error) or "this model does not offer that")
    if isinstance(error, TypeError):
        return _missing_inputs(error)
    return None


def _missing_inputs(error: TypeError) -> InvalidInput | None:
    """Read from where `decode_args` calls `predict` with what came which of its arguments did not; None: the error is another one."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    if at is None or at.tb_frame.f_globals.get("__name__") != decorator.__name__:
        return None
    names = at.tb_frame.f_locals
    predict, came = names.get("predict"), names.get("inputs")
    if not callable(predict) or not isinstance(came, dict):
        return None
    parameters = list(inspect.signature(predict).parameters.values())[1:]  # without self
    missing = [one.name for one in parameters if one.default is one.empty and one.name not in came]
    if not missing:
        return None
    known = ", ".join(repr(one.name) for one in parameters)
    return InvalidInput(f"input {missing[0]!r} is missing; the inputs of this model are {known}")


_translated = ErrorTranslation(_translate)

_OF_STATUS: dict[int, type[SerinusError]] = {
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    429: Overloaded,
    501: NotSupported,
    503: NotReady,
    504: TimedOut,
}


def _of_status(status: int, message: str) -> SerinusError:
    """Keep exactly the status that the class chose itself, and give it the gRPC code that belongs to it."""
    if not 400 <= status < 600:
        return ModelFailed(message)
    return _OF_STATUS.get(status, InvalidInput if status < 500 else ModelFailed)(message).with_status(status)


async def _known_error(_: Any, error: Exception) -> JSONResponse:
    """Answer what a custom handler raises of MLServer's errors, as MLServer does."""
    return JSONResponse({"error": str(error)}, error.status_code)  # type: ignore[attr-defined] # an MLServerError


_Head = tuple[int, dict[str, str], bytes, bool]
"""Status, headers, the first of the body, and whether more of it comes."""


class _AsgiRoute:
    """One call of the custom handlers' application, as the REST server's extra routes are called."""

    def __init__(self, app: Any, host: MLServerHost) -> None:
        self._app = app
        self._host = host

    async def __call__(self, request: Any) -> tuple[int, Mapping[str, str], bytes | AsyncIterator[bytes]]:
        """Answer one request with the handler that FastAPI finds for it, on the model's own loop."""
        answers = self._host.loop_thread().each(self._answer(request))
        async with AsyncExitStack() as unless_streaming:
            await unless_streaming.enter_async_context(closing(answers))
            status, headers, body, more = cast("_Head", await anext(answers))
            if not more:
                return status, headers, body
            unless_streaming.pop_all()
        return status, headers, _and_the_rest(body, cast("AsyncIterator[bytes]", answers))

    async def _answer(self, request: Any) -> AsyncIterator[_Head | bytes]:
        """Give the answer's head, with the body where that is whole, and then its pieces."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": request.method,
            "path": request.path,
            "raw_path": request.path.encode(),
            "root_path": "",
            "query_string": urlencode(dict(request.query)).encode(),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()],
            "server": None,
            "client": None,
        }
        unread = True
        messages: ResponseStream[Any] = ResponseStream()

        async def receive() -> dict[str, Any]:
            nonlocal unread
            if not unread:
                await asyncio.Event().wait()  # the client's leaving cancels all this
            unread = False
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def run() -> None:
            with model_context(self._host.hosted.settings):
                await self._app(scope, receive, messages.put)

        running = asyncio.ensure_future(run())
        running.add_done_callback(lambda _: messages.end())
        try:
            status, headers = 0, {}
            async for message in messages:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
                    headers.pop("content-length", None)
                    continue
                body, more = message.get("body", b""), message.get("more_body", False)
                if status:
                    if not more:
                        await running  # a handler that fails is answered before it raises; what it raises is told
                    yield status, headers, body, more
                    status = 0
                elif body:
                    yield body
            await running
        finally:
            running.cancel()


async def _and_the_rest(first: bytes, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with closing(pieces):
        yield first
        async for piece in pieces:
            yield piece
