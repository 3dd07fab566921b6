"""What is told to a collector: spans as values, and how they are made; the SDK's classes stay in `tracer`.

Names and attributes follow OpenTelemetry's semantic conventions: HTTP spans, RPC spans (gRPC), W3C ids. What has no convention is called
`serinus.*`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from .trace_context import TraceContext

__all__ = ["RPC_CODES", "Attributes", "Span", "http_attributes", "rpc_attributes"]

Attributes = Mapping[str, str | int | float | bool]

RPC_CODES: Final = (
    *(
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
    ),
    *(
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
    ),
    *("DATA_LOSS", "UNAUTHENTICATED"),
)
"""Status codes of gRPC by number (gRPC, statuscodes.md)."""


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work that has ended."""

    name: str
    context: TraceContext
    """Its own."""
    parent: TraceContext | None
    """None: it is the first of its trace."""
    kind: Literal["server", "client", "internal"]
    start_s: float
    """`time.monotonic()`."""
    end_s: float
    attributes: Attributes
    error: str = ""
    """What went wrong, for people; empty: nothing did."""
    links: Sequence[TraceContext] = ()
    """What it was done for as well."""


def http_attributes(
    method: str, status: int, *, is_server: bool, route: str = "", more: Attributes | None = None
) -> dict[str, str | int | float | bool]:
    """Make the attributes of an HTTP span; a server's error is a 5xx, a client's a 4xx too (semantic conventions, HTTP spans, "Status")."""
    attributes: dict[str, str | int | float | bool] = {
        "http.request.method": method,
        "http.response.status_code": status,
        **(more or {}),
    }
    if route:
        attributes["http.route" if is_server else "url.template"] = route
    if status >= (500 if is_server else 400):
        attributes["error.type"] = str(status)
    return attributes


_SERVER_ERRORS: Final = frozenset({2, 4, 12, 13, 14, 15})
"""Codes that are a server span's error (semantic conventions, gRPC)."""


def rpc_attributes(
    method: str, code: int, *, is_server: bool, more: Attributes | None = None
) -> dict[str, str | int | float | bool]:
    """Make the attributes of a gRPC span.

    Args:
        method: `package.Service/Method`.
        code: of gRPC.
        is_server: see `_SERVER_ERRORS`; for a client every code but OK is an error.
        more: to be added.
    """
    name = RPC_CODES[code] if 0 <= code < len(RPC_CODES) else str(code)
    attributes: dict[str, str | int | float | bool] = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": name,
        **(more or {}),
    }
    if (code in _SERVER_ERRORS) if is_server else code:
        attributes["error.type"] = name
    return attributes
