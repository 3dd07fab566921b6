"""The native engine's connections outside the interpreter's lock: which stay there, how the others are handed over, and that nothing is left of any."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import random
import select
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvloop
from tritonclient.grpc import service_pb2 as pb

import grpc
from grpc_support import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INFER,
    PING,
    PREFACE,
    SLOW,
    Running,
    Wire,
    call_headers,
    frame,
    message,
    serving,
)
from http2_conversations import LIMIT, squeezed
from serinus.native.frames.frame_relay import FrameRelay, Outcome, Reported
from serinus.native.kernel_library import library
from serinus.server.connections.idle_room import IdleRoom
from serinus.server.grpc import native_engine
from serinus.server.grpc.deflate import NAMED
from serinus.server.grpc.relays import native_relays
from serinus.server.grpc.relays.native_relays import NativeRelay, NativeRelays
from serinus.server.grpc.relays.relay import Relay, _FrontSide
from serinus.server.grpc.relays.size_filter import FrameGuard
from waiting import until, wait_until

pytestmark = pytest.mark.skipif(library() is None, reason="no compiled kernels")

MARKER = b"\xffmarker"


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def connected() -> tuple[socket.socket, socket.socket]:
    """A client's end of a connection over TCP, and the accepted one."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    accepted.setblocking(False)
    return client, accepted


def asks(model: str, rows: int = 1) -> bytes:
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[rows, 3])
    content = np.ones((rows, 3), np.float32).tobytes()
    return pb.ModelInferRequest(model_name=model, inputs=[entry], raw_input_contents=[content]).SerializeToString()


# A connection that is declined


class Front:
    """Stands in the front's place: says what it is told, and keeps what it gets until the other side ends."""

    def __init__(self, says: list[bytes]) -> None:
        self._says = says
        self.got = bytearray()
        self.ended = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in self._says:
            writer.write(piece)
            await asyncio.sleep(0)
        while data := await reader.read(1 << 16):
            self.got += data
        writer.close()
        self.ended.set()


@contextlib.asynccontextmanager
async def relays_to(
    path: Path, *, send_timeout_s: float = 60, on_stalled: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[NativeRelays, set[Any]]]:
    relays: set[Any] = set()

    def go_on(declined: Reported) -> Relay:
        guard = FrameGuard(LIMIT, MARKER)
        if declined.has_begun:
            guard.go_on(declined.messages, has_data=declined.has_data)
        return Relay(str(path), guard, relays, send_timeout_s, on_stalled, declined=declined)

    kernels = library()
    assert kernels is not None
    frames = FrameRelay(kernels, LIMIT, send_timeout_s)
    served = NativeRelays(frames, str(path), relays, go_on=go_on, room=IdleRoom(), on_stalled=on_stalled)
    try:
        yield served, relays
    finally:
        for relay in list(relays):
            relay.abort()
        await until(lambda: not relays)
        await served.close()


def gzip_call(stream: int) -> list[bytes]:
    body = message(squeezed(bytes(300)), compressed=1)
    return [frame(DATA, 0, stream, body[:20]), frame(DATA, END_STREAM, stream, body[20:])]


PLAIN = [frame(HEADERS, END_HEADERS, 1, b"\x82"), frame(DATA, 0, 1, message(b"abcdef", claim=9))]
"""A message that goes on: its last three bytes come in a frame of their own."""
DECLINED = {
    "gzip": [*PLAIN, *gzip_call(3), frame(DATA, END_STREAM, 1, b"ghi")],
    "deflate": [
        *PLAIN,
        frame(HEADERS, END_HEADERS, 3, NAMED),
        frame(DATA, END_STREAM, 3, message(squeezed(b"x" * 99, is_gzip=False), compressed=1)),
        frame(DATA, END_STREAM, 1, b"ghi"),
    ],
    "too large": [
        *PLAIN,
        frame(DATA, 0, 1, b"ghi" + message(b"", claim=LIMIT + 1)),
        frame(DATA, END_STREAM, 1, b"rest"),
    ],
    "padded": [*PLAIN, frame(DATA, 8, 1, b"\x02g\0\0"), frame(DATA, END_STREAM, 1, b"hi")],
    "no frame": [*PLAIN, b"\xff" * 9, b"and more"],
}
"""What a client says after the preface, of which something wants judgement."""


