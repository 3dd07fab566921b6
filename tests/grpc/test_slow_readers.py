"""gRPC clients that do not take their answers, over real sockets on both engines: what waits for them is bounded, and ends."""

from __future__ import annotations

import itertools
import socket
import struct
import time

import numpy as np
import pytest

import grpc
from grpc_support import (
    DATA,
    END_HEADERS,
    END_STREAM,
    ENGINES,
    HEADERS,
    INFER,
    PING,
    SETTINGS,
    TLS,
    Running,
    Wire,
    call_headers,
    frame,
    message,
    serving,
)
from serinus.protocol import _open_inference_pb2 as pb
from serinus.server.connections.unsent_answers import UnsentAnswers
from waiting import wait_until

MIB = 1 << 20


def asks_for(count: int) -> bytes:
    """A request for so many bytes."""
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="INT64", shape=[1])
    return pb.ModelInferRequest(
        model_name="big", inputs=[entry], raw_input_contents=[np.array([count]).tobytes()]
    ).SerializeToString()


def ask(server: Running, count: int) -> bytes:
    """Have a client ask, and read; again, where a busy machine's model has too many before it."""
    options = [("grpc.max_receive_message_length", -1)]
    with server.channel(options) as channel:
        while True:
            try:
                return channel.unary_unary(INFER)(asks_for(count), timeout=30)
            except grpc.RpcError as error:
                if "rows are before this request" not in str(error.details()):  # type: ignore[attr-defined] # of a call
                    raise
                time.sleep(0.1)  # as it says


def ask_and_read_nothing(wire: Wire, calls: int, count: int) -> None:
    """Begin so many calls; HTTP/2's window of 64 KiB stays shut."""
    body = message(asks_for(count))
    for stream in range(1, 2 * calls, 2):
        wire.send(frame(HEADERS, END_HEADERS, stream, call_headers()) + frame(DATA, END_STREAM, stream, body))


def account_of(server: Running) -> UnsentAnswers:
    """What both engines tell."""
    engine = server.server._engine
    return engine.service.unsent if engine.name == "native" else engine._service.unsent


def hold_all(server: Running, wire: Wire) -> None:
    """Ask for answers of 4 MiB and take none, until one is refused."""
    streams = itertools.count(1, 2)

    def is_full() -> bool:
        body, stream = message(asks_for(4 * MIB)), next(streams)
        wire.send(frame(HEADERS, END_HEADERS, stream, call_headers()) + frame(DATA, END_STREAM, stream, body))
        return account_of(server).refused > 0

    wait_until(is_full)


@pytest.mark.parametrize("engine", [*ENGINES, TLS])
def test_answers_that_nobody_takes_stay_within_the_bound_and_small_ones_go_out(engine: str):
    with serving(engine, max_unsent_bytes=16 * MIB, send_timeout_s=600) as server, server.wire() as wire:
        hold_all(server, wire)
        assert account_of(server).waiting_bytes <= 16 * MIB
        assert len(ask(server, 1000)) > 1000
        with pytest.raises(grpc.RpcError) as caught:
            ask(server, 16 * MIB)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "max_unsent_bytes" in str(caught.value.details())
        assert ("retry-after", "1") in list(caught.value.trailing_metadata() or ())


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, TLS])
def test_who_takes_nothing_for_the_send_timeout_is_given_up_for_others(engine: str):
    with serving(engine, max_unsent_bytes=16 * MIB, send_timeout_s=1) as server, server.wire() as wire:
        account = account_of(server)
        hold_all(server, wire)

        def is_served() -> bool:
            try:
                return len(ask(server, 16 * MIB)) > 16 * MIB
            except grpc.RpcError:
                return False

        def is_empty() -> bool:
            account.look()
            return not account.waiting_bytes

        wait_until(is_served)
        assert account.closed > 0
        # The client may have an answer, as large as all room, before the front has counted it as over.
        wait_until(is_empty)
        for _ in range(5):
            ask(server, MIB)
        wait_until(is_empty)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, TLS])
def test_small_answers_that_nobody_takes_do_not_make_large_ones_that_are_read_count(engine: str):
    with serving(engine, max_unsent_bytes=16 * MIB, send_timeout_s=600) as server, server.wire() as wire:
        wire.send(frame(SETTINGS, 0, 0, struct.pack("!HI", 4, 0)))  # INITIAL_WINDOW_SIZE
        ask_and_read_nothing(wire, 100, 8)
        for _ in range(20):
            time.sleep(0.06)  # long enough for the account to look again
            assert len(ask(server, 2 * MIB)) > 2 * MIB, "all before it are read"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", TLS])
def test_who_takes_nothing_and_keeps_its_connection_moving_is_given_up_for_others(engine: str):
    with serving(engine, max_unsent_bytes=16 * MIB, send_timeout_s=1) as server, server.wire() as wire:
        hold_all(server, wire)

        def is_served() -> bool:
            wire.send(frame(PING, 0, 0, bytes(8)))
            try:
                return len(ask(server, 4 * MIB)) > 4 * MIB
            except grpc.RpcError:
                return False

        wait_until(is_served)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", TLS])
def test_a_client_whose_socket_is_full_is_closed_after_the_send_timeout(engine: str):
    """The window is open wide, and nothing is read: TCP holds the answer up."""
    with serving(engine, send_timeout_s=1) as server, server.wire() as wire:
        account = account_of(server)
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened = frame(4, 0, 0, b"\x00\x04\x7f\xff\xff\xff") + frame(8, 0, 0, (2**31 - 1 - 65535).to_bytes(4, "big"))
        wire.send(opened)  # SETTINGS_INITIAL_WINDOW_SIZE, and WINDOW_UPDATE of the connection
        ask_and_read_nothing(wire, 1, 32 * MIB)
        wait_until(lambda: account.closed == 1)
        wait_until(lambda: not server.server._engine.relays)
        assert len(ask(server, 32 * MIB)) > 32 * MIB, "who reads is served"
