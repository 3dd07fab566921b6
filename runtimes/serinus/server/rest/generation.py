"""`/generate` and `/generate_stream`: Triton's generate extension, and MLServer's names for `/infer` and `/infer_stream`.

A hosted MLServer model is asked as MLServer's clients ask it, with an inference request; every other model with flat JSON, as the extension
says (extension_generate.md). An error before the model has begun is a JSON error with its status. One of the model's own in place of the
first event has its status and is an event, a later one is an event after a status of 200, as the extension has it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from ...dataplane.plane import Plane
from ...dataplane.response_stream import ResponseStream, closing
from ...errors import InvalidInput, ModelFailed, SerinusError
from ...protocol.peers import flat_codec
from ...protocol.rest_codec import error_json
from ...protocol.types import InferRequest, InferResponse, Limits
from ..http.exchange import Exchange, header_pairs
from .responder import JSON, Reply, Responder, Stream
from .router import Router
from .v2 import EVENTS, LIVE, V2Api

__all__ = ["GenerateApi"]

_ONE = "/generate answers with exactly 1 response, the model gave {count}; use /generate_stream"


class GenerateApi:
    """The generate endpoints.

    Args:
        plane: answers.
        responder: sends.
        inference: answers for models that know these names as others of `/infer`.
        limits: of a body.
    """

    def __init__(self, plane: Plane, responder: Responder, inference: V2Api, limits: Limits) -> None:
        self._plane = plane
        self._responder = responder
        self._inference = inference
        self._limits = limits

    def add_to(self, router: Router) -> None:
        """Offer the endpoints."""
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            router.add("POST", model + "/generate", self._generate)
            router.add("POST", model + "/generate_stream", self._generate_stream)

    def _generate(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        if self._plane.has_generate(*parameters):
            self._inference.infer(exchange, parameters)
            return

        async def answer(body: bytes) -> Reply:
            request = await self._responder.aside(len(body), lambda: self._decode(exchange, parameters, body))
            responses = self._plane.infer_stream(request)
            async with closing(responses):
                first = await anext(responses, None)
                if first is None or await anext(responses, None) is not None:
                    raise InvalidInput(_ONE.format(count="none" if first is None else "several"))
            return 200, JSON, [flat_codec.encode(first)], header_pairs(first.headers)

        self._responder.unpack(exchange, lambda body, event: self._responder.spawn(exchange, answer(body)))  # noqa: ARG005

    def _generate_stream(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        if self._plane.has_generate(*parameters):
            self._inference.infer_stream(exchange, parameters)
            return

        async def answer(body: bytes) -> Stream:
            request = await self._responder.aside(len(body), lambda: self._decode(exchange, parameters, body))
            responses = self._plane.infer_stream(request)
            try:
                first = await anext(responses, None)
                event = b"" if first is None else _event(first)
            except ModelFailed as error:
                responses.cancel()
                return error.http_status, EVENTS, _failed(error), LIVE
            except BaseException:
                responses.cancel()
                raise
            own = header_pairs(first.headers) if first is not None else []
            return 200, EVENTS, _events(event, responses), [*own, *LIVE]

        self._responder.unpack(exchange, lambda body, event: self._responder.spawn(exchange, answer(body)))  # noqa: ARG005

    def _decode(self, exchange: Exchange, parameters: tuple[str, ...], body: bytes) -> InferRequest:
        version = parameters[1] if len(parameters) > 1 else ""
        metadata = self._plane.model_metadata(*parameters)
        return flat_codec.decode(body, metadata, version=version, limits=self._limits, headers=exchange.headers)


def _event(response: InferResponse) -> bytes:
    return b"data: %b\n\n" % flat_codec.encode(response)


async def _failed(error: SerinusError) -> AsyncIterator[bytes]:
    yield b"data: %b\n\n" % error_json(str(error))


async def _events(first: bytes, responses: ResponseStream[InferResponse]) -> AsyncIterator[bytes]:
    async with closing(responses):
        yield first
        try:
            async for response in responses:
                yield _event(response)
        except SerinusError as error:
            yield b"data: %b\n\n" % error_json(str(error))
