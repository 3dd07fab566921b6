"""TLS handshakes over real sockets: how long one may take, how many are under way, and who is served beside them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator

import pytest

from certificate_support import Authority
from http_support import Probe, Raw
from serinus.server.certificates import Certificates
from serinus.server.connections import acceptor, tls_listener
from serinus.server.http.exchange import HttpLimits
from serinus.server.http.thin import ThinServer
from waiting import until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "ours")


@contextlib.asynccontextmanager
async def serving(authority: Authority) -> AsyncIterator[tuple[ThinServer, int, ssl.SSLContext]]:
    issued = authority.issue("server")
    server = ThinServer(Probe(), HttpLimits())
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.bind(("127.0.0.1", 0))
    await server.listen(sock=sock, ssl=Certificates(issued.certificate, issued.key, None).context())
    try:
        yield server, sock.getsockname()[1], ssl.create_default_context(cafile=str(authority.certificate))
    finally:
        await server.close()


async def is_served(port: int, context: ssl.SSLContext) -> bool:
    client = await Raw.open(port, ssl=context, server_hostname="127.0.0.1")
    await client.send(GET)
    status = (await client.answer()).status
    await client.close()
    return status == 200


async def test_past_the_most_handshakes_the_eldest_is_given_up_and_clients_are_served(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tls_listener, "HANDSHAKES", 5)
    async with serving(authority) as (server, port, context):
        halves = [await Raw.open(port) for _ in range(20)]
        for number, half in enumerate(halves):
            if number % 2:
                await half.send(b"\x16\x03\x01")
        await until(lambda: server.beginning == 5)
        for half in halves[:15]:
            assert await half.ended()
        assert await is_served(port, context)
        assert server.beginning <= 5
        for half in halves:
            await half.close()
        await until(lambda: not server.beginning)


async def test_a_handshake_that_takes_too_long_is_given_up(authority: Authority, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tls_listener, "HANDSHAKE_S", 0.2)
    async with serving(authority) as (server, port, context):
        half = await Raw.open(port)
        await half.send(b"\x16\x03\x01")
        assert await half.ended()
        await until(lambda: not server.beginning)
        assert await is_served(port, context)
        await half.close()


async def test_the_end_does_not_wait_for_a_handshake(authority: Authority):
    async with serving(authority) as (server, port, _):
        half = await Raw.open(port)
        await half.send(b"\x16\x03\x01")
        await until(lambda: server.beginning == 1)
        await asyncio.wait_for(server.drain(30), 20)
        await asyncio.wait_for(server.close(), 20)
        assert await half.ended()
        await half.close()


async def test_a_client_at_its_handshake_when_the_end_begins_is_answered(authority: Authority):
    async with serving(authority) as (server, port, context):
        plain = socket.create_connection(("127.0.0.1", port))
        await until(lambda: server.beginning == 1)
        drained = asyncio.ensure_future(server.drain(30))
        await asyncio.sleep(0)
        client = Raw(*await asyncio.open_connection(sock=plain, ssl=context, server_hostname="127.0.0.1"))
        await client.send(GET)
        answer = await client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await drained
        await client.close()


async def test_the_eldest_handshake_makes_room_for_other_transports_and_a_connection_idle_for_longer_goes_first(
    authority: Authority,
):
    async with serving(authority) as (server, port, context):
        idle = await Raw.open(port, ssl=context, server_hostname="127.0.0.1")
        await until(lambda: server.connection_count == 1)
        half = await Raw.open(port)
        await until(lambda: server.beginning == 1)
        late = await Raw.open(port, ssl=context, server_hostname="127.0.0.1")
        await until(lambda: server.connection_count == 2)
        for gone in (idle, half, late):
            assert server._room.make()
            assert await gone.ended()
        assert not server._room.make()
        for client in (idle, half, late):
            await client.close()


async def test_what_is_no_tls_ends_its_connection_alone(authority: Authority):
    async with serving(authority) as (server, port, context):
        plain = await Raw.open(port)
        await plain.send(GET)
        with contextlib.suppress(ConnectionError):
            assert b"200 OK" not in await plain.reader.read()
        await until(lambda: not server.beginning)
        assert await is_served(port, context)
        await plain.close()


async def test_without_descriptors_accepting_rests_and_goes_on(authority: Authority, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acceptor, "_REST_S", 0.05)
    async with serving(authority) as (server, port, context):
        listener = server._server
        assert isinstance(listener, tls_listener.TlsListener)
        real, tries = listener._sock, 0

        class Exhausted:
            def accept(self) -> None:
                nonlocal tries
                tries += 1
                raise OSError(errno.EMFILE, "Too many open files")

            def fileno(self) -> int:
                return real.fileno()

            def close(self) -> None:
                real.close()

        listener._sock = Exhausted()  # type: ignore[assignment]
        waiting = await Raw.open(port)
        await until(lambda: tries >= 2)
        listener._sock = real
        assert await is_served(port, context)
        await waiting.close()
