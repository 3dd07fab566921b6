"""A predictor's statuses as this library's errors: what is the request's fault stays the client's, the rest is ours."""

from __future__ import annotations

from typing import Final

from ..errors import (
    ClientError,
    GrpcStatus,
    InvalidInput,
    NotReady,
    Overloaded,
    SerinusError,
    TimedOut,
    TooLarge,
    UpstreamFailed,
)

__all__ = ["Refused", "error_of_credentials", "error_of_grpc", "error_of_status", "retry_seconds"]

_RETRY_MOST_S: Final = 3600.0
"""Longest wait that a predictor's Retry-After is taken for: nobody waits longer, and 10^400 is no number of seconds."""
_DIGITS: Final = 18
"""Of a number in a header: what has more is beyond 64 bits."""


class Refused(Exception):
    """The predictor answered an error; `retry_after_s` is set only where it had not begun and said when to come back."""

    def __init__(self, error: SerinusError, retry_after_s: float | None, grpc_code: int = GrpcStatus.UNKNOWN) -> None:
        super().__init__(str(error))
        self.grpc_code = grpc_code
        """As it was answered, over gRPC."""
        self.error = error
        self.retry_after_s = retry_after_s


def retry_seconds(text: str, unit_s: float = 1.0) -> float | None:
    """Read a whole number of units, at most an hour; None where it is none."""
    if not (text.isascii() and text.isdecimal()):
        return None
    return min(float(text[:_DIGITS]) * unit_s, _RETRY_MOST_S) if len(text) <= _DIGITS else _RETRY_MOST_S


def error_of_credentials(http_status: int, message: str) -> SerinusError:
    """Pass a 401 or 403 on: the credentials that the predictor refused are the client's, whose `authorization` went along."""
    grpc_status = GrpcStatus.UNAUTHENTICATED if http_status == 401 else GrpcStatus.PERMISSION_DENIED
    return ClientError(message).with_status(http_status, grpc_status)


def error_of_status(status: int, message: str, retry_after_s: float | None = None) -> SerinusError:
    """Read an HTTP status.

    404 and 405 are ours: the client named this service rightly, and we sent its request to a model that is not there.
    """
    if status in (400, 415, 422):
        return InvalidInput(message)
    if status == 413:
        return TooLarge(message)
    if status == 429:
        return Overloaded(message, retry_after_s or 1.0)
    if status == 503:
        return NotReady(message, retry_after_s)
    if status == 504:
        return TimedOut(message)
    return UpstreamFailed(message)


def error_of_grpc(code: int, message: str, retry_after_s: float | None = None) -> SerinusError:
    """Read a gRPC status likewise; UNAVAILABLE is what 503 is over REST (gRPC, http-grpc-status-mapping.md)."""
    if code in (GrpcStatus.INVALID_ARGUMENT, GrpcStatus.OUT_OF_RANGE):
        return InvalidInput(message)
    if code == GrpcStatus.RESOURCE_EXHAUSTED:
        return Overloaded(message, retry_after_s or 1.0)
    if code == GrpcStatus.UNAVAILABLE:
        return NotReady(message, retry_after_s)
    if code == GrpcStatus.DEADLINE_EXCEEDED:
        return TimedOut(message)
    return UpstreamFailed(message)
