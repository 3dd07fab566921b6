"""A request's headers with its record, and the exchange's part of logs and traces."""

from __future__ import annotations

from ...dataplane.telemetry.request_records import RequestRecord
from ...tracing.spans import http_attributes
from ...tracing.trace_context import TRACEPARENT
from ..http.exchange import Exchange, Headers, header_pairs
from ..request_observer import RequestObserver
from .router import Router

__all__ = ["ExchangeObserver", "RecordedHeaders"]

_UNTRACED = frozenset({"/", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Beside every path that ends in `/ready`, and KServe's readiness over V1."""


class RecordedHeaders(Headers):
    """Headers that carry the record of their request, whose id and trace are among them.

    Args:
        came: as the client sent them; connections use them again, so they are left as they are.
        record: of this request.
    """

    __slots__ = ("record",)

    def __init__(self, came: Headers, record: RequestRecord) -> None:
        for name in Headers.__slots__:
            setattr(self, name, getattr(came, name))
        self.record = record
        self.request_id = record.request_id.encode("latin-1", "replace")
        self.plain = False
        self._map = {**came, **RequestObserver.fields(record)}

    def request_id_back(self) -> list[tuple[bytes, bytes]]:
        """Tell the client its id, made or its own, and where it is traced the server's span (KServe's header of this name)."""
        fields = {"X-Request-Id": self.record.request_id}
        if self.record.context is not None:
            fields[TRACEPARENT] = self.record.context.header()
        return header_pairs(fields)


class ExchangeObserver:
    """Begins and ends the record of an exchange."""

    def __init__(self, observer: RequestObserver, router: Router) -> None:
        self._observer = observer
        self._router = router

    def begin(self, exchange: Exchange) -> None:
        """Give an exchange headers with a record."""
        headers = exchange.headers
        method = exchange.method.decode("ascii", "replace")
        record = self._observer.begin(headers, method, {"http.request.method": method})
        exchange.headers = RecordedHeaders(headers, record)

    def end(self, exchange: Exchange, status: int, length: int) -> None:
        """Tell of an exchange that has been answered; one that the transport refused has no record."""
        method = exchange.method.decode("ascii", "replace")
        target = exchange.target.decode("ascii", "backslashreplace")
        match = self._router.find(exchange.target)
        template = "" if match is None else match.template
        model = match.parameters[0] if match is not None and "{model}" in template else ""
        version = match.parameters[1] if match is not None and "{version}" in template else ""
        headers = exchange.headers
        record = headers.record if isinstance(headers, RecordedHeaders) else None
        self._observer.end(record, "rest", f"{method} {target}", status, length, model=model, version=version)
        if record is None or record.context is None or _is_probe(method, template):
            return
        path, _, query = target.partition("?")
        more = {"url.path": path, "url.scheme": "http", "http.response.body.size": length}
        if query:
            more["url.query"] = query
        if agent := headers.get("user-agent"):
            more["user_agent.original"] = agent
        attributes = http_attributes(method, status, is_server=True, route=template, more=more)
        self._observer.emit(record, f"{method} {template}" if template else method, attributes)


def _is_probe(method: str, template: str) -> bool:
    return (
        template in _UNTRACED or template.endswith("/ready") or (method == "GET" and template == "/v1/models/{model}")
    )
