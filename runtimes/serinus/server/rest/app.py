"""The REST application: what each path answers, whichever transport asks.

V2 inference goes from the socket to the plane and back without a coroutine: `_infer` decodes and submits, `_InferCall` encodes and
responds. What is not hot (V1, metadata, repository, custom routes) may take a task, which is cancelled when its client goes.

Errors have one form everywhere, `{"error": message}`, and one status each, `SerinusError.http_status`.

Sources: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md, extension_model_repository.md,
extension_statistics.md, extension_model_configuration.md; KServe's V1 protocol (v1-protocol.md) and its `/v2/models`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson

from ...dataplane.plane import Plane
from ...dataplane.response_stream import Pipe, closing
from ...dataplane.telemetry.metrics import Metrics
from ...errors import (
    ClientError,
    InvalidInput,
    MethodNotAllowed,
    ModelFailed,
    NotFound,
    NotReady,
    Overloaded,
    SerinusError,
    Unauthenticated,
    UnsupportedMedia,
)
from ...model import RequestModel, V1Answer
from ...protocol import v1_codec
from ...protocol.json_codec import decode_parameters, describe, load_object
from ...protocol.raw import Buffer
from ...protocol.rest_codec import RestCodec, error_json, index_json, metadata_json, statistics_json
from ...protocol.types import InferRequest, InferResponse, ModelMetadata
from ..http.exchange import Exchange, RawHeaders, header_pairs
from .cloudevents import CloudEvent, CloudEventSettings, read_event
from .content import CODINGS, choose_coding, compress, decompress
from .origin_checks import check_change
from .router import Handler, Match, Router

__all__ = ["CustomAnswer", "CustomRequest", "CustomRoute", "RestApp"]

_log = logging.getLogger(__name__)
_access = logging.getLogger("serinus.access")

JSON: Final = "application/json"
_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_INLINE_BYTES: Final = 256 * 1024
"""Bodies above it are (de)compressed in a thread: 256 KiB take about 1 ms, a probe may wait so long."""

Reply = tuple[int, str, Sequence[Buffer], RawHeaders]
"""Status, content type, body, further fields."""
Stream = tuple[int, str, AsyncIterator[bytes], RawHeaders]
"""The same with the body piece by piece."""

_EVENTS: Final = "text/event-stream; charset=utf-8"
_LIVE: Final = ((b"Cache-Control", b"no-cache"), (b"X-Accel-Buffering", b"no"))
"""Events are for now: no cache keeps them, and nginx passes them on at once."""


@dataclass(frozen=True, slots=True)
class CustomRequest:
    """What a custom route's handler is given."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    parameters: tuple[str, ...]
    """The path's variables, in the template's order."""


CustomAnswer = tuple[int, Mapping[str, str], bytes | AsyncIterator[bytes]]
"""Status, headers and the body, whole or piece by piece."""
CustomRoute = tuple[str, str, Callable[[CustomRequest], Awaitable[CustomAnswer]]]
"""Method, path template, and the handler."""


class _InferCall:
    """What happens when the plane has answered an inference request."""

    __slots__ = ("app", "event", "exchange", "request")

    def __init__(self, app: RestApp, exchange: Exchange, request: InferRequest, event: CloudEvent | None) -> None:
        self.app = app
        self.exchange = exchange
        self.request = request
        self.event = event

    def __call__(self, result: InferResponse | SerinusError) -> None:
        exchange = self.exchange
        if exchange.gone:
            return
        if isinstance(result, SerinusError):
            self.app.fail(exchange, result, count=isinstance(result, NotFound))
            return
        try:
            encoded = self.app.codec.encode_response(result, self.request)
            extra: RawHeaders = header_pairs(result.headers) if result.headers else ()
            if encoded.json_length is not None:
                extra = [*extra, (b"Inference-Header-Content-Length", b"%d" % encoded.json_length)]
            if exchange.headers.plain:
                exchange.respond(200, encoded.content_type, encoded.chunks, extra)
            elif self.event is None:
                self.app.reply(exchange, 200, encoded.content_type, encoded.chunks, extra)
            else:
                content_type, body, fields = self.event.wrap(
                    self.request.model_name, encoded.to_bytes(), encoded.content_type
                )
                self.app.reply(exchange, 200, content_type, [body], [*extra, *fields])
        except Exception as error:  # noqa: BLE001 # the edge of a request
            self.app.fail(exchange, error)


