"""An error as both transports answer it: one object, made in one place, rendered by each in its own way."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ..dataplane.telemetry.request_records import error_ids, record_of
from ..errors import GrpcStatus, MethodNotAllowed, ModelFailed, NotReady, Overloaded, SerinusError, Unauthenticated
from ..protocol.types import NO_PARAMETERS

__all__ = ["GRPC_METHODS", "NOT_OFFERED", "REST_PATHS", "Refusal", "refuse"]

_NOT_READY_S = 1
"""When to come back to what is loading or leaving: soon, since either may be over at once."""

NOT_OFFERED: Final[Mapping[str, str]] = {
    "shared memory": "shared memory is not offered by this server, which reads no other process's memory; send the values in the request, "
    "as binary data where they are many",
    "tracing": "the trace extension is not offered by this server",
    "logging": "the logging extension is not offered by this server; --log_level says how much it writes",
}
"""Extensions of Triton's that are refused as a whole, so that its clients are told why (docs/protocol/README.md)."""

REST_PATHS: Final[Mapping[str, str]] = {
    "/v2/systemsharedmemory": "shared memory",
    "/v2/cudasharedmemory": "shared memory",
    "/v2/trace/": "tracing",
    "/v2/logging": "logging",
}
"""How their paths begin."""

GRPC_METHODS: Final[Mapping[str, str]] = {
    **{
        f"{kind}SharedMemory{verb}": "shared memory"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    },
    "TraceSetting": "tracing",
    "LogSettings": "logging",
}
"""Their methods of GRPCInferenceService (Triton, grpc_service.proto)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a client is told of a request that is not answered."""

    http_status: int
    grpc_status: int
    """A `GrpcStatus`, never OK."""
    message: str
    retry_after_s: int | None = None
    """Whole seconds, rounded up (RFC 9110, 10.2.3), at least 1; None: waiting does not help."""
    allow: tuple[str, ...] = ()
    """HTTP methods that the path has (RFC 9110, 15.5.6)."""
    challenge: str = ""
    """What credentials are wanted: WWW-Authenticate (RFC 9110, 11.6.1); empty: none."""
    ids: Mapping[str, str] = field(default_factory=dict)
    """Of an error of ours: `request_id` and `trace_id` by which the log has more of it, where there are such."""


def refuse(
    error: BaseException, what: Callable[[], str], *, log: logging.Logger, headers: Mapping[str, str] = NO_PARAMETERS
) -> Refusal:
    """Tell of an error; one that nobody foresaw is logged with its traceback, once, and told nothing of.

    Args:
        error: what a request ended with.
        what: names the request, for the log; asked only where that is written to.
        log: whose line it is.
        headers: of the request.
    """
    if not isinstance(error, SerinusError):
        ids = error_ids(headers)
        log.error("%s failed", what(), exc_info=error, extra={"ids": ids})
        error = ModelFailed("the server failed to answer this request; its log has the details")
        error.request_id = ids["request_id"]
    retry_after_s = None
    if isinstance(error, Overloaded | NotReady):
        wanted_s = error.retry_after_s
        retry_after_s = _NOT_READY_S if wanted_s is None else max(1, math.ceil(wanted_s))
    allow = error.allow if isinstance(error, MethodNotAllowed) else ()
    ids = _ids_told(error, headers) if error.http_status >= 500 else {}
    challenge = error.challenge if isinstance(error, Unauthenticated) else ""
    status = error.grpc_status or GrpcStatus.INTERNAL
    return Refusal(error.http_status, status, str(error), retry_after_s, allow, challenge, ids)


def _ids_told(error: SerinusError, headers: Mapping[str, str]) -> dict[str, str]:
    """Give the ids that a client is told of an error of ours: those of the log's line; where it has none of its own, those of log and trace."""
    record = record_of(headers)
    if not error.request_id and record is None:
        return {}
    ids = error_ids(headers)
    if error.request_id:
        ids["request_id"] = error.request_id
    return ids
