"""From OpenTelemetry's variables to a tracer of this process, and from spans to its exporters.

Theory of operation. Everything is set by OpenTelemetry's own variables, which KServe's controller sets too where an InferenceService has
`spec.tracing` (kserve pull requests 6108, 6172, 6214; its Python servers read them since 6198): OTEL_TRACES_EXPORTER (`otlp`, `console`,
`none`, several with commas), OTEL_EXPORTER_OTLP_ENDPOINT and its relatives, OTEL_EXPORTER_OTLP_PROTOCOL (`grpc`, the default as KServe's, or
`http/protobuf`), OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER and its argument, OTEL_BSP_*, OTEL_SDK_DISABLED. Without
an exporter and an endpoint nothing is traced, and no package of OpenTelemetry is imported. As with KServe, settings that are wrong turn tracing
off with a warning; the models are served.

A request's times are known when it has ended, so its spans are made then, of values, by the SDK's own `ReadableSpan`, and handed to its batch
processor, which sends them from a thread of its own. While a request is under way nothing exists but two ids: that of its server span, and
that of the span of its predict, which the model and whatever it calls are told as `traceparent`. The sampler is asked when it comes.

The tracer of a process is one for all (`install`), as OpenTelemetry's own tracer provider is; that is set as well, so that spans that a model's code
makes by OpenTelemetry's API go to the same collector.
"""

from __future__ import annotations

import importlib.util
import logging
import random
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .spans import Attributes, Span
from .trace_context import TraceContext

__all__ = ["Tracer", "current_tracer", "install", "start_tracing"]

_log = logging.getLogger("serinus.tracing")

_SCOPE: Final = "serinus"
_FLUSH_S: Final = 0.7
"""Longest that the end of a process waits for a collector that does not answer: less than the second that it has after its drain
(`server.exit_bound`)."""
_EXPORTERS: Final = ("console", "none", "otlp")
_PROTOCOLS: Final = ("grpc", "http/protobuf")


class Tracer:
    """Makes spans of a process and sends them.

    Args:
        provider: the SDK's; has sampler and resource.
        processors: what takes ended spans.
    """

    def __init__(self, provider: Any, processors: Iterable[Any]) -> None:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace.status import Status, StatusCode

        self._trace = trace
        self._readable = ReadableSpan
        self._provider = provider
        self._processors = tuple(processors)
        for processor in self._processors:
            provider.add_span_processor(processor)
        self._scope = InstrumentationScope(_SCOPE)
        self._unset = Status(StatusCode.UNSET)
        self._failed = lambda text: Status(StatusCode.ERROR, text)
        kinds = trace.SpanKind
        self._kinds = {"server": kinds.SERVER, "client": kinds.CLIENT, "internal": kinds.INTERNAL}
        self._epoch_s = time.time() - time.monotonic()
        """Of `time.monotonic()`; set once, so that spans of one process are in order whatever happens to the clock."""

    def begin(self, name: str, parent: TraceContext | None, attributes: Attributes | None = None) -> TraceContext:
        """Give a piece of work its place in a trace, and ask the sampler whether it is recorded.

        Args:
            name: of the span to be.
            parent: who asked for it; None: a trace begins.
            attributes: what the sampler may look at.
        """
        trace_id = parent.trace_id if parent is not None else f"{random.getrandbits(128) or 1:032x}"  # as the SDK's
        above = None
        if parent is not None:
            span = self._trace.NonRecordingSpan(self._span_context(parent, is_remote=True))
            above = self._trace.set_span_in_context(span)
        result = self._provider.sampler.should_sample(above, int(trace_id, 16), name, attributes=attributes)
        return TraceContext(trace_id, new_span_id(), result.decision.is_sampled())

    def emit(self, span: Span) -> None:
        """Send a span, unless its trace is not recorded."""
        context = span.context
        if not context.sampled:
            return
        links = [self._trace.Link(self._span_context(other, is_remote=False)) for other in span.links]
        parent = None if span.parent is None else self._span_context(span.parent, is_remote=span.kind == "server")
        readable = self._readable(
            span.name,
            context=self._span_context(context, is_remote=False),
            parent=parent,
            resource=self._provider.resource,
            attributes=dict(span.attributes),
            links=links,
            kind=self._kinds[span.kind],
            status=self._failed(span.error) if span.error else self._unset,
            start_time=int((self._epoch_s + span.start_s) * 1e9),
            end_time=int((self._epoch_s + span.end_s) * 1e9),
            instrumentation_scope=self._scope,
        )
        for processor in self._processors:
            processor.on_end(readable)

    def close(self) -> None:
        """Send what is left, for at most `_FLUSH_S`; blocks, in a thread that does not keep the process from ending."""

        def flush() -> None:
            for processor in self._processors:
                processor.force_flush()

        thread = threading.Thread(target=flush, name="serinus-spans", daemon=True)
        thread.start()
        thread.join(_FLUSH_S)

    def _span_context(self, context: TraceContext, *, is_remote: bool) -> Any:
        return self._trace.SpanContext(
            int(context.trace_id, 16),
            int(context.span_id, 16),
            is_remote,
            self._trace.TraceFlags(1 if context.sampled else 0),
        )


