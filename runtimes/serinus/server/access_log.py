"""The access log: one record a request, whichever transport brought it, written when its answer is complete."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final, Literal

from ..dataplane.plane import Plane
from ..errors import SerinusError

__all__ = ["REVISION_FIELD", "AccessRecord", "ModelServed", "served_model", "write_access"]

_log = logging.getLogger("serinus.access")

REVISION_FIELD: Final = "X-Serinus-Revision"
"""Of HTTP's answers, and in lower case of gRPC's metadata: which deployment answered. The local gateway's name for it too. The model's
name and version are in the body."""


@dataclass(frozen=True, slots=True)
class ModelServed:
    """Who answered: the server's revision, and of a request for a model also that model."""

    revision: str = ""
    """Empty: the server was told none."""
    model: str = ""
    version: str = ""
    """Of the model that is loaded under the name; empty: it is not versioned."""
    digest: str = ""
    """Of what the model's signature signs; empty: none was asked for."""

    def __str__(self) -> str:
        told = {"model": self.model, "version": self.version, "revision": self.revision, "digest": self.digest}
        return "".join(f" {name} {value}" for name, value in told.items() if value)


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
    served: ModelServed = ModelServed()  # frozen


def served_model(plane: Plane, revision: str, model: str = "", version: str = "") -> ModelServed:
    """Tell who answers a request for a model; a name that is not known is left out, being the client's own words."""
    try:
        servable = plane.registry.current(model, version)
    except SerinusError:
        return ModelServed(revision)
    if servable is None:
        return ModelServed(revision, model, version)
    return ModelServed(revision, model, servable.version, servable.model.settings.digest)


def write_access(record: AccessRecord) -> None:
    """Write a record as the log's line: transport, request, status, bytes, milliseconds; model, version, revision and digest where known."""
    _log.info(
        "%s %s status %d %d bytes %.3f ms%s",
        record.transport,
        record.request,
        record.status,
        record.response_bytes,
        record.seconds * 1e3,
        record.served,
    )
