"""A call to another server as a client span, and the `traceparent` that goes along with it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from .spans import Attributes, Span, http_attributes, rpc_attributes
from .trace_context import TRACEPARENT, TraceContext, read_trace_context
from .tracer import Tracer

__all__ = ["Hop"]


class Hop:
    """One attempt to ask another server.

    Args:
        tracer: takes the span.
        name: of the span.
        headers: of the request; their `traceparent` says who asks.
        attributes: what is known before it is asked.
    """

    def __init__(self, tracer: Tracer, name: str, headers: Mapping[str, str], attributes: Attributes) -> None:
        self._tracer = tracer
        self._name = name
        self._parent = read_trace_context(headers.get(TRACEPARENT))
        self._attributes = attributes
        self.context: TraceContext = tracer.begin(name, self._parent, attributes)
        self._started_s = time.monotonic()

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Give the headers with this hop as the one that asks."""
        return {**headers, TRACEPARENT: self.context.header()}

    def end_http(self, method: str, status: int, template: str) -> None:
        """Tell of an HTTP answer."""
        attributes = http_attributes(method, status, is_server=False, route=template, more=self._attributes)
        self._emit(attributes, "" if status < 400 else f"status {status}")

    def end_rpc(self, method: str, code: int) -> None:
        """Tell of gRPC's status."""
        attributes = rpc_attributes(method, code, is_server=False, more=self._attributes)
        self._emit(attributes, str(attributes["rpc.response.status_code"]) if code else "")

    def end_without_answer(self, error: BaseException) -> None:
        """Tell of a call that brought no answer."""
        self._emit({**self._attributes, "error.type": type(error).__name__}, str(error) or type(error).__name__)

    def _emit(self, attributes: Attributes, error: str) -> None:
        self._tracer.emit(
            Span(self._name, self.context, self._parent, "client", self._started_s, time.monotonic(), attributes, error)
        )
