"""Connections that come together: how many turns of the loop pass until the last is served, and who makes room where descriptors run out."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest
import uvloop

from http_support import Probe, Raw
from serinus.server.connections import acceptor
from serinus.server.http.exchange import HttpLimits
from serinus.server.http.thin import ThinServer
from waiting import until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(limits: HttpLimits | None = None) -> AsyncIterator[tuple[ThinServer, Probe, int]]:
    app = Probe()
    server = ThinServer(app, limits or HttpLimits())
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    await server.listen(sock=sock)
    try:
        yield server, app, sock.getsockname()[1]
    finally:
        await server.close()


def test_of_many_that_connect_together_the_last_waits_for_few_turns_of_the_loop():
    """Each turn lasts as long as a predict where a model computes on the loop."""

    async def turns_for(clients: int) -> int:
        async with serving() as (_, app, port):
            with contextlib.ExitStack() as opened:
                for _ in range(clients):
                    opened.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(GET)
                turns = 0
                while app.seen < clients:
                    turns += 1
                    assert turns < 20 * clients
                    await asyncio.sleep(0)
                return turns

    for new_loop in (uvloop.new_event_loop, asyncio.new_event_loop):
        loop = new_loop()
        try:
            turns = loop.run_until_complete(turns_for(48))
        finally:
            loop.close()
        assert turns <= 12, f"{turns} turns of {new_loop.__module__}"


class Exhausted:
    """A listening socket whose process has no descriptor left until somebody closes a connection."""

    def __init__(self, real: socket.socket, server: ThinServer) -> None:
        self._real = real
        self._server = server
        self._most = server.connection_count

    def accept(self) -> tuple[socket.socket, object]:
        if self._server.connection_count >= self._most:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._real.accept()

    def fileno(self) -> int:
        return self._real.fileno()

    def close(self) -> None:
        self._real.close()


async def test_without_descriptors_the_connection_that_was_idle_longest_makes_room():
    async with serving(HttpLimits(keep_alive_s=0.08)) as (server, app, port):
        server.limits = HttpLimits()  # so that the clock ticks often, and closes nobody
        working, first, second = [await Raw.open(port) for _ in range(3)]
        await working.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: server.connection_count == 3 and app.held)
        before = server.now
        await until(lambda: server.now > before)
        await second.send(GET)
        assert (await second.answer()).status == 200
        listener = server._server
        assert listener is not None
        listener._sock = cast("socket.socket", Exhausted(listener._sock, server))
        newcomer = await Raw.open(port)
        await newcomer.send(GET)
        assert (await newcomer.answer()).status == 200
        assert await first.ended(), "it said nothing for longest"
        await second.send(GET)
        assert (await second.answer()).status == 200
        app.release()
        assert (await working.answer()).status == 200
        for client in (working, first, second, newcomer):
            await client.close()


async def test_without_descriptors_and_with_all_at_work_a_newcomer_waits_and_is_served(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acceptor, "_REST_S", 0.01)
    async with serving() as (server, app, port):
        working = await Raw.open(port)
        await working.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: app.held)
        listener = server._server
        assert listener is not None
        listener._sock = cast("socket.socket", Exhausted(listener._sock, server))
        newcomer = await Raw.open(port)
        await newcomer.send(GET)
        await until(lambda: listener._resting is not None)
        app.release()
        assert (await working.answer()).status == 200
        assert (await newcomer.answer()).status == 200, "the one that was answered is idle, and makes room"
        await working.close()
        await newcomer.close()


async def test_a_connection_that_was_accepted_in_the_turn_of_the_end_is_answered():
    async with serving() as (server, app, port):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(GET)
        listener = server._server
        assert listener is not None
        while not server.beginning:
            await asyncio.sleep(0)
        await server.drain(10)
        assert app.seen == 1
        client.settimeout(20)
        assert client.recv(65536).startswith(b"HTTP/1.1 200 OK")
        client.close()
