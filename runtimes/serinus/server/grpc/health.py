"""`grpc.health.v1`: what Kubernetes' gRPC probes, grpc_health_probe and client-side load balancers ask.

Service names: "" and "inference.GRPCInferenceService" and "readiness": the server takes requests; "liveness": the process works;
anything else is a model's name, or name/version. Nothing is registered: each answer is asked of the plane when the
question comes, so it cannot be stale.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Protocol

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from ...errors import InvalidInput, NotFound
from .calls_in_flight import check_small

__all__ = ["Health"]

_SERVER_NAMES: Final = frozenset({"", "inference.GRPCInferenceService", "readiness"})
_POLL_S = 0.25
"""How soon a watcher learns of a change. The plane announces none, and a look costs a microsecond."""

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


_Seen = tuple[str, health_pb2.HealthCheckResponse.ServingStatus]


class Watched(Protocol):
    """What is asked: the calls of `inference.GRPCInferenceService`, which refuse while they drain."""

    def server_ready(self) -> bool:
        """Whether new requests would be taken."""
        ...

    def server_live(self) -> bool:
        """Whether the process works at all."""
        ...

    def model_ready(self, name: str, version: str = "") -> bool:
        """Whether this model would take a request now.

        Raises:
            NotFound: no such model or version.
        """
        ...


class Health:
    """Answers Check and Watch for one service."""

    def __init__(self, service: Watched) -> None:
        self._service = service
        self._watched: dict[_Seen, list[asyncio.Future[None]]] = {}
        """Whoever waits for another status of a name than the one that it was told last."""
        self._looking: asyncio.Task[None] | None = None

    async def check(self, message: bytes) -> bytes:
        """Answer a HealthCheckRequest.

        Raises:
            NotFound: no service or model of that name (health.proto: "the call will fail with status NOT_FOUND").
        """
        return health_pb2.HealthCheckResponse(status=self._status(_name(message))).SerializeToString()

    async def watch(self, message: bytes) -> AsyncIterator[bytes]:
        """Yield the status now and then each time it changes; an unknown name is watched too, as SERVICE_UNKNOWN (health.proto)."""
        check_small(message, "HealthCheckRequest")
        name, last = _name(message), None
        while True:
            status = self._status_or_unknown(name)
            if status != last:
                last = status
                yield health_pb2.HealthCheckResponse(status=status).SerializeToString()
            await self._next(name, last)

    async def _next(self, name: str, last: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        """Wait until a name's status may be another; one task looks for all who wait."""
        waiting = self._watched.setdefault((name, last), [])
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
        try:
            await turn
        finally:
            if turn in waiting:
                waiting.remove(turn)
                if not waiting and self._watched.get((name, last)) is waiting:
                    del self._watched[name, last]

    async def _look(self) -> None:
        """Look at every name that is watched, and wake whom a change concerns; ends with the last of them."""
        while self._watched:
            await asyncio.sleep(_POLL_S)
            for name, last in list(self._watched):
                try:
                    if self._status_or_unknown(name) == last:
                        continue
                    error = None
                except Exception as unforeseen:  # noqa: BLE001 # theirs who watch this name; the others are looked at all the same
                    error = unforeseen
                for turn in self._watched.pop((name, last)):
                    if turn.done():
                        continue
                    if error is None:
                        turn.set_result(None)
                    else:
                        turn.set_exception(error)
        self._looking = None

    def _status_or_unknown(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        try:
            return self._status(name)
        except NotFound:
            return _SERVICE_UNKNOWN

    def _status(self, name: str) -> health_pb2.HealthCheckResponse.ServingStatus:
        if name in _SERVER_NAMES:
            ready = self._service.server_ready()
        elif name == "liveness":
            ready = self._service.server_live()
        else:
            model, _, version = name.partition("/")
            ready = self._service.model_ready(model, version)
        return _SERVING if ready else _NOT_SERVING


def _name(message: bytes) -> str:
    try:
        return health_pb2.HealthCheckRequest.FromString(message).service
    except DecodeError:
        raise InvalidInput("the message is not a grpc.health.v1.HealthCheckRequest") from None
