"""What an answer tells of its end: to the log, to traces, and to the client; what goes along with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from serinus import InferRequest, InferResponse, Tensor
from serinus.dataplane.response_stream import ResponseStream
from serinus.dataplane.telemetry.request_records import RequestRecord
from serinus.errors import (
    Conflict,
    GrpcStatus,
    InvalidInput,
    NotFound,
    Overloaded,
    SerinusError,
    TooLarge,
    Unauthenticated,
)
from serinus.protocol.proto_codec import encode_response
from serinus.server.grpc.answers import (
    Failure,
    Metadata,
    Responses,
    can_be_metadata,
    failure_of,
    initial_metadata,
    too_long,
)
from serinus.server.grpc.observed_calls import LeavingCall, ObservedAnswer, RecordedMetadata
from serinus.server.request_observer import RequestObserver
from serinus.tracing.trace_context import TraceContext

REQUEST = InferRequest("m", ())
RESPONSE = InferResponse("m", [Tensor.of("y", np.float32([1, 2]))])
PAYLOAD = encode_response(RESPONSE, REQUEST)


@pytest.mark.parametrize(
    ("value", "can"),
    [
        ("", True),
        ("an id", True),
        ('~!"{}', True),
        ("é", False),
        ("日本", False),
        ("a\nb", False),
        ("a\tb", False),
        ("\x7f", False),
        ("\x00", False),
    ],
)
def test_metadata_is_printable_ASCII(value: str, can: bool):
    assert can_be_metadata(value) is can


def test_a_response_that_is_too_long_is_told_with_both_sizes():
    error = too_long(12, 10)
    assert isinstance(error, TooLarge)
    assert "has 12 bytes, the limit is 10 (grpc_max_send_message_length)" in str(error)


# Responses of a stream


class Stream:
    """Responses, their end, and whether the model was stopped."""

    def __init__(self, answers: Sequence[InferResponse], error: SerinusError | None = None, limit: int = 1000) -> None:
        self.ends: list[tuple[int, int]] = []
        self.cancels = 0
        self._source: ResponseStream[InferResponse] = ResponseStream()
        self._source.source = self
        self._answers, self._error = answers, error
        self.responses = Responses(self._source, REQUEST, limit, final_wanted=False)
        self.responses.on_end = lambda status, size: self.ends.append((status, size))

    def cancel(self) -> None:
        self.cancels += 1

    async def fill(self) -> None:
        for one in self._answers:
            await self._source.put(one)
        self._source.end(self._error)


async def test_a_stream_that_is_read_to_its_end_is_OK_with_the_bytes_of_all():
    stream = Stream([RESPONSE, RESPONSE])
    await stream.fill()
    assert [one async for one in stream.responses] == [PAYLOAD, PAYLOAD]
    assert stream.ends == [(GrpcStatus.OK, 2 * len(PAYLOAD))]
    with pytest.raises(StopAsyncIteration):
        await anext(stream.responses)
    assert len(stream.ends) == 1, "its end is told once"


async def test_a_stream_that_fails_ends_with_the_status_of_its_error():
    stream = Stream([RESPONSE], NotFound("gone"))
    await stream.fill()
    assert await anext(stream.responses) == PAYLOAD
    assert stream.ends == []
    with pytest.raises(NotFound):
        await anext(stream.responses)
    assert stream.ends == [(GrpcStatus.NOT_FOUND, len(PAYLOAD))]


@pytest.mark.parametrize(("less", "is_sent"), [(0, True), (1, False)])
async def test_a_response_may_be_as_long_as_the_limit(less: int, is_sent: bool):
    stream = Stream([RESPONSE], limit=len(PAYLOAD) - less)
    await stream.fill()
    if is_sent:
        assert await anext(stream.responses) == PAYLOAD
    else:
        with pytest.raises(TooLarge, match=f"has {len(PAYLOAD)} bytes, the limit is {len(PAYLOAD) - 1} "):
            await anext(stream.responses)
        assert stream.ends == [(TooLarge("").grpc_status, 0)], "what was not sent does not count"


async def test_a_stream_that_nobody_reads_on_stops_the_model_and_is_cancelled():
    stream = Stream([RESPONSE, RESPONSE])
    await stream.fill()
    await anext(stream.responses)
    stream.responses.cancel()
    stream.responses.cancel()
    assert stream.cancels >= 1
    assert stream.ends == [(GrpcStatus.CANCELLED, len(PAYLOAD))]


@pytest.mark.parametrize("final_wanted", [True, False])
async def test_a_stream_of_which_nobody_asks_the_end_ends_all_the_same(final_wanted: bool):
    source: ResponseStream[InferResponse] = ResponseStream()
    responses = Responses(source, REQUEST, 1000, final_wanted=final_wanted)
    assert (responses.request, responses.final_wanted) == (REQUEST, final_wanted)
    source.end_with_only(RESPONSE)
    assert [one async for one in responses] == [PAYLOAD]


# Observed answers


class Observer(RequestObserver):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.ends: list[tuple[Any, ...]] = []
        self.spans: list[tuple[str, dict[str, Any]]] = []

    def end(self, record, transport, request, status, response_bytes, *, model="", version="") -> None:
        self.ends.append((transport, request, status, response_bytes, model, version))

    def emit(self, record, name, attributes) -> None:
        self.spans.append((name, attributes))


class Client:
    """What the engine was told to send."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def respond(self, payload: bytes, metadata: Metadata | None) -> None:
        self.sent.append((payload, metadata))

    def fail(self, failure: Failure) -> None:
        self.sent.append(failure)

    def begin(self, responses: AsyncIterator[bytes]) -> None:
        self.sent.append(responses)


