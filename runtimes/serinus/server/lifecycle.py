"""The life of one server process: load, warm up, listen, serve, drain, stop.

Theory of operation. The ports open only when every model that was asked for at start is loaded and warm. KServe's default
readiness probe (Standard mode) is a bare TCP connect to the first port, so a server that listens while it loads would be sent
requests that it must refuse. A repository that starts empty listens at once. A model that does not load ends the
process with status 1 and its reason, as Kubernetes expects of a container that cannot work. That the ports are free is asked first.

SIGTERM or SIGINT: readiness goes off; after `drain_delay_s` (for endpoints to forget us) what clients have sent and nobody has read is taken
(`arrivals`), and the listeners close; requests in flight have `drain_timeout_s`,
and what is unanswered then is told so (503, UNAVAILABLE); then models are unloaded. All of it ends within a second after `drain_delay_s` and
`drain_timeout_s`, whatever a model does, and at once with a second signal: `exit_bound`. A signal while models load ends the process at once.

SIGHUP has certificates and tokens read again (`file_watch`). Where the server was started from a terminal that is gone, the signal is that terminal's
end, and stops it.

Ready means that REST and gRPC listen: gRPC's port opens first, since probes look at REST's, and both say "not ready" until the second is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..bounds import ModelBounds
from ..dataplane.access.access_tokens import Tokens
from ..dataplane.access.repository_access import RepositoryAccess
from ..dataplane.hang_watch import HangWatch
from ..dataplane.plane import Plane
from ..dataplane.registry import Registry
from ..dataplane.telemetry.events import Events
from ..dataplane.telemetry.metrics import Metrics
from ..errors import ConfigError, NotReady, SerinusError
from ..model import Model
from ..settings import ModelSettings, ServerSettings
from ..tracing.tracer import Tracer, start_tracing
from .certificates import Certificates
from .connections.idle_room import IdleRoom
from .connections.unsent_answers import UnsentAnswers
from .exit_bound import CLOSING_S, ExitBound, ExitStatus
from .file_watch import FileWatch, has_terminal
from .grpc import start_grpc
from .grpc.grpc_server import GrpcServer
from .loop_watchdog import LoopWatchdog
from .memory_guard import MemoryGuard, default_limit
from .memory_readings import container_limit, read_memory
from .port_checks import check_ports
from .request_access import RequestAccess
from .rest.custom import CustomAnswer, CustomRequest, CustomRoute
from .rest.rest_server import RestServer, start_rest
from .termination_message import write_reason
from .workers.worker_channel import Channel
from .workers.worker_end import WorkerEnd, end_with_parent

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
    request_access: RequestAccess | None = None
    """Which requests need a token; None: none does."""
    http_socket: socket.socket | None = None
    """Bound already, by the supervisor of several workers."""
    grpc_port: int | None = None
    """Bound already with SO_REUSEPORT, likewise."""
    control: socket.socket | None = None
    started: float = field(default_factory=time.monotonic)


_SWITCH_S = 0.0005
"""How long the event loop waits for the interpreter's lock while a model computes in Python in a thread: at each socket that it reads, and CPython's 5 ms
would be a refusal's whole time. So 2000 switches a second at the most, some 10 us each."""
_FLUSH_S = 0.3
"""For answers that are given to reach their clients, after the drain."""
_CONTROL = {
    "off": "off",
    "loopback": "on, for this machine alone",
    "token": "on, with a token",
    "open": "OPEN to whoever reaches these ports",
}
"""What the line at start says of loading and unloading by request."""


class _Stop:
    """The wish to end this process, whoever has it: a signal, the supervisor, or the server itself. May be told from any thread."""

    def __init__(self) -> None:
        self.asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def ask(self) -> None:
        """Have the server stop."""
        self.asked = True
        if self._loop is not None and self._event is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
                self._loop.call_soon_threadsafe(self._event.set)

    def event(self) -> asyncio.Event:
        """Give what the running loop waits for."""
        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
        if self.asked:
            self._event.set()
        return self._event


