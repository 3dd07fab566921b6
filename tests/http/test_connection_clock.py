"""One connection over a transport of the test's own, by a clock of the test's own: what is written, when it ends, when it reads.

A real socket cannot be made to fill at a chosen byte, nor a minute to pass; all other tests of connections use real ones.
"""

from __future__ import annotations

import asyncio

import pytest

from connection_support import GET, LIMITS, TICK_S, Joined
from serinus.server.http.connection_state import FULL, OPEN
from serinus.server.http.exchange import LINGER_S, HttpLimits

pytestmark = pytest.mark.asyncio


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