CONTEXT = TraceContext("a" * 32, "b" * 16, True)
INFER = "/inference.GRPCInferenceService/ModelInfer"
HEADER = ("traceparent", CONTEXT.header())


class Observed:
    """An answer that is observed, and what became of it."""

    def __init__(self, path: str = INFER, *, request_id: str = "mine", context: TraceContext | None = CONTEXT) -> None:
        self.client, self.observer = Client(), Observer()
        self.record = RequestRecord(request_id, None, context)
        self.answer = ObservedAnswer(self.client, path, self.record, self.observer)


@pytest.mark.parametrize(
    ("context", "metadata", "sent"),
    [
        (None, None, None),
        (None, [("a", "b")], [("a", "b")]),
        (CONTEXT, None, (HEADER,)),
        (CONTEXT, [("a", "b")], (("a", "b"), HEADER)),
    ],
)
def test_a_response_says_where_it_is_in_its_trace(context: Any, metadata: Any, sent: Any):
    observed = Observed(context=context)
    observed.answer.model, observed.answer.version = "m", "2"
    observed.answer.respond(b"four", metadata)
    assert observed.client.sent == [(b"four", sent)]
    assert observed.observer.ends == [("grpc", INFER, GrpcStatus.OK, 4, "m", "2")]


@pytest.mark.parametrize(
    ("request_id", "trailing", "sent"),
    [
        ("mine", (), (("x-request-id", "mine"),)),
        ("mine", (("a", "b"),), (("a", "b"), ("x-request-id", "mine"))),
        ("mine", (("x-z", "b"),), (("x-z", "b"), ("x-request-id", "mine"))),
        ("mine", (("x-z", "b"), ("x-request-id", "its own")), (("x-z", "b"), ("x-request-id", "its own"))),
        ("mine", (("x-request-id", "its own"),), (("x-request-id", "its own"),)),
        ("é", (), ()),
        ("a\nb", (("a", "b"),), (("a", "b"),)),
    ],
)
def test_a_failure_has_its_requests_id_where_that_can_be_sent(request_id: str, trailing: Any, sent: Any):
    observed = Observed(request_id=request_id)
    observed.answer.fail(Failure(GrpcStatus.NOT_FOUND, "gone", trailing))
    assert observed.client.sent == [Failure(GrpcStatus.NOT_FOUND, "gone", sent)]
    assert observed.observer.ends == [("grpc", INFER, GrpcStatus.NOT_FOUND, 0, "", "")]


async def test_a_stream_is_begun_and_tells_its_end_itself():
    observed, stream = Observed(), Stream([RESPONSE])
    observed.answer.begin(stream.responses)
    assert observed.client.sent == [stream.responses]
    assert observed.observer.ends == []
    await stream.fill()
    assert [one async for one in stream.responses] == [PAYLOAD]
    assert observed.observer.ends == [("grpc", INFER, GrpcStatus.OK, len(PAYLOAD), "", "")]


def test_an_end_is_told_once():
    observed = Observed()
    observed.answer.end(GrpcStatus.CANCELLED, 3)
    observed.answer.respond(b"late", None)
    observed.answer.end(GrpcStatus.OK, 5)
    assert observed.observer.ends == [("grpc", INFER, GrpcStatus.CANCELLED, 3, "", "")]
    assert len(observed.observer.spans) == 1


SERVICE = "/inference.GRPCInferenceService"


@pytest.mark.parametrize(
    ("path", "context", "is_traced"),
    [
        (INFER, CONTEXT, True),
        (f"{SERVICE}/ServerMetadata", CONTEXT, True),
        (INFER, None, False),
        ("/grpc.health.v1.Health/Check", CONTEXT, False),
        (f"{SERVICE}/ServerLive", CONTEXT, False),
        (f"{SERVICE}/ServerReady", CONTEXT, False),
        (f"{SERVICE}/ModelReady", CONTEXT, False),
        (f"{SERVICE}/ModelReady", None, False),
    ],
)
def test_each_call_but_a_probe_has_a_span_by_its_name(path: str, context: Any, is_traced: bool):
    observed = Observed(path, context=context)
    observed.answer.end(GrpcStatus.INTERNAL, 0)
    names = [name for name, _ in observed.observer.spans]
    assert names == ([path.removeprefix("/")] if is_traced else [])
    for _, attributes in observed.observer.spans:
        assert attributes["rpc.method"] == path.removeprefix("/")
        assert attributes["error.type"] == "INTERNAL"