class RestApp:
    """All REST endpoints over one plane. See `serinus.server.rest.rest_server.start_rest` for the arguments."""

    def __init__(
        self,
        plane: Plane,
        *,
        metrics: Metrics,
        render_metrics: Callable[[], bytes | Awaitable[bytes]],
        codec: RestCodec,
        body_bytes: int,
        repository: Callable[[str, str, dict[str, Any]], Awaitable[None]] | None = None,
        cloud_events: CloudEventSettings | None = None,
        access_log: bool = False,
    ) -> None:
        self._plane = plane
        self._metrics = metrics
        self._render_metrics = render_metrics
        self.codec = codec
        self._body_bytes = body_bytes
        self._repository = repository
        self._cloud_events = cloud_events or CloudEventSettings()
        self._access_log = access_log
        self._tasks: set[asyncio.Future[Any]] = set()
        self.router = Router()
        add = self.router.add
        add("GET", "/", self._alive)
        add("GET", "/v2", self._server_metadata)
        add("GET", "/v2/health/live", self._live)
        add("GET", "/v2/health/ready", self._ready)
        add("GET", "/v2/models", self._model_names)
        add("GET", "/v2/models/stats", self._statistics)
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            add("GET", model, self._model_metadata)
            add("GET", model + "/ready", self._model_ready)
            add("GET", model + "/config", self._model_config)
            add("GET", model + "/stats", self._statistics)
            add("POST", model + "/infer", self._infer)
            add("POST", model + "/infer_stream", self._infer_stream)
            add("POST", model + "/generate", self._generate)
            add("POST", model + "/generate_stream", self._generate_stream)
        add("POST", "/v2/repository/index", self._repository_index)
        add("POST", "/v2/repository/models/{model}/load", self._load)
        add("POST", "/v2/repository/models/{model}/unload", self._unload)
        add("GET", "/v1/models", self._model_names)
        for model in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"):
            add("GET", model, self._model_ready)
            add("POST", model + ":predict", self._predict_v1)
            add("POST", model + ":explain", self._explain_v1)
        add("GET", "/metrics", self._metrics_page)

    def add_page(self, path: str, content_type: str, body: bytes) -> None:
        """Serve a fixed document."""

        def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:  # noqa: ARG001
            self.reply(exchange, 200, content_type, [body])

        self.router.add("GET", path, handler)

    def add_custom(self, routes: Iterable[CustomRoute]) -> None:
        """Serve routes that a host brings (MLServer's `@custom_handler`)."""
        for method, template, function in routes:
            self.router.add(method, template, self._custom(function))

    # What transports call

    def __call__(self, exchange: Exchange) -> None:
        """Answer a complete request; see `serinus.server.http.exchange.App`."""
        if self._access_log:
            exchange.started = time.monotonic()
        try:
            match = self.router.resolve(exchange.target)
            handler = match.handlers.get(exchange.method)
            if handler is None:
                self._other_method(exchange, match)
            else:
                handler(exchange, match.parameters)
        except Exception as error:  # noqa: BLE001 # the edge of a request
            self.fail(exchange, error)

    def error_body(self, error: SerinusError) -> bytes:
        """See `App.error_body`."""
        self._metrics.observe_error("rest", error.http_status)
        return error_json(str(error))

    def observe(self, exchange: Exchange, status: int, length: int) -> None:
        """Write the access log's line."""
        _access.info(
            '"%s %s" %d %d %.1fms',
            exchange.method.decode("ascii", "replace"),
            exchange.target.decode("ascii", "backslashreplace"),
            status,
            length,
            (time.monotonic() - exchange.started) * 1000 if exchange.started else 0.0,
        )

    def close(self) -> None:
        """Stop what is still running; its clients are gone."""
        for task in self._tasks:
            task.cancel()

    # Answers

    def reply(
        self,
        exchange: Exchange,
        status: int,
        content_type: str,
        chunks: Sequence[Buffer],
        extra: RawHeaders = (),
    ) -> None:
        """Respond, with what the request's headers ask for: its id back, a content coding."""
        headers = exchange.headers
        if headers.plain:
            exchange.respond(status, content_type, chunks, extra)
            return
        fields = _with_request_id(exchange, extra)
        if headers.accept_encoding and status == 200 and chunks and exchange.method != b"HEAD":
            coding = choose_coding(headers.accept_encoding)
            if coding is not None:
                fields += [(b"Content-Encoding", coding.encode()), (b"Vary", b"Accept-Encoding")]

                def send(body: bytes) -> None:
                    exchange.respond(status, content_type, [body], fields)

                self._offload(exchange, sum(map(len, chunks)), lambda: compress(chunks, coding), send)
                return
        exchange.respond(status, content_type, chunks, fields)

    def reply_json(self, exchange: Exchange, document: Any, status: int = 200, extra: RawHeaders = ()) -> None:
        """Respond with a JSON document."""
        self.reply(exchange, status, JSON, [orjson.dumps(document)], extra)

    def fail(self, exchange: Exchange, error: Exception, *, count: bool = True) -> None:
        """Respond with an error; one that nobody foresaw is logged with its traceback, once, and told nothing of.

        `count`: it is in no model's statistics.
        """
        if not isinstance(error, SerinusError):
            _log.error(
                "%s %s failed", exchange.method.decode(), exchange.target[:200].decode("latin-1"), exc_info=error
            )
            error = ModelFailed("the server failed to answer this request; its log says why")
        if count:
            self._metrics.observe_error("rest", error.http_status)
        extra: list[tuple[bytes, bytes]] = []
        if isinstance(error, MethodNotAllowed):
            extra.append((b"Allow", ", ".join(error.allow).encode()))
        elif isinstance(error, Overloaded):
            extra.append((b"Retry-After", b"%d" % max(1, math.ceil(error.retry_after_s))))
        elif isinstance(error, NotReady):
            extra.append((b"Retry-After", b"1"))
        elif isinstance(error, Unauthenticated):
            extra.append((b"WWW-Authenticate", b'Bearer realm="repository"'))  # RFC 9110, 15.5.2
        elif isinstance(error, UnsupportedMedia):
            extra.append((b"Accept-Encoding", ", ".join(CODINGS).encode()))  # RFC 9110, 12.5.3
        self.reply(exchange, error.http_status, JSON, [error_json(str(error))], extra)

    def _other_method(self, exchange: Exchange, match: Match) -> None:
        method, allow = exchange.method, match.allow
        if method == b"HEAD" and b"GET" in match.handlers:  # RFC 9110, 9.3.2: GET without the body
            match.handlers[b"GET"](exchange, match.parameters)
        elif method == b"OPTIONS":
            self.reply(exchange, 204, "", [], [(b"Allow", ", ".join(allow).encode())])
        elif method == b"POST" and match.template.startswith("/v1/models/") and ":" in match.parameters[-1]:
            verb = match.parameters[-1].rpartition(":")[2]
            raise NotFound(f"':{verb[:64]}' is nothing that V1 does with a model; there are ':predict' and ':explain'")
        else:
            text = f"{method.decode('ascii', 'replace')} is not offered here; this path has {', '.join(allow)}"
            raise MethodNotAllowed(text, allow)

    def _spawn(self, exchange: Exchange, work: Coroutine[Any, Any, Reply | Stream]) -> None:
        """Answer from a coroutine; it is cancelled when the client goes."""
        begun = False

        async def run() -> None:
            nonlocal begun
            status, content_type, body, extra = await work
            if not isinstance(body, AsyncIterator):
                self.reply(exchange, status, content_type, body, extra)
                return
            async with closing(body):
                piece = await anext(body, None)  # what fails here still has a status of its own
                begun = True
                exchange.begin(status, content_type, _with_request_id(exchange, extra))
                while piece is not None:
                    if piece:
                        await exchange.send(piece)
                    piece = await anext(body, None)
                exchange.finish()

        task = asyncio.ensure_future(run())
        self._tasks.add(task)

        def done(task: asyncio.Future[None]) -> None:
            self._tasks.discard(task)
            work.close()  # where the task was cancelled before it began
            error = NotReady("the server is stopping") if task.cancelled() else task.exception()
            if error is None or exchange.gone:
                return
            if not isinstance(error, Exception):
                raise error
            if begun:
                self._break_off(exchange, error)
            else:
                self.fail(exchange, error)

        task.add_done_callback(done)
        exchange.ticket = task

    def _break_off(self, exchange: Exchange, error: Exception) -> None:
        """End an answer in pieces that cannot be completed: its status has been sent, so only the log can say why."""
        what = f"{exchange.method.decode()} {exchange.target[:200].decode('latin-1')} broke off"
        if isinstance(error, SerinusError):
            _log.error("%s: %s", what, error)
        else:
            _log.error("%s", what, exc_info=error)
        exchange.finish(whole=False)

    def _offload(self, exchange: Exchange, size: int, work: Callable[[], bytes], then: Callable[[bytes], None]) -> None:
        """Do byte work here if it is small, else in a thread."""
        if size <= _INLINE_BYTES:
            then(work())
            return
        future = asyncio.get_running_loop().run_in_executor(None, work)
        self._tasks.add(future)

        def done(future: asyncio.Future[bytes]) -> None:
            self._tasks.discard(future)
            if future.cancelled() or exchange.gone:
                return
            try:
                then(future.result())
            except Exception as error:  # noqa: BLE001 # the edge of a request
                self.fail(exchange, error)

        future.add_done_callback(done)

    # Requests

    def _unpack(self, exchange: Exchange, then: Callable[[bytes, CloudEvent | None], None]) -> None:
        """Undo content coding and CloudEvent, and go on with the body."""
        headers = exchange.headers

        def go_on(body: bytes) -> None:
            event = read_event(headers, body, self._cloud_events)
            then(body if event is None else event.data, event)

        _check_charset(headers.content_type)
        coding = headers.content_encoding
        if not coding:
            go_on(exchange.body)
            return
        body, limit = exchange.body, self._body_bytes
        self._offload(exchange, len(body), lambda: decompress(body, coding, limit), go_on)

    def _infer(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        if exchange.headers.plain:
            self._submit(exchange, parameters, exchange.body, None)
        else:
            self._unpack(exchange, lambda body, event: self._submit(exchange, parameters, body, event))

    def _submit(self, exchange: Exchange, parameters: tuple[str, ...], body: bytes, event: CloudEvent | None) -> None:
        request = self._decode(exchange, parameters, body)
        ticket = self._plane.submit(request, _InferCall(self, exchange, request, event))
        exchange.ticket = ticket

    def _decode(self, exchange: Exchange, parameters: tuple[str, ...], body: bytes) -> InferRequest:
        name = parameters[0]
        version = parameters[1] if len(parameters) > 1 else ""
        headers = exchange.headers
        json_length = headers.json_length
        inputs = None
        if json_length is not None:
            if json_length < 0:
                value = headers["inference-header-content-length"][:64]
                raise InvalidInput(
                    f"header Inference-Header-Content-Length is {value!r}; expected the JSON part's bytes"
                )
            if json_length == 0:
                inputs = self._plane.model_metadata(name, version).inputs
        try:
            return self.codec.decode_request(
                body, model_name=name, model_version=version, json_length=json_length, headers=headers, inputs=inputs
            )
        except ClientError as error:
            # A path that leads nowhere is told before what is wrong with the body.
            model = self._plane.registry.served(name, version).model
            loose = None
            if isinstance(model, RequestModel) and isinstance(error, InvalidInput) and json_length is None:
                loose = model.loose_request(body, headers, version)
            if loose is None:
                raise
            return loose

    def _infer_stream(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        """Answer with events (WHATWG HTML, 9.2), one for each response, as MLServer does."""

        async def answer(body: bytes) -> Stream:
            request = self._decode(exchange, parameters, body)
            responses = self._plane.infer_stream(request)
            try:
                first = await anext(responses, None)
                event = b"" if first is None else self._event(first, request)
            except BaseException:
                responses.cancel()
                raise
            own = header_pairs(first.headers) if first is not None else []
            return 200, _EVENTS, self._events(event, responses, request), [*own, *_LIVE]

        self._unpack(exchange, lambda body, event: self._spawn(exchange, answer(body)))  # noqa: ARG005

    async def _events(
        self, first: bytes, responses: Pipe[InferResponse], request: InferRequest
    ) -> AsyncIterator[bytes]:
        """Write a stream; an error after its first response is an event as well, since the status has been sent."""
        async with closing(responses):
            yield first
            try:
                async for response in responses:
                    yield self._event(response, request)
            except SerinusError as error:
                yield b"data: %b\n\n" % error_json(str(error))

    def _event(self, response: InferResponse, request: InferRequest) -> bytes:
        encoded = self.codec.encode_response(response, request)
        if encoded.json_length is not None:
            raise InvalidInput("binary outputs were asked for; events carry JSON, so leave binary_data out")
        return b"data: %b\n\n" % encoded.to_bytes()

    def _generate(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._check_generate(parameters)
        self._infer(exchange, parameters)

    def _generate_stream(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._check_generate(parameters)
        self._infer_stream(exchange, parameters)

    def _check_generate(self, parameters: tuple[str, ...]) -> None:
        model = self._plane.registry.served(*parameters).model
        if not (isinstance(model, RequestModel) and model.has_generate):
            raise NotFound(f"model '{parameters[0]}' has no /generate; it has /infer and /infer_stream")

    def _predict_v1(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._unpack(exchange, lambda body, event: self._submit_v1(exchange, parameters, body, event))

    def _submit_v1(
        self, exchange: Exchange, parameters: tuple[str, ...], body: bytes, event: CloudEvent | None
    ) -> None:
        """Let a model that speaks V1 answer it; ask any other in V2, without a task."""
        name = parameters[0]
        version = parameters[1] if len(parameters) > 1 else ""
        plane, headers, limits = self._plane, exchange.headers, self.codec.limits
        if isinstance(plane.registry.served(name, version).model, RequestModel):

            async def answer() -> Reply | Stream:
                result = await plane.predict_v1(name, body, version=version, headers=headers)
                return await _v1_answer(name, result, event)

            self._spawn(exchange, answer())
            return
        payload = v1_codec.decode(body, limits)
        metadata = plane.model_metadata(name, version)
        request = v1_codec.to_request(payload, metadata, model_version=version, limits=limits)
        request.headers = headers

        def done(result: InferResponse | SerinusError) -> None:
            if exchange.gone:
                return
            if isinstance(result, SerinusError):
                self.fail(exchange, result, count=isinstance(result, NotFound))
                return
            try:
                status, content_type, chunks, extra = _v1_reply(name, v1_codec.encode(result, payload), event)
                self.reply(exchange, status, content_type, chunks, [*header_pairs(result.headers), *extra])
            except Exception as error:  # noqa: BLE001 # the edge of a request
                self.fail(exchange, error)

        exchange.ticket = plane.submit(request, done)

    def _explain_v1(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        name = parameters[0]
        version = parameters[1] if len(parameters) > 1 else ""

        async def answer(body: bytes, event: CloudEvent | None) -> Reply | Stream:
            result = await self._plane.explain_v1(name, body, version=version, headers=exchange.headers)
            return await _v1_answer(name, result, event)

        self._unpack(exchange, lambda body, event: self._spawn(exchange, answer(body, event)))

    def _answer(self, exchange: Exchange, value: Any, render: Callable[[Any], Reply]) -> None:
        """Render what the plane says, now or when it comes."""
        if not inspect.isawaitable(value):
            self.reply(exchange, *render(value))
            return

        async def wait() -> Reply:
            return render(await value)

        self._spawn(exchange, wait())

    # Health and metadata

    def _alive(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        if exchange.target == b"*":
            raise InvalidInput("the target '*' is for OPTIONS alone (RFC 9112, 3.2.4)")
        self.reply(exchange, 200, JSON, [b'{"status":"alive"}'])  # as KServe's

    def _live(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        live = self._plane.live()
        self.reply(exchange, *_health({"live": live}, live, "the server is not live"))

    def _ready(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        # The document calls the field of Server Ready `live`, KServe and its clients `ready`: both are there.
        def render(ready: bool) -> Reply:
            return _health(
                {"ready": ready, "live": True}, ready, "the server is not ready: a model is loading, or it is stopping"
            )

        self._answer(exchange, self._plane.ready(), render)

    def _model_ready(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        name = parameters[0]

        ready = self._plane.model_ready(*parameters)
        document = {"name": name, "ready": ready}
        if (
            not ready and self._plane.registry.entry(*parameters).unloaded
        ):  # as its inference endpoint: waiting is no help
            self.reply_json(exchange, {**document, "error": f"model '{name}' is not loaded; load it first"}, 404)
        else:
            self.reply(exchange, *_health(document, ready, f"model '{name}' is not ready"))

    def _server_metadata(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self.reply(exchange, 200, JSON, [metadata_json(self._plane.server_metadata())])

    def _model_metadata(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self.reply(exchange, 200, JSON, [metadata_json(self._plane.model_metadata(*parameters))])

    def _model_config(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        rows, delay_s = self._plane.batching(*parameters)
        document = _config(self._plane.model_metadata(*parameters), rows, delay_s)
        if self._plane.is_decoupled(*parameters):
            document["model_transaction_policy"] = {"decoupled": True}
        self.reply_json(exchange, document)

    def _statistics(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        async def work() -> Reply:
            return 200, JSON, [statistics_json(await self._plane.statistics_of_all(*parameters))], ()

        self._spawn(exchange, work())

    def _model_names(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        index = self._plane.repository_index()
        names = dict.fromkeys(entry["name"] for entry in index if entry["state"] != "UNAVAILABLE")
        self.reply_json(exchange, {"models": list(names)})

    def _metrics_page(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._answer(exchange, self._render_metrics(), lambda page: (200, _METRICS_TYPE, [page], ()))

    # The repository

    def _repository_index(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        def answer(body: bytes, event: CloudEvent | None) -> None:  # noqa: ARG001
            ready = self._object(body).get("ready")
            if ready is not None and type(ready) is not bool:
                raise InvalidInput(f"'ready' is {describe(ready)}; true or false was expected")
            self.reply(exchange, 200, JSON, [index_json(self._plane.repository_index(ready_only=ready is True))])

        self._unpack(exchange, answer)

    def _load(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        check_change(exchange.headers, self._plane.access)
        self._unpack(exchange, lambda body, event: self._change(exchange, "load", parameters[0], body))  # noqa: ARG005

    def _unload(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        check_change(exchange.headers, self._plane.access)
        self._unpack(exchange, lambda body, event: self._change(exchange, "unload", parameters[0], body))  # noqa: ARG005

    def _object(self, body: bytes) -> dict[str, Any]:
        """Read an optional JSON object of the repository extension."""
        return load_object(body, "the request body", self.codec.limits) if body.strip() else {}

    def _change(self, exchange: Exchange, action: str, name: str, body: bytes) -> None:
        options = dict(decode_parameters(self._object(body).get("parameters"), f"{action} request", self.codec.limits))

        async def work() -> Reply:
            if self._repository is not None:
                await self._repository(action, name, options)
            elif action == "load":
                await self._plane.load(name, options)
            else:
                await self._plane.unload(name, options)
            return 200, JSON, [orjson.dumps({"name": name, action: True})], ()

        # A client that stops waiting does not stop the change half-way: shielded from the exchange's cancel.
        change = asyncio.ensure_future(work())
        self._tasks.add(change)
        change.add_done_callback(self._tasks.discard)

        async def wait() -> Reply:
            return await asyncio.shield(change)

        self._spawn(exchange, wait())

    def _custom(self, function: Callable[[CustomRequest], Awaitable[CustomAnswer]]) -> Handler:
        async def work(exchange: Exchange, parameters: tuple[str, ...]) -> Reply | Stream:
            path, _, query = exchange.target.decode("latin-1").partition("?")
            request = CustomRequest(
                exchange.method.decode(), path, dict(parse_qsl(query)), exchange.headers, exchange.body, parameters
            )
            status, headers, body = await function(request)
            content_type = next((value for name, value in headers.items() if name.lower() == "content-type"), JSON)
            fields = header_pairs(headers)
            if isinstance(body, AsyncIterator):
                return status, content_type, body, fields
            return status, content_type, [body], fields

        def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:
            self._spawn(exchange, work(exchange, parameters))

        return handler


def _health(document: dict[str, Any], healthy: bool, message: str) -> Reply:
    if healthy:
        return 200, JSON, [orjson.dumps(document)], ()
    return 503, JSON, [orjson.dumps({**document, "error": message})], [(b"Retry-After", b"1")]


async def _v1_answer(
    name: str, answer: bytes | Mapping[str, Any] | V1Answer, event: CloudEvent | None
) -> Reply | Stream:
    """Write what a V1 model answered, piece by piece where it comes so; a CloudEvent has to hold all of it."""
    if isinstance(answer, V1Answer) and isinstance(answer.document, AsyncIterator):
        pieces = answer.document
        if event is None:
            return 200, answer.content_type, pieces, header_pairs(answer.headers)
        async with closing(pieces):
            answer = replace(answer, document=b"".join([piece async for piece in pieces]))
    return _v1_reply(name, answer, event)


def _with_request_id(exchange: Exchange, fields: RawHeaders) -> list[tuple[bytes, bytes]]:
    """Add the id of the request, unless the model set one."""
    headers = exchange.headers
    if headers.request_id is None or any(name.lower() == b"x-request-id" for name, _ in fields):
        return list(fields)
    return [*fields, *headers.request_id_back()]


def _v1_reply(name: str, answer: bytes | Mapping[str, Any] | V1Answer, event: CloudEvent | None) -> Reply:
    """Write what a V1 model answered; the arrays of its object may be NumPy's."""
    own: list[tuple[bytes, bytes]] = []
    kind = JSON
    if isinstance(answer, V1Answer):
        own, kind = header_pairs(answer.headers), answer.content_type
        answer = answer.document
    try:
        options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        body = answer if isinstance(answer, bytes) else orjson.dumps(answer, option=options)
    except TypeError as error:
        raise ModelFailed(f"the model's answer cannot be written as JSON: {error}") from error
    if event is None:
        return 200, kind, [body], own
    content_type, body, fields = event.wrap(name, body, kind)
    return 200, content_type, [body], [*own, *fields]


def _check_charset(content_type: bytes) -> None:
    """Refuse JSON in another charset than UTF-8 (RFC 8259, 8.1)."""
    for parameter in content_type.lower().split(b";")[1:]:
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"charset" and value.strip(b' "') not in (b"utf-8", b"utf8", b"us-ascii"):
            shown = value.strip(b' "')[:32].decode("latin-1")
            raise UnsupportedMedia(f"the charset {shown!r} is not offered; expected utf-8")


def _config(metadata: ModelMetadata, max_batch_rows: int, max_delay_s: float) -> dict[str, Any]:
    """Say what Triton's model configuration would (extension_model_configuration.md), as gRPC's ModelConfig has it.

    `dims` have no batch dimension where `max_batch_size` is not 0.
    """
    document: dict[str, Any] = {
        "name": metadata.name,
        "platform": metadata.platform,
        "backend": metadata.platform,
        "max_batch_size": max_batch_rows,
    }
    for key, specs in (("input", metadata.inputs), ("output", metadata.outputs)):
        document[key] = [
            {
                "name": spec.name,
                "data_type": kind,
                "dims": list(dims),
                **({"optional": True} if spec.optional and key == "input" else {}),
            }
            for spec in specs
            for kind, dims in (spec.in_config(batched=max_batch_rows > 0),)
        ]
    if max_batch_rows:
        document["dynamic_batching"] = {"max_queue_delay_microseconds": round(max_delay_s * 1e6)}
    elif reason := metadata.parameters.get("batching_reason"):
        document["parameters"] = {"batching_reason": {"string_value": reason}}
    return document
