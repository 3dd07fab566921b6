"""The router of one InferenceGraph as a process: `python -m serinus.local.router.router_process`, started by `serinus up`.

Like KServe's router it answers every path and method with the graph; its own are GET of `/readyz`, `/v2/health/ready`, `/v2/health/live` and `/metrics`.
SIGTERM: not ready any more, no further connection, what is under way is answered.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping, Sequence

import orjson

from ...errors import ConfigError
from ...protocol.types import Limits
from ...tracing.spans import Span, http_attributes
from ...tracing.trace_context import TRACEPARENT, read_trace_context
from ...tracing.tracer import Tracer, current_tracer, start_tracing
from .graph_execution import GraphExecution, GraphFailed, StepAnswer
from .header_propagation import HeaderFilter
from .router_metrics import RouterMetrics
from .router_server import ConnectionLimits, HttpAnswer, HttpRequest, RouterConnection, error_body
from .router_settings import GATEWAY_VARIABLE, SETTINGS_VARIABLE, RouterSettings
from .step_client import StepClient

__all__ = ["GraphRouter", "main"]

_log = logging.getLogger("serinus.router")
_HEALTH = {"/readyz", "/v2/health/ready", "/v2/health/live"}


class GraphRouter:
    """One graph behind one port.

    Args:
        settings: the graph, its timeouts and headers.
        gateway: host and port of the gateway.
        body_bytes: largest request, and largest answer of a step.
    """

    def __init__(
        self, settings: RouterSettings, gateway: tuple[str, int], *, body_bytes: int = Limits().body_bytes
    ) -> None:
        self.ready = True
        self._name = settings.graph
        self._headers = HeaderFilter(settings.propagate)
        self._metrics = RouterMetrics(settings.graph)
        self._steps = StepClient(settings, gateway, most_bytes=body_bytes)
        self._graph = GraphExecution(settings.nodes, self._metrics, pick=lambda: secrets.randbelow(100))
        timeouts = settings.timeouts
        self._limits = ConnectionLimits(
            timeouts.server_read_s, timeouts.server_write_s, timeouts.server_idle_s, body_bytes
        )
        self._connections: set[RouterConnection] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, port: int) -> int:
        """Listen on loopback; returns the port.

        Raises:
            OSError: the port is taken.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: RouterConnection(self._answer, self._limits, self._connections), "127.0.0.1", port
        )
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening, answer what is under way, close."""
        self.ready = False
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.finish()
        # Whoever started the process ends it when its grace is over.
        await asyncio.gather(*(connection.closed.wait() for connection in list(self._connections)))
        self._steps.close()

    async def _answer(self, request: HttpRequest) -> HttpAnswer:
        if request.method in {"GET", "HEAD"}:
            path = request.target.partition("?")[0]
            if path in _HEALTH:
                return (
                    HttpAnswer(200, b"", "text/plain")
                    if self.ready
                    else HttpAnswer(503, b"shutting down\n", "text/plain")
                )
            if path == "/metrics":
                return HttpAnswer(200, self._metrics.page(), "text/plain; version=0.0.4; charset=utf-8")
        headers = self._headers.select(request.headers)
        tracer = current_tracer()
        return await (self._route(request, headers) if tracer is None else self._traced(tracer, request, headers))

    async def _traced(self, tracer: Tracer, request: HttpRequest, headers: dict[str, str]) -> HttpAnswer:
        """Answer with a server span around it, which the steps' spans are below."""
        parent = read_trace_context(headers.get(TRACEPARENT))
        context = tracer.begin(request.method, parent, {"http.request.method": request.method})
        came_s = time.monotonic()
        status = 499  # the client has left
        try:
            answer = await self._route(request, {**headers, TRACEPARENT: context.header()})
            status = answer.status
            return answer
        finally:
            path, _, _ = request.target.partition("?")
            more = {"url.path": path, "url.scheme": "http", "serinus.graph": self._name}
            attributes = http_attributes(request.method, status, is_server=True, more=more)
            error = str(attributes.get("error.type", ""))
            tracer.emit(
                Span(
                    f"{request.method} {self._name}",
                    context,
                    parent,
                    "server",
                    came_s,
                    time.monotonic(),
                    attributes,
                    error,
                )
            )

    async def _route(self, request: HttpRequest, headers: dict[str, str]) -> HttpAnswer:
        async def call(url: str, body: bytes) -> StepAnswer:
            return await self._steps.call(url, body, headers)

        try:
            answer = await self._graph.run(request.body, call)
        except GraphFailed as error:
            status, cause = error.status, str(error)
        except Exception as error:  # noqa: BLE001 (edge of a request: it is answered, the log has the traceback)
            _log.exception("request%s", _ids(headers))
            status, cause = 500, f"an error of the router ({type(error).__name__}); its log has more"
        else:
            return HttpAnswer(answer.status, answer.body, _content_type(answer.body))
        _log.warning("%d: %s%s", status, cause, _ids(headers))
        return HttpAnswer(status, error_body("Failed to process request", cause), "application/json")


def _ids(headers: Mapping[str, str]) -> str:
    """The ids of a request for its line in the log, where it has any."""
    context = read_trace_context(headers.get(TRACEPARENT))
    told = {"request_id": headers.get("x-request-id", "")[:200], "trace_id": context.trace_id if context else ""}
    return "".join(f" {name} {value}" for name, value in told.items() if value)


def _content_type(body: bytes) -> str:
    """JSON where it is JSON, as KServe's router; it looks, since a step's own content type does not come this far."""
    try:
        orjson.loads(body)
    except ValueError:
        return "text/plain; charset=utf-8"
    return "application/json"


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        raise ConfigError(f"{GATEWAY_VARIABLE} is {text!r}; expected HOST:PORT")
    return host.strip("[]"), int(port)


async def _run(settings: RouterSettings, gateway: tuple[str, int], port: int) -> None:
    router = GraphRouter(settings, gateway)
    await router.listen(port)
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    _log.info("%s: %d nodes, on 127.0.0.1:%d", settings.graph, len(settings.nodes), port)
    await ended.wait()
    await router.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until SIGTERM.

    Raises:
        SystemExit: settings or gateway are not there or wrong; the message says which.
    """
    parser = argparse.ArgumentParser(prog="router", description="Routes requests through an InferenceGraph.")
    parser.add_argument("--http_port", type=int, default=8080)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        settings = RouterSettings.decode(os.environ.get(SETTINGS_VARIABLE, ""))
        gateway = _address(os.environ.get(GATEWAY_VARIABLE, ""))
        tracer = start_tracing(os.environ, service=settings.graph.rpartition("/")[2])
        asyncio.run(_run(settings, gateway, options.http_port))
        if tracer is not None:
            tracer.close()
    except (ConfigError, ValueError, OSError) as error:
        raise SystemExit(f"serinus: router: {error}") from None


if __name__ == "__main__":
    main()
