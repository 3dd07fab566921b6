"""The paths of MLflow's scoring server, which MLServer's runtime has too: /invocations, /ping, /health, /version."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from serinus.errors import SerinusError

__all__ = ["Answered", "routes"]

Answered = tuple[int, str, bytes]
"""Status, content type, body."""

_CODES = {
    400: "BAD_REQUEST",
    404: "RESOURCE_DOES_NOT_EXIST",
    429: "REQUEST_LIMIT_EXCEEDED",
    503: "TEMPORARILY_UNAVAILABLE",
}
"""MLflow's words for statuses (databricks.proto); all others of the client's are BAD_REQUEST, of ours INTERNAL_ERROR."""


def routes(invoke: Callable[[bytes, str], Awaitable[Answered]], saved_by: str) -> list[tuple[str, str, Any]]:
    """Make the routes of a model.

    Args:
        invoke: answers a body of a content type.
        saved_by: version of the MLflow that saved the model, told where none is installed.
    """

    async def invocations(request: Any) -> tuple[int, Mapping[str, str], bytes]:
        try:
            status, content_type, body = await invoke(request.body, request.headers.get("content-type", ""))
        except SerinusError as error:
            code = _CODES.get(error.http_status, "BAD_REQUEST" if error.http_status < 500 else "INTERNAL_ERROR")
            text = json.dumps({"error_code": code, "message": str(error)})
            return error.http_status, {"content-type": "application/json"}, text.encode()
        return status, {"content-type": content_type}, body

    async def ping(_: Any) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {"content-type": "application/json"}, b"\n"

    async def version(_: Any) -> tuple[int, Mapping[str, str], bytes]:
        return 200, {"content-type": "application/json"}, (installed_version() or saved_by).encode()

    return [
        ("POST", "/invocations", invocations),
        ("GET", "/ping", ping),
        ("GET", "/health", ping),
        ("GET", "/version", version),
    ]


def installed_version() -> str:
    """Version of the installed MLflow, found without importing it; empty: none is."""
    for name in ("mlflow", "mlflow-skinny"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""
