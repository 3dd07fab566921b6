"""`MLServerHost`: any MLServer `MLModel`, unchanged; and `SerinusRuntime`, a serinus `Model` under stock `mlserver start`.

Theory of operation. Each hosted `MLModel` has an event loop of its own, in a thread of its own: `load`, `predict` and `unload` are
coroutines that mostly block, and under MLServer they have a worker process to block. Here they block their own loop, and
health checks, other models and the sockets go on. Nothing is pickled: arrays are shared.

Custom handlers (`@custom_handler`) are FastAPI endpoints by their signatures, so they are served by a FastAPI
application, called in process. Streams (`predict_stream`) are offered at `/v2/models/{name}/infer_stream` and
`/generate_stream` as server-sent events, sent when they are complete.
"""

# MLServer cannot be installed beside KServe, where the type checker runs.
# pyright: reportMissingImports=false
from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

try:
    from mlserver import MLModel
except ImportError as error:
    raise ImportError("hosting an MLServer MLModel needs mlserver: pip install 'serinus[mlserver]'") from error

from mlserver.context import model_context
from mlserver.errors import MLServerError, ModelNotFound, ModelNotReady
from mlserver.handlers.custom import get_custom_handlers
from mlserver.metrics import REGISTRY
from mlserver.settings import ModelParameters
from mlserver.settings import ModelSettings as MLServerSettings
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ..errors import (
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
from ..model import Family, RequestModel
from ..protocol.rest_codec import RestCodec, error_json
from ..protocol.types import InferRequest, InferResponse
from ..settings import ModelSettings
from .directory import DirectorySettings
from .implementations import Implementation
from .local_calls import LocalCalls
from .mlserver_types import (
    from_mlserver_request,
    from_mlserver_response,
    specs,
    tensor_metadata,
    to_mlserver_request,
    to_mlserver_response,
)

__all__ = ["MLServerHost", "SerinusRuntime", "build_mlserver"]

_T = TypeVar("_T")


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


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there and wait for it, from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine there and await it; cancelling the awaiting task cancels it."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def close(self) -> None:
        """Stop the loop and its thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        if not self._thread.is_alive():
            self._loop.close()


class MLServerHost(RequestModel):
    """An `MLModel` that answers whole requests.

    Args:
        settings: name and version.
        model: the instance.
    """

    platform = "mlserver_model"
    checks_requests = False
    """MLServer never checks requests against the metadata, so a model may say little or nothing there."""

    def __init__(self, settings: ModelSettings, model: MLModel) -> None:
        super().__init__(settings)
        self.hosted = model
        self._loop: _Loop | None = None
        self._routes: list[Any] | None = None
        self.details["host"] = "mlserver"

    def load(self) -> None:
        """Start the model's loop and load the model on it.

        Raises:
            ConfigError: it says that it is not ready.
        """
        self._loop = _Loop(f"mlserver-{self.name}")
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

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer one request on the model's loop."""
        loop = self._loop
        if loop is None:
            raise NotReady(f"model {self.name!r} is not loaded")
        return await loop.call(self._answer(request))

    async def _answer(self, request: InferRequest) -> InferResponse:
        try:
            payload = to_mlserver_request(request)
            with model_context(self.hosted.settings):
                answer = await self.hosted.predict(payload)
        except Exception as error:
            known = _translate(error)
            if known is None:
                raise
            raise known from error
        if not isinstance(answer, InferenceResponse):
            raise ModelFailed(
                f"model {self.name!r} answered a {type(answer).__name__}; an InferenceResponse was expected"
            )
        return from_mlserver_response(answer, request, self.settings.version)

    def extra_routes(self) -> Sequence[Any]:
        """Routes of the model's custom handlers, of MLServer's `/generate`, and of its stream where it overrides `predict_stream`."""
        if self._routes is None:
            self._routes = [*self._handler_routes(), *self._generate_routes()]
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

    def _generate_routes(self) -> list[Any]:
        model = f"/v2/models/{self.name}"
        offered = [("generate", self._generate)]
        if type(self.hosted).predict_stream is not MLModel.predict_stream:
            offered += [("infer_stream", self._stream), ("generate_stream", self._stream)]
        version = self.settings.version
        paths = [model, f"{model}/versions/{version}"] if version else [model]
        return [("POST", f"{path}/{verb}", answer) for path in paths for verb, answer in offered]

    def metrics(self) -> Sequence[Family]:
        """Tell what the class counts with `mlserver.log` and `mlserver.register`, histograms as the counters they are made of."""
        return [
            Family(name, text, "gauge" if kind == "gauge" else "counter", samples)
            for name, (text, kind, samples) in self._samples().items()
        ]

    def _samples(self) -> dict[str, tuple[str, str, list[tuple[Mapping[str, str], float]]]]:
        version = self.settings.version
        found: dict[str, tuple[str, str, list[tuple[Mapping[str, str], float]]]] = {}
        for metric in REGISTRY.collect():
            for sample in metric.samples:
                labels = sample.labels
                of_another = labels.get("model_name", self.name) != self.name
                if of_another or labels.get("model_version", version) != version or sample.name.endswith("_created"):
                    continue
                known = found.setdefault(sample.name, (metric.documentation, metric.type, []))
                known[2].append((labels, float(sample.value)))
        return found

    async def on_own_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Run a coroutine on the model's loop.

        Raises:
            NotReady: the model is not loaded.
        """
        if self._loop is None:
            work.close()
            raise NotReady(f"model {self.name!r} is not loaded")
        return await self._loop.call(work)

    async def _generate(self, request: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Answer `/generate`, which is `/infer` by another name in MLServer."""
        codec = RestCodec()
        try:
            decoded = codec.decode_request(request.body, model_name=self.name, headers=request.headers)
            answer = await self.infer(decoded)
        except SerinusError as error:
            return error.http_status, {"content-type": "application/json"}, error_json(str(error))
        encoded = codec.encode_response(answer, decoded)
        return 200, {**answer.headers, "content-type": encoded.content_type}, encoded.to_bytes()

    async def _stream(self, request: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Answer `/infer_stream`: every response of the stream as one server-sent event."""
        codec = RestCodec()
        try:
            decoded = codec.decode_request(request.body, model_name=self.name, headers=request.headers)
            answers = await self.on_own_loop(self._streamed(decoded))
        except SerinusError as error:
            return error.http_status, {"content-type": "application/json"}, error_json(str(error))
        events = [b"data: " + codec.encode_response(answer, decoded).to_bytes() + b"\n\n" for answer in answers]
        return 200, {"content-type": "text/event-stream; charset=utf-8"}, b"".join(events)

    async def _streamed(self, request: InferRequest) -> list[InferResponse]:
        async def payloads() -> AsyncIterator[InferenceRequest]:
            yield to_mlserver_request(request)

        try:
            with model_context(self.hosted.settings):
                return [
                    from_mlserver_response(answer, request, self.settings.version)
                    async for answer in self.hosted.predict_stream(payloads())
                ]
        except Exception as error:
            known = _translate(error)
            if known is None:
                raise
            raise known from error


def _translate(error: Exception) -> SerinusError | None:
    """Find the error to answer with; None: a fault of the class that nothing names, a 500."""
    if isinstance(error, SerinusError):
        return error
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
    return None


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


class _AsgiRoute:
    """One call of the custom handlers' application, as the REST server's extra routes are called."""

    def __init__(self, app: Any, host: MLServerHost) -> None:
        self._app = app
        self._host = host

    async def __call__(self, request: Any) -> tuple[int, Mapping[str, str], bytes]:
        """Answer one request with the handler that FastAPI finds for it, on the model's own loop."""
        return await self._host.on_own_loop(self._answer(request))

    async def _answer(self, request: Any) -> tuple[int, Mapping[str, str], bytes]:
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
        status, headers, chunks = 500, {}, []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status, headers
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
            else:
                chunks.append(message.get("body", b""))

        with model_context(self._host.hosted.settings):
            await self._app(scope, receive, send)
        headers.pop("content-length", None)
        return status, headers, b"".join(chunks)


class SerinusRuntime(MLModel):
    """A serinus `Model` under stock MLServer and Seldon: `"implementation": "serinus.hosts.mlserver_host.SerinusRuntime"`.

    `parameters.extra.class` names the model's package or class (`xgboost_server`); without it the runtime is inferred
    from the files. The rest of `parameters.extra` is the model's own.
    """

    _calls: LocalCalls | None = None

    async def load(self) -> bool:
        """Make and load the model."""
        from pathlib import Path

        from .factory import build_model

        parameters = self.settings.parameters
        extra = dict((parameters.extra if parameters is not None else None) or {})
        location = await get_model_uri(self.settings) if parameters is not None and parameters.uri else None
        if location is None and self.settings._source:  # no public name for where the settings came from
            location = str(Path(self.settings._source).parent)
        settings = ModelSettings(
            name=self.name,
            version=self.version or "",
            implementation=extra.pop("class", ""),
            model_dir=Path(location) if location else None,
            extra=extra,
        )
        model = build_model(settings)
        await asyncio.get_running_loop().run_in_executor(None, model.load)
        if isinstance(model, RequestModel):
            await model.start()
        self._calls = LocalCalls(model)
        self.inputs = self.inputs or tensor_metadata(model.inputs)
        self.outputs = self.outputs or tensor_metadata(model.outputs)
        self.settings.platform = self.settings.platform or model.platform
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answer one request."""
        if self._calls is None:
            raise ModelNotReady(self.name)
        try:
            request = from_mlserver_request(payload, self.name)
            return to_mlserver_response(await self._calls.infer(request))
        except SerinusError as error:
            raise MLServerError(str(error), error.http_status) from error

    async def unload(self) -> bool:
        """Unload the model."""
        calls, self._calls = self._calls, None
        if calls is not None:
            await asyncio.get_running_loop().run_in_executor(None, calls.model.unload)
        return True
