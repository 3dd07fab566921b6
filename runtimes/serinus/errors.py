"""Every error that serinus raises, and the status that each transport answers with.

::

    SerinusError
    ├── ClientError               400  INVALID_ARGUMENT      the request is wrong; repeating it cannot help
    │   ├── InvalidInput          400  INVALID_ARGUMENT      a tensor, parameter or body that does not decode or fit
    │   ├── Unauthenticated       401  UNAUTHENTICATED       no credentials, or wrong ones, where the server asks for some
    │   ├── Forbidden             403  PERMISSION_DENIED     the server is set up not to do this, whoever asks
    │   ├── NotFound              404  NOT_FOUND             no such model, version or path
    │   ├── MethodNotAllowed      405  UNIMPLEMENTED         the path exists, the HTTP method does not
    │   ├── RequestTimedOut       408  DEADLINE_EXCEEDED     the client took too long to send its request
    │   ├── Conflict              409  FAILED_PRECONDITION   the model's state does not allow it (load while loading)
    │   ├── TooLarge              413  RESOURCE_EXHAUSTED    more bytes or tensors than a limit allows
    │   ├── UnsupportedMedia      415  INVALID_ARGUMENT      a content type or encoding that is not offered
    │   └── Cancelled             499  CANCELLED             the client went away
    ├── ServerError               500  INTERNAL              our fault
    │   ├── ModelFailed           500  INTERNAL              the model raised, or answered what it must not
    │   ├── NotSupported          501  UNIMPLEMENTED         a part of the protocol that this model does not offer
    │   ├── UpstreamFailed        502  UNAVAILABLE           the predictor behind a transformer could not be reached
    │   ├── NotReady              503  UNAVAILABLE           loading, warming up, draining or unloaded
    │   ├── Overloaded            429  RESOURCE_EXHAUSTED    the queue is full; `retry_after_s` says when to come back
    │   └── TimedOut              504  DEADLINE_EXCEEDED     the request's deadline passed here
    └── ConfigError               (start-up)                 settings or manifests; carries all problems at once
        └── UntrustedModel        (start-up, load)           a model's signature is missing or does not fit its files

A message names the thing, what came, what was expected and, where it is not obvious, how to mend it:
``input 'x': shape [2, 3] holds 6 values, data has 5``. No message names a Python class or a file of the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "Cancelled",
    "ClientError",
    "ConfigError",
    "Conflict",
    "Forbidden",
    "GrpcStatus",
    "InvalidInput",
    "MethodNotAllowed",
    "ModelFailed",
    "NotFound",
    "NotReady",
    "NotSupported",
    "Overloaded",
    "RequestTimedOut",
    "SerinusError",
    "ServerError",
    "TimedOut",
    "TooLarge",
    "Unauthenticated",
    "UnsupportedMedia",
    "UntrustedModel",
    "UpstreamFailed",
]


class GrpcStatus:
    """gRPC status codes by number, so that this module needs no gRPC package (gRPC, statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class SerinusError(Exception):
    """The root. `str(error)` is the message that the client reads; keep it free of internals."""

    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[int] = GrpcStatus.INTERNAL
    reason: ClassVar[str] = "other"
    """Label of the failure in metrics: rejected, cancelled, invalid, timeout, failed or other."""
    request_id: str = ""
    """Of the request that ended with it, where the log has a line of it; the client is told it too."""

    def with_status(self, http_status: int, grpc_status: int | None = None) -> SerinusError:
        """Give this one error, not its class, the statuses that somebody else chose; returns it."""
        self.http_status = http_status  # type: ignore[misc]
        if grpc_status is not None:
            self.grpc_status = grpc_status  # type: ignore[misc]
        return self


class ClientError(SerinusError):
    """The request is at fault."""

    http_status = 400
    grpc_status = GrpcStatus.INVALID_ARGUMENT
    reason = "invalid"


class InvalidInput(ClientError):
    """A body, tensor or parameter that does not decode, or does not fit the model."""


class Unauthenticated(ClientError):
    """The request has no credentials, or wrong ones (RFC 9110, 15.5.2); the answer carries WWW-Authenticate.

    Args:
        message: what the client reads.
        realm: what the credentials are for.
        invalid: some came, and they are not good (RFC 6750, 3.1).
    """

    http_status = 401
    grpc_status = GrpcStatus.UNAUTHENTICATED

    def __init__(self, message: str, *, realm: str = "serinus", invalid: bool = False) -> None:
        super().__init__(message)
        self.challenge = f'Bearer realm="{realm}"' + (', error="invalid_token"' if invalid else "")
        """Value of WWW-Authenticate."""


class Forbidden(ClientError):
    """What was asked for is switched off, or may not be asked for from where the request comes (RFC 9110, 15.5.4)."""

    http_status = 403
    grpc_status = GrpcStatus.PERMISSION_DENIED


class NotFound(ClientError):
    """No such model, version or path."""

    http_status = 404
    grpc_status = GrpcStatus.NOT_FOUND


class MethodNotAllowed(ClientError):
    """The path exists, but not for this HTTP method; `allow` fills the Allow header (RFC 9110, 15.5.6)."""

    http_status = 405
    grpc_status = GrpcStatus.UNIMPLEMENTED

    def __init__(self, message: str, allow: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.allow = tuple(allow)


class RequestTimedOut(ClientError):
    """The client did not finish sending its request in time (RFC 9110, 15.5.9)."""

    http_status = 408
    grpc_status = GrpcStatus.DEADLINE_EXCEEDED
    reason = "timeout"


class Conflict(ClientError):
    """The state of the model does not allow the operation now."""

    http_status = 409
    grpc_status = GrpcStatus.FAILED_PRECONDITION


class TooLarge(ClientError):
    """More than a limit allows of bytes in a body or tensor, or of tensors: what a smaller request would mend (RFC 9110, 15.5.14).

    Nesting, dimensions and names beyond theirs are `InvalidInput`: no batch is too large, and waiting does not help.
    """

    http_status = 413
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED


class UnsupportedMedia(ClientError):
    """A content type, content encoding or charset that is not offered."""

    http_status = 415


class Cancelled(ClientError):
    """The client went away before the answer was there (499 is nginx's code for it; it never reaches the client)."""

    http_status = 499
    grpc_status = GrpcStatus.CANCELLED
    reason = "cancelled"


class ServerError(SerinusError):
    """The server is at fault."""


class ModelFailed(ServerError):
    """The model raised an unexpected exception, or returned what it must not."""

    reason = "failed"


class NotSupported(ServerError):
    """A part of the protocol that this model does not offer (`:explain` on a model that explains nothing)."""

    http_status = 501
    grpc_status = GrpcStatus.UNIMPLEMENTED


class UpstreamFailed(ServerError):
    """The predictor behind a transformer could not be reached, or answered nonsense."""

    http_status = 502
    grpc_status = GrpcStatus.UNAVAILABLE
    reason = "failed"


class NotReady(ServerError):
    """The model or server is loading, warming up, draining or unloaded; `retry_after_s` where somebody said when to come back."""

    http_status = 503
    grpc_status = GrpcStatus.UNAVAILABLE
    reason = "rejected"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(ServerError):
    """The queue is full. `retry_after_s` (seconds, at least 1 on the wire) fills the Retry-After header."""

    http_status = 429
    grpc_status = GrpcStatus.RESOURCE_EXHAUSTED
    reason = "rejected"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TimedOut(ServerError):
    """The deadline of the request passed before the answer was there."""

    http_status = 504
    grpc_status = GrpcStatus.DEADLINE_EXCEEDED
    reason = "timeout"


class ConfigError(SerinusError):
    """Settings, flags, a model directory or a manifest are wrong; `problems` holds all of them, one sentence each."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class UntrustedModel(ConfigError):
    """A model's signature is missing, or does not fit its files; see `--verify_models`."""
