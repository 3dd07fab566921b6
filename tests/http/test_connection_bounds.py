"""One connection at its bounds, at the end of its input, and asked for the same twice; over a transport of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from connection_support import GET, Joined
from serinus.server.http.exchange import HttpLimits

pytestmark = pytest.mark.asyncio


@pytest.fixture
async def joined():
    made = Joined()
    yield made
    made.close()


# Bounds


POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.mark.parametrize(("size", "taken"), [(100, True), (101, False)])
async def test_a_body_of_the_limit_is_taken_and_of_one_byte_more_refused_before_it_comes(size: int, taken: bool):
    joined = Joined(HttpLimits(body_bytes=100))
    joined.feed(POST % size)
    assert (b" 413 " in joined.wire.text) is not taken
    joined.feed(b"x" * size)
    assert [len(exchange.body) for exchange in joined.app.held] == ([100] if taken else [])
    joined.feed(GET)
    assert len(joined.app.held) == (2 if taken else 1), "the connection lives on"
    joined.close()


@pytest.mark.parametrize(("last", "taken"), [(40, True), (41, False)])
async def test_chunks_are_refused_with_the_byte_that_is_too_much(last: int, taken: bool):
    joined = Joined(HttpLimits(body_bytes=100))
    joined.feed(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for size in (60, last):
        joined.feed(b"%x\r\n%b\r\n" % (size, b"x" * size))
    if taken:
        assert joined.wire.text == b""
        joined.feed(b"0\r\n\r\n")
        assert joined.app.held[0].body == b"x" * 100
    else:
        assert b" 413 " in joined.wire.text
        assert b"the body has more than 101 bytes; at most 100 are taken (max_body_bytes)" in joined.wire.text
    joined.close()


@pytest.mark.parametrize(("size", "status"), [(50, None), (51, b" 414 ")])
async def test_a_target_of_the_limit_is_taken_and_a_longer_one_refused(size: int, status: bytes | None):
    joined = Joined(HttpLimits(target_bytes=50))
    joined.feed(b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"a" * (size - 1)))
    assert len(joined.app.held) == (1 if status is None else 0)
    assert status is None or status in joined.wire.text
    joined.close()


async def test_a_head_that_comes_in_many_reads_is_refused_when_it_is_too_large_and_not_before():
    joined = Joined(HttpLimits(head_bytes=1000))
    joined.feed(b"GET / HTTP/1.1\r\n")
    for _ in range(10):
        joined.feed(b"a: %b\r\n" % (b"x" * 95))
    assert joined.wire.text == b""
    joined.feed(b"a: b\r\n")
    assert b" 431 " in joined.wire.text
    joined.close()


async def test_a_long_body_in_small_reads_is_no_large_head():
    joined = Joined(HttpLimits(head_bytes=100))
    joined.feed(POST % 1000)
    for _ in range(10):
        joined.feed(b"x" * 100)
    assert len(joined.app.held[0].body) == 1000
    joined.feed(POST % 3)
    joined.feed(b"abc")
    assert joined.app.held[1].body == b"abc"
    joined.close()


# The end of input


class Later:
    """A loop that notes who wants to be called, and calls when told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.calls: list[tuple[float, Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_later(self, delay: float, call: Any) -> Any:
        self.calls.append((delay, call))
        return self

    def cancel(self) -> None:
        self.calls.clear()

    def due(self) -> float:
        """Call the one that waits; return how long it had to."""
        ((delay, call),) = self.calls
        self.calls.clear()
        call()
        return delay


@pytest.mark.parametrize(
    ("request_", "interim"),
    [(GET, True), (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", False), (b"GET / HTTP/1.0\r\n\r\n", False)],
    ids=["1.1", "1.0 kept", "1.0"],
)
async def test_a_client_that_sends_no_more_is_asked_once_whether_it_is_still_there(request_: bytes, interim: bool):
    joined = Joined()
    joined.server.loop = later = Later(joined.server.loop)  # type: ignore[assignment]
    joined.feed(request_)
    assert joined.connection.eof_received() is True
    assert later.due() == 0.25
    assert joined.wire.text == (b"HTTP/1.1 100 Continue\r\n\r\n" if interim else b"")
    assert later.due() == 0.25
    assert joined.wire.text.count(b"100 Continue") == interim
    joined.answer(b"late")
    assert joined.wire.text.endswith(b"late")
    assert joined.wire.asked == ["close"]
    joined.close()


async def test_nobody_is_asked_when_the_answer_was_given_or_the_client_is_gone():
    joined = Joined()
    joined.server.loop = later = Later(joined.server.loop)  # type: ignore[assignment]
    joined.feed(GET)
    joined.connection.eof_received()
    ((_, probe),) = later.calls
    joined.connection.connection_lost(None)
    assert later.calls == [], "the timer was cancelled"
    probe()
    assert joined.wire.text == b""
    joined.server._timer.cancel()


async def test_over_tls_the_end_of_input_is_the_end(joined: Joined):
    joined.feed(GET)
    joined.connection._tls = True
    assert joined.connection.eof_received() is False


# 100-continue


EXPECTS = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"


async def test_a_body_that_waits_to_be_asked_for_is_asked_for_when_all_before_it_is_answered(joined: Joined):
    joined.feed(GET + EXPECTS)
    assert joined.wire.text == b""
    joined.answer(b"first")
    assert joined.wire.text.endswith(b"firstHTTP/1.1 100 Continue\r\n\r\n")
    joined.feed(b"abc")
    assert joined.app.held[0].body == b"abc"
    assert joined.wire.text.count(b"100 Continue") == 1


async def test_a_client_that_does_not_wait_for_it_is_understood_too(joined: Joined):
    joined.feed(EXPECTS + b"abc" + GET)
    assert [exchange.body for exchange in joined.app.held] == [b"abc", b""]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: more\r\nContent-Length: 3\r\n\r\n", b" 417 "),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n", None),
        (b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n", None),
    ],
    ids=["another", "no body", "1.0"],
)
async def test_an_expectation_is_met_only_where_there_is_one_to_meet(joined: Joined, head: bytes, status: bytes | None):
    joined.feed(head)
    assert b"100 Continue" not in joined.wire.text
    assert (status or b"") in joined.wire.text


# Answers


async def test_what_is_answered_twice_or_after_its_pieces_is_answered_once(joined: Joined):
    joined.feed(GET * 2)
    first, second = joined.app.held
    first.respond(200, "text/plain", [b"one"])
    first.respond(200, "text/plain", [b"two"])
    first.begin(200, "text/plain")
    first.finish()
    second.finish()
    await second.send(b"before it began")
    second.respond(404, "", [])
    await asyncio.sleep(0)
    assert joined.wire.text.count(b"HTTP/1.1 ") == 2
    assert b"one" in joined.wire.text
    assert b"two" not in joined.wire.text
    assert joined.wire.text.endswith(b"Content-Length: 0\r\n\r\n")


async def test_pieces_while_draining_say_that_they_are_the_last(joined: Joined):
    joined.feed(GET)
    joined.server.closing = True
    exchange = joined.app.held.pop()
    exchange.begin(200, "text/plain", [(b"A", b"b")])
    await exchange.send(b"ab")
    exchange.finish()
    assert b"Connection: close" in joined.wire.text
    assert b"A: b\r\n" in joined.wire.text
    assert joined.wire.text.endswith(b"2\r\nab\r\n0\r\n\r\n")
    assert joined.wire.asked == ["close"]


async def test_a_large_piece_leaves_at_once_and_small_ones_together(joined: Joined):
    joined.feed(GET)
    exchange = joined.app.held.pop()
    exchange.begin(200, "text/plain")
    await exchange.send(b"a")
    await exchange.send(b"b")
    assert joined.wire.writes == []
    await asyncio.sleep(0)
    assert len(joined.wire.writes) == 1
    await exchange.send(b"x" * 65_537)
    assert len(joined.wire.writes) == 2, "without waiting for the end of the turn"
    exchange.finish()


async def test_an_old_client_that_asks_to_be_kept_is_told_that_it_is(joined: Joined):
    joined.feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    joined.answer()
    assert b"Connection: keep-alive\r\n" in joined.wire.text
    assert joined.wire.asked == []
    joined.feed(b"GET / HTTP/1.0\r\n\r\n")
    joined.answer()
    assert joined.wire.asked == ["close"]


async def test_a_client_that_wants_the_connection_closed_gets_it_closed(joined: Joined):
    joined.feed(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    joined.answer()
    assert b"Connection: close\r\n" in joined.wire.text
    assert joined.wire.asked == ["close"]


async def test_a_refusal_waits_for_its_turn_and_ends_the_connection(joined: Joined):
    joined.feed(GET + b"GET / HTTP/1.1\r\n\r\n")
    assert joined.wire.text == b""
    joined.answer(b"first")
    assert joined.wire.text.index(b"first") < joined.wire.text.index(b" 400 ")
    assert joined.wire.asked == ["eof"], "gently: the client may still be sending"
    joined.feed(GET)
    assert joined.app.held == []


async def test_while_the_loop_is_late_a_client_that_sends_no_more_is_asked_at_once():
    joined = Joined()
    joined.server.loop = later = Later(joined.server.loop)  # type: ignore[assignment]
    joined.server.arrivals.note(1.0)
    joined.feed(GET)
    joined.connection.eof_received()
    assert later.due() == 0.0
    assert joined.wire.text == b"HTTP/1.1 100 Continue\r\n\r\n"
    joined.answer(b"late")
    joined.close()
