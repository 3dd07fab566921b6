"""What is known of one request while it is under way, for the log and for traces; made only where one of them is on.

Theory of operation. A transport that logs or traces makes a `RequestRecord`, and gives the data plane headers that carry it (their attribute
`record`). Headers go wherever a request goes, so nothing else has to know of it: where a batch has been answered or a request has
failed, `ModelStatistics` tells its `recorder`, which looks whether the request's headers have a record, writes the times into it, and
sends the spans. Without log and traces there is no recorder, and that costs one comparison a batch.

Spans of a request, each with the times that the statistics have too: `queue` until its batch was taken, `batch` from there until its response was
made, and in that `predict`. A batch of several requests has such spans in the trace of each, linked with each other's. A request that another model
of this process asks (a pipeline's model) has no record; its spans are found by its `traceparent`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ...errors import SerinusError
from ...protocol.types import InferRequest
from ...tracing.spans import Span
from ...tracing.trace_context import TRACEPARENT, TraceContext, read_trace_context
from ...tracing.tracer import Tracer, new_span_id
from ..batching.pending_request import DONE, Batch, PendingRequest

__all__ = [
    "JoinedHeaders",
    "REQUEST_ID",
    "REQUEST_ID_CHARACTERS",
    "RequestRecord",
    "RequestRecorder",
    "error_ids",
    "join_headers",
    "new_request_id",
    "record_of",
]

REQUEST_ID: Final = "x-request-id"
REQUEST_ID_CHARACTERS: Final = 200
"""Of a request id in log and errors, which is the client's own text: a UUID has 36."""

_MOST_LINKS: Final = 128
"""Of one span: OpenTelemetry's OTEL_SPAN_LINK_COUNT_LIMIT."""


class RequestRecord:
    """One request. Times are `time.monotonic()`; those of the data plane are 0 until it has told them."""

    __slots__ = (
        "answered",
        "arrived",
        "batch_requests",
        "batch_rows",
        "came",
        "context",
        "infer_from",
        "infer_to",
        "model",
        "parent",
        "request_id",
        "rows",
        "started",
        "version",
        "work",
    )

    def __init__(
        self, request_id: str, parent: TraceContext | None = None, context: TraceContext | None = None
    ) -> None:
        self.came = time.monotonic()
        self.request_id = request_id
        self.parent = parent
        """Who asked, as the client says; None: it says nothing."""
        self.context = context
        """The span of this server; None: it traces nothing."""
        self.work = None if context is None else TraceContext(context.trace_id, new_span_id(), context.sampled)
        """The span of the predict, which is what the model is told as its `traceparent`."""
        self.model = self.version = ""
        self.rows = self.batch_rows = self.batch_requests = 0
        self.arrived = self.started = self.infer_from = self.infer_to = self.answered = 0.0

    @property
    def trace_id(self) -> str:
        """Of this server's span, or of the client's where nothing is traced here; empty: there is none."""
        context = self.context or self.parent
        return "" if context is None else context.trace_id

    @property
    def was_predicted(self) -> bool:
        """It was in a batch."""
        return self.batch_requests > 0

    def note(self, pending: PendingRequest, batch: Batch | None, now: float) -> None:
        """Write down what the data plane knows at a request's end."""
        self.arrived = pending.arrived
        self.rows = pending.rows
        self.answered = now
        if batch is None:
            self.started = now
            return
        self.batch_rows = batch.rows
        self.batch_requests = len(batch.members)
        self.started = batch.started
        self.infer_from = batch.infer_from
        # A request whose deadline has passed is answered while its batch is predicted.
        self.infer_to = batch.infer_to if batch.infer_to > batch.infer_from else now


class JoinedHeaders(dict[str, str]):
    """Headers of a request that another model made of several: those that its members' records are about."""

    __slots__ = ("records",)

    def __init__(self, records: Sequence[RequestRecord]) -> None:
        super().__init__()
        self.records = records


def record_of(headers: Mapping[str, str]) -> RequestRecord | None:
    """Find the record that headers carry."""
    return getattr(headers, "record", None)


