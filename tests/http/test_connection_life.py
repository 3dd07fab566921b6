"""What becomes of a connection, on both transports: the order of answers, clients that leave or are slow, idle times, the end of the server."""

from __future__ import annotations

import asyncio
import time

import pytest
import uvloop

from http_support import CHUNKED, GET, HOST, LAST, TRANSPORTS, Answer, Probe, Raw, exchange_bytes, post, serving, sized
from waiting import turns, until


async def test_answers_out_of_order_are_put_in_order():
    probe = Probe()
    async with serving("thin", probe) as (_, port):
        client = await Raw.open(port)
        await client.send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n" + GET + GET)
        await until(lambda: probe.seen >= 3)
        probe.release()
        assert [(await client.answer()).body[:7] for _ in range(3)] == [b'"held"', b'{"metho', b'{"metho']
        await client.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_resets_cancels_its_work(transport):
    probe = Probe()
    async with serving(transport, probe) as (_, port):
        client = await Raw.open(port)
        await client.send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: probe.held)
        client.reset()
        await until(lambda: probe.cancelled)
        assert probe.held[0].gone
        probe.release()  # an answer to nobody is no error


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_client_that_closes_cancels_its_work(transport, monkeypatch):
    """Thin cannot tell it from a half-closed one until it has written something: one interim answer, after 0.25 s."""
    monkeypatch.setattr("serinus.server.http.connection._PROBE_S", 0.01)
    probe = Probe()
    async with serving(transport, probe) as (_, port):
        client = await Raw.open(port)
        await client.send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: probe.held)
        await client.close()
        await until(lambda: probe.cancelled)
        assert probe.cancelled == 1


async def test_a_request_cut_off_by_the_end_of_input_gets_no_answer_of_its_own(monkeypatch):
    monkeypatch.setattr("serinus.server.http.connection._PROBE_S", 0.01)
    probe = Probe()
    async with serving("thin", probe, request_timeout_s=0.02) as (_, port):
        client = await Raw.open(port)
        await client.send(GET.replace(b"/a", b"/hold") + sized(b"abc")[:-1])
        client.end_input()
        await asyncio.sleep(0.06)  # longer than a whole request may take
        probe.release()
        answers = [await client.answer(), await client.answer()]
        assert [answer.status for answer in answers] == [100, 200], (
            "the probe for a client that is gone, and the one answer"
        )
        assert await client.ended()
        await client.close()


async def test_half_closed_clients_get_their_answers(monkeypatch):
    """RFC 9112, 9.6 wants nobody cut off who still reads; uvicorn closes at the end of input."""
    monkeypatch.setattr("serinus.server.http.connection._PROBE_S", 0.01)
    probe = Probe()
    async with serving("thin", probe) as (_, port):
        client = await Raw.open(port)
        await client.send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n" + GET)
        client.end_input()
        answers: list[Answer] = [await client.answer()]
        assert answers[0].status == 100, "the probe for a client that has gone; any client can skip it"
        assert probe.cancelled == 0
        probe.release()
        answers = [await client.answer(), await client.answer()]
        assert [a.status for a in answers] == [200, 200]
        assert await client.ended()
        await client.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_request_cut_off_is_dropped(transport):
    probe = Probe()
    async with serving(transport, probe) as (_, port):
        assert await exchange_bytes(port, post(b"ab", b"Content-Length: 3")) == []
        assert await exchange_bytes(port, b"GET /a HT") == []
        assert probe.seen == 0