def new_span_id() -> str:
    """Make an id for a span: 16 hexadecimal digits, not all 0."""
    return f"{random.getrandbits(64) or 1:016x}"  # an id, as the SDK's RandomIdGenerator makes it


_process: Tracer | None = None


def install(tracer: Tracer | None) -> None:
    """Make a tracer that of this process, or none."""
    global _process  # one tracer a process, as OpenTelemetry's provider; see the theory of operation
    _process = tracer


def current_tracer() -> Tracer | None:
    """Give the tracer of this process; None: nothing is traced."""
    return _process


def start_tracing(environ: Mapping[str, str], *, service: str) -> Tracer | None:
    """Make and install the tracer that the environment asks for; None: it asks for none, or what it asks for cannot be, which is logged.

    Args:
        environ: see the module's theory of operation. The SDK reads `os.environ` itself for endpoint, sampler, resource and batches.
        service: `service.name` where OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say nothing.
    """
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    names = _exporter_names(environ)
    if not names:
        return None
    problem = _problem(environ, names)
    if problem:
        _log.warning("requests are not traced: %s", problem)
        return None
    try:
        tracer = _tracer(environ, names, service)
    except Exception as error:  # noqa: BLE001 # whatever the SDK refuses, the models are served
        _log.warning("requests are not traced: OpenTelemetry refuses its settings: %s", error)
        return None
    install(tracer)
    _log.info("requests are traced: %s", ", ".join(names))
    return tracer


def _exporter_names(environ: Mapping[str, str]) -> list[str]:
    """Find which exporters are wanted; an endpoint without a name means OTLP."""
    named = environ.get("OTEL_TRACES_EXPORTER", "").strip()
    if not named:
        has_endpoint = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        return ["otlp"] if has_endpoint else []
    names = [name.strip().lower() for name in named.split(",") if name.strip()]
    return [] if "none" in names else list(dict.fromkeys(names))


def _protocol(environ: Mapping[str, str]) -> str:
    chosen = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    return (chosen or "grpc").strip().lower()


def _problem(environ: Mapping[str, str], names: Iterable[str]) -> str:
    """Say what keeps these exporters from being made; empty: nothing."""
    unknown = [name for name in names if name not in _EXPORTERS]
    if unknown:
        return f"OTEL_TRACES_EXPORTER names {unknown[0]!r}; expected {', '.join(_EXPORTERS)}, several with commas"
    if "otlp" in names and _protocol(environ) not in _PROTOCOLS:
        return f"OTEL_EXPORTER_OTLP_PROTOCOL is {_protocol(environ)!r}; expected {' or '.join(_PROTOCOLS)}"
    propagators = environ.get("OTEL_PROPAGATORS", "").lower()
    if propagators and "tracecontext" not in propagators:
        return f"OTEL_PROPAGATORS is {propagators!r}; W3C Trace Context is what is read and written here, expected 'tracecontext'"
    if importlib.util.find_spec("opentelemetry") is None or importlib.util.find_spec("opentelemetry.sdk") is None:
        return "OpenTelemetry's SDK is not installed; pip install 'serinus[otel]'"
    return ""


def _tracer(environ: Mapping[str, str], names: Iterable[str], service: str) -> Tracer:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor

    resource = Resource.create()
    if not environ.get("OTEL_SERVICE_NAME") and SERVICE_NAME not in environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    processors: list[Any] = []
    for name in names:
        if name == "console":
            processors.append(SimpleSpanProcessor(ConsoleSpanExporter()))
        elif _protocol(environ) == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

            processors.append(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as OverHttp

            processors.append(BatchSpanProcessor(OverHttp()))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracer = Tracer(provider, processors)
    trace.set_tracer_provider(provider)
    return tracer
