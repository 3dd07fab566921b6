"""What a client is told of a request that is not answered: one refusal, which both transports render."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import SimpleNamespace

import pytest

from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import (
    GrpcStatus,
    InvalidInput,
    MethodNotAllowed,
    ModelFailed,
    NotReady,
    Overloaded,
    SerinusError,
    Unauthenticated,
)
from serinus.server.grpc.answers import failure_of
from serinus.server.http.exchange import Exchange, Headers
from serinus.server.refusals import refuse
from serinus.server.rest.responder import Responder

LOG = logging.getLogger("tests.refusals")


class Answered(Exchange):
    """Remembers the answer."""

    def __init__(self) -> None:
        super().__init__(b"GET", b"/", Headers([]), b"")
        self.fields: dict[bytes, bytes] = {}
        self.status = 0

    def respond(self, status, content_type, chunks, extra=()) -> None:
        self.status, self.fields = status, dict(extra)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [(Overloaded("full", 1.4), 2), (Overloaded("full", 0.01), 1), (Overloaded("full", 3.0), 3), (NotReady("loads"), 1)],
    ids=["1.4 s", "10 ms", "3 s", "not ready"],
)
def test_when_to_come_back_is_the_same_number_over_rest_and_grpc(error, seconds: int):
    exchange = Answered()
    Responder(metrics=Metrics(), body_bytes=1).fail(exchange, error)
    assert exchange.status == error.http_status
    assert exchange.fields[b"Retry-After"] == b"%d" % seconds
    failure = failure_of(error)
    assert (failure.code, dict(failure.trailing)) == (error.grpc_status, {"retry-after": str(seconds)})


def test_waiting_is_not_advised_where_it_does_not_help():
    exchange = Answered()
    Responder(metrics=Metrics(), body_bytes=1).fail(exchange, InvalidInput("no"))
    assert (exchange.status, b"Retry-After" in exchange.fields) == (400, False)
    assert failure_of(InvalidInput("no")).trailing == ()


def test_what_nobody_foresaw_is_told_by_the_same_words_and_logged_once(caplog: pytest.LogCaptureFixture):
    refusal = refuse(ZeroDivisionError("secret"), lambda: "a request", log=LOG)
    assert (refusal.http_status, refusal.grpc_status) == (500, GrpcStatus.INTERNAL)
    assert "secret" not in refusal.message
    assert [record.exc_info is not None for record in caplog.records] == [True]
    assert failure_of(ZeroDivisionError("secret")).message == refusal.message


def test_the_methods_of_a_path_are_told():
    assert refuse(MethodNotAllowed("no", ["GET", "HEAD"]), lambda: "a request", log=LOG).allow == ("GET", "HEAD")


ID, TRACE = "an-id", "4bf92f3577b34da6a3ce929d0e0e4736"
PLAIN: Mapping[str, str] = {"x-request-id": ID, "traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}


class Recorded(dict[str, str]):
    """Headers of a request that is observed."""

    def __init__(self, trace_id: str = "") -> None:
        super().__init__()
        self.record = SimpleNamespace(request_id=ID, trace_id=trace_id)


def failed(request_id: str = "") -> ModelFailed:
    error = ModelFailed("no")
    error.request_id = request_id
    return error


@pytest.mark.parametrize(
    ("error", "headers", "ids"),
    [
        (failed(), PLAIN, {}),
        (failed("own"), PLAIN, {"request_id": "own", "trace_id": TRACE}),
        (failed("own"), {}, {"request_id": "own"}),
        (failed(), {}, {}),
        (failed(), Recorded(), {"request_id": ID}),
        (failed(), Recorded(TRACE), {"request_id": ID, "trace_id": TRACE}),
        (failed("own"), Recorded(TRACE), {"request_id": "own", "trace_id": TRACE}),
        (failed("own"), Recorded(), {"request_id": "own"}),
        (InvalidInput("no"), Recorded(TRACE), {}),
        (Overloaded("full", 1.0), Recorded(TRACE), {}),
        (NotReady("loads"), Recorded(TRACE), {"request_id": ID, "trace_id": TRACE}),
    ],
)
def test_an_error_of_ours_is_told_by_the_ids_of_its_own_line_of_the_log_or_of_the_requests(
    error: SerinusError, headers: Mapping[str, str], ids: dict[str, str]
):
    assert refuse(error, lambda: "a request", log=LOG, headers=headers).ids == ids


def test_what_nobody_foresaw_has_the_ids_of_its_line_of_the_log(caplog: pytest.LogCaptureFixture):
    for headers, expected in ((PLAIN, {"request_id": ID, "trace_id": TRACE}), (Recorded(), {"request_id": ID})):
        caplog.clear()
        refusal = refuse(ZeroDivisionError("no"), lambda: "a request", log=LOG, headers=headers)
        (record,) = caplog.records
        assert refusal.ids == vars(record)["ids"] == expected
    refusal = refuse(ZeroDivisionError("no"), lambda: "a request", log=LOG)
    assert refusal.ids == vars(caplog.records[-1])["ids"]
    assert refusal.ids["request_id"]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (NotReady("loads", 2.5), 3),
        (Overloaded("full", 0.0), 1),
        (Overloaded("full", 1.0), 1),
        (Overloaded("full", 1.001), 2),
        (NotReady("loads"), 1),
        (ModelFailed("no"), None),
        (InvalidInput("no"), None),
    ],
)
def test_when_to_come_back_is_in_whole_seconds_of_which_there_is_one_at_least(error: SerinusError, seconds: int | None):
    assert refuse(error, lambda: "a request", log=LOG).retry_after_s == seconds


def test_what_credentials_are_wanted_is_told_of_nothing_else():
    assert (
        refuse(Unauthenticated("who?"), lambda: "a request", log=LOG).challenge
        == Unauthenticated("who?").challenge
        != ""
    )
    for error in (InvalidInput("no"), ModelFailed("no"), MethodNotAllowed("no", ["GET"])):
        assert refuse(error, lambda: "a request", log=LOG).challenge == ""
    assert refuse(InvalidInput("no"), lambda: "a request", log=LOG).allow == ()


def test_what_is_named_for_the_log_is_asked_for_where_that_is_written_alone():
    def never() -> str:
        raise AssertionError("nothing is written")

    for error in (InvalidInput("no"), ModelFailed("no"), Overloaded("full", 1.0)):
        refuse(error, never, log=LOG)
