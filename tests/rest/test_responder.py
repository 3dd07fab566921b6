"""How answers leave: at once, from a coroutine, piece by piece, coded, or as an error."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serinus.dataplane.telemetry.metrics import Metrics
from serinus.errors import (
    InvalidInput,
    MethodNotAllowed,
    NotReady,
    Overloaded,
    TooLarge,
    Unauthenticated,
    UnsupportedMedia,
)
from serinus.server.http.exchange import Exchange, Headers
from serinus.server.rest import responder as module
from serinus.server.rest.cloudevents import CloudEventSettings
from serinus.server.rest.responder import Responder
from waiting import until

pytestmark = pytest.mark.asyncio


class Noted(Exchange):
    """Notes what it is answered with."""

    def __init__(self, body: bytes = b"", method: bytes = b"POST", target: bytes = b"/v2", **fields: str) -> None:
        raw = tuple((name.replace("_", "-").encode(), value.encode()) for name, value in fields.items())
        super().__init__(method, target, Headers(raw), body)
        self.answers: list[tuple[int, str, bytes]] = []
        self.fields: dict[bytes, bytes] = {}
        self.begun: list[tuple[int, str]] = []
        self.pieces: list[bytes] = []
        self.ended: list[bool] = []

    def respond(self, status: int, content_type: str, chunks: Any, headers: Any = ()) -> None:
        self.answers.append((status, content_type, b"".join(map(bytes, chunks))))
        self.fields = dict(headers)

    def begin(self, status: int, content_type: str, headers: Any = ()) -> None:
        self.begun.append((status, content_type))
        self.fields = dict(headers)

    async def send(self, piece: bytes) -> None:
        self.pieces.append(piece)

    def finish(self, *, whole: bool = True) -> None:
        self.ended.append(whole)


class Counts:
    """A responder, and the errors that it counts."""

    def __init__(self, **options: Any) -> None:
        self.errors: list[tuple[str, int]] = []
        metrics = Metrics()
        metrics.observe_error = lambda transport, status: self.errors.append((transport, status))  # type: ignore[method-assign]
        self.responder = Responder(metrics=metrics, body_bytes=1_000_000, **options)


async def settled(made: Counts) -> None:
    await until(lambda: not made.responder._tasks)


async def test_a_plain_request_is_answered_as_it_is_and_one_with_an_id_gets_it_back():
    made = Counts()
    plain, named, own = Noted(), Noted(x_request_id="7"), Noted(x_request_id="7")
    made.responder.reply_json(plain, {"a": 1})
    made.responder.reply(named, 201, "text/plain", [b"x", b"y"], [(b"A", b"b")])
    made.responder.reply(own, 200, "text/plain", [b"x"], [(b"X-Request-ID", b"own")])
    assert plain.answers == [(200, "application/json", b'{"a":1}')]
    assert plain.fields == {}
    assert named.answers == [(201, "text/plain", b"xy")]
    assert {name.lower(): value for name, value in named.fields.items()} == {b"a": b"b", b"x-request-id": b"7"}
    assert own.fields == {b"X-Request-ID": b"own"}


@pytest.mark.parametrize("size", [10, 16_384, 16_385], ids=["small", "the largest here", "in a thread"])
async def test_a_coded_answer_is_made_here_where_it_is_small_and_else_in_a_thread(
    size: int, monkeypatch: pytest.MonkeyPatch
):
    threads: list[threading.Thread] = []
    compress = module.compress
    monkeypatch.setattr(module, "compress", lambda *a: threads.append(threading.current_thread()) or compress(*a))
    made, exchange = Counts(), Noted(accept_encoding="gzip", x_request_id="7")
    made.responder.reply(exchange, 200, "text/plain", [b"x" * (size - 1), b"y"])
    await settled(made)
    ((status, _, body),) = exchange.answers
    assert (status, gzip.decompress(body)) == (200, b"x" * (size - 1) + b"y")
    assert exchange.fields[b"Content-Encoding"] == b"gzip"
    assert exchange.fields[b"Vary"] == b"Accept-Encoding"
    assert len(exchange.fields) == 3
    assert (threads[0] is threading.main_thread()) is (size <= 16_384)


@pytest.mark.parametrize(
    ("status", "chunks", "method"),
    [(404, [b"x"], b"GET"), (200, [], b"GET"), (200, [b"x"], b"HEAD")],
    ids=["error", "nothing", "HEAD"],
)
async def test_errors_nothing_and_heads_are_not_coded(status: int, chunks: list[bytes], method: bytes):
    made, exchange = Counts(), Noted(method=method, accept_encoding="gzip")
    made.responder.reply(exchange, status, "text/plain", chunks)
    assert exchange.answers == [(status, "text/plain", b"".join(chunks))]
    assert exchange.fields == {}


@pytest.mark.parametrize(
    ("error", "status", "fields"),
    [
        (InvalidInput("wrong"), 400, {}),
        (NotReady("soon"), 503, {b"Retry-After": b"1"}),
        (Overloaded("full", retry_after_s=2.1), None, {b"Retry-After": b"3"}),
        (Overloaded("full", retry_after_s=0.01), None, {b"Retry-After": b"1"}),
        (MethodNotAllowed("no", allow=("GET", "HEAD")), 405, {b"Allow": b"GET, HEAD"}),
        (Unauthenticated("who"), 401, {b"WWW-Authenticate": b'Bearer realm="serinus"'}),
        (
            Unauthenticated("who", realm="repository", invalid=True),
            401,
            {b"WWW-Authenticate": b'Bearer realm="repository", error="invalid_token"'},
        ),
        (UnsupportedMedia("what"), 415, {b"Accept-Encoding": b"gzip, deflate"}),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_error_says_what_helps(error: Any, status: int | None, fields: dict[bytes, bytes]):
    made, exchange, uncounted = Counts(), Noted(), Noted()
    made.responder.fail(exchange, error)
    made.responder.fail(uncounted, error, count=False)
    ((told, kind, body),) = exchange.answers
    assert told == (status or error.http_status)
    assert (kind, json.loads(body)) == ("application/json", {"error": str(error)})
    assert exchange.fields == fields
    assert made.errors == [("rest", told)]
    assert uncounted.answers == exchange.answers


async def test_a_bug_is_logged_with_the_request_and_told_nothing_of(caplog: Any):
    made, exchange = Counts(), Noted(method=b"GET", target=b"/" + b"a" * 300)
    made.responder.fail(exchange, KeyError("secret"))
    ((status, _, body),) = exchange.answers
    assert status == 500
    assert b"secret" not in body
    assert f"GET /{'a' * 199} failed" in caplog.text
    assert "KeyError: 'secret'" in caplog.text


# From coroutines


async def test_a_coroutines_answer_is_sent_and_forgotten():
    made, exchange = Counts(), Noted()

    async def work() -> Any:
        await asyncio.sleep(0)
        return 200, "text/plain", [b"x"], ((b"A", b"b"),)

    made.responder.spawn(exchange, work())
    assert exchange.pending is not None
    await settled(made)
    assert exchange.answers == [(200, "text/plain", b"x")]
    assert made.errors == []


async def test_a_coroutine_that_fails_is_an_error_and_one_whose_client_has_gone_is_nothing(caplog: Any):
    made, exchange, gone = Counts(), Noted(), Noted()

    async def fails() -> Any:
        await asyncio.sleep(0)
        raise InvalidInput("wrong")

    made.responder.spawn(exchange, fails())
    made.responder.spawn(gone, fails())
    gone.gone = True
    await settled(made)
    assert exchange.answers[0][0] == 400
    assert gone.answers == []
    assert made.errors == [("rest", 400)]


async def test_a_client_that_leaves_cancels_the_work_also_before_it_has_begun():
    made, cleaned = Counts(), []

    async def waits() -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    early, late = Noted(), Noted()
    never = waits()
    made.responder.spawn(early, never)
    early.leave()
    await settled(made)
    assert never.cr_frame is None, "closed, so that nobody is warned of a coroutine that was never awaited"
    assert cleaned == []
    made.responder.spawn(late, waits())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    late.leave()
    await settled(made)
    assert cleaned == [True]
    assert (early.answers, late.answers) == ([], [])


async def test_closing_ends_what_runs_and_says_so():
    made, exchange = Counts(), Noted()

    async def waits() -> Any:
        await asyncio.Event().wait()

    made.responder.spawn(exchange, waits())
    kept = asyncio.ensure_future(asyncio.Event().wait())
    made.responder.keep(kept)
    await asyncio.sleep(0)
    made.responder.close()
    await settled(made)
    assert kept.cancelled()
    ((status, _, body),) = exchange.answers
    assert (status, json.loads(body)) == (503, {"error": "the server is stopping"})


# In pieces


async def pieces(*parts: bytes | Exception) -> AsyncIterator[bytes]:
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


def streams(iterator: AsyncIterator[bytes]) -> Any:
    async def work() -> Any:
        return 200, "text/plain", iterator, ()

    return work()


@pytest.mark.parametrize(("parts", "sent"), [((b"a", b"", b"b"), [b"a", b"b"]), ((), []), ((b"",), [])])
async def test_pieces_are_sent_in_order_and_empty_ones_left_out(parts: tuple[bytes, ...], sent: list[bytes]):
    made, exchange = Counts(), Noted(x_request_id="7")
    made.responder.spawn(exchange, streams(pieces(*parts)))
    await settled(made)
    assert (exchange.begun, exchange.pieces, exchange.ended) == ([(200, "text/plain")], sent, [True])
    assert list(exchange.fields.values()) == [b"7"]


async def test_what_fails_before_the_first_piece_has_a_status_and_later_the_answer_breaks_off(caplog: Any):
    made, early, late, bug = Counts(), Noted(), Noted(target=b"/late"), Noted(target=b"/bug")
    made.responder.spawn(early, streams(pieces(InvalidInput("wrong"))))
    made.responder.spawn(late, streams(pieces(b"a", InvalidInput("wrong"))))
    made.responder.spawn(bug, streams(pieces(b"a", KeyError("secret"))))
    await settled(made)
    assert early.answers[0][0] == 400
    assert early.begun == []
    assert (late.answers, late.pieces, late.ended) == ([], [b"a"], [False])
    assert bug.ended == [False]
    assert "POST /late broke off: wrong" in caplog.text
    assert "POST /bug broke off" in caplog.text
    assert "KeyError: 'secret'" in caplog.text


# Bodies


def unpacked(made: Counts, exchange: Noted) -> list[tuple[bytes, bool]]:
    got: list[tuple[bytes, bool]] = []
    made.responder.unpack(exchange, lambda body, event: got.append((body, event is not None)))
    return got


async def test_a_body_comes_as_it_is_decoded_or_out_of_its_event():
    made = Counts(cloud_events=CloudEventSettings())
    assert unpacked(made, Noted(b"x")) == [(b"x", False)]
    assert unpacked(made, Noted(gzip.compress(b"x"), content_encoding="gzip")) == [(b"x", False)]
    event = {"ce_id": "1", "ce_source": "s", "ce_type": "t", "ce_specversion": "1.0"}
    assert unpacked(made, Noted(b"x", **event)) == [(b"x", True)]


async def test_a_large_coded_body_is_undone_in_a_thread_and_its_errors_are_answers():
    made, body = Counts(), random.Random(1).randbytes(300_000)
    exchange = Noted(gzip.compress(body), content_encoding="gzip")
    got = unpacked(made, exchange)
    assert got == [], "later"
    await settled(made)
    assert got == [(body, False)]
    damaged = Noted(gzip.compress(body)[:-9], content_encoding="gzip")
    assert unpacked(made, damaged) == []
    await settled(made)
    assert damaged.answers[0][0] == 400
    gone = Noted(gzip.compress(body), content_encoding="gzip")
    never = unpacked(made, gone)
    gone.gone = True
    await settled(made)
    assert (never, gone.answers) == ([], [])
    with pytest.raises(TooLarge):
        unpacked(made, Noted(gzip.compress(bytes(1_000_001)), content_encoding="gzip"))


@pytest.mark.parametrize(
    ("kind", "fits"),
    [
        ("application/json", True),
        ("application/json; charset=utf-8", True),
        ('application/json; charset="UTF-8"', True),
        ("application/json;charset=us-ascii", True),
        ("application/json; x=y", True),
        ("charset=latin-1", True),
        ("application/json; charset=latin-1", False),
        ("application/json; x=y; charset=utf-16", False),
    ],
)
async def test_json_is_utf8(kind: str, fits: bool):
    made = Counts()
    if fits:
        assert unpacked(made, Noted(b"x", content_type=kind)) == [(b"x", False)]
    else:
        with pytest.raises(UnsupportedMedia, match="is not offered; expected utf-8"):
            unpacked(made, Noted(b"x", content_type=kind))


async def test_what_the_plane_says_is_rendered_now_or_when_it_comes():
    made, now, later = Counts(), Noted(), Noted()

    async def value() -> int:
        return 7

    def render(value: int) -> Any:
        return 200, "text/plain", [b"%d" % value], ()

    made.responder.answer(now, 5, render)
    made.responder.answer(later, value(), render)
    assert now.answers == [(200, "text/plain", b"5")]
    await settled(made)
    assert later.answers == [(200, "text/plain", b"7")]
