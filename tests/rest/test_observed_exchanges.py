"""Which exchanges have a span, what is in it, and what a record adds to their headers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serinus.dataplane.telemetry.metrics import Metrics
from serinus.dataplane.telemetry.request_records import RequestRecord
from serinus.server.http.exchange import Headers
from serinus.server.request_observer import RequestObserver, observe_requests
from serinus.server.rest.request_headers import ExchangeObserver, RecordedHeaders
from serinus.server.rest.router import Router
from serinus.settings import ServerSettings
from serinus.tracing.spans import Span
from serinus.tracing.trace_context import TraceContext
from serinus.tracing.tracer import Tracer

OWN, PARENT = TraceContext("a" * 32, "b" * 16, True), TraceContext("a" * 32, "c" * 16, True)
TEMPLATES = (
    *("/", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready", "/v1/models", "/v1/models/{model}"),
    *("/v1/models/{model}:predict", "/v2/models/{model}", "/v2/models/{model}/ready", "/v2/models/{model}/infer"),
    *("/v2/models/{model}/versions/{version}/ready", "/v2/models/{model}/versions/{version}/infer"),
)


class Spans(Tracer):
    """Keeps spans; each trace is the same."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Any, Any]] = []
        self.spans: list[Span] = []

    def begin(self, name: str, parent: TraceContext | None, attributes: Any = None) -> TraceContext:
        self.begun.append((name, parent, dict(attributes or {})))
        return OWN

    def emit(self, span: Span) -> None:
        self.spans.append(span)


class Observed:
    """An observer of exchanges, and its spans."""

    def __init__(self, *, traced: bool = True, revision: str = "") -> None:
        self.tracer = Spans()
        plane: Any = None  # asked for the log alone
        self.observer = RequestObserver(
            plane, access_log=False, slow_s=0.0, tracer=self.tracer if traced else None, revision=revision
        )
        router = Router()
        for template in TEMPLATES:
            for method in ("GET", "POST"):
                router.add(method, template, lambda exchange, parameters: None)
        self.exchanges = ExchangeObserver(self.observer, router)

    def exchange(self, method: bytes, target: bytes, **headers: bytes) -> Any:
        raw = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
        exchange: Any = SimpleNamespace(method=method, target=target, headers=Headers(raw))
        self.exchanges.begin(exchange)
        return exchange

    def ended(self, method: bytes, target: bytes, status: int = 200, **headers: bytes) -> list[Span]:
        self.exchanges.end(self.exchange(method, target, **headers), status, 44)
        return self.tracer.spans


@pytest.mark.parametrize(
    ("method", "target", "name"),
    [
        (b"GET", b"/", None),
        (b"GET", b"/metrics", None),
        (b"GET", b"/v2/health/live", None),
        (b"GET", b"/v2/health/ready", None),
        (b"GET", b"/v2/models/m/ready", None),
        (b"GET", b"/v2/models/m/versions/2/ready", None),
        (b"GET", b"/v1/models/m", None),
        (b"POST", b"/v1/models/m", "POST /v1/models/{model}"),
        (b"GET", b"/v1/models", "GET /v1/models"),
        (b"GET", b"/v2", "GET /v2"),
        (b"GET", b"/v2/models/m", "GET /v2/models/{model}"),
        (b"POST", b"/v1/models/m:predict", "POST /v1/models/{model}:predict"),
        (b"GET", b"/v1/models/m:predict", "GET /v1/models/{model}:predict"),
        (b"POST", b"/v2/models/m/infer", "POST /v2/models/{model}/infer"),
        (b"GET", b"/nowhere", "GET"),
    ],
)
def test_every_exchange_but_a_probe_has_a_span_of_its_route(method: bytes, target: bytes, name: str | None):
    assert [span.name for span in Observed().ended(method, target)] == ([] if name is None else [name])


def test_a_span_says_what_was_asked_and_answered():
    observed = Observed(revision="r7")
    exchange = observed.exchange(
        b"POST",
        b"/v2/models/m/infer?a=b&c=d",
        x_request_id=b"mine",
        traceparent=PARENT.header().encode(),
        user_agent=b"me",
    )
    assert observed.tracer.begun == [("POST", PARENT, {"http.request.method": "POST"})]
    exchange.headers.record.model = "m"
    observed.exchanges.end(exchange, 404, 44)
    (span,) = observed.tracer.spans
    assert (span.context, span.parent, span.kind, span.error, span.links) == (OWN, PARENT, "server", "", ())
    assert span.start_s == exchange.headers.record.came <= span.end_s
    assert span.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 404,
        "http.route": "/v2/models/{model}/infer",
        "url.path": "/v2/models/m/infer",
        "url.scheme": "http",
        "url.query": "a=b&c=d",
        "http.response.body.size": 44,
        "user_agent.original": "me",
        "serinus.model.name": "m",
        "serinus.revision": "r7",
        "serinus.request.id": "mine",
    }


