"""One connection over a transport of the test's own, by a clock of the test's own: what is written, when it ends, when it reads.

A real socket cannot be made to fill at a chosen byte, nor a minute to pass; all other tests of connections use real ones.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serinus.errors import SerinusError
from serinus.server.http.connection import Connection
from serinus.server.http.connection_state import FULL, OPEN
from serinus.server.http.exchange import LINGER_S, Exchange, HttpLimits
from serinus.server.http.thin import ThinServer

pytestmark = pytest.mark.asyncio

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LIMITS = HttpLimits(request_timeout_s=60, keep_alive_s=65)
TICK_S = 1.0


class Wire(asyncio.Transport):
    """Notes each write as it came, and what else is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[list[bytes]] = []
        self.asked: list[str] = []
        self.waiting = 0
        self.closing = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        self.writes.append([bytes(data)])

    def writelines(self, parts: Any) -> None:
        self.writes.append([bytes(part) for part in parts])

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.asked.append("eof")

    def pause_reading(self) -> None:
        self.asked.append("pause")

    def resume_reading(self) -> None:
        self.asked.append("resume")

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.asked.append("close")
        self.closing = True

    def abort(self) -> None:
        self.asked.append("abort")
        self.closing = True

    @property
    def text(self) -> bytes:
        return b"".join(b"".join(parts) for parts in self.writes)


class App:
    """Keeps each request until it is answered by the test."""

    def __init__(self) -> None:
        self.held: list[Exchange] = []
        self.cancelled = 0

    def __call__(self, exchange: Exchange) -> None:
        exchange.pending = self
        self.held.append(exchange)

    def error_body(self, error: SerinusError) -> bytes:
        return str(error).encode()

    def cancel(self) -> None:
        self.cancelled += 1


class Joined:
    """A connection, its wire and its server, whose clock stands at 1000 s."""

    def __init__(self, limits: HttpLimits = LIMITS, observer: Any = None) -> None:
        self.app, self.wire = App(), Wire()
        self.server = ThinServer(self.app, limits, observer=observer)
        self.server.loop = asyncio.get_running_loop()
        self.server._date = b"today"
        self.server._timer = self.server.loop.call_later(3600, lambda: None)
        self.server.now = 1000.0
        self.connection = Connection(self.server)
        self.connection.connection_made(self.wire)

    def feed(self, data: bytes) -> None:
        self.connection.data_received(data)

    def tick(self, after_s: float) -> list[str]:
        """Let so many seconds pass since the beginning, and look."""
        self.server.now = 1000.0 + after_s
        self.connection.tick(self.server.now)
        return self.wire.asked

    def answer(self, body: bytes = b"ok", **fields: Any) -> None:
        self.app.held.pop(0).respond(200, "text/plain", [body], **fields)

    def close(self) -> None:
        if self.server.connection_count:
            self.connection.connection_lost(None)
        self.server._timer.cancel()


@pytest.fixture
async def joined():
    made = Joined()
    yield made
    made.close()


# What leaves together


@pytest.mark.parametrize(("size", "pieces"), [(0, 1), (65_536, 1), (65_537, 2), (1_000_000, 2)])
async def test_an_answer_of_64_KiB_is_one_buffer_and_a_larger_one_is_not_copied(joined: Joined, size: int, pieces: int):
    joined.feed(GET)
    joined.answer(b"x" * size)
    (write,) = joined.wire.writes
    assert len(write) == pieces
    assert b"Content-Length: %d\r\n\r\n" % size in write[0]
    assert b"".join(write).endswith(b"x" * size)


async def test_answers_of_one_turn_leave_together_and_sixteen_at_once_do_not_wait_for_its_end(joined: Joined):
    joined.feed(GET * 20)
    first = joined.app.held.pop(0)
    for _ in range(15):
        joined.answer()
    assert joined.wire.writes == [], "the first is not answered yet"
    first.respond(200, "text/plain", [b"first"])
    assert [len(write) for write in joined.wire.writes] == [16]
    assert joined.wire.text.index(b"first") < joined.wire.text.index(b"ok")
    joined.answer()
    assert len(joined.wire.writes) == 1, "at the end of this turn"
    await asyncio.sleep(0)
    assert [len(write) for write in joined.wire.writes] == [16, 1]


