"""HTTP/2 that no client library would send, to both engines: whatever comes, the next client is served and little memory is taken.

Sources: RFC 9113 (sections at each case); gRPC over HTTP/2; CVE-2023-44487 (rapid reset); CVE-2024-27316 (CONTINUATION flood).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb

import grpc
from depth import draws
from grpc_support import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENGINES,
    GOAWAY,
    HEADERS,
    INFER,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    SLOW,
    TLS,
    WINDOW_UPDATE,
    Running,
    call_headers,
    frame,
    literal,
    message,
    serving,
    tls_context,
)
from seeded import seeded
from waiting import wait_until

MIB = 1024 * 1024


@pytest.fixture(scope="module", params=[*ENGINES, TLS])
def server(request):
    with serving(request.param) as running:
        yield running


def infer_message(model: str = "sum") -> bytes:
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 3])
    x = np.ones((1, 3), np.float32)
    return pb.ModelInferRequest(model_name=model, inputs=[entry], raw_input_contents=[x.tobytes()]).SerializeToString()


def serves(server: Running) -> bool:
    with server.channel([("grpc.use_local_subchannel_pool", 1)]) as channel:
        call = channel.unary_unary(INFER)
        answer = pb.ModelInferResponse.FromString(call(infer_message(), timeout=20, wait_for_ready=True))
    return answer.raw_output_contents[0] == np.array([[3]], np.float32).tobytes()


def serves_again(server: Running, tries: int = 5) -> bool:
    """As `serves`, but a call may be lost: grpc.aio may have crashed under it, and be replaced."""
    for _ in range(tries):
        with contextlib.suppress(grpc.RpcError):
            return serves(server)
    return False


def memory() -> int:
    return psutil.Process().memory_info().rss


def opening(stream: int = 1, flags: int = END_HEADERS, **headers: str) -> bytes:
    return frame(HEADERS, flags, stream, call_headers(**headers))


GOOD = message(infer_message())
CASES = {
    "not HTTP/2 (3.4)": b"\x00" * 200,
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "frame too large (4.2)": frame(DATA, 0, 1, b"x" * 20000),
    "DATA on an idle stream (5.1)": frame(DATA, END_STREAM, 5, GOOD),
    "client opens an even stream (5.1.1)": opening(2),
    "stream numbers go down (5.1.1)": opening(5) + opening(3),
    "DATA on stream 0 (6.1)": frame(DATA, 0, 0, GOOD),
    "padding longer than the frame (6.1)": opening() + frame(DATA, 8, 1, b"\xff\x00"),
    "HEADERS broken off by DATA (6.2)": frame(HEADERS, 0, 1, call_headers()) + frame(DATA, 0, 1, GOOD),
    "CONTINUATION without HEADERS (6.10)": frame(CONTINUATION, END_HEADERS, 1, call_headers()),
    "RST_STREAM on an idle stream (6.4)": frame(RST_STREAM, 0, 7, bytes(4)),
    "RST_STREAM of 3 bytes (6.4)": opening() + frame(RST_STREAM, 0, 1, bytes(3)),
    "SETTINGS of 5 bytes (6.5)": frame(SETTINGS, 0, 0, bytes(5)),
    "PING of 7 bytes (6.7)": frame(PING, 0, 0, bytes(7)),
    "window overflow (6.9.1)": frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", 2**31 - 1)) * 2,
    "window update by 0 (6.9)": opening() + frame(WINDOW_UPDATE, 0, 1, bytes(4)),
    "unknown frame type (4.1)": frame(0xBE, 0xEF, 0, b"?"),
    "header block that is no HPACK": frame(HEADERS, END_HEADERS, 1, b"\xff" * 40),
    "upper-case header (8.2)": frame(HEADERS, END_HEADERS, 1, call_headers() + literal("Upper", "x")),
    "no pseudo-headers (8.3)": frame(HEADERS, END_HEADERS | END_STREAM, 1, literal("x", "y")),
    "GET": frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(":method", "GET") + call_headers()),
    "no message": opening(flags=END_HEADERS | END_STREAM),
    "half a prefix": opening() + frame(DATA, END_STREAM, 1, b"\x00\x00"),
    "message cut short": opening() + frame(DATA, END_STREAM, 1, GOOD[:-3]),
    "two messages": opening() + frame(DATA, END_STREAM, 1, GOOD + GOOD),
    "compressed without an encoding": opening() + frame(DATA, END_STREAM, 1, message(b"\x1f\x8b", compressed=1)),
    "compressed by what is not offered": opening(grpc_encoding="snappy") + frame(DATA, END_STREAM, 1, message(b"x", compressed=1)),
    "gzip that is none": opening(grpc_encoding="gzip") + frame(DATA, END_STREAM, 1, message(b"x" * 99, compressed=1)),
    "flag byte 7": opening() + frame(DATA, END_STREAM, 1, message(infer_message(), compressed=7)),
    "timeout of no form": opening(grpc_timeout="soon") + frame(DATA, END_STREAM, 1, GOOD),
    "timeout 0": opening(grpc_timeout="0S") + frame(DATA, END_STREAM, 1, GOOD),
    "path of 10 000 characters": opening(path="/" + "x" * 10_000) + frame(DATA, END_STREAM, 1, GOOD),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_allowed_harms_nobody_else(server, case):
    with server.wire() as wire:
        wire.send(CASES[case])
        assert serves(server)
    assert serves(server)


@pytest.mark.alone
def test_a_claimed_length_of_4_GiB_takes_no_memory_and_is_refused(server):
    before = memory()
    wires = [server.wire() for _ in range(8)]
    for wire in wires:
        for stream in range(1, 200, 2):
            wire.send(opening(stream) + frame(DATA, 0, stream, message(b"", claim=2**32 - 1)))
    for wire in wires:
        assert wire.ended(1)
    assert serves(server)
    assert memory() - before < 40 * MIB
    for wire in wires:
        wire.socket.close()


@pytest.mark.alone
def test_streams_that_are_opened_and_reset_at_once_exhaust_nothing(server):
    """CVE-2023-44487: each reset stream's work must end, or the connection be closed; and nothing grows."""
    before = memory()
    with server.wire() as wire:
        for burst in range(100):
            streams = range(1 + burst * 400, 1 + (burst + 1) * 400, 2)
            body = message(infer_message("slow"))
            reset = struct.pack("!I", 8)
            calls = (opening(s) + frame(DATA, END_STREAM, s, body) + frame(RST_STREAM, 0, s, reset) for s in streams)
            wire.send(b"".join(calls))
        assert serves(server)
    slow = SLOW["slow"]
    server.until(lambda: slow.came == slow.cancelled)
    assert memory() - before < 60 * MIB