def test_who_leaves_cancels_its_request_and_is_told_as_cancelled_with_nothing_sent():
    observed = Observed()
    stream = Stream([])
    LeavingCall(stream, observed.answer).cancel()
    assert stream.cancels == 1
    assert observed.observer.ends == [("grpc", INFER, GrpcStatus.CANCELLED, 0, "", "")]
    assert observed.client.sent == []


@pytest.mark.parametrize("context", [CONTEXT, None])
def test_metadata_goes_on_with_the_requests_id_and_the_span_that_asks(context: TraceContext | None):
    record = RequestRecord("mine", None, context)
    found = RecordedMetadata({"a": "b", "x-request-id": "other", "traceparent": "other"}, record)
    assert found.record is record
    work = "other" if record.work is None else record.work.header()
    assert dict(found) == {"a": "b", "x-request-id": "mine", "traceparent": work}


@pytest.mark.parametrize(
    ("code", "is_error"), [(GrpcStatus.OK, False), (GrpcStatus.NOT_FOUND, False), (GrpcStatus.INTERNAL, True)]
)
def test_a_span_of_a_server_has_the_servers_errors_alone(code: int, is_error: bool, monkeypatch: pytest.MonkeyPatch):
    observed, spans = Observed(), []
    monkeypatch.setattr(observed.observer, "emit", lambda record, name, attributes: spans.append((name, attributes)))
    observed.answer.end(code, 0)
    ((name, attributes),) = spans
    assert name == attributes["rpc.method"] == INFER[1:]
    assert ("error.type" in attributes) is is_error


@pytest.mark.parametrize(
    ("error", "code", "trailing"),
    [
        (NotFound("why"), GrpcStatus.NOT_FOUND, ()),
        (InvalidInput("why"), GrpcStatus.INVALID_ARGUMENT, ()),
        (Overloaded("why", 2.4), GrpcStatus.RESOURCE_EXHAUSTED, (("retry-after", "3"),)),
        (Overloaded("why", 0.0), GrpcStatus.RESOURCE_EXHAUSTED, (("retry-after", "1"),)),
        (Conflict("why"), Conflict("").grpc_status, ()),
    ],
)
def test_an_error_is_its_status_and_says_when_to_come_back(error: SerinusError, code: int, trailing: Any):
    assert failure_of(error) == Failure(code, "why", trailing)


def test_a_missing_token_is_asked_for():
    failure = failure_of(Unauthenticated("why", invalid=False))
    assert failure == Failure(GrpcStatus.UNAUTHENTICATED, "why", (("www-authenticate", 'Bearer realm="serinus"'),))


def test_what_nobody_foresaw_is_logged_and_told_nothing_of_but_its_id(caplog: pytest.LogCaptureFixture):
    failure = failure_of(ZeroDivisionError("secret"), {"x-request-id": "abc"})
    assert (failure.code, failure.trailing) == (GrpcStatus.INTERNAL, (("x-request-id", "abc"),))
    assert "secret" not in failure.message
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == ("serinus.grpc", "a gRPC call failed")
    assert failure_of(ZeroDivisionError("secret"), {"x-request-id": "é"}).trailing == ()


@pytest.mark.parametrize(("length", "kept"), [(4095, 4095), (4096, 4096), (4097, 4096), (9000, 4096)])
def test_a_message_is_cut_where_clients_would_refuse_it(length: int, kept: int):
    message = failure_of(NotFound("x" * length)).message
    assert len(message) == kept
    assert message.endswith("xxx" if length == kept else "x...")


def response(**headers: Any) -> InferResponse:
    return InferResponse("m", [], headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("answer", "asked", "sent"),
    [
        (None, {}, None),
        (None, {"x-request-id": "i"}, (("x-request-id", "i"),)),
        (response(), {}, None),
        (response(), {"x-request-id": "i", "other": "1"}, (("x-request-id", "i"),)),
        (response(X_Model="Echo"), {}, (("x-model", "Echo"),)),
        (response(a=1), {"x-request-id": "i"}, (("x-request-id", "i"), ("a", "1"))),
        (response(x_request_id="own"), {"x-request-id": "i"}, (("x-request-id", "own"),)),
        (response(**{"a.b_c": "1"}), {}, (("a.b-c", "1"),)),
        *(
            (response(**{name: "1", "good": "2"}), {}, (("good", "2"),))
            for name in (
                *("Content-Type", "content-length", "Content-Encoding", "Transfer-Encoding", "TE", "Connection"),
                *(
                    "keep-alive",
                    "host",
                    "grpc-status",
                    "GRPC-Message",
                    ":path",
                    "x-bin",
                    "a b",
                    "a/b",
                    "naïve",
                    "--",
                    "",
                ),
            )
        ),
        *((response(bad=value, good="2"), {}, (("good", "2"),)) for value in ("ü", "a\nb", "\x00")),
        (response(te="1"), {}, ()),
    ],
)
def test_a_models_headers_go_along_where_grpc_can_carry_them(answer: Any, asked: Mapping[str, str], sent: Any):
    assert initial_metadata(answer, asked) == sent
