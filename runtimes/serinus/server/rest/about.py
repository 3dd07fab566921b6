"""What the server says of itself and its models: health, metadata, configuration, statistics, metrics.

Sources: Open Inference Protocol, inference_rest.md; Triton's extension_statistics.md and extension_model_configuration.md; KServe's
`/v2/models` and V1 readiness; TensorFlow Serving's api_rest.md, model status and metadata.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson

from ...dataplane.plane import Plane
from ...errors import InvalidInput
from ...protocol.rest_codec import metadata_json, statistics_json
from ...protocol.types import NO_PARAMETERS
from ..http.exchange import Exchange
from .responder import JSON, Reply, Responder
from .router import Router

__all__ = ["LIVENESS", "AboutApi"]

LIVENESS: Final[Mapping[bytes, bytes]] = {b"/": b'{"status":"alive"}', b"/v2/health/live": b'{"live":true}'}
"""What says that the process works at all, and its answer; KServe's and the protocol's."""

_METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class AboutApi:
    """The endpoints that tell.

    Args:
        plane: is asked.
        responder: sends.
        render_metrics: gives the page of metrics, now or when all workers have told theirs.
    """

    def __init__(
        self, plane: Plane, responder: Responder, render_metrics: Callable[[], bytes | Awaitable[bytes]]
    ) -> None:
        self._plane = plane
        self._responder = responder
        self._render_metrics = render_metrics

    def add_to(self, router: Router) -> None:
        """Offer the endpoints."""
        add = router.add
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
        add("GET", "/v1/models", self._model_names)
        for model in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"):
            add("GET", model, self._v1_status)
            add("GET", model + "/metadata", self._v1_metadata)
        add("GET", "/v1/models/{model}/labels/{label}", self._labelled_status)
        add("GET", "/metrics", self._metrics_page)

    def _alive(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        if exchange.target == b"*":
            raise InvalidInput("the target '*' is for OPTIONS alone (RFC 9112, 3.2.4)")
        self._responder.reply(exchange, 200, JSON, [LIVENESS[b"/"]])

    def _live(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        live = self._plane.live()
        self._responder.reply(exchange, *_health({"live": live}, live, "the server is not live"))

    def _ready(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        # The document calls the field of Server Ready `live`, KServe and its clients `ready`: both are there.
        def render(ready: bool) -> Reply:
            return _health(
                {"ready": ready, "live": True}, ready, "the server is not ready: a model is loading, or it is stopping"
            )

        self._responder.answer(exchange, self._plane.ready(), render)

    def _v1_status(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        """Answer KServe's readiness and TensorFlow Serving's status in one document."""
        self._model_ready(exchange, parameters, {"model_version_status": self._plane.v1_status(*parameters)})

    def _v1_metadata(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.reply_json(exchange, self._plane.v1_metadata(*parameters))

    def _model_ready(
        self, exchange: Exchange, parameters: tuple[str, ...], more: Mapping[str, Any] = NO_PARAMETERS
    ) -> None:
        name = parameters[0]

        ready = self._plane.model_ready(*parameters)
        document = {"name": name, "ready": ready, **more}
        if not ready and self._plane.is_unloaded(*parameters):  # as its inference endpoint: waiting is no help
            self._responder.reply_json(
                exchange, {**document, "error": f"model '{name}' is not loaded; load it first"}, 404
            )
        else:
            self._responder.reply(exchange, *_health(document, ready, f"model '{name}' is not ready"))

    def _labelled_status(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        name, label = parameters
        self._v1_status(exchange, (name, self._plane.labelled_version(name, label)))

    def _server_metadata(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.reply(exchange, 200, JSON, [metadata_json(self._plane.server_metadata())])

    def _model_metadata(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.reply(exchange, 200, JSON, [metadata_json(self._plane.model_metadata(*parameters))])

    def _model_config(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.reply_json(exchange, self._plane.model_config(*parameters).document())

    def _statistics(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        async def work() -> Reply:
            return 200, JSON, [statistics_json(await self._plane.statistics_of_all(*parameters))], ()

        self._responder.spawn(exchange, work())

    def _model_names(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.reply_json(exchange, {"models": self._plane.model_names()})

    def _metrics_page(self, exchange: Exchange, parameters: tuple[str, ...]) -> None:
        self._responder.answer(exchange, self._render_metrics(), lambda page: (200, _METRICS_TYPE, [page], ()))


def _health(document: dict[str, Any], healthy: bool, message: str) -> Reply:
    if healthy:
        return 200, JSON, [orjson.dumps(document)], ()
    return 503, JSON, [orjson.dumps({**document, "error": message})], [(b"Retry-After", b"1")]
