"""Calls of the Open Inference Protocol's gRPC service over one channel; apart, so that who asks over REST imports no gRPC."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import grpc.aio

import grpc

from ..errors import NotFound, TimedOut
from ..protocol import _open_inference_pb2 as pb  # type: ignore[attr-defined] # generated
from .call_options import CallOptions
from .http_client import Unreachable
from .predictor_errors import Refused, error_of_credentials, error_of_grpc, retry_seconds

__all__ = ["GrpcCalls", "Metadata"]

Metadata = tuple[tuple[str, str], ...]

_SERVICE: Final = "inference.GRPCInferenceService"


class GrpcCalls:
    """One channel, made when first needed; it belongs to the event loop of its first call.

    Args:
        host: name or address.
        port: TCP port.
        use_ssl: TLS, with the trust of `options`.
        options: what the caller is.
    """

    def __init__(self, host: str, port: int, use_ssl: bool, options: CallOptions) -> None:
        self._target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._use_ssl = use_ssl
        self._options = options
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Callable[..., Any]] = {}

    async def call(self, method: str, message: bytes, metadata: Metadata, timeout_s: float) -> bytes:
        """Call a method once.

        Args:
            method: `ModelInfer`, `ModelMetadata`, ...
            message: serialized.
            metadata: of the call.
            timeout_s: for everything.

        Returns:
            The serialized answer.

        Raises:
            Unreachable: no connection; nothing was sent.
            Refused: the server answered an error.
            TimedOut: there is no time left.
        """
        if timeout_s <= 0:
            raise TimedOut(f"the deadline passed before {self._options.peer} was asked")
        try:
            return await self._method(method)(message, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise _refusal(error, self._options) from error

    async def is_live(self, metadata: Metadata, timeout_s: float) -> bool:
        """Whether the server lives."""
        data = await self._ask("ServerLive", b"", metadata, timeout_s)
        return data is not None and bool(pb.ServerLiveResponse.FromString(data).live)

    async def is_ready(self, metadata: Metadata, timeout_s: float) -> bool:
        """Whether the server is ready."""
        data = await self._ask("ServerReady", b"", metadata, timeout_s)
        return data is not None and bool(pb.ServerReadyResponse.FromString(data).ready)

    async def is_model_ready(self, name: str, metadata: Metadata, timeout_s: float) -> bool:
        """Whether a model is ready."""
        data = await self._ask("ModelReady", pb.ModelReadyRequest(name=name).SerializeToString(), metadata, timeout_s)
        return data is not None and bool(pb.ModelReadyResponse.FromString(data).ready)

    async def close(self) -> None:
        """Close the channel."""
        if self._channel is not None:
            await self._channel.close()

    async def _ask(self, method: str, message: bytes, metadata: Metadata, timeout_s: float) -> bytes | None:
        try:
            return await self._method(method)(message, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError:
            return None

    def _method(self, method: str) -> Callable[..., Any]:
        call = self._methods.get(method)
        if call is None:
            if self._channel is None:
                self._channel = self._open()
            # No serializers: the codec reads and writes the messages' bytes itself.
            call = self._methods[method] = self._channel.unary_unary(f"/{_SERVICE}/{method}")
        return call

    def _open(self) -> grpc.aio.Channel:
        options: tuple[tuple[str, Any], ...] = (
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # a channel of its own, also to a target that another client has
            ("grpc.keepalive_time_ms", 60_000),
            # gRPC's own pauses grow to two minutes, in which a predictor that is back again gets no request.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        )
        if self._options.host_field:
            options = (*options, ("grpc.default_authority", self._options.host_field))
        if not self._use_ssl:
            return grpc.aio.insecure_channel(self._target, options)
        roots, key, chain = self._options.trust.grpc_files()
        return grpc.aio.secure_channel(self._target, grpc.ssl_channel_credentials(roots, key, chain), options)


def _refusal(error: grpc.aio.AioRpcError, options: CallOptions) -> Exception:
    code = error.code()
    details = error.details() or code.name
    if code == grpc.StatusCode.UNAVAILABLE and "failed to connect" in details:
        return Unreachable(f"no connection to {options.peer}: {details}")
    trailing = dict(error.trailing_metadata() or ())
    pushback_s = retry_seconds(str(trailing.get("grpc-retry-pushback-ms", "")), 0.001)
    after_s = pushback_s if pushback_s is not None else retry_seconds(str(trailing.get("retry-after", "")))
    number = int(code.value[0])
    message = details if code == grpc.StatusCode.INVALID_ARGUMENT else f"{options.peer} answered {code.name}: {details}"
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        refused = error_of_credentials(401 if code == grpc.StatusCode.UNAUTHENTICATED else 403, message)
        return Refused(refused, None, number)
    if code == grpc.StatusCode.NOT_FOUND and options.for_itself:
        return Refused(NotFound(details), None, number)
    retry = code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    return Refused(error_of_grpc(number, message, after_s), after_s if retry else None, number)
