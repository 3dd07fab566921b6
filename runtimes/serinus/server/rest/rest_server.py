"""The REST server: settings to sockets.

Which transport carries it is a setting: `thin` (llhttp on uvloop) or `uvicorn`; the application behind them is the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

from ...dataplane.plane import Plane
from ...dataplane.telemetry.metrics import Metrics
from ...errors import ConfigError
from ...protocol.rest_codec import RestCodec
from ...settings import ServerSettings
from ...tracing.tracer import Tracer
from ..access_log import REVISION_FIELD
from ..certificates import Certificates, Loaded
from ..connections.idle_room import IdleRoom
from ..connections.unsent_answers import UnsentAnswers
from ..http.asgi import UvicornServer
from ..http.exchange import HttpLimits, header_pairs
from ..http.late_arrivals import LateArrivals
from ..http.stand_in import StandIn
from ..http.thin import ThinServer
from ..request_access import HEALTH, INFERENCE, RequestAccess, rest_kind
from ..request_observer import RequestObserver, observe_requests
from .about import LIVENESS
from .app import RestApp
from .cloudevents import CloudEventSettings
from .custom import CustomRoute
from .pages.docs_page import DocsPage, offers_docs
from .pages.openapi import openapi_document

__all__ = ["RestServer", "start_rest"]

_log = logging.getLogger("serinus.rest")

_TRUSTED: Final = (
    "requests that have waited too long are served all the same, liveness waits while the event loop is held, and where descriptors run out idle "
    "connections make no room; keep strangers behind a gateway, or use --http thin"
)

_PLAIN_CONNECTIONS: Final = 256
"""Of each port for operators, where no certificate and no token keeps strangers away: they must not take the descriptors of clients. As TLS handshakes."""


class _PlainPort(NamedTuple):
    """A port of its own, without TLS, for what operators ask."""

    server: ThinServer
    app: RestApp
    port: int

    async def close(self) -> None:
        """Close what is left, cancelling its requests."""
        await self.server.close()
        self.app.close()


class RestServer:
    """A running REST server."""

    def __init__(
        self,
        server: ThinServer | UvicornServer,
        app: RestApp,
        port: int,
        arrivals: LateArrivals,
        metrics: _PlainPort | None = None,
        health: _PlainPort | None = None,
    ) -> None:
        self.arrivals = arrivals
        """To be told how late the loop is."""
        self._server = server
        self._app = app
        self._health = health
        self._plain = [each for each in (metrics, health) if each is not None]
        self.port = port
        """The port that it listens on, also where 0 was asked for."""
        self.metrics_port = metrics.port if metrics is not None else None
        """Of `/metrics` alone; None: it has no port of its own."""
        self.health_port = health.port if health is not None else None
        """Of health and readiness alone; None: they have no port of their own."""

    def add_custom(self, routes: Iterable[CustomRoute]) -> None:
        """Serve further routes; one that is there already is replaced."""
        self._app.add_custom(routes)

    def stand_in(self) -> StandIn | None:
        """Give who answers liveness while the loop is held; None: this transport has nobody (uvicorn, TLS).

        Where health has a port of its own, the probes are there.
        """
        asked = self._server if self._health is None else self._health.server
        return asked.stand_in(LIVENESS) if isinstance(asked, ThinServer) else None

    async def take_waiting(self) -> None:
        """Accept the connections that wait in the kernel, before `stop_accepting`."""
        await self._server.take_waiting()

    def stop_accepting(self) -> None:
        """Refuse new connections; answers on those that there are carry `Connection: close`. Metrics and health can be read to the end."""
        self._server.stop_accepting()

    async def drain(self, timeout_s: float) -> None:
        """Wait until the requests in flight are answered and the connections closed, at most `timeout_s`."""
        await self._server.drain(timeout_s)

    async def close(self) -> None:
        """Close what is left, cancelling its requests."""
        await self._server.close()
        self._app.close()
        for plain in self._plain:
            await plain.close()


async def start_rest(
    plane: Plane,
    settings: ServerSettings,
    *,
    metrics: Metrics,
    sock: socket.socket | None = None,
    metrics_page: Callable[[], Awaitable[bytes]] | None = None,
    repository: Callable[[str, str, dict[str, Any]], Awaitable[None]] | None = None,
    extra_routes: Iterable[CustomRoute] = (),
    tracer: Tracer | None = None,
    request_access: RequestAccess | None = None,
    certificates: Certificates | None = None,
    unsent: UnsentAnswers | None = None,
    room: IdleRoom | None = None,
) -> RestServer:
    """Start serving REST on the running loop.

    Args:
        plane: what answers.
        settings: host, port, transport, limits, time-outs, TLS.
        metrics: rendered at `/metrics`.
        sock: a bound socket to listen on; None: one is bound to `settings.host` and `settings.http_port`.
        metrics_page: renders `/metrics` instead of `metrics`, for all worker processes together.
        repository: loads and unloads (`action`, model, parameters) instead of the plane, on all worker processes.
        extra_routes: further routes: method, path template, and an async handler of a `CustomRequest`.
        tracer: takes the spans of requests; None: they are not traced.
        request_access: which requests need a token; None: none does.
        certificates: for TLS, exchanged with them; None: those of the settings, for good.
        unsent: what waits for slow clients, of gRPC too; None: an account of its own.
        room: who closes an idle connection where descriptors run out, of gRPC too; None: this transport alone.

    Raises:
        ConfigError: the port is taken, TLS files cannot be read, or the transport's package is missing.
    """
    limits = HttpLimits(
        body_bytes=settings.max_body_bytes,
        request_timeout_s=settings.request_timeout_s,
        keep_alive_s=settings.timeout_keep_alive_s,
        send_timeout_s=settings.send_timeout_s,
    )

    arrivals = LateArrivals()
    observer = observe_requests(plane, settings, metrics, tracer)

    def make_app(observer: RequestObserver | None, access: RequestAccess | None) -> RestApp:
        return RestApp(
            plane,
            metrics=metrics,
            render_metrics=metrics_page or metrics.render,
            codec=RestCodec(
                replace(settings.limits, body_bytes=settings.max_body_bytes), not_finite=settings.json_not_finite
            ),
            body_bytes=settings.max_body_bytes,
            repository=repository,
            cloud_events=CloudEventSettings.from_environ(os.environ),
            observer=observer,
            not_finite=settings.json_not_finite,
            compress=settings.compress,
            compress_min_bytes=settings.compress_min_bytes,
            request_access=access,
            arrivals=arrivals,
        )

    app = make_app(observer, request_access)
    app.add_custom(extra_routes)
    asked = request_access.kinds if request_access is not None else frozenset[str]()
    if plane.access.mode == "token":
        asked |= {"control"}
    document, as_json = openapi_document(app.router.templates, changes=plane.access.is_on, need_token=asked)
    app.add_page("/openapi.json", "application/json", as_json)
    if offers_docs(settings):
        over_tls = settings.ssl_certfile is not None
        needs_token = request_access is not None and INFERENCE in request_access.kinds
        page = DocsPage(plane, document, revision=settings.revision, over_tls=over_tls, needs_token=needs_token)
        app.add_docs(page)
    unsent = unsent or UnsentAnswers(settings.max_unsent_bytes, patience_s=settings.send_timeout_s)
    if settings.http == "thin":
        transport = partial(ThinServer, unsent=unsent, arrivals=arrivals, room=room)
    else:
        transport = partial(UvicornServer, unsent=unsent)
    if settings.http != "thin":
        _log.info("HTTP transport: %s; for trusted networks: %s", settings.http, _TRUSTED)
    fields = header_pairs({REVISION_FIELD: settings.revision}) if settings.revision else ()
    server = transport(app, limits, observer=app.observe if observer is not None else None, fields=fields)
    certificates = certificates or Certificates.of(settings)
    listener = sock or _bind(settings.host, settings.http_port)
    try:
        await server.listen(sock=listener, ssl=certificates.context() if certificates is not None else None)
    except BaseException:
        listener.close()
        raise
    port = listener.getsockname()[1]
    if certificates is not None:
        loop = asyncio.get_running_loop()
        certificates.on_change(lambda loaded: _change(loop, server, loaded))

    async def open_plain(setting: str, wanted: int | None, kind: str) -> _PlainPort | None:
        if wanted is None or wanted == port:
            return None
        # Nothing of health needs a token, so what is not there is said to be not there.
        plain_app = make_app(None, None if kind == HEALTH else request_access)
        plain_app.router.keep_only(*(text for text in plain_app.router.templates if rest_kind(text) == kind))
        listening = await _listen_plain(settings, plain_app, limits, setting, wanted, share=sock is not None)
        return _PlainPort(listening[0], plain_app, listening[1])

    plain: list[_PlainPort | None] = []
    try:
        plain.append(await open_plain("metrics_port", settings.metrics_port, "metrics"))
        plain.append(await open_plain("health_port", settings.health_port, HEALTH))
    except BaseException:
        for each in plain:
            if each is not None:
                await each.close()
        await server.close()
        raise
    return RestServer(server, app, port, arrivals, *plain)


def _change(loop: asyncio.AbstractEventLoop, server: ThinServer | UvicornServer, loaded: Loaded) -> None:
    """Have a server speak with another certificate; called on the thread that has read it."""
    change = server.change_certificate(loaded.context())
    try:
        asyncio.run_coroutine_threadsafe(change, loop)
    except RuntimeError:  # the loop has closed
        change.close()


async def _listen_plain(
    settings: ServerSettings, app: RestApp, limits: HttpLimits, setting: str, port: int, *, share: bool
) -> tuple[ThinServer, int]:
    """Open a port for operators: without TLS, as MLServer's and Triton's for metrics; whichever worker is asked answers for all."""
    listener = _bind(settings.host, port, setting, share=share)
    server = ThinServer(app, limits, most_connections=_PLAIN_CONNECTIONS)
    try:
        await server.listen(sock=listener, backlog=_PLAIN_CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return server, listener.getsockname()[1]


def _bind(host: str, port: int, setting: str = "http_port", *, share: bool = False) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its name: asyncio turns Nagle's algorithm off for connections of a socket that says it is TCP, and else not. An answer in
    # two writes, as uvicorn's are, would wait for the client's delayed acknowledgement (40 ms).
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6 and host == "::":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((host, port))
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"{setting}: cannot listen on {host}:{port}: {error.strerror}; choose another, or 0"
        ) from error
    return sock
