"""The access log: one record a request, whichever transport brought it, written when its answer is complete."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

__all__ = ["AccessRecord", "write_access"]

_log = logging.getLogger("serinus.access")


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """One answered request."""

    transport: Literal["rest", "grpc"]
    request: str
    """HTTP's method and target, or gRPC's path."""
    status: int
    """HTTP's, or gRPC's."""
    response_bytes: int
    """Of all pieces together."""
    seconds: float


def write_access(record: AccessRecord) -> None:
    """Write a record as the log's line: transport, request, status, bytes, milliseconds."""
    _log.info(
        "%s %s status %d %d bytes %.3f ms",
        record.transport,
        record.request,
        record.status,
        record.response_bytes,
        record.seconds * 1e3,
    )
