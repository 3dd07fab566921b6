"""Calls where log or traces are on: metadata that carries a record, and answers that tell of the call's end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from ...dataplane.telemetry.request_records import REQUEST_ID, RequestRecord
from ...errors import GrpcStatus
from ...model import Cancellable
from ...tracing.spans import rpc_attributes
from ...tracing.trace_context import TRACEPARENT
from ..request_observer import RequestObserver
from .answers import Answer, Failure, Metadata, Responses, StreamAnswer, can_be_metadata

__all__ = ["LeavingCall", "ObservedAnswer", "RecordedMetadata"]

_SERVICE = "inference.GRPCInferenceService"
_UNTRACED = frozenset(
    {"/grpc.health.v1.Health/Check", *(f"/{_SERVICE}/{name}" for name in ("ServerLive", "ServerReady", "ModelReady"))}
)
"""Probes: they come from nobody's trace, all day."""


class RecordedMetadata(dict[str, str]):
    """A call's metadata that carries the record of its request."""

    __slots__ = ("record",)

    def __init__(self, headers: Mapping[str, str], record: RequestRecord) -> None:
        super().__init__(headers)
        self.record = record
        self.update(RequestObserver.fields(record))


class ObservedAnswer:
    """An `Answer` that also tells log and traces, and the client its request's id."""

    def __init__(self, answer: Answer, path: str, record: RequestRecord, observer: RequestObserver) -> None:
        self.model = self.version = ""
        """Asked for; empty: the call is about no model, or was not read so far."""
        self._answer = answer
        self._path = path
        self._record = record
        self._observer = observer
        self._over = False

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:
        """See `Answer.respond`; the client is told where the call is in its trace."""
        context = self._record.context
        if context is not None:
            metadata = (*(metadata or ()), (TRACEPARENT, context.header()))
        self._answer.respond(payload, metadata)
        self.end(GrpcStatus.OK, len(payload))

    def fail(self, failure: Failure) -> None:
        """See `Answer.fail`; the client is told its request's id."""
        request_id = self._record.request_id
        if can_be_metadata(request_id) and all(name != REQUEST_ID for name, _ in failure.trailing):
            failure = failure._replace(trailing=(*failure.trailing, (REQUEST_ID, request_id)))
        self._answer.fail(failure)
        self.end(failure.code, 0)

    def begin(self, responses: Responses) -> None:
        """See `StreamAnswer.begin`."""
        responses.on_end = self.end
        cast("StreamAnswer", self._answer).begin(responses)

    def end(self, code: int, length: int) -> None:
        """Tell of the call's end, once."""
        if self._over:
            return
        self._over = True
        record, observer = self._record, self._observer
        observer.end(record, "grpc", self._path, code, length, model=self.model, version=self.version)
        if record.context is not None and self._path not in _UNTRACED:
            method = self._path[1:]
            observer.emit(record, method, rpc_attributes(method, code, is_server=True))


class LeavingCall:
    """Cancels a request whose client has gone, and tells log and traces of that."""

    __slots__ = ("_answer", "_pending")

    def __init__(self, pending: Cancellable, answer: ObservedAnswer) -> None:
        self._pending = pending
        self._answer = answer

    def cancel(self) -> None:
        """The client has gone."""
        self._pending.cancel()
        self._answer.end(GrpcStatus.CANCELLED, 0)
