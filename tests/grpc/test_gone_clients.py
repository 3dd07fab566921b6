"""Clients that leave in the moment in which they are answered: no news for the log, and counted as what was made of them."""

from __future__ import annotations

import logging
import socket
import struct
import time

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from depth import draws
from grpc_support import (
    DATA,
    END_HEADERS,
    END_STREAM,
    ENGINES,
    HEADERS,
    MODELS,
    RST_STREAM,
    Running,
    Wire,
    call_headers,
    frame,
    message,
    serving,
)
from serinus import InferRequest, InferResponse, RequestModel

SERVICE = "/inference.GRPCInferenceService"
CALLS = 40
"""Of one connection; most are answered while it goes."""
TURNS = draws(10, 5, 2)
"""Connections of each case."""


def request(model: str) -> bytes:
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
    x = np.ones((1, 3), np.float32)
    return pb.ModelInferRequest(model_name=model, inputs=[entry], raw_input_contents=[x.tobytes()]).SerializeToString()


ANSWERS = {
    "an answer": ("ModelInfer", request("sum"), {}),
    "an answer with metadata": ("ModelInfer", request("echo"), {"x-request-id": "one"}),
    "a refusal": ("ModelInfer", request("missing"), {}),
    "another call's answer": ("ServerLive", b"", {}),
    "another call's refusal": ("ModelMetadata", pb.ModelMetadataRequest(name="missing").SerializeToString(), {}),
    "answers of a stream": ("ModelStreamInfer", request("sum"), {}),
    "the refusal of a stream": ("ModelStreamInfer", b"\xff\xff", {}),
}


def reset(wire: Wire) -> None:
    """Close at once, as a process that dies does: RST, and nothing more is read."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.socket.close()


def cancel(wire: Wire) -> None:
    """Cancel every call, and stay."""
    wire.send(b"".join(frame(RST_STREAM, 0, 2 * n + 1, struct.pack("!I", 8)) for n in range(CALLS)))


def news(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def end(server: Running) -> None:
    server.run(server.server.close())


def read(wire: Wire, ends: int) -> set[int]:
    """Read until so many calls have ended; which were answered."""
    frames, answered = wire.frames(), set()
    while ends:
        kind, flags, stream, payload = next(frames)
        ends -= kind == RST_STREAM or (kind in {DATA, HEADERS} and bool(flags & END_STREAM))
        if kind == DATA and payload:
            answered.add(stream)
    return answered


LEAVING = {"cancel": cancel, "close": lambda wire: wire.socket.close(), "reset": reset}


class Holding(RequestModel):
    """Holds the loop, which so learns of calls and of their end in one turn, as under load."""

    async def infer(self, request: InferRequest) -> InferResponse:
        time.sleep(0.005)
        return InferResponse(request.model_name, list(request.inputs))


def call(stream: int, method: str, body: bytes, **more: str) -> bytes:
    head = frame(HEADERS, END_HEADERS, stream, call_headers(f"{SERVICE}/{method}", **more))
    return head + frame(DATA, END_STREAM, stream, message(body))


@pytest.fixture(params=ENGINES)
def server(request, monkeypatch):
    monkeypatch.setitem(MODELS, "holding", Holding)
    with serving(request.param, names=tuple(MODELS)) as running:
        yield running


@pytest.mark.parametrize("leave", LEAVING)
def test_who_leaves_while_it_is_answered_is_no_news(server, leave, caplog):
    for method, body, more in ANSWERS.values():
        calls = [(method, body, more) if n % 8 else ("ModelInfer", request("holding"), {}) for n in range(CALLS)]
        sent = b"".join(call(2 * n + 1, method, body, **more) for n, (method, body, more) in enumerate(calls))
        for turn in range(TURNS):
            with Wire(server.port) as wire:
                wire.send(sent)
                read(wire, turn % 4 * 8)  # so many have their answers, the next are being answered
                LEAVING[leave](wire)
    with Wire(server.port) as wire:  # and the server has ended before this one
        wire.send(sent)
        read(wire, 1)
        end(server)
    assert news(caplog) == []


def test_whose_deadline_passes_while_it_is_answered_is_no_news_and_is_counted(server, caplog):
    """The calls that so ended in the log: grpc-core knows of the end of one before grpc.aio does."""
    each = [call for call in ANSWERS.values() for _ in range(10)]
    sent = answered = 0
    for turn in range(draws(120, 60, 20)):
        with Wire(server.port) as wire:
            for n in range(len(each)):
                method, body, more = each[n] if n % 6 else ("ModelInfer", request("holding"), {})
                sent += not n % 6
                wire.send(call(2 * n + 1, method, body, grpc_timeout=f"{5 + turn % 60}m", **more))
            answered += sum(not stream // 2 % 6 for stream in read(wire, len(each)))
    server.run(server.server.drain(60), 20)  # in time: no call is left that waits
    counted = server.run(server.plane.statistics_of_all("holding", ""))[0]["inference_stats"]
    end(server)
    assert news(caplog) == []
    assert 0 < answered <= counted["success"]["count"] <= sent - counted["fail"]["count"]