def join_headers(requests: Sequence[InferRequest]) -> Mapping[str, str]:
    """Make the headers of a request that is asked for several; empty where none of them is traced."""
    records = [record for request in requests if (record := record_of(request.headers)) is not None and record.work]
    return JoinedHeaders(records) if records else {}


def new_request_id() -> str:
    """Make a request id: a UUID, as Envoy makes them."""
    return str(uuid.uuid4())


def error_ids(headers: Mapping[str, str]) -> dict[str, str]:
    """Give the ids of a request that the log is to have a line of, by their names there: its own, or a new one; its trace's, if it has one."""
    record = record_of(headers)
    if record is not None:
        ids = {"request_id": record.request_id[:REQUEST_ID_CHARACTERS], "trace_id": record.trace_id}
    else:
        parent = read_trace_context(headers.get(TRACEPARENT))
        request_id = headers.get(REQUEST_ID, "")[:REQUEST_ID_CHARACTERS] or new_request_id()
        ids = {"request_id": request_id, "trace_id": "" if parent is None else parent.trace_id}
    return ids if ids["trace_id"] else {"request_id": ids["request_id"]}


class RequestRecorder:
    """Is told of requests that have ended, by the statistics of their model.

    Args:
        tracer: takes the spans; None: nothing is traced.
    """

    def __init__(self, tracer: Tracer | None) -> None:
        self._tracer = tracer

    def answered(self, name: str, version: str, batch: Batch, now: float) -> None:
        """A batch has its responses; those of its members that are DONE were told of before."""
        for pending in batch.members:
            if pending.state != DONE:
                self._note(name, version, pending, batch, now, "")

    def failed(self, name: str, version: str, pending: PendingRequest, error: SerinusError, now: float) -> None:
        """A request was refused, or has failed."""
        self._note(name, version, pending, pending.batch, now, str(error))

    def _note(
        self, name: str, version: str, pending: PendingRequest, batch: Batch | None, now: float, error: str
    ) -> None:
        headers = pending.request.headers
        record = record_of(headers)
        if record is not None:
            record.model, record.version = name, version
            record.note(pending, batch, now)
        if self._tracer is None:
            return
        if record is not None:
            places = [(record.context, record.work)]
        elif isinstance(headers, JoinedHeaders):
            places = [(each.work, None) for each in headers.records]
        else:
            places = [(read_trace_context(headers.get(TRACEPARENT)), None)]
        for parent, work in places:
            if parent is not None and parent.sampled:
                self._emit(self._tracer, f"{name}", version, pending, batch, now, error, parent, work)

    def _emit(
        self,
        tracer: Tracer,
        name: str,
        version: str,
        pending: PendingRequest,
        batch: Batch | None,
        now: float,
        error: str,
        parent: TraceContext,
        work: TraceContext | None,
    ) -> None:
        attributes: dict[str, Any] = {"serinus.model.name": name}
        if version:
            attributes["serinus.model.version"] = version
        trace_id = parent.trace_id

        def own() -> TraceContext:
            return TraceContext(trace_id, new_span_id(), sampled=True)

        left_queue = now if batch is None else batch.started
        why = error if batch is None else ""
        tracer.emit(Span(f"queue {name}", own(), parent, "internal", pending.arrived, left_queue, attributes, why))
        if batch is None:
            return
        batched = own()
        of_batch = {
            **attributes,
            "serinus.rows": pending.rows,
            "serinus.batch.rows": batch.rows,
            "serinus.batch.requests": len(batch.members),
        }
        links = _neighbours(pending, batch) if len(batch.members) > 1 else ()
        tracer.emit(Span(f"batch {name}", batched, parent, "internal", batch.started, now, of_batch, error, links))
        ended = batch.infer_to if batch.infer_to > batch.infer_from else now
        tracer.emit(
            Span(f"predict {name}", work or own(), batched, "internal", batch.infer_from, ended, attributes, error)
        )


def _neighbours(pending: PendingRequest, batch: Batch) -> list[TraceContext]:
    """Give the server spans of the others in a batch."""
    records = (record_of(other.request.headers) for other in batch.members if other is not pending)
    found = [record.context for record in records if record is not None and record.context is not None]
    return [context for context in found if context.sampled][:_MOST_LINKS]
