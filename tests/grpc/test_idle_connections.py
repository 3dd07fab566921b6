"""Which connection of the native engine makes room for a new one where descriptors run out."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from grpc_support import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SLOW,
    Running,
    Wire,
    call_headers,
    frame,
    message,
    serving,
)
from serinus.server.grpc import native_engine
from serinus.server.grpc.relays.relay import Relay
from serinus.server.grpc.relays.size_filter import FrameGuard


@pytest.fixture
def server():
    with serving("native") as running:
        yield running


def send(wire: Wire, model: str) -> None:
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
    body = pb.ModelInferRequest(
        model_name=model, inputs=[entry], raw_input_contents=[np.ones((1, 3), np.float32).tobytes()]
    )
    head = frame(HEADERS, END_HEADERS, 1, call_headers())
    wire.send(head + frame(DATA, END_STREAM, 1, message(body.SerializeToString())))


async def make(server: Running) -> bool:
    return server.server._engine.room.make()


def test_who_has_called_nothing_goes_first_then_who_has_no_open_call_and_who_was_silent_for_long_last(
    server, monkeypatch
):
    engine = server.server._engine
    monkeypatch.setattr(engine.room, "is_scarce", lambda: True)
    with (
        Wire(server.port) as at_work,
        Wire(server.port) as served,
        Wire(server.port) as mute,
        Wire(server.port) as late,
    ):
        send(at_work, "slow")
        server.until(lambda: SLOW["slow"].came == 1 and len(engine.relays) == 4)
        server.run(asyncio.sleep(0.02))
        send(served, "sum")
        assert served.ended(1)
        late.send(frame(PING, 0, 0, b"12345678"))
        server.until(lambda: len({relay.heard_at for relay in engine.relays if not relay.has_called}) == 2)
        for idle in (mute, late, served):  # at_work has been silent for longer than all of them
            assert server.run(make(server))
            assert not idle.ended(3)
        server.until(lambda: len(engine.relays) == 1)
        assert not server.run(make(server)), "a call waits on it"
        monkeypatch.setattr(native_engine, "_SILENT_S", 0.3)
        server.until(lambda: engine._idlest() is not None)
        assert engine._idlest()[0] > engine._loop.time() - 0.3, "an idle connection of any transport goes before it"
        at_work.send(frame(PING, 0, 0, b"12345678"))  # a client that says something is no silent one
        server.until(lambda: engine._idlest() is None)
        server.loop.call_soon_threadsafe(SLOW["slow"].go.set)
        assert at_work.ended(1)
        assert server.run(make(server)), "its call has ended"


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 3, 9, 10, 1000])
async def test_of_what_the_front_answers_each_stream_s_end_is_found_wherever_a_read_ends(size: int):
    class Client(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.got = b""

        def write(self, data: Any) -> None:
            self.got += data

        def get_write_buffer_size(self) -> int:
            return 0

    guard = FrameGuard(1000, b"")
    relay = Relay("", guard, set(), counts_calls=True)
    relay._client = client = Client()
    guard.feed(PREFACE + b"".join(frame(HEADERS, END_HEADERS, stream, call_headers()) for stream in (1, 3, 5, 7)))
    assert guard.open == {1, 3, 5, 7}
    guard.feed(frame(HEADERS, END_HEADERS | END_STREAM, 3, b"") + frame(RST_STREAM, 0, 7, bytes(4)))
    said = [
        (frame(HEADERS, END_HEADERS, 1, b"\x88"), {1, 3, 5}),
        (frame(DATA, END_STREAM, 5, frame(HEADERS, END_STREAM, 1, b"")), {1, 3, 5}),
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"x" * 300), {3, 5}),
        (frame(RST_STREAM, 0, 3, bytes(4)) + frame(PING, 0, 0, bytes(8)), {5}),
        (frame(HEADERS, END_HEADERS | END_STREAM, 5, b""), set()),
    ]
    for data, still in said:
        for piece in cut(data, size):
            relay.counted_from_front(piece)
        assert guard.open == still
        assert relay.is_at_work == bool(still)
    assert client.got == b"".join(data for data, _ in said)
    guard.feed(frame(HEADERS, END_HEADERS | END_STREAM, 5, b""))
    assert not guard.open, "trailers open no stream"
