"""V1 over REST: `:predict` and `:explain`.

Source: KServe, v1-protocol.md; TensorFlow Serving, api_rest.md, whose `:predict` has the same shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from ...dataplane.plane import Plane
from ...dataplane.response_stream import closing
from ...errors import NotFound, SerinusError
from ...model import V1Answer
from ...protocol.documents.json_values import NotFinite, dump_document
from ..http.exchange import Exchange, header_pairs
from .cloudevents import CloudEvent
from .responder import Reply, Responder, Stream
from .router import Router

__all__ = ["V1Api"]


class V1Api:
    """The endpoints of V1 that compute.

    Args:
        plane: answers.
        responder: sends.
        not_finite: what stands for NaN and infinities in answers of models that speak V1 themselves.
    """

    def __init__(self, plane: Plane, responder: Responder, not_finite: NotFinite = "null") -> None:
        self._plane = plane
        self._not_finite: NotFinite = not_finite
        self._responder = responder

    def add_to(self, router: Router) -> None:
        """Offer the endpoints."""
        for model in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"):
            router.add("POST", model + ":predict", self._predict)
            router.add("POST", model + ":explain", self._explain)

    def _predict(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.unpack(exchange, lambda body, event: self._begin(exchange, parameters, body, event))

    def _explain(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.unpack(
            exchange, lambda body, event: self._begin(exchange, parameters, body, event, explain=True)
        )

    def _begin(
        self,
        exchange: Exchange,
        parameters: tuple[str, ...],
        body: bytes,
        event: CloudEvent | None,
        *,
        explain: bool = False,
    ) -> None:
        name = parameters[0]
        version = parameters[1] if len(parameters) > 1 else ""
        responder = self._responder

        def on_complete(answer: V1Answer | SerinusError) -> None:
            if exchange.gone:
                return
            if isinstance(answer, SerinusError):
                responder.fail(exchange, answer, count=isinstance(answer, NotFound))
                return
            try:
                if isinstance(answer.document, AsyncIterator):
                    responder.spawn(exchange, _streamed(name, answer, event, self._not_finite))
                else:
                    responder.reply(exchange, *_write(name, answer, event, self._not_finite))
            except Exception as error:  # noqa: BLE001 # the edge of a request
                responder.fail(exchange, error)

        exchange.pending = self._plane.v1_nowait(
            name, body, on_complete, version=version, headers=exchange.headers, explain=explain
        )


async def _streamed(name: str, answer: V1Answer, event: CloudEvent | None, not_finite: NotFinite) -> Reply | Stream:
    """Write an answer piece by piece; a CloudEvent has to hold all of it."""
    pieces = answer.document
    if event is None:
        return 200, answer.content_type, pieces, header_pairs(answer.headers)
    async with closing(pieces):
        whole = replace(answer, document=b"".join([piece async for piece in pieces]))
    return _write(name, whole, event, not_finite)


def _write(name: str, answer: V1Answer, event: CloudEvent | None, not_finite: NotFinite) -> Reply:
    """Write what a model answered; the arrays of its object may be NumPy's."""
    own = header_pairs(answer.headers)
    document = answer.document
    body = document if isinstance(document, bytes) else dump_document(document, not_finite)
    if event is None:
        return 200, answer.content_type, [body], own
    content_type, body, fields = event.wrap(name, body, answer.content_type)
    return 200, content_type, [body], [*own, *fields]