@pytest.mark.alone
def test_endless_headers_are_cut_off(server):
    """CVE-2024-27316: CONTINUATION without end."""
    before = memory()
    with server.wire() as wire:
        wire.send(frame(HEADERS, 0, 1, call_headers()))
        for i in range(12_000):  # 96 MB
            if not wire.send(frame(CONTINUATION, 0, 1, literal(f"x-{i}", "y" * 8000))):
                break
        assert serves(server)
    assert memory() - before < 60 * MIB


@pytest.mark.alone
@pytest.mark.parametrize("flood", [frame(PING, 0, 0, b"12345678"), frame(SETTINGS, 0, 0)], ids=["PING", "SETTINGS"])
def test_floods_of_what_must_be_answered_are_bounded(server, flood):
    before = memory()
    with server.wire() as wire:
        wire.socket.settimeout(1)
        for _ in range(100):
            if not wire.send(flood * 1000):  # and never reads
                break
        assert serves(server)
    assert memory() - before < 60 * MIB


@pytest.mark.alone
@pytest.mark.parametrize(
    "server", ENGINES, indirect=True, scope="module"
)  # over TLS a loop that is held shakes no hands
def test_calls_that_come_while_the_loop_is_held_take_bounded_memory(server):
    """The transports' threads take calls in whatever Python does: 30 000 of them took grpcio 0.5 GB."""
    before, go = memory(), threading.Event()
    calls = b"".join(opening(s) + frame(DATA, END_STREAM, s, GOOD) for s in range(1, 21, 2))
    server.loop.call_soon_threadsafe(go.wait, 30)
    try:
        with contextlib.suppress(
            TimeoutError
        ):  # native: whose loop is held accepts no more than a few hundred connections
            for _ in range(3000):
                with contextlib.suppress(ConnectionError), server.wire(timeout_s=2) as wire:
                    wire.send(calls)
        grown = memory() - before
    finally:
        go.set()
    # grpc-core cancels at random while more calls wait than it may keep (grpc.server.max_pending_requests), others' too.
    wait_until(lambda: all(serves_again(server, tries=1) for _ in range(20)), limit_s=60)
    assert grown < 220 * MIB


