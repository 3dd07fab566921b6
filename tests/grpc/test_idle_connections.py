"""Which connection of the native engine makes room for a new one where descriptors run out."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from grpc_support import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    SLOW,
    Running,
    Wire,
    call_headers,
    frame,
    message,
    serving,
)
from serinus.server.grpc import native_engine


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


def test_who_has_called_nothing_goes_first_and_who_was_silent_for_long_next(server, monkeypatch):
    engine = server.server._engine
    with (
        Wire(server.port) as at_work,
        Wire(server.port) as served,
        Wire(server.port) as mute,
        Wire(server.port) as late,
    ):
        send(served, "sum")
        assert served.ended(1)
        send(at_work, "slow")
        server.until(lambda: SLOW["slow"].came == 1 and len(engine.relays) == 4)
        server.run(asyncio.sleep(0.02))
        late.send(frame(PING, 0, 0, b"12345678"))
        server.until(lambda: len({relay.heard_at for relay in engine.relays if not relay.has_called}) == 2)
        for idle in (mute, late):
            assert server.run(make(server))
            assert not idle.ended(1)
        server.until(lambda: len(engine.relays) == 2)
        assert not server.run(make(server)), "a call may wait on either"
        monkeypatch.setattr(native_engine, "_SILENT_S", 0.3)
        server.until(lambda: engine._idlest() is not None)
        at_work.send(frame(PING, 0, 0, b"12345678"))  # a client that says something is no silent one
        server.loop.call_soon_threadsafe(SLOW["slow"].go.set)
        assert at_work.ended(1)
        assert server.run(make(server))
        assert not served.ended(3)
        assert len(engine.relays) == 1
