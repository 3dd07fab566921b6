"""An answer as bytes, over a connection without a socket: its head, its length, what waits of it."""

from __future__ import annotations

import pytest

from connection_support import GET, Joined

KEPT = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = bytes(100_000)
# The request, the status, the pieces of the body and further fields; then the lines of the head that vary, and the body.
ANSWERS: dict[str, tuple[bytes, int, list[bytes], list[tuple[bytes, bytes]], set[bytes], bytes]] = {
    "no piece": (GET, 200, [], [], {b"content-length: 0"}, b""),
    "one piece": (GET, 200, [b"abc"], [], {b"content-length: 3"}, b"abc"),
    "an empty piece": (GET, 200, [b""], [], {b"content-length: 0"}, b""),
    "two pieces": (GET, 200, [b"abc", b"de"], [], {b"content-length: 5"}, b"abcde"),
    "three pieces": (GET, 200, [b"a", b"", b"bcd"], [], {b"content-length: 4"}, b"abcd"),
    "a view of wide items": (GET, 200, [memoryview(b"abcdefgh").cast("I")], [], {b"content-length: 8"}, b"abcdefgh"),
    "large": (GET, 200, [LARGE, b"x"], [], {b"content-length: 100001"}, LARGE + b"x"),
    "a field": (GET, 200, [b"a"], [(b"X-A", b"1")], {b"content-length: 1", b"x-a: 1"}, b"a"),
    "another status": (GET, 404, [b"a"], [], {b"content-length: 1"}, b"a"),
    "the last": (LAST, 200, [b"a"], [], {b"content-length: 1", b"connection: close"}, b"a"),
    "HTTP/1.0": (OLD, 200, [b"a"], [], {b"content-length: 1", b"connection: close"}, b"a"),
    "HTTP/1.0, kept": (KEPT, 200, [b"a"], [], {b"content-length: 1", b"connection: keep-alive"}, b"a"),
    "HEAD": (HEAD, 200, [b"abc", b"d"], [(b"X-A", b"1")], {b"content-length: 4", b"x-a: 1"}, b""),
}


@pytest.mark.parametrize("case", ANSWERS)
async def test_an_answer_has_its_length_its_fields_and_its_body(case: str):
    request, status, pieces, fields, lines, body = ANSWERS[case]
    joined = Joined()
    joined.feed(request)
    joined.app.held.pop(0).respond(status, "text/plain", pieces, fields)
    head, _, rest = joined.wire.text.partition(b"\r\n\r\n")
    first, *others = head.lower().split(b"\r\n")
    assert first.startswith(b"http/1.1 %d " % status)
    told = {
        line
        for line in others
        if line.split(b":")[0] in {b"content-length", b"connection", b"x-a", b"transfer-encoding"}
    }
    assert told == lines
    assert b"content-type: text/plain" in others
    assert rest == body
    joined.close()


async def test_what_waits_of_an_answer_is_its_head_and_its_pieces_and_nothing_before_it_is_there():
    joined = Joined()
    joined.feed(GET + GET + GET)
    first, second, third = joined.app.held
    assert joined.connection.unsent() == 0
    second.respond(200, "text/plain", [b"abc"])
    small = joined.connection.unsent()
    assert small == len(second.reply) > 3  # type: ignore[attr-defined] # of the thin transport
    third.respond(200, "text/plain", [LARGE, b"x"])
    assert joined.connection.unsent() - small > len(LARGE)
    assert joined.connection.unsent() == small + sum(map(len, third.reply))  # type: ignore[attr-defined] # likewise
    first.respond(200, "text/plain", [b"a"])
    assert joined.connection.unsent() == 0
    assert joined.wire.text.count(b"HTTP/1.1 200 OK") == 3
    joined.close()


async def test_what_is_answered_or_gone_is_answered_no_more():
    joined = Joined()
    joined.feed(GET)
    exchange = joined.app.held[0]
    exchange.respond(200, "text/plain", [b"a"])
    written = joined.wire.text
    exchange.respond(200, "text/plain", [b"b"])
    exchange.begin(200, "text/plain")
    exchange.finish()
    assert joined.wire.text == written
    joined.feed(GET)
    left = joined.app.held[-1]
    left.leave()
    left.respond(200, "text/plain", [b"c"])
    left.begin(200, "text/plain")
    assert joined.wire.text == written
    joined.close()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("request_", [GET, OLD, HEAD], ids=["chunked", "HTTP/1.0", "HEAD"])
async def test_an_answer_in_pieces_ends_with_a_last_chunk_or_with_its_connection(request_: bytes, whole: bool):
    joined = Joined()
    joined.feed(request_)
    exchange = joined.app.held[0]
    exchange.begin(200, "text/plain", [(b"X-A", b"1")])
    await exchange.send(b"ab")
    await exchange.send(b"c" * 20)
    exchange.finish(whole=whole)
    head, _, rest = joined.wire.text.partition(b"\r\n\r\n")
    assert b"x-a: 1" in head.lower().split(b"\r\n")
    assert b"content-length" not in head.lower()
    if request_ is GET:
        assert b"transfer-encoding: chunked" in head.lower()
        assert rest == b"2\r\nab\r\n14\r\n" + b"c" * 20 + b"\r\n" + (b"0\r\n\r\n" if whole else b"")
    else:
        assert rest == (b"ab" + b"c" * 20 if request_ is OLD else b"")
    assert (joined.wire.closing or "eof" in joined.wire.asked) is (request_ is OLD or not whole)
    joined.close()