@pytest.mark.alone
def test_a_client_that_does_not_read_its_answers_holds_only_its_own(server):
    before = memory()
    entry = pb.ModelInferRequest.InferInputTensor(name="x", datatype="INT64", shape=[1])
    big = pb.ModelInferRequest(model_name="big", inputs=[entry], raw_input_contents=[np.array([200_000]).tobytes()])
    with server.wire() as wire:
        for stream in range(1, 201, 2):
            wire.send(opening(stream) + frame(DATA, END_STREAM, stream, message(big.SerializeToString())))
        for _ in range(20):
            assert serves(server)
        assert memory() - before < 60 * MIB, "100 answers of 200 KB may wait, and not much beside them"
    assert serves(server)


@pytest.mark.alone
@pytest.mark.slow
def test_random_damage_to_a_right_conversation_is_survived(server):
    chance = seeded(7)
    right = (
        PREFACE
        + frame(SETTINGS, 0, 0)
        + b"".join(opening(s) + frame(DATA, END_STREAM, s, GOOD) for s in range(1, 21, 2))
    )
    before = memory()
    for turn in range(draws(1500, 250)):
        damaged = bytearray(right)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(damaged))
            match chance.randrange(3):
                case 0:
                    damaged[at] = chance.randrange(256)
                case 1:
                    del damaged[at : at + chance.randrange(1, 30)]
                case _:
                    damaged[at:at] = chance.randbytes(chance.randrange(1, 30))
        with (
            contextlib.suppress(ConnectionError),
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire,
        ):
            if server.is_tls and turn % 2:  # else in the place of TLS
                with tls_context().wrap_socket(wire, server_hostname="127.0.0.1") as encrypted:
                    encrypted.sendall(damaged)
            else:
                wire.sendall(damaged)
        if turn % 100 == 0:
            assert serves_again(server)
    assert serves_again(server)
    assert memory() - before < 40 * MIB


def test_GOAWAY_tells_clients_to_go_when_the_server_stops():
    for engine in (*ENGINES, TLS):
        with serving(engine) as server, server.wire() as wire:
            wire.send(opening() + frame(DATA, END_STREAM, 1, GOOD))
            assert wire.ended(1)
            server.run(server.server.drain(5))
            server.run(server.server.close())
            kinds = [kind for kind, *_ in wire.frames()]
            assert GOAWAY in kinds
            assert wire.closed


@pytest.mark.timeout(60)
def test_a_path_that_is_no_text_ends_nothing_while_its_client_stays(server):
    """grpc.aio tells of its end when its last call has ended: whoever kills it and stays would keep it dead."""
    bad = call_headers().replace(INFER.encode(), b"\xb9" * len(INFER))
    with server.wire() as neighbour, server.wire() as wire:
        neighbour.send(opening() + frame(DATA, 0, 1, message(infer_message("slow"))))
        wire.send(frame(HEADERS, END_HEADERS, 1, bad))
        for _ in range(3):
            assert serves_again(server)


def test_a_path_that_is_no_text_ends_nothing(server):
    """grpc.aio's serving loop dies of it; the engine must serve on."""
    with server.wire() as wire:
        bad = call_headers().replace(INFER.encode(), b"\xb9" * len(INFER))
        wire.send(frame(HEADERS, END_HEADERS, 1, bad) + frame(DATA, END_STREAM, 1, GOOD))
        wire.ended(1)
    assert serves_again(server)
