"""`start_grpc`: the gRPC side of a server process, on the engine that the settings choose."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ...dataplane.plane import Plane
from ...dataplane.telemetry.metrics import Metrics
from ...errors import ConfigError
from ...settings import ServerSettings
from ...tracing.tracer import Tracer
from ..certificates import Certificates
from ..connections.idle_room import IdleRoom
from ..connections.unsent_answers import UnsentAnswers
from ..connections.waiting_connections import accept_waiting
from ..request_access import RequestAccess
from .grpcio_engine import GrpcioEngine, address, credentials_of
from .service import Service

__all__ = ["GrpcServer", "start_grpc"]

_log = logging.getLogger("serinus.grpc")
_TRUSTED = "a client that floods it with frames slows this server's other clients; keep strangers behind a gateway"

_LOOKS, _LOOK_S = 10, 0.01
"""How often the loop looks for calls that an engine's own threads have read: a call takes one look, of a loop that a predict holds too."""


class GrpcServer:
    """A running gRPC server; its life goes on with `stop_accepting`, `drain` and `close`, in this order."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    @property
    def engine(self) -> str:
        """The engine that serves: grpcio or native."""
        return self._engine.name

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        return self._engine.port

    async def take_waiting(self) -> None:
        """Take the calls that were sent before now, before `stop_accepting` refuses what comes."""
        await accept_waiting(self._engine.listeners)
        for _ in range(_LOOKS):
            await asyncio.sleep(_LOOK_S)

    def stop_accepting(self) -> None:
        """Refuse new calls with UNAVAILABLE; calls in flight go on."""
        self._engine.stop_accepting()

    async def drain(self, timeout_s: float) -> None:
        """Wait until the calls in flight have ended, at most so many seconds."""
        await self._engine.drain(timeout_s)

    async def close(self) -> None:
        """End what is left and release the port."""
        await self._engine.close()


async def start_grpc(
    plane: Plane,
    settings: ServerSettings,
    *,
    metrics: Metrics,
    port: int | None = None,
    repository: Callable[[str, str, dict[str, Any]], Awaitable[None]] | None = None,
    tracer: Tracer | None = None,
    request_access: RequestAccess | None = None,
    certificates: Certificates | None = None,
    unsent: UnsentAnswers | None = None,
    room: IdleRoom | None = None,
) -> GrpcServer:
    """Start serving gRPC on the running loop.

    Args:
        plane: the data plane that answers.
        settings: host, port, engine, TLS, limits; with `workers > 1` the port is shared by SO_REUSEPORT.
        metrics: counts the errors that no model's statistics hold; all else the plane observes.
        port: overrides `settings.grpc_port`; 0 picks a free one.
        repository: applies ("load" or "unload", name, parameters) to every worker; None: to this plane.
        tracer: takes the spans of requests; None: they are not traced.
        request_access: which calls need a token; None: none does.
        certificates: for TLS, exchanged with them; None: those of the settings, for good.
        unsent: what waits for slow clients, of REST too; None: an account of its own.
        room: who closes an idle connection where descriptors run out, of REST too; None: the native engine alone; grpcio's accepts by itself.

    Raises:
        ConfigError: the port is taken, a TLS file cannot be read, or the engine asked for is not installed.
    """
    service = Service(
        plane,
        settings,
        metrics=metrics,
        repository=repository,
        request_access=request_access,
        tracer=tracer,
        unsent=unsent,
    )
    port = settings.grpc_port if port is None else port
    certificates = certificates or Certificates.of(settings)
    if choose_engine(settings) == "native":
        from .native_engine import NativeEngine

        native = NativeEngine(service, settings, room)
        try:
            await native.start(settings.host, port, certificates)
        except OSError as error:
            if settings.grpc == "native":
                raise ConfigError(
                    f"--grpc native needs a writable temporary directory (TMPDIR) for its sockets: {error.strerror}"
                ) from None
            _log.warning("gRPC engine: grpcio, since native has no temporary directory that serves: %s", error.strerror)
        else:
            return GrpcServer(native)
    engine = GrpcioEngine(service, settings)
    await engine.start(address(settings.host, port), credentials=credentials_of(certificates))
    return GrpcServer(engine)


def choose_engine(settings: ServerSettings) -> str:
    """Settle which engine serves, and log why.

    Raises:
        ConfigError: native was asked for and cannot serve.
    """
    installed = importlib.util.find_spec("pygrpc_native") is not None
    if settings.grpc == "native":
        if not installed:
            raise ConfigError(
                "--grpc native: the package pygrpc-native is not installed; pip install 'serinus[grpc-native]'"
            )
        return "native"
    if settings.grpc == "grpcio" or not installed:
        reason = "asked for" if installed else "pygrpc-native is not installed"
        _log.info("gRPC engine: grpcio (%s); for trusted networks: %s", reason, _TRUSTED)
        return "grpcio"
    _log.info("gRPC engine: native")
    return "native"
