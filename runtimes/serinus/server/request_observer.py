"""What a server does around each request where it logs or traces: gives it ids, and tells of it when it has ended.

Theory of operation. A transport has a `RequestObserver` only where the access log, the log of slow requests or tracing is on; without one it
compares with None and goes on. `begin` makes the request's record, whose request id is the client's or a new one; the transport puts the record
into the headers that the data plane sees (`request_records`). When the answer has been handed over, `end` writes the lines and the server's span.

Probes and `/metrics` are not traced: they come from nobody's trace, all day (KServe's servers leave them out too).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from ..dataplane.plane import Plane
from ..dataplane.telemetry.metrics import Metrics
from ..dataplane.telemetry.request_records import REQUEST_ID, RequestRecord, RequestRecorder, new_request_id
from ..settings import ServerSettings
from ..tracing.spans import Attributes, Span
from ..tracing.trace_context import TRACEPARENT, TraceContext, read_trace_context
from ..tracing.tracer import Tracer
from .access_log import AccessRecord, ModelServed, served_model, write_access, write_slow

__all__ = ["RequestObserver", "observe_requests"]


class RequestObserver:
    """See the module's theory of operation.

    Args:
        plane: says which model answers.
        access_log: a line a request.
        slow_s: a line for each request that took so long; 0: none.
        tracer: takes the spans; None: nothing is traced.
        revision: of this server.
    """

    def __init__(self, plane: Plane, *, access_log: bool, slow_s: float, tracer: Tracer | None, revision: str) -> None:
        self._plane = plane
        self._access_log = access_log
        self._slow_s = slow_s
        self._tracer = tracer
        self._revision = revision

    def begin(self, headers: Mapping[str, str], name: str, attributes: Attributes) -> RequestRecord:
        """Give a request its record.

        Args:
            headers: as they came.
            name: of its span to be, for the sampler.
            attributes: likewise.
        """
        parent = read_trace_context(headers.get(TRACEPARENT))
        context: TraceContext | None = None
        if self._tracer is not None:
            context = self._tracer.begin(name, parent, attributes)
        return RequestRecord(headers.get(REQUEST_ID) or new_request_id(), parent, context)

    @staticmethod
    def fields(record: RequestRecord) -> dict[str, str]:
        """Give the headers by which a request goes on: its id, and where it is traced the span that asks."""
        fields = {REQUEST_ID: record.request_id}
        if record.work is not None:
            fields[TRACEPARENT] = record.work.header()
        return fields

    def end(
        self,
        record: RequestRecord | None,
        transport: Literal["rest", "grpc"],
        request: str,
        status: int,
        response_bytes: int,
        *,
        model: str = "",
        version: str = "",
    ) -> None:
        """Write what became of a request.

        Args:
            record: its; None: the transport refused it.
            transport: which.
            request: its method and target, or path.
            status: HTTP's, or gRPC's.
            response_bytes: of all pieces.
            model: that was asked for, where no model has told of it; empty: none was.
            version: likewise.
        """
        seconds = 0.0 if record is None else time.monotonic() - record.came
        is_slow = bool(self._slow_s) and seconds >= self._slow_s
        if not (self._access_log or is_slow):
            return
        if record is not None and record.model:
            model, version = record.model, record.version
        served = served_model(self._plane, self._revision, model, version) if model else ModelServed(self._revision)
        access = AccessRecord(transport, request, status, response_bytes, seconds, served, record)
        if self._access_log:
            write_access(access)
        if is_slow:
            write_slow(access, self._slow_s)

    def emit(self, record: RequestRecord, name: str, attributes: dict[str, str | int | float | bool]) -> None:
        """Send the server's span."""
        if self._tracer is None or record.context is None:
            return
        if record.model:
            attributes["serinus.model.name"] = record.model
        if self._revision:
            attributes["serinus.revision"] = self._revision
        attributes["serinus.request.id"] = record.request_id
        error = str(attributes.get("error.type", ""))
        self._tracer.emit(
            Span(name, record.context, record.parent, "server", record.came, time.monotonic(), attributes, error)
        )


def observe_requests(
    plane: Plane, settings: ServerSettings, metrics: Metrics, tracer: Tracer | None
) -> RequestObserver | None:
    """Make what the settings ask for, and have the models tell their part; None: neither log nor trace is on."""
    if not (settings.access_log or settings.slow_request_s or tracer is not None):
        return None
    metrics.record_requests(RequestRecorder(tracer))
    return RequestObserver(
        plane,
        access_log=settings.access_log,
        slow_s=settings.slow_request_s,
        tracer=tracer,
        revision=settings.revision,
    )
