"""What a class written for KServe raises, as this library's errors: the status that each deserves.

KServe answers 500 to most of it and INVALID_ARGUMENT to its own `InferenceError` over gRPC
(`kserve.protocol.grpc.interceptors`); here the client's fault is a 4xx and the server's a 5xx, over both transports
alike.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from kserve.errors import (
    InferenceError,
    ModelMissingError,
    ModelNotFound,
    ModelNotReady,
    NoModelReady,
    ServerNotLive,
    ServerNotReady,
    UnsupportedProtocol,
)
from kserve.errors import InvalidInput as KServeInvalidInput

from ...client.predictor_errors import error_of_grpc, error_of_status
from ...errors import (
    ClientError,
    GrpcStatus,
    InvalidInput,
    ModelFailed,
    NotFound,
    NotReady,
    NotSupported,
    Overloaded,
    SerinusError,
    ServerError,
    TimedOut,
    UpstreamFailed,
)

__all__ = ["translate"]

_GRPC_OF_STATUS = {
    400: GrpcStatus.INVALID_ARGUMENT,
    401: GrpcStatus.UNAUTHENTICATED,
    403: GrpcStatus.PERMISSION_DENIED,
    404: GrpcStatus.NOT_FOUND,
    409: GrpcStatus.ABORTED,
    412: GrpcStatus.FAILED_PRECONDITION,
    429: GrpcStatus.RESOURCE_EXHAUSTED,
    499: GrpcStatus.CANCELLED,
    501: GrpcStatus.UNIMPLEMENTED,
    503: GrpcStatus.UNAVAILABLE,
    504: GrpcStatus.DEADLINE_EXCEEDED,
}


def translate(error: Exception) -> SerinusError | None:
    """Find the error to answer with; None: it is a fault of the class that nothing names, a 500."""
    if isinstance(error, SerinusError):
        return error
    if isinstance(error, KServeInvalidInput):
        return InvalidInput(str(error))
    if isinstance(error, ModelNotFound):
        return NotFound(str(error))
    if isinstance(error, (ModelNotReady, NoModelReady, ServerNotReady, ServerNotLive)):
        return NotReady(str(error))
    if isinstance(error, (NotImplementedError, UnsupportedProtocol)):
        return NotSupported(str(error) or "this model does not offer that")
    if isinstance(error, (InferenceError, ModelMissingError)):
        return ModelFailed(str(error))
    if isinstance(error, TimeoutError):
        return TimedOut(str(error) or "the model gave up waiting")
    return _of_client(error)


def _of_client(error: Exception) -> SerinusError | None:
    """Read the errors of the clients that a class may use of its own; only of those that it has imported."""
    httpx: Any = sys.modules.get("httpx")
    if httpx is not None:
        if isinstance(error, httpx.HTTPStatusError):
            after_s = _seconds(error.response.headers)  # type: ignore[attr-defined] # checked above
            return error_of_status(error.response.status_code, str(error), after_s)  # type: ignore[attr-defined] # likewise
        if isinstance(error, httpx.TimeoutException):
            return TimedOut(f"the predictor did not answer in time: {error}")
        if isinstance(error, httpx.HTTPError):
            return UpstreamFailed(f"the predictor could not be reached: {error}")
    grpc: Any = sys.modules.get("grpc")
    if grpc is not None and isinstance(error, grpc.RpcError) and callable(getattr(error, "code", None)):
        code = error.code()  # type: ignore[attr-defined] # every RpcError that a call raises has it
        details = getattr(error, "details", str)() or code.name
        return error_of_grpc(int(code.value[0]), details)
    starlette: Any = sys.modules.get("starlette.exceptions")
    if starlette is not None and isinstance(error, starlette.HTTPException):
        return _status_error(error.status_code, str(error.detail), error.headers)  # type: ignore[attr-defined] # checked above
    return None


def _status_error(status: int, message: str, headers: Mapping[str, str] | None) -> SerinusError:
    """Keep exactly the status that a class chose itself (`fastapi.HTTPException`), and when it said to come back."""
    if status == 429:
        return Overloaded(message, _seconds(headers or {}) or 1.0)
    if status == 503:
        return NotReady(message, _seconds(headers or {}))
    error: SerinusError = ClientError(message) if 400 <= status < 500 else ServerError(message)
    return error.with_status(
        status, _GRPC_OF_STATUS.get(status, GrpcStatus.INVALID_ARGUMENT if status < 500 else GrpcStatus.INTERNAL)
    )


def _seconds(headers: Mapping[str, str]) -> float | None:
    """Read Retry-After; None where it is not there, or is a date."""
    after = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
    return float(after) if after.isascii() and after.isdecimal() and len(after) < 10 else None