@pytest.mark.parametrize("name", DECLINED)
async def test_a_declined_connection_goes_on_without_a_byte_lost_wherever_a_read_ends(name: str, tmp_path: Path):
    said = PREFACE + b"".join(DECLINED[name])
    expected = FrameGuard(LIMIT, MARKER).feed(said)
    answers = [random.Random(name).randbytes(50) for _ in range(8)]
    loop, path = asyncio.get_running_loop(), tmp_path / "front"
    async with relays_to(path) as (served, relays):
        before = descriptors()
        for cut in range(1, len(said)):
            front = Front(answers)
            server = await asyncio.start_unix_server(front.serve, path)
            client, ours = connected()
            with client:
                client.setblocking(False)
                assert served.take(ours)
                await loop.sock_sendall(client, said[:cut])
                passes = FrameGuard(LIMIT, MARKER).feed(said[:cut])
                await until(lambda front=front, passes=passes: front.got == passes)
                await loop.sock_sendall(client, said[cut:])
                client.shutdown(socket.SHUT_WR)
                await asyncio.wait_for(front.ended.wait(), 20)
                assert front.got == expected, cut
                heard = b""
                while piece := await asyncio.wait_for(loop.sock_recv(client, 1 << 16), 20):
                    heard += piece
                assert heard == b"".join(answers), cut
            await until(lambda: not relays)
            server.close()
            await server.wait_closed()
        await until(lambda: descriptors() <= before)


class Talker(Front):
    """Says as much as it is let, whatever it gets."""

    def __init__(self) -> None:
        super().__init__([])
        self.said = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while self.said < 1 << 26:
                writer.write(bytes(1 << 16))
                self.said += 1 << 16
                await writer.drain()
        writer.close()
        self.ended.set()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_declined_client_that_reads_nothing_holds_the_front_up_and_is_given_up_after_its_time(
    run: Callable[[Coroutine[Any, Any, None]], None], tmp_path: Path
):
    """uvloop reads from the front before whoever joins it hears that it may."""
    run(_hand_over_a_client_that_reads_nothing(tmp_path / "front"))


async def _hand_over_a_client_that_reads_nothing(path: Path) -> None:
    stalled: list[int] = []
    front = Talker()
    server = await asyncio.start_unix_server(front.serve, path)
    async with relays_to(path, send_timeout_s=1, on_stalled=lambda: stalled.append(1)) as (served, relays):
        client, ours = connected()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # else the kernel takes ever more
        with client:
            assert served.take(ours)
            said = 0
            while said < front.said or not said:  # until nobody takes more of the front
                said = front.said
                await asyncio.sleep(0.1)  # that nothing goes on shows only after a while
            client.send(b"no HTTP/2 at all")
            await until(lambda: stalled or front.ended.is_set())
            said_meanwhile = front.said - said
            for relay in list(relays):
                relay.abort()
            await until(lambda: not relays)
    await asyncio.wait_for(front.ended.wait(), 10)
    server.close()
    assert said_meanwhile < 1 << 22, "it waits in this process"
    assert stalled == [1]


async def test_a_connection_that_is_given_up_while_it_is_handed_over_is_closed(tmp_path: Path):
    path = tmp_path / "front"
    front = Front([])
    server = await asyncio.start_unix_server(front.serve, path)
    async with relays_to(path) as (served, relays):
        client, ours = connected()
        with client:
            assert served.take(ours)
            (relay,) = relays
            going_on = asyncio.Event()
            hand_over = served._hand_over

            async def watched(relay: NativeRelay, declined: Reported) -> None:
                relay.abort()
                going_on.set()
                await hand_over(relay, declined)

            served._hand_over = watched  # type: ignore[method-assign] # to be in between
            client.send(b"no HTTP/2 at all")
            await asyncio.wait_for(going_on.wait(), 20)
            assert relay.is_closing
            await until(lambda: not relays)
            client.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
    await asyncio.wait_for(front.ended.wait(), 10)
    server.close()


