"""What a client is told of a request that is not answered: one refusal, which both transports render."""

from __future__ import annotations

import logging

import pytest

from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import GrpcStatus, InvalidInput, MethodNotAllowed, NotReady, Overloaded
from serinus.server.grpc.service import failure_of
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
