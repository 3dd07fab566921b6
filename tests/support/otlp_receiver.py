"""A collector of traces, over gRPC or HTTP: real sockets, and the messages of opentelemetry-proto decoded."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

import grpc
from waiting import wait_until

__all__ = ["Collector", "Received", "receiving"]

_KINDS = {1: "internal", 2: "server", 3: "client"}


@dataclass(frozen=True)
class Received:
    """A span as it came."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...]
    error: str | None
    """The status' message; None: it is no error."""
    scope: str


class Collector:
    """What has come."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._spans: list[Received] = []
        self._lock = threading.Lock()

    def take(self, body: bytes) -> bytes:
        request = ExportTraceServiceRequest.FromString(body)
        with self._lock:
            for resource in request.resource_spans:
                about = {each.key: each.value.string_value for each in resource.resource.attributes}
                for scope in resource.scope_spans:
                    self._spans += [_received(span, about["service.name"], scope.scope.name) for span in scope.spans]
        return ExportTraceServiceResponse().SerializeToString()

    @property
    def spans(self) -> list[Received]:
        with self._lock:
            return list(self._spans)

    def wait(self, count: int) -> list[Received]:
        """Wait until so many have come; in the order of their start."""
        wait_until(lambda: len(self.spans) >= count, limit_s=30)
        return sorted(self.spans, key=lambda span: (span.start_ns, -span.end_ns))

    def environment(self, protocol: str = "grpc", **more: str) -> dict[str, str]:
        """The variables by which a process sends its spans here, at once."""
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "20",
            **more,
        }


def _received(span: Any, service: str, scope: str) -> Received:
    return Received(
        span.name,
        service,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _KINDS[span.kind],
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes},
        tuple(link.span_id.hex() for link in span.links),
        span.status.message if span.status.code == 2 else None,
        scope,
    )


@contextlib.contextmanager
def receiving(protocol: str = "grpc") -> Iterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    if protocol == "grpc":
        server = grpc.server(ThreadPoolExecutor(2))
        handler = grpc.unary_unary_rpc_method_handler(lambda body, _: collector.take(body))
        service = "opentelemetry.proto.collector.trace.v1.TraceService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"Export": handler}),))
        collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield collector
        finally:
            server.stop(None).wait()
        return

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            known = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            answer = collector.take(body) if known else b""
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    collector.endpoint = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        http.shutdown()
        http.server_close()
        thread.join(10)