def test_a_client_that_goes_while_the_front_is_joined_to_it_anew_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """On uvloop, which reads from the front in that very moment."""
    begin = _FrontSide.__init__

    def begin_late(side: _FrontSide, relay: Relay) -> None:
        begin(side, relay)
        relay.abort()

    monkeypatch.setattr(_FrontSide, "__init__", begin_late)
    uvloop.run(_hand_over_a_client_that_goes(tmp_path / "front"))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def _hand_over_a_client_that_goes(path: Path) -> None:
    front = Talker()
    server = await asyncio.start_unix_server(front.serve, path)
    async with relays_to(path) as (served, relays):
        client, ours = connected()
        with client:
            assert served.take(ours)
            await until(lambda: front.said > 1 << 20)
            client.send(b"no HTTP/2 at all")
            await asyncio.wait_for(front.ended.wait(), 20)
            await until(lambda: not relays)
    server.close()


async def test_a_connection_that_nobody_can_go_on_with_is_closed_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    path, loop, before = tmp_path / "front", asyncio.get_running_loop(), descriptors()
    front = Front([])
    server = await asyncio.start_unix_server(front.serve, path)
    async with relays_to(path) as (served, relays):
        client, ours = connected()
        with client:
            assert served.take(ours)
            (relay,) = relays

            async def refuse(*_: object) -> None:
                relay.abort()  # as it is where room is made, or the server closes
                raise OSError("the client has gone")

            monkeypatch.setattr(loop, "connect_accepted_socket", refuse)
            client.send(b"no HTTP/2 at all")
            await asyncio.wait_for(front.ended.wait(), 20)
            client.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
            await until(lambda: not relays)
    server.close()
    await server.wait_closed()
    await until(lambda: descriptors() <= before)
    gc.collect()  # an error that nobody takes of a task is told when it is collected
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_front_that_is_killed_closes_its_clients_and_no_descriptor_stays(tmp_path: Path):
    path, before = tmp_path / "front", descriptors()
    behind = socket.socket(socket.AF_UNIX)
    behind.bind(str(path))
    behind.listen(10)
    async with relays_to(path) as (served, relays):
        pairs = []
        for _ in range(5):
            client, ours = connected()
            assert served.take(ours)
            client.sendall(PREFACE + frame(PING, 0, 0, bytes(8)))
            pairs.append((client, behind.accept()[0]))
        behind.close()
        for _, front in pairs:
            front.close()  # with the preface unread: what is sent to it from now on fails
        for client, _ in pairs:
            client.settimeout(10)
            with contextlib.suppress(ConnectionError):
                assert client.recv(10) == b""
            client.close()
        await until(lambda: not relays)
        client, ours = connected()
        assert not served.take(ours), "nobody accepts there, which the relay in Python says"
        assert ours.fileno() >= 0
        client.close()
        ours.close()
    assert descriptors() == before


async def test_connections_that_are_left_when_the_relays_close_are_closed(tmp_path: Path):
    path, before = tmp_path / "front", descriptors()
    front = Front([bytes(1 << 20)])
    server = await asyncio.start_unix_server(front.serve, path)
    clients = []
    async with relays_to(path) as (served, relays):
        for _ in range(20):
            client, ours = connected()
            assert served.take(ours)
            client.sendall(PREFACE + frame(DATA, 0, 1, message(b"x", claim=LIMIT))[:-1])
            clients.append(client)
        kept = list(relays)
        await until(lambda: all(relay._sent for relay in kept))
        await served.close()
        assert not relays
        assert all(relay.is_closing and relay._sent for relay in kept), "what was counted can still be read"
        served._frames = FrameRelay(library(), LIMIT, 60)  # type: ignore[arg-type] # for the end of `relays_to`
        served._thread = threading.Thread(target=lambda: None)
        served._thread.start()
    for client in clients:
        client.close()
    server.close()
    await server.wait_closed()
    await until(lambda: descriptors() <= before)


