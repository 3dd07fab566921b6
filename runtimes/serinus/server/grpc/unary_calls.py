"""The calls of `inference.GRPCInferenceService` with one request and one response, but for inference."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.message import DecodeError

from ...dataplane.plane import Plane
from ...errors import InvalidInput, NotSupported
from ...protocol import _open_inference_pb2 as pb
from ...protocol.proto_codec import (
    config_message,
    decode_repository_parameters,
    index_message,
    metadata_message,
    statistics_message,
)
from ..refusals import GRPC_METHODS, NOT_OFFERED
from .health import Watched

__all__ = ["SERVICE", "UnaryCalls"]

SERVICE = "inference.GRPCInferenceService"

UnaryCall = Callable[[bytes], Awaitable[bytes]]


class UnaryCalls:
    """What the protocol asks of a server and its models.

    Args:
        plane: the data plane.
        readiness: whether requests would be taken now.
        repository: where several workers share the port: applies "load" or "unload" to all of them; None: to this plane.
        mlservers_metadata: a model's metadata has the form that MLServer's clients read.
    """

    def __init__(
        self,
        plane: Plane,
        readiness: Watched,
        repository: Callable[[str, str, dict[str, Any]], Awaitable[None]] | None,
        *,
        mlservers_metadata: bool,
    ) -> None:
        self._plane, self._readiness, self._repository = plane, readiness, repository
        self._mlservers_metadata = mlservers_metadata

    def by_path(self) -> dict[str, UnaryCall]:
        """Give each call's method by its path; those of Triton's that are not offered say why."""
        methods: dict[str, UnaryCall] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "RepositoryIndex": self._repository_index,
            "RepositoryModelLoad": self._repository_load,
            "RepositoryModelUnload": self._repository_unload,
            **{name: _refusing(NOT_OFFERED[why]) for name, why in GRPC_METHODS.items()},
        }
        return {f"/{SERVICE}/{name}": method for name, method in methods.items()}

    async def _server_live(self, message: bytes) -> bytes:
        _parse(pb.ServerLiveRequest, message)
        return pb.ServerLiveResponse(live=self._readiness.server_live()).SerializeToString()

    async def _server_ready(self, message: bytes) -> bytes:
        _parse(pb.ServerReadyRequest, message)
        return pb.ServerReadyResponse(ready=self._readiness.server_ready()).SerializeToString()

    async def _model_ready(self, message: bytes) -> bytes:
        request = _parse(pb.ModelReadyRequest, message)
        ready = self._readiness.model_ready(request.name, request.version)
        return pb.ModelReadyResponse(ready=ready).SerializeToString()

    async def _server_metadata(self, message: bytes) -> bytes:
        _parse(pb.ServerMetadataRequest, message)
        return metadata_message(self._plane.server_metadata()).SerializeToString()

    async def _model_metadata(self, message: bytes) -> bytes:
        request = _parse(pb.ModelMetadataRequest, message)
        metadata = self._plane.model_metadata(request.name, request.version)
        return metadata_message(metadata, mlservers=self._mlservers_metadata).SerializeToString()

    async def _model_config(self, message: bytes) -> bytes:
        request = _parse(pb.ModelConfigRequest, message)
        return config_message(self._plane.model_config(request.name, request.version)).SerializeToString()

    async def _model_statistics(self, message: bytes) -> bytes:
        request = _parse(pb.ModelStatisticsRequest, message)
        statistics = await self._plane.statistics_of_all(request.name, request.version)
        return statistics_message(statistics).SerializeToString()

    async def _repository_index(self, message: bytes) -> bytes:
        request = _parse(pb.RepositoryIndexRequest, message)
        return index_message(self._plane.repository_index(ready_only=request.ready)).SerializeToString()

    async def _repository_load(self, message: bytes) -> bytes:
        name, parameters = decode_repository_parameters(_parse(pb.RepositoryModelLoadRequest, message))
        await self._apply("load", name, parameters)
        return pb.RepositoryModelLoadResponse(model_name=name, isLoaded=True).SerializeToString()

    async def _repository_unload(self, message: bytes) -> bytes:
        name, parameters = decode_repository_parameters(_parse(pb.RepositoryModelUnloadRequest, message))
        await self._apply("unload", name, parameters)
        return pb.RepositoryModelUnloadResponse(model_name=name, isUnloaded=True).SerializeToString()

    async def _apply(self, action: str, name: str, parameters: dict[str, Any]) -> None:
        if self._repository is not None:
            await self._repository(action, name, parameters)
        elif action == "load":
            await self._plane.load(name, parameters)
        else:
            await self._plane.unload(name, parameters)


def _refusing(why: str) -> Callable[[bytes], Awaitable[bytes]]:
    async def method(message: bytes) -> bytes:  # noqa: ARG001 # whatever it is
        raise NotSupported(why)

    return method


def _parse(kind: Any, message: bytes) -> Any:
    try:
        return kind.FromString(message)
    except DecodeError:
        raise InvalidInput(
            f"the message is not a {kind.DESCRIPTOR.full_name}: {len(message)} bytes do not decode"
        ) from None
