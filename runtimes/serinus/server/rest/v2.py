"""V2 inference over REST: `/infer` and `/infer_stream`.

From the socket to the plane and back there is no coroutine: `infer` decodes and submits, `_InferCall` encodes and responds.

Sources: Open Inference Protocol, inference_rest.md; Triton's extension_binary_data.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ...dataplane.large_bodies import LARGE_BODY_BYTES
from ...dataplane.plane import Plane
from ...dataplane.response_stream import ResponseStream, closing
from ...errors import ClientError, InvalidInput, NotFound, SerinusError
from ...protocol.rest_codec import RestCodec, error_json
from ...protocol.types import InferRequest, InferResponse
from ..http.exchange import Exchange, RawHeaders, header_pairs
from ..refusals import NOT_OFFERED, REST_PATHS
from .cloudevents import CloudEvent
from .responder import Responder, Stream
from .router import Router

__all__ = ["EVENTS", "LIVE", "V2Api"]

EVENTS: Final = "text/event-stream; charset=utf-8"
LIVE: Final = ((b"Cache-Control", b"no-cache"), (b"X-Accel-Buffering", b"no"))
"""Events are for now: no cache keeps them, and nginx passes them on at once."""


def _json_bytes(exchange: Exchange, body: bytes) -> int:
    """Bytes of a body that have to be parsed; raw tensors cost nothing."""
    length = exchange.headers.json_length
    return len(body) if length is None else length


class _InferCall:
    """What happens when the plane has answered an inference request."""

    __slots__ = ("api", "event", "exchange", "request")

    def __init__(self, api: V2Api, exchange: Exchange, request: InferRequest, event: CloudEvent | None) -> None:
        self.api = api
        self.exchange = exchange
        self.request = request
        self.event = event

    def __call__(self, result: InferResponse | SerinusError) -> None:
        exchange = self.exchange
        if exchange.gone:
            return
        if isinstance(result, SerinusError):
            self.api.responder.fail(exchange, result, count=isinstance(result, NotFound))
            return
        try:
            encoded = self.api.codec.encode_response(result, self.request)
            extra: RawHeaders = header_pairs(result.headers) if result.headers else ()
            if encoded.json_length is not None:
                extra = [*extra, (b"Inference-Header-Content-Length", b"%d" % encoded.json_length)]
            if exchange.headers.plain:
                exchange.respond(200, encoded.content_type, encoded.chunks, extra)
            elif self.event is None:
                self.api.responder.reply(exchange, 200, encoded.content_type, encoded.chunks, extra)
            else:
                content_type, body, fields = self.event.wrap(
                    self.request.model_name, encoded.to_bytes(), encoded.content_type
                )
                self.api.responder.reply(exchange, 200, content_type, [body], [*extra, *fields])
        except Exception as error:  # noqa: BLE001 # the edge of a request
            self.api.responder.fail(exchange, error)


class V2Api:
    """The inference endpoints.

    Args:
        plane: answers.
        responder: sends.
        codec: reads and writes bodies.
    """

    def __init__(self, plane: Plane, responder: Responder, codec: RestCodec) -> None:
        self._plane = plane
        self.responder = responder
        self.codec = codec

    def add_to(self, router: Router) -> None:
        """Offer the endpoints."""
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            router.add("POST", model + "/infer", self.infer)
            router.add("POST", model + "/infer_stream", self.infer_stream)
        for path, extension in REST_PATHS.items():
            router.refuse(path, NOT_OFFERED[extension])

    def infer(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        """Answer with one response."""
        plane = self._plane
        if plane.full and len(parameters) == 1 and (error := plane.refuse_unread(parameters[0])) is not None:
            self.responder.refuse(exchange, error)
            return
        if exchange.headers.plain:
            self._submit(exchange, parameters, exchange.body, None)
        else:
            self.responder.unpack(exchange, lambda body, event: self._submit(exchange, parameters, body, event))

    def _submit(self, exchange: Exchange, parameters: tuple[str, ...], body: bytes, event: CloudEvent | None) -> None:
        if len(body) > LARGE_BODY_BYTES and (size := _json_bytes(exchange, body)) > LARGE_BODY_BYTES:
            self.responder.offload(
                exchange,
                size,
                lambda: self._decode(exchange, parameters, body),
                lambda request: self._begin(exchange, request, event),
                inline_bytes=LARGE_BODY_BYTES,
            )
            return
        request = self._decode(exchange, parameters, body)
        exchange.pending = self._plane.infer_nowait(request, _InferCall(self, exchange, request, event))

    def _begin(self, exchange: Exchange, request: InferRequest, event: CloudEvent | None) -> None:
        exchange.pending = self._plane.infer_nowait(request, _InferCall(self, exchange, request, event))

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
            if json_length is not None:
                self._plane.check_served(
                    name, version
                )  # a path that leads nowhere is told before what is wrong with the body
                raise
            return self._plane.read_loosely(error, name, version, body, headers)

    def infer_stream(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        """Answer with events (WHATWG HTML, 9.2), one for each response, as MLServer does."""

        async def answer(body: bytes) -> Stream:
            size = _json_bytes(exchange, body)
            request = await self.responder.aside(size, lambda: self._decode(exchange, parameters, body))
            responses = self._plane.infer_stream(request)
            try:
                first = await anext(responses, None)
                event = b"" if first is None else self._event(first, request)
            except BaseException:
                responses.cancel()
                raise
            own = header_pairs(first.headers) if first is not None else []
            return 200, EVENTS, self._events(event, responses, request), [*own, *LIVE]

        self.responder.unpack(exchange, lambda body, event: self.responder.spawn(exchange, answer(body)))  # noqa: ARG005

    async def _events(
        self, first: bytes, responses: ResponseStream[InferResponse], request: InferRequest
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
