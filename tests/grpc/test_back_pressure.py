"""The relays before the native front, over real sockets: nobody's bytes pile up here, and what one side does the other side sees."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from grpc_support import PREFACE, frame, loaded, tls_context
from serinus.native.frames.frame_relay import FrameRelay, Reported
from serinus.native.kernel_library import library
from serinus.server.connections.acceptor import Acceptor
from serinus.server.connections.idle_room import IdleRoom
from serinus.server.connections.tls_connection import TlsConnections
from serinus.server.grpc.relays import relay as relay_module
from serinus.server.grpc.relays.native_relays import NativeRelay, NativeRelays
from serinus.server.grpc.relays.relay import Relay
from serinus.server.grpc.relays.size_filter import FrameGuard
from waiting import until

PIECE = frame(0x20, 0, 0, bytes(range(256)) * 4) * 63
"""Nearly 64 KiB of frames of a type that nobody knows, which pass as they are (RFC 9113, 4.1)."""
KINDS = ["python", "TLS", "native"]
"""Who serves a connection: a `Relay`, the same after TLS, a `NativeRelay`."""
MOST = 32 << 20
"""More than the buffers of two socket pairs and two transports take together."""


class Front:
    """What the relay is joined to: each connection's ends, in the order they came."""

    def __init__(self) -> None:
        self.connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.connections.put((reader, writer))


class Joined:
    """A client's ends and the front's, with a relay between."""

    def __init__(self, relays: set[Relay | NativeRelay], client: tuple, front: tuple, stalled: list[bool]) -> None:
        self.relays = relays
        self.stalled = stalled
        self.reader: asyncio.StreamReader = client[0]
        self.writer: asyncio.StreamWriter = client[1]
        self.front_reader: asyncio.StreamReader = front[0]
        self.front_writer: asyncio.StreamWriter = front[1]