async def _serve(
    launch: Launch,
    announce: Callable[[int, int | None], None] | None,
    wish: _Stop,
    bound: ExitBound,
    watch: FileWatch,
) -> int:
    bound.listen()  # the loop has signals written elsewhere when it starts
    stop = wish.event()
    settings = launch.server
    if launch.http_socket is None:
        check_ports(settings)

    plane = _make_plane(launch)
    tracer = start_tracing(os.environ, service=os.environ.get("INFERENCE_SERVICE_NAME") or "serinus")
    certificates = Certificates.of(settings)
    if certificates is not None:
        plane.metrics.add_source(certificates.families)
    _watch_keys(watch, certificates, launch)
    worker: WorkerEnd | None = None
    listener: asyncio.Task[None] | None = None
    if launch.control is not None:
        end_with_parent()
        channel = await Channel.open(launch.control)
        broken = {**dict.fromkeys(launch.spared, "it did not load when the server started"), **launch.broken}
        worker = WorkerEnd(channel, plane, bound.begin, models=launch.models, broken=broken)
        listener = asyncio.ensure_future(worker.listen())
        plane.workers_statistics = worker.statistics

    loading = asyncio.ensure_future(_load(launch, plane, worker))
    await _first(loading, stop.wait())
    if not loading.done():
        loading.cancel()
        return ExitStatus.CLEAN
    loading.result()

    if worker is not None:
        worker.say_ready()
        await _first(asyncio.ensure_future(worker.go.wait()), stop.wait())
        if stop.is_set():
            await plane.close()
            return ExitStatus.CLEAN

    servers = await _open(launch, plane, worker, certificates, tracer)
    rest, grpc = servers.rest, servers.grpc
    grpc_port = grpc.port if grpc is not None else None
    if worker is not None:
        worker.send(type="listening", http_port=rest.port, grpc_port=grpc_port)
    # What start-up made stays for good: take it out of every later collection, whose pauses would show in p99.
    gc.collect()
    gc.freeze()
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    _log.info(
        "ready in %.2f s: REST on %s:%d%s%s%s; repository control: %s%s%s",
        time.monotonic() - launch.started,
        host,
        rest.port,
        f", gRPC on {host}:{grpc_port} ({grpc.engine})" if grpc is not None else "",
        f", metrics on {host}:{rest.metrics_port}" if rest.metrics_port is not None else "",
        f", health on {host}:{rest.health_port}" if rest.health_port is not None else "",
        _CONTROL[launch.access.mode],
        _told_of_tls(certificates),
        _told_of_tokens(launch.request_access),
    )
    if announce is not None:
        announce(rest.port, grpc_port)

    events = plane.metrics.events
    watchdog = LoopWatchdog(stand_in=rest.stand_in(), on_look=rest.arrivals.note, on_held=partial(_count_held, events))
    plane.metrics.add_source(watchdog.families)
    plane.metrics.add_source(rest.arrivals.families)
    hangs = asyncio.ensure_future(HangWatch(plane.registry.in_use, plane.registry.clock, events).run())
    guard = _guard_memory(settings, bound.begin, worker)
    plane.metrics.add_source(guard.families)
    memory = asyncio.ensure_future(guard.run())
    await stop.wait()
    watchdog.close()
    watch.close()
    hangs.cancel()
    memory.cancel()
    status = await _drain(plane, settings, servers)
    if guard.reason and worker is None:
        write_reason(guard.reason, settings.termination_message_path)
        status = ExitStatus.MEMORY
    bound.settle(status)
    await plane.close()
    if tracer is not None:
        await asyncio.to_thread(tracer.close)
    if listener is not None:
        listener.cancel()
    _log.info("stopped")
    return status


def _count_held(events: Events, seconds: float) -> None:
    events.count("serinus_loop_held_total")
    events.count("serinus_loop_held_seconds_total", amount=seconds)


def _guard_memory(settings: ServerSettings, stop: Callable[[], None], worker: WorkerEnd | None) -> MemoryGuard:
    limit = settings.memory_limit_bytes
    if limit is None:
        limit = default_limit(container_limit())

    def passed(reason: str) -> None:
        if worker is None:
            stop()
        else:
            worker.send(type="memory", reason=reason)

    return MemoryGuard(
        limit // settings.workers,
        gpu_limit_bytes=settings.gpu_memory_limit_bytes,
        read=partial(read_memory, os.getpid()),
        clock=time.monotonic,
        on_passed=passed,
    )


def _make_plane(launch: Launch) -> Plane:
    settings = launch.server
    metrics = Metrics(settings.revision)
    registry = Registry(
        launch.factory,
        discover=launch.discover,
        index=launch.index,
        metrics=metrics,
        bounds=ModelBounds(
            instances=settings.max_instances, tensor_bytes=settings.limits.tensor_bytes, rank=settings.limits.rank
        ),
        expose_behind=settings.expose_predictor,
    )
    return Plane(
        registry,
        metrics=metrics,
        limits=settings.limits,
        ready_when_empty=launch.index is not None or not launch.models,
        strict_readiness=launch.strict_readiness,
        access=launch.access,
        not_finite=settings.json_not_finite,
    )


async def _load(launch: Launch, plane: Plane, worker: WorkerEnd | None) -> None:
    """Load what the command line names, or what the other workers have."""
    present = await worker.present() if worker is not None else None
    if worker is None or present is None:
        await plane.start(launch.models, spared=launch.spared, broken=launch.broken)
    else:
        for problem in await worker.restore(present):
            _log.error("%s", problem)


@dataclass(frozen=True, slots=True)
class _Servers:
    rest: RestServer
    grpc: GrpcServer | None

    def each(self) -> list[RestServer | GrpcServer]:
        return [server for server in (self.rest, self.grpc) if server is not None]