@pytest.mark.parametrize(("status", "error"), [(200, ""), (400, ""), (404, ""), (499, ""), (500, "500"), (503, "503")])
def test_a_servers_error_is_one_of_its_own(status: int, error: str):
    (span,) = Observed().ended(b"POST", b"/v2/models/m/infer", status)
    assert span.error == error
    assert span.attributes.get("error.type", "") == error


def test_what_is_not_known_is_left_out():
    (span,) = Observed().ended(b"GET", b"/nowhere", 404, x_request_id=b"mine")
    assert span.parent is None
    assert set(span.attributes) == {
        *("http.request.method", "http.response.status_code", "url.path", "url.scheme"),
        *("http.response.body.size", "serinus.request.id"),
    }


def test_without_a_tracer_nothing_is_traced_and_the_clients_trace_is_known_all_the_same():
    observed = Observed(traced=False)
    exchange = observed.exchange(b"POST", b"/v2/models/m/infer", traceparent=PARENT.header().encode())
    record = exchange.headers.record
    assert (record.context, record.parent, record.trace_id) == (None, PARENT, "a" * 32)
    observed.exchanges.end(exchange, 200, 44)
    observed.observer.emit(record, "POST", {})
    assert observed.tracer.spans == []


def test_an_exchange_that_the_transport_refused_has_no_record_and_no_span():
    observed = Observed()
    exchange: Any = SimpleNamespace(method=b"GET", target=b"/v2", headers=Headers([]))
    observed.exchanges.end(exchange, 400, 0)
    assert observed.tracer.spans == []


@pytest.mark.parametrize("context", [OWN, None])
def test_headers_with_a_record_have_its_id_and_the_span_that_asks_and_are_else_as_they_came(context: Any):
    came = Headers([(b"x-request-id", b"other"), (b"accept", b"*/*"), (b"traceparent", b"theirs")])
    record = RequestRecord("mine é", None, context)
    found = RecordedHeaders(came, record)
    work = "theirs" if record.work is None else record.work.header()
    assert dict(found) == {"x-request-id": "mine é", "accept": "*/*", "traceparent": work}
    assert found.record is record
    assert (found.request_id, found.plain, found.raw) == ("mine é".encode("latin-1"), False, came.raw)
    assert dict(came)["x-request-id"] == "other"
    back = [(b"X-Request-Id", "mine é".encode("latin-1"))]
    if context is not None:
        back.append((b"traceparent", OWN.header().encode()))
    assert found.request_id_back() == back


def test_a_request_without_an_id_gets_one():
    record = Observed().exchange(b"GET", b"/v2").headers.record
    assert len(record.request_id) == 36


@pytest.mark.parametrize(
    ("settings", "traced", "observed"),
    [
        ({}, False, False),
        ({"access_log": True}, False, True),
        ({"slow_request_s": 0.5}, False, True),
        ({}, True, True),
        ({"access_log": True, "slow_request_s": 0.5}, True, True),
    ],
)
def test_requests_are_observed_where_a_log_or_a_trace_asks_for_it(settings: Any, traced: bool, observed: bool):
    plane: Any = None  # asked at a request's end alone
    found = observe_requests(plane, ServerSettings(**settings), Metrics(), Spans() if traced else None)
    assert (found is not None) is observed


@pytest.mark.parametrize(
    ("target", "model", "version"),
    [
        (b"/v2/models/m/infer", "m", ""),
        (b"/v2/models/m/versions/2/infer", "m", "2"),
        (b"/v1/models/m:predict", "m", ""),
        (b"/v2", "", ""),
        (b"/v2/nowhere", "", ""),
    ],
)
def test_the_end_is_told_with_the_model_and_the_version_that_the_path_names(
    target: bytes, model: str, version: str, monkeypatch: pytest.MonkeyPatch
):
    observed, told = Observed(), []
    monkeypatch.setattr(observed.observer, "end", lambda record, *words, **about: told.append((*words, about)))
    observed.ended(b"POST", target, 404)
    assert told == [("rest", f"POST {target.decode()}", 404, 44, {"model": model, "version": version})]
