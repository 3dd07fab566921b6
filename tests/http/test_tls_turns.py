"""Handshakes that never end: how many are under way, which is given up for another, and what it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from http_support import Raw
from serinus.server.connections import tls_listener
from serinus.server.connections.tls_listener import HANDSHAKE_S, HANDSHAKES, TlsListener
from waiting import turns, until


@contextlib.asynccontextmanager
async def listening(*, rooms: int = 0) -> AsyncIterator[tuple[TlsListener, int, list[int]]]:
    """A listener whose server makes room so often, its port, and a list of the times that it was asked to."""
    asked: list[int] = []

    def make_room() -> bool:
        asked.append(len(asked))
        return len(asked) <= rooms

    sock = socket.create_server(("127.0.0.1", 0))
    listener = TlsListener(
        sock, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), asyncio.Protocol, backlog=100, make_room=make_room
    )
    try:
        yield listener, sock.getsockname()[1], asked
    finally:
        listener.close()
        await listener.wait_closed()


async def silent(port: int, listener: TlsListener, count: int) -> list[Raw]:
    """Clients that say nothing, in the order in which they were accepted."""
    clients = []
    for _ in range(count):
        before = list(listener._beginning)
        clients.append(await Raw.open(port))
        await until(lambda before=before: [task for task in listener._beginning if task not in before])
    return clients


async def ended(clients: list[Raw]) -> list[bool]:
    await turns()
    await asyncio.sleep(0.02)  # for the kernel to tell of the ends
    return [client.reader.at_eof() for client in clients]


@pytest.mark.parametrize(("count", "gone"), [(2, 0), (3, 0), (4, 1), (6, 3)])
async def test_past_the_most_the_eldest_are_given_up(count: int, gone: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tls_listener, "HANDSHAKES", 3)
    async with listening() as (listener, port, asked):
        clients = await silent(port, listener, count)
        for client in clients[:gone]:
            assert await client.ended()
        assert listener.beginning == min(count, 3)
        assert await ended(clients) == [True] * gone + [False] * (count - gone)
        assert asked == []
        for client in clients:
            await client.close()


async def test_room_is_made_by_the_server_first_and_by_the_eldest_handshake_then():
    async with listening(rooms=1) as (listener, port, asked):
        clients = await silent(port, listener, 2)
        assert listener._shed()
        assert listener.beginning == 2
        for number, left in ((0, 1), (1, 0)):
            assert listener._shed()
            assert await clients[number].ended()
            assert listener.beginning == left
        assert not listener._shed()
        assert len(asked) == 4
        for client in clients:
            await client.close()


async def test_a_handshake_that_fails_leaves_nothing_and_a_line_for_who_looks_closely(
    caplog: pytest.LogCaptureFixture,
):
    caplog.set_level(logging.DEBUG, "serinus.connections")
    async with listening() as (listener, port, _):
        (client,) = await silent(port, listener, 1)
        await client.send(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await client.reader.read()
        await until(lambda: not listener.beginning)
        await client.close()
    (record,) = [one for one in caplog.records if one.name == "serinus.connections"]
    assert record.levelno == logging.DEBUG
    assert record.getMessage().startswith("a TLS handshake failed: ")


async def test_what_has_not_begun_at_the_end_is_closed():
    async with listening() as (listener, port, _):
        clients = await silent(port, listener, 2)
    for client in clients:
        assert await client.ended()
        await client.close()
    assert listener.beginning == 0


async def test_a_handshake_has_its_time(monkeypatch: pytest.MonkeyPatch):
    given: list[float] = []

    async def connect(make: object, connection: socket.socket, *, ssl: object, ssl_handshake_timeout: float) -> None:
        given.append(ssl_handshake_timeout)
        raise asyncio.TimeoutError

    monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", connect)
    async with listening() as (_, port, _):
        client = await Raw.open(port)
        assert await client.ended()
        await client.close()
    assert given == [HANDSHAKE_S] == [10.0]


async def test_a_handshake_that_is_given_up_closes_its_connection_however_far_it_was(monkeypatch: pytest.MonkeyPatch):
    given: list[socket.socket] = []

    async def connect(make: object, connection: socket.socket, **options: object) -> None:
        given.append(connection)
        await asyncio.get_running_loop().create_future()  # for ever

    monkeypatch.setattr(asyncio.get_running_loop(), "connect_accepted_socket", connect)
    async with listening() as (_, port, _):
        client = await Raw.open(port)
        await until(lambda: given)
    assert [connection.fileno() for connection in given] == [-1]
    assert await client.ended()
    await client.close()


def test_handshakes_under_way_hold_64_MiB_at_the_most():
    assert HANDSHAKES * (256 << 10) == 64 << 20