async def test_the_last_answer_that_is_due_leaves_at_once(joined: Joined):
    joined.feed(GET)
    joined.answer()
    assert len(joined.wire.writes) == 1


# Answers in pieces


@pytest.mark.parametrize(
    ("method", "body"),
    [(b"GET", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), (b"POST", b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"), (b"HEAD", b"")],
)
async def test_an_answer_in_pieces_is_chunked_and_of_a_head_only_its_head(joined: Joined, method: bytes, body: bytes):
    observed: list[tuple[int, int]] = []
    joined.server.observer = lambda exchange, status, length: observed.append((status, length))
    joined.feed(method + b" / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    exchange = joined.app.held.pop()
    exchange.begin(200, "text/plain")
    for piece in (b"ab", b"c"):
        await exchange.send(piece)
    exchange.finish()
    exchange.finish()
    await asyncio.sleep(0)
    head, _, rest = joined.wire.text.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head
    assert b"Connection: close" not in head
    assert rest == body
    assert observed == [(200, 3 if body else 0)]
    joined.feed(GET)
    assert len(joined.app.held) == 1, "the connection lives on"


async def test_an_old_client_gets_the_pieces_as_they_are_and_then_the_end(joined: Joined):
    joined.feed(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    exchange = joined.app.held.pop()
    exchange.begin(200, "text/plain")
    await exchange.send(b"ab")
    exchange.finish()
    head, _, rest = joined.wire.text.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert b"Connection: close" in head
    assert rest == b"ab"
    assert joined.wire.asked == ["close"]


async def test_an_answer_that_breaks_off_ends_the_connection_without_its_last_chunk(joined: Joined):
    joined.feed(GET)
    exchange = joined.app.held.pop()
    exchange.begin(200, "text/plain")
    await exchange.send(b"ab")
    exchange.finish(whole=False)
    assert joined.wire.text.endswith(b"2\r\nab\r\n")
    assert joined.wire.asked == ["close"]


async def test_the_sender_of_pieces_waits_for_its_turn_and_for_the_client(joined: Joined):
    joined.feed(GET * 2)
    first, second = joined.app.held
    second.begin(200, "text/plain")
    waits = asyncio.ensure_future(second.send(b"ab"))
    await asyncio.sleep(0)
    assert not waits.done(), "the answer before it is not written"
    first.respond(200, "text/plain", [b"first"])
    await asyncio.wait_for(waits, 5)
    assert joined.wire.text.index(b"first") < joined.wire.text.index(b"ab")
    joined.connection.pause_writing()
    held = asyncio.ensure_future(second.send(b"cd"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not held.done(), "the client does not read"
    joined.connection.resume_writing()
    await asyncio.wait_for(held, 5)
    joined.connection.pause_writing()
    left = asyncio.ensure_future(second.send(b"ef"))
    await asyncio.sleep(0)
    joined.connection.connection_lost(None)
    await asyncio.wait_for(left, 5)
    assert second.gone
    await second.send(b"nobody listens")
    second.finish()


# Back-pressure


async def test_beyond_the_pipeline_nothing_more_is_read_until_there_is_room():
    joined = Joined(HttpLimits(pipeline=2))
    joined.feed(GET * 2)
    assert (len(joined.app.held), joined.wire.asked) == (2, [])
    joined.feed(GET * 3)
    assert (len(joined.app.held), joined.wire.asked) == (2, ["pause"])
    joined.answer()
    assert len(joined.app.held) == 2, "one of the waiting has its turn"
    assert joined.wire.asked == ["pause"]
    joined.answer()
    assert (len(joined.app.held), joined.wire.asked) == (2, ["pause"])
    joined.answer()
    assert (len(joined.app.held), joined.wire.asked) == (2, ["pause", "resume"])
    joined.feed(GET)
    assert joined.wire.asked == ["pause", "resume", "pause"]
    joined.close()


async def test_a_client_that_does_not_read_gets_no_further_request_begun_and_is_read_no_more(joined: Joined):
    joined.feed(GET)
    joined.connection.pause_writing()
    assert joined.wire.asked == ["pause"]
    joined.feed(GET * 2)
    assert len(joined.app.held) == 1, "they wait"
    joined.answer()
    assert len(joined.app.held) == 0
    assert joined.connection.writing is FULL
    joined.connection.resume_writing()
    assert joined.connection.writing is OPEN
    assert len(joined.app.held) == 2, "now they begin, in order"
    assert joined.wire.asked == ["pause", "resume"]


async def test_gathered_bodies_beyond_the_largest_one_are_read_no_further():
    joined = Joined(HttpLimits(body_bytes=10_000))
    chunks = b"".join(b"%x\r\n%b\r\n" % (3000, b"x" * 3000) for _ in range(3)) + b"0\r\n\r\n"
    post = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    joined.feed(post)
    assert joined.wire.asked == []
    joined.feed(post)
    assert joined.wire.asked == ["pause"]
    assert [len(exchange.body) for exchange in joined.app.held] == [9000, 9000]
    joined.answer()
    assert joined.wire.asked == ["pause", "resume"], "its bytes are given back"
    joined.answer()
    assert joined.connection._held == 0
    joined.close()


# Time


@pytest.mark.parametrize(
    ("script", "after_s", "asked"),
    [
        pytest.param(b"", 66.0, [], id="idle, just within"),
        pytest.param(b"", 66.1, ["close"], id="idle, beyond"),
        pytest.param(GET, 10_000, [], id="at work"),
    ],
)
async def test_an_idle_connection_is_kept_for_its_time_and_one_at_work_for_ever(
    joined: Joined, script: bytes, after_s: float, asked: list[str]
):
    assert (LIMITS.keep_alive_s, joined.server.tick_s) == (65, TICK_S)
    joined.feed(script)
    assert joined.tick(after_s) == asked


async def test_idle_time_begins_with_the_last_answer(joined: Joined):
    joined.feed(GET)
    joined.server.now = 1100.0
    joined.answer()
    assert joined.tick(166.0) == []
    assert joined.tick(166.1) == ["close"]


@pytest.mark.parametrize(
    "part",
    [
        GET[:10],
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
    ],
    ids=["head", "no body", "body"],
)
async def test_a_request_that_takes_more_than_its_time_is_408_and_the_client_may_still_read_it(
    joined: Joined, part: bytes
):
    joined.server.now = 1005.0
    joined.feed(part)
    assert joined.tick(66.0) == []
    assert joined.wire.writes == []
    assert joined.tick(66.1) == ["eof"]
    assert b" 408 " in joined.wire.text
    assert b"the request was not complete after 60 seconds" in joined.wire.text
    assert joined.tick(66.1 + LINGER_S + TICK_S) == ["eof"]
    assert joined.tick(66.2 + LINGER_S + TICK_S) == ["eof", "abort"], "it has not closed"


async def test_a_reader_that_takes_nothing_for_its_time_is_dropped_and_one_that_takes_a_little_is_not(joined: Joined):
    joined.feed(GET)
    joined.wire.waiting = 5000
    joined.server.now = 1010.0
    joined.connection.pause_writing()
    assert joined.tick(71.0) == ["pause"]
    joined.wire.waiting = 4999
    assert joined.tick(71.1) == ["pause"], "a byte was taken: its time begins again"
    assert joined.tick(132.0) == ["pause"]
    assert joined.tick(132.2) == ["pause", "abort"]


async def test_a_transport_that_closes_and_is_not_read_is_aborted(joined: Joined):
    joined.feed(GET)
    joined.wire.closing, joined.wire.waiting = True, 7
    joined.tick(1.0)
    assert joined.tick(62.0) == []
    assert joined.tick(62.1) == ["abort"]


async def test_a_body_that_was_refused_has_twice_its_time_to_come():
    joined = Joined(HttpLimits(body_bytes=100, request_timeout_s=60))
    joined.feed(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 150\r\n\r\n" + b"x" * 20)
    assert b" 413 " in joined.wire.text
    assert joined.tick(121.0) == []
    assert joined.tick(121.1) == ["abort"]
    joined.close()


async def test_time_that_we_did_not_read_is_not_the_clients():
    joined = Joined(HttpLimits(pipeline=1, request_timeout_s=60, keep_alive_s=65))
    joined.feed(GET * 2 + GET[:10])
    assert joined.wire.asked == ["pause"]
    assert joined.tick(500.0) == ["pause"], "it cannot send while we do not read"
    joined.answer()
    assert joined.wire.asked == ["pause", "resume"]
    assert joined.tick(561.0) == ["pause", "resume"]
    joined.tick(561.1)
    joined.answer()
    assert b" 408 " in joined.wire.text
    joined.close()


# The end


async def test_draining_closes_what_is_idle_alone(joined: Joined):
    joined.feed(GET)
    joined.connection.finish()
    assert joined.wire.asked == []
    joined.answer()
    joined.feed(GET[:10])
    joined.connection.finish()
    assert joined.wire.asked == [], "a request is on its way"
    joined.feed(GET[10:])
    joined.answer()
    joined.connection.finish()
    assert joined.wire.asked == ["close"]


async def test_while_draining_each_answer_says_that_it_is_the_last(joined: Joined):
    joined.feed(GET)
    joined.server.closing = True
    joined.answer()
    assert b"Connection: close" in joined.wire.text
    assert joined.wire.asked == ["close"]


async def test_a_client_that_is_gone_cancels_its_work_once(joined: Joined):
    joined.feed(GET * 3)
    joined.answer()
    await asyncio.sleep(0)
    joined.connection.connection_lost(None)
    assert joined.app.cancelled == 2
    assert joined.server.connection_count == 0
    for exchange in joined.app.held:
        exchange.respond(200, "text/plain", [b"late"])
    assert joined.wire.text.count(b"200 OK") == 1


async def test_the_end_of_input_with_nothing_due_closes_and_with_an_answer_due_waits(joined: Joined):
    assert joined.connection.eof_received() is False
    other = Joined()
    other.feed(GET)
    assert other.connection.eof_received() is True
    other.answer()
    assert other.wire.asked == ["close"]
    other.close()


async def test_a_tiny_chunked_body_is_gathered_in_few_objects_and_arrives_whole(joined: Joined):
    pieces = [b"%d" % (n % 10) for n in range(5000)] + [b"y" * 4096, b"z" * 4095, b"end"]
    joined.feed(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for piece in pieces:
        joined.feed(b"%x\r\n%b\r\n" % (len(piece), piece))
    parts = joined.connection._parts
    assert parts is not None
    assert len(parts) <= 5
    joined.feed(b"0\r\n\r\n")
    assert joined.app.held[0].body == b"".join(pieces)


async def test_what_was_observed_is_the_status_and_the_length_of_each_answer():
    seen: list[tuple[int, int]] = []
    joined = Joined(observer=lambda exchange, status, length: seen.append((status, length)))
    joined.feed(GET + b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET)
    joined.answer(b"abc")
    joined.answer(b"abcd")
    joined.app.held.pop(0).respond(404, "text/plain", [b"a", b"bc", memoryview(b"defg")])
    assert seen == [(200, 3), (200, 4), (404, 7)]
    assert joined.wire.text.endswith(b"Content-Length: 7\r\n\r\nabcdefg")
    joined.close()


async def test_an_answer_in_pieces_is_ended_though_the_next_request_is_not_answered(joined: Joined):
    joined.feed(GET * 2)
    first, second = joined.app.held
    first.begin(200, "text/plain")
    await first.send(b"ab")
    first.finish()
    await asyncio.sleep(0)
    assert joined.wire.text.endswith(b"2\r\nab\r\n0\r\n\r\n")
    second.respond(200, "text/plain", [b"second"])
    assert joined.wire.text.endswith(b"second")


async def test_large_pieces_of_any_kind_of_memory_are_written_as_their_bytes(joined: Joined):
    values = memoryview(b"\0" * 400_000).cast("d")
    joined.feed(GET)
    joined.app.held.pop(0).respond(200, "application/octet-stream", [b"head", values, b""])
    (write,) = joined.wire.writes
    assert b"Content-Length: 400004\r\n" in write[0]
    assert write[1:] == [b"head", b"\0" * 400_000]


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