async def _open(
    launch: Launch,
    plane: Plane,
    worker: WorkerEnd | None,
    certificates: Certificates | None,
    tracer: Tracer | None,
) -> _Servers:
    """Open the ports; not ready until all of them are."""
    settings = launch.server
    plane.listening = False
    repository = worker.apply if worker is not None else None
    unsent = UnsentAnswers(settings.max_unsent_bytes, patience_s=settings.send_timeout_s)
    plane.metrics.add_source(unsent.families)
    room = IdleRoom()
    grpc = None
    if settings.enable_grpc:
        port = settings.grpc_port if launch.grpc_port is None else launch.grpc_port
        grpc = await start_grpc(
            plane,
            settings,
            metrics=plane.metrics,
            port=port,
            repository=repository,
            request_access=launch.request_access,
            certificates=certificates,
            tracer=tracer,
            unsent=unsent,
            room=room,
        )
    try:
        rest = await start_rest(
            plane,
            settings,
            metrics=plane.metrics,
            sock=launch.http_socket,
            metrics_page=worker.metrics_page if worker is not None else None,
            repository=repository,
            extra_routes=_routes(plane),
            tracer=tracer,
            request_access=launch.request_access,
            certificates=certificates,
            unsent=unsent,
            room=room,
        )
    except BaseException:
        if grpc is not None:
            await grpc.close()
        raise
    plane.on_load = lambda: rest.add_custom(_routes(plane))
    plane.listening = True
    return _Servers(rest, grpc)


async def _drain(plane: Plane, settings: ServerSettings, servers: _Servers) -> ExitStatus:
    """Have the requests in flight answered, or refused when their time is over, and close the ports."""
    _log.info("stopping: draining for at most %.3g s", settings.drain_timeout_s)
    plane.stop_ready()
    if settings.drain_delay_s:
        await asyncio.sleep(settings.drain_delay_s)
    left = 0

    def give_up() -> None:
        nonlocal left
        left = plane.abandon()
        if left:
            _log.error("%d requests were not answered in %.3g s, and are refused", left, settings.drain_timeout_s)

    timer = asyncio.get_running_loop().call_later(settings.drain_timeout_s, give_up)
    if servers.grpc is not None:
        await servers.grpc.take_waiting()
    await servers.rest.take_waiting()  # last: nothing may come between it and the end of accepting
    for server in servers.each():
        server.stop_accepting()
    await asyncio.gather(*(server.drain(settings.drain_timeout_s + _FLUSH_S) for server in servers.each()))
    await plane.drain(_FLUSH_S)
    timer.cancel()
    await asyncio.gather(*(server.close() for server in servers.each()))
    return ExitStatus.CUT if left else ExitStatus.CLEAN


def _watch_keys(watch: FileWatch, certificates: Certificates | None, launch: Launch) -> None:
    """Have certificates and tokens read again when their files change."""
    if certificates is not None:
        watch.add("TLS certificate", certificates.files, certificates.reload)
    asked = () if launch.request_access is None else (launch.request_access.tokens,)
    sets: dict[int, Tokens] = {id(tokens): tokens for tokens in (launch.access.tokens, *asked)}
    for tokens in sets.values():
        if tokens.file is not None:
            watch.add(tokens.where, (tokens.file,), tokens.reload)


def _told_of_tls(certificates: Certificates | None) -> str:
    if certificates is None:
        return ""
    return "; TLS, for clients with certificates" if certificates.loaded.client_ca is not None else "; TLS"


def _told_of_tokens(access: RequestAccess | None) -> str:
    return "" if access is None else f"; a token is needed for {', '.join(sorted(access.kinds))}"


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
        The exit status; see `ExitStatus`.
    """
    try:
        import uvloop
    except ImportError:
        runner = asyncio.run
    else:
        runner = uvloop.run
    sys.setswitchinterval(min(_SWITCH_S, sys.getswitchinterval()))
    settings = launch.server
    wish, watch = _Stop(), FileWatch()
    had_terminal = has_terminal()

    def hang_up() -> None:
        if had_terminal and not has_terminal():
            bound.begin()
        else:
            watch.reload_all()

    bound = ExitBound(
        settings.drain_delay_s + settings.drain_timeout_s + CLOSING_S,
        wish.ask,
        insistent=launch.control is None,
        message_path=settings.termination_message_path,
        on_hang_up=hang_up,
    )
    try:
        return runner(_serve(launch, announce, wish, bound, watch))
    except ConfigError as error:
        problems = error.problems
    except SerinusError as error:
        problems = [str(error)]
    finally:
        watch.close()
        bound.close()
    for problem in problems:
        _log.error("%s", problem)
    write_reason("; ".join(problems), settings.termination_message_path)
    return ExitStatus.FAILED