async def test_no_more_than_so_many_requests_of_a_connection_are_worked_on():
    probe = Probe()
    async with serving("thin", probe, pipeline=4) as (_, port):
        client = await Raw.open(port)
        await client.send((b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n") * 1000 + LAST)
        await until(lambda: len(probe.held) >= 4)
        await turns()  # in which it might take a fifth
        assert len(probe.held) == 4
        total = 0
        while total < 1000:
            total += len(probe.held)
            probe.release()
            await asyncio.sleep(0)
        for _ in range(1000):
            assert (await client.answer()).body == b'"held"'
        assert (await client.answer()).json["target"] == "/last"
        await client.close()


@pytest.mark.slow  # thousands of requests
async def test_thousands_of_pipelined_requests_answered_at_once_do_not_recurse():
    async with serving("thin", Probe(), pipeline=2) as (_, port):
        client = await Raw.open(port)
        sending = asyncio.ensure_future(client.send(GET * 10_000 + LAST))
        for _ in range(10_001):
            assert (await client.answer()).status == 200
        await sending
        await client.close()


async def test_a_slow_reader_holds_back_only_itself():
    """Answers of 1 MB each to a client that does not read: work stops for it, memory stays bounded, others are served."""
    probe = Probe()
    async with serving("thin", probe) as (_, port):
        slow = await Raw.open(port, limit=1024)
        slow.writer.transport.pause_reading()
        await slow.send((b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n") * 200 + LAST)
        before = -1
        while probe.seen != before:
            before = probe.seen
            await asyncio.sleep(0.1)  # until nothing moves any more
        assert probe.seen < 100, "most requests wait"
        assert (await exchange_bytes(port, LAST, end_input=False))[0].status == 200
        slow.writer.transport.resume_reading()
        for _ in range(200):
            assert len((await slow.answer()).body) == 1_000_000
        assert (await slow.answer()).json["target"] == "/last"
        await slow.close()


async def test_a_request_that_takes_too_long_to_send_is_408():
    """Slowloris: in the head, where no byte for long or one byte now and then makes no difference; and in the body."""
    async with serving("thin", Probe(), request_timeout_s=0.05) as (_, port):
        for start in (
            b"GET /a HT",
            b"GET /a HTTP/1.1\r\nX: ",
            post(b"a", b"Content-Length: 3"),
            post(b"5\r\nab", CHUNKED),
        ):
            client = await Raw.open(port)
            await client.send(start)
            answer = await client.answer()
            assert answer.status == 408
            assert answer.headers["connection"] == "close"
            assert "0.05 seconds" in answer.json["error"]
            await client.close()
        client = await Raw.open(port)
        dripping = asyncio.ensure_future(_drip(client))
        assert (await client.answer()).status == 408
        dripping.cancel()
        await client.close()


async def _drip(client: Raw) -> None:
    await client.send(b"GET /a HTTP/1.1\r\nX: ")
    while True:
        await client.send(b"y")
        await asyncio.sleep(0.005)  # one byte now and then, as who wants to hold a connection sends them


async def test_a_body_that_takes_too_long_is_408_on_uvicorn_too():
    async with serving("uvicorn", Probe(), request_timeout_s=0.05) as (_, port):
        (answer,) = await exchange_bytes(port, post(b"a", b"Content-Length: 3"), end_input=False)
        assert answer.status == 408


async def test_an_idle_connection_is_closed_and_one_at_work_is_not():
    probe = Probe()
    async with serving("thin", probe, keep_alive_s=0.1) as (_, port):
        idle, fresh, working = await Raw.open(port), await Raw.open(port), await Raw.open(port)
        await idle.send(GET)
        await working.send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n")
        assert (await idle.answer()).status == 200
        assert await idle.ended()
        assert await fresh.ended()
        probe.release()
        assert (await working.answer()).body == b'"held"'
        for client in (idle, fresh, working):
            await client.close()


async def test_a_client_that_never_reads_its_answer_is_dropped():
    probe = Probe()
    async with serving("thin", probe, send_timeout_s=0.05) as (server, port):
        client = await Raw.open(port, limit=1024)
        client.writer.transport.pause_reading()
        await client.send((b"GET /big HTTP/1.1\r\n" + HOST + b"\r\n") * 20)
        await until(lambda: server.connection_count)
        await until(lambda: not server.connection_count)
        client.writer.transport.abort()


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_draining_answers_what_is_in_flight_and_says_close(transport):
    probe = Probe()
    async with serving(transport, probe) as (server, port):
        client, idle = await Raw.open(port), await Raw.open(port)
        await idle.send(GET)
        await idle.answer()
        await client.send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: probe.held)
        server.stop_accepting()
        with pytest.raises(OSError):
            await Raw.open(port)
        drained = asyncio.ensure_future(server.drain(10))
        assert await idle.ended()
        assert not drained.done()
        probe.release()
        answer = await client.answer()
        assert answer.headers["connection"] == "close"
        assert answer.body == b'"held"'
        await drained
        await client.close()
        await idle.close()


async def test_draining_gives_a_request_on_its_way_its_answer():
    probe = Probe()
    async with serving("thin", probe) as (server, port):
        client = await Raw.open(port)
        await client.send(GET)
        assert "connection" not in (await client.answer()).headers
        drained = asyncio.ensure_future(server.drain(10))
        await client.send(GET)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await client.ended()
        await drained
        await client.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_draining_answers_a_request_that_came_while_the_loop_was_held(run):
    """Also on a connection whose grace is over by the time that the loop is free: uvloop looks at its timers before its sockets."""

    async def hold_while_draining() -> None:
        async with serving("thin", Probe()) as (server, port):
            client = await Raw.open(port)
            await client.send(GET)
            await client.answer()
            drained = asyncio.ensure_future(server.drain(10))
            await asyncio.sleep(0)
            await client.send(GET)
            time.sleep(0.7)  # as a predict on the loop does; the grace is half a second
            answer = await client.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "close")
            await drained
            await client.close()

    run(hold_while_draining())


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_draining_ends_at_its_limit(transport):
    probe = Probe()
    async with serving(transport, probe) as (server, port):
        client = await Raw.open(port)
        await client.send(b"GET /hold HTTP/1.1\r\n" + HOST + b"\r\n")
        await until(lambda: probe.held)
        await server.drain(0.05)
        await server.close()
        ended = await client.ended()
        assert ended or transport == "uvicorn"  # which answers 500 when it stops
        assert probe.cancelled == 1
        await client.close()