@contextlib.asynccontextmanager
async def relayed(folder: Path, kind: str = "python", *, send_timeout_s: float = 60) -> AsyncIterator[Joined]:
    """A client and a front, joined, HTTP/2's preface between them."""
    front, relays, stalled = Front(), set(), []
    path = str(folder / "front")
    behind = await asyncio.start_unix_server(front.accept, path, limit=1 << 16)
    guard = FrameGuard(1000, b"marker")
    sock = socket.create_server(("127.0.0.1", 0))
    native = None

    def make() -> Relay:
        return Relay(path, guard, relays, send_timeout_s, lambda: stalled.append(True))

    def go_on(declined: Reported) -> Relay:
        guard.go_on(declined.messages, has_data=declined.has_data)
        return Relay(path, guard, relays, send_timeout_s, lambda: stalled.append(True), declined=declined)

    if kind == "TLS":
        before: Acceptor = TlsConnections(sock, loaded().context("h2"), make, backlog=10)
    elif kind == "native":
        if (kernels := library()) is None:
            pytest.skip("no compiled kernels")
        native = NativeRelays(
            FrameRelay(kernels, 1000, send_timeout_s),
            path,
            relays,
            go_on=go_on,
            room=IdleRoom(),
            on_stalled=lambda: stalled.append(True),
        )
        before = Acceptor(sock, make, backlog=10, take=native.take)
    else:
        before = Acceptor(sock, make, backlog=10)
    names = {"ssl": tls_context(), "server_hostname": "127.0.0.1"} if kind == "TLS" else {}
    client = await asyncio.open_connection("127.0.0.1", sock.getsockname()[1], limit=1 << 16, **names)
    # Else the kernel's buffer may grow to 32 MiB (net.ipv4.tcp_rmem).
    client[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    joined = Joined(relays, client, await asyncio.wait_for(front.connections.get(), 10), stalled)
    joined.writer.write(PREFACE)
    assert await asyncio.wait_for(joined.front_reader.readexactly(len(PREFACE)), 10) == PREFACE
    try:
        yield joined
    finally:
        before.close()
        behind.close()
        for writer in (joined.writer, joined.front_writer):
            if not writer.transport.is_closing():
                writer.transport.abort()
        for relay in list(relays):
            relay.abort()
        await until(lambda: not relays)
        if native is not None:
            await native.close()


async def write_until_held(writer: asyncio.StreamWriter) -> int:
    """Write pieces until the other side takes no more; how many bytes that was."""
    sent = 0
    while sent < MOST:
        writer.write(PIECE)
        sent += len(PIECE)
        try:
            await asyncio.wait_for(writer.drain(), 0.3)  # as long as nothing moves between three buffers of one machine
        except asyncio.TimeoutError:
            return sent
    pytest.fail(f"{sent} bytes were taken for one who does not read")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_does_not_read_stops_the_front_and_gets_all_once_it_reads(tmp_path: Path, kind: str):
    async with relayed(tmp_path, kind) as joined:
        sent = await write_until_held(joined.front_writer)
        got = await asyncio.wait_for(joined.reader.readexactly(sent), 20)
        assert got == PIECE * (sent // len(PIECE))
        # And again: what was resumed once can be held once more.
        sent = await write_until_held(joined.front_writer)
        assert await asyncio.wait_for(joined.reader.readexactly(sent), 20) == PIECE * (sent // len(PIECE))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_front_that_does_not_read_stops_the_client_and_gets_all_once_it_reads(tmp_path: Path, kind: str):
    async with relayed(tmp_path, kind) as joined:
        for _ in range(2):
            sent = await write_until_held(joined.writer)
            got = await asyncio.wait_for(joined.front_reader.readexactly(sent), 20)
            assert got == PIECE * (sent // len(PIECE))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_is_held_still_gets_its_answers(tmp_path: Path, kind: str):
    async with relayed(tmp_path, kind) as joined:
        await write_until_held(joined.writer)
        joined.front_writer.write(b"answer")
        assert await asyncio.wait_for(joined.reader.readexactly(6), 10) == b"answer"


@pytest.mark.parametrize("kind", ["python", "native"])
@pytest.mark.parametrize("request_", [PIECE, b"request, and no HTTP/2"], ids=["HTTP/2", "no HTTP/2"])
async def test_the_end_of_what_a_client_sends_reaches_the_front_and_answers_still_come(
    tmp_path: Path, kind: str, request_: bytes
):
    async with relayed(tmp_path, kind) as joined:
        joined.writer.write(request_)
        joined.writer.write_eof()
        assert await asyncio.wait_for(joined.front_reader.read(-1), 10) == request_
        joined.front_writer.write(b"late answer")
        assert await asyncio.wait_for(joined.reader.readexactly(11), 10) == b"late answer"
        joined.front_writer.close()
        assert await asyncio.wait_for(joined.reader.read(), 10) == b""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_front_that_leaves_closes_the_client_after_all_that_it_wrote(tmp_path: Path, kind: str):
    async with relayed(tmp_path, kind) as joined:
        joined.front_writer.write(PIECE * 8)
        joined.front_writer.close()
        assert await asyncio.wait_for(joined.reader.read(-1), 10) == PIECE * 8
        joined.writer.close()
        await until(lambda: not joined.relays)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_client_that_takes_nothing_of_what_a_front_has_left_is_closed_after_its_time(tmp_path: Path, kind: str):
    async with relayed(tmp_path, kind, send_timeout_s=0.3) as joined:
        sock = joined.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        transport: asyncio.Transport = joined.writer.transport  # type: ignore[assignment] # of a connection
        transport.pause_reading()
        (relay,) = joined.relays
        said = 0

        async def waits() -> bool:
            """The kernel takes no more: something waits, too little to hold the front."""
            if isinstance(relay, Relay):
                return relay._client.get_write_buffer_size() > 0
            before = relay._sent
            if before < said:
                await asyncio.sleep(0.05)  # as long as the thread that moves bytes may need for that
            return before == relay._sent < said

        while not await waits():
            joined.front_writer.write(PIECE[:16384])
            said += 16384
            await joined.front_writer.drain()
            await asyncio.sleep(0)
        joined.front_writer.close()
        assert joined.relays
        await until(lambda: not joined.relays, limit_s=20)
        assert not joined.stalled, "the front has left, and held nobody up"


@pytest.mark.parametrize("kind", ["python", "native"])
async def test_a_client_that_takes_nothing_for_its_time_is_closed_and_counted(tmp_path: Path, kind: str):
    async with relayed(tmp_path, kind, send_timeout_s=0.5) as joined:
        transport: asyncio.Transport = joined.writer.transport  # type: ignore[assignment] # of a connection
        transport.pause_reading()
        await write_until_held(joined.front_writer)
        await until(lambda: not joined.relays, limit_s=20)
        assert joined.stalled == [True]
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(joined.front_reader.read(-1), 10)


@pytest.mark.parametrize("kind", ["python", "native"])
async def test_a_client_that_leaves_ends_the_fronts_connection_and_is_forgotten(tmp_path: Path, kind: str):
    async with relayed(tmp_path, kind) as joined:
        assert len(joined.relays) == 1
        sock = joined.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        joined.writer.transport.abort()  # a reset: an end alone may still wait for answers
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(joined.front_reader.read(-1), 10) == b""
        await until(lambda: not joined.relays)


@pytest.mark.parametrize("kind", ["python", "native"])
async def test_a_client_of_which_too_much_was_dropped_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(relay_module, "DROPPED_MOST", 40_000)

    def data(payload: bytes) -> bytes:
        return struct.pack("!I", len(payload))[1:] + bytes((0, 0)) + struct.pack("!I", 1) + payload

    async with relayed(tmp_path, kind) as joined:
        joined.writer.write(data(struct.pack("!BI", 0, 5000)))  # counts as a frame: 16 384
        joined.writer.write(data(bytes(10_000)))
        joined.front_writer.write(b"still here")
        assert await asyncio.wait_for(joined.reader.readexactly(10), 10) == b"still here"
        joined.writer.write(data(bytes(10_000)) + data(bytes(10_000)))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(joined.reader.read(), 10) == b""
        await until(lambda: not joined.relays)


async def test_a_front_that_does_not_accept_ends_the_connection_and_the_log_says_so(tmp_path: Path, caplog):
    relays: set[Relay] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: Relay(str(tmp_path / "nobody"), FrameGuard(1000, b"m"), relays), "127.0.0.1", 0
    )
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    writer.close()
    server.close()
    assert "the gRPC front does not accept" in caplog.text
    assert relays == set()


class Recorded(asyncio.Transport):
    """A client's transport that notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.closing = False

    def pause_reading(self) -> None:
        self.asked.append("pause")

    def resume_reading(self) -> None:
        self.asked.append("resume")

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.asked.append("abort")


async def test_what_comes_before_the_front_is_joined_is_passed_on_in_order(tmp_path: Path):
    """uvloop may deliver once more after `pause_reading`, and the end too; a real socket cannot be made to."""
    front = Front()
    behind = await asyncio.start_unix_server(front.accept, str(tmp_path / "front"))
    client, relays = Recorded(), set()
    relay = Relay(str(tmp_path / "front"), FrameGuard(1000, b"m"), relays)
    relay.connection_made(client)
    relay.data_received(b"this is no HTTP/2, ")
    relay.data_received(b"in two pieces")
    relay.eof_received()
    relay.pause_writing()
    relay.resume_writing()
    reader, writer = await asyncio.wait_for(front.connections.get(), 10)
    assert await asyncio.wait_for(reader.read(-1), 10) == b"this is no HTTP/2, in two pieces"
    assert client.asked == ["pause", "pause", "pause", "resume"]
    relay.connection_lost(None)
    assert relays == set()
    writer.close()
    behind.close()


async def test_a_client_that_has_gone_while_the_front_was_joined_leaves_no_connection(tmp_path: Path):
    front = Front()
    behind = await asyncio.start_unix_server(front.accept, str(tmp_path / "front"))
    client = Recorded()
    relay = Relay(str(tmp_path / "front"), FrameGuard(1000, b"m"), set())
    relay.connection_made(client)
    client.closing = True
    reader, writer = await asyncio.wait_for(front.connections.get(), 10)
    assert await asyncio.wait_for(reader.read(-1), 10) == b""
    relay.hold_client(False)
    assert client.asked == ["pause"], "a transport that closes is not resumed"
    writer.close()
    behind.close()
