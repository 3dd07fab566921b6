"""What the plain transport bounds as the thin one does: answers that wait for slow clients, and turns of the loop for many that connect together."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import uvloop

from http_support import Probe, Raw, ask, never_reads
from serinus.server.connections.unsent_answers import UnsentAnswers
from serinus.server.http.asgi import UvicornServer
from serinus.server.http.exchange import Exchange, HttpLimits
from waiting import until

MB = 1_000_000
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
HUGE = b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n"


class Answers(Probe):
    """Answers `/huge` with 8 MB."""

    def __call__(self, exchange: Exchange) -> None:
        if exchange.target == b"/huge":
            self.seen += 1
            exchange.respond(200, "application/octet-stream", [bytes(8 * MB)])
        else:
            super().__call__(exchange)


@contextlib.asynccontextmanager
async def serving(account: UnsentAnswers, **limits: float) -> AsyncIterator[tuple[UvicornServer, int, Answers]]:
    app = Answers()
    server = UvicornServer(app, HttpLimits(**limits), unsent=account)  # type: ignore[arg-type]
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    await server.listen(sock=sock)
    try:
        yield server, port, app
    finally:
        await server.close()


@pytest.mark.slow
async def test_answers_for_clients_that_never_read_stay_within_the_bound_and_others_are_served():
    account = UnsentAnswers(30 * MB)
    async with serving(account) as (server, port, app):
        clients = [await never_reads(port) for _ in range(20)]
        for client in clients:
            await client.send(HUGE)
        await until(lambda: app.seen == 20 and account.refused > 0)
        connections = server._server.server_state.connections
        assert sum(connection.transport.get_write_buffer_size() for connection in connections) <= 30 * MB
        other = await Raw.open(port)
        assert (await ask(other, GET)).status == 200
        refused = await ask(other, HUGE)
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert "max_unsent_bytes" in refused.json["error"]
        while (again := await ask(other, HUGE)).status == 429:
            await asyncio.sleep(0.1)  # until the others can be told slow
        assert len(again.body) == 8 * MB
        assert account.closed > 0
        for client in clients:
            client.writer.transport.abort()
        await until(lambda: len(connections) == 1)
        assert not any(reader.unsent() for reader in account._readers)
        await other.close()


@pytest.mark.slow
async def test_a_client_that_takes_nothing_for_the_send_timeout_is_closed_and_counted():
    account = UnsentAnswers(1000 * MB)
    async with serving(account, send_timeout_s=0.2) as (server, port, _):
        client, reading = await never_reads(port), await Raw.open(port)
        await client.send(HUGE)
        assert (await ask(reading, GET)).status == 200
        await until(lambda: len(server._server.server_state.connections) == 1)
        assert account.closed == 1
        assert len((await ask(reading, HUGE)).body) == 8 * MB
        client.writer.transport.abort()
        await reading.close()


async def test_the_head_of_a_large_answer_alone_says_how_long_that_is_and_waits_for_nobody():
    account = UnsentAnswers(MB)
    async with serving(account) as (_, port, _):
        client = await Raw.open(port)
        await client.send(HUGE.replace(b"GET", b"HEAD"))
        head = await client.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 8000000" in head.lower()
        assert account.refused == account.waiting_bytes == 0
        await client.close()


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_of_many_that_connect_together_the_last_waits_for_few_turns_of_the_loop(new_loop):
    async def turns_for(clients: int) -> int:
        async with serving(UnsentAnswers()) as (_, port, app):
            with contextlib.ExitStack() as opened:
                for _ in range(clients):
                    opened.enter_context(socket.create_connection(("127.0.0.1", port))).sendall(GET)
                turns = 0
                while app.seen < clients:
                    turns += 1
                    assert turns < 20 * clients
                    await asyncio.sleep(0)
                return turns

    loop = new_loop()
    try:
        turns = loop.run_until_complete(turns_for(48))
    finally:
        loop.close()
    assert turns <= 16
