"""While a model refuses, the native engine's thread sleeps and the event loop looks for calls: each wake-up takes the interpreter's lock from the model."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from grpc_support import (
    DATA,
    END_HEADERS,
    END_STREAM,
    GATE,
    HEADERS,
    MODELS,
    Running,
    Wire,
    _server_loop,
    call_headers,
    frame,
    message,
    run_on_server_loop,
)
from serinus.dataplane.plane import Plane
from serinus.dataplane.registry import Registry
from serinus.dataplane.telemetry.metrics import Metrics
from serinus.server.grpc import start_grpc
from serinus.settings import BatchSettings, ModelSettings, ServerSettings

CALLS = 200


@pytest.fixture
def server():
    async def start() -> Running:
        metrics = Metrics()
        plane = Plane(Registry(lambda chosen: MODELS["gate"](chosen), metrics=metrics), metrics=metrics)
        await plane.start([ModelSettings(name="gate", warmup=False, batch=BatchSettings(max_queue_rows=2))])
        started = await start_grpc(plane, ServerSettings(host="127.0.0.1", grpc="native"), metrics=metrics, port=0)
        return Running(_server_loop(), started, plane, metrics)

    running = run_on_server_loop(start())
    try:
        yield running
    finally:
        GATE["gate"].open.set()
        run_on_server_loop(running.server.close())
        run_on_server_loop(running.plane.close())


def send(wire: Wire, stream: int) -> None:
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
    body = pb.ModelInferRequest(
        model_name="gate", inputs=[entry], raw_input_contents=[np.ones((1, 3), np.float32).tobytes()]
    )
    head = frame(HEADERS, END_HEADERS, stream, call_headers())
    wire.send(head + frame(DATA, END_STREAM, stream, message(body.SerializeToString())))


def wakeups(server: Running) -> int:
    """How often the engine's thread has slept so far."""
    thread = server.server._engine._thread.native_id
    status = Path(f"/proc/self/task/{thread}/status").read_text()
    return int(status.partition("voluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.alone  # whoever else works on the cores makes a thread wait
def test_refusals_wake_no_thread_and_what_comes_later_does(server):
    with Wire(server.port) as wire:
        send(wire, 1)
        server.until(GATE["gate"].entered.is_set)
        for stream in (3, 5):  # one runs and two wait
            send(wire, stream)
        server.until(lambda: server.server._engine.service.pending == 3)
        send(wire, 7)
        assert wire.ended(7)
        before = wakeups(server)
        for stream in range(9, 9 + 2 * CALLS, 2):
            send(wire, stream)
            assert wire.ended(stream)
        refusing = wakeups(server) - before
        time.sleep(0.1)  # and nobody asks any more
        idle = wakeups(server)
        time.sleep(0.1)
        asleep = wakeups(server)
        GATE["gate"].open.set()
        server.until(lambda: not server.server._engine.service.pending)
        send(wire, 9 + 2 * CALLS)
        assert wire.ended(9 + 2 * CALLS)
        server.until(lambda: not server.server._engine.service.pending)
        assert refusing < CALLS // 4, "of one each, and another to say so"
        assert asleep == idle
        assert wakeups(server) > asleep, "it waits for calls again"
