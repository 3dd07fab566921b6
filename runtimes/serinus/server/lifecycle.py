"""The life of one server process: load, warm up, listen, serve, drain, stop.

Theory of operation. The ports open only when every model that was asked for at start is loaded and warm. KServe's default
readiness probe (Standard mode) is a bare TCP connect to the first port, so a server that listens while it loads would be sent
requests that it must refuse. A repository that starts empty listens at once. A model that does not load ends the
process with status 1 and its reason, as Kubernetes expects of a container that cannot work. That the ports are free is asked first.

SIGTERM or SIGINT: readiness goes off; after `drain_delay_s` (for endpoints to forget us) the listeners close; requests in
flight have `drain_timeout_s`; then models are unloaded. A second SIGINT ends at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..bounds import ModelBounds
from ..dataplane.plane import Plane
from ..dataplane.registry import Registry
from ..dataplane.repository_access import RepositoryAccess
from ..dataplane.telemetry.metrics import Metrics
from ..errors import ConfigError, NotReady, SerinusError
from ..model import Model
from ..settings import ModelSettings, ServerSettings
from .grpc import start_grpc
from .loop_watchdog import LoopWatchdog
from .port_checks import check_ports
from .rest.custom import CustomAnswer, CustomRequest, CustomRoute
from .rest.rest_server import start_rest
from .worker_channel import Channel

__all__ = ["Launch", "run"]

_log = logging.getLogger("serinus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Everything that one server process is to do."""

    server: ServerSettings
    models: Sequence[ModelSettings]
    factory: Callable[[ModelSettings], Model]
    """Makes a model of its settings; runs in a thread."""
    spared: Collection[str] = ()
    """Names among them that may fail to load: they are listed as unavailable, and the others are served."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Name to reason of models that are listed as unavailable from the start: their files cannot be read."""
    strict_readiness: bool = False
    """Not ready while a model that is `spared` or `broken` is neither loaded nor unloaded."""
    discover: Callable[[str], Sequence[ModelSettings] | None] | None = None
    """Finds a model by name, for load requests; None: what was started is loaded again as it was."""
    index: Callable[[], Sequence[str]] | None = None
    """Names in the repository, loaded or not; None: there is no repository."""
    access: RepositoryAccess = field(default_factory=RepositoryAccess)
    """Who may load and unload models by request."""
    http_socket: socket.socket | None = None
    """Bound already, by the supervisor of several workers."""
    grpc_port: int | None = None
    """Bound already with SO_REUSEPORT, likewise."""
    control: socket.socket | None = None
    started: float = field(default_factory=time.monotonic)


_CONTROL = {
    "off": "off",
    "loopback": "on, for this machine alone",
    "token": "on, with a token",
    "open": "OPEN to whoever reaches these ports",
}
"""What the line at start says of loading and unloading by request."""


