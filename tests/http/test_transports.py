"""The same bytes to both transports, and the same answers; where they differ, the table says who is right and why."""

from __future__ import annotations

import asyncio
import tracemalloc

import pytest

from http_support import CHUNKED, GET, HOST, LAST, TRANSPORTS, Probe, Raw, exchange_bytes, post, serving, sized
from waiting import turns

SOUND = {
    "one get": (GET, [("GET", "/a", "")]),
    "query and percent-encoding are passed on": (
        b"GET /a%20b?c=%2F HTTP/1.1\r\n" + HOST + b"\r\n",
        [("GET", "/a%20b?c=%2F", "")],
    ),
    "body by length": (sized(b"abc"), [("POST", "/p", "abc")]),
    "length with spaces": (post(b"abc", b"Content-Length:   3  "), [("POST", "/p", "abc")]),
    "empty body": (sized(b""), [("POST", "/p", "")]),
    "no length is no body": (post(b""), [("POST", "/p", "")]),
    "chunked body": (post(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", CHUNKED), [("POST", "/p", "abcde")]),
    "chunk extensions are ignored": (post(b"3;a=b;c\r\nabc\r\n0\r\n\r\n", CHUNKED), [("POST", "/p", "abc")]),
    "trailers are ignored": (
        post(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n", CHUNKED) + GET,
        [("POST", "/p", "abc"), ("GET", "/a", "")],
    ),
    "field names in any case": (post(b"abc", b"cONTENT-lENGTH: 3"), [("POST", "/p", "abc")]),
    "empty lines before a request": (b"\r\n\r\n" + GET, [("GET", "/a", "")]),
    "pipelined requests are answered in order": (
        GET + sized(b"1") + sized(b"22") + GET,
        [("GET", "/a", ""), ("POST", "/p", "1"), ("POST", "/p", "22"), ("GET", "/a", "")],
    ),
    "HTTP/1.0 without a host": (b"GET /a HTTP/1.0\r\n\r\n", [("GET", "/a", "")]),
    "other methods are the application's": (
        b"DELETE /a HTTP/1.1\r\n" + HOST + b"\r\nPATCH /a HTTP/1.1\r\n" + HOST + b"\r\n",
        [("DELETE", "/a", ""), ("PATCH", "/a", "")],
    ),
    "a field value of other bytes than ASCII": (
        b"GET /a HTTP/1.1\r\n" + HOST + b"X: \xff\xfe\r\n\r\n",
        [("GET", "/a", "")],
    ),
    "a request after Connection: close is not taken": (LAST + GET, [("GET", "/last", "")]),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", SOUND)
async def test_sound_requests_are_understood_alike(transport, name):
    script, expected = SOUND[name]
    probe = Probe()
    async with serving(transport, probe) as (_, port):
        last = b"" if b"1.0" in script or b"close" in script else LAST
        answers = await exchange_bytes(port, script + last, end_input=False)
    if last:
        expected = [*expected, ("GET", "/last", "")]
    got = [(a.json["method"], a.json["target"], a.json["body"]) for a in answers]
    assert [a.status for a in answers] == [200] * len(expected)
    assert got == expected
    assert probe.seen == len(expected)
    assert answers[-1].headers["connection"] == "close"


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
async def test_bytes_may_arrive_in_any_pieces(transport, size):
    script = GET + sized(b"abc") + post(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", CHUNKED) + LAST
    async with serving(transport, Probe()) as (_, port):
        client = await Raw.open(port)
        for start in range(0, len(script), size):
            await client.send(script[start : start + size])
            await asyncio.sleep(0)
        bodies = [(await client.answer()).json["body"] for _ in range(4)]
        assert bodies == ["", "abc", "abcde", ""]
        assert await client.ended()
        await client.close()


UNSOUND = {
    "length and chunked": post(b"0\r\n\r\n", b"Content-Length: 5", CHUNKED),
    "chunked and length": post(b"0\r\n\r\n", CHUNKED, b"Content-Length: 5"),
    "two lengths": post(b"hello", b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": post(b"hello", b"Content-Length: 5", b"Content-Length: 5"),
    "a list of lengths": post(b"hello", b"Content-Length: 5, 5"),
    "a signed length": post(b"hello", b"Content-Length: +5"),
    "a negative length": post(b"hello", b"Content-Length: -5"),
    "a hexadecimal length": post(b"hello", b"Content-Length: 0x5"),
    "an empty length": post(b"hello", b"Content-Length:"),
    "a length in words": post(b"hello", b"Content-Length: five"),
    "a length beyond 64 bits": post(b"hello", b"Content-Length: 99999999999999999999"),
    "a transfer coding that is not": post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "a transfer coding that nobody knows": post(b"0\r\n\r\n", b"Transfer-Encoding: rot13"),
    "chunked not last": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked, identity"),
    "chunked twice": post(b"0\r\n\r\n", CHUNKED, CHUNKED),
    "identity as transfer coding": post(b"", b"Transfer-Encoding: identity"),
    "a folded field": post(b"", b"X: a\r\n b"),
    "bare LF after the request line": b"GET /a HTTP/1.1\nHost: x\n\n",
    "bare LF after a field": b"GET /a HTTP/1.1\r\nHost: x\nY: 1\r\n\r\n",
    "bare CR in a field": post(b"", b"X: a\rb"),
    "NUL in a field": post(b"", b"X: a\0b"),
    "a control character in a field": post(b"", b"X: a\x01b"),
    "space before the colon": b"GET /a HTTP/1.1\r\nHost : x\r\n\r\n",
    "space before the first field": b"GET /a HTTP/1.1\r\n Host: x\r\n\r\n",
    "a field without a name": post(b"", b": a"),
    "a chunk size that is none": post(b"5x\r\nhello\r\n0\r\n\r\n", CHUNKED),
    "a chunk size beyond 64 bits": post(b"fffffffffffffffff\r\nhello", CHUNKED),
    "a chunk size with bare LF": post(b"5\nhello\r\n0\r\n\r\n", CHUNKED),
    "a chunk longer than it says": post(b"5\r\nhelloX\r\n0\r\n\r\n", CHUNKED),
    "a length in the trailer": post(b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n", CHUNKED),
    "two words for a target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a control character in the target": b"GET /\x01 HTTP/1.1\r\n" + HOST + b"\r\n",
    "TLS on a plain port": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "no host": b"GET /a HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /a HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "two hosts, the first none": b"GET /a HTTP/1.1\r\nHost: a b\r\nHost: x\r\n\r\n",
    "a host that is none": b"GET /a HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a host in quotes": b'GET /a HTTP/1.1\r\nHost: "a"\r\n\r\n',
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", UNSOUND)
async def test_unsound_framing_is_400_and_the_end(transport, name):
    """RFC 9112, 2.2, 3.2, 5.1, 5.2, 6.1, 6.3 and 11.2: nothing after it is ever taken for a request."""
    probe = Probe()
    async with serving(transport, probe) as (_, port):
        answers = await exchange_bytes(port, UNSOUND[name] + GET + GET, end_input=False)
        assert [a.status for a in answers] == [400], answers
        assert answers[0].headers["connection"] == "close"
        assert list(answers[0].json) == ["error"]
        assert probe.seen == 0
        assert [a.status for a in await exchange_bytes(port, LAST, end_input=False)] == [200], "the server lives on"


# Differences: bytes -> (thin's statuses, uvicorn's statuses). All are for thin, with the section that says so.
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
DIFFERENCES = {
    # RFC 9110, 7.8: "A server MAY ignore a received Upgrade header field"; the request is then served as it is. uvicorn
    # loses the body of a request that asks for h2c, as Java's HttpClient does, and hangs or misreads it.
    "an upgrade is ignored": (
        post(b"abc", b"Content-Length: 3", H2C.rstrip()) + LAST,
        [200, 200],
        None,
    ),
    # RFC 9110, 6.5.1: a recipient must not merge trailer fields into the header section unless their definition allows it.
    # uvicorn does, and then finds two hosts.
    "a host in the trailer": (post(b"3\r\nabc\r\n0\r\nHost: y\r\n\r\n", CHUNKED) + LAST, [200, 200], [400]),
    # RFC 9112, 9.3.2: each request that was received is answered, in order. uvicorn drops those that came in one read with an
    # unsound one.
    "requests before an unsound one": (GET + sized(b"abc") + UNSOUND["two lengths"], [200, 200, 400], [400]),
    # RFC 9112, 9.3 and appendix C.2.2: keep-alive is HTTP/1.0's too, where asked for. uvicorn always closes.
    "keep-alive in HTTP/1.0": (b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + LAST, [200, 200], [200]),
    # RFC 9112, 6.1: Transfer-Encoding in HTTP/1.0 is faulty framing. uvicorn takes it.
    "chunked in HTTP/1.0": (post(b"3\r\nabc\r\n0\r\n\r\n", CHUNKED, version=b"1.0"), [400], [200]),
    # RFC 9110, 15.6.6: 505 for a major version that is not served. uvicorn says 400, or answers HTTP/0.9 as if it were 1.0.
    "HTTP/1.2": (b"GET /a HTTP/1.2\r\n" + HOST + b"\r\n", [505], [400]),
    "HTTP/2 without negotiation": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505], [400]),
    "HTTP/0.9": (b"GET /a\r\n\r\n", [505], [200]),
    # RFC 9110, 9.1: a method that is not recognised: 501.
    "a method that nobody knows": (b"BREW /a HTTP/1.1\r\n" + HOST + b"\r\n", [501], [400]),
    # RFC 9110, 9.3.6: an origin server is no proxy.
    "CONNECT": (b"CONNECT a:80 HTTP/1.1\r\n" + HOST + b"\r\n", [501], None),
    # RFC 9110, 10.1.1: "a server MAY respond with 417 if it cannot meet an expectation"; uvicorn ignores it.
    "an unknown expectation": (sized(b"abc", b"Expect: tea") + LAST, [417], [200, 200]),
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", DIFFERENCES)
async def test_known_differences(transport, name):
    script, thin, uvicorn = DIFFERENCES[name]
    expected = thin if transport == "thin" else uvicorn
    if expected is None:
        pytest.skip("what uvicorn does depends on its version")
    async with serving(transport, Probe()) as (_, port):
        answers = await exchange_bytes(port, script, end_input=False)
        assert [a.status for a in answers] == expected
        assert all(list(a.json) == ["error"] for a in answers if a.status >= 400)
        assert all(a.headers["content-type"] == "application/json" for a in answers)


LARGE = {
    "70 KB of fields": [b"X-%d: %b" % (i, b"y" * 1000) for i in range(70)],
    "300 fields": [b"X-%d: y" % i for i in range(300)],
}


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("name", LARGE)
async def test_a_header_section_that_is_too_large_is_431(transport, name):
    """RFC 6585, 5. uvicorn (httptools) has no limit while it reads; it is refused when it has come."""
    probe = Probe()
    async with serving(transport, probe) as (_, port):
        (answer,) = await exchange_bytes(port, post(b"", *LARGE[name], b"Connection: close"), end_input=False)
        assert (answer.status, probe.seen) == (431, 0)
        assert "at most 65536 bytes and 256 fields" in answer.json["error"]


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(
    "coding", [b"gzip, chunked", b"gzip\r\nTransfer-Encoding: chunked", b"foo;a=b, chunked", b"identity, Chunked"]
)
async def test_a_transfer_coding_that_nobody_undoes_is_501(transport, coding):
    """RFC 9112, 6.1; the body would else be taken for what it is not."""
    probe = Probe()
    async with serving(transport, probe) as (_, port):
        body = post(b"3\r\nabc\r\n0\r\n\r\n", b"Transfer-Encoding: " + coding)
        for _ in range(2):
            (answer,) = await exchange_bytes(port, body + GET, end_input=False)
            assert (answer.status, answer.headers["connection"], probe.seen) == (501, "close", 0)
            shown = coding.decode().lower().replace("\r\ntransfer-encoding: ", ",")
            assert repr(shown) in answer.json["error"]
        sound = post(b"3\r\nabc\r\n0\r\n\r\n", b"Transfer-Encoding:  CHUNKED ", b"Connection: close")
        assert [a.status for a in await exchange_bytes(port, sound, end_input=False)] == [200]


@pytest.mark.parametrize("endless", [b"1;", b"1\r\na\r\n0\r\nX: ", b"0\r\nX: y\r\n"])
async def test_chunk_extensions_and_trailers_have_an_end(endless):
    """RFC 9112, 7.1.1. llhttp gathers a field's value by copying it, so 100 MB of one would take the loop for seconds."""
    async with serving("thin", Probe()) as (_, port):
        client = await Raw.open(port)
        await client.send(post(endless, CHUNKED))
        filler = b"X: y\r\n" * 2000 if endless.endswith(b"\n") else b"x" * 12_000
        sender = asyncio.ensure_future(_send_all(client, filler, 1000))
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (431, "close")
        assert "trailer fields are too large; at most 65536 bytes" in answer.json["error"]
        sender.cancel()
        await client.close()
        body = b"".join(b"1;%b\r\nx\r\n" % (b"y" * 50_000) for _ in range(10)) + b"0\r\n\r\n"
        answers = await exchange_bytes(port, post(body, CHUNKED) + LAST, end_input=False)
        assert [a.status for a in answers] == [200, 200], "what brings a body is taken"
        assert answers[0].json["body"] == "x" * 10


async def test_a_body_in_tiny_chunks_takes_no_more_memory_than_it_has_bytes():
    """Each piece as an object of its own took 28 times the limit."""
    tracemalloc.start()
    try:
        async with serving("thin", Probe()) as (_, port):
            client = await Raw.open(port)
            await client.send(post(b"", CHUNKED))
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(20):
                await client.send(b"2\r\nab\r\n" * 5000 + b"1388\r\n" + b"x" * 5000 + b"\r\n")
                await turns()  # in which the bytes arrive
            held = tracemalloc.get_traced_memory()[0] - before
            await client.send(b"0\r\n\r\n")
            answer = await client.answer()
            await client.close()
    finally:
        tracemalloc.stop()
    assert answer.json["body"] == 20 * 15_000
    assert held < 1_500_000, held


async def _send_all(client: Raw, data: bytes, times: int) -> None:
    for _ in range(times):
        await client.send(data)


async def test_what_follows_a_sound_request_is_not_blamed_on_its_method():
    async with serving("thin", Probe()) as (_, port):
        answers = await exchange_bytes(port, GET + b"garbage\r\n\r\n" + GET, end_input=False)
        assert [a.status for a in answers] == [200, 400]
        assert "malformed" in answers[1].json["error"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_request_target_that_is_too_long_is_414(transport):
    async with serving(transport, Probe(), target_bytes=100) as (_, port):
        script = b"GET /" + b"a" * 200 + b" HTTP/1.1\r\n" + HOST + b"\r\n"
        (answer,) = await exchange_bytes(port, script, end_input=False)
        assert answer.status == 414
        assert "at most 100" in answer.json["error"]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_100_continue_is_said_before_the_body_is_sent(transport):
    async with serving(transport, Probe()) as (_, port):
        client = await Raw.open(port)
        await client.send(post(b"", b"Content-Length: 3", b"Expect: 100-continue"))
        assert (await client.answer()).status == 100
        await client.send(b"abc")
        assert (await client.answer()).json["body"] == "abc"
        await client.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_body_too_large_is_refused_before_it_is_sent(transport):
    async with serving(transport, Probe(), body_bytes=1000) as (_, port):
        for fields in ([b"Content-Length: 100000000"], [b"Content-Length: 1001", b"Expect: 100-continue"]):
            client = await Raw.open(port)
            await client.send(post(b"", *fields))
            answer = await client.answer()
            assert answer.status == 413
            assert "at most 1000" in answer.json["error"]
            assert answer.headers["connection"] == "close"
            await client.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_chunked_body_too_large_is_413(transport):
    probe = Probe()
    async with serving(transport, probe, body_bytes=1000) as (_, port):
        script = post(b"400\r\n" + b"x" * 1024 + b"\r\n", CHUNKED)
        (answer,) = await exchange_bytes(port, script, end_input=False)
        assert answer.status == 413
        assert probe.seen == 0


async def test_a_body_a_little_too_large_leaves_the_connection_alive():
    probe = Probe()
    async with serving("thin", probe, body_bytes=1000) as (_, port):
        answers = await exchange_bytes(port, sized(b"x" * 1500) + LAST, end_input=False)
    assert [a.status for a in answers] == [413, 200]
    assert probe.seen == 1


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_sends_a_body_too_large_to_its_end_gets_to_read_why(transport):
    """RFC 9112, 9.6: a connection closed with bytes unread is reset, and the answer with it."""
    body = sized(b"x" * 1_900_000)
    probe = Probe()
    async with serving(transport, probe, body_bytes=1_000_000) as (_, port):
        for _ in range(5):
            client = await Raw.open(port)
            for start in range(0, len(body), 100_000):
                await client.send(body[start : start + 100_000])
                await asyncio.sleep(0.001)  # time for a reset to come, if one does
            assert (await client.answer()).status == 413
            await client.close()
    assert probe.seen == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_refusal_of_the_transport_has_the_requests_own_id(transport):
    async with serving(transport, Probe(), body_bytes=10) as (_, port):
        for fields, expected in (([b"X-Request-Id: r-2"], "r-2"), ([], None)):
            script = sized(b"x" * 11, b"Connection: close", *fields)
            (answer,) = await exchange_bytes(port, script, end_input=False)
            assert (answer.status, answer.headers.get("x-request-id")) == (413, expected)
    first = b"GET /a HTTP/1.1\r\n" + HOST + b"X-Request-Id: r-1\r\n\r\n"  # `Probe` echoes nothing
    async with serving("thin", Probe()) as (_, port):
        answers = await exchange_bytes(port, first + b"GET /a b HTTP/1.1\r\n", end_input=False)
        assert [a.status for a in answers] == [200, 400]
        assert "x-request-id" not in answers[1].headers, "that was the other request's"


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_head_has_the_fields_of_get_and_no_body(transport):
    async with serving(transport, Probe()) as (_, port):
        client = await Raw.open(port)
        await client.send(b"HEAD /a HTTP/1.1\r\n" + HOST + b"\r\n" + LAST)
        answer = await client.answer(head_only=True)
        assert answer.status == 200
        assert int(answer.headers["content-length"]) > 0
        assert (await client.answer()).json["target"] == "/last"
        await client.close()


async def test_http_1_0_closes_unless_asked_to_keep_alive():
    async with serving("thin", Probe()) as (_, port):
        client = await Raw.open(port)
        await client.send(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
        await client.send(b"GET /b HTTP/1.0\r\n\r\n")
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert await client.ended()
        await client.close()
