"""The REST application: every API over one plane, whichever transport asks.

What each path answers is in the module of its API (`v2`, `v1`, `repository`, `about`, `custom`); how answers leave is in `responder`.
V2 inference goes from the socket to the plane and back without a coroutine; what is not hot may take a task, which is
cancelled when its client goes. Errors have one form everywhere, `{"error": message}`, and one status each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

from ...dataplane.plane import Plane
from ...dataplane.telemetry.metrics import Metrics
from ...errors import MethodNotAllowed, NotFound, SerinusError, Unauthenticated
from ...protocol.documents.json_values import NotFinite
from ...protocol.rest_codec import RestCodec, error_json
from ..http.exchange import Exchange
from ..http.late_arrivals import LateArrivals
from ..request_access import INFERENCE, RequestAccess, rest_kind
from ..request_observer import RequestObserver
from .about import AboutApi
from .cloudevents import CloudEventSettings
from .custom import CustomApi, CustomRoute
from .generation import GenerateApi
from .pages.docs_page import DocsPage, token_question
from .repository import RepositoryApi
from .request_headers import ExchangeObserver
from .responder import Responder
from .router import Match, Router
from .v1 import VERBS, V1Api
from .v2 import V2Api

__all__ = ["RestApp"]

_DOCS = "/docs"
_HTML = "text/html; charset=utf-8"
_PAGE_FIELDS = ((b"Cache-Control", b"no-store"), (b"X-Content-Type-Options", b"nosniff"))


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
        observer: RequestObserver | None = None,
        not_finite: NotFinite = "null",
        compress: Literal["json", "all", "off"] = "json",
        compress_min_bytes: int = 0,
        request_access: RequestAccess | None = None,
        arrivals: LateArrivals | None = None,
    ) -> None:
        self._arrivals = arrivals or LateArrivals()
        self._request_access = request_access
        self._plane = plane
        self._responder = responder = Responder(
            metrics=metrics,
            body_bytes=body_bytes,
            cloud_events=cloud_events,
            compress=compress,
            compress_min_bytes=compress_min_bytes,
        )
        self.router = Router()
        self._observer = ExchangeObserver(observer, self.router) if observer is not None else None
        AboutApi(plane, responder, render_metrics).add_to(self.router)
        inference = V2Api(plane, responder, codec)
        inference.add_to(self.router)
        GenerateApi(plane, responder, inference, codec.limits).add_to(self.router)
        V1Api(plane, responder, not_finite).add_to(self.router)
        RepositoryApi(plane, responder, codec.limits, repository).add_to(self.router)
        self._custom = CustomApi(responder, self.router)
        self._of_models: set[str] = set()
        """Templates of models' own routes; one of them may stand where a route of ours was, and is not asked less for that."""

    def add_page(self, path: str, content_type: str, body: bytes) -> None:
        """Serve a fixed document."""

        def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:  # noqa: ARG001
            self._responder.reply(exchange, 200, content_type, [body])

        self.router.add("GET", path, handler)

    def add_docs(self, page: DocsPage) -> None:
        """Serve the page for people."""

        def handler(exchange: Exchange, parameters: tuple[str, ...]) -> None:  # noqa: ARG001
            headers = exchange.headers
            body = page.render(headers.get("host", ""))
            self._responder.reply(exchange, 200, _HTML, [body], _PAGE_FIELDS)

        self.router.add("GET", _DOCS, handler)

    def add_custom(self, routes: Iterable[CustomRoute]) -> None:
        """Serve routes that a host brings (MLServer's `@custom_handler`)."""
        routes = list(routes)
        self._of_models.update(template for _, template, _ in routes)
        self._custom.add(routes)

    # What transports call

    def __call__(self, exchange: Exchange) -> None:
        """Answer a complete request; see `serinus.server.http.exchange.App`."""
        if self._observer is not None:
            self._observer.begin(exchange)
        try:
            if self._request_access is not None:
                self._authenticate(exchange, self._request_access)
            match = self.router.resolve(exchange.target)
            if self._arrivals.is_late:
                self._check_arrival(exchange, match)
            handler = match.handlers.get(exchange.method)
            if handler is None:
                self._other_method(exchange, match)
            else:
                handler(exchange, match.parameters)
        except Unauthenticated as error:
            self._ask_for_token(exchange, error)
        except Exception as error:  # noqa: BLE001 # the edge of a request
            self._responder.fail(exchange, error)

    def error_body(self, error: SerinusError) -> bytes:
        """See `App.error_body`."""
        self._responder.count(error.http_status)
        return error_json(str(error))

    def observe(self, exchange: Exchange, status: int, length: int) -> None:
        """Tell log and traces of an answer."""
        if self._observer is not None:
            self._observer.end(exchange, status, length)

    def close(self) -> None:
        """Stop what is still running; its clients are gone."""
        self._responder.close()

    def _ask_for_token(self, exchange: Exchange, error: Unauthenticated) -> None:
        """Refuse a request without a good token; a browser that wants the page for people gets one that asks its user for it."""
        is_page = (
            exchange.method == b"GET"
            and _DOCS in self.router.templates
            and exchange.target.partition(b"?")[0] == _DOCS.encode()
        )
        if is_page and "text/html" in exchange.headers.get("accept", ""):
            self._responder.fail(exchange, error, page=(_HTML, token_question(), _PAGE_FIELDS))
        else:
            self._responder.fail(exchange, error)

    def _authenticate(self, exchange: Exchange, access: RequestAccess) -> None:
        """Ask a request for its token, whatever its method is.

        Raises:
            Unauthenticated: it has none, or another; so has one for a path that is not there, whose refusal names those that are.
        """
        authorization = exchange.headers.get("authorization")
        try:
            template = self.router.resolve(exchange.target).template
        except SerinusError:
            access.check(INFERENCE, authorization)
            return
        access.check(rest_kind(template), authorization)
        if template in self._of_models:
            access.check(INFERENCE, authorization)

    def _check_arrival(self, exchange: Exchange, match: Match) -> None:
        """Refuse an inference request that has waited too long before it was read; its priority is not known yet, so none is refused of a model with levels.

        Raises:
            Overloaded: so it has.
        """
        template = match.template
        if exchange.method != b"POST" or not (rest_kind(template) == INFERENCE or template.startswith("/v1/models/")):
            return
        name = match.parameters[0].partition(":")[0] if match.parameters else ""
        if not self._plane.has_priorities(name):
            self._arrivals.check(exchange.waited_s())

    def _other_method(self, exchange: Exchange, match: Match) -> None:
        method, allow = exchange.method, match.allow
        if method == b"HEAD" and b"GET" in match.handlers:  # RFC 9110, 9.3.2: GET without the body
            match.handlers[b"GET"](exchange, match.parameters)
        elif method == b"OPTIONS":
            self._responder.reply(exchange, 204, "", [], [(b"Allow", ", ".join(allow).encode())])
        elif method == b"POST" and match.template.startswith("/v1/models/") and ":" in match.parameters[-1]:
            verb = match.parameters[-1].rpartition(":")[2]
            have = ", ".join(f"':{known}'" for known in VERBS)
            raise NotFound(f"':{verb[:64]}' is nothing that V1 does with a model; there are {have}")
        else:
            text = f"{method.decode('ascii', 'replace')} is not offered here; this path has {', '.join(allow)}"
            raise MethodNotAllowed(text, allow)