class _Worker:
    """This process as one of several: answers its supervisor and asks it."""

    def __init__(self, channel: Channel, plane: Plane, metrics: Metrics, stop: asyncio.Event) -> None:
        self._channel = channel
        self._plane = plane
        self._metrics = metrics
        self._stop = stop
        self.go = asyncio.Event()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, **message: Any) -> None:
        """Tell the supervisor."""
        self._channel.send(**message)

    async def listen(self) -> None:
        """Follow the supervisor until it is gone; then stop."""
        async for message in self._channel.messages():
            kind = message["type"]
            if kind == "go":
                self.go.set()
            elif kind == "collect":
                self.send(type="snapshot", id=message["id"], data=self._metrics.snapshot())
            elif kind == "do":
                task = asyncio.ensure_future(self._do(message))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            elif kind in {"merged", "done"}:
                future = self._waiting.pop(message["id"], None)
                if future is not None and not future.done():
                    future.set_result(message)
        self._stop.set()
        self.go.set()

    async def _do(self, message: dict[str, Any]) -> None:
        error = None
        try:
            if message["action"] == "load":
                await self._plane.load(message["name"], message["parameters"])
            else:
                await self._plane.unload(message["name"], message["parameters"])
        except SerinusError as failure:
            error = [type(failure).__name__, str(failure)]
        self.send(type="applied", id=message["id"], error=error)

    async def _ask(self, **message: Any) -> dict[str, Any]:
        self._next += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[self._next] = future
        self.send(id=self._next, **message)
        return await future

    async def metrics_page(self) -> bytes:
        """Render the metrics of all workers together."""
        answer = await self._ask(type="metrics")
        return Metrics.render_merged(answer["snapshots"])

    async def statistics(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Add up the statistics of all workers."""
        answer = await self._ask(type="metrics")
        return Metrics.merged_statistics(answer["snapshots"])

    async def apply(self, action: str, name: str, parameters: dict[str, Any]) -> None:
        """Load or unload on every worker.

        Raises:
            SerinusError: the first worker's refusal.
        """
        # No parameter takes bytes, which the channel cannot carry either: its name is what the refusal is about.
        parameters = {key: "" if isinstance(value, bytes) else value for key, value in parameters.items()}
        answer = await self._ask(type="apply", action=action, name=name, parameters=parameters)
        if answer["error"] is not None:
            kind, text = answer["error"]
            from .. import errors

            raise getattr(errors, kind, SerinusError)(text)


async def _serve(launch: Launch, announce: Callable[[int, int | None], None] | None) -> int:
    loop = asyncio.get_running_loop()
    settings = launch.server
    stop = asyncio.Event()
    signals = 0

    def on_signal(number: int) -> None:
        nonlocal signals
        signals += 1
        if signals > 1 and number == signal.SIGINT:
            os._exit(130)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if launch.http_socket is None:
        check_ports(settings)

    metrics = Metrics(settings.revision)
    bounds = ModelBounds(
        instances=settings.max_instances, tensor_bytes=settings.limits.tensor_bytes, rank=settings.limits.rank
    )
    registry = Registry(
        launch.factory,
        discover=launch.discover,
        index=launch.index,
        metrics=metrics,
        bounds=bounds,
        expose_behind=settings.expose_predictor,
    )
    plane = Plane(
        registry,
        metrics=metrics,
        limits=settings.limits,
        ready_when_empty=launch.index is not None or not launch.models,
        strict_readiness=launch.strict_readiness,
        access=launch.access,
        not_finite=settings.json_not_finite,
    )
    worker: _Worker | None = None
    listener: asyncio.Task[None] | None = None
    if launch.control is not None:
        worker = _Worker(await Channel.open(launch.control), plane, metrics, stop)
        listener = asyncio.ensure_future(worker.listen())
        plane.workers_statistics = worker.statistics

    loading = asyncio.ensure_future(plane.start(launch.models, spared=launch.spared, broken=launch.broken))
    await _first(loading, stop.wait())
    if not loading.done():
        loading.cancel()
        return 0
    loading.result()

    if worker is not None:
        worker.send(type="ready")
        await worker.go.wait()
        if stop.is_set():
            await plane.close()
            return 0

    rest = await start_rest(
        plane,
        settings,
        metrics=metrics,
        sock=launch.http_socket,
        metrics_page=worker.metrics_page if worker else None,
        repository=worker.apply if worker else None,
        extra_routes=_routes(plane),
    )
    plane.on_load = lambda: rest.add_custom(_routes(plane))
    grpc = None
    if settings.enable_grpc:
        grpc = await start_grpc(
            plane,
            settings,
            metrics=metrics,
            port=settings.grpc_port if launch.grpc_port is None else launch.grpc_port,
            repository=worker.apply if worker else None,
        )
    grpc_port = grpc.port if grpc is not None else None
    if worker is not None:
        worker.send(type="listening", http_port=rest.port, grpc_port=grpc_port)
    # What start-up made stays for good: take it out of every later collection, whose pauses would show in p99.
    gc.collect()
    gc.freeze()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _log.info(
        "ready in %.2f s: REST on %s:%d%s%s; repository control: %s",
        time.monotonic() - launch.started,
        host,
        rest.port,
        f", gRPC on {host}:{grpc_port} ({grpc.engine})" if grpc is not None else "",
        f", metrics on {host}:{rest.metrics_port}" if rest.metrics_port is not None else "",
        _CONTROL[launch.access.mode],
    )
    if announce is not None:
        announce(rest.port, grpc_port)

    watchdog = LoopWatchdog()
    await stop.wait()
    watchdog.close()
    _log.info("stopping: draining for at most %.0f s", settings.drain_timeout_s)
    plane.stop_ready()
    if settings.drain_delay_s:
        await asyncio.sleep(settings.drain_delay_s)
    servers = [server for server in (rest, grpc) if server is not None]
    for server in servers:
        server.stop_accepting()
    await asyncio.gather(*(server.drain(settings.drain_timeout_s) for server in servers))
    await plane.drain(settings.drain_timeout_s)
    await asyncio.gather(*(server.close() for server in servers))
    await plane.close()
    if listener is not None:
        listener.cancel()
    _log.info("stopped")
    return 0


def _routes(plane: Plane) -> list[CustomRoute]:
    """Give the models' own routes, each answered by the model that is loaded when the request comes: a reload makes a new one."""

    async def answer(method: str, template: str, request: CustomRequest) -> CustomAnswer:
        for known_method, known_template, handler in plane.extra_routes():
            if (known_method, known_template) == (method, template):
                return await handler(request)
        raise NotReady(f"the model that answers {method} {template} is not loaded")

    return [(method, template, partial(answer, method, template)) for method, template, _ in plane.extra_routes()]


async def _first(task: asyncio.Future[Any], other: Awaitable[Any]) -> None:
    """Wait until either is done; the second is cancelled if it is not."""
    rival = asyncio.ensure_future(other)
    await asyncio.wait({task, rival}, return_when=asyncio.FIRST_COMPLETED)
    rival.cancel()


def run(launch: Launch, *, announce: Callable[[int, int | None], None] | None = None) -> int:
    """Serve until a signal comes.

    Args:
        launch: what to serve.
        announce: called with the REST and gRPC ports once both are open.

    Returns:
        The exit status: 0 after a clean stop, 1 where a model did not load.
    """
    try:
        import uvloop
    except ImportError:
        runner = asyncio.run
    else:
        runner = uvloop.run
    try:
        return runner(_serve(launch, announce))
    except ConfigError as error:
        for problem in error.problems:
            _log.error("%s", problem)
        return 1
    except SerinusError as error:
        _log.error("%s", error)
        return 1
