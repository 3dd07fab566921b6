"""The access log and the log of slow requests: one record a request, whichever transport brought it, written when its answer is complete."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from ..dataplane.plane import Plane
from ..dataplane.telemetry.request_records import REQUEST_ID_CHARACTERS, RequestRecord
from ..errors import SerinusError

__all__ = ["REVISION_FIELD", "AccessRecord", "ModelServed", "served_model", "write_access", "write_slow"]

_log = logging.getLogger("serinus.access")
_slow_log = logging.getLogger("serinus.slow")
_PLAIN: Final = re.compile(r"[!-&(-~]*")
"""A text that stands in a line as it is: visible ASCII without a space or the quote of `ascii`."""

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
    record: RequestRecord | None = None
    """What the data plane knows of it; None: it never came so far as to have one."""

    def __str__(self) -> str:
        """Write the text form; its names are those of the JSON form."""
        return (
            f"{self.transport} {self.request} status {self.status} {self.response_bytes} bytes {self.seconds * 1e3:.3f} ms"
            f"{self.served}{_times(self.record)}{_ids(self.record)}"
        )

    def fields(self) -> dict[str, Any]:
        """Give the JSON form, a field each; a field that is not known is left out, or empty where it is a text that all have."""
        served, record = self.served, self.record
        fields: dict[str, Any] = {
            "message": f"{self.transport} {self.request}",
            "transport": self.transport,
            "request": self.request,
            "status": self.status,
            "bytes": self.response_bytes,
            "request_id": record.request_id[:REQUEST_ID_CHARACTERS] if record is not None else "",
            "trace_id": record.trace_id if record is not None else "",
            "model": served.model,
            "version": served.version,
            "revision": served.revision,
        }
        if served.digest:
            fields["digest"] = served.digest
        if record is not None and record.arrived:
            fields["rows"] = record.rows
            fields["queue_ms"] = _ms(record.started - record.arrived)
            if record.was_predicted:
                fields["batch"] = record.batch_rows
                fields["compute_ms"] = _ms(record.infer_to - record.infer_from)
        fields["total_ms"] = _ms(self.seconds)
        return fields


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def _times(record: RequestRecord | None) -> str:
    if record is None or not record.arrived:
        return ""
    text = f" rows {record.rows} queue {(record.started - record.arrived) * 1e3:.3f} ms"
    if not record.was_predicted:
        return text
    return f"{text} batch {record.batch_rows} compute {(record.infer_to - record.infer_from) * 1e3:.3f} ms"


def _ids(record: RequestRecord | None) -> str:
    if record is None:
        return ""
    request_id = record.request_id[:REQUEST_ID_CHARACTERS]
    if not _PLAIN.fullmatch(request_id):
        request_id = ascii(
            request_id
        )  # a client's own words: they must look like no other field, and steer no terminal
    told = {"request_id": request_id, "trace_id": record.trace_id}
    return "".join(f" {name} {value}" for name, value in told.items() if value)


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
    """Write a record as the log's line; with `--log_format json` a field each, see `cli.serving.log_lines`."""
    _log.info(record, extra={"structured": record})


@dataclass(frozen=True, slots=True)
class _SlowRecord:
    """A request that took long, and where its time went."""

    access: AccessRecord
    limit_s: float

    def _parts(self) -> dict[str, float]:
        """Name milliseconds in the order of a request's way; together they are its whole time."""
        record, total_s = self.access.record, self.access.seconds
        if record is None or not record.arrived:
            return {}
        parts_s = {"before_queue": record.arrived - record.came, "queue": record.started - record.arrived}
        if record.was_predicted:
            parts_s["compute_input"] = record.infer_from - record.started
            parts_s["compute"] = record.infer_to - record.infer_from
            parts_s["compute_output"] = record.answered - record.infer_to
        parts_s["answer"] = record.came + total_s - record.answered
        return {name: _ms(max(0.0, seconds)) for name, seconds in parts_s.items()}

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {milliseconds} ms" for name, milliseconds in self._parts().items())
        requests = self.access.record.batch_requests if self.access.record is not None else 0
        joined = f"; {requests} requests in its batch" if requests > 1 else ""
        return f"slower than {self.limit_s:g} s: {self.access}" + (f": {parts}{joined}" if parts else "")

    def fields(self) -> dict[str, Any]:
        """Give the JSON form: that of the access log, and each part of the time."""
        access = self.access
        fields = access.fields()
        fields["message"] = f"slower than {self.limit_s:g} s: {fields['message']}"
        fields["slower_than_s"] = self.limit_s
        fields |= {f"{name}_ms": milliseconds for name, milliseconds in self._parts().items()}
        if access.record is not None and access.record.was_predicted:
            fields["batch_requests"] = access.record.batch_requests
        return fields


def write_slow(record: AccessRecord, limit_s: float) -> None:
    """Write a request that took at least `limit_s` with where its time went."""
    slow = _SlowRecord(record, limit_s)
    _slow_log.warning(slow, extra={"structured": slow})