def test_bytes_pass_while_somebody_holds_the_interpreter_s_lock_and_connections_end():
    """All that happens here between two lines is done by C functions that keep the lock, which nobody is given in between."""
    kernels = library()
    assert kernels is not None
    frames, holding = FrameRelay(kernels, LIMIT, 60), ctypes.PyDLL(None)
    thread = threading.Thread(target=frames.run)
    (gone, its_end), (its_front, _kept) = socket.socketpair(), socket.socketpair()
    (client, ours), (to_front, front) = socket.socketpair(), socket.socketpair()
    for one in (its_end, its_front, ours, to_front):
        one.setblocking(False)
    frames.add(1, its_end.detach(), its_front.detach())
    frames.add(2, ours.detach(), to_front.detach())
    thread.start()
    before = sys.getswitchinterval()
    try:
        client.sendall(PREFACE)
        assert front.recv(100) == PREFACE
        said = frame(PING, 0, 0, bytes(8))
        to_read = struct.pack("ihh", front.fileno(), select.POLLIN, 0)
        number = gone.detach()
        sys.setswitchinterval(1000)
        holding.close(number)
        holding.poll(None, 0, 100)  # until the relay has seen it, which shows nowhere
        holding.send(client.fileno(), said, len(said), 0)
        readable = holding.poll(to_read, 1, 5000)
    finally:
        sys.setswitchinterval(before)
        client.close()
        frames.stop()
        thread.join(20)
        left = {one.number: one.outcome for one in frames.take()}
        frames.close()
        front.close()
        _kept.close()
    assert readable == 1
    assert left[1] is Outcome.OVER


# In the engine


@pytest.fixture
def server() -> Iterator[Running]:
    with serving("native") as running:
        yield running


def kinds(server: Running) -> set[type]:
    return {type(relay) for relay in server.server._engine.relays}


def test_a_connection_leaves_the_relay_with_its_first_compressed_message_and_all_its_calls_are_answered(
    server: Running,
):
    with server.channel() as channel:
        call = channel.unary_unary(INFER)
        for _ in range(3):
            assert call(asks("sum"), timeout=10)
        assert kinds(server) == {NativeRelay}
        pending = call.future(asks("slow"), timeout=20)
        wait_until(lambda: SLOW["slow"].came == 1)
        assert call(asks("sum", 1000), timeout=10, compression=grpc.Compression.Gzip)
        assert kinds(server) == {Relay}
        server.loop.call_soon_threadsafe(SLOW["slow"].go.set)
        assert pending.result(10), "the call that was open is answered"
        assert call(asks("sum"), timeout=10)
    server.until(lambda: not server.server._engine.relays)


def test_messages_of_many_frames_stay_where_they_are(server: Running):
    with server.channel() as channel:
        call = channel.unary_unary(INFER)
        answers = [call.future(asks("scalars", rows), timeout=20) for rows in (1, 100_000, 30_000, 5)]
        for answer in answers:
            with contextlib.suppress(grpc.RpcError):  # of the wrong shape: it is the way that counts
                answer.result()
        assert kinds(server) == {NativeRelay}


@pytest.mark.parametrize("sent", [0, 1, 20, 30, 120, 400])
def test_a_client_that_goes_within_a_message_leaves_nothing_behind(server: Running, sent: int):
    engine = server.server._engine
    assert not engine.relays
    before = descriptors()
    said = frame(HEADERS, END_HEADERS, 1, call_headers()) + frame(DATA, END_STREAM, 1, message(asks("sum", 100)))
    for is_reset in (False, True):
        with Wire(server.port) as wire:
            wire.send(said[:sent])
            server.until(lambda: len(engine.relays) == 1)
            if is_reset:
                wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server.until(lambda: not engine.relays)
    server.until(lambda: descriptors() == before)


