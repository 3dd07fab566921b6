"""V1 over REST: `:predict` and `:explain`, and TensorFlow Serving's `:classify` and `:regress`.

Source: KServe, v1-protocol.md; TensorFlow Serving, api_rest.md, whose `:predict` has the same shape.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final, Literal

from ...dataplane.plane import Plane
from ...dataplane.response_stream import closing
from ...errors import NotFound, SerinusError
from ...model import V1Answer
from ...protocol.documents.json_values import NotFinite, dump_document
from ..http.exchange import Exchange, header_pairs
from .cloudevents import CloudEvent
from .responder import Reply, Responder, Stream
from .router import Handler, Router

__all__ = ["VERBS", "V1Api", "V1Verb"]

V1Verb = Literal["predict", "explain", "classify", "regress"]
VERBS: Final[tuple[V1Verb, ...]] = ("predict", "explain", "classify", "regress")
"""What may follow the colon."""


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
        for verb in VERBS:
            handler = self._handler(verb)
            for model in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"):
                router.add("POST", f"{model}:{verb}", handler)
            router.add("POST", "/v1/models/{model}/labels/{label}:" + verb, self._labelled(handler))

    def _handler(self, verb: V1Verb) -> Handler:
        def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:
            self._responder.unpack(exchange, lambda body, event: self._begin(exchange, parameters, body, event, verb))

        return handler

    def _labelled(self, handler: Handler) -> Handler:
        def labelled(exchange: Exchange, parameters: tuple[str, ...]) -> None:
            name, label = parameters
            handler(exchange, (name, self._plane.labelled_version(name, label)))

        return labelled

    def _begin(
        self,
        exchange: Exchange,
        parameters: tuple[str, ...],
        body: bytes,
        event: CloudEvent | None,
        verb: V1Verb,
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
            name,
            body,
            on_complete,
            version=version,
            headers=exchange.headers,
            explain=verb == "explain",
            task=verb if verb in ("classify", "regress") else "",
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