def test_one_client_that_sends_without_end_keeps_nobody_from_being_served(server: Running):
    stop = threading.Event()

    def flood() -> None:
        with Wire(server.port) as wire:
            while not stop.is_set() and wire.send(frame(0x20, 0, 0, bytes(16384)) * 20):
                pass

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        with server.channel() as channel:
            for _ in range(20):
                assert channel.unary_unary(INFER)(asks("sum"), timeout=20)
    finally:
        stop.set()
        flooding.join()


def test_of_these_too_who_has_called_nothing_makes_room_first_and_who_was_silent_for_long_last(
    server: Running, monkeypatch: pytest.MonkeyPatch
):
    engine = server.server._engine
    with Wire(server.port) as at_work, Wire(server.port) as mute:
        at_work.send(frame(HEADERS, END_HEADERS, 1, call_headers()))
        at_work.send(frame(DATA, END_STREAM, 1, message(asks("slow"))))
        server.until(lambda: SLOW["slow"].came == 1 and len(engine.relays) == 2)
        assert kinds(server) == {NativeRelay}

        async def make_room() -> bool:
            return engine.room.make()

        assert server.run(make_room())
        assert not mute.ended(1), "it is closed"
        server.until(lambda: len(engine.relays) == 1)
        assert not server.run(make_room()), "a call waits on it"
        monkeypatch.setattr(native_engine, "_SILENT_S", 0.3)
        server.until(lambda: engine._idlest() is not None)
        at_work.send(frame(PING, 0, 0, bytes(8)))  # a client that says something is no silent one
        server.until(lambda: engine._idlest() is None)
        server.loop.call_soon_threadsafe(SLOW["slow"].go.set)
        assert at_work.ended(1)


def test_where_descriptors_are_scarce_connections_are_served_in_python(
    server: Running, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server.server._engine.room, "is_scarce", lambda: True)
    with server.channel() as channel:
        assert channel.unary_unary(INFER)(asks("sum"), timeout=10)
        assert kinds(server) == {Relay}


def test_a_server_that_closes_while_clients_send_leaves_no_thread_and_no_descriptor():
    def threads() -> int:
        return sum(thread.name == "serinus-grpc-relay" for thread in threading.enumerate())

    with serving("native"):  # what the first server of a process leaves open for good is open now
        pass
    before, running_before = descriptors(), threads()
    clients: list[threading.Thread] = []
    with serving("native") as server:
        assert threads() == running_before + 1

        def send() -> None:
            with Wire(server.port) as wire:
                wire.send(frame(HEADERS, END_HEADERS, 1, call_headers()) + frame(DATA, 0, 1, message(asks("slow"))))
                while wire.send(frame(0x20, 0, 0, bytes(1000))):
                    pass

        clients = [threading.Thread(target=send) for _ in range(4)]
        for client in clients:
            client.start()
        server.until(lambda: len(server.server._engine.relays) == 4)
    for client in clients:
        client.join(20)
    assert threads() == running_before
    wait_until(lambda: descriptors() <= before)


def test_without_compiled_kernels_the_relay_in_python_serves(monkeypatch: pytest.MonkeyPatch, caplog):
    monkeypatch.setattr(native_relays, "library", lambda: None)
    with caplog.at_level(logging.WARNING), serving("native") as server, server.channel() as channel:
        assert channel.unary_unary(INFER)(asks("sum"), timeout=10)
        assert kinds(server) == {Relay}
    assert not caplog.records


def test_without_epoll_or_descriptors_for_it_the_relay_in_python_serves(monkeypatch: pytest.MonkeyPatch):
    class Without:
        def __init__(self, *_: Any) -> None:
            raise OSError("there is none")

    monkeypatch.setattr(native_relays, "FrameRelay", Without)
    with serving("native") as server, server.channel() as channel:
        assert channel.unary_unary(INFER)(asks("sum"), timeout=10)
        assert kinds(server) == {Relay}
